//! Errors, each with its subject and a hint.

use std::io;
use std::path::PathBuf;

use state_file::FormatError;

use crate::{Denial, ProgramsError};

/// Why a VM could not be booted. Processes that had been started are ended.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The spec asks for something that no VM can have.
    #[error("cannot boot {instance}: {reason}")]
    Spec {
        /// The instance.
        instance: model::InstanceId,
        /// What is wrong with it.
        reason: String,
    },
    /// A program is missing.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// A VM already runs in this run directory.
    #[error("a VM already runs in {}: adopt it, or kill it first", run_dir.display())]
    AlreadyRunning {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// An earlier VM of the run directory could not be examined.
    #[error(transparent)]
    Leftovers(#[from] AdoptError),
    /// A file of the VM could not be opened or made.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM opens this file by name, and its user may not read it (Firecracker only).
    #[error(
        "{} must be readable by everyone (it is no secret): chmod a+r {}", .0.display(), .0.display()
    )]
    NotReadableByAll(PathBuf),
    /// Permission to open a file of the VM, or to execute a program, was denied.
    #[error("cannot {operation} {}: {denial}", path.display())]
    Forbidden {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What forbids it.
        denial: Denial,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A process could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Firecracker refused a part of the VM, or did not answer.
    #[error("firecracker does not {what}: {reason}; its last output: {output_tail}")]
    Firecracker {
        /// The request: method and path of its API.
        what: String,
        /// Its answer, or why there is none.
        reason: String,
        /// The end of its output.
        output_tail: String,
    },
    /// The vsock device ended, or did not begin to listen in time.
    #[error("vhost-device-vsock {what}; its last output: {output_tail}")]
    VsockDevice {
        /// What happened.
        what: String,
        /// The end of its output.
        output_tail: String,
    },
}

impl BootError {
    /// Whether the same boot may succeed later, with nobody changing the spec or the machine. Not for a
    /// permission that is denied: it stays denied, so booting again only delays the message.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Spec { .. }
            | Self::Programs(ProgramsError::NotExecutable { .. })
            | Self::Forbidden { .. }
            | Self::NotReadableByAll(_) => false,
            Self::Start { source, .. } | Self::File { source, .. } => {
                source.kind() != io::ErrorKind::PermissionDenied
            }
            // An upgrade replaces the program.
            Self::Programs(ProgramsError::Missing { .. })
            | Self::AlreadyRunning { .. }
            | Self::Leftovers(_)
            | Self::Firecracker { .. }
            | Self::VsockDevice { .. } => true,
        }
    }
}

/// Why the VM of a run directory could not be found again. Nothing was killed.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The record is there, but cannot be read or removed.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record is there and cannot be understood: it is damaged, or a newer agent wrote it. The VM may run.
    #[error(
        "cannot read the record of a VM, {}, so the VM is left alone; hint: run the agent that wrote it, \
         or end the VM by hand and delete its run directory",
        path.display()
    )]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// A process of the record could not be examined.
    #[error("cannot examine process {pid}")]
    Process {
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

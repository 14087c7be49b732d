//! Finds the programs that the drivers start.

use std::env;
use std::path::{Path, PathBuf};

use crate::DriverKind;
use crate::denial::{self, Denial};

/// QEMU's name in Debian.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// The vsock device, from crates.io.
pub(crate) const VSOCK_DEVICE: &str = "vhost-device-vsock";
/// Where the package has it.
const PACKAGED_VSOCK_DEVICE: &str = "/usr/lib/platform/vhost-device-vsock";
/// Names the vsock device outright, where it is in none of the usual places.
const VSOCK_DEVICE_VARIABLE: &str = "PLATFORM_VHOST_DEVICE_VSOCK";
/// Firecracker and its jailer, from its releases: Debian has neither.
pub(crate) const FIRECRACKER: &str = "firecracker";
pub(crate) const JAILER: &str = "jailer";
/// Name them outright, where they are in none of the usual places.
const FIRECRACKER_VARIABLE: &str = "PLATFORM_FIRECRACKER";
const JAILER_VARIABLE: &str = "PLATFORM_JAILER";
/// Where Debian keeps programs, which the PATH of a service may lack.
const SYSTEM_DIRS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin"];

/// What the QEMU driver starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QemuPrograms {
    /// `qemu-system-x86_64`, without symbolic links.
    pub(crate) qemu: PathBuf,
    /// `vhost-device-vsock`, without symbolic links.
    pub(crate) vsock_device: PathBuf,
}

/// What the Firecracker driver starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FirecrackerPrograms {
    /// `firecracker`, without symbolic links.
    pub(crate) firecracker: PathBuf,
    /// `jailer`, without symbolic links.
    pub(crate) jailer: PathBuf,
}

/// A program that a driver starts is missing, or cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramsError {
    /// The program is in none of the places that [`check_programs`] names.
    #[error("{program} is not installed; hint: {hint}")]
    Missing {
        /// The program.
        program: &'static str,
        /// How to get it.
        hint: &'static str,
    },
    /// The program is there, and cannot be executed.
    #[error("{} cannot be executed: {denial}", program.display())]
    NotExecutable {
        /// The program.
        program: PathBuf,
        /// What forbids it.
        denial: Denial,
    },
}

/// Whether everything that a driver starts is installed and can be executed. Looks in the PATH and in the system's
/// directories; before that in the variables `PLATFORM_VHOST_DEVICE_VSOCK`, `PLATFORM_FIRECRACKER`
/// and `PLATFORM_JAILER`; for the vsock device also beside this program, in `/usr/lib/platform` and in `~/.cargo/bin`.
///
/// # Errors
/// One of them is in none of these places, or cannot be executed from where it is.
pub fn check_programs(driver: DriverKind) -> Result<(), ProgramsError> {
    match driver {
        DriverKind::Firecracker => FirecrackerPrograms::find().map(|_| ()),
        DriverKind::QemuKvm | DriverKind::QemuTcg => QemuPrograms::find().map(|_| ()),
    }
}

impl QemuPrograms {
    pub(crate) fn find() -> Result<Self, ProgramsError> {
        let qemu = find(QEMU).ok_or(ProgramsError::Missing {
            program: QEMU,
            hint: "apt-get install qemu-system-x86",
        })?;
        let vsock_device = find_vsock_device().ok_or(ProgramsError::Missing {
            program: VSOCK_DEVICE,
            hint: "the package has it; else cargo install vhost-device-vsock --locked, or name it in \
                   PLATFORM_VHOST_DEVICE_VSOCK",
        })?;
        Ok(Self {
            qemu: executable(qemu)?,
            vsock_device: executable(vsock_device)?,
        })
    }
}

impl FirecrackerPrograms {
    pub(crate) fn find() -> Result<Self, ProgramsError> {
        let firecracker = named_or_found(FIRECRACKER_VARIABLE, FIRECRACKER).ok_or(ProgramsError::Missing {
            program: FIRECRACKER,
            hint: "put a release of Firecracker on the PATH, or name it in PLATFORM_FIRECRACKER",
        })?;
        let jailer = named_or_found(JAILER_VARIABLE, JAILER).ok_or(ProgramsError::Missing {
            program: JAILER,
            hint: "it is part of Firecracker's release; put it on the PATH, or name it in \
                   PLATFORM_JAILER",
        })?;
        Ok(Self {
            firecracker: executable(firecracker)?,
            jailer: executable(jailer)?,
        })
    }
}

fn named_or_found(variable: &str, program: &str) -> Option<PathBuf> {
    match env::var_os(variable) {
        Some(path) => file_at(Path::new(&path)),
        None => find(program),
    }
}

fn find_vsock_device() -> Option<PathBuf> {
    if let Some(path) = env::var_os(VSOCK_DEVICE_VARIABLE) {
        return file_at(Path::new(&path));
    }
    let beside = env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(VSOCK_DEVICE)));
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin").join(VSOCK_DEVICE));
    beside
        .and_then(|path| file_at(&path))
        .or_else(|| file_at(Path::new(PACKAGED_VSOCK_DEVICE)))
        .or_else(|| find(VSOCK_DEVICE))
        .or_else(|| program_at(&cargo?))
}

/// The program of this name in the PATH or the system's directories, without symbolic links.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .find_map(|dir| program_at(&dir.join(name)))
}

/// A program that may be executed, by someone at least.
fn program_at(path: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = file_at(path)?;
    let mode = path.metadata().ok()?.permissions().mode();
    (mode & 0o111 != 0).then_some(path)
}

/// A file, without symbolic links.
fn file_at(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    path.is_file().then_some(path)
}

fn executable(program: PathBuf) -> Result<PathBuf, ProgramsError> {
    match denial::to_execution(&program) {
        None => Ok(program),
        Some(denial) => Err(ProgramsError::NotExecutable { program, denial }),
    }
}

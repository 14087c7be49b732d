//! Finds the processes of VMs without their records, by what no file can lie about: their user, their program, and the console
//! that each holds open for as long as it lives.
//!
//! It looks at every process of the machine, so it is for an agent's start and for the end of a node. Between the two the
//! records are enough.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use blocking_work::blocking;
use model::InstanceId;
use process_handle::{Identity, Process, is_gone};

use crate::record::Record;
use crate::spawn::VMM_UIDS;
use crate::{AdoptError, DriverKind, programs, run_dir};

/// What the kernel adds to the name of an open file that was removed.
const DELETED: &[u8] = b" (deleted)";

/// The processes of one VM.
#[derive(Debug, Default)]
struct Found {
    vmm: Option<Identity>,
    vsock_device: Option<Identity>,
    /// Others that hold its console: they are ended with it.
    others: Vec<i32>,
}

/// Writes the records of running VMs anew, where they are missing or cannot be read, so that [`crate::Vm::adopt`] finds every
/// VM. `folder` has the VMs' run directories. Names each VM whose record it wrote. A record that cannot be read is kept
/// beside the new one; where no process of its VM is left, it counts as ended. Blocks.
///
/// # Errors
/// A process, or a record, cannot be examined or written. VMs may run without records.
pub fn recover_records(folder: &Path) -> io::Result<Vec<InstanceId>> {
    let folder = &absolute(folder)?;
    let mut recovered = Vec::new();
    let found = find_processes(folder)?;
    for (dir, found) in &found {
        let Some(instance) = instance_of(dir) else {
            continue;
        };
        if !is_lost(dir)? {
            continue;
        }
        run_dir::make_dirs(dir)?;
        set_aside(dir)?;
        let mut record = Record::new(
            process_handle::boot_id()?,
            instance,
            found.driver(),
            crate::cgroup::Cgroup::of_process(found.pids().first().copied()),
        );
        record.vmm.clone_from(&found.vmm);
        record.vsock_device.clone_from(&found.vsock_device);
        record.write(dir)?;
        tracing::warn!(%instance, run_dir = %dir.display(), "the record of a running VM was lost; it was written anew");
        recovered.push(instance);
    }
    for entry in read_dir(folder)? {
        let dir = entry?.path();
        if dir.is_dir()
            && !found.contains_key(&dir)
            && run_dir::record(&dir).exists()
            && is_lost(&dir)?
        {
            set_aside(&dir)?;
            tracing::warn!(run_dir = %dir.display(), "the record of a VM cannot be read, and no process of it is left");
        }
    }
    Ok(recovered)
}

/// The VMs that have a record in a folder of run directories, sorted. Blocks.
///
/// # Errors
/// The folder cannot be read.
pub fn recorded(folder: &Path) -> io::Result<Vec<InstanceId>> {
    let mut ids = Vec::new();
    for entry in read_dir(folder)? {
        let dir = entry?.path();
        ids.extend(instance_of(&dir).filter(|_| run_dir::record(&dir).exists()));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Whether processes of VMs run whose run directories are in `folder`. Blocks.
///
/// # Errors
/// A process cannot be examined.
pub fn has_processes(folder: &Path) -> io::Result<bool> {
    Ok(!find_processes(&absolute(folder)?)?.is_empty())
}

/// Ends every process of VMs whose run directories are in `folder`, and waits until they are gone. Returns their pids.
///
/// # Errors
/// A process cannot be examined or held. Some may run.
pub async fn end_leftovers(folder: &Path) -> io::Result<Vec<i32>> {
    let folder = folder.to_owned();
    let folder = blocking(move || absolute(&folder)).await?;
    let search = folder.clone();
    let found = blocking(move || find_processes(&search)).await?;
    let mut ended = Vec::new();
    for pid in found.values().flat_map(Found::pids) {
        let process = match Process::hold(pid) {
            Ok(process) => process,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        // The pid may be another process's by now: it is looked at again, while it is held.
        let still = blocking({
            let folder = folder.clone();
            move || console_of(pid, &folder)
        });
        match still.await {
            Ok(Some(_)) => {
                process.kill();
                process.ended().await;
                ended.push(pid);
            }
            Ok(None) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

impl Found {
    fn pids(&self) -> Vec<i32> {
        let known = [&self.vmm, &self.vsock_device].into_iter().flatten();
        let known = known.map(|identity| identity.pid);
        known.chain(self.others.iter().copied()).collect()
    }

    /// The driver, by the VMM's program and arguments.
    fn driver(&self) -> DriverKind {
        let Some(vmm) = &self.vmm else {
            return DriverKind::QemuTcg;
        };
        if vmm.exe.file_name() == Some(OsStr::new(programs::FIRECRACKER)) {
            return DriverKind::Firecracker;
        }
        let arguments = fs::read(format!("/proc/{}/cmdline", vmm.pid)).unwrap_or_default();
        let mut words = arguments.split(|byte| *byte == 0);
        if words.any(|word| word == b"kvm") {
            DriverKind::QemuKvm
        } else {
            DriverKind::QemuTcg
        }
    }
}

/// All processes of VMs with run directories in `folder`, by run directory.
fn find_processes(folder: &Path) -> io::Result<BTreeMap<PathBuf, Found>> {
    let mut all: BTreeMap<PathBuf, Found> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let found = console_of(pid, folder).and_then(|dir| match dir {
            Some(dir) => Ok(Some((dir, process_handle::identity(pid)?))),
            None => Ok(None),
        });
        let (dir, identity) = match found {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let found = all.entry(dir).or_default();
        let place = match identity.exe.file_name().and_then(OsStr::to_str) {
            Some(programs::VSOCK_DEVICE) => &mut found.vsock_device,
            Some(name) if name == programs::QEMU || name == programs::FIRECRACKER => &mut found.vmm,
            _ => {
                found.others.push(pid);
                continue;
            }
        };
        if let Some(other) = place.replace(identity) {
            found.others.push(other.pid);
        }
    }
    Ok(all)
}

/// The run directory, in `folder`, of the VM whose process this is; none for a process of anything else.
fn console_of(pid: i32, folder: &Path) -> io::Result<Option<PathBuf>> {
    if !runs_as_vm(pid)? {
        return Ok(None);
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(to) = fs::read_link(entry?.path()) else {
            continue;
        };
        let bytes = to.as_os_str().as_bytes();
        let path = Path::new(OsStr::from_bytes(
            bytes.strip_suffix(DELETED).unwrap_or(bytes),
        ));
        if let Some(dir) = path.parent()
            && path == run_dir::console_fifo(dir)
            && dir.parent() == Some(folder)
        {
            return Ok(Some(dir.to_owned()));
        }
    }
    Ok(None)
}

/// Whether a process runs as the user of a VM, or, where VMs run as the agent's user, is another program than the agent.
fn runs_as_vm(pid: i32) -> io::Result<bool> {
    let own = rustix::process::geteuid();
    if own.is_root() {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            .and_then(|id| id.parse::<u32>().ok());
        let (first, count) = VMM_UIDS;
        return Ok(effective.is_some_and(|id| (first..first + count).contains(&id)));
    }
    // Another user's process cannot be looked into, and is none of ours.
    match (
        fs::read_link(format!("/proc/{pid}/exe")),
        fs::read_link("/proc/self/exe"),
    ) {
        (Ok(program), Ok(agent)) => Ok(program != agent),
        _ => Ok(false),
    }
}

/// Whether a run directory has no record that can be read.
fn is_lost(dir: &Path) -> io::Result<bool> {
    match Record::read(dir) {
        Ok(Some(_)) => Ok(false),
        Ok(None) => Ok(true),
        Err(AdoptError::Record { .. }) => Ok(true),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Keeps a record that cannot be read, under another name.
fn set_aside(dir: &Path) -> io::Result<()> {
    let record = run_dir::record(dir);
    if record.exists() {
        state_file::set_aside(&record).map_err(io::Error::other)?;
    }
    Ok(())
}

fn instance_of(dir: &Path) -> Option<InstanceId> {
    dir.file_name()?.to_str()?.parse().ok()
}

/// The folder as the kernel names what is in it.
fn absolute(folder: &Path) -> io::Result<PathBuf> {
    match folder.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(folder),
        other => other,
    }
}

fn read_dir(folder: &Path) -> io::Result<Box<dyn Iterator<Item = io::Result<fs::DirEntry>>>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(Box::new(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
        Err(error) => Err(error),
    }
}

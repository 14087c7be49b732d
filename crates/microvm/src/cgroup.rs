//! The cgroup of one VM: a cap on its memory, host side included, and its share of the processors.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

use model::InstanceId;

/// cgroup v2's weight of one core (its default).
const WEIGHT_PER_CORE: u32 = 100;
/// The parent of all VMs' cgroups, at the root. When the agent is a systemd service, systemd ends every process in
/// the agent's own cgroup, so VMs are not below it.
const PARENT: &str = "platform";
/// Tries to make a cgroup below the parent, which another VM's end may remove meanwhile.
const MAKE_TRIES: u32 = 100;
/// Tries to remove a cgroup whose processes have just ended.
const REMOVE_TRIES: u32 = 50;

/// A cgroup of one VM.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup. `memory_bytes` is all that the VM may take of the host: the guest's memory and the driver's
    /// overhead. Page cache of disks counts too, and is given back under pressure. Where the machine does not allow a
    /// cgroup, the reason is logged once. Blocks.
    pub(crate) fn make(instance: InstanceId, memory_bytes: u64, cpu_millis: u32) -> Option<Self> {
        static SAID: Once = Once::new();
        match Self::try_make(instance, memory_bytes, cpu_millis) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                SAID.call_once(|| {
                    tracing::warn!(
                        %error,
                        "VMs run without cgroups: their memory is bounded by the guest's own size, \
                         their processor shares are equal"
                    );
                });
                None
            }
        }
    }

    fn try_make(instance: InstanceId, memory_bytes: u64, cpu_millis: u32) -> io::Result<Self> {
        let root = mount_point(&fs::read_to_string("/proc/self/mountinfo")?)
            .ok_or_else(|| io::Error::other("cgroup v2 is not mounted"))?;
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
        let has = |name: &str| controllers.split_whitespace().any(|word| word == name);
        if !has("memory") || !has("cpu") {
            return Err(io::Error::other(format!(
                "cgroup v2 at {} lacks the controllers cpu and memory",
                root.display()
            )));
        }
        let parent = root.join(PARENT);
        enable(&root)?;
        let cgroup = Self {
            path: parent.join(format!("vm-{instance}")),
        };
        make_below(&parent, &cgroup.path, enable)?;
        let limits = [
            ("memory.max", memory_bytes.to_string()),
            ("memory.swap.max", "0".to_owned()),
            ("cpu.weight", weight(cpu_millis).to_string()),
        ];
        for (name, value) in limits {
            match fs::write(cgroup.path.join(name), value) {
                // A kernel without swap has no such file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    cgroup.remove_dir();
                    return Err(error);
                }
                Ok(()) => {}
            }
        }
        Ok(cgroup)
    }

    /// The cgroup of a VM's process, where it has one.
    pub(crate) fn of_process(pid: Option<i32>) -> Option<PathBuf> {
        let own = fs::read_to_string(format!("/proc/{}/cgroup", pid?)).ok()?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let root = mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        path.starts_with(&format!("{PARENT}/vm-"))
            .then(|| root.join(path))
    }

    /// The cgroup of a record.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it. Blocks.
    pub(crate) fn add_process(&self, pid: i32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Removes it; its processes have ended. Blocks for up to 100 ms.
    pub(crate) fn remove_dir(&self) {
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                _ => break,
            }
        }
        if let Some(parent) = self.path.parent() {
            // Succeeds for the last one only.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Makes a folder and, before it, its parent, which is `prepared` then. The parent is nobody's: whoever removes its last folder
/// removes it too, another agent of this machine as well, and so it is made again where it is gone.
fn make_below(
    parent: &Path,
    path: &Path,
    prepare: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let make = || {
        make_dir(parent)?;
        prepare(parent)?;
        make_dir(path)
    };
    for _ in 1..MAKE_TRIES {
        match make() {
            Err(error) if is_gone(&error) => {}
            done => return done,
        }
    }
    make()
}

/// A write to a file of a cgroup that is removed meanwhile answers ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn weight(cpu_millis: u32) -> u32 {
    (cpu_millis.saturating_mul(WEIGHT_PER_CORE) / 1000).clamp(1, 10_000)
}

fn enable(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.subtree_control"), "+cpu +memory")
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (filesystem.split(' ').next()? == "cgroup2")
            .then(|| mount.split(' ').nth(4).map(PathBuf::from))
            .flatten()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod guest_tests;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn cpu_weights_are_in_the_range_of_cgroup_v2() {
        assert_eq!(
            [0, 5, 250, 1000, 64_000, u32::MAX].map(weight),
            [1, 1, 25, 100, 6400, 10_000]
        );
    }

    /// Folders in the place of cgroups: both are made and removed alike.
    #[test]
    fn case_the_parent_is_not_removed_under_another_boot() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join(PARENT);
        std::thread::scope(|scope| {
            for number in 0..4 {
                let parent = &parent;
                scope.spawn(move || {
                    for _ in 0..2_000 {
                        let path = parent.join(format!("vm-{number}"));
                        // What cgroupfs does at a write below a removed folder.
                        let prepare = |parent: &Path| fs::metadata(parent).map(|_| ());
                        make_below(parent, &path, prepare).unwrap();
                        assert!(path.exists());
                        Cgroup::at(path).remove_dir();
                    }
                });
            }
        });
        assert!(!parent.exists());
    }

    #[test]
    fn the_cgroup_v2_mount_is_found_beside_version_1() {
        let mountinfo = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         35 24 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_point(mountinfo),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
    }
}

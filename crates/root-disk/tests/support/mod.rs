//! What the tests share: the checks by `e2fsck` and the kernel.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses a part, and fails by panicking"
)]

pub(crate) mod archive;
pub(crate) mod compare;
pub(crate) mod oci;
pub(crate) mod oracle;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a mount may be busy.
const UMOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// `e2fsck -fn` must find nothing to do and nothing to say.
pub(crate) fn fsck(disk: &Path) {
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(disk)
        .output()
        .expect("e2fsck of Debian's e2fsprogs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}", disk.display());
    // Five passes, and a line at the end.
    assert_eq!(text.lines().count(), 6, "{text}");
}

/// A disk mounted by the kernel until this is dropped.
pub(crate) struct LoopMount {
    dir: tempfile::TempDir,
}

impl LoopMount {
    /// Mounts it (`ro`, `rw`); none, and a word about it, where one may not.
    pub(crate) fn new(disk: &Path, options: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may mount");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", &format!("loop,{options}")])
            .arg(disk)
            .arg(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mount {}: {text}", disk.display());
        Some(Self { dir })
    }

    /// An overlay over `lower` with `upper` and `work` of the folder `scratch`.
    pub(crate) fn overlay(lower: &Path, scratch: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (lower, scratch) = (lower.display(), scratch.display());
        let options = format!("lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work");
        let status = Command::new("mount")
            .args(["-t", "overlay", "-o", &options, "overlay"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(status.success());
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        umount(self.dir.path());
    }
}

/// Unmounts. A program that another test starts has this test's open files until it executes: so long the mount is
/// busy.
pub(crate) fn umount(path: &Path) {
    let until = Instant::now() + UMOUNT_TIMEOUT;
    loop {
        let umount = Command::new("umount").arg(path).output();
        if umount.as_ref().is_ok_and(|umount| umount.status.success()) {
            return;
        }
        assert!(Instant::now() < until, "{umount:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

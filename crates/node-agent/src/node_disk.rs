//! The disk of this node: what its file system holds, who has how much of it, and what is left to promise.
//!
//! Scratch disks and volumes are sparse files, promised at their full size (ADR 0001, amendment of 2026-11-28): the
//! server promises no more than [`NodeDisk::instances_bytes`]. What is measured here is what that cannot be: the
//! platform's reserve, the images, and what everything else on the machine takes.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use api::enrollment::NodeDisk;

/// The platform's reserve: for records, journals and logs of this node, and for the server's store where it is on the
/// same disk. In parts of a thousand of the file system.
const RESERVE_PERMILLE: u64 = 50;
/// The least and the most of the reserve, in bytes. The logs of ended instances alone may have 256 MiB.
const RESERVE_BYTES: (u64, u64) = (320 << 20, 2 << 30);
/// The images' budget where the options name none: in parts of a thousand of what others leave, and at most so many
/// bytes.
const IMAGES_PERMILLE: u64 = 200;
const MAX_IMAGES_BYTES: u64 = 20 << 30;
/// What others take has to change by this part of a thousand of the file system until the server is told.
const CHANGE_PERMILLE: u64 = 10;
/// Bytes in a block of `st_blocks` (stat(2)).
const STAT_BLOCK: u64 = 512;

/// The disk as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// What the server is told.
    pub disk: NodeDisk,
    /// What is free now for users other than root, in bytes.
    pub free_bytes: u64,
}

impl DiskUse {
    /// Whether guests have begun to eat into the reserve: somebody else takes what was promised to them.
    pub fn is_short(&self) -> bool {
        self.free_bytes < self.disk.reserved_bytes
    }
}

/// The folders whose content is the images'.
const IMAGE_FOLDERS: [&str; 3] = ["blobs", "disks", "images"];

/// Measures the disk below a data folder.
#[derive(Debug, Clone)]
pub(crate) struct DiskMeter {
    data_dir: PathBuf,
    /// What cached images may take together, in bytes.
    images_budget: u64,
}

impl DiskMeter {
    /// Finds the images' budget, unless it is given. Blocks.
    ///
    /// # Errors
    /// The file system cannot be measured.
    pub(crate) fn new(data_dir: &Path, images_budget: Option<u64>) -> io::Result<Self> {
        let mut meter = Self {
            data_dir: data_dir.to_owned(),
            images_budget: images_budget.unwrap_or(0),
        };
        if images_budget.is_none() {
            let now = meter.measure()?.disk;
            let left = now.total_bytes.saturating_sub(now.others_bytes);
            meter.images_budget = permille(left, IMAGES_PERMILLE).min(MAX_IMAGES_BYTES);
        }
        Ok(meter)
    }

    pub(crate) fn images_budget(&self) -> u64 {
        self.images_budget
    }

    /// Measures. Blocks while it looks at every file of the node: a few for each instance and image.
    ///
    /// # Errors
    /// The file system or a folder cannot be read.
    pub(crate) fn measure(&self) -> io::Result<DiskUse> {
        let system = rustix::fs::statvfs(&self.data_dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        let used = bytes(system.f_blocks.saturating_sub(system.f_bfree));
        let free_bytes = bytes(system.f_bavail);
        let total_bytes = used.saturating_add(free_bytes);
        let ours = allocated(&self.data_dir)?;
        let mut images = 0;
        for folder in IMAGE_FOLDERS {
            images += allocated(&self.data_dir.join(folder))?;
        }
        let (least, most) = RESERVE_BYTES;
        let disk = NodeDisk {
            total_bytes,
            reserved_bytes: permille(total_bytes, RESERVE_PERMILLE).clamp(least, most),
            images_bytes: images.max(self.images_budget),
            others_bytes: used.saturating_sub(ours),
        };
        Ok(DiskUse { disk, free_bytes })
    }
}

/// What is reported to the server, after `before` was: a small change is not reported, so that it costs no write.
pub(crate) fn reported(before: Option<NodeDisk>, now: NodeDisk) -> NodeDisk {
    let Some(before) = before else { return now };
    let much = permille(now.total_bytes, CHANGE_PERMILLE);
    let same = |a: u64, b: u64| a.abs_diff(b) <= much;
    let is_same = same(before.total_bytes, now.total_bytes)
        && same(before.reserved_bytes, now.reserved_bytes)
        && same(before.images_bytes, now.images_bytes)
        && same(before.others_bytes, now.others_bytes);
    if is_same { before } else { now }
}

fn permille(whole: u64, parts: u64) -> u64 {
    whole / 1000 * parts
}

/// Bytes that a folder takes on its file system; what vanishes meanwhile, or lies on another one, is not counted.
fn allocated(folder: &Path) -> io::Result<u64> {
    let device = match folder.symlink_metadata() {
        Ok(metadata) => metadata.dev(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = 0_u64;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            // Does not follow symbolic links.
            let Ok(entry) = entry else { continue };
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.dev() != device {
                continue;
            }
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(STAT_BLOCK));
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn case_what_images_and_others_take_is_not_left_to_instances() {
        let dir = tempfile::tempdir().unwrap();
        let (data, other) = (dir.path().join("data"), dir.path().join("other"));
        for folder in ["data/disks", "data/instances/1", "data/volumes", "other"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let meter = DiskMeter::new(&data, Some(4 * MIB)).unwrap();
        let before = meter.measure().unwrap().disk;
        assert!(before.total_bytes > 0 && before.reserved_bytes >= RESERVE_BYTES.0);
        assert_eq!(before.images_bytes, 4 * MIB);
        let write = |path: &Path, mib: u64| {
            let bytes = vec![1; usize::try_from(mib * MIB).unwrap()];
            std::fs::write(path, bytes).unwrap();
        };
        // Within the images' budget, and what a guest has written: nothing changes but by what others do meanwhile.
        write(&data.join("disks/a.ext4"), 3);
        write(&data.join("instances/1/scratch.ext4"), 8);
        // A sparse file takes what is written.
        let sparse = std::fs::File::create(data.join("volumes/v.ext4")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert!(allocated(&data).unwrap() < 12 * MIB);
        assert_eq!(meter.measure().unwrap().disk.images_bytes, 4 * MIB);
        // Over it: pinned images stay also where they take more.
        write(&data.join("disks/b.ext4"), 3);
        assert!(meter.measure().unwrap().disk.images_bytes >= 6 * MIB);
        write(&other.join("file"), 1);
    }

    #[test]
    fn a_small_change_is_not_reported() {
        let disk = |others_bytes| NodeDisk {
            total_bytes: 1000 * MIB,
            reserved_bytes: 50 * MIB,
            images_bytes: 100 * MIB,
            others_bytes,
        };
        let first = reported(None, disk(0));
        assert_eq!(reported(Some(first), disk(9 * MIB)), first);
        assert_eq!(reported(Some(first), disk(11 * MIB)), disk(11 * MIB));
        assert_eq!(
            disk(11 * MIB).instances_bytes(),
            (1000 - 50 - 100 - 11) * MIB
        );
    }
}

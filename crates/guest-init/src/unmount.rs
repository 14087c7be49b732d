//! Volumes at the end: their file systems are left clean.

use std::fs;

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

use crate::console;

/// Makes the volumes read-only, which leaves their file systems clean whoever still uses them, and unmounts them.
pub(crate) fn unmount_volumes(volumes: &[String]) {
    for volume in volumes.iter().rev() {
        if let Ok(directory) = fs::File::open(volume) {
            let _ = rustix::fs::syncfs(&directory);
        }
        let remounted = mount_remount(volume.as_str(), MountFlags::RDONLY, "");
        if unmount(volume.as_str(), UnmountFlags::empty()).is_err() {
            let _ = unmount(volume.as_str(), UnmountFlags::DETACH);
            if let Err(error) = remounted {
                console::print(&format!("{volume} is left mounted: {error}"));
            }
        }
    }
}

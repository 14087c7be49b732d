//! The content of Firecracker's jail.
//!
//! The jailer makes a root of its own below `<base>/<program>/<id>/root`, copies the VMM there, makes
//! `/dev/kvm` and `/dev/net/tun`, moves into it by `pivot_root`, and becomes the VM's user. The VM's files
//! are laid out before, in a mount namespace that only this process has: a tmpfs for the base, since `/run`
//! allows no devices, and in it each file, bound from where it is. All of it vanishes with the process: the
//! machine's own mounts never change.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::InstanceId;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount,
};

use crate::driver::Boot;
use crate::view::leave_mount_namespace;
use crate::{Disk, VmSpec, run_dir};

/// The kernel, inside.
pub(crate) const KERNEL: &str = "/kernel";
/// The initramfs, inside.
pub(crate) const INITRAMFS: &str = "/initramfs";
/// The VM's socket directory, inside.
const SOCKETS: &str = "/vsock";
/// The stem of the guest's sockets, inside.
pub(crate) const GUEST_SOCKET: &str = "/vsock/guest";
/// The API's socket, inside.
const API_SOCKET: &str = "/vsock/api";
/// Room in the jail for the copy of the VMM and for empty files, in bytes.
const ROOM_BYTES: u64 = 64 * 1024 * 1024;

/// A disk, inside.
pub(crate) fn disk(index: usize) -> String {
    format!("/disk{index}")
}

/// A jail that is to be made.
pub(crate) struct Jail {
    base: PathBuf,
    root: PathBuf,
    firecracker: PathBuf,
    instance: InstanceId,
    user: u32,
    /// Bind mounts: source, path inside, and whether it is writable.
    bound: Vec<(PathBuf, String, bool)>,
}

impl Jail {
    pub(crate) fn new(boot: &Boot, spec: &VmSpec, firecracker: PathBuf, user: u32) -> Self {
        let base = run_dir::jail_dir(&boot.dir);
        let root = base
            .join(firecracker.file_name().unwrap_or_default())
            .join(spec.instance.to_string())
            .join("root");
        let mut bound = vec![
            (spec.kernel.kernel.clone(), KERNEL.to_owned(), false),
            (spec.kernel.initramfs.clone(), INITRAMFS.to_owned(), false),
            (run_dir::vsock_dir(&boot.dir), SOCKETS.to_owned(), true),
        ];
        for (index, Disk { path, read_only }) in spec.disks.iter().enumerate() {
            bound.push((path.clone(), disk(index), !read_only));
        }
        Self {
            base,
            root,
            firecracker,
            instance: spec.instance,
            user,
            bound,
        }
    }

    /// The jailer's arguments, and Firecracker's after them.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let user = self.user.to_string();
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: [&std::ffi::OsStr; 2]| arguments.extend(words.map(Into::into));
        add(["--id".as_ref(), self.instance.to_string().as_ref()]);
        add(["--exec-file".as_ref(), self.firecracker.as_ref()]);
        add(["--uid".as_ref(), user.as_ref()]);
        add(["--gid".as_ref(), user.as_ref()]);
        add(["--chroot-base-dir".as_ref(), self.base.as_ref()]);
        arguments.push("--".into());
        let mut add = |words: [&str; 2]| arguments.extend(words.map(Into::into));
        add(["--api-sock", API_SOCKET]);
        // The console carries errors only.
        add(["--level", "Warning"]);
        arguments
    }

    /// The VMM's `/proc/<pid>/exe`: its path in its own root.
    pub(crate) fn exe(&self) -> PathBuf {
        Path::new("/").join(self.firecracker.file_name().unwrap_or_default())
    }

    /// Lays everything out, in a mount namespace of the calling thread's own.
    ///
    /// # Errors
    /// The kernel refused a mount. The machine's mounts are unchanged.
    pub(crate) fn furnish(&self) -> io::Result<()> {
        leave_mount_namespace()?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private)?;
        fs::create_dir_all(&self.base)?;
        let options = CString::new(format!("mode=0700,size={ROOM_BYTES}"))?;
        let flags = MountFlags::NOSUID;
        mount("jail", &self.base, "tmpfs", flags, Some(options.as_c_str()))?;
        fs::create_dir_all(&self.root)?;
        for (from, to, writable) in &self.bound {
            let to = self.root.join(to.trim_start_matches('/'));
            if from.is_dir() {
                fs::create_dir(&to)?;
            } else {
                fs::File::create(&to)?;
            }
            let named = |error: rustix::io::Errno| {
                io::Error::other(format!("bind {} into the jail: {error}", from.display()))
            };
            mount_bind(from, &to).map_err(named)?;
            let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
            if !writable {
                flags |= MountFlags::RDONLY;
            }
            mount_remount(&to, flags, "").map_err(named)?;
        }
        Ok(())
    }
}

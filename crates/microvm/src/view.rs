//! What the processes of a VM under QEMU see of the machine's files: their programs, and nothing of a tenant.
//!
//! Disks, tap, sockets, kernel and console are handed over as open descriptors, so neither process needs a name of them. The
//! root of both is a tmpfs of their own with, read-only and without devices:
//!
//! ```text
//! /usr /lib* /bin /sbin   the machine's programs and libraries; symbolic links where the machine has them
//! <prefix>                where the program is installed elsewhere: its folder `bin`'s parent, else the program alone
//! /etc/ld.so.cache        where libraries are
//! /proc                   this process only
//! /dev                    null, urandom, and kvm where it is used
//! <run dir>/vsock         the vsock device only, writable: the VM's own sockets
//! ```
//!
//! The mounts are made in a mount namespace of the starting thread's own. All of it vanishes with the process: the machine's
//! own mounts never change.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::run_dir;
use crate::spawn::Prepare;

/// Folders and links at the root that hold programs and libraries.
const SYSTEM: [&str; 7] = ["usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin"];
/// Files that the dynamic linker reads.
const LINKER_FILES: [&str; 2] = ["etc/ld.so.cache", "etc/ld-musl-x86_64.path"];
/// Room for empty files and folders to mount on, in bytes.
const ROOM_BYTES: u64 = 1024 * 1024;
/// The tmpfs is mounted here while it is furnished, in the VM's run directory.
const ROOT: &str = "jail";

/// The view of one process.
pub(crate) struct View {
    run_dir: PathBuf,
    program: PathBuf,
    /// Folders that the process writes to, under their own names.
    writable: Vec<PathBuf>,
    devices: Vec<&'static str>,
}

impl View {
    /// The view of the vsock device: it makes its sockets.
    pub(crate) fn of_vsock_device(run_dir: &Path, program: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            program: program.to_owned(),
            writable: vec![run_dir::vsock_dir(run_dir)],
            devices: vec!["null", "urandom"],
        }
    }

    /// The view of QEMU.
    pub(crate) fn of_vmm(run_dir: &Path, program: &Path, kvm: bool) -> Self {
        let mut devices = vec!["null", "urandom"];
        if kvm {
            devices.push("kvm");
        }
        Self {
            run_dir: run_dir.to_owned(),
            program: program.to_owned(),
            writable: Vec::new(),
            devices,
        }
    }

    /// Work before the fork: moves the starting thread into the view. A VM that runs as the agent's own user (`user`
    /// absent) sees what the agent sees, because only root may mount.
    pub(crate) fn prepare(self, user: Option<u32>) -> Option<Prepare> {
        user.map(|_| -> Prepare { Box::new(move || self.enter()) })
    }

    fn enter(&self) -> io::Result<()> {
        leave_mount_namespace()?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private)?;
        let root = self.run_dir.join(ROOT);
        fs::create_dir_all(&root)?;
        let options = CString::new(format!("mode=0755,size={ROOM_BYTES}"))?;
        let flags = MountFlags::NOSUID;
        mount("view", &root, "tmpfs", flags, Some(options.as_c_str()))?;
        // The VM's user has to pass the folders, `/dev` to open /dev/kvm, whatever the agent's umask. It is this thread's own: a
        // mount namespace comes with it (unshare(2)).
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let furnished = self.furnish(&root);
        rustix::process::umask(umask);
        furnished?;
        // What was the root is mounted on top of the new one, and removed from there (pivot_root(2)).
        rustix::process::fchdir(rustix::fs::open(
            &root,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?)?;
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        Ok(())
    }

    fn furnish(&self, root: &Path) -> io::Result<()> {
        for name in SYSTEM {
            let from = Path::new("/").join(name);
            match fs::symlink_metadata(&from) {
                Ok(found) if found.is_symlink() => {
                    std::os::unix::fs::symlink(fs::read_link(&from)?, root.join(name))?;
                }
                Ok(found) if found.is_dir() => bind(&from, root, Access::Read)?,
                _ => {}
            }
        }
        for name in LINKER_FILES {
            let from = Path::new("/").join(name);
            if from.is_file() {
                bind(&from, root, Access::Read)?;
            }
        }
        let program = self.installed();
        if !program.starts_with("/usr") && !SYSTEM.iter().any(|name| is_below(&program, name)) {
            bind(&program, root, Access::Read)?;
        }
        for name in &self.devices {
            bind(&Path::new("/dev").join(name), root, Access::Device)?;
        }
        for folder in &self.writable {
            bind(folder, root, Access::Write)?;
        }
        mount_proc(&root.join("proc"))
    }

    /// The program with what it is installed with: the parent of its folder `bin`, unless that holds the run directory; else the
    /// program alone.
    fn installed(&self) -> PathBuf {
        let bin = self.program.parent().filter(|bin| bin.ends_with("bin"));
        let prefix = bin.and_then(Path::parent);
        prefix
            .filter(|prefix| prefix.parent().is_some() && !self.run_dir.starts_with(prefix))
            .unwrap_or(&self.program)
            .to_owned()
    }
}

fn is_below(path: &Path, name: &str) -> bool {
    path.starts_with(Path::new("/").join(name))
}

/// What may be done with what is bound.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Device,
}

/// Binds a file or folder into the view, under its own name.
fn bind(from: &Path, root: &Path, access: Access) -> io::Result<()> {
    let to = root.join(from.strip_prefix("/").unwrap_or(from));
    let named = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("bind {} into the VMM's view: {error}", from.display()),
        )
    };
    let make = || {
        if from.is_dir() {
            fs::create_dir_all(&to)?;
        } else {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::File::create(&to)?;
        }
        mount_bind(from, &to)?;
        let mut flags = MountFlags::BIND | MountFlags::NOSUID;
        if access != Access::Device {
            flags |= MountFlags::NODEV;
        }
        if access == Access::Read {
            flags |= MountFlags::RDONLY;
        }
        mount_remount(&to, flags, "")?;
        Ok(())
    };
    make().map_err(named)
}

/// A `/proc` in which a process sees itself only. A kernel before 5.8 has no such options of one mount: there the files of other
/// users' processes are shown, and closed.
fn mount_proc(to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount(
        "proc",
        to,
        "proc",
        flags,
        Some(c"hidepid=invisible,subset=pid"),
    )
    .is_err()
    {
        mount("proc", to, "proc", flags, None)?;
    }
    Ok(())
}

/// Gives the calling thread a mount namespace of its own.
#[allow(
    unsafe_code,
    reason = "unsharing can break a thread that relies on what it shared"
)]
pub(crate) fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: no descriptor table is unshared, and the calling thread exists for one start only.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Under a umask of 077 `/dev` was root's alone: QEMU could not open /dev/kvm, and no VM started on a machine with KVM.
    #[test]
    fn case_a_vmms_user_passes_the_folders_of_its_view_under_any_umask() {
        use std::os::unix::fs::PermissionsExt as _;
        if std::env::var_os("PLATFORM_SKIP_PRIVILEGED_TESTS").is_some() {
            eprintln!("SKIPPED: PLATFORM_SKIP_PRIVILEGED_TESTS is set");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().to_owned();
        let closed = rustix::fs::Mode::from_raw_mode(0o077);
        let seen = std::thread::spawn(move || {
            // From here on the umask is this thread's own.
            leave_mount_namespace()?;
            rustix::process::umask(closed);
            View::of_vmm(&run_dir, Path::new("/usr/bin/env"), false).enter()?;
            let modes = ["/", "/dev", "/etc", "/proc"].map(|folder| {
                let found = fs::metadata(folder);
                found.map(|found| found.permissions().mode() & 0o005)
            });
            io::Result::Ok((modes.map(Result::ok), rustix::process::umask(closed)))
        });
        let (modes, umask) = seen.join().unwrap().unwrap();
        assert_eq!(modes, [Some(0o005); 4]);
        assert_eq!(umask, closed, "what the VMM makes is closed as before");
    }

    #[test]
    fn a_program_is_bound_with_its_prefix_unless_that_holds_tenants() {
        let installed = |program: &str, run_dir: &str| {
            let view = View::of_vmm(Path::new(run_dir), Path::new(program), false);
            view.installed().display().to_string()
        };
        let run = "/run/platform/0000000a";
        assert_eq!(installed("/usr/bin/qemu", run), "/usr");
        assert_eq!(installed("/opt/qemu/bin/qemu", run), "/opt/qemu");
        // A root file system with programs at its top has everything below.
        assert_eq!(installed("/bin/qemu", run), "/bin/qemu");
        assert_eq!(installed("/srv/platform/qemu", run), "/srv/platform/qemu");
        let within = "/srv/platform/run/0000000a";
        assert_eq!(
            installed("/srv/platform/bin/qemu", within),
            "/srv/platform/bin/qemu"
        );
    }
}

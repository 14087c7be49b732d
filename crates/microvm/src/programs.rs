//! Finds the programs that this room drives.

use std::env;
use std::path::{Path, PathBuf};

/// QEMU's name in Debian.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// The vsock device, from crates.io.
pub(crate) const VSOCK_DEVICE: &str = "vhost-device-vsock";
/// Names the vsock device outright, where it is in none of the usual places.
const VSOCK_DEVICE_VARIABLE: &str = "PLATFORM_VHOST_DEVICE_VSOCK";
/// Where Debian keeps programs, which the PATH of a service may lack.
const SYSTEM_DIRS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin"];

/// The programs of a QEMU driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `qemu-system-x86_64`, without symbolic links.
    pub qemu: PathBuf,
    /// `vhost-device-vsock`, without symbolic links.
    pub vsock_device: PathBuf,
}

/// A program is not where it could be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program} is not installed; hint: {hint}")]
pub struct ProgramsError {
    /// The program.
    pub program: &'static str,
    /// How to get it.
    pub hint: &'static str,
}

impl Programs {
    /// Looks in the PATH and in the system's directories; for the vsock device first in the
    /// variable `PLATFORM_VHOST_DEVICE_VSOCK`, then also beside this program and in `~/.cargo/bin`.
    ///
    /// # Errors
    /// One of them is in none of these places.
    pub fn find() -> Result<Self, ProgramsError> {
        let qemu = find(QEMU).ok_or(ProgramsError {
            program: QEMU,
            hint: "apt-get install qemu-system-x86",
        })?;
        let vsock_device = find_vsock_device().ok_or(ProgramsError {
            program: VSOCK_DEVICE,
            hint: "cargo install vhost-device-vsock --locked, or name it in \
                   PLATFORM_VHOST_DEVICE_VSOCK",
        })?;
        Ok(Self { qemu, vsock_device })
    }
}

fn find_vsock_device() -> Option<PathBuf> {
    if let Some(path) = env::var_os(VSOCK_DEVICE_VARIABLE) {
        return program_at(Path::new(&path));
    }
    let beside = env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(VSOCK_DEVICE)));
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin").join(VSOCK_DEVICE));
    beside
        .and_then(|path| program_at(&path))
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

fn program_at(path: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = path.canonicalize().ok()?;
    let metadata = path.metadata().ok()?;
    (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(path)
}

//! A tap that Firecracker can open by name: it persists, belongs to the VM's user, and the VMM is
//! started in its network namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A tap that persists and that no process has open.
pub(crate) struct PersistentTap {
    pub(crate) name: String,
    namespace: OwnedFd,
}

impl PersistentTap {
    /// Makes an open tap ready; the caller then closes it.
    ///
    /// # Errors
    /// The kernel refused it.
    pub(crate) fn make(tap: &OwnedFd, user: u32) -> io::Result<Self> {
        let name = name_of(tap)?;
        let namespace = namespace_of(tap)?;
        set(tap, libc::TUNSETOWNER, user.into())?;
        set(tap, libc::TUNSETPERSIST, 1)?;
        Ok(Self { name, namespace })
    }

    /// Moves the calling thread to the tap's network namespace.
    ///
    /// # Errors
    /// The kernel refused it.
    pub(crate) fn enter_namespace(self) -> io::Result<()> {
        let namespace = File::from(self.namespace);
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )?;
        Ok(())
    }
}

/// Moves the calling thread to a network namespace with nothing in it.
///
/// # Errors
/// The kernel refused it.
#[allow(
    unsafe_code,
    reason = "unsharing can break a thread that relies on what it shared"
)]
pub(crate) fn enter_empty_namespace() -> io::Result<()> {
    // SAFETY: no descriptor table is unshared, and the calling thread exists for one start only.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

#[allow(unsafe_code, reason = "TUNGETIFF has no safe wrapper")]
fn name_of(tap: &OwnedFd) -> io::Result<String> {
    // SAFETY: ifreq is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the tap is open, and TUNGETIFF writes one ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = request.ifr_name.iter().map(|byte| byte.to_ne_bytes()[0]);
    let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).map_err(io::Error::other)
}

/// The network namespace of the tap's interface.
#[allow(unsafe_code, reason = "TUNGETDEVNETNS has no safe wrapper")]
fn namespace_of(tap: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the tap is open, and TUNGETDEVNETNS has no argument.
    let namespace = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETDEVNETNS) };
    if namespace < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

#[allow(unsafe_code, reason = "these requests have no safe wrapper")]
fn set(tap: &OwnedFd, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the tap is open, and these requests take their argument by value.
    if unsafe { libc::ioctl(tap.as_raw_fd(), request, value) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

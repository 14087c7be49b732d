//! Opens a tap: the file descriptor that a VMM moves an instance's frames by.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::NetworkError;

/// One instance's tap, ready to be handed to its VMM. It vanishes when the last copy of `fd` is
/// closed, so the agent must not keep one.
#[derive(Debug)]
pub struct Tap {
    /// The interface inside the namespace.
    pub name: String,
    /// Frames with a virtio-net header (`IFF_VNET_HDR`), no packet information (`IFF_NO_PI`).
    pub fd: OwnedFd,
    /// The MAC address the instance's NIC must have.
    pub mac: [u8; 6],
}

/// Makes a non-persistent tap in the calling thread's network namespace.
pub(crate) fn open(name: &str) -> Result<OwnedFd, NetworkError> {
    let wrong = |source: io::Error| NetworkError::Tap {
        name: name.to_owned(),
        hint: match source.kind() {
            io::ErrorKind::NotFound => "load the tun module (modprobe tun)",
            io::ErrorKind::PermissionDenied => "run the node as root",
            _ => "is /dev/net/tun usable here?",
        },
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(wrong)?;
    match set_interface(&file, name) {
        Ok(()) => Ok(file.into()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(NetworkError::TapBusy {
            name: name.to_owned(),
        }),
        Err(error) => Err(wrong(error)),
    }
}

#[allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn set_interface(file: &std::fs::File, name: &str) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // SAFETY: ifreq is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: the name is a C string.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the file is open, and TUNSETIFF reads and writes one ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! Finds the network's namespace when its name is gone: a namespace lives on without a name for as long as a VMM holds a tap
//! in it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What a descriptor of a tap links to.
const TUN_DEVICE: &str = "/dev/net/tun";
/// `SIOCGSKNS` (linux/sockios.h): the network namespace of a socket or a tap, as a descriptor. Linux 5.0 has it for taps.
const SIOCGSKNS: libc::c_ulong = 0x894c;

/// The namespace that has this address on it and a tap in it; none where no process has such a tap. Looks at every descriptor
/// of every process, so it is for the rare case. Blocks.
pub(crate) fn find_namespace(own: Ipv6Addr) -> Option<OwnedFd> {
    let mut seen = BTreeSet::new();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process that ended meanwhile has no tap.
        for number in taps_of(&process.path()).unwrap_or_default() {
            if let Ok(namespace) = namespace_of_tap(pid, number)
                && let Ok(inode) = inode(&namespace)
                && seen.insert(inode)
                && has_address(&namespace, own)
            {
                return Some(namespace);
            }
        }
    }
    None
}

/// The descriptors of a process that are instances' taps.
fn taps_of(process: &Path) -> io::Result<Vec<i32>> {
    let mut taps = Vec::new();
    for entry in fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        let number = entry.file_name();
        let Some(number) = number.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if fs::read_link(entry.path()).is_ok_and(|to| to == Path::new(TUN_DEVICE)) {
            taps.push(number);
        }
    }
    Ok(taps)
}

#[allow(unsafe_code, reason = "SIOCGSKNS has no safe wrapper")]
fn namespace_of_tap(pid: i32, number: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    // A copy, which is closed at once: the tap lives no longer for it.
    let tap = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
    // SAFETY: the descriptor is open, and the call takes no argument.
    let namespace = unsafe { libc::ioctl(tap.as_raw_fd(), SIOCGSKNS as _) };
    if namespace < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

fn inode(namespace: &OwnedFd) -> io::Result<u64> {
    Ok(File::from(namespace.try_clone()?).metadata()?.ino())
}

/// Whether an address is one of a namespace's own, seen by a thread that enters it and ends.
fn has_address(namespace: &OwnedFd, address: Ipv6Addr) -> bool {
    std::thread::scope(|scope| {
        let look = || {
            let link = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), link).is_ok()
                && UdpSocket::bind((address, 0)).is_ok()
        };
        scope.spawn(look).join().unwrap_or(false)
    })
}

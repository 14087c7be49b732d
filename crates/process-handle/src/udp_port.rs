//! Who has a UDP port of this network namespace, for the message of whoever wanted it.

use std::fmt;
use std::fs;

/// Most bytes of a command line that are shown.
const MAX_COMMAND_BYTES: usize = 200;

/// Who has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortHolder {
    /// A process.
    Process {
        /// Its pid.
        pid: i32,
        /// Its command line, or the beginning of it.
        command: String,
    },
    /// No process that can be seen: the kernel's own WireGuard, or a process of another container.
    Unknown,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command } => write!(f, "`{command}` (pid {pid})"),
            Self::Unknown => f.write_str(
                "no process that can be seen here: a WireGuard interface of the kernel, or another container",
            ),
        }
    }
}

/// Who has this UDP port, of IPv4 or IPv6, in the network namespace of the thread; absent: nobody. Reads much of /proc. Blocks.
pub fn udp_port_holder(port: u16) -> Option<PortHolder> {
    let tables =
        ["udp6", "udp"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    let inodes: Vec<_> = (tables.iter().flatten())
        .flat_map(|table| {
            table
                .lines()
                .skip(1)
                .filter_map(move |line| inode_of(line, port))
        })
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let found = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        links
            .any(|link| {
                let link = link.to_string_lossy();
                let inode = link
                    .strip_prefix("socket:[")
                    .and_then(|rest| rest.strip_suffix(']'));
                inode.is_some_and(|inode| inodes.contains(&inode))
            })
            .then_some(pid)
    });
    // The parent of a fork that holds it too is the one that people know.
    let Some(pid) = found.min() else {
        return Some(PortHolder::Unknown);
    };
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command[..command.len().min(MAX_COMMAND_BYTES)]);
    let command = command
        .trim_end_matches('\0')
        .replace(|c: char| c.is_control(), " ");
    Some(PortHolder::Process { pid, command })
}

/// The inode of the socket of a line of /proc/net/udp, where that is bound to this port.
fn inode_of(line: &str, port: u16) -> Option<&str> {
    let mut fields = line.split_ascii_whitespace();
    let (_, bound) = fields.nth(1)?.rsplit_once(':')?;
    (u16::from_str_radix(bound, 16) == Ok(port)).then_some(())?;
    // sl, local, remote, st, queues, timer, retransmissions, uid, timeout, inode.
    fields.nth(7)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn who_has_a_port_is_found_over_both_families() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(any).unwrap();
            let port = socket.local_addr().unwrap().port();
            let Some(PortHolder::Process { pid, command }) = udp_port_holder(port) else {
                panic!("nobody has {port}");
            };
            assert_eq!(pid, i32::try_from(std::process::id()).unwrap());
            assert!(command.contains("process_handle"), "{command}");
            drop(socket);
            assert_eq!(udp_port_holder(port), None);
        }
    }
}

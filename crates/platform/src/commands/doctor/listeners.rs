//! Who listens on a port of this machine, from `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A protocol whose sockets the kernel lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn tables(self) -> [&'static str; 2] {
        match self {
            Self::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
            Self::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        }
    }

    /// The state of a socket that waits for whoever comes (tcp_states.h): of TCP it listens, of UDP it is not connected.
    fn listening(self) -> &'static str {
        match self {
            Self::Tcp => "0A",
            Self::Udp => "07",
        }
    }
}

/// The names of the programs that listen on this port, as far as they can be seen; none where the kernel itself does. Blocks.
pub(super) fn programs(protocol: Protocol, port: u16) -> BTreeSet<String> {
    let sockets: BTreeSet<String> = (protocol.tables().iter())
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|table| inodes(&table, protocol, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let mut programs = BTreeSet::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return programs;
    };
    for process in processes.filter_map(Result::ok) {
        if holds(&process.path(), &sockets)
            && let Ok(name) = fs::read_to_string(process.path().join("comm"))
        {
            programs.insert(name.trim().to_owned());
        }
    }
    programs
}

fn holds(process: &Path, sockets: &BTreeSet<String>) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .any(|link| sockets.contains(&*link.to_string_lossy()))
}

/// The inodes of the sockets that listen on this port, of a table as in `/proc/net/tcp`.
fn inodes(table: &str, protocol: Protocol, port: u16) -> Vec<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
            let is_ours = u16::from_str_radix(local_port, 16).ok()? == port;
            (is_ours && fields.get(3) == Some(&protocol.listening()))
                .then(|| fields.get(9).map(|&i| i.to_owned()))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_listening_socket_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n\
            1: 0100007F:1CE8 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0\n\
            2: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4244 1 0\n";
        assert_eq!(inodes(table, Protocol::Tcp, 7400), ["4242"]);
        assert_eq!(inodes(table, Protocol::Tcp, 81), [""; 0]);
        assert_eq!(inodes(table, Protocol::Udp, 7400), [""; 0]);
    }

    #[test]
    fn the_program_that_listens_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        // Another test's child may have it too, until it executes its program.
        let found = programs(Protocol::Tcp, port);
        assert!(found.contains(own.trim()), "{found:?} {own}");
        drop(listener);
        let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = programs(Protocol::Udp, port);
        assert!(found.contains(own.trim()), "{found:?} {own}");
    }
}

//! Resource use of the guest, from the app's cgroup and the kernel's files. A value that cannot be read is 0.

use std::fs;
use std::net::Ipv6Addr;

use guest_protocol::GuestStats;

use crate::plan::{APP_CGROUP, INTERFACE};

/// The guest's resource use now.
pub(crate) fn read() -> GuestStats {
    let disk = rustix::fs::statvfs("/").ok();
    let network = |direction: &str| {
        number(&format!(
            "/sys/class/net/{INTERFACE}/statistics/{direction}_bytes"
        ))
    };
    GuestStats {
        cpu_micros: field(&format!("{APP_CGROUP}/cpu.stat"), "usage_usec"),
        memory_bytes: number(&format!("{APP_CGROUP}/memory.current")),
        memory_total_bytes: memory_total(),
        scratch_used_bytes: disk.map_or(0, |disk| {
            disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize
        }),
        network_bytes: (network("rx"), network("tx")),
        processes: u32::try_from(number(&format!("{APP_CGROUP}/pids.current"))).unwrap_or(u32::MAX),
        init_memory_bytes: field("/proc/self/status", "VmRSS:") * 1024,
        edge_connections: fs::read_to_string("/proc/net/tcp6")
            .ok()
            .map(|connections| of_edges(&connections)),
    }
}

/// States of a connection, as the kernel numbers them, in which an answer may still be on its way: established, the app has closed it and not
/// all is acknowledged, the edge has closed its half.
const OPEN: [&str; 3] = ["01", "04", "08"];

/// How many of the connections of `/proc/net/tcp6` are open, and an edge's: from an address of the platform's own network in the same cluster (ADR 0004,
/// "Addresses"). Instances reach no edge, so edges began them all.
fn of_edges(connections: &str) -> u32 {
    let is_open = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = address(words.next()?)?.octets();
        let remote = address(words.next()?)?.octets();
        let is_edge = local[..6] == remote[..6] && remote[8..12] == [0; 4] && local != remote;
        Some(is_edge && OPEN.contains(&words.next()?))
    };
    let open = connections.lines().skip(1).filter_map(is_open);
    u32::try_from(open.filter(|open| *open).count()).unwrap_or(u32::MAX)
}

/// The address of `/proc/net/tcp6`: four words in the machine's byte order, then a port.
fn address(text: &str) -> Option<Ipv6Addr> {
    let (words, _) = text.split_once(':')?;
    let mut octets = [0; 16];
    for (word, at) in octets.chunks_exact_mut(4).zip((0..).step_by(8)) {
        let value = u32::from_str_radix(words.get(at..at + 8)?, 16).ok()?;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    Some(octets.into())
}

/// Memory of the guest, in bytes.
pub(crate) fn memory_total() -> u64 {
    field("/proc/meminfo", "MemTotal:") * 1024
}

fn number(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The number after a word at the start of a line.
fn field(path: &str, name: &str) -> u64 {
    find_field(&fs::read_to_string(path).unwrap_or_default(), name)
}

fn find_field(text: &str, name: &str) -> u64 {
    text.lines()
        .map(str::split_ascii_whitespace)
        .find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{find_field, of_edges};

    #[test]
    fn connections_of_edges_are_counted_while_an_answer_may_be_on_its_way() {
        // fd12:3456:789a:2:0:7:0:1 is the instance.
        let own = "563412FD02009A780700000001000000:1F90";
        let edge = "563412FD01009A780000000001000000:C001";
        let same_env = "563412FD03009A780700000002000000:C002";
        let loopback = "00000000000000000000000001000000:C003";
        let rows = [
            (own, edge, "01"),
            (own, edge, "08"),
            (own, edge, "04"),
            (own, edge, "06"),
            (own, same_env, "01"),
            (loopback, loopback, "01"),
            (own, "00000000000000000000000000000000:0000", "0A"),
        ];
        let rows = rows.iter().enumerate();
        let rows = rows.map(|(at, (local, remote, state))| {
            format!(
                "{at:4}: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 0 0 1\n"
            )
        });
        let head = "  sl  local_address remote_address st tx_queue rx_queue\n";
        let text: String = std::iter::once(head.to_owned()).chain(rows).collect();
        assert_eq!(of_edges(&text), 3);
        assert_eq!(of_edges("sl\n 0: nonsense\n 1:\n\n"), 0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let events = "low 0\nhigh 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(find_field(events, "oom_kill"), 2);
        assert_eq!(find_field(events, "oom"), 3);
        assert_eq!(find_field(events, "nothing"), 0);
        assert_eq!(find_field("MemTotal:  1024 kB\n", "MemTotal:"), 1024);
    }
}

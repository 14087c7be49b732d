//! Resource use of the guest, from the app's cgroup and the kernel's files. A value that cannot be read is 0.

use std::fs;

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
    }
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
    use super::find_field;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let events = "low 0\nhigh 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(find_field(events, "oom_kill"), 2);
        assert_eq!(find_field(events, "oom"), 3);
        assert_eq!(find_field(events, "nothing"), 0);
        assert_eq!(find_field("MemTotal:  1024 kB\n", "MemTotal:"), 1024);
    }
}

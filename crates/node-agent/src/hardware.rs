//! What this machine has.

use std::io;

use api::enrollment::{Hardware, InstanceOverhead};
use microvm::DriverKind;

use crate::logs::MAX_LOG_BYTES;

/// Share of the machine's memory that instances may use where the options do not say otherwise, in percent.
const MEMORY_SHARE_PERCENT: u64 = 80;

/// Disk of an instance's record and console, in bytes.
const RECORD_BYTES: u64 = 1 << 20;

/// Finds what this machine has; `memory_bytes` is how much of it instances may use. The disk is measured again and again
/// (`node_disk`).
///
/// # Errors
/// `/proc/meminfo` cannot be read.
pub(crate) fn find(memory_bytes: Option<u64>, driver: DriverKind) -> io::Result<Hardware> {
    let memory_bytes = match memory_bytes {
        Some(bytes) => bytes,
        None => {
            total_memory(&std::fs::read_to_string("/proc/meminfo")?)? / 100 * MEMORY_SHARE_PERCENT
        }
    };
    let cpus = std::thread::available_parallelism()?;
    Ok(Hardware {
        arch: oci_arch(std::env::consts::ARCH).to_owned(),
        cpus: u32::try_from(cpus.get()).unwrap_or(u32::MAX),
        memory_bytes,
        disk: None,
        overhead: Some(InstanceOverhead {
            memory_bytes: driver.memory_overhead_bytes(),
            disk_bytes: MAX_LOG_BYTES + RECORD_BYTES,
        }),
    })
}

/// The OCI's word for an architecture, which is Go's.
fn oci_arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn total_memory(meminfo: &str) -> io::Result<u64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_off_meminfo() {
        let text = "MemTotal:       24689244 kB\nMemFree:        1 kB\n";
        assert_eq!(total_memory(text).ok(), Some(24_689_244 * 1024));
        assert!(total_memory("MemFree: 1 kB\n").is_err());
    }
}

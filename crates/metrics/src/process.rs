//! `process_*`, under the names that every client library of Prometheus gives them, read at each scrape.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// This process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Unix time in seconds.
    started_at: f64,
}

impl Default for Process {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            started_at: now.unwrap_or_default().as_secs_f64(),
        }
    }
}

/// The value of a line of `/proc/self/status` in bytes (proc_pid_status(5) gives kB). /proc is in memory: nothing waits for a disk.
fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes = line.strip_prefix(':')?.trim().strip_suffix(" kB")?;
    kibibytes.parse::<u64>().ok()?.checked_mul(1024)
}

/// User and system time of all threads, in seconds.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(
        clippy::cast_precision_loss,
        reason = "the seconds of a process are far below 2^52"
    )]
    let seconds = time.tv_sec as f64;
    #[expect(clippy::cast_precision_loss, reason = "less than 10^9")]
    let nanos = time.tv_nsec as f64;
    seconds + nanos / 1e9
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, text: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, text, None, gauge.metric_type())?)
        };
        let text = "Start time of the process since unix epoch in seconds";
        gauge("process_start_time_seconds", text, self.started_at)?;
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // The one that reads the folder is among them.
        let open = u32::try_from(open.saturating_sub(1)).unwrap_or(u32::MAX);
        gauge(
            "process_open_fds",
            "Number of open file descriptors",
            open.into(),
        )?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        if let Some(limit) = limit.current {
            #[expect(clippy::cast_precision_loss, reason = "a limit for people")]
            gauge(
                "process_max_fds",
                "Maximum number of open file descriptors",
                limit as f64,
            )?;
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, text, line) in [
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                "VmRSS",
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes",
                "VmSize",
            ),
        ] {
            #[expect(clippy::cast_precision_loss, reason = "bytes for people")]
            if let Some(bytes) = status_bytes(&status, line) {
                gauge(name, text, bytes as f64)?;
            }
        }
        let cpu = ConstCounter::new(cpu_seconds());
        let text = "Total user and system CPU time spent in seconds";
        // The encoder appends `_total`.
        let encoder =
            encoder.encode_descriptor("process_cpu_seconds", text, None, cpu.metric_type())?;
        cpu.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tplatform\nVmSize:\t  123456 kB\nVmRSS:\t    4096 kB\n";
        assert_eq!(status_bytes(status, "VmRSS"), Some(4 << 20));
        assert_eq!(status_bytes(status, "VmSize"), Some(123_456 << 10));
        assert_eq!(status_bytes(status, "VmSwap"), None);
        assert_eq!(status_bytes(status, "Name"), None);
    }
}

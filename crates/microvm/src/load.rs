//! How long a VMM waited for a processor.

use std::fs;
use std::io;
use std::time::Duration;

/// How long the threads of a process were ready to run and had no processor (`/proc/<pid>/task/<tid>/schedstat`, of which the
/// second number is nanoseconds in a run queue). Several threads that wait at once count each.
pub(crate) fn waited(pid: i32) -> io::Result<Duration> {
    let mut nanos = 0_u64;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        if let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) {
            nanos = nanos.saturating_add(queued(&text));
        }
    }
    Ok(Duration::from_nanos(nanos))
}

fn queued(schedstat: &str) -> u64 {
    let second = schedstat.split_whitespace().nth(1);
    second.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_is_the_time_in_the_run_queue() {
        assert_eq!(queued("2519249 4557693 3\n"), 4_557_693);
        assert_eq!(queued(""), 0);
        assert_eq!(queued("1 x 3"), 0);
    }

    /// Two threads on one processor: each waits while the other runs.
    #[test]
    fn threads_that_share_a_processor_wait_for_it() {
        let mut busy: Vec<_> = (0..2)
            .map(|_| {
                let mut command = std::process::Command::new("taskset");
                command.args(["-c", "0", "sh", "-c", "while :; do :; done"]);
                command.spawn().unwrap()
            })
            .collect();
        let pids: Vec<i32> = busy.iter().map(|child| child.id().cast_signed()).collect();
        let waited_enough = || {
            let waits = pids.iter().map(|pid| waited(*pid).unwrap());
            waits.min().unwrap() > Duration::from_millis(200)
        };
        while !waited_enough() {
            std::thread::yield_now();
        }
        for child in &mut busy {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

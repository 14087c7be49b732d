//! What an instance's VMM says of its guest, and what follows: an instance whose guest does not run is not ready, and is
//! ended after a while; one whose disk fails on the node says which and why.

use std::future::pending;
use std::time::Duration;

use microvm::{DiskFault, VmHealth};
use model::instance::InstanceSpec;
use tokio::sync::watch;
use tokio::time::Instant;

/// A guest that does not run for this long although its VMM exists is ended, and its instance starts again by its policy.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(30);
/// How long a report names a disk's errors after the last one.
const DISK_ERRORS_SHOWN: Duration = Duration::from_secs(5 * 60);

/// What was heard of one VM.
#[derive(Debug)]
pub(super) struct VmWatch {
    health: watch::Receiver<VmHealth>,
    /// Since when the guest does not run, and why.
    stalled: Option<(Instant, String)>,
    /// Until when its disk's errors are shown, and what is shown.
    disk: Option<(Instant, String)>,
    /// Errors when the log was last written to.
    noted: u64,
    errors: u64,
}

/// What is new.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Lines for the instance's log.
    pub(super) lines: Vec<String>,
    /// Whether the node's disk is full.
    pub(super) disk_is_full: bool,
}

impl VmWatch {
    pub(super) fn new(health: watch::Receiver<VmHealth>) -> Self {
        Self {
            health,
            stalled: None,
            disk: None,
            noted: 0,
            errors: 0,
        }
    }

    /// Waits until there is news, or until what is shown changes with time. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        let until = self.disk.as_ref().map(|(until, _)| *until);
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => pending().await,
            }
        };
        let news = async {
            // After the VM's end nothing comes any more.
            if self.health.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = news => {}
            () = over => self.disk = None,
        }
    }

    /// Takes note of what there is.
    pub(super) fn update(&mut self, spec: &InstanceSpec, now: Instant) -> News {
        let health = self.health.borrow_and_update().clone();
        let mut news = News::default();
        match (&mut self.stalled, health.stalled) {
            (None, Some(why)) => {
                news.lines.push(format!("not ready: {why}"));
                self.stalled = Some((now, why));
            }
            (Some((_, known)), Some(why)) => *known = why,
            (Some(_), None) => {
                news.lines.push("its guest runs again".to_owned());
                self.stalled = None;
            }
            (None, None) => {}
        }
        if health.disk_errors > self.errors
            && let Some(fault) = &health.last_disk_error
        {
            self.errors = health.disk_errors;
            news.disk_is_full = fault.no_space;
            let text = describe(spec, fault, self.errors);
            // A guest may go on with writes that fail, thousands a second.
            if self.errors >= self.noted.saturating_mul(10).max(1) {
                self.noted = self.errors;
                news.lines.push(text.clone());
            }
            self.disk = Some((now + DISK_ERRORS_SHOWN, text));
        }
        news
    }

    /// Why the guest does not run, if that is known.
    pub(super) fn stalled(&self) -> Option<&str> {
        self.stalled.as_ref().map(|(_, why)| &**why)
    }

    /// When a guest that does not run is ended.
    pub(super) fn give_up_at(&self) -> Option<Instant> {
        self.stalled.as_ref().map(|(since, _)| *since + STALL_LIMIT)
    }

    /// What is wrong with its disks, for people.
    pub(super) fn disk_trouble(&self) -> Option<&str> {
        self.disk.as_ref().map(|(_, text)| &**text)
    }
}

/// `its scratch disk fails on the node: 3 errors, the last at a write: No space left on device`
fn describe(spec: &InstanceSpec, fault: &DiskFault, errors: u64) -> String {
    let DiskFault {
        disk,
        operation,
        no_space,
        reason,
    } = fault;
    let subject = match disk {
        Some(0) => "its root disk".to_owned(),
        Some(1) => "its scratch disk".to_owned(),
        Some(number) => match spec.volumes.get(number - 2) {
            Some(volume) => format!("its volume {}", volume.name),
            None => format!("its disk {number}"),
        },
        None => "one of its disks".to_owned(),
    };
    let hint = if *no_space {
        "; the node's disk is full"
    } else {
        ""
    };
    let count = match errors {
        1 => "an error".to_owned(),
        errors => format!("{errors} errors, the last one"),
    };
    format!("{subject} fails on the node, {count} at a {operation}: {reason}{hint}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::instance_task::tests::spec;

    fn fault(disk: usize) -> DiskFault {
        DiskFault {
            disk: Some(disk),
            operation: "write".to_owned(),
            no_space: true,
            reason: "No space left on device".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn case_a_full_disk_is_named_with_its_reason_and_floods_no_log() {
        let (sender, health) = watch::channel(VmHealth::default());
        let (mut watched, spec) = (VmWatch::new(health), spec());
        assert_eq!(watched.update(&spec, Instant::now()), News::default());
        let mut lines = Vec::new();
        for errors in 1..=1000 {
            sender.send_replace(VmHealth {
                stalled: None,
                disk_errors: errors,
                last_disk_error: Some(fault(1)),
            });
            watched.changed().await;
            let news = watched.update(&spec, Instant::now());
            assert!(news.disk_is_full);
            lines.extend(news.lines);
        }
        let full = "at a write: No space left on device; the node's disk is full";
        let line = |count: &str| format!("its scratch disk fails on the node, {count} {full}");
        let expected = [
            line("an error"),
            line("10 errors, the last one"),
            line("100 errors, the last one"),
            line("1000 errors, the last one"),
        ];
        assert_eq!(lines, expected);
        assert_eq!(watched.disk_trouble(), Some(&*expected[3]));
        assert_eq!(watched.stalled(), None);
        // Some minutes later nothing is shown any more.
        watched.changed().await;
        assert_eq!(watched.disk_trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn case_a_guest_that_does_not_run_is_given_up_after_a_while() {
        let (sender, health) = watch::channel(VmHealth::default());
        let (mut watched, spec) = (VmWatch::new(health), spec());
        let stall = |why: Option<&str>| {
            sender.send_modify(|health| health.stalled = why.map(str::to_owned));
        };
        stall(Some("paused"));
        let begun = Instant::now();
        assert_eq!(watched.update(&spec, begun).lines, ["not ready: paused"]);
        assert_eq!(watched.give_up_at(), Some(begun + STALL_LIMIT));
        // Another reason is the same stall.
        stall(Some("silent"));
        let later = begun + Duration::from_secs(5);
        assert_eq!(watched.update(&spec, later).lines, [""; 0]);
        assert_eq!(watched.stalled(), Some("silent"));
        assert_eq!(watched.give_up_at(), Some(begun + STALL_LIMIT));
        stall(None);
        assert_eq!(watched.update(&spec, later).lines, ["its guest runs again"]);
        assert_eq!((watched.stalled(), watched.give_up_at()), (None, None));
    }
}

//! Whether a guest runs as it should: asked of its VMM again and again, and heard from it.
//!
//! A VMM that was stopped (SIGSTOP), hangs, or has paused its guest looks like any other process from outside. So it
//! is asked every [`CHECK_INTERVAL`]. QEMU also says by itself when it pauses, and when it reports an I/O error to its
//! guest; Firecracker reports the error to its guest only, whose kernel writes it to the console.

use std::path::Path;
use std::time::Duration;

use blocking_work::blocking;
use process_handle::Process;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::driver::Driver;
use crate::monitor::{Answer, DiskFault, Event, Monitor};
use crate::{StatusError, VmStatus};

/// A VMM is asked about its guest this often.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// A VMM that does not answer within this time is stopped, or hangs. On a machine where tens of guests boot at once an
/// answer takes a second.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait of [`crate::Vm::status`].
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after something was heard: a guest whose writes all fail makes thousands of events a second.
const EVENT_PAUSE: Duration = Duration::from_millis(100);

/// The reason of a guest whose vsock device was stopped.
const DEVICE_IS_STOPPED: &str =
    "its vsock device is stopped: logs, `exec` and `stop` do not reach the guest";

/// The reason of a guest whose tap was removed. The guest gets another with another VM only.
const TAP_IS_GONE: &str = "somebody removed its tap: it has no network";
/// What a descriptor of a tap leads to.
const TUN: &str = "/dev/net/tun";

/// How a guest is, as its VMM says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmHealth {
    /// Why the guest does not run although its VMM exists, for people. Absent: it runs, or the VMM was not asked yet.
    pub stalled: Option<String>,
    /// Requests of the guest to its disks that failed on the host since this VM is watched.
    pub disk_errors: u64,
    /// The last of them.
    pub last_disk_error: Option<DiskFault>,
}

/// Somebody who asks for the status now.
pub(crate) type Question = oneshot::Sender<Result<VmStatus, StatusError>>;

/// Watches a VM until everyone who could ask is gone. As often as its VMM is asked, its vsock device is looked at, where that is
/// a process of its own, and its tap: without them the guest runs, and nothing reaches it.
pub(crate) async fn observe(
    driver: &'static dyn Driver,
    run_dir: &Path,
    vmm: &Process,
    vsock_device: Option<&Process>,
    health: watch::Sender<VmHealth>,
    mut questions: mpsc::Receiver<Question>,
) {
    let mut monitor = driver.monitor(run_dir);
    let mut due = Instant::now();
    loop {
        tokio::select! {
            question = questions.recv() => {
                let Some(question) = question else { return };
                // Whoever asked may have left.
                let _ = question.send(query(&mut *monitor, STATUS_TIMEOUT).await);
            }
            event = monitor.event() => {
                let mut ask_now = note(&health, event);
                while let Some(event) = at_once(monitor.event()).await {
                    ask_now |= note(&health, event);
                }
                if ask_now {
                    due = Instant::now();
                }
                tokio::time::sleep(EVENT_PAUSE).await;
            }
            () = tokio::time::sleep_until(due) => {
                let answer = query(&mut *monitor, CHECK_TIMEOUT).await;
                match trouble_outside(vmm, vsock_device).await {
                    Some(why) => show(&health, Some(why.to_owned())),
                    None => on_answer(&health, answer),
                }
                due = Instant::now() + CHECK_INTERVAL;
            }
        }
    }
}

/// What keeps a guest that runs from working, and its VMM does not say.
async fn trouble_outside(vmm: &Process, vsock_device: Option<&Process>) -> Option<&'static str> {
    if vsock_device.is_some_and(Process::is_stopped) {
        return Some(DEVICE_IS_STOPPED);
    }
    let vmm = vmm.pid();
    // What cannot be read is not taken for lost: the VMM may have ended.
    let lost = blocking(move || has_lost_its_tap(vmm)).await;
    lost.unwrap_or(false).then_some(TAP_IS_GONE)
}

/// Whether a process holds a tap whose link was removed: its descriptor names no interface any more. Blocks.
fn has_lost_its_tap(pid: i32) -> std::io::Result<bool> {
    for file in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let file = file?;
        if std::fs::read_link(file.path()).is_ok_and(|path| path == Path::new(TUN)) {
            let info = Path::new("/proc").join(pid.to_string()).join("fdinfo");
            let info = std::fs::read_to_string(info.join(file.file_name()))?;
            let mut names = info.lines().filter_map(|line| line.strip_prefix("iff:"));
            return Ok(names.next().is_some_and(|name| name.trim().is_empty()));
        }
    }
    Ok(false)
}

async fn query(monitor: &mut dyn Monitor, limit: Duration) -> Result<VmStatus, StatusError> {
    let answer = tokio::time::timeout(limit, monitor.status()).await;
    answer.unwrap_or(Err(StatusError::Timeout { limit }))
}

/// The outcome of a future that is ready now.
async fn at_once<T>(mut future: Answer<'_, T>) -> Option<T> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// True when the VMM is to be asked.
fn note(health: &watch::Sender<VmHealth>, event: Event) -> bool {
    match event {
        Event::Changed => true,
        Event::DiskFault(fault) => {
            health.send_modify(|health| {
                health.disk_errors += 1;
                health.last_disk_error = Some(fault);
            });
            false
        }
    }
}

fn on_answer(health: &watch::Sender<VmHealth>, answer: Result<VmStatus, StatusError>) {
    let stalled = match answer {
        Ok(VmStatus::Running) => None,
        Ok(VmStatus::Stopped(why)) => Some(format!("its VMM has stopped the guest ({why})")),
        Err(StatusError::Timeout { limit }) => Some(format!(
            "its VMM has not answered for {} s: it is stopped, or hangs",
            limit.as_secs()
        )),
        // Nothing is known of the guest then; the end of the VMM is noticed elsewhere.
        Err(error) => {
            tracing::debug!(%error, "cannot ask a VMM about its guest");
            return;
        }
    };
    show(health, stalled);
}

fn show(health: &watch::Sender<VmHealth>, stalled: Option<String>) {
    health.send_if_modified(|health| {
        let changed = health.stalled != stalled;
        health.stalled = stalled;
        changed
    });
}

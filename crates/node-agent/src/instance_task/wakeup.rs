//! What an instance's task waits for. Each wait is cancel-safe, and never ready where there is nothing to wait for.

use std::future::pending;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::guest_link::GuestEvent;
use crate::host::{HostResult, Vm};
use crate::instance_task::preparation::Prepared;
use crate::instance_task::vm_watch::VmWatch;

/// What may happen to an instance between two steps.
#[allow(clippy::large_enum_variant, reason = "it lives for one step")]
pub(super) enum Wakeup {
    StopAsked,
    Guest(GuestEvent),
    VmEnded(String),
    Prepared(HostResult<Prepared>),
    DetailChanged,
    VmChanged,
    Stalled,
    Due,
    ProbeDue,
    LivenessDue,
    BootCheckDue,
    WriteAgain,
}

pub(super) async fn asked(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|asked| *asked).await.is_err() {
        pending::<()>().await;
    }
}

pub(super) async fn ended(vm: Option<&dyn Vm>) -> String {
    match vm {
        Some(vm) => vm.ended().await,
        None => pending().await,
    }
}

pub(super) async fn vm_changed(watched: &mut Option<VmWatch>) {
    match watched {
        Some(watched) => watched.changed().await,
        None => pending().await,
    }
}

pub(super) async fn changed(detail: &mut Option<watch::Receiver<String>>) {
    match detail {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                pending::<()>().await;
            }
        }
        None => pending().await,
    }
}

pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

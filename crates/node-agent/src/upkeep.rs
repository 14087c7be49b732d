//! What the agent does for its disk beside its instances: it measures it, keeps caches within their bounds, and makes room
//! when it is short.

use std::sync::Arc;
use std::time::Duration;

use crate::host::DiskUse;
use crate::machine::Machine;
use crate::node_disk;

/// The image cache and the logs of ended instances are brought within their bounds this often.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// The disk is measured this often.
const MEASURE_INTERVAL: Duration = Duration::from_secs(30);
/// Pause after images were removed because the disk was short.
const MAKE_ROOM_PAUSE: Duration = Duration::from_secs(10);

/// Measures the disk. One that cannot be measured is reported as it was known last.
pub(crate) async fn measure_disk(machine: &Machine) -> Option<DiskUse> {
    match machine.host.disks.measure().await {
        Ok(now) => {
            machine.metrics.set_disk(&now.disk);
            let changed = machine.disk.send_if_modified(|known| {
                let reported = node_disk::reported(*known, now.disk);
                let changed = *known != Some(reported);
                *known = Some(reported);
                changed
            });
            if changed {
                machine.changed.notify_one();
            }
            Some(now)
        }
        Err(error) => {
            tracing::warn!(%error, "the server is reported what the disk had before");
            None
        }
    }
}

/// Measures the disk, and removes every image that nobody needs when it is short: when guests' disks cannot grow, or the
/// platform's reserve is begun.
pub(crate) async fn keep_room(machine: Arc<Machine>) {
    let mut was_short = false;
    loop {
        let full = tokio::select! {
            () = machine.disk_full.notified() => true,
            () = tokio::time::sleep(MEASURE_INTERVAL) => false,
        };
        let now = measure_disk(&machine).await;
        let short = full || now.is_some_and(|now| now.is_short());
        if short {
            if !was_short {
                let free = now.map(|now| now.free_bytes);
                tracing::warn!(
                    free_bytes = free,
                    "the disk is short; removing every image that nobody needs"
                );
            }
            machine.host.images.make_room().await;
            measure_disk(&machine).await;
            // A guest whose writes all fail asks again and again.
            tokio::time::sleep(MAKE_ROOM_PAUSE).await;
        }
        was_short = short;
    }
}

/// Keeps the image cache and the logs of ended instances within their bounds.
pub(crate) async fn tidy(machine: Arc<Machine>) {
    let mut timer = tokio::time::interval(TIDY_INTERVAL);
    loop {
        timer.tick().await;
        machine.host.images.tidy().await;
        machine.host.logs.tidy(machine.clock.wall()).await;
    }
}

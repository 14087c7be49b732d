//! What a boot needs: the image, the secrets, the disks.

use std::future::pending;
use std::path::PathBuf;

use model::instance::InstanceSpec;
use tokio_util::task::AbortOnDropHandle;

use crate::boots::BootSlot;
use crate::host::{HostError, HostResult, PreparedImage, Progress};
use crate::machine::Machine;
use crate::secrets::Secrets;

/// Everything that a boot needs.
pub(super) struct Prepared {
    pub(super) image: PreparedImage,
    /// The VM's own disks: scratch, then the volumes.
    pub(super) disks: Vec<PathBuf>,
    /// Its turn to boot, until its app runs or the boot has failed.
    pub(super) slot: Option<BootSlot>,
}

/// The outcome of a preparation that is under way; never, where none is. Cancel-safe.
pub(super) async fn prepared(
    preparing: &mut Option<AbortOnDropHandle<HostResult<Prepared>>>,
) -> HostResult<Prepared> {
    match preparing {
        Some(task) => task.await.unwrap_or_else(|error| {
            Err(HostError::transient(format!(
                "the preparation broke: {error}"
            )))
        }),
        None => pending().await,
    }
}

/// Fetches the image and the secrets of an instance, makes its disks, and waits for its turn to boot.
pub(super) async fn prepare(
    machine: &Machine,
    spec: &InstanceSpec,
    secrets: &Secrets,
    progress: &Progress,
) -> HostResult<Prepared> {
    let host = &machine.host;
    let image = host.images.prepare(&spec.image, progress).await?;
    // What no boot can change is refused here, and not as the failure of a VM that was never started.
    let runnable = node_core::boot::boot_config(&image.config, spec, &[], &machine.facts_now());
    runnable.map_err(|error| HostError::permanent(error.to_string()))?;
    secrets.get(&*host.server, spec, progress).await?;
    let mut disks = vec![host.disks.make_scratch(spec.id, spec.scratch_bytes).await?];
    for volume in &spec.volumes {
        disks.push(host.disks.prepare_volume(volume.clone()).await?);
    }
    let slot = machine.boots.acquire(progress).await;
    Ok(Prepared { image, disks, slot })
}

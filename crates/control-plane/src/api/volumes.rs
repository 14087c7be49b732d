//! Volumes, as users delete them.

use api::user::Role;
use axum::extract::State;
use http::StatusCode;
use model::VolumeId;
use scheduler::apply::Command;

use super::extract::Path;
use crate::access::Anyone;
use crate::failure::ApiFailure;
use crate::state::App;

/// Begins to delete a volume that no instance has. Asked again meanwhile, it says the same.
pub(crate) async fn delete(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(id): Path<VolumeId>,
) -> Result<StatusCode, ApiFailure> {
    let by = user.clone();
    let of = app
        .change_by(&user, move |cluster| {
            let absent = || {
                ApiFailure::not_found("volume_not_found", format!("there is no volume {id}"))
                    .hint("`platform volumes` lists those there are")
            };
            let volume = cluster.volumes.get(&id).ok_or_else(absent)?;
            by.check_app(&cluster.access, &volume.key.env.app, Role::Admin, absent)?;
            if let Some(instance) = cluster.instances.user_of(id) {
                let (key, instance) = (&volume.key, instance.spec.id);
                return Err(ApiFailure::conflict(
                    "volume_in_use",
                    format!("volume {key} belongs to instance {instance}"),
                )
                .hint(
                    "scale down below its number, or destroy the env, and wait until it is gone",
                ));
            }
            let command = (!volume.is_deleting()).then_some(Command::DeleteVolume { id });
            Ok((command.into_iter().collect(), volume.key.clone()))
        })
        .await?;
    tracing::info!(user = %user.name, volume = %id, %of, "deleting a volume");
    app.wake.notify_one();
    Ok(StatusCode::ACCEPTED)
}

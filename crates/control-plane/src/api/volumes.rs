//! Volumes, as users see and delete them.

use api::user::VolumeRow;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use model::VolumeId;
use scheduler::apply::Command;

use super::envs::Filter;
use super::extract::Params;
use crate::callers::User;
use crate::failure::ApiFailure;
use crate::rows;
use crate::state::App;

/// Every volume, or those of an app or an env.
pub(crate) async fn volumes(
    State(app): State<App>,
    _user: User,
    Params(filter): Params<Filter>,
) -> Result<Json<Vec<VolumeRow>>, ApiFailure> {
    let cluster = app.cluster();
    Ok(Json(rows::volume_rows(&cluster, |env| filter.keeps(env))))
}

/// Begins to delete a volume that no instance has. Asked again meanwhile, it says the same.
pub(crate) async fn delete(
    State(app): State<App>,
    user: User,
    Path(id): Path<VolumeId>,
) -> Result<StatusCode, ApiFailure> {
    let of = app
        .change(move |cluster| {
            let Some(volume) = cluster.volumes.get(&id) else {
                return Err(ApiFailure::not_found(
                    "volume_not_found",
                    format!("there is no volume {id}"),
                )
                .hint("`platform volumes` lists those there are"));
            };
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

//! The replacement of the cluster's CA ([`crate::authority`]).

use api::user::{CaRow, RotateCaRequest};
use axum::Json;
use axum::extract::State;
use scheduler::apply::Command;

use super::extract::Body;
use crate::access::{ClusterAdmin, ClusterViewer};
use crate::failure::ApiFailure;
use crate::keys;
use crate::state::App;

fn row(app: &App) -> CaRow {
    let authority = app.authority();
    let fingerprint = format!("SHA256:{}", identity::hex(&authority.current.fingerprint()));
    CaRow {
        fingerprint,
        pem: authority.trusted_pem(),
        trusts_before: !authority.before_pem.is_empty(),
        counter: app.published.borrow().cluster.last_membership,
    }
}

/// Which CA the cluster has.
pub(crate) async fn show(State(app): State<App>, _: ClusterViewer) -> Json<CaRow> {
    Json(row(&app))
}

/// Another CA signs from now on, and the one before is trusted too; or it is trusted no more.
pub(crate) async fn rotate(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(RotateCaRequest { finish }): Body<RotateCaRequest>,
) -> Result<Json<CaRow>, ApiFailure> {
    let _one_at_a_time = app.rotating.lock().await;
    let before = app.authority();
    let is_rotating = !before.before_pem.is_empty();
    if is_rotating != finish {
        return Err(if finish {
            ApiFailure::conflict("ca_not_rotating", "no CA but the one that signs is trusted")
        } else {
            ApiFailure::conflict(
                "ca_rotating",
                "the CA was replaced already, and the one before is trusted still",
            )
            .hint("`platform server rotate-ca --finish` ends that; then it can be replaced again")
        });
    }
    let changed = if finish {
        keys::drop_ca_before(&app.store, app.term).await
    } else {
        keys::replace_ca(&app.store, app.term, &app.data_dir, &before).await
    };
    changed.map_err(|error| ApiFailure::internal(&error))?;
    // This server shows it before members are told.
    let mut authority = app.authority.clone();
    app.ca_changed.notify_one();
    let seen = authority
        .wait_for(|authority| authority.differs(&before))
        .await;
    drop(seen.map_err(|_| ApiFailure::stopping())?);
    app.change_by(&user, |_| {
        Ok::<_, ApiFailure>((vec![Command::RaiseMembership], ()))
    })
    .await?;
    tracing::warn!(user = %user.name, finish, "replaced the cluster's CA");
    Ok(Json(row(&app)))
}

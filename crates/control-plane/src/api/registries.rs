//! Logs the cluster in to registries, and gives a node the logins that it needs.

use api::user::{RegistryLoginRequest, RegistryQuery, RegistryRow};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use oci::parse_registry;
use scheduler::desired::pulls_from;
use scheduler::events::Origin;
use serde::Deserialize;

use super::deploy::registry_failed;
use super::extract::{Body, Params};
use crate::access::{ClusterAdmin, ClusterViewer, User};
use crate::callers::NodeCaller;
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::{MAX_LOGIN_BYTES, RESOLVE_TIMEOUT};
use crate::logins::{LoginError, credential};
use crate::state::App;

#[derive(Debug, Deserialize)]
pub(crate) struct Which {
    registry: String,
}

/// Every registry that the cluster is logged in to.
pub(crate) async fn list(
    State(app): State<App>,
    _: ClusterViewer,
) -> Result<Json<Vec<RegistryRow>>, ApiFailure> {
    Ok(Json(app.store.registry_logins().await?))
}

/// Tries a login, and keeps it if the registry takes it.
pub(crate) async fn log_in(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(request): Body<RegistryLoginRequest>,
) -> Result<Json<RegistryRow>, ApiFailure> {
    let registry = named(&request.registry)?;
    let length = serde_json::to_vec(&request.secret).map_or(usize::MAX, |text| text.len());
    if length > MAX_LOGIN_BYTES {
        return Err(ApiFailure::refused(
            "secret_too_long",
            format!("a registry login has at most {MAX_LOGIN_BYTES} bytes"),
        ));
    }
    let shown = credential(request.secret.clone());
    tokio::time::timeout(RESOLVE_TIMEOUT, app.registry.log_in(&registry, &shown))
        .await
        .map_err(|_| ApiFailure::registry_too_slow(&registry, "the login", RESOLVE_TIMEOUT))?
        .map_err(|error| registry_failed(&error, "check the user name and the password"))?;
    let row = RegistryRow {
        user: request.secret.user().map(str::to_owned),
        by: user.name.to_string(),
        at: now(),
        registry,
    };
    app.logins.keep(&row, &request.secret).await?;
    app.registry.discard_login(&row.registry);
    let login = row.user.as_ref();
    let login = login.map_or_else(|| "by a token".to_owned(), |name| format!("as {name}"));
    add_event(&app, &user, row.registry.clone(), Some(login)).await?;
    tracing::info!(user = %row.by, registry = %row.registry, "logged in to a registry");
    Ok(Json(row))
}

/// Forgets a login.
pub(crate) async fn log_out(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Params(which): Params<RegistryQuery>,
) -> Result<StatusCode, ApiFailure> {
    let registry = named(&which.registry)?;
    if !app.store.remove_registry_login(app.term, &registry).await? {
        return Err(ApiFailure::not_found(
            "registry_not_found",
            format!("the cluster is not logged in to {registry}"),
        )
        .hint("`platform registries` lists where it is"));
    }
    app.registry.discard_login(&registry);
    add_event(&app, &user, registry.clone(), None).await?;
    tracing::info!(user = %user.name, registry, "logged out of a registry");
    Ok(StatusCode::NO_CONTENT)
}

/// Makes the event of a login that is kept, or is not any more. `login`: as whom.
async fn add_event(
    app: &App,
    user: &User,
    registry: String,
    login: Option<String>,
) -> Result<(), ApiFailure> {
    let origin = Origin {
        by: user.into(),
        at: now(),
    };
    app.decide(move |leader| {
        leader.registry_changed(&origin, &registry, login.as_deref());
        Ok(())
    })
    .await
}

/// The secret for a registry, for a node that has to pull from there. It is kept in memory there and asked for
/// again when it is needed again.
pub(crate) async fn for_node(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Params(which): Params<Which>,
) -> Result<Response, ApiFailure> {
    if !pulls_from(&app.cluster(), node, &which.registry) {
        return Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            "registry_not_needed",
            format!("no instance of {node} comes from {}", which.registry),
        ));
    }
    Ok(match app.logins.open(&which.registry).await? {
        Some(secret) => Json(secret).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

fn named(registry: &str) -> Result<String, ApiFailure> {
    parse_registry(registry)
        .map_err(|error| ApiFailure::refused("registry_invalid", display::chain(&error)))
}

impl From<LoginError> for ApiFailure {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Store(error) => error.into(),
            error => Self::internal(&error),
        }
    }
}

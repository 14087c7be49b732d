//! How members join: a one-time token, and the call that spends it (ADR 0004).

use std::time::Instant;

use api::enrollment::{EnrollRequest, EnrollResponse, Member};
use api::user::{CreateTokenRequest, CreateTokenResponse};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use identity::{CaError, EnrollmentToken, check_request, is_wireguard_public_key, secret_hash};
use scheduler::apply::Command;
use scheduler::cluster_state::TokenRecord;
use scheduler::enrollment::{EnrollmentRefused, token_expiry};

use super::extract::Body;
use crate::callers::{Protocol, User};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::{MAX_LOGGED_NAME, MAX_REGION_BYTES};
use crate::state::App;

/// Makes a one-time token.
pub(crate) async fn create_token(
    State(app): State<App>,
    user: User,
    Body(request): Body<CreateTokenRequest>,
) -> Result<(StatusCode, Json<CreateTokenResponse>), ApiFailure> {
    let now = now();
    let expires_at = token_expiry(now, request.ttl_seconds).map_err(|refusal| refused(&refusal))?;
    let token = EnrollmentToken::generate(app.ca.fingerprint())?;
    let command = Command::AddToken {
        hash: token.secret_hash(),
        token: TokenRecord {
            role: request.role,
            expires_at,
            used: None,
        },
        now,
    };
    app.change(move |_| Ok::<_, ApiFailure>((vec![command], ())))
        .await?;
    tracing::info!(user = %user.name, role = %request.role, "made an enrollment token");
    let response = CreateTokenResponse {
        token: token.to_string(),
        role: request.role,
        expires_at,
    };
    Ok((StatusCode::CREATED, Json(response)))
}

/// Enrolls the holder of a token, once. A request that cannot be served is refused before the token is spent.
pub(crate) async fn enroll(
    State(app): State<App>,
    _: Protocol,
    Body(request): Body<EnrollRequest>,
) -> Result<(StatusCode, Json<EnrollResponse>), ApiFailure> {
    let enrolled = enroll_checked(&app, &request).await;
    if let Err(failure) = &enrolled
        && app.refused_enrollments.may_log(Instant::now())
    {
        let name: String = request.name.chars().take(MAX_LOGGED_NAME).collect();
        tracing::warn!(name, role = ?request.role, reason = failure.reason(), "refused to enroll a machine");
    }
    enrolled
}

async fn enroll_checked(
    app: &App,
    request: &EnrollRequest,
) -> Result<(StatusCode, Json<EnrollResponse>), ApiFailure> {
    check(request)?;
    let now = now();
    let hash = secret_hash(&request.token);
    let wanted = request.clone();
    let enrolled = app
        .change(move |cluster| {
            let admitted = scheduler::enrollment::enroll(cluster, hash, &wanted, now);
            let (command, enrolled) = admitted.map_err(|refusal| refused(&refusal))?;
            Ok::<_, ApiFailure>((vec![command], enrolled))
        })
        .await?;
    let certificate_pem = app
        .ca
        .sign_member(&request.csr_pem, enrolled.member, now)
        .map_err(|error| ApiFailure::internal(&error))?;
    tracing::info!(member = %enrolled.member, name = %enrolled.name, "a member joined");
    if let Member::Node(node) = enrolled.member {
        app.presence.expect(node);
    }
    app.wake.notify_one();
    let response = EnrollResponse {
        member: enrolled.member,
        name: enrolled.name,
        cluster: app.settings.id.clone(),
        cluster_prefix: app.settings.prefix,
        mtu: app.settings.mtu,
        certificate_pem,
        ca_pem: app.ca.certificate_pem().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(response)))
}

fn check(request: &EnrollRequest) -> Result<(), ApiFailure> {
    check_request(&request.csr_pem).map_err(|error| match error {
        CaError::Request(_) => ApiFailure::refused("csr_refused", error.to_string()),
        error => ApiFailure::internal(&error),
    })?;
    let region = &request.region;
    let plain = region.bytes().all(|b| b.is_ascii_graphic());
    if region.is_empty() || region.len() > MAX_REGION_BYTES || !plain {
        return Err(ApiFailure::refused(
            "region_invalid",
            format!("a region is 1 to {MAX_REGION_BYTES} visible ASCII characters"),
        ));
    }
    match &request.wireguard_public_key {
        Some(key) if !is_wireguard_public_key(key) => Err(ApiFailure::refused(
            "wireguard_key_invalid",
            "the WireGuard public key is not 32 bytes in base64",
        )),
        _ => Ok(()),
    }
}

fn refused(refusal: &EnrollmentRefused) -> ApiFailure {
    let (status, code) = match refusal {
        EnrollmentRefused::UnknownToken => (StatusCode::UNAUTHORIZED, "token_unknown"),
        EnrollmentRefused::TokenUsed => (StatusCode::FORBIDDEN, "token_used"),
        EnrollmentRefused::TokenExpired => (StatusCode::FORBIDDEN, "token_expired"),
        EnrollmentRefused::OtherRole { .. } => (StatusCode::FORBIDDEN, "token_other_role"),
        EnrollmentRefused::NoWireguardKey => {
            (StatusCode::UNPROCESSABLE_ENTITY, "wireguard_key_missing")
        }
        EnrollmentRefused::NoHardware(_) => (StatusCode::UNPROCESSABLE_ENTITY, "hardware_missing"),
        EnrollmentRefused::NoNumberLeft(_) => (StatusCode::CONFLICT, "cluster_full"),
        EnrollmentRefused::TokenLife(_) => (StatusCode::UNPROCESSABLE_ENTITY, "ttl_out_of_range"),
    };
    ApiFailure::new(status, code, refusal.to_string())
}

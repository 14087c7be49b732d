//! How members join: a one-time token, and the call that spends it (ADR 0004).

use std::net::IpAddr;
use std::time::Instant;

use api::enrollment::{EnrollRequest, EnrollResponse, Member};
use api::error_code;
use api::user::{CreateTokenRequest, CreateTokenResponse, TokenRow};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use identity::{
    CLOCK_SKEW_SECONDS, EnrollmentToken, is_wireguard_public_key, public_key_of_request,
    secret_hash,
};
use model::Timestamp;
use scheduler::apply::Command;
use scheduler::cluster_state::{TokenHash, TokenRecord};
use scheduler::enrollment::{
    Admitted, Enrolled, EnrollmentRefused, admit, check_replaced, known_token, token_expiry,
};

use scheduler::underlay::record;

use super::extract::{Body, Path, StrangersBody};
use super::members::{csr_refused, wireguard_key_invalid};
use super::network::underlay_refused;
use crate::access::{ClusterAdmin, ClusterViewer, no_such_org};
use crate::callers::{Protocol, SeenFrom};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::{MAX_LOGGED_NAME, MAX_REGION_BYTES, MAX_TOKEN_URL_BYTES};
use crate::state::App;

/// Digits of a token's hash by which it is listed and revoked.
const TOKEN_ID_DIGITS: usize = 12;

/// By what a token is listed, a machine's as a user's. It says nothing of its secret.
pub(crate) fn token_id(hash: &TokenHash) -> String {
    let digits = hash.iter().map(|byte| format!("{byte:02x}"));
    let mut id: String = digits.collect();
    id.truncate(TOKEN_ID_DIGITS);
    id
}

/// Makes a one-time token.
pub(crate) async fn create_token(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(request): Body<CreateTokenRequest>,
) -> Result<(StatusCode, Json<CreateTokenResponse>), ApiFailure> {
    let now = now();
    let expires_at = token_expiry(now, request.ttl_seconds).map_err(|refusal| refused(&refusal))?;
    if let Some(region) = &request.region {
        check_region(region)?;
    }
    let role = request.role;
    if let Some(org) = &request.org {
        if role == api::enrollment::EnrollRole::Edge {
            return Err(ApiFailure::refused(
                "edge_of_an_org",
                format!("a token for an edge cannot be of org {org}: an edge serves every org"),
            ));
        }
        if !app.cluster().access.orgs().contains_key(org) {
            return Err(no_such_org(org));
        }
    }
    let is_role = |member| {
        matches!(
            (member, role),
            (Member::Node(_), api::enrollment::EnrollRole::Node)
                | (Member::Edge(_), api::enrollment::EnrollRole::Edge)
        )
    };
    if let Some(replaced) = request.replaces.filter(|member| !is_role(*member)) {
        return Err(ApiFailure::refused(
            "replaces_other_role",
            format!("a {role} cannot take the place of {replaced}"),
        ));
    }
    let server = request.server.unwrap_or_else(|| app.url.clone());
    let is_url = |url: &str| url.trim().starts_with("https://") && url.is_ascii();
    if server.len() > MAX_TOKEN_URL_BYTES || !server.split(',').all(is_url) {
        return Err(ApiFailure::refused(
            "server_invalid",
            "the server's URL in a token is https://HOST:PORT, or several of them with commas between",
        ));
    }
    let token = EnrollmentToken::generate(app.authority().current.fingerprint(), Some(server))?;
    let hash = token.secret_hash();
    let record = TokenRecord {
        region: request.region,
        approve: request.approve,
        replaces: request.replaces,
        by: Some(user.name.to_string()),
        org: request.org,
        ..TokenRecord::new(role, expires_at)
    };
    app.change_by(&user, move |cluster| {
        if let Some(replaced) = record.replaces {
            check_replaced(cluster, replaced).map_err(|refusal| refused(&refusal))?;
        }
        let command = Command::AddToken {
            hash,
            token: record,
            now,
        };
        Ok::<_, ApiFailure>((vec![command], ()))
    })
    .await?;
    let id = token_id(&hash);
    tracing::info!(user = %user.name, %role, id, "made an enrollment token");
    let response = CreateTokenResponse {
        token: token.to_string(),
        id,
        role,
        expires_at,
    };
    Ok((StatusCode::CREATED, Json(response)))
}

/// Every token whose record is kept, those that were used too.
pub(crate) async fn tokens(
    State(app): State<App>,
    _: ClusterViewer,
) -> Result<Json<Vec<TokenRow>>, ApiFailure> {
    let cluster = app.cluster();
    let mut rows: Vec<_> = (cluster.tokens.iter())
        .map(|(hash, token)| TokenRow {
            id: token_id(hash),
            role: token.role,
            region: token.region.clone(),
            approve: token.approve,
            replaces: token.replaces,
            by: token.by.clone(),
            org: token.org.clone(),
            expires_at: token.expires_at,
            used_at: token.used.map(|(at, _)| at),
            used_by: token.used.map(|(_, by)| by),
        })
        .collect();
    rows.sort_by(|a, b| (a.expires_at, &a.id).cmp(&(b.expires_at, &b.id)));
    Ok(Json(rows))
}

/// A user revokes a token: it lets nobody in any more.
pub(crate) async fn revoke_token(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiFailure> {
    let wanted = id.clone();
    app.change_by(&user, move |cluster| {
        let mut hashes = cluster
            .tokens
            .keys()
            .filter(|hash| token_id(hash) == wanted);
        let hash = *hashes.next().ok_or_else(|| {
            ApiFailure::not_found("token_not_found", format!("there is no token {wanted}"))
                .hint("`platform tokens list` lists those there are")
        })?;
        Ok::<_, ApiFailure>((vec![Command::DeleteToken { hash }], ()))
    })
    .await?;
    tracing::info!(user = %user.name, id, "revoked an enrollment token");
    Ok(StatusCode::NO_CONTENT)
}

/// Enrolls the holder of a token, once. A request that cannot be served is refused before the token is spent.
pub(crate) async fn enroll(
    State(app): State<App>,
    _: Protocol,
    SeenFrom(from): SeenFrom,
    StrangersBody(request): StrangersBody<EnrollRequest>,
) -> Result<(StatusCode, Json<EnrollResponse>), ApiFailure> {
    let enrolled = enroll_checked(&app, &request, from).await;
    if let Err(refusal) = &enrolled
        && app.refused_enrollments.may_log(Instant::now())
    {
        let name: String = request.name.chars().take(MAX_LOGGED_NAME).collect();
        let reason = &refusal.reason;
        tracing::warn!(name, role = ?request.role, reason, "refused to enroll a machine");
    }
    enrolled.map_err(|refusal| refusal.failure)
}

/// What a machine is told that is refused, and what the log says: who guesses tokens learns from the first not how near it was.
struct Refusal {
    failure: ApiFailure,
    reason: String,
}

impl From<ApiFailure> for Refusal {
    fn from(failure: ApiFailure) -> Self {
        let reason = failure.reason().to_owned();
        Self { failure, reason }
    }
}

impl From<EnrollmentRefused> for Refusal {
    fn from(refusal: EnrollmentRefused) -> Self {
        let reason = refusal.to_string();
        let failure = refused(&refusal);
        Self { failure, reason }
    }
}

/// In the order of what it costs: nothing waits for the writer of the cluster state, and nothing is written, before the token is known to be good.
async fn enroll_checked(
    app: &App,
    request: &EnrollRequest,
    from: Option<IpAddr>,
) -> Result<(StatusCode, Json<EnrollResponse>), Refusal> {
    let now = now();
    let hash = secret_hash(&request.token);
    let cluster = app.cluster();
    known_token(&cluster, &hash, request, now)?;
    check_clock(request.sent_at, now)?;
    check_region(&request.region)?;
    if let Some(key) = &request.wireguard_public_key
        && !is_wireguard_public_key(key)
    {
        return Err(wireguard_key_invalid().into());
    }
    let underlay = request
        .underlay
        .map(|said| record(&said, from, cluster.settings.prefix))
        .transpose()
        .map_err(|refusal| underlay_refused(&refusal))?;
    let key = public_key_of_request(&request.csr_pem).map_err(|error| csr_refused(&error))?;
    let enrolled = match admit(&cluster, &hash, &key, request, now)? {
        // Its answer was lost: it is written already.
        Admitted::Again(enrolled) => enrolled,
        Admitted::New(_) => {
            let wanted = request.clone();
            let enrolled = app.change(move |cluster| {
                let admitted =
                    scheduler::enrollment::enroll(cluster, hash, &key, &wanted, underlay, now);
                let (command, enrolled) = admitted.map_err(|refusal| refused(&refusal))?;
                Ok::<_, ApiFailure>((command.into_iter().collect(), enrolled))
            });
            enrolled.await?
        }
    };
    app.joined(&cluster, enrolled.member);
    Ok(answer(app, request, enrolled, now)?)
}

fn answer(
    app: &App,
    request: &EnrollRequest,
    enrolled: Enrolled,
    now: Timestamp,
) -> Result<(StatusCode, Json<EnrollResponse>), ApiFailure> {
    let Enrolled {
        member,
        name,
        region,
        pending,
        number,
    } = enrolled;
    let certificate_pem = app
        .authority()
        .current
        .sign_member(&request.csr_pem, member, now)
        .map_err(|error| ApiFailure::internal(&error))?;
    tracing::info!(%member, name, pending, "a member joined");
    let response = EnrollResponse {
        member,
        name,
        region: Some(region),
        pending,
        cluster: app.settings.id.clone(),
        cluster_prefix: app.settings.prefix,
        mtu: app.published.borrow().cluster.settings.mtu,
        number,
        certificate_pem,
        ca_pem: app.authority().trusted_pem(),
    };
    Ok((StatusCode::CREATED, Json(response)))
}

/// The clocks of both machines have to be near each other: certificates have dates.
fn check_clock(sent_at: Option<Timestamp>, now: Timestamp) -> Result<(), ApiFailure> {
    let Some(sent_at) = sent_at else {
        return Ok(());
    };
    let (apart, which) = if sent_at > now {
        (sent_at.millis_since(now), "ahead of")
    } else {
        (now.millis_since(sent_at), "behind")
    };
    let seconds = apart / 1000;
    if seconds <= CLOCK_SKEW_SECONDS {
        return Ok(());
    }
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    Err(ApiFailure::refused(
        "clock_skew",
        format!(
            "the machine's clock is {days} days, {hours} h and {minutes} min {which} the server's"
        ),
    )
    .hint("set the clock that is wrong (`timedatectl`), and try again: the token is not spent"))
}

fn check_region(region: &str) -> Result<(), ApiFailure> {
    let plain = region.bytes().all(|b| b.is_ascii_graphic());
    if region.is_empty() || region.len() > MAX_REGION_BYTES || !plain {
        return Err(ApiFailure::refused(
            "region_invalid",
            format!("a region is 1 to {MAX_REGION_BYTES} visible ASCII characters"),
        ));
    }
    Ok(())
}

fn refused(refusal: &EnrollmentRefused) -> ApiFailure {
    let (status, code) = match refusal {
        // One answer, whatever of the three it is.
        EnrollmentRefused::UnknownToken
        | EnrollmentRefused::TokenUsed
        | EnrollmentRefused::TokenExpired => {
            return ApiFailure::new(
                StatusCode::UNAUTHORIZED,
                error_code::TOKEN_REFUSED,
                "the enrollment token lets nobody in: it is not of this cluster, was used by another machine, was revoked, or has expired",
            )
            .hint("make another one with `platform tokens create`; the server's log says which it was");
        }
        EnrollmentRefused::OtherRole { .. } => (StatusCode::FORBIDDEN, "token_other_role"),
        EnrollmentRefused::KeyTaken => (StatusCode::FORBIDDEN, error_code::KEY_TAKEN),
        EnrollmentRefused::WireguardKeyTaken => (StatusCode::CONFLICT, "wireguard_key_taken"),
        EnrollmentRefused::NoneToReplace(_) => (StatusCode::CONFLICT, "none_to_replace"),
        EnrollmentRefused::ReplacedHasVolumes { .. } => (StatusCode::CONFLICT, "node_has_volumes"),
        EnrollmentRefused::NoWireguardKey => {
            (StatusCode::UNPROCESSABLE_ENTITY, "wireguard_key_missing")
        }
        EnrollmentRefused::NoHardware(_) => (StatusCode::UNPROCESSABLE_ENTITY, "hardware_missing"),
        EnrollmentRefused::NoNumberLeft(_) => (StatusCode::CONFLICT, "cluster_full"),
        EnrollmentRefused::TokenLife(_) => (StatusCode::UNPROCESSABLE_ENTITY, "ttl_out_of_range"),
    };
    ApiFailure::new(status, code, refusal.to_string())
}

//! Users add certificates of hosts, and edges get them.

use std::time::{Duration, Instant};

use api::certificates::{
    AddCertificateRequest, CertificateQuery, CertificateRow, CertificateSource, IngressCaRow,
    MAX_CERTIFICATES, is_certificate_name,
};
use api::edge::{HasRoutes, HostCertificateRequest, HostCertificateResponse};
use api::enrollment::Member;
use api::event::EventKind;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use identity::{
    CLOCK_SKEW_SECONDS, HostCertificateError, certificate_fingerprint, certified_key, hex,
};
use store::StoredCertificate;

use super::extract::{Body, Params, Poll, granted};
use crate::access::{Anyone, ClusterAdmin, ClusterViewer};
use crate::callers::EdgeCaller;
use crate::certificate_loop::record;
use crate::certificates::{ACME_ENDING, CertificatesError, row};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::state::{App, Topic};

/// Every certificate.
pub(crate) async fn list(
    State(app): State<App>,
    _: ClusterViewer,
) -> Result<Json<Vec<CertificateRow>>, ApiFailure> {
    Ok(Json(app.certificates.rows().await?))
}

/// Takes a certificate with its key, where both can be used.
pub(crate) async fn add(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(request): Body<AddCertificateRequest>,
) -> Result<Json<CertificateRow>, ApiFailure> {
    let now = now();
    let (certificate, _) =
        certified_key(&request.chain_pem, &request.key_pem).map_err(certificate_refused)?;
    if certificate.not_after <= now {
        return Err(
            ApiFailure::refused("certificate_expired", "the certificate has expired").hint(
                "`openssl x509 -noout -enddate -in FILE` shows when; is the server's clock right?",
            ),
        );
    }
    if certificate.not_before.0 > now.0.saturating_add(CLOCK_SKEW_SECONDS * 1000) {
        return Err(ApiFailure::refused(
            "certificate_not_yet_valid",
            "the certificate is not valid yet",
        )
        .hint("`openssl x509 -noout -startdate -in FILE` shows from when; is the server's clock right?"));
    }
    let first = certificate.hosts.first().cloned().unwrap_or_default();
    let name = request.name.unwrap_or(first);
    if !is_certificate_name(&name) || name.ends_with(ACME_ENDING) {
        return Err(ApiFailure::refused(
            "certificate_name_invalid",
            format!("`{name}` is no name of a certificate"),
        )
        .hint("one has 1 to 253 of a-z, 0-9, `.`, `-` and `_`, does not begin with a dot, and does not end in `_acme`"));
    }
    let is_there = app.certificates.known(&name).is_some();
    let operators = app.certificates.count_of(CertificateSource::Operator);
    if !is_there && operators >= MAX_CERTIFICATES {
        return Err(ApiFailure::conflict(
            "too_many_certificates",
            format!("the cluster has {MAX_CERTIFICATES} certificates, and takes no more"),
        )
        .hint("`platform certificates remove` removes those that are not needed"));
    }
    let stored = StoredCertificate {
        name: name.clone(),
        chain_pem: request.chain_pem,
        sealed: Vec::new(),
        source: "operator".to_owned(),
        by: user.name.to_string(),
        at: now,
    };
    let answer = row(stored.clone(), None, now);
    app.certificates.keep(stored, request.key_pem).await?;
    app.topics.notify(std::iter::once(Topic::Certificates));
    let message = format!("{name}: {}", answer.hosts.join(", "));
    tracing::info!(user = %user.name, name, "a certificate was added");
    record(&app, &user, EventKind::CertificateAdded, message).await;
    Ok(Json(answer))
}

/// Removes a certificate.
pub(crate) async fn remove(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Params(CertificateQuery { name }): Params<CertificateQuery>,
) -> Result<StatusCode, ApiFailure> {
    let certificates = &app.certificates;
    // Where both are there, an operator's.
    if !certificates.remove(&name).await? && !certificates.remove_acme(&name).await? {
        return Err(ApiFailure::not_found(
            "certificate_not_found",
            format!("there is no certificate {name}"),
        )
        .hint("`platform certificates` lists those there are"));
    }
    app.topics.notify(std::iter::once(Topic::Certificates));
    tracing::info!(user = %user.name, name, "a certificate was removed");
    record(&app, &user, EventKind::CertificateRemoved, name).await;
    Ok(StatusCode::NO_CONTENT)
}

/// The CA of the hosts that have no certificate of their own.
pub(crate) async fn ca(
    State(app): State<App>,
    _: Anyone,
) -> Result<Json<IngressCaRow>, ApiFailure> {
    let ca_pem = app.certificates.ca().certificate_pem().to_owned();
    let fingerprint = certificate_fingerprint(&ca_pem).map_err(CertificatesError::from)?;
    Ok(Json(IngressCaRow {
        fingerprint: hex(&fingerprint),
        ca_pem,
    }))
}

/// The certificates, once they are others than those that the edge has.
pub(crate) async fn for_edge(
    State(app): State<App>,
    EdgeCaller { edge, .. }: EdgeCaller,
    Params(poll): Params<Poll>,
) -> Result<Response, ApiFailure> {
    let has = HasRoutes {
        generation: poll.has(),
        session: poll.session,
    };
    app.members.seen(Member::Edge(edge), now());
    let wait: Duration = granted(poll.wait_ms);
    let newer = app
        .wait_for(Topic::Certificates, wait, |published| {
            let incarnation = published.cluster.incarnation;
            app.certificates.news(incarnation, app.session, has)
        })
        .await?;
    Ok(match newer {
        Some(table) => {
            let changed = table.certificates.len() + table.removed.len();
            tracing::debug!(%edge, changed, "an edge gets certificates");
            Json(table).into_response()
        }
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Signs a certificate for a host that a route leads from.
pub(crate) async fn for_host(
    State(app): State<App>,
    EdgeCaller { edge, .. }: EdgeCaller,
    Body(request): Body<HostCertificateRequest>,
) -> Result<Json<HostCertificateResponse>, ApiFailure> {
    let HostCertificateRequest { host, csr_pem } = request;
    if !app.published.borrow().routes.is_served(&host) {
        return Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            "host_not_routed",
            format!("no route leads from {host}"),
        ));
    }
    if let Err(wait) = app.signing_rate.take(edge, Instant::now()) {
        let failure = ApiFailure::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_host_certificates",
            format!("{edge} asked for too many certificates of hosts"),
        );
        return Err(failure.retry_after(wait));
    }
    let ca = app.certificates.ca();
    let signed = ca.sign_host(&csr_pem, &host, now());
    let leaf = signed.map_err(|error| ApiFailure::bad_request(error.to_string()))?;
    tracing::info!(%edge, host, "signed a certificate of the ingress CA");
    Ok(Json(HostCertificateResponse {
        chain_pem: format!("{leaf}{}", ca.certificate_pem()),
    }))
}

fn certificate_refused(error: HostCertificateError) -> ApiFailure {
    use HostCertificateError as Wrong;
    let (code, hint) = match &error {
        Wrong::OtherKey => (
            "certificate_other_key",
            Some(
                "`openssl pkey -pubout -in KEY` and `openssl x509 -noout -pubkey -in CERT` print the same where they belong together",
            ),
        ),
        Wrong::NoKey => (
            "certificate_key_invalid",
            Some("`openssl pkey -in KEY -out OUT` writes it so, and asks for its passphrase"),
        ),
        Wrong::Key(_) => ("certificate_key_invalid", None),
        Wrong::OutOfOrder { .. } => (
            "certificate_chain_invalid",
            Some("ACME clients write the right order to `fullchain.pem`"),
        ),
        Wrong::NoHost | Wrong::NotAHost(_) | Wrong::TooManyHosts(_) => {
            ("certificate_hosts_invalid", None)
        }
        Wrong::TooLong { .. }
        | Wrong::NoCertificate
        | Wrong::TooManyCertificates(_)
        | Wrong::Unreadable { .. } => ("certificate_chain_invalid", None),
    };
    let failure = ApiFailure::refused(code, error.to_string());
    hint.into_iter().fold(failure, ApiFailure::hint)
}

impl From<CertificatesError> for ApiFailure {
    fn from(error: CertificatesError) -> Self {
        match error {
            CertificatesError::Store(error) => error.into(),
            error => Self::internal(&error),
        }
    }
}

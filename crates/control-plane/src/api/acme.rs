//! Users turn certificates by ACME on and off, and edges ask what they are to answer.

use std::time::Duration;

use api::acme::{
    AcmeRequest, AcmeRetryQuery, AcmeStatus, MAX_ACME_CA_BYTES, MAX_ACME_TEXT_BYTES,
    MAX_ORDERS_PER_HOUR, MAX_WILDCARDS, ORDERS_PER_HOUR,
};
use api::edge::HasRoutes;
use api::enrollment::Member;
use api::event::EventKind;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use model::Timestamp;
use scheduler::acme::check_wildcard;
use serde::Deserialize;

use super::extract::{Body, Params, granted};
use crate::access::{ClusterAdmin, ClusterViewer};
use crate::acme::Config;
use crate::acme::authority::AcmeError;
use crate::acme_order::{client, open_account, register};
use crate::callers::EdgeCaller;
use crate::certificate_loop::record;
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::state::{App, Topic};

/// Whether certificates are ordered, and how it goes.
pub(crate) async fn show(
    State(app): State<App>,
    _: ClusterViewer,
) -> Result<Json<AcmeStatus>, ApiFailure> {
    Ok(Json(app.acme.status()))
}

/// Certificates are ordered from now on, or otherwise. The account is made here, so that who sets it learns what is wrong.
pub(crate) async fn set(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(request): Body<AcmeRequest>,
) -> Result<Json<AcmeStatus>, ApiFailure> {
    check(&request, app.acme.hook.is_some())?;
    let _changing = app.acme.changing.lock().await;
    let before = app.acme.config();
    let is_same = |before: &&std::sync::Arc<Config>| before.directory == request.directory;
    let external_before =
        (before.as_ref().filter(is_same)).and_then(|before| before.external_account.clone());
    let external_account = request.external_account.clone().or(external_before);
    let email_before = before
        .as_ref()
        .filter(is_same)
        .map(|before| before.email.clone());
    let mut config = Config {
        is_on: true,
        directory: request.directory.clone(),
        email: request.email.clone(),
        external_account,
        ca_pem: request.ca_pem.clone(),
        key_type: request.key_type,
        challenge: request.challenge,
        wildcards: request.wildcards.clone(),
        orders_per_hour: request.orders_per_hour.unwrap_or(ORDERS_PER_HOUR),
        by: user.name.to_string(),
        at: now(),
        accounts: before
            .map(|before| before.accounts.clone())
            .unwrap_or_default(),
    };
    let client = client(&config).map_err(|error| {
        ApiFailure::refused("acme_ca_invalid", error.to_string()).hint(
            "the CA of the directory is one PEM block `-----BEGIN CERTIFICATE-----` or several",
        )
    })?;
    let directory = client.directory(&config.directory).await.map_err(refused)?;
    if !request.terms_of_service_agreed {
        let terms = directory.meta.terms_of_service;
        let at = terms.map_or(String::new(), |url| format!(": {url}"));
        return Err(ApiFailure::refused(
            "acme_terms_not_agreed",
            format!("the authority issues to who agrees to its terms of service{at}"),
        )
        .hint("read them, and say so by `--agree-tos`"));
    }
    if directory.meta.external_account_required
        && config.external_account.is_none()
        && config.account().is_none()
    {
        return Err(ApiFailure::refused(
            "acme_external_account_required",
            "the authority asks for an account that it knows from elsewhere",
        )
        .hint("it gives a key id and a key (EAB): `--eab-key-id` and `--eab-key-file`"));
    }
    let has_other_key = request.external_account.is_some();
    if config.account().is_none() || has_other_key {
        let (_, account) = register(&client, &config).await.map_err(refused)?;
        let directory = config.directory.clone();
        config.set_account(&directory, Some(account));
    } else if let Some(account) = config.account()
        && email_before.as_ref() != Some(&config.email)
    {
        let account = open_account(&client, account).await.map_err(refused)?;
        let contact = config.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let updated = account.update_contacts(&contact).await;
        updated.map_err(|error| refused(client.error(&error)))?;
    }
    let message = format!("on, by {}", config.directory);
    app.acme.names().tries_now = true;
    app.acme.set_config(config).await?;
    tracing::warn!(user = %user.name, directory = request.directory, "certificates are ordered by ACME");
    record(&app, &user, EventKind::CertificateSettings, message).await;
    Ok(Json(app.acme.status()))
}

fn check(request: &AcmeRequest, has_hook: bool) -> Result<(), ApiFailure> {
    let refused = |code: &str, message: String| Err(ApiFailure::refused(code, message));
    let too_long = |text: &str| text.len() > MAX_ACME_TEXT_BYTES;
    let is_url = url_host(&request.directory).is_some_and(|host| !host.is_empty());
    if !is_url || too_long(&request.directory) {
        return Err(ApiFailure::refused(
            "acme_directory_invalid",
            "the directory is no URL that begins with `https://`",
        )
        .hint("Let's Encrypt's is https://acme-v02.api.letsencrypt.org/directory"));
    }
    if let Some(email) = &request.email {
        let is_address = email.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && !host.contains('@')
        });
        let is_plain = email
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b",<>\"?&".contains(&byte));
        if !is_address || !is_plain || too_long(email) {
            let what = display::one_line(email, 100);
            return refused("acme_email_invalid", format!("`{what}` is no mail address"));
        }
    }
    if let Some(external) = &request.external_account
        && (external.key_id.is_empty()
            || too_long(&external.key_id)
            || too_long(&external.hmac_key)
            || external.hmac_key.is_empty())
    {
        return refused(
            "acme_external_account_invalid",
            "the external account needs the id of its key and the key".to_owned(),
        );
    }
    if request.ca_pem.as_ref().is_some_and(|pem| {
        pem.len() > MAX_ACME_CA_BYTES || !pem.contains("-----BEGIN CERTIFICATE-----")
    }) {
        return refused(
            "acme_ca_invalid",
            "the CA of the directory is no certificate in PEM, or too long".to_owned(),
        );
    }
    let most = request.orders_per_hour.unwrap_or(ORDERS_PER_HOUR);
    if !(1..=MAX_ORDERS_PER_HOUR).contains(&most) {
        return refused(
            "acme_rate_invalid",
            format!("1 to {MAX_ORDERS_PER_HOUR} orders begin in an hour, not {most}"),
        );
    }
    if request.wildcards.len() > MAX_WILDCARDS {
        return refused(
            "acme_too_many_wildcards",
            format!("there are more than {MAX_WILDCARDS} wildcards"),
        );
    }
    for name in &request.wildcards {
        if let Err(error) = check_wildcard(name) {
            return refused("acme_wildcard_invalid", error.to_string());
        }
    }
    let needs_hook =
        !request.wildcards.is_empty() || request.challenge == api::acme::ChallengePreference::Dns01;
    if needs_hook && !has_hook {
        return Err(ApiFailure::refused(
            "acme_no_dns_hook",
            "wildcards and DNS-01 need a hook that sets records in the DNS, and this server has none",
        )
        .hint("start every server with `--acme-dns-hook PROGRAM` (docs/tls.md)"));
    }
    Ok(())
}

/// The host and port of a URL of HTTPS.
fn url_host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://")?;
    let is_plain = rest.bytes().all(|byte| byte.is_ascii_graphic());
    let host = rest.split('/').next()?;
    (is_plain && !host.contains('@')).then_some(host)
}

fn refused(error: AcmeError) -> ApiFailure {
    match error {
        AcmeError::Away { cause, .. } => ApiFailure::new(
            StatusCode::BAD_GATEWAY,
            "acme_authority_unreachable",
            format!("the authority cannot be reached, or fails: {cause}"),
        )
        .hint("the server that leads connects to it: can it, by name and by port? one of your own needs `--ca-file`"),
        AcmeError::RateLimited { cause, retry_after } => {
            let failure = ApiFailure::refused("acme_rate_limited", cause);
            retry_after.into_iter().fold(failure, ApiFailure::retry_after)
        }
        error @ AcmeError::Clock(_) => ApiFailure::refused("acme_clock", error.to_string()),
        error => ApiFailure::refused("acme_account_refused", error.to_string()),
    }
}

/// No certificate is ordered any more.
pub(crate) async fn unset(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
) -> Result<StatusCode, ApiFailure> {
    let _changing = app.acme.changing.lock().await;
    if let Some(before) = app.acme.config_if_on() {
        let config = Config {
            is_on: false,
            by: user.name.to_string(),
            at: now(),
            ..(*before).clone()
        };
        app.acme.set_config(config).await?;
        tracing::warn!(user = %user.name, "no certificate is ordered by ACME any more");
        let message = "off: no certificate is ordered any more, and those there are lapse";
        record(
            &app,
            &user,
            EventKind::CertificateSettings,
            message.to_owned(),
        )
        .await;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A name whose order failed is tried again now.
pub(crate) async fn retry(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Params(AcmeRetryQuery { name }): Params<AcmeRetryQuery>,
) -> Result<StatusCode, ApiFailure> {
    if app.acme.config_if_on().is_none() {
        return Err(ApiFailure::conflict(
            "acme_off",
            "no certificate is ordered by ACME: it is off",
        )
        .hint("`platform certificates acme on` turns it on"));
    }
    // One that did not fail may wait for what holds up all.
    let is_held_up = {
        let names = app.acme.names();
        names.waits.is_some() && names.plan.is_wanted(&name, now())
    };
    let has_failed = app.acme.failure_of(&name).is_some();
    if !has_failed && !is_held_up {
        let what = display::one_line(&name, MAX_ACME_TEXT_BYTES);
        return Err(ApiFailure::not_found(
            "acme_name_not_found",
            format!("no order of `{what}` failed"),
        )
        .hint("`platform certificates acme` lists the names whose orders failed"));
    }
    if has_failed {
        let mut record = app.acme.record(&name);
        record.not_before = Timestamp(0);
        let key = app.acme.order_key(&name);
        app.acme.remember(&name, record, key.as_deref()).await?;
    }
    app.acme.names().tries_now = true;
    app.acme.wake.notify_one();
    tracing::info!(user = %user.name, name, "a name is tried again by ACME");
    Ok(StatusCode::NO_CONTENT)
}

/// The query of an edge's poll for challenges; fields of a newer edge are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct ChallengePoll {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    incarnation: model::Incarnation,
    #[serde(default)]
    session: model::LeaderSession,
    #[serde(default)]
    https: bool,
    #[serde(default)]
    wait_ms: u64,
}

/// What an edge is to answer to authorities, once that is other than what it has.
pub(crate) async fn for_edge(
    State(app): State<App>,
    EdgeCaller { edge, .. }: EdgeCaller,
    Params(poll): Params<ChallengePoll>,
) -> Result<Response, ApiFailure> {
    let has = HasRoutes {
        generation: model::Generation {
            incarnation: poll.incarnation,
            counter: poll.after,
        },
        session: poll.session,
    };
    app.members.seen(Member::Edge(edge), now());
    let incarnation = app.published.borrow().cluster.incarnation;
    let of = (incarnation, app.session);
    app.acme.challenges.asked(edge, of, has, poll.https);
    let wait: Duration = granted(poll.wait_ms);
    let newer = app
        .wait_for(Topic::Challenges, wait, |published| {
            let of = (published.cluster.incarnation, app.session);
            app.acme.challenges.news(of, has)
        })
        .await?;
    Ok(match newer {
        Some(table) => Json(table).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_reached_by_https_alone() {
        assert_eq!(
            url_host("https://ca.example.com:14000/dir"),
            Some("ca.example.com:14000")
        );
        for url in [
            "http://ca.example.com/dir",
            "ca.example.com",
            "https://a b",
            "https://u@h/dir",
            "",
        ] {
            assert_eq!(url_host(url), None, "{url}");
        }
    }
}

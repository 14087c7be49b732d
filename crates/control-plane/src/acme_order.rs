//! One order of a certificate by ACME (RFC 8555, 7): begun, or gone on with where another leader began it.
//!
//! ```text
//!   new order, its key --> both in the store --> pending: challenges --> edges answer, or the hook has set a record --> the authority looks
//!        another leader goes on from here /          ready: request --> processing --> valid: the certificate, in the store, and edges have it
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::acme::{ChallengePreference, MAX_ACME_CERTIFICATES};
use api::certificates::CertificateSource;
use api::edge::{Challenge, HttpChallenge};
use api::enrollment::Member;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use identity::{
    CLOCK_SKEW_SECONDS, HostCertificate, KeyError, certified_key, generate_host_key, hex,
    host_request,
};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeStatus,
    ChallengeType, ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use model::{EdgeId, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use scheduler::acme::OrderUnderWay;
use store::StoredCertificate;
use tokio::time::Instant;

use crate::acme::Config;
use crate::acme::authority::{AcmeError, AuthorityClient, description};
use crate::acme::challenges::Published;
use crate::acme::hook::{self, Action, HookError, TxtRecord};
use crate::certificates::{ACME_SOURCE, CertificatesError};
use crate::clock::now;
use crate::limits::{
    ACME_DECISION_TIMEOUT, ACME_EDGE_SILENCE_MS, ACME_EDGE_TIMEOUT, ACME_FIRST_LOOK,
    ACME_OLD_EDGE_AFTER,
};
use crate::state::{App, Topic};

/// States that an order goes through at most, each once.
const MAX_STATES: usize = 6;

/// Why an order came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// It was turned off.
    #[error("certificates are not ordered any more")]
    Off,
    #[error(transparent)]
    Authority(#[from] AcmeError),
    /// No edge answers.
    #[error("no edge that is there answers challenges")]
    NoEdge,
    #[error("no kind of challenge fits: {0}")]
    NoChallenge(String),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("the cluster has {MAX_ACME_CERTIFICATES} certificates by ACME, and orders no more")]
    TooMany,
    #[error("the authority's certificate cannot be used: {0}")]
    Unusable(String),
    #[error(transparent)]
    Kept(#[from] CertificatesError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Orders a certificate for a name, or goes on with the order under way, and has edges use it.
pub(crate) async fn order(
    app: &App,
    name: &str,
    renews: bool,
) -> Result<HostCertificate, OrderError> {
    let config = app.acme.config_if_on().ok_or(OrderError::Off)?;
    if !renews && app.certificates.count_of(CertificateSource::Acme) >= MAX_ACME_CERTIFICATES {
        return Err(OrderError::TooMany);
    }
    let client = client(&config)?;
    let account = account(app, &client, &config).await?;
    client.check_clock()?;
    let begun = begin(app, &client, &account, &config, name, renews).await;
    let (mut order, key_pem) = match begun {
        // The authority has lost it, as one for tests does at each start.
        Err(OrderError::Authority(AcmeError::NoAccount)) => {
            let account = account_anew(app, &client, &config).await?;
            begin(app, &client, &account, &config, name, renews).await?
        }
        begun => begun?,
    };
    let chain_pem = finish(app, &client, &config, &mut order, name, &key_pem).await?;
    let checked = certified_key(&chain_pem, &key_pem);
    let (says, _) = checked.map_err(|error| OrderError::Unusable(error.to_string()))?;
    if let Some(what) = not_what_was_ordered(&says, name, now()) {
        return Err(OrderError::Unusable(what));
    }
    let stored = StoredCertificate {
        name: name.to_owned(),
        chain_pem,
        sealed: Vec::new(),
        source: ACME_SOURCE.to_owned(),
        by: ACME_SOURCE.to_owned(),
        at: now(),
    };
    app.certificates.keep_acme(stored, key_pem).await?;
    app.topics.notify(std::iter::once(Topic::Certificates));
    (app.acme.delete_record(name).await).map_err(CertificatesError::from)?;
    Ok(says)
}

/// What is wrong with a certificate that an authority has made. One for more names than the one that was ordered would be shown for those, too.
fn not_what_was_ordered(says: &HostCertificate, name: &str, now: Timestamp) -> Option<String> {
    let is_for_it = says.hosts.iter().all(|host| host == name);
    let begins = says.not_before.0 <= now.0.saturating_add(CLOCK_SKEW_SECONDS * 1000);
    if !is_for_it {
        let hosts = says.hosts.join(", ");
        Some(format!("it is for {hosts}, and one for {name} was ordered"))
    } else if says.not_after <= now {
        Some(format!("it ended at {}", moment(says.not_after)))
    } else if !begins {
        let from = moment(says.not_before);
        Some(format!(
            "it is valid from {from} on: is one of the clocks wrong, the server's or the authority's?"
        ))
    } else {
        None
    }
}

/// A moment in RFC 3339, UTC.
fn moment(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| at.0.to_string(), |at| format!("{at:.0}"))
}

/// The cluster's end of connections to the authority that is set.
pub(crate) fn client(config: &Config) -> Result<AuthorityClient, AcmeError> {
    AuthorityClient::new(config.ca_pem.as_deref()).map_err(|error| AcmeError::Away {
        cause: display::chain(&error),
        retry_after: None,
    })
}

/// The account, made where there is none.
async fn account(
    app: &App,
    client: &AuthorityClient,
    config: &Config,
) -> Result<Account, OrderError> {
    match config.account() {
        Some(known) => Ok(open_account(client, known).await?),
        None => account_anew(app, client, config).await,
    }
}

/// The account that these credentials are of.
pub(crate) async fn open_account(
    client: &AuthorityClient,
    known: &serde_json::Value,
) -> Result<Account, AcmeError> {
    let credentials: AccountCredentials =
        serde_json::from_value(known.clone()).map_err(|error| {
            AcmeError::Account(format!("what is kept of it cannot be read: {error}"))
        })?;
    let account = Account::builder_with_http(Box::new(client.clone()));
    let account = account.from_credentials(credentials).await;
    account.map_err(|error| client.error(&error))
}

/// Makes an account in the place of what these settings have, where nobody did so meanwhile.
async fn account_anew(
    app: &App,
    client: &AuthorityClient,
    config: &Config,
) -> Result<Account, OrderError> {
    let _changing = app.acme.changing.lock().await;
    let mut current = (*app.acme.config_if_on().ok_or(OrderError::Off)?).clone();
    if current.directory == config.directory
        && current.account() != config.account()
        && let Some(known) = current.account()
    {
        return Ok(open_account(client, known).await?);
    }
    let (account, known) = register(client, &current).await?;
    let directory = current.directory.clone();
    current.set_account(&directory, Some(known));
    app.acme.set_config(current).await?;
    Ok(account)
}

/// Makes an account at the authority (RFC 8555, 7.3); with it, what is to be kept of it.
pub(crate) async fn register(
    client: &AuthorityClient,
    config: &Config,
) -> Result<(Account, serde_json::Value), AcmeError> {
    let external = match &config.external_account {
        None => None,
        Some(external) => {
            let key = BASE64_URL_SAFE_NO_PAD.decode(external.hmac_key.trim_end_matches('='));
            let key = key.map_err(|_| {
                AcmeError::Account(
                    "the key of the external account is no base64url (RFC 8555, 7.3.4)".to_owned(),
                )
            })?;
            Some(ExternalAccountKey::new(external.key_id.clone(), &key))
        }
    };
    let contact = config.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let made = builder
        .create(&new, config.directory.clone(), external.as_ref())
        .await;
    let (account, credentials) = made.map_err(|error| match client.error(&error) {
        AcmeError::Refused { cause, .. } => AcmeError::Account(cause),
        other => other,
    })?;
    let kept = serde_json::to_value(&credentials)
        .map_err(|error| AcmeError::Account(error.to_string()))?;
    tracing::info!(account = account.id(), "made an account of ACME");
    Ok((account, kept))
}

/// The order under way for a name with its key, or a new one, which is in the store then.
async fn begin(
    app: &App,
    client: &AuthorityClient,
    account: &Account,
    config: &Config,
    name: &str,
    renews: bool,
) -> Result<(Order, String), OrderError> {
    let mut record = app.acme.record(name);
    let under_way = record.order.take();
    let under_way = under_way.filter(|order| order.directory == config.directory);
    if let (Some(under_way), Some(key_pem)) = (under_way, app.acme.order_key(name)) {
        match account.order(under_way.url).await {
            Ok(order) => return Ok((order, key_pem)),
            Err(error) => match client.error(&error) {
                error @ (AcmeError::Away { .. }
                | AcmeError::Nonce(_)
                | AcmeError::RateLimited { .. }) => {
                    return Err(error.into());
                }
                // It has expired, or the authority has lost it.
                error => tracing::info!(name, %error, "an order of before is begun anew"),
            },
        }
    }
    let identifiers = [Identifier::Dns(name.to_owned())];
    let before = renews
        .then(|| app.certificates.acme_chain_pem(name))
        .flatten();
    let mut order = None;
    if let Some(replaces) = before.as_deref().and_then(identifier) {
        let new = NewOrder::new(&identifiers).replaces(replaces);
        match account.new_order(&new).await {
            Ok(made) => order = Some(made),
            Err(error) => match client.error(&error) {
                error @ (AcmeError::RateLimited { .. } | AcmeError::NoAccount) => {
                    return Err(error.into());
                }
                // An authority that does not know of it (RFC 9773, 5), or says that it was replaced.
                error => tracing::debug!(name, %error, "an order that replaces none"),
            },
        }
    }
    let order = match order {
        Some(order) => order,
        None => {
            let made = account.new_order(&NewOrder::new(&identifiers)).await;
            made.map_err(|error| client.error(&error))?
        }
    };
    let key_pem = generate_host_key(config.key_type)?;
    record.order = Some(OrderUnderWay {
        url: order.url().to_owned(),
        directory: config.directory.clone(),
        began_at: now(),
    });
    app.acme.remember(name, record, Some(&key_pem)).await?;
    tracing::info!(name, order = order.url(), "ordered a certificate");
    Ok((order, key_pem))
}

/// How an authority knows a certificate (RFC 9773, 4.1).
pub(crate) fn identifier(chain_pem: &str) -> Option<CertificateIdentifier<'static>> {
    let leaf = CertificateDer::from_pem_slice(chain_pem.as_bytes()).ok()?;
    let identifier = CertificateIdentifier::try_from(&leaf).ok()?;
    Some(identifier.into_owned())
}

fn looks() -> RetryPolicy {
    RetryPolicy::new()
        .initial_delay(ACME_FIRST_LOOK)
        .backoff(1.5)
        .timeout(ACME_DECISION_TIMEOUT)
}

/// Leads an order from the state that it is in to its certificate.
async fn finish(
    app: &App,
    client: &AuthorityClient,
    config: &Config,
    order: &mut Order,
    name: &str,
    key_pem: &str,
) -> Result<String, OrderError> {
    for _ in 0..MAX_STATES {
        match order.state().status {
            OrderStatus::Pending => prove(app, client, config, order, name).await?,
            OrderStatus::Ready => {
                let request = host_request(key_pem, name)?;
                let asked = order.finalize_csr(&request).await;
                asked.map_err(|error| client.error(&error))?;
            }
            OrderStatus::Processing | OrderStatus::Valid => {
                let chain = order.poll_certificate(&looks()).await;
                return Ok(chain.map_err(|error| client.error(&error))?);
            }
            OrderStatus::Invalid => break,
        }
    }
    Err(refused(order).await.into())
}

/// Why an order became invalid: what its challenges say.
async fn refused(order: &mut Order) -> AcmeError {
    let mut cause = order.state().error.as_ref().map(description);
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let challenges = authorization.challenges.iter();
        let mut failed = challenges.filter_map(|challenge| challenge.error.as_ref());
        if let Some(problem) = failed.next_back() {
            cause = Some(description(problem));
        }
    }
    AcmeError::Refused {
        cause: cause.unwrap_or_else(|| "the authority does not say why".to_owned()),
        retry_after: None,
    }
}

/// Challenges that edges answer until this ends.
struct Answering<'a> {
    app: &'a App,
    published: Vec<Published>,
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.published.clear();
        self.app.topics.notify(std::iter::once(Topic::Challenges));
    }
}

/// Shows the authority that the name leads here, and waits until it has looked.
async fn prove(
    app: &App,
    client: &AuthorityClient,
    config: &Config,
    order: &mut Order,
    name: &str,
) -> Result<(), OrderError> {
    let mut answering = Answering {
        app,
        published: Vec::new(),
    };
    let mut records = Vec::new();
    let prepared = prepare(
        app,
        client,
        config,
        order,
        name,
        &mut answering,
        &mut records,
    )
    .await;
    let looked = match &prepared {
        Err(_) => None,
        Ok(_) => Some(order.poll_ready(&looks()).await),
    };
    drop(answering);
    for (program, record) in records {
        if let Err(error) = hook::call(&program, Action::Cleanup, &record).await {
            let cause = display::chain(&error);
            tracing::warn!(name, cause, "a record of the DNS is left behind");
        }
    }
    let silent = prepared?;
    let refused = match looked {
        Some(Ok(OrderStatus::Invalid)) => refused(order).await,
        Some(Err(error)) => match client.error(&error) {
            // Its challenges say more than it does.
            AcmeError::Refused { .. } if matches!(error, instant_acme::Error::Api(_)) => {
                refused(order).await
            }
            error => error,
        },
        _ => return Ok(()),
    };
    Err(match refused {
        AcmeError::Refused { cause, retry_after } if !silent.is_empty() => AcmeError::Refused {
            cause: format!(
                "{cause}; not every edge answers: {}, upgrade `platform` there, or see that it runs",
                silent.join(", ")
            ),
            retry_after,
        },
        other => other,
    }
    .into())
}

/// Has the answers to an order's challenges ready, and tells the authority to look. Gives the edges that do not answer.
async fn prepare(
    app: &App,
    client: &AuthorityClient,
    config: &Config,
    order: &mut Order,
    name: &str,
    answering: &mut Answering<'_>,
    records: &mut Vec<(PathBuf, TxtRecord)>,
) -> Result<Vec<String>, OrderError> {
    let failures = app.acme.record(name).failures;
    let mut silent = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(|error| client.error(&error))?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let offered = authorization.challenges.iter();
        let offered: Vec<ChallengeType> = offered.map(|one| one.r#type.clone()).collect();
        let is_wildcard = name.starts_with("*.");
        let kind = choose(
            config.challenge,
            is_wildcard,
            failures,
            &offered,
            app.acme.hook.is_some(),
        )
        .map_err(OrderError::NoChallenge)?;
        let Some(mut challenge) = authorization.challenge(kind.clone()) else {
            continue;
        };
        let authorized = challenge.key_authorization();
        if kind == ChallengeType::Dns01 {
            let Some(program) = app.acme.hook.clone() else {
                return Err(OrderError::NoChallenge(NO_HOOK.to_owned()));
            };
            let record = TxtRecord {
                domain: name.trim_start_matches("*.").to_owned(),
                value: authorized.dns_value(),
            };
            records.push((program.clone(), record.clone()));
            hook::call(&program, Action::Present, &record).await?;
        } else {
            let is_http = kind == ChallengeType::Http01;
            let published = app.acme.challenges.publish(Challenge {
                host: name.to_owned(),
                http: is_http.then(|| HttpChallenge {
                    token: challenge.token.clone(),
                    key_authorization: authorized.as_str().to_owned(),
                }),
                tls_alpn: (!is_http).then(|| hex(authorized.digest().as_ref())),
            });
            let counter = published.counter;
            answering.published.push(published);
            app.topics.notify(std::iter::once(Topic::Challenges));
            silent = until_edges_answer(app, counter).await?;
        }
        if challenge.status == ChallengeStatus::Pending {
            let ready = challenge.set_ready().await;
            ready.map_err(|error| client.error(&error))?;
        }
    }
    Ok(silent)
}

const NO_HOOK: &str = "DNS-01 needs a hook: start the server with `--acme-dns-hook`";

/// Which kind of challenge is answered. In turn after each failure: one port may be closed to the internet, and the other not.
fn choose(
    preference: ChallengePreference,
    is_wildcard: bool,
    failures: u32,
    offered: &[ChallengeType],
    has_hook: bool,
) -> Result<ChallengeType, String> {
    use ChallengeType::{Dns01, Http01, TlsAlpn01};
    let wanted = match preference {
        _ if is_wildcard => vec![Dns01],
        ChallengePreference::Http01 => vec![Http01],
        ChallengePreference::TlsAlpn01 => vec![TlsAlpn01],
        ChallengePreference::Dns01 => vec![Dns01],
        ChallengePreference::Auto if failures.is_multiple_of(2) => vec![Http01, TlsAlpn01, Dns01],
        ChallengePreference::Auto => vec![TlsAlpn01, Http01, Dns01],
    };
    let needs_hook = wanted == [Dns01];
    if needs_hook && !has_hook {
        return Err(NO_HOOK.to_owned());
    }
    let usable = wanted.into_iter().filter(|kind| *kind != Dns01 || has_hook);
    let found = usable.into_iter().find(|kind| offered.contains(kind));
    found.ok_or_else(|| format!("the authority offers {offered:?}"))
}

/// The edges that are there: those that may do what edges do, and called lately.
fn edges_there(app: &App, at: Timestamp) -> Vec<(EdgeId, String)> {
    let published = Arc::clone(&app.published.borrow());
    let edges = published.cluster.edges.iter();
    let approved =
        edges.filter(|(_, edge)| edge.identity.approval == api::member::Approval::Approved);
    approved
        .filter(|(id, _)| {
            let seen_at = app.members.seen_at(Member::Edge(**id));
            seen_at.is_some_and(|seen_at| at.millis_since(seen_at) <= ACME_EDGE_SILENCE_MS)
        })
        .map(|(id, edge)| (*id, edge.name.clone()))
        .collect()
}

/// Whether every edge of the cluster has called in this term.
pub(crate) fn has_heard_all_edges(app: &App) -> bool {
    let published = Arc::clone(&app.published.borrow());
    let mut edges = published.cluster.edges.iter();
    edges.all(|(id, edge)| {
        edge.identity.approval != api::member::Approval::Approved
            || app.acme.challenges.answers_of(*id).is_some()
    })
}

/// Whether an edge with a port for HTTPS is there, which answers challenges.
pub(crate) fn has_edge(app: &App) -> bool {
    edges_there(app, now()).iter().any(|(id, _)| {
        let answers = app.acme.challenges.answers_of(*id);
        answers.is_some_and(|answers| answers.has_https)
    })
}

/// Waits until every edge that is there answers by the table of this counter, within bounds. Gives those that do not.
async fn until_edges_answer(app: &App, counter: u64) -> Result<Vec<String>, OrderError> {
    let deadline = Instant::now() + ACME_EDGE_TIMEOUT;
    loop {
        let changed = app.acme.challenges.answered.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let there = edges_there(app, now());
        let is_late = Instant::now() >= deadline;
        let of_before = app.acme.began.elapsed() >= ACME_OLD_EDGE_AFTER;
        let (mut silent, mut awaited, mut answering) = (BTreeSet::new(), 0, 0);
        for (id, name) in there {
            match app.acme.challenges.answers_of(id) {
                Some(answers) if answers.counter >= counter => answering += 1,
                // It never asked: it does not know how.
                None if of_before => drop(silent.insert(name)),
                _ => {
                    awaited += 1;
                    silent.insert(name);
                }
            }
        }
        if awaited == 0 || is_late {
            if answering == 0 {
                return Err(OrderError::NoEdge);
            }
            return Ok(silent.into_iter().collect());
        }
        let look = deadline.min(Instant::now() + Duration::from_secs(1));
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(look) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn challenges_have_their_turn_and_wildcards_need_the_dns() {
        use ChallengeType::{Dns01, Http01, TlsAlpn01};
        let all = [Http01, TlsAlpn01, Dns01];
        let auto = |failures, offered: &[ChallengeType], has_hook| {
            choose(
                ChallengePreference::Auto,
                false,
                failures,
                offered,
                has_hook,
            )
        };
        assert_eq!(auto(0, &all, false), Ok(Http01));
        assert_eq!(auto(1, &all, true), Ok(TlsAlpn01));
        assert_eq!(auto(2, &all, true), Ok(Http01));
        assert_eq!(auto(1, &[Http01], true), Ok(Http01));
        assert_eq!(auto(0, &[Dns01], true), Ok(Dns01));
        assert!(auto(0, &[Dns01], false).unwrap_err().contains("offers"));
        let of =
            |preference, is_wildcard, has_hook| choose(preference, is_wildcard, 0, &all, has_hook);
        assert_eq!(
            of(ChallengePreference::TlsAlpn01, false, true),
            Ok(TlsAlpn01)
        );
        assert_eq!(of(ChallengePreference::Http01, true, true), Ok(Dns01));
        assert_eq!(of(ChallengePreference::Dns01, false, true), Ok(Dns01));
        for is_wildcard in [true, false] {
            let error = of(ChallengePreference::Dns01, is_wildcard, false).unwrap_err();
            assert!(error.contains("--acme-dns-hook"), "{error}");
        }
    }

    #[test]
    fn a_certificate_for_other_names_or_another_time_is_not_what_was_ordered() {
        let day = 86_400_000;
        let now = Timestamp(1_796_000_000_000);
        let refused = |hosts: &[&str], from: u64, to: u64| {
            let says = HostCertificate {
                hosts: hosts.iter().map(ToString::to_string).collect(),
                issuer: "an authority".to_owned(),
                not_before: Timestamp(from),
                not_after: Timestamp(to),
            };
            not_what_was_ordered(&says, "a.example.com", now)
        };
        let (before, after) = (now.0 - day, now.0 + day);
        assert_eq!(refused(&["a.example.com"], before, after), None);
        for (hosts, from, to, said) in [
            (
                &["a.example.com", "*.example.com"][..],
                before,
                after,
                "it is for a.example.com, *.example.com, and one for a.example.com was ordered",
            ),
            (
                &["b.example.com"],
                before,
                after,
                "it is for b.example.com, and one for a.example.com was ordered",
            ),
            (
                &["a.example.com"],
                before - day,
                before,
                "it ended at 2026-11-29T00:53:20Z",
            ),
            (
                &["a.example.com"],
                after,
                after + day,
                "it is valid from 2026-12-01T00:53:20Z on: is one of the clocks wrong, the server's or the authority's?",
            ),
        ] {
            assert_eq!(refused(hosts, from, to).as_deref(), Some(said));
        }
    }
}

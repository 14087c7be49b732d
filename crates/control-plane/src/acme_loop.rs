//! Orders certificates by ACME while this server leads: what is due by `scheduler::acme`, a bounded number at a time.
//!
//! It looks again when routes, certificates or settings change, when an order ends, and when something is due. What concerns no name (an authority that
//! cannot be reached, its rate limit, no edge that answers) holds all orders up for a while, and is told as `waits` of the status.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use api::acme::{MAX_ACME_NAMES_LISTED, ORDERS_PER_HOUR};
use api::event::{Actor, Event, EventKind};
use identity::HostCertificate;
use metrics::Outcome;
use model::{Incarnation, Timestamp, route_name};
use scheduler::acme::{
    AcmeFailure, MAX_FAILURE_BYTES, OrderRate, Step, SuggestedRenewal, retry_delay_ms,
};
use tokio::task::JoinSet;

use crate::acme::authority::AcmeError;
use crate::acme_order::{
    OrderError, client, has_edge, has_heard_all_edges, identifier, open_account, order,
};
use crate::certificate_loop::record_event;
use crate::certificates::{lifetime, shown_name};
use crate::clock::now;
use crate::limits::{
    ACME_FIRST_PAUSE_MS, ACME_LOOK_INTERVAL, ACME_NONCE_PAUSE_MS, ACME_ORDER_TIMEOUT, ACME_SETTLE,
    MAX_ACME_ALL_PAUSE_MS, MAX_ACME_ORDERS, MAX_RENEWAL_LOOK_MS, MIN_RENEWAL_LOOK_MS,
    RENEWAL_SPREAD_MS,
};
use crate::state::{App, Topic};

/// How long what is due and cannot be done yet waits for another look, where nothing wakes it before.
const HELD_UP: Duration = Duration::from_secs(2);

/// What came of a step.
enum Done {
    Ordered {
        renews: bool,
        result: Result<HostCertificate, OrderError>,
    },
    Asked(Result<Option<Window>, OrderError>),
}

/// When an authority wants a certificate to be renewed (RFC 9773, 4.2).
struct Window {
    begin: Timestamp,
    end: Timestamp,
    /// When it is to be asked again, in milliseconds.
    again_ms: u64,
}

/// What the task has between two looks.
struct Driver {
    /// The table of routes that was looked at last.
    routes: Option<(Incarnation, u64)>,
    rate: OrderRate,
    /// Why no order begins for a while, and until when.
    pause: Option<Pause>,
    /// Pauses since the last order that came to its end.
    pauses: u32,
    /// What runs, and since when.
    running: JoinSet<(String, Instant, Done)>,
}

/// What holds up all orders.
#[derive(Debug)]
struct Pause {
    since: Instant,
    until: Timestamp,
    cause: String,
}

/// Orders certificates until the term ends.
pub(crate) async fn run(app: App) {
    let per_hour = app
        .acme
        .config()
        .map_or(ORDERS_PER_HOUR, |config| config.orders_per_hour);
    let mut driver = Driver {
        routes: None,
        rate: OrderRate::new(per_hour, now()),
        pause: None,
        pauses: 0,
        running: JoinSet::new(),
    };
    loop {
        // What changes while it looks wakes it.
        let (routes, certificates) = (
            app.topics.subscribe(Topic::Routes),
            app.topics.subscribe(Topic::Certificates),
        );
        let mut routes = pin!(routes.notified());
        let mut certificates = pin!(certificates.notified());
        let mut answered = pin!(app.acme.challenges.answered.notified());
        routes.as_mut().enable();
        certificates.as_mut().enable();
        answered.as_mut().enable();
        let sleep = driver.look(&app).await;
        tokio::select! {
            () = app.shutdown.cancelled() => break,
            () = routes => {}
            () = certificates => {}
            () = app.acme.wake.notified() => {}
            () = answered, if app.acme.names().waits.is_some() => {}
            Some(done) = driver.running.join_next(), if !driver.running.is_empty() => {
                match done {
                    Ok((name, since, done)) => driver.done(&app, name, since, done).await,
                    Err(error) => tracing::error!(%error, "an order of a certificate panicked"),
                }
            }
            () = tokio::time::sleep(sleep) => {}
        }
    }
    // Another leader goes on with what is under way.
    driver.running.abort_all();
    while driver.running.join_next().await.is_some() {}
    app.metrics.set_acme_names([0; 3]);
}

impl Driver {
    /// Begins what is due. Gives how long nothing more will be.
    async fn look(&mut self, app: &App) -> Duration {
        self.follow(app);
        let mut waits = None;
        let mut sleep = ACME_LOOK_INTERVAL;
        loop {
            let at = now();
            let next = {
                let names = app.acme.names();
                let due = names.plan.due(at, &names.busy);
                let due = due.map(|(name, step)| (name.to_owned(), step));
                if due.is_none()
                    && let Some(next) = names.plan.next_at(&names.busy)
                {
                    sleep = sleep.min(Duration::from_millis(next.millis_since(at)));
                }
                due
            };
            let Some((name, step)) = next else { break };
            match step {
                Step::Supersede => {
                    app.certificates.supersede_acme(&name).await;
                    tracing::info!(
                        name,
                        "edges have the certificate by ACME no more: an operator's is there"
                    );
                    app.acme.names().plan.set_superseded(&name, true, now());
                    app.topics.notify(std::iter::once(Topic::Certificates));
                }
                Step::Restore => {
                    app.certificates.restore_acme(&name).await;
                    tracing::info!(name, "edges have the certificate by ACME again");
                    app.acme.names().plan.set_superseded(&name, false, now());
                    app.topics.notify(std::iter::once(Topic::Certificates));
                }
                Step::Lapse => {
                    if !remove(app, &name).await {
                        sleep = HELD_UP;
                        break;
                    }
                }
                Step::DeleteRecord => {
                    if let Err(error) = app.acme.delete_record(&name).await {
                        tracing::warn!(name, error = %display::chain(&error), "a name is not forgotten yet");
                        sleep = HELD_UP;
                        break;
                    }
                }
                Step::Order { .. } | Step::AskRenewal => {
                    if let Err((why, wait)) = self.may_begin(app, &name, step, at) {
                        waits = why;
                        sleep = wait.max(Duration::from_millis(10)).min(ACME_LOOK_INTERVAL);
                        break;
                    }
                    self.begin(app, name, step);
                }
            }
        }
        let counts = {
            let mut names = app.acme.names();
            names.waits = waits;
            names.plan.counts(now())
        };
        app.metrics
            .set_acme_names([counts.wanted, counts.missing, counts.failing]);
        sleep
    }

    /// Whether an order may begin; else why not, where that is worth to be told, and how long not.
    fn may_begin(
        &mut self,
        app: &App,
        name: &str,
        step: Step,
        at: Timestamp,
    ) -> Result<(), (Option<String>, Duration)> {
        if self.running.len() >= MAX_ACME_ORDERS {
            return Err((None, ACME_LOOK_INTERVAL));
        }
        if let Some(pause) = self.pause.as_ref().filter(|pause| at < pause.until) {
            let left = Duration::from_millis(pause.until.millis_since(at));
            let waits = format!(
                "{}; orders go on in {} s, or by `platform certificates acme retry NAME`",
                pause.cause,
                left.as_secs() + 1
            );
            return Err((Some(waits), left));
        }
        if step == Step::AskRenewal {
            return Ok(());
        }
        let since = app.acme.began.elapsed();
        if since < ACME_SETTLE && !has_heard_all_edges(app) {
            let waits = "this server began to lead a moment ago, and waits for the edges";
            return Err((Some(waits.to_owned()), HELD_UP));
        }
        if !has_edge(app) {
            let waits = "no edge with a port for HTTPS is there that answers challenges: see `platform edges`, and give one `--listen-tls`";
            return Err((Some(waits.to_owned()), HELD_UP));
        }
        let is_under_way = app.acme.record(name).order.is_some();
        if is_under_way {
            return Ok(());
        }
        self.rate.take(at).map_err(|next| {
            let left = Duration::from_millis(next.millis_since(at));
            let waits =
                "more orders would begin in an hour than may; they begin one after the other";
            (Some(waits.to_owned()), left)
        })
    }

    fn begin(&mut self, app: &App, name: String, step: Step) {
        app.acme.names().busy.insert(name.clone());
        let app = app.clone();
        let since = Instant::now();
        self.running.spawn(async move {
            let done = match step {
                Step::Order { renews } => {
                    let ordered = order(&app, &name, renews);
                    let ordered = tokio::time::timeout(ACME_ORDER_TIMEOUT, ordered).await;
                    let result = ordered.unwrap_or_else(|_| {
                        Err(OrderError::Authority(AcmeError::Refused {
                            cause: format!(
                                "the order was not done within {} s",
                                ACME_ORDER_TIMEOUT.as_secs()
                            ),
                            retry_after: None,
                        }))
                    });
                    Done::Ordered { renews, result }
                }
                _ => Done::Asked(ask_renewal(&app, &name).await),
            };
            (name, since, done)
        });
    }

    /// Takes notice of what changed: routes, certificates and settings.
    fn follow(&mut self, app: &App) {
        let published = std::sync::Arc::clone(&app.published.borrow());
        let (incarnation, index) = (published.cluster.incarnation, &published.routes);
        let config = app.acme.config();
        let at = now();
        let mut names = app.acme.names();
        if std::mem::take(&mut names.tries_now) {
            (self.pause, self.pauses) = (None, 0);
        }
        let plan = &mut names.plan;
        if let Some(config) = &config {
            self.rate.set_per_hour(config.orders_per_hour);
        }
        plan.set_policy(config.and_then(|config| config.policy()), at);
        let is_begin = self.routes.is_none();
        let current = (incarnation, index.counter());
        if self.routes != Some(current) {
            let known = self.routes.filter(|(of, _)| *of == incarnation);
            let changed = known.and_then(|(_, counter)| index.since(incarnation, counter));
            let hosts: Vec<String> = match changed {
                Some(changed) => {
                    let routed = changed.routes.into_keys();
                    routed.chain(changed.removed).collect()
                }
                // All of them, and those that were routed before.
                None => {
                    let before = plan.routed().map(str::to_owned);
                    before
                        .chain(index.whole(incarnation).routes.into_keys())
                        .collect()
                }
            };
            for host in hosts {
                // Of a TCP route for one host, that host; of others none.
                let host = match route_name::tls(&host) {
                    Some((named, _)) => named,
                    None => host.as_str(),
                };
                plan.set_routed(host, index.is_served(host), at);
            }
            self.routes = Some(current);
        }
        for name in app.certificates.take_changes() {
            // Both may be there for a host: this looks at both.
            let name = shown_name(&name).to_owned();
            let by_acme = app.certificates.known_acme(&name);
            let by_acme = by_acme.map(|known| lifetime(&known.says));
            let by_operator = app.certificates.known(&name);
            let by_operator = by_operator.map(|known| (known.says.hosts, known.says.not_after));
            let is_new = by_acme.is_some() && plan.lifetime(&name) != by_acme;
            plan.set_certificate(&name, by_acme, at);
            if is_new {
                // A leader that begins does not ask about thousands at once.
                let spread = if is_begin { RENEWAL_SPREAD_MS } else { 1 };
                let asks_at = Timestamp(at.0.saturating_add(random() % spread));
                plan.set_asks_at(&name, Some(asks_at), at);
            }
            let by_operator = by_operator.as_ref();
            let by_operator = by_operator.map(|(hosts, end)| (hosts.as_slice(), *end));
            plan.set_operators(&name, by_operator, at);
        }
    }

    async fn done(&mut self, app: &App, name: String, since: Instant, done: Done) {
        app.acme.names().busy.remove(&name);
        match done {
            Done::Asked(result) => asked(app, &name, result).await,
            Done::Ordered { renews, result } => {
                let outcome = if result.is_ok() {
                    Outcome::Success
                } else {
                    Outcome::Failure
                };
                match result {
                    Ok(says) => {
                        app.metrics.acme_ordered(outcome);
                        // What holds up others, such as a limit of the authority, goes on: this one was under way before.
                        self.pauses = 0;
                        let word = if renews { "renewed" } else { "issued" };
                        tracing::info!(
                            name,
                            issuer = says.issuer,
                            "a certificate was {word} by ACME"
                        );
                        let days = says.not_after.millis_since(now()) / (24 * 60 * 60 * 1000);
                        let message =
                            format!("{name}: {word} by {}, ends in {days} days", says.issuer);
                        record_event_of(app, &name, EventKind::CertificateIssued, message).await;
                    }
                    Err(error) => self.failed(app, &name, since, error, outcome).await,
                }
            }
        }
    }

    async fn failed(
        &mut self,
        app: &App,
        name: &str,
        since: Instant,
        error: OrderError,
        outcome: Outcome,
    ) {
        let cause = display::one_line(&display::chain(&error), MAX_FAILURE_BYTES);
        let at = now();
        let asked_ms = |pause: Option<Duration>| {
            pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
        };
        // What is no name's fault holds up all, and no name waits the longer for it.
        let (all, of_name) = match &error {
            OrderError::Off => return,
            OrderError::NoEdge | OrderError::Kept(_) | OrderError::Key(_) => (Some(None), None),
            OrderError::Authority(AcmeError::Away { retry_after, .. }) => {
                (Some(asked_ms(*retry_after)), None)
            }
            OrderError::Authority(
                AcmeError::Nonce(_)
                | AcmeError::Account(_)
                | AcmeError::NoAccount
                | AcmeError::Clock(_),
            ) => (Some(None), None),
            // It may be of the account, or of the domain alone.
            OrderError::Authority(AcmeError::RateLimited { retry_after, .. }) => {
                (Some(None), Some(asked_ms(*retry_after)))
            }
            OrderError::Authority(AcmeError::Refused { retry_after, .. }) => {
                (None, Some(asked_ms(*retry_after)))
            }
            _ => (None, Some(None)),
        };
        if let Some(asked) = all {
            let first = match &error {
                OrderError::Authority(AcmeError::Nonce(_)) => ACME_NONCE_PAUSE_MS,
                _ => ACME_FIRST_PAUSE_MS,
            };
            let asked = asked.unwrap_or(0);
            // Orders that were under way when this one's pause began failed by the same: it is counted once.
            let is_same = self.pause.as_ref().is_some_and(|pause| since < pause.since);
            if is_same && let Some(pause) = &mut self.pause {
                let asked = Timestamp(at.0.saturating_add(asked.min(MAX_ACME_ALL_PAUSE_MS)));
                pause.until = pause.until.max(asked);
            } else {
                let doubled = first << self.pauses.min(12);
                let pause = doubled.max(asked).min(MAX_ACME_ALL_PAUSE_MS);
                self.pauses += 1;
                self.pause = Some(Pause {
                    since: Instant::now(),
                    until: Timestamp(at.0.saturating_add(pause)),
                    cause: cause.clone(),
                });
                tracing::warn!(
                    name,
                    cause,
                    "no certificate is ordered for {} s",
                    pause / 1000
                );
                if self.pauses == 1 {
                    let message = format!("no certificate is ordered for a while: {cause}");
                    let event =
                        Event::new(at, Actor::Server, EventKind::CertificateFailed, message);
                    record_event(app, event).await;
                }
            }
        }
        app.metrics.acme_ordered(outcome);
        let Some(asked) = of_name else { return };
        let mut record = app.acme.record(name);
        record.failures = record.failures.saturating_add(1);
        let delay = retry_delay_ms(record.failures, asked, random());
        record.not_before = Timestamp(at.0.saturating_add(delay));
        record.failure = Some(AcmeFailure {
            at,
            message: cause.clone(),
        });
        // An order that was refused is over.
        record.order = None;
        let minutes = delay / 60_000;
        tracing::warn!(
            name,
            cause,
            minutes,
            "no certificate by ACME; it is tried again"
        );
        let message = format!("{name}: {cause}; it is tried again in {minutes} min");
        if let Err(error) = app.acme.remember(name, record, None).await {
            let cause = display::chain(&error);
            tracing::warn!(name, cause, "how an order failed is not remembered");
        }
        record_event_of(app, name, EventKind::CertificateFailed, message).await;
    }
}

/// Writes an event of a name, and of the env that it is routed to.
async fn record_event_of(app: &App, name: &str, kind: EventKind, message: String) {
    let mut event = Event::new(now(), Actor::Server, kind, message);
    {
        let published = std::sync::Arc::clone(&app.published.borrow());
        if let Some(route) = published.routes.route(name) {
            let owner = published.cluster.access.owner(&route.env.app);
            event.org = owner.cloned();
            event.app = Some(route.env.app.clone());
            event.env = Some(route.env.env.clone());
            event.process = Some(route.process.clone());
        }
    }
    record_event(app, event).await;
}

/// Removes a certificate that has ended. Whether the store did.
async fn remove(app: &App, name: &str) -> bool {
    match app.certificates.remove_acme(name).await {
        Ok(_) => {
            tracing::info!(
                name,
                "the certificate by ACME is removed: it has ended, and is not wanted"
            );
            app.topics.notify(std::iter::once(Topic::Certificates));
            app.acme.names().plan.set_certificate(name, None, now());
            true
        }
        Err(error) => {
            tracing::warn!(name, error = %display::chain(&error), "a certificate is not removed yet");
            false
        }
    }
}

/// Asks the authority when a certificate is to be renewed; `None`: it does not say, or knows none of it.
async fn ask_renewal(app: &App, name: &str) -> Result<Option<Window>, OrderError> {
    let config = app.acme.config_if_on().ok_or(OrderError::Off)?;
    let (Some(known), Some(chain)) = (config.account(), app.certificates.acme_chain_pem(name))
    else {
        return Ok(None);
    };
    let Some(id) = identifier(&chain) else {
        return Ok(None);
    };
    let client = client(&config)?;
    let account = open_account(&client, known).await?;
    match account.renewal_info(&id).await {
        Ok((info, again)) => {
            let millis =
                |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
            let window = &info.suggested_window;
            Ok(Some(Window {
                begin: millis(window.start.unix_timestamp()),
                end: millis(window.end.unix_timestamp()),
                again_ms: u64::try_from(again.as_millis()).unwrap_or(u64::MAX),
            }))
        }
        Err(instant_acme::Error::Unsupported(_)) => Ok(None),
        Err(error) => Err(client.error(&error).into()),
    }
}

/// Keeps when a certificate is to be renewed.
async fn asked(app: &App, name: &str, result: Result<Option<Window>, OrderError>) {
    let at = now();
    let again = |ms: u64| Some(Timestamp(at.0.saturating_add(ms)));
    let window = match result {
        Ok(Some(window)) => window,
        Ok(None) => {
            app.acme.names().plan.set_asks_at(name, None, at);
            return;
        }
        Err(error) => {
            tracing::debug!(name, %error, "the authority does not say when to renew a certificate");
            let at_last = again(MAX_RENEWAL_LOOK_MS / 4);
            app.acme.names().plan.set_asks_at(name, at_last, at);
            return;
        }
    };
    let again_ms = window
        .again_ms
        .clamp(MIN_RENEWAL_LOOK_MS, MAX_RENEWAL_LOOK_MS);
    let Some(life) = app.acme.names().plan.lifetime(name) else {
        return;
    };
    let mut record = app.acme.record(name);
    let within = window.begin..=window.end;
    let chosen = record.renewal.filter(|known| known.of == life.not_after);
    // A time that was chosen stays, as long as the window has it (RFC 9773, 4.2).
    if chosen.is_none_or(|chosen| !within.contains(&chosen.at)) {
        let width = window.end.millis_since(window.begin);
        let offset = random() % width.saturating_add(1).max(1);
        record.renewal = Some(SuggestedRenewal {
            of: life.not_after,
            at: Timestamp(window.begin.0.saturating_add(offset)),
        });
        let key = app.acme.order_key(name);
        if let Err(error) = app.acme.remember(name, record, key.as_deref()).await {
            let cause = display::chain(&error);
            tracing::warn!(name, cause, "when to renew a certificate is not remembered");
        }
    }
    app.acme.names().plan.set_asks_at(name, again(again_ms), at);
}

/// A number that nobody can guess; without randomness, one that is good enough to spread what fails together.
fn random() -> u64 {
    identity::random("a pause").map_or(now().0, u64::from_le_bytes)
}

/// The names that an env is told of, in bounds.
pub(crate) fn failures_of<'h>(
    app: &App,
    hosts: impl Iterator<Item = &'h String>,
) -> Vec<api::acme::AcmeNameRow> {
    // Of a TCP route for one host, that host.
    let hosts = hosts.map(|name| route_name::tls(name).map_or(name.as_str(), |(host, _)| host));
    let hosts: BTreeSet<&str> = hosts.take(MAX_ACME_NAMES_LISTED).collect();
    hosts
        .into_iter()
        .filter_map(|host| app.acme.failure_of(host))
        .collect()
}

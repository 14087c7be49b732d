//! Why something is as it is: `platform why`.

use std::sync::Arc;

use ::api::event::Event;
use ::api::user::Role;
use ::api::why::{MAX_WHY_EVENTS, MAX_WHY_SUBJECT_BYTES, Why, WhyQuery, WhySubject};
use axum::Json;
use axum::extract::State;
use model::{AppName, EnvKey, EnvName, InstanceId, NodeId, ProcessName, Timestamp};
use scheduler::cluster_state::ClusterState;
use scheduler::why;
use store::EventFilter;

use super::events::seen_by;
use super::extract::Params;
use crate::access::{Anyone, User};
use crate::acme_loop::failures_of;
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::state::{App, Published};

/// The story of an instance, a process type or a node.
pub(crate) async fn why(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<WhyQuery>,
) -> Result<Json<Why>, ApiFailure> {
    if query.subject.len() > MAX_WHY_SUBJECT_BYTES {
        return Err(ApiFailure::refused(
            "subject_too_long",
            format!("a subject has at most {MAX_WHY_SUBJECT_BYTES} bytes"),
        ));
    }
    let published = Arc::clone(&app.published.borrow());
    let cluster = &published.cluster;
    let found = find(cluster, &query, user.grants.cluster.is_some())?;
    let (told, of) = match &found {
        Found::Instance(id) => {
            let of = EventFilter {
                instance: Some(*id),
                ..EventFilter::default()
            };
            let told = of_instance(cluster, &user, *id);
            // What is there, of an app that is another org's by now, is not told of by what happened before.
            let is_known = cluster.instances.contains_key(id) || cluster.ended.contains_key(id);
            if told.is_none() && is_known {
                return Err(nothing(&query.subject));
            }
            (told, of)
        }
        Found::Process(key, process) => {
            let of = EventFilter {
                app: Some(key.app.clone()),
                env: Some(key.env.clone()),
                process: Some(process.clone()),
                ..EventFilter::default()
            };
            let told = of_process(&published, &user, key, process);
            let mut told = told.ok_or_else(|| no_process(key, process))?;
            add_certificates(&app, &published, key, process, &mut told);
            (Some(told), of)
        }
        Found::Node(id) => {
            user.check_cluster(Role::Viewer)?;
            let of = EventFilter {
                node: Some(*id),
                ..EventFilter::default()
            };
            let seen_at = app.presence.seen_at(*id);
            let node = cluster.nodes.get(id);
            let told =
                node.map(|node| why::node(cluster, *id, node, node.seen_at.max(seen_at), &rfc3339));
            (told, of)
        }
    };
    let filter = EventFilter {
        orgs: seen_by(&user),
        limit: MAX_WHY_EVENTS,
        ..of
    };
    let events = app.store.events(&filter).await?;
    match told {
        Some(told) => Ok(Json(Why { events, ..told })),
        None => by_events(&found, events)
            .map(Json)
            .ok_or_else(|| nothing(&query.subject)),
    }
}

/// What a subject names.
enum Found {
    Instance(InstanceId),
    Process(EnvKey, ProcessName),
    Node(NodeId),
}

/// `sees_nodes`: whether the caller may know which names nodes have.
fn find(cluster: &ClusterState, query: &WhyQuery, sees_nodes: bool) -> Result<Found, ApiFailure> {
    let subject = query.subject.as_str();
    let unknown = || nothing(subject);
    let in_env = match (&query.app, &query.env) {
        (Some(app), Some(env)) => Some(EnvKey {
            app: app.clone(),
            env: env.clone(),
        }),
        _ => None,
    };
    if subject.contains('/') {
        let parts: Vec<_> = subject.split('/').collect();
        let [app, env, process] = parts.as_slice() else {
            return Err(unknown());
        };
        let app: AppName = app.parse().map_err(|_| unknown())?;
        let env: EnvName = env.parse().map_err(|_| unknown())?;
        let process = process.parse().map_err(|_| unknown())?;
        return Ok(Found::Process(EnvKey { app, env }, process));
    }
    // A name that both a process type and something else have is the process type's of the env at hand.
    if let (Some(key), Ok(process)) = (&in_env, subject.parse::<ProcessName>())
        && has_process(cluster, key, &process)
    {
        return Ok(Found::Process(key.clone(), process));
    }
    if let Ok(id) = subject.parse::<NodeId>() {
        return Ok(Found::Node(id));
    }
    let by_name = (cluster.nodes.iter()).find(|(_, node)| node.name == subject);
    if let Some((id, _)) = by_name.filter(|_| sees_nodes) {
        return Ok(Found::Node(*id));
    }
    if let Ok(id) = subject.parse::<InstanceId>() {
        return Ok(Found::Instance(id));
    }
    match (in_env, subject.parse()) {
        (Some(key), Ok(process)) => Err(no_process(&key, &process)),
        _ => Err(unknown()),
    }
}

fn has_process(cluster: &ClusterState, key: &EnvKey, process: &ProcessName) -> bool {
    let Some(env) = cluster.envs.get(key) else {
        return false;
    };
    let mut releases = env.releases.values();
    releases.any(|release| release.manifest.processes.contains_key(process))
}

fn of_instance(cluster: &ClusterState, user: &User, id: InstanceId) -> Option<Why> {
    let sees = |key: &EnvKey| user.sees_app(&cluster.access, &key.app);
    if let Some(instance) = cluster.instances.get(&id) {
        let told = || why::instance(cluster, instance, now(), &rfc3339);
        return sees(&instance.spec.env_key()).then(told);
    }
    let ended = cluster.ended.get(&id)?;
    let told = || why::ended(cluster, id, ended, &rfc3339);
    sees(&ended.env).then(told)
}

fn of_process(
    published: &Published,
    user: &User,
    key: &EnvKey,
    process: &ProcessName,
) -> Option<Why> {
    let cluster = &published.cluster;
    if !user.sees_app(&cluster.access, &key.app) {
        return None;
    }
    let findings = published.findings.get(key);
    let findings = findings.map_or(&[][..], Vec::as_slice);
    why::process(cluster, findings, key, process, &rfc3339)
}

/// Hosts of a process type whose certificates could not be had, of which the reasons name as many.
const MAX_WHY_HOSTS: usize = 5;

/// Why hosts of a process type have no certificate by ACME, or not the next one.
fn add_certificates(
    app: &App,
    published: &Published,
    key: &EnvKey,
    process: &ProcessName,
    told: &mut Why,
) {
    let hosts = published.routes.hosts_of(key).filter(|host| {
        let route = published.routes.route(host);
        route.is_some_and(|route| route.env == *key && route.process == *process)
    });
    for row in failures_of(app, hosts).into_iter().take(MAX_WHY_HOSTS) {
        let failure = row.failure.unwrap_or_default();
        told.reasons.push(format!(
            "{} has no certificate by ACME, or not the next one: {failure} ({} times)",
            row.name, row.failures
        ));
        told.next.push(match row.next_at {
            Some(at) => format!(
                "the certificate of {} is tried again at {}; `platform certificates acme retry {}` does so now",
                row.name,
                rfc3339(at),
                row.name
            ),
            None => format!("the certificate of {} is ordered just now", row.name),
        });
    }
}

/// What only events know of still: an instance whose record is kept no longer, or a node that was removed.
fn by_events(found: &Found, events: Vec<Event>) -> Option<Why> {
    let last = events.last()?;
    let subject = match found {
        Found::Instance(id) => WhySubject::Instance {
            id: *id,
            app: last.app.clone()?,
            env: last.env.clone()?,
            process: last.process.clone()?,
        },
        Found::Node(id) => WhySubject::Node {
            id: *id,
            name: id.to_string(),
        },
        Found::Process(..) => return None,
    };
    Some(Why {
        subject,
        state: "gone".to_owned(),
        reasons: vec![format!(
            "its record is kept no longer; the last that is known, at {}: {} {}",
            rfc3339(last.at),
            last.kind,
            last.message
        )],
        next: Vec::new(),
        release: None,
        node: None,
        instances: Vec::new(),
        events,
    })
}

/// 404 for a subject.
fn nothing(subject: &str) -> ApiFailure {
    let subject = display::one_line(subject, MAX_WHY_SUBJECT_BYTES);
    ApiFailure::not_found(
        "subject_not_found",
        format!("there is no instance, process type or node `{subject}`"),
    )
    .hint(
        "an instance is an id of `platform ps` or `platform ps --ended`; a process type is APP/ENV/PROCESS, or its name with --app; \
         a node is a name or an id of `platform nodes`",
    )
}

fn no_process(key: &EnvKey, process: &ProcessName) -> ApiFailure {
    ApiFailure::not_found(
        "process_not_found",
        format!("there is no process type {process} of {key}"),
    )
    .hint("`platform ps --app APP` lists what runs, and `platform envs` the envs")
}

/// A time for people: RFC 3339, in UTC.
fn rfc3339(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).ok();
    let time = millis.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    time.map_or_else(|| format!("{} ms", at.0), |time| format!("{time:.0}"))
}

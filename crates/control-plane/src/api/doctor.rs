//! `platform network doctor`: a user has the members measure the network between them, and gets what that means (ADR 0004).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use api::enrollment::Member;
use api::member::{Measurement, MeasurementRequest};
use api::user::{
    DiagnosedMember, DoctorRequest, MAX_DOCTOR_MEMBERS, MeasurementState, NetworkDiagnosis,
};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::NodeId;
use scheduler::cluster_state::ClusterState;
use scheduler::doctor::{Overview, Placed, findings, is_healthy, requests};
use scheduler::peers::number_of;

use super::extract::Body;
use super::members::certificate_expired;
use crate::access::ClusterAdmin;
use crate::callers::KnownCaller;
use crate::clock::now;
use crate::doctor::{Answer, Busy};
use crate::failure::ApiFailure;
use crate::limits::{
    MAX_DIAGNOSED_LINKS, MEASUREMENT_GRACE, MEASUREMENT_TIMEOUT, MEASURING_MEMBER_SILENCE_MS,
};
use crate::state::{App, Published, Topic};

/// A member says what it measured.
pub(crate) async fn answer(
    State(app): State<App>,
    caller: KnownCaller,
    Body(measurement): Body<Measurement>,
) -> Result<StatusCode, ApiFailure> {
    let answered_at = now();
    let member = caller.member;
    if !caller.is_current {
        return Err(certificate_expired(member));
    }
    if !measurement.is_within_bounds() {
        return Err(ApiFailure::refused(
            "too_many_links",
            "a member says more of its links than it has",
        ));
    }
    let published = std::sync::Arc::clone(&app.published.borrow());
    let number = number_of(&published.cluster, member);
    let topology = published.peers.topology();
    let peers = number
        .map(|number| topology.peers(number))
        .unwrap_or_default();
    let is_peer = |other: NodeId| peers.contains_key(&other);
    let run = measurement.run;
    if !app.doctor.answer(member, measurement, answered_at, is_peer) {
        return Err(ApiFailure::conflict(
            "not_waited_for",
            format!("nobody waits for what {member} measured in run {run}"),
        ));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A user has the members measure. Who may change the network may: it sends packets between all of them.
pub(crate) async fn run(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(request): Body<DoctorRequest>,
) -> Result<Json<NetworkDiagnosis>, ApiFailure> {
    let began = Instant::now();
    if request.members.len() > MAX_DOCTOR_MEMBERS {
        return Err(ApiFailure::refused(
            "too_many_members",
            format!(
                "{MAX_DOCTOR_MEMBERS} members are named at most; without a name all are measured"
            ),
        ));
    }
    let published = std::sync::Arc::clone(&app.published.borrow());
    let only = named(&published, &request.members)?;
    let wanted = wanted(&published, only.as_ref())?;
    // Those that call just now. The others are named.
    let is_late = |seen_at| now().millis_since(seen_at) >= MEASURING_MEMBER_SILENCE_MS;
    let is_there = |member: &Member| {
        let seen_at = app.members.measuring_since(*member);
        seen_at.is_some_and(|seen_at| !is_late(seen_at))
    };
    let too_old: BTreeSet<Member> = (wanted.keys().copied())
        .filter(|member| !app.members.does_measure(*member))
        .filter(|member| (app.members.seen_at(*member)).is_some_and(|seen_at| !is_late(seen_at)))
        .collect();
    let asked: BTreeMap<_, _> = (wanted.iter())
        .filter(|(member, _)| is_there(member))
        .map(|(member, request)| (*member, request.clone()))
        .collect();
    let run = wanted.values().next().map_or(0, |request| request.run);
    let running = app.doctor.begin(run, asked.clone()).map_err(busy)?;
    tracing::info!(user = %user.name, members = asked.len(), "the links between members are measured");
    let topics = asked.keys().map(|member| Topic::Member(*member));
    app.topics.notify(topics);
    tokio::select! {
        () = running.wait(MEASUREMENT_TIMEOUT + MEASUREMENT_GRACE) => {}
        () = app.shutdown.cancelled() => return Err(ApiFailure::stopping()),
    }
    let answers = running.answers();
    drop(running);
    Ok(Json(diagnosis(
        &published,
        wanted.keys(),
        &too_old,
        answers,
        began,
    )))
}

/// 409: another user measures.
fn busy(busy: Busy) -> ApiFailure {
    let left = (MEASUREMENT_TIMEOUT + MEASUREMENT_GRACE).saturating_sub(busy.since);
    let failure = ApiFailure::conflict(
        "doctor_runs",
        format!(
            "the network is measured already, since {} s: one measurement at a time, so that they do not disturb each other",
            busy.since.as_secs()
        ),
    );
    let left = left.max(std::time::Duration::from_secs(1));
    failure
        .hint(format!("try again in {} s", left.as_secs()))
        .retry_after(left)
}

/// The numbers of the members that a user names, by their ids or names; absent: none are named.
fn named(
    published: &Published,
    names: &BTreeSet<String>,
) -> Result<Option<BTreeSet<NodeId>>, ApiFailure> {
    if names.is_empty() {
        return Ok(None);
    }
    let cluster = &published.cluster;
    let mut numbers = BTreeSet::new();
    for name in names {
        let by_id = name.parse::<Member>().ok();
        let mut members = cluster.approved_members();
        let found = members
            .find(|member| by_id == Some(*member))
            .or_else(|| {
                let mut members = cluster.approved_members();
                members.find(|member| cluster.member_name(*member) == *name)
            })
            .ok_or_else(|| {
                ApiFailure::not_found("member_not_found", format!("there is no member `{name}`"))
                    .hint("`platform network` lists those there are")
            })?;
        let number = number_of(cluster, found).ok_or_else(|| {
            ApiFailure::conflict(
                "not_in_the_overlay",
                format!("{name} has no place in the overlay: it did not say how it is reached"),
            )
            .hint("upgrade `platform` on the machine, and see that its agent runs")
        })?;
        numbers.insert(number);
    }
    Ok(Some(numbers))
}

/// What each member of the overlay is to measure.
fn wanted(
    published: &Published,
    only: Option<&BTreeSet<NodeId>>,
) -> Result<BTreeMap<Member, MeasurementRequest>, ApiFailure> {
    let random = identity::random::<8>("a run's id");
    let random = random.map_err(|error| ApiFailure::internal(&error))?;
    let run = u64::from_le_bytes(random).max(1);
    let within = u64::try_from(MEASUREMENT_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let mode = published.cluster.settings.mode;
    let requests = requests(published.peers.topology(), mode, only, run, within);
    let cluster = &published.cluster;
    let of_members = requests.into_iter().filter_map(|(number, request)| {
        let member = published.peers.member_of(number)?;
        cluster.identity(member).map(|_| (member, request))
    });
    let of_members: BTreeMap<_, _> = of_members.collect();
    if of_members.is_empty() {
        let failure = ApiFailure::conflict(
            "nothing_to_measure",
            "there are no two members in the overlay, so no link to measure",
        );
        return Err(failure.hint("`platform network` lists the members; `platform tokens create` lets another machine join"));
    }
    Ok(of_members)
}

fn overview(published: &Published) -> Overview {
    let cluster: &ClusterState = &published.cluster;
    let topology = published.peers.topology();
    let placed = topology.members().filter_map(|number| {
        let member = published.peers.member_of(number)?;
        let underlay = match member {
            Member::Node(id) => cluster.nodes.get(&id)?.underlay,
            Member::Edge(id) => cluster.edges.get(&id)?.underlay,
        };
        let placed = Placed {
            member,
            name: cluster.member_name(member),
            endpoint: underlay.and_then(|underlay| underlay.endpoint),
            home: topology.home(number),
        };
        Some((number, placed))
    });
    Overview {
        prefix: cluster.settings.prefix,
        mtu: cluster.settings.mtu,
        placed: placed.collect(),
    }
}

fn diagnosis<'m>(
    published: &Published,
    wanted: impl Iterator<Item = &'m Member>,
    too_old: &BTreeSet<Member>,
    mut answers: BTreeMap<Member, Option<Answer>>,
    began: Instant,
) -> NetworkDiagnosis {
    let cluster = &published.cluster;
    let members = wanted.map(|member| {
        let nothing = DiagnosedMember {
            member: *member,
            name: cluster.member_name(*member),
            number: number_of(cluster, *member),
            state: if too_old.contains(member) {
                MeasurementState::TooOld
            } else {
                MeasurementState::NotAsked
            },
            failure: None,
            clock_ahead_ms: None,
            kernel: String::new(),
            carrier: None,
            links: BTreeMap::new(),
            relayed: BTreeMap::new(),
        };
        match answers.remove(member) {
            None => nothing,
            Some(None) => DiagnosedMember {
                state: MeasurementState::NoAnswer,
                ..nothing
            },
            Some(Some(answer)) => {
                let Answer {
                    measurement,
                    clock_ahead_ms,
                } = answer;
                let state = match measurement.failure {
                    None => MeasurementState::Measured,
                    Some(_) => MeasurementState::Failed,
                };
                DiagnosedMember {
                    state,
                    failure: measurement
                        .failure
                        .map(|text| display::one_line(&text, 512)),
                    clock_ahead_ms: Some(clock_ahead_ms),
                    kernel: display::one_line(&measurement.kernel, 128),
                    carrier: measurement.carrier,
                    links: measurement.links,
                    relayed: measurement.relayed,
                    ..nothing
                }
            }
        }
    });
    let mut members: Vec<_> = members.collect();
    let settings = &cluster.settings;
    let findings = findings(&overview(published), &members);
    let links: usize = members.iter().map(|member| member.links.len()).sum();
    if links > MAX_DIAGNOSED_LINKS {
        for member in &mut members {
            member
                .links
                .retain(|_, link| !is_healthy(link, settings.mtu));
        }
    }
    NetworkDiagnosis {
        mode: settings.mode,
        mtu: settings.mtu,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        members,
        findings,
    }
}

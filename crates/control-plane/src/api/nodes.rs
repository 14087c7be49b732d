//! The calls of nodes.

use std::sync::PoisonError;

use std::collections::BTreeSet;

use api::enrollment::Member;
use api::error_code;
use api::member::Approval;
use api::node::{InstanceReport, ReportAnswer, ReportDelta, StreamRefused, StreamRequest};
use api::user::{
    LabelsRequest, NodeOrgRequest, RemoveNodeQuery, Scheduling, SchedulingRequest,
    StopUnknownRequest, StopUnknownResponse,
};
use axum::Json;
use axum::body::{Body as HttpBody, to_bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use model::instance::InstanceState;
use model::{InstanceId, NodeId};
use scheduler::apply::{Command, MAX_NODE_LABELS};
use scheduler::cluster_state::{ClusterState, Instance, Node};
use scheduler::desired::newer_state;
use scheduler::heartbeats::heartbeat_interval;
use scheduler::peers::{HUB_LABEL, HUB_LABEL_VALUES};

use super::calls::{Upgrade, switching};
use super::extract::{Body, Params, Path, Poll, granted};
use super::logs;
use crate::access::{ClusterAdmin, no_such_org};
use crate::callers::{NodeCaller, SeenFrom};
use crate::clock::now;
use crate::failure::{ApiFailure, UNREADABLE_HINT};
use crate::limits::MAX_CALL_ANSWER_BYTES;
use crate::reporting::listed;
use crate::state::{App, Shared, Topic};
use crate::streams::Waiting;

/// A user says whether a node takes instances.
pub(crate) async fn set_scheduling(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(node): Path<NodeId>,
    Body(request): Body<SchedulingRequest>,
) -> Result<StatusCode, ApiFailure> {
    let SchedulingRequest { scheduling } = request;
    app.change_by(&user, move |cluster| {
        not_revoked(cluster, node)?;
        if scheduling
            == (Scheduling::Draining {
                with_volumes: false,
            })
        {
            check_volumes(cluster, node)?;
        }
        Ok::<_, ApiFailure>((vec![Command::SetScheduling { node, scheduling }], ()))
    })
    .await?;
    tracing::info!(user = %user.name, %node, ?scheduling, "a node takes instances or not");
    app.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// A user labels a node.
pub(crate) async fn set_labels(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(node): Path<NodeId>,
    Body(request): Body<LabelsRequest>,
) -> Result<StatusCode, ApiFailure> {
    let LabelsRequest { labels } = request;
    if labels.len() > MAX_NODE_LABELS {
        return Err(ApiFailure::refused(
            "too_many_labels",
            format!(
                "{} labels are to be set or removed, and a node has at most {MAX_NODE_LABELS}",
                labels.len()
            ),
        ));
    }
    let of_hub = (labels.iter()).find(|(key, _)| key.as_str() == HUB_LABEL);
    if let Some((_, Some(value))) = of_hub
        && !HUB_LABEL_VALUES.contains(&value.as_str())
    {
        return Err(ApiFailure::refused(
            "hub_label_invalid",
            format!("the label `{HUB_LABEL}` says whether a node relays the overlay, and cannot be `{value}`"),
        )
        .hint(format!("it is `{}`, or removed", HUB_LABEL_VALUES.join("` or `"))));
    }
    let said: Vec<_> = (labels.iter())
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => format!("{key}-"),
        })
        .collect();
    app.change_by(&user, move |cluster| {
        not_revoked(cluster, node)?;
        Ok::<_, ApiFailure>((vec![Command::SetLabels { node, labels }], ()))
    })
    .await?;
    tracing::info!(user = %user.name, %node, labels = said.join(" "), "a node was labelled");
    app.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// An admin gives a node to an org, or to all. Instances of other orgs leave it; those with volumes cannot, and are named first.
pub(crate) async fn set_org(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(node): Path<NodeId>,
    Body(request): Body<NodeOrgRequest>,
) -> Result<StatusCode, ApiFailure> {
    let NodeOrgRequest { org } = request;
    let whose = org
        .as_ref()
        .map_or("every org", |org| org.as_str())
        .to_owned();
    app.change_by(&user, move |cluster| {
        let known = not_revoked(cluster, node)?;
        if let Some(org) = &org {
            if !cluster.access.orgs().contains_key(org) {
                return Err(no_such_org(org));
            }
            let is_anothers = |i: &Instance| cluster.access.owner(&i.spec.app) != Some(org);
            check_bound(cluster, node, is_anothers).map_err(|bound| {
                bound.hint(
                    "`platform apps move` gives their apps to the org; `platform destroy` and `platform volumes delete` end them",
                )
            })?;
        }
        let is_new = known.org != org;
        let command = is_new.then_some(Command::SetNodeOrg { node, org });
        Ok::<_, ApiFailure>((command.into_iter().collect(), ()))
    })
    .await?;
    tracing::info!(user = %user.name, %node, org = whose, "a node was given to an org");
    app.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// A drain moves nothing that has volumes: the user is to know that first.
fn check_volumes(cluster: &ClusterState, node: NodeId) -> Result<(), ApiFailure> {
    check_bound(cluster, node, |_| true).map_err(|bound| {
        bound.hint(
            "`--with-volumes` stops them too: they start again with `platform nodes uncordon`. `platform nodes cordon` only keeps \
             new ones away",
        )
    })
}

/// None of the instances that are to leave a node has volumes.
fn check_bound(
    cluster: &ClusterState,
    node: NodeId,
    leaves: impl Fn(&Instance) -> bool,
) -> Result<(), ApiFailure> {
    let here = cluster.instances.on_node(node);
    let bound =
        here.filter(|(_, i)| !i.is_terminating() && !i.spec.volumes.is_empty() && leaves(i));
    let bound: Vec<_> = bound
        .map(|(id, i)| format!("{id} of {} {}", i.spec.env_key(), i.spec.process))
        .collect();
    if bound.is_empty() {
        return Ok(());
    }
    Err(ApiFailure::conflict(
        "node_has_volumes",
        format!(
            "{node} has instances with volumes, which cannot move: {}",
            some_of(&bound)
        ),
    ))
}

fn some_of(all: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn no_such_node(cluster: &ClusterState, node: NodeId) -> Result<&Node, ApiFailure> {
    cluster.nodes.get(&node).ok_or_else(|| {
        if let Some(record) = cluster.unreadable_node(node) {
            return ApiFailure::conflict("node_unreadable", record.to_string())
                .hint(UNREADABLE_HINT);
        }
        ApiFailure::not_found("node_not_found", format!("there is no node {node}"))
            .hint("`platform nodes` lists those there are")
    })
}

/// The node, unless it was revoked: nothing that is set of such a node has a consequence.
fn not_revoked(cluster: &ClusterState, node: NodeId) -> Result<&Node, ApiFailure> {
    let known = no_such_node(cluster, node)?;
    if !matches!(known.identity.approval, Approval::Revoked { .. }) {
        return Ok(known);
    }
    let message =
        format!("{node} was revoked: it takes no instances and relays nothing, whatever is set");
    Err(ApiFailure::conflict(error_code::REVOKED, message).hint(format!(
        "`platform tokens create --replaces {node}` lets its machine in again, with new keys; `platform nodes remove {node} --lost` ends its record"
    )))
}

/// A node is told to stop what it runs and the store does not know. Nothing else ends such an instance: a restored store is no reason to stop a VM.
pub(crate) async fn stop_unknown(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(node): Path<NodeId>,
    Body(request): Body<StopUnknownRequest>,
) -> Result<Json<StopUnknownResponse>, ApiFailure> {
    let instances = app
        .change_by(&user, move |cluster| {
            let unknown = &no_such_node(cluster, node)?.unknown;
            let named: BTreeSet<InstanceId> = request.instances.into_iter().collect();
            if let Some(other) = named.iter().find(|id| !unknown.contains_key(id)) {
                let is_placed = cluster.instances.get(other).is_some();
                let refused = ApiFailure::not_found(
                    "unknown_instance_not_found",
                    format!("{node} has not reported {other} as an instance that the store does not know"),
                );
                return Err(refused.hint(if is_placed {
                    "the store knows it: `platform scale` or `platform deploy` replaces or ends it"
                } else {
                    "`platform nodes` lists those that there are"
                }));
            }
            let told = if named.is_empty() {
                unknown.keys().copied().collect()
            } else {
                named
            };
            let instances = told.clone();
            let stop = Command::StopUnknown { node, instances };
            Ok((vec![stop], told))
        })
        .await?;
    tracing::info!(user = %user.name, %node, instances = instances.len(), "unknown instances are to stop");
    let instances = instances.into_iter().collect();
    Ok(Json(StopUnknownResponse { instances }))
}

/// A user removes a node. Its certificate opens nothing from then on.
pub(crate) async fn remove(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(id): Path<NodeId>,
    Params(query): Params<RemoveNodeQuery>,
) -> Result<StatusCode, ApiFailure> {
    let lost = query.lost;
    let before = app.change_by(&user, move |cluster| {
        let node = no_such_node(cluster, id)?;
        if lost && !node.may_be_given_up() {
            return Err(ApiFailure::conflict(
                "node_not_lost",
                format!("{id} is not lost: it reports, or may report yet"),
            )
            .hint("`platform nodes drain` takes its instances away first; then it is removed without --lost"));
        }
        let volumes = cluster.volumes.on_node(id);
        let volumes: Vec<_> = volumes.map(|(_, volume)| volume.key.to_string()).collect();
        let instances = cluster.instances.count_on_node(id);
        if !lost && instances + volumes.len() > 0 {
            let volumes = match volumes.as_slice() {
                [] => String::new(),
                all => format!(", and the volumes {}", some_of(all)),
            };
            return Err(ApiFailure::conflict(
                "node_not_empty",
                format!("{id} still has {instances} instances{volumes}"),
            )
            .hint(if node.may_be_given_up() {
                "`--lost` gives it up with all that it has, the data in its volumes too"
            } else {
                "`platform nodes drain` takes its instances away, and `platform volumes delete` its volumes"
            }));
        }
        let now = now();
        let remove = Command::RemoveNode { node: id, lost, now };
        Ok((vec![remove], cluster.clone()))
    })
    .await?;
    app.cut(&before, Member::Node(id));
    app.reporting.remove(id);
    tracing::info!(user = %user.name, node = %id, lost, "removed a node");
    app.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// The node's whole desired state, once it is newer than the one it has.
pub(crate) async fn desired(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Params(poll): Params<Poll>,
) -> Result<Response, ApiFailure> {
    let newer = app
        .wait_for(Topic::Node(node), granted(poll.wait_ms), |published| {
            newer_state(&published.cluster, node, poll.has(), app.term)
        })
        .await?;
    Ok(match newer {
        Some(desired) => Json(desired).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// A node reports what it has and does.
pub(crate) async fn report(
    State(app): State<App>,
    NodeCaller { node, protocol }: NodeCaller,
    SeenFrom(from): SeenFrom,
    Body(report): Body<ReportDelta>,
) -> Result<Json<ReportAnswer>, ApiFailure> {
    // Before anything that the store may refuse: a full disk of the server's is no node that is offline.
    let heartbeat_interval = heartbeat_interval(app.cluster().nodes.len());
    app.presence.reported(node, heartbeat_interval);
    log_unknown_states(&app, node, protocol, &report.instances);
    let answer = app.receive((node, protocol), from, heartbeat_interval, report);
    Ok(Json(answer.await?))
}

/// Logs once which instances a node reports in a state that this server does not know.
fn log_unknown_states(app: &Shared, node: NodeId, protocol: u32, reports: &[InstanceReport]) {
    let unknown = reports
        .iter()
        .filter(|report| report.state == InstanceState::Unknown);
    let unknown: Vec<InstanceId> = unknown.map(|report| report.id).collect();
    let mut logged = app
        .unknown_states
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let before = logged.entry(node).or_default();
    if !unknown.is_empty() && unknown.iter().any(|id| !before.contains(id)) {
        tracing::warn!(
            %node,
            protocol,
            instances = %listed(&unknown),
            "the node reports these instances in a way that this server does not know; they are kept"
        );
    }
    *before = unknown;
}

/// Streams the node is asked to open.
pub(crate) async fn streams(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Params(poll): Params<Poll>,
) -> Result<Json<Vec<StreamRequest>>, ApiFailure> {
    tokio::select! {
        requests = app.streams.requests(node, granted(poll.wait_ms)) => Ok(Json(requests)),
        () = app.shutdown.cancelled() => Err(ApiFailure::stopping()),
    }
}

/// A node sends what it was asked for: log lines until there are no more, or the answer of a call.
pub(crate) async fn stream(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Path(stream): Path<String>,
    body: HttpBody,
) -> Result<StatusCode, ApiFailure> {
    match app.streams.claim(node, &stream) {
        Some(Waiting::Logs(open)) => logs::from_node(&app, open, body).await,
        Some(Waiting::Answer(sender)) => {
            let answer = to_bytes(body, MAX_CALL_ANSWER_BYTES)
                .await
                .map_err(|e| ApiFailure::bad_request(format!("the answer: {e}")))?;
            // The caller may have left meanwhile.
            let _ = sender.send(Ok(answer));
            Ok(StatusCode::NO_CONTENT)
        }
        Some(Waiting::Exec(_)) => Err(ApiFailure::bad_request(format!(
            "stream {stream} is a command's: it is opened by GET with an upgrade"
        ))),
        None => Err(not_asked(node, &stream)),
    }
}

/// A node cannot open a stream that it was asked for.
pub(crate) async fn refuse_stream(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Path(stream): Path<String>,
    Body(refused): Body<StreamRefused>,
) -> Result<StatusCode, ApiFailure> {
    tracing::warn!(%node, reason = refused.reason, "a node refused a stream");
    match app.streams.claim(node, &stream) {
        // Its reader is told that the stream has ended.
        Some(Waiting::Logs(mut open)) => {
            open.end.opened = false;
            open.end.refused = Some(refused.reason);
        }
        // The caller may have left meanwhile.
        Some(Waiting::Answer(sender)) => drop(sender.send(Err(refused))),
        Some(Waiting::Exec(sender)) => drop(sender.send(Err(refused))),
        None => return Err(not_asked(node, &stream)),
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A node opens the stream of a command or a connection that it was asked for.
pub(crate) async fn exec_stream(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Path(stream): Path<String>,
    upgrade: Upgrade,
) -> Result<Response, ApiFailure> {
    let Some(Waiting::Exec(sender)) = app.streams.claim(node, &stream) else {
        return Err(not_asked(node, &stream));
    };
    let protocol = upgrade.protocol;
    tokio::spawn(async move {
        match upgrade.connection.await {
            // A user who left drops it, and the node ends the command.
            Ok(connection) => drop(sender.send(Ok(connection))),
            Err(error) => tracing::debug!(%node, %error, "a command's stream was not upgraded"),
        }
    });
    Ok(switching(protocol))
}

fn not_asked(node: NodeId, stream: &str) -> ApiFailure {
    ApiFailure::not_found(
        "stream_not_found",
        format!("stream {stream} was not asked of {node}, or its reader has left"),
    )
}

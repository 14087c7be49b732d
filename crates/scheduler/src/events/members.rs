//! Events of nodes, edges, the tokens that let them in, and the network between them.

use api::event::{Actor, Event, EventKind};
use api::member::Approval;
use api::user::Scheduling;
use model::{EdgeId, NodeId};
use overlay::topology::Mode;

use super::{Origin, named};
use crate::apply::Command;
use crate::changes::Changes;
use crate::cluster_state::{ClusterState, Edge, MemberIdentity, Node};
use crate::underlay::RecordedUnderlay;

pub(super) fn record(
    origin: &Origin,
    commands: &[Command],
    before: &ClusterState,
    after: &ClusterState,
    changes: &Changes,
    events: &mut Vec<Event>,
) {
    for (hash, token) in &changes.tokens {
        match (before.tokens.get(hash), token) {
            (None, Some(token)) => {
                let region = token.region.as_ref();
                let region = region.map_or_else(String::new, |region| format!(", region {region}"));
                let org = (token.org.as_ref())
                    .map_or_else(String::new, |org| format!(", of org {org} only"));
                let message = format!("for one {}{region}{org}", token.role);
                events.push(origin.event(EventKind::TokenCreated, message));
            }
            // One that has expired long since is deleted by the way.
            (Some(was), None) if !was.is_prunable(origin.at) => {
                let message = format!("for one {}", was.role);
                events.push(origin.event(EventKind::TokenRevoked, message));
            }
            _ => {}
        }
    }
    let is_lost = |id: NodeId| {
        let lost = |command: &Command| matches!(command, Command::RemoveNode { node, lost: true, .. } if *node == id);
        commands.iter().any(lost)
    };
    for (id, now) in &changes.nodes {
        let mut push = |kind, message: String| {
            events.push(Event {
                node: Some(*id),
                ..origin.event(kind, message)
            });
        };
        match (before.nodes.get(id), now) {
            (None, Some(now)) => {
                let message = joined(&now.name, &now.region, &now.identity);
                push(EventKind::NodeJoined, message);
            }
            (Some(_), None) if is_lost(*id) => push(
                EventKind::NodeLost,
                format!("{} is given up with all that it had", named(before, *id)),
            ),
            (Some(_), None) => push(EventKind::NodeRemoved, named(before, *id)),
            (Some(was), Some(now)) => tell_node(was, now, &mut push),
            (None, None) => {}
        }
    }
    for command in commands {
        match command {
            Command::SetSeen { node, .. } => {
                let lapsed = after.nodes.get(node).filter(|node| node.has_lapsed());
                if lapsed.is_some() {
                    events.push(Event {
                        node: Some(*node),
                        ..origin.event(EventKind::NodeOffline, named(after, *node))
                    });
                }
            }
            Command::RaiseMembership => {
                let message = "members trust the CAs that `platform server ca show` names";
                events.push(origin.event(EventKind::CaChanged, message));
            }
            _ => {}
        }
    }
    for (id, now) in &changes.edges {
        tell_edge(origin, *id, before.edges.get(id), now.as_ref(), events);
    }
    // Whoever joins does so itself: its token names who let it in.
    for event in &mut *events {
        match (event.kind, event.node, event.edge) {
            (EventKind::NodeJoined, Some(id), _) => event.by = Actor::Node(id),
            (EventKind::EdgeJoined, _, Some(id)) => event.by = Actor::Edge(id),
            _ => {}
        }
    }
    if let Some(now) = &changes.settings {
        let was = &before.settings;
        let mut said = Vec::new();
        if was.mode != now.mode {
            said.push(match now.mode {
                Mode::Mesh => "mode mesh".to_owned(),
                Mode::Hubs { .. } => "mode hubs".to_owned(),
            });
        }
        if was.mtu != now.mtu {
            said.push(format!("MTU {}", now.mtu));
        }
        if was.private_networks != now.private_networks {
            said.push(format!("private networks {}", now.private_networks));
        }
        events.push(origin.event(EventKind::NetworkChanged, said.join(", ")));
    }
}

fn joined(name: &str, region: &str, identity: &MemberIdentity) -> String {
    let waits = match identity.approval {
        Approval::Pending => "; it waits for approval",
        Approval::Approved | Approval::Revoked { .. } => "",
    };
    format!("{name} in {region}{waits}")
}

fn tell_node(was: &Node, now: &Node, push: &mut impl FnMut(EventKind, String)) {
    let name = || now.name.clone();
    if was.enrolled_at != now.enrolled_at {
        push(
            EventKind::NodeJoined,
            joined(&now.name, &now.region, &now.identity),
        );
        return;
    }
    match (was.identity.approval, now.identity.approval) {
        (Approval::Pending, Approval::Approved) => push(EventKind::NodeApproved, name()),
        (Approval::Pending | Approval::Approved, Approval::Revoked { .. }) => {
            push(EventKind::NodeRevoked, name());
        }
        _ if was.approved != now.approved && was.claimed.is_some() => {
            push(
                EventKind::NodeApproved,
                format!("the hardware of {}", now.name),
            );
        }
        _ => {}
    }
    if was.scheduling != now.scheduling {
        let (kind, more) = match now.scheduling {
            Scheduling::Schedulable => (EventKind::NodeUncordoned, ""),
            Scheduling::Cordoned => (EventKind::NodeCordoned, ""),
            Scheduling::Draining {
                with_volumes: false,
            } => (EventKind::NodeDrained, ""),
            Scheduling::Draining { with_volumes: true } => {
                (EventKind::NodeDrained, ", those with volumes are stopped")
            }
        };
        push(kind, format!("{}{more}", now.name));
    }
    if was.labels != now.labels {
        let set = now
            .labels
            .iter()
            .filter(|(key, value)| was.labels.get(*key) != Some(value));
        let set = set.map(|(key, value)| format!("{key}={value}"));
        let gone = was
            .labels
            .keys()
            .filter(|key| !now.labels.contains_key(*key));
        let said: Vec<_> = set.chain(gone.map(|key| format!("{key}-"))).collect();
        push(EventKind::NodeLabelled, said.join(" "));
    }
    if was.org != now.org {
        let whose =
            (now.org.as_ref()).map_or("every org".to_owned(), |org| format!("org {org} only"));
        push(
            EventKind::NodeOrgChanged,
            format!("it runs the apps of {whose}"),
        );
    }
    if let Some(message) = keys(&was.identity, &now.identity) {
        push(EventKind::NodeKeysChanged, message.to_owned());
    }
    let mut changed = Vec::new();
    if was.driver != now.driver
        && let Some(driver) = &now.driver
    {
        changed.push(format!("driver {}: {}", driver.name, driver.reason));
    }
    if was.egress != now.egress
        && let Some(egress) = &now.egress
    {
        let on = if egress.on { "on" } else { "off" };
        changed.push(format!("egress {on}: {}", egress.reason));
    }
    if was.claimed != now.claimed && now.claimed.is_some() {
        changed.push("it says that it has more than was approved".to_owned());
    }
    if was.unknown.keys().ne(now.unknown.keys()) && !now.unknown.is_empty() {
        changed.push(format!("it runs {} unknown instances", now.unknown.len()));
    }
    changed.extend(reached(
        (was.wireguard_key.as_ref(), was.underlay.as_ref()),
        (now.wireguard_key.as_ref(), now.underlay.as_ref()),
    ));
    if !changed.is_empty() {
        push(EventKind::NodeChanged, changed.join("; "));
    }
}

/// What changed of the keys by which a member is known.
fn keys(was: &MemberIdentity, now: &MemberIdentity) -> Option<&'static str> {
    if was.rotate_since.is_none() && now.rotate_since.is_some() {
        return Some("it is asked for other keys");
    }
    match (&was.key, &now.key) {
        (None, Some(_)) => Some("its key is recorded"),
        (was, now) if was != now => Some("it has another key"),
        _ => None,
    }
}

/// How a member is reached, where that changed.
fn reached(
    was: (Option<&String>, Option<&RecordedUnderlay>),
    now: (Option<&String>, Option<&RecordedUnderlay>),
) -> Option<String> {
    if was == now {
        return None;
    }
    let endpoint = now.1.and_then(|underlay| underlay.endpoint);
    let at = endpoint.map_or("no endpoint".to_owned(), |at| at.to_string());
    let key = if was.0 == now.0 {
        ""
    } else {
        ", with another WireGuard key"
    };
    Some(format!("reached at {at}{key}"))
}

fn tell_edge(
    origin: &Origin,
    id: EdgeId,
    was: Option<&Edge>,
    now: Option<&Edge>,
    events: &mut Vec<Event>,
) {
    let mut push = |kind, message: String| {
        events.push(Event {
            edge: Some(id),
            ..origin.event(kind, message)
        });
    };
    let (was, now) = match (was, now) {
        (None, Some(now)) => {
            let message = joined(&now.name, &now.region, &now.identity);
            return push(EventKind::EdgeJoined, message);
        }
        (Some(was), None) => return push(EventKind::EdgeRemoved, was.name.clone()),
        (Some(was), Some(now)) => (was, now),
        (None, None) => return,
    };
    if was.enrolled_at != now.enrolled_at {
        let message = joined(&now.name, &now.region, &now.identity);
        return push(EventKind::EdgeJoined, message);
    }
    match (was.identity.approval, now.identity.approval) {
        (Approval::Pending, Approval::Approved) => push(EventKind::EdgeApproved, now.name.clone()),
        (Approval::Pending | Approval::Approved, Approval::Revoked { .. }) => {
            push(EventKind::EdgeRevoked, now.name.clone());
        }
        _ => {}
    }
    if let Some(message) = keys(&was.identity, &now.identity) {
        push(EventKind::EdgeKeysChanged, message.to_owned());
    }
    let reached = reached(
        (was.wireguard_key.as_ref(), was.underlay.as_ref()),
        (now.wireguard_key.as_ref(), now.underlay.as_ref()),
    );
    if let Some(message) = reached {
        push(EventKind::EdgeChanged, message);
    }
}

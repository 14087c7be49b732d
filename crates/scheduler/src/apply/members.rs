//! The commands about members and the tokens that let them in ([`crate::membership`]).

// ring: the commands about members are a part of all commands, and change nodes as the others do.

use std::sync::Arc;

use api::enrollment::Member;
use api::member::Approval;
use model::{EdgeId, NodeId, Timestamp};
use overlay::private_networks::PrivateNetworks;
use overlay::topology::Mode;

use super::{KeyChange, NewMember, Refused, change_node, ended};
use crate::changes::{Changes, Counters};
use crate::cluster_state::{
    ClusterSettings, ClusterState, MemberIdentity, TokenHash, TokenRecord, VolumePhase,
};
use crate::numbers::{is_edge_free, is_overlay_number_free};
use crate::underlay::RecordedUnderlay;

/// Tokens that are looked at, and deleted where their time is over, when one is made.
const TOKENS_LOOKED_AT: usize = 16;

pub(super) fn add_token(
    cluster: &mut ClusterState,
    hash: TokenHash,
    token: &TokenRecord,
    now: Timestamp,
) -> Changes {
    // Hashes are random: as tokens are made all are looked at, and none costs what all there are cost.
    let near = cluster.tokens.range(hash..);
    let expired: Vec<_> = (near.chain(cluster.tokens.range(..hash)))
        .take(TOKENS_LOOKED_AT)
        .filter(|(_, token)| token.is_prunable(now))
        .map(|(hash, _)| *hash)
        .collect();
    let mut changes = Changes::default();
    for old in expired {
        cluster.tokens.remove(&old);
        changes.tokens.insert(old, None);
    }
    cluster.tokens.insert(hash, token.clone());
    changes.tokens.insert(hash, Some(token.clone()));
    changes
}

pub(super) fn enroll(
    cluster: &mut ClusterState,
    hash: TokenHash,
    member: &NewMember,
    now: Timestamp,
) -> Result<Changes, Refused> {
    let (named, key) = match member {
        NewMember::Node(id, node) => (Member::Node(*id), node.wireguard_key.as_ref()),
        NewMember::Edge(id, edge) => (Member::Edge(*id), edge.wireguard_key.as_ref()),
    };
    check_wireguard_key(cluster, named, key)?;
    let unused = |token: &&TokenRecord| token.used.is_none();
    let token = cluster.tokens.get(&hash).filter(unused);
    let mut token = token.ok_or(Refused::TokenSpent)?.clone();
    let is_replaced = |id| token.replaces == Some(id);
    let mut changes = Changes::default();
    match member {
        NewMember::Node(id, node) => {
            let is_known = cluster.has_node(*id);
            if is_known && is_replaced(Member::Node(*id)) {
                changes = give_up_instances(cluster, *id, "its node was replaced", now);
            } else if is_known || !is_overlay_number_free(cluster, *id) {
                return Err(Refused::NodeExists(*id));
            }
            cluster.last_node = cluster.last_node.max(id.0);
            let node = Arc::new(node.as_ref().clone());
            cluster.nodes.insert(*id, Arc::clone(&node));
            changes.nodes.insert(*id, Some(node));
            token.used = Some((now, Member::Node(*id)));
        }
        NewMember::Edge(id, edge) => {
            let may_join = if cluster.edges.contains_key(id) {
                is_replaced(Member::Edge(*id))
            } else {
                is_edge_free(cluster, *id)
            };
            if !may_join {
                return Err(Refused::EdgeExists(*id));
            }
            if let Some(number) = edge.number {
                let was = cluster.edges.get(id).and_then(|edge| edge.number);
                if was != Some(number) && !is_overlay_number_free(cluster, number) {
                    return Err(Refused::NumberTaken(number));
                }
                cluster.last_node = cluster.last_node.max(number.0);
            }
            cluster.last_edge = cluster.last_edge.max(id.0);
            cluster.edges.insert(*id, edge.clone());
            changes.edges.insert(*id, Some(edge.clone()));
            token.used = Some((now, Member::Edge(*id)));
        }
    }
    cluster.tokens.insert(hash, token.clone());
    changes.tokens.insert(hash, Some(token));
    changes.then(next_membership(cluster));
    Ok(changes)
}

pub(super) fn remove_node(
    cluster: &mut ClusterState,
    id: NodeId,
    lost: bool,
    now: Timestamp,
) -> Result<Changes, Refused> {
    let unreadable = cluster.unreadable.iter();
    let records = unreadable.filter(|record| record.node == Some(id)).count();
    let Some(node) = cluster.nodes.get(&id) else {
        return Err(match records {
            0 => Refused::NoNode(id),
            records => Refused::NodeUnreadable { node: id, records },
        });
    };
    if lost && !node.may_be_given_up() {
        return Err(Refused::NodeNotLost(id));
    }
    if records > 0 {
        return Err(Refused::NodeUnreadable { node: id, records });
    }
    let instances = cluster.instances.count_on_node(id);
    let volumes: Vec<_> = cluster.volumes.on_node(id).map(|(id, _)| id).collect();
    let is_empty = instances == 0 && volumes.is_empty();
    if !lost && !is_empty {
        return Err(Refused::NodeNotEmpty {
            node: id,
            instances,
            volumes: volumes.len(),
        });
    }
    let mut changes = give_up_instances(cluster, id, "its node was removed", now);
    for volume in volumes {
        cluster.volumes.remove(&volume);
        changes.volumes.insert(volume, None);
    }
    cluster.nodes.remove(&id);
    cluster.freed.note_overlay(id, now);
    changes.nodes.insert(id, None);
    changes.then(next_membership(cluster));
    Ok(changes)
}

/// The instances of a node are there no longer, whatever runs on its machine: records of how they ended are kept. Volumes whose disks were
/// never made go too.
fn give_up_instances(
    cluster: &mut ClusterState,
    node: NodeId,
    reason: &str,
    now: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    let here = cluster.instances.on_node(node);
    let gone: Vec<_> = here
        .map(|(id, instance)| (id, ended(instance, reason, now)))
        .collect();
    for (id, ended) in gone {
        cluster.instances.remove(&id);
        cluster.ended.insert(id, ended.clone());
        changes.instances.insert(id, None);
        changes.ended.insert(id, Some(ended));
    }
    let planned = (cluster.volumes.on_node(node))
        .filter(|(_, volume)| volume.phase == VolumePhase::Planned)
        .map(|(id, _)| id);
    for id in planned.collect::<Vec<_>>() {
        cluster.volumes.remove(&id);
        changes.volumes.insert(id, None);
    }
    changes
}

/// What members are told about each other is another from now on.
pub(super) fn next_membership(cluster: &mut ClusterState) -> Changes {
    cluster.last_membership = cluster.last_membership.saturating_add(1);
    Changes {
        counters: Counters {
            membership: cluster.last_membership,
            ..Counters::default()
        },
        ..Changes::default()
    }
}

/// Every member is told something else from now on, whoever it is.
pub(super) fn tell_everybody(cluster: &mut ClusterState) -> Changes {
    let mut changes = next_membership(cluster);
    changes.counters.everybody = changes.counters.membership;
    changes
}

pub(super) fn set_underlay(
    cluster: &mut ClusterState,
    member: Member,
    number: Option<NodeId>,
    wireguard_key: Option<&String>,
    underlay: RecordedUnderlay,
) -> Result<Changes, Refused> {
    let identity = cluster.identity(member).ok_or(Refused::NoMember(member))?;
    if matches!(identity.approval, Approval::Revoked { .. }) {
        return Err(Refused::MemberRevoked(member));
    }
    check_wireguard_key(cluster, member, wireguard_key)?;
    match member {
        Member::Node(id) => change_node(cluster, id, |node| {
            node.underlay = Some(underlay);
            // Another key than the recorded one comes with a certificate.
            if node.wireguard_key.is_none() {
                node.wireguard_key = wireguard_key.cloned();
            }
        }),
        Member::Edge(id) => {
            let edge = cluster.edges.get(&id).ok_or(Refused::NoEdge(id))?;
            if let (None, Some(number)) = (edge.number, number) {
                if !is_overlay_number_free(cluster, number) {
                    return Err(Refused::NumberTaken(number));
                }
                cluster.last_node = cluster.last_node.max(number.0);
            }
            let edge = cluster.edges.change(&id, |edge| {
                edge.underlay = Some(underlay);
                if edge.wireguard_key.is_none() {
                    edge.wireguard_key = wireguard_key.cloned();
                }
                edge.number = edge.number.or(number);
            });
            let edge = edge.ok_or(Refused::NoEdge(id))?;
            let mut changes = Changes::default();
            changes.edges.insert(id, Some(edge.as_ref().clone()));
            Ok(changes)
        }
    }
}

pub(super) fn set_network(
    cluster: &mut ClusterState,
    mode: Option<Mode>,
    mtu: Option<u32>,
    private_networks: Option<&PrivateNetworks>,
) -> Changes {
    let private_networks = private_networks.unwrap_or(&cluster.settings.private_networks);
    let settings = ClusterSettings {
        mode: mode.unwrap_or(cluster.settings.mode),
        mtu: mtu.unwrap_or(cluster.settings.mtu),
        private_networks: private_networks.clone(),
        ..cluster.settings.clone()
    };
    if settings == cluster.settings {
        return Changes::default();
    }
    cluster.settings = settings.clone();
    let mut changes = next_membership(cluster);
    changes.settings = Some(settings);
    changes
}

pub(super) fn delete_token(
    cluster: &mut ClusterState,
    hash: TokenHash,
) -> Result<Changes, Refused> {
    cluster.tokens.remove(&hash).ok_or(Refused::NoToken)?;
    let mut changes = Changes::default();
    changes.tokens.insert(hash, None);
    Ok(changes)
}

/// Changes by what a member is known.
fn change_identity(
    cluster: &mut ClusterState,
    member: Member,
    change: impl FnOnce(&mut MemberIdentity),
) -> Result<Changes, Refused> {
    match member {
        Member::Node(id) => change_node(cluster, id, |node| change(&mut node.identity)),
        Member::Edge(id) => {
            let edge = cluster.edges.change(&id, |edge| change(&mut edge.identity));
            let edge = edge.ok_or(Refused::NoEdge(id))?;
            let mut changes = Changes::default();
            changes.edges.insert(id, Some(edge.as_ref().clone()));
            Ok(changes)
        }
    }
}

pub(super) fn approve(cluster: &mut ClusterState, member: Member) -> Result<Changes, Refused> {
    let identity = cluster.identity(member).ok_or(Refused::NoMember(member))?;
    if matches!(identity.approval, Approval::Revoked { .. }) {
        return Err(Refused::MemberRevoked(member));
    }
    let mut changes = Changes::default();
    if identity.approval == Approval::Pending {
        let approved = |identity: &mut MemberIdentity| identity.approval = Approval::Approved;
        changes = change_identity(cluster, member, approved)?;
        changes.then(next_membership(cluster));
    }
    if let Member::Node(id) = member
        && let Some(claimed) = cluster.nodes.get(&id).and_then(|node| node.claimed.clone())
    {
        changes.then(change_node(cluster, id, |node| {
            node.approved = claimed.clone();
            node.set_hardware(&claimed);
        })?);
    }
    Ok(changes)
}

pub(super) fn revoke(
    cluster: &mut ClusterState,
    member: Member,
    now: Timestamp,
) -> Result<Changes, Refused> {
    let identity = cluster.identity(member).ok_or(Refused::NoMember(member))?;
    if matches!(identity.approval, Approval::Revoked { .. }) {
        return Err(Refused::MemberRevoked(member));
    }
    let mut changes = Changes::default();
    if let Member::Node(id) = member {
        // Its generation stays: it is told nothing any more, and a poll that waits is ended, not answered.
        changes = give_up_instances(cluster, id, "its node was revoked", now);
        // It can be told to stop nothing any more.
        cluster.nodes.change(&id, |node| node.unknown.clear());
    }
    changes.then(change_identity(cluster, member, |identity| {
        identity.approval = Approval::Revoked { at: now };
        identity.rotate_since = None;
    })?);
    changes.then(next_membership(cluster));
    Ok(changes)
}

pub(super) fn ask_for_keys(
    cluster: &mut ClusterState,
    member: Member,
    now: Timestamp,
) -> Result<Changes, Refused> {
    let identity = cluster.identity(member).ok_or(Refused::NoMember(member))?;
    if matches!(identity.approval, Approval::Revoked { .. }) {
        return Err(Refused::MemberRevoked(member));
    }
    let asked = |identity: &mut MemberIdentity| identity.rotate_since = Some(now);
    let mut changes = change_identity(cluster, member, asked)?;
    changes.then(next_membership(cluster));
    Ok(changes)
}

pub(super) fn set_keys(
    cluster: &mut ClusterState,
    member: Member,
    change: &KeyChange,
) -> Result<Changes, Refused> {
    let identity = cluster.identity(member).ok_or(Refused::NoMember(member))?;
    let (KeyChange::Record(key) | KeyChange::Next { key, .. } | KeyChange::Complete(key)) = change;
    let holder = cluster.member_keys.member_of(key);
    if holder.is_some_and(|holder| holder != member) {
        return Err(Refused::KeyTaken(member));
    }
    let fits = match change {
        KeyChange::Record(_) => identity.key.is_none(),
        KeyChange::Next { key, .. } => identity.key.as_ref() != Some(key),
        KeyChange::Complete(key) => identity.next_key.as_ref() == Some(key),
    };
    if !fits {
        return Err(Refused::KeyTaken(member));
    }
    if let KeyChange::Next { wireguard_key, .. } = change {
        check_wireguard_key(cluster, member, wireguard_key.as_ref())?;
    }
    match change {
        KeyChange::Record(key) => change_identity(cluster, member, |identity| {
            identity.key = Some(key.clone());
        }),
        KeyChange::Next { key, wireguard_key } => {
            let mut changes = change_identity(cluster, member, |identity| {
                identity.next_key = Some(key.clone());
            })?;
            if let Some(wireguard_key) = wireguard_key {
                changes.then(set_wireguard_key(cluster, member, wireguard_key)?);
                changes.then(next_membership(cluster));
            }
            Ok(changes)
        }
        KeyChange::Complete(key) => change_identity(cluster, member, |identity| {
            identity.key = Some(key.clone());
            identity.next_key = None;
            identity.rotate_since = None;
        }),
    }
}

/// A key of WireGuard is one member's: with another's, a member would be taken for that by all others.
fn check_wireguard_key(
    cluster: &ClusterState,
    member: Member,
    key: Option<&String>,
) -> Result<(), Refused> {
    let holder = key.and_then(|key| cluster.member_keys.member_with_wireguard_key(key));
    match holder {
        Some(holder) if holder != member => Err(Refused::WireguardKeyTaken(member)),
        _ => Ok(()),
    }
}

fn set_wireguard_key(
    cluster: &mut ClusterState,
    member: Member,
    key: &str,
) -> Result<Changes, Refused> {
    match member {
        Member::Node(id) => change_node(cluster, id, |node| {
            node.wireguard_key = Some(key.to_owned());
        }),
        Member::Edge(id) => {
            let edge = cluster
                .edges
                .change(&id, |edge| edge.wireguard_key = Some(key.to_owned()));
            let edge = edge.ok_or(Refused::NoEdge(id))?;
            let mut changes = Changes::default();
            changes.edges.insert(id, Some(edge.as_ref().clone()));
            Ok(changes)
        }
    }
}

pub(super) fn skip_numbers(cluster: &mut ClusterState, node: u16, edge: u16) -> Changes {
    let mut counters = Counters::default();
    if node > cluster.last_node {
        cluster.last_node = node;
        counters.node = node;
    }
    if edge > cluster.last_edge {
        cluster.last_edge = edge;
        counters.edge = edge;
    }
    Changes {
        counters,
        ..Changes::default()
    }
}

pub(super) fn remove_edge(cluster: &mut ClusterState, id: EdgeId) -> Result<Changes, Refused> {
    let edge = cluster.edges.get(&id).ok_or(Refused::NoEdge(id))?;
    let Approval::Revoked { at } = edge.identity.approval else {
        return Err(Refused::EdgeNotRevoked(id));
    };
    // It has had none of its numbers since it was revoked.
    let number = edge.number;
    cluster.edges.remove(&id);
    cluster.freed.note_edge(id, at);
    if let Some(number) = number {
        cluster.freed.note_overlay(number, at);
    }
    let mut changes = Changes::default();
    changes.edges.insert(id, None);
    changes.then(next_membership(cluster));
    Ok(changes)
}

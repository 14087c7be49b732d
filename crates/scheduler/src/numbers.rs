//! The numbers of members: in order, and again only when all were given.
//!
//! A number is in the addresses of a member and of all that runs on it, and people call the member by it. So a new member gets the next one after the highest
//! that was ever given. Nodes and edges have their numbers in the overlay of the same 65,535. When those are used up the lowest free one is given
//! again, once it has been free for [`REUSE_AFTER_MS`]: until then a peer that was cut off may take the new member for the old. When it became free
//! is not stored: a server that begins to lead counts from then. A record that cannot be read may have any number: while there is one, none is given
//! again.

use std::collections::{BTreeMap, BTreeSet};

use model::{EdgeId, NodeId, Timestamp};

use crate::cluster_state::ClusterState;

/// How long a number has been free before another member gets it, in milliseconds: a day.
pub const REUSE_AFTER_MS: u64 = 24 * 60 * 60 * 1000;

/// All numbers were given, and none has been free for long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "all {} numbers of nodes and edges of this cluster were given out, and none has been free for a day: remove members that are gone with `platform nodes remove` and `platform edges remove`",
    u16::MAX
)]
pub struct NoNumberLeft;

/// When numbers became free in this term: of members that were removed within [`REUSE_AFTER_MS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreedNumbers {
    overlay: BTreeMap<u16, Timestamp>,
    edges: BTreeMap<u16, Timestamp>,
}

impl FreedNumbers {
    /// A number in the overlay is free from now on.
    pub(crate) fn note_overlay(&mut self, number: NodeId, now: Timestamp) {
        note(&mut self.overlay, number.0, now);
    }

    /// A number of an edge is free from now on.
    pub(crate) fn note_edge(&mut self, edge: EdgeId, now: Timestamp) {
        note(&mut self.edges, edge.0, now);
    }
}

/// Few are removed in a day: those that are over are looked for among all.
fn note(freed: &mut BTreeMap<u16, Timestamp>, number: u16, now: Timestamp) {
    freed.retain(|_, at| now.millis_since(*at) < REUSE_AFTER_MS);
    freed.insert(number, now);
}

/// The number in the overlay of a new member.
///
/// # Errors
/// All were given, and none has been free for long enough.
pub fn next_overlay_number(cluster: &ClusterState, now: Timestamp) -> Result<NodeId, NoNumberLeft> {
    let taken = || {
        let edges = cluster.edges.values().filter_map(|edge| edge.number);
        cluster
            .nodes
            .keys()
            .copied()
            .chain(edges)
            .map(|number| number.0)
            .collect()
    };
    next(
        cluster,
        cluster.last_node,
        taken,
        &cluster.freed.overlay,
        now,
    )
    .map(NodeId)
}

/// The number of a new edge, by which people call it.
///
/// # Errors
/// As of [`next_overlay_number`].
pub fn next_edge(cluster: &ClusterState, now: Timestamp) -> Result<EdgeId, NoNumberLeft> {
    let taken = || cluster.edges.keys().map(|edge| edge.0).collect();
    next(cluster, cluster.last_edge, taken, &cluster.freed.edges, now).map(EdgeId)
}

fn next(
    cluster: &ClusterState,
    last: u16,
    taken: impl FnOnce() -> BTreeSet<u16>,
    freed: &BTreeMap<u16, Timestamp>,
    now: Timestamp,
) -> Result<u16, NoNumberLeft> {
    if let Some(number) = last.checked_add(1) {
        return Ok(number);
    }
    let none_left = NoNumberLeft;
    let is_long_ago = |at: Timestamp| now.millis_since(at) >= REUSE_AFTER_MS;
    if !cluster.unreadable.is_empty() || !is_long_ago(cluster.counting_since) {
        return Err(none_left);
    }
    let taken = taken();
    let is_free = |number: &u16| {
        !taken.contains(number) && freed.get(number).is_none_or(|at| is_long_ago(*at))
    };
    (1..=u16::MAX).find(is_free).ok_or(none_left)
}

/// Whether a new member may have this number in the overlay: nobody has had it, or all were given and nobody has it now.
pub(crate) fn is_overlay_number_free(cluster: &ClusterState, number: NodeId) -> bool {
    number.0 > cluster.last_node
        || cluster.last_node == u16::MAX
            && number.0 > 0
            && !cluster.has_node(number)
            && !cluster
                .edges
                .values()
                .any(|edge| edge.number == Some(number))
}

/// The same of the number of an edge.
pub(crate) fn is_edge_free(cluster: &ClusterState, edge: EdgeId) -> bool {
    edge.0 > cluster.last_edge
        || cluster.last_edge == u16::MAX && edge.0 > 0 && !cluster.edges.contains_key(&edge)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use api::enrollment::EnrollRole;

    use super::*;
    use crate::apply::{Command, NewMember, Refused, apply};
    use crate::cluster_state::{Subject, TokenRecord, UnreadableRecord};
    use crate::fixtures;

    const DAY: Timestamp = Timestamp(REUSE_AFTER_MS);
    const TWO_DAYS: Timestamp = Timestamp(2 * REUSE_AFTER_MS);

    /// A machine joins as the node of this number.
    fn join(cluster: &mut ClusterState, number: u16) -> Result<(), Refused> {
        let hash = [7; 32];
        let now = Timestamp(1);
        let token = TokenRecord::new(EnrollRole::Node, TWO_DAYS);
        apply(cluster, &Command::AddToken { hash, token, now }).unwrap();
        let (_, mut node) = fixtures::node(1, 4096);
        node.wireguard_key = Some(format!("of {number}"));
        let member = NewMember::Node(NodeId(number), Box::new(node));
        let enrolled = Command::Enroll {
            token: hash,
            member,
            now,
        };
        apply(cluster, &enrolled).map(drop)
    }

    fn remove(cluster: &mut ClusterState, number: u16, now: Timestamp) {
        let remove = Command::RemoveNode {
            node: NodeId(number),
            lost: false,
            now,
        };
        apply(cluster, &remove).unwrap();
    }

    #[test]
    fn numbers_go_up_until_all_were_given_and_then_those_free_for_a_day_are_given_again() {
        let mut cluster = fixtures::cluster(3);
        assert_eq!(next_overlay_number(&cluster, Timestamp(0)), Ok(NodeId(4)));
        remove(&mut cluster, 2, Timestamp(0));
        // It is free, and there are others.
        assert_eq!(next_overlay_number(&cluster, DAY), Ok(NodeId(4)));
        assert_eq!(join(&mut cluster, 2), Err(Refused::NodeExists(NodeId(2))));
        join(&mut cluster, u16::MAX).unwrap();
        assert_eq!(next_overlay_number(&cluster, DAY), Ok(NodeId(2)));
        let early = Timestamp(DAY.0 - 1);
        let none_left = Err(NoNumberLeft);
        assert_eq!(next_overlay_number(&cluster, early), none_left);
        // The next lowest is given while the lowest has not been free for long.
        remove(&mut cluster, 1, DAY);
        assert_eq!(next_overlay_number(&cluster, DAY), Ok(NodeId(2)));
        join(&mut cluster, 2).unwrap();
        assert_eq!(join(&mut cluster, 2), Err(Refused::NodeExists(NodeId(2))));
        assert_eq!(next_overlay_number(&cluster, DAY), Ok(NodeId(4)));
        assert_eq!(next_overlay_number(&cluster, TWO_DAYS), Ok(NodeId(1)));
        // What the server before knew of it is not known: the day begins anew.
        cluster.clear_presence();
        cluster.counting_since = TWO_DAYS;
        assert_eq!(next_overlay_number(&cluster, TWO_DAYS), none_left);
        let later = Timestamp(TWO_DAYS.0 + REUSE_AFTER_MS);
        assert_eq!(next_overlay_number(&cluster, later), Ok(NodeId(1)));
        cluster.unreadable.push(UnreadableRecord {
            subject: Subject::Node(NodeId(9)),
            env: None,
            cause: "a test".to_owned(),
            node: Some(NodeId(9)),
            holds: None,
        });
        assert_eq!(next_overlay_number(&cluster, later), none_left);
    }

    #[test]
    fn edges_and_nodes_have_no_number_of_the_overlay_twice() {
        let mut cluster = fixtures::cluster(1);
        let numbered = |number| crate::cluster_state::Edge {
            name: "door".to_owned(),
            region: "local".to_owned(),
            identity: crate::cluster_state::MemberIdentity::default(),
            number: Some(NodeId(number)),
            wireguard_key: None,
            underlay: None,
            enrolled_at: Timestamp(0),
        };
        cluster.edges.insert(EdgeId(1), numbered(2));
        cluster.edges.insert(EdgeId(3), numbered(3));
        cluster.last_node = u16::MAX;
        cluster.last_edge = u16::MAX;
        assert_eq!(next_overlay_number(&cluster, DAY), Ok(NodeId(4)));
        assert_eq!(next_edge(&cluster, DAY), Ok(EdgeId(2)));
        assert_eq!(join(&mut cluster, 2), Err(Refused::NodeExists(NodeId(2))));
        assert!(is_edge_free(&cluster, EdgeId(2)) && !is_edge_free(&cluster, EdgeId(3)));
        assert!(!is_overlay_number_free(&cluster, NodeId(0)));
    }
}

//! Who is a member, by which key, and who is told of whom (ADR 0004).
//!
//! A member is who holds the private half of its recorded key. The number in its certificate decides nothing: after a store was restored
//! that number may be another member's.
//!
//! ```text
//!              joins with a token that asks for approval
//!   (none) ------------------------------------------------> Pending
//!     |                                                         | a user approves it
//!     | joins                                                   v
//!     +-----------------------------------------------------> Approved --- a user revokes it ---> Revoked --- removed ---> (none)
//!                                                               ^                                    |
//!                                                               +---- joins again, by another key ---+
//! ```
//!
//! A key is replaced in two steps, because the answer to the first may be lost: the member is known by both keys until it comes by the new
//! one ([`MemberIdentity::next_key`]).

// ring: the cluster state keeps the index of its members' keys.

use api::enrollment::Member;
use api::member::{Approval, NodeKey};
use model::{Generation, NodeId, PublicKey, Timestamp};
use overlay::address_plan::node_prefix;

use crate::cluster_state::{ClusterState, Node};
use crate::table::Table;

/// By what a member is known, and whether it may do anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberIdentity {
    /// Its key. Absent: it joined at a server that recorded none; the first key that comes with a certificate of its number is recorded.
    pub key: Option<PublicKey>,
    /// The key that it is about to have.
    pub next_key: Option<PublicKey>,
    /// Whether it may do anything.
    pub approval: Approval,
    /// Since when a user wants it to have other keys.
    pub rotate_since: Option<Timestamp>,
}

impl MemberIdentity {
    /// A member that is known by this key.
    pub fn of(key: PublicKey, approval: Approval) -> Self {
        Self {
            key: Some(key),
            approval,
            ..Self::default()
        }
    }

    /// Whether it may do what members do.
    pub fn is_approved(&self) -> bool {
        self.approval == Approval::Approved
    }

    /// Whether it is known by this key, or is about to be.
    pub fn has(&self, key: &PublicKey) -> bool {
        self.keys().any(|known| known == key)
    }

    fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.key.iter().chain(&self.next_key)
    }
}

/// Which member has which key. It follows from the members, so two cluster states with the same members have the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberKeys {
    by_key: Table<PublicKey, Member>,
    of_member: Table<Member, Vec<PublicKey>>,
    /// The same of the keys of WireGuard. A peer is its key: two members with one are one to all others.
    by_wireguard_key: Table<String, Member>,
    wireguard_key_of: Table<Member, String>,
}

impl MemberKeys {
    /// The member that has a key.
    pub fn member_of(&self, key: &PublicKey) -> Option<Member> {
        self.by_key.get(key).copied()
    }

    /// The member that has this key of WireGuard.
    pub fn member_with_wireguard_key(&self, key: &str) -> Option<Member> {
        self.by_wireguard_key.get(key).copied()
    }

    fn update_wireguard(&mut self, member: Member, key: Option<&String>) {
        let before = self.wireguard_key_of.get(&member).cloned();
        if before.as_ref() == key {
            return;
        }
        if let Some(before) = before {
            if self.by_wireguard_key.get(&before) == Some(&member) {
                self.by_wireguard_key.remove(&before);
            }
            self.wireguard_key_of.remove(&member);
        }
        if let Some(key) = key {
            self.by_wireguard_key.insert(key.clone(), member);
            self.wireguard_key_of.insert(member, key.clone());
        }
    }

    /// Takes notice of a member as it is now, and of its key of WireGuard; `None`: it is gone, or has none.
    pub fn update(
        &mut self,
        member: Member,
        identity: Option<&MemberIdentity>,
        wireguard_key: Option<&String>,
    ) {
        self.update_wireguard(member, wireguard_key);
        let after = identity.into_iter().flat_map(MemberIdentity::keys);
        let after: Vec<_> = after.cloned().collect();
        let before = self.of_member.get(&member).cloned().unwrap_or_default();
        if before == after {
            return;
        }
        for key in before {
            // Another member may have it since.
            if self.by_key.get(&key) == Some(&member) {
                self.by_key.remove(&key);
            }
        }
        for key in &after {
            self.by_key.insert(key.clone(), member);
        }
        if after.is_empty() {
            self.of_member.remove(&member);
        } else {
            self.of_member.insert(member, after);
        }
    }
}

impl ClusterState {
    /// By what a member is known; absent: there is none, or its record cannot be read.
    pub fn identity(&self, member: Member) -> Option<&MemberIdentity> {
        match member {
            Member::Node(id) => self.nodes.get(&id).map(|node| &node.identity),
            Member::Edge(id) => self.edges.get(&id).map(|edge| &edge.identity),
        }
    }

    /// A member's name; its number where its record cannot be read.
    pub fn member_name(&self, member: Member) -> String {
        let name = match member {
            Member::Node(id) => self.nodes.get(&id).map(|node| &node.name),
            Member::Edge(id) => self.edges.get(&id).map(|edge| &edge.name),
        };
        name.map_or_else(|| member.to_string(), Clone::clone)
    }

    /// The generation of what every member is told about the others.
    pub fn membership_generation(&self) -> Generation {
        Generation {
            incarnation: self.incarnation,
            counter: self.last_membership,
        }
    }

    /// Every member that may do something.
    pub fn approved_members(&self) -> impl Iterator<Item = Member> {
        let is_approved = |identity: &MemberIdentity| identity.approval == Approval::Approved;
        let nodes = (self.nodes.iter())
            .filter(move |(_, node)| is_approved(&node.identity))
            .map(|(id, _)| Member::Node(*id));
        let edges = (self.edges.iter())
            .filter(move |(_, edge)| is_approved(&edge.identity))
            .map(|(id, _)| Member::Edge(*id));
        nodes.chain(edges)
    }
}

/// What members of a version before the overlay are told: every approved node with its key, but themselves. In the order of their numbers.
pub fn node_keys(cluster: &ClusterState, of: Member) -> Vec<NodeKey> {
    let other = |id: &NodeId| Member::Node(*id) != of;
    let is_told = |(id, node): &(&NodeId, &Node)| other(id) && node.is_approved();
    let nodes = cluster.nodes.iter().filter(is_told);
    let keys = nodes.filter_map(|(id, node)| {
        Some(NodeKey {
            node: *id,
            wireguard_public_key: node.wireguard_key.clone()?,
            prefix: node_prefix(cluster.settings.prefix, *id),
        })
    });
    keys.collect()
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;

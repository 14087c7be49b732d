//! Which machines may join, under which name and number (ADR 0004).
//!
//! A token is good for one member, of one role, until it expires. Of several callers at once one spends it: commands are
//! carried out one after the other.

use std::collections::BTreeSet;

use api::enrollment::{EnrollRequest, EnrollRole, Member};
use model::ids::MAX_NAME_BYTES;
use model::{EdgeId, NodeId, Timestamp};

use crate::apply::{Command, NewMember};
use crate::cluster_state::{
    ClusterState, Edge, Node, Presence, Scheduling, TokenHash, TokenRecord,
};

/// Longest life of a token, in seconds.
pub const MAX_TOKEN_SECONDS: u64 = 86_400;
/// Name of a member whose machine has no usable host name.
const DEFAULT_NAME: &str = "machine";

/// A machine that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// As which member.
    pub member: Member,
    /// Under which name.
    pub name: String,
}

/// The generation of a new node's desired state, in which it has no instances.
const FIRST_GENERATION: u64 = 1;

/// Lets the holder of a token in: the command that makes it a member and spends the token, and who it is.
///
/// # Errors
/// The token or the request is not good. Nothing is spent.
pub fn enroll(
    cluster: &ClusterState,
    token: TokenHash,
    request: &EnrollRequest,
    now: Timestamp,
) -> Result<(Command, Enrolled), EnrollmentRefused> {
    let role = admit(cluster.tokens.get(&token), request, now)?;
    let region = request.region.clone();
    let (member, enrolled) = match role {
        EnrollRole::Node => {
            let id = next_node(Some(NodeId(cluster.last_node)).filter(|id| id.0 > 0))?;
            let taken = cluster.nodes.values().map(|node| node.name.clone());
            let name = unique_name(&request.name, &taken.collect());
            let node = Node {
                labels: std::collections::BTreeMap::new(),
                name: name.clone(),
                region,
                hardware: request.hardware.clone(),
                wireguard_key: request.wireguard_public_key.clone(),
                driver: None,
                egress: None,
                seen_at: None,
                enrolled_at: now,
                presence: Presence::NotHeardYet,
                scheduling: Scheduling::Schedulable,
                generation: FIRST_GENERATION,
            };
            let member = Member::Node(id);
            (
                NewMember::Node(id, Box::new(node)),
                Enrolled { member, name },
            )
        }
        EnrollRole::Edge => {
            let id = next_edge(Some(EdgeId(cluster.last_edge)).filter(|id| id.0 > 0))?;
            let taken = cluster.edges.values().map(|edge| edge.name.clone());
            let name = unique_name(&request.name, &taken.collect());
            let edge = Edge {
                name: name.clone(),
                region,
                enrolled_at: now,
            };
            let member = Member::Edge(id);
            (NewMember::Edge(id, edge), Enrolled { member, name })
        }
    };
    Ok((Command::Enroll { token, member, now }, enrolled))
}

/// Why a machine may not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrollmentRefused {
    /// No such token. The answer is the same for any wrong secret.
    #[error("the enrollment token is not known; make one with `platform tokens create`")]
    UnknownToken,
    /// It was used already.
    #[error("the enrollment token was used already: each lets one machine join; make another one")]
    TokenUsed,
    /// It is too old.
    #[error("the enrollment token has expired; make another one with `platform tokens create`")]
    TokenExpired,
    /// It is for another kind of member.
    #[error(
        "the enrollment token is for a {token}, and this is the start of a {wanted}; make one with `platform tokens \
         create --role {wanted}`"
    )]
    OtherRole {
        /// What the token is for.
        token: EnrollRole,
        /// What the machine means to become.
        wanted: EnrollRole,
    },
    /// A node needs a key for the overlay.
    #[error(
        "the enrollment token is for a node, which enrolls with its WireGuard public key, and the request has none"
    )]
    NoWireguardKey,
    /// A node that cannot be placed on is a mistake.
    #[error("a node enrolls with its hardware, and the request names no {0}")]
    NoHardware(&'static str),
    /// All numbers were given out.
    #[error("all {0} node or edge numbers of this cluster were given out")]
    NoNumberLeft(u16),
    /// A token lives 1 to [`MAX_TOKEN_SECONDS`] seconds.
    #[error("a token lives 1 to {MAX_TOKEN_SECONDS} seconds, not {0}")]
    TokenLife(u64),
}

/// When a token made at `now` expires.
pub fn token_expiry(now: Timestamp, ttl_seconds: u64) -> Result<Timestamp, EnrollmentRefused> {
    if (1..=MAX_TOKEN_SECONDS).contains(&ttl_seconds) {
        Ok(Timestamp(now.0.saturating_add(ttl_seconds * 1000)))
    } else {
        Err(EnrollmentRefused::TokenLife(ttl_seconds))
    }
}

/// Whether the holder of this token may enroll with this request, and as what.
/// `record` is absent when no token has the secret's hash.
pub fn admit(
    record: Option<&TokenRecord>,
    request: &EnrollRequest,
    now: Timestamp,
) -> Result<EnrollRole, EnrollmentRefused> {
    let record = record.ok_or(EnrollmentRefused::UnknownToken)?;
    if record.used.is_some() {
        return Err(EnrollmentRefused::TokenUsed);
    }
    if now >= record.expires_at {
        return Err(EnrollmentRefused::TokenExpired);
    }
    if let Some(wanted) = request.role.filter(|wanted| *wanted != record.role) {
        let token = record.role;
        return Err(EnrollmentRefused::OtherRole { token, wanted });
    }
    match record.role {
        EnrollRole::Edge => {}
        EnrollRole::Node => {
            if request
                .wireguard_public_key
                .as_deref()
                .is_none_or(str::is_empty)
            {
                return Err(EnrollmentRefused::NoWireguardKey);
            }
            let hardware = &request.hardware;
            let missing = [
                (hardware.arch.is_empty(), "architecture"),
                (hardware.cpus == 0, "CPUs"),
                (hardware.memory_bytes == 0, "memory"),
            ];
            if let Some((_, what)) = missing.into_iter().find(|(absent, _)| *absent) {
                return Err(EnrollmentRefused::NoHardware(what));
            }
        }
    }
    Ok(record.role)
}

/// A name of its own for a new member, as near to the wanted one as can be: a DNS label, with
/// `-2`, `-3` .. appended where it is taken.
pub fn unique_name(wanted: &str, taken: &BTreeSet<String>) -> String {
    let first_label = wanted.split('.').next().unwrap_or_default();
    let mut name: String = first_label
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => c,
            _ => '-',
        })
        .collect();
    name.truncate(MAX_NAME_BYTES);
    let name = name.trim_matches('-');
    let name = if name.is_empty() { DEFAULT_NAME } else { name };
    if !taken.contains(name) {
        return name.to_owned();
    }
    let mut number = 2_u32;
    loop {
        let suffix = format!("-{number}");
        let stem = &name[..name.len().min(MAX_NAME_BYTES - suffix.len())];
        let candidate = format!("{}{suffix}", stem.trim_end_matches('-'));
        if !taken.contains(&candidate) {
            return candidate;
        }
        number += 1;
    }
}

/// The number of a new node: one more than the highest that was ever given out. Numbers are never
/// used twice, because addresses and keys of a revoked node may still be about.
pub fn next_node(highest_ever: Option<NodeId>) -> Result<NodeId, EnrollmentRefused> {
    next_number(highest_ever.map(|id| id.0)).map(NodeId)
}

/// The number of a new edge, by the rule of [`next_node`].
pub fn next_edge(highest_ever: Option<EdgeId>) -> Result<EdgeId, EnrollmentRefused> {
    next_number(highest_ever.map(|id| id.0)).map(EdgeId)
}

fn next_number(highest_ever: Option<u16>) -> Result<u16, EnrollmentRefused> {
    highest_ever
        .unwrap_or(0)
        .checked_add(1)
        .ok_or(EnrollmentRefused::NoNumberLeft(u16::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::cluster_state::KEPT_EXPIRED_MS;
    use api::enrollment::Hardware;
    use proptest::prelude::*;

    fn request() -> EnrollRequest {
        EnrollRequest {
            role: None,
            token: "secret".to_owned(),
            name: "box".to_owned(),
            region: "local".to_owned(),
            csr_pem: String::new(),
            wireguard_public_key: Some("key".to_owned()),
            hardware: Hardware {
                arch: "amd64".to_owned(),
                cpus: 2,
                memory_bytes: 1 << 30,
                ..Hardware::default()
            },
        }
    }

    fn token(role: EnrollRole) -> TokenRecord {
        TokenRecord {
            role,
            expires_at: Timestamp(1000),
            used: None,
        }
    }

    #[test]
    fn a_token_is_accepted_once_until_it_expires() {
        let node = token(EnrollRole::Node);
        let at = |now| admit(Some(&node), &request(), Timestamp(now));
        assert_eq!(at(999), Ok(EnrollRole::Node));
        assert_eq!(at(1000), Err(EnrollmentRefused::TokenExpired));
        let unknown = admit(None, &request(), Timestamp(0));
        assert_eq!(unknown, Err(EnrollmentRefused::UnknownToken));
        let used = TokenRecord {
            used: Some((Timestamp(5), Member::Edge(EdgeId(1)))),
            ..node.clone()
        };
        let used = admit(Some(&used), &request(), Timestamp(2000));
        assert_eq!(used, Err(EnrollmentRefused::TokenUsed));
    }

    #[test]
    fn a_token_lets_one_machine_in_under_a_unique_name_and_a_new_number() {
        use crate::apply::{Refused, apply};
        let mut cluster = crate::fixtures::cluster(1);
        let hash = |number: u8| [number; 32];
        for (number, role) in [
            (1, EnrollRole::Node),
            (2, EnrollRole::Node),
            (3, EnrollRole::Edge),
        ] {
            let add = Command::AddToken {
                hash: hash(number),
                token: token(role),
                now: Timestamp(0),
            };
            assert_eq!(apply(&mut cluster, &add).unwrap().tokens.len(), 1);
        }
        let mut join = |number: u8| {
            let (command, enrolled) = enroll(&cluster, hash(number), &request(), Timestamp(5))?;
            let changes = apply(&mut cluster, &command).unwrap();
            let used = changes.tokens[&hash(number)].as_ref().unwrap().used;
            assert_eq!(used, Some((Timestamp(5), enrolled.member)));
            // The same once more, decided before the first was carried out.
            let again = apply(&mut cluster, &command).unwrap_err();
            assert_eq!(again, Refused::TokenSpent);
            assert!(cluster.has_member(enrolled.member));
            Ok::<_, EnrollmentRefused>((enrolled.member, enrolled.name))
        };
        let node = |id| Member::Node(NodeId(id));
        assert_eq!(join(1), Ok((node(2), "box".to_owned())));
        assert_eq!(join(1), Err(EnrollmentRefused::TokenUsed));
        assert_eq!(join(2), Ok((node(3), "box-2".to_owned())));
        let edge = Member::Edge(EdgeId(1));
        assert_eq!(join(3), Ok((edge, "box".to_owned())));
        assert_eq!(join(9), Err(EnrollmentRefused::UnknownToken));
        let much_later = Command::AddToken {
            hash: hash(4),
            token: token(EnrollRole::Edge),
            now: Timestamp(KEPT_EXPIRED_MS + 1001),
        };
        // Used tokens stay, and one that expired unused goes with the next that is made.
        assert_eq!(apply(&mut cluster, &much_later).unwrap().tokens.len(), 1);
        let later = Command::AddToken {
            hash: hash(5),
            token: token(EnrollRole::Edge),
            now: Timestamp(KEPT_EXPIRED_MS + 1001),
        };
        let changed = apply(&mut cluster, &later).unwrap().tokens;
        assert_eq!(changed.get(&hash(4)), Some(&None));
    }

    #[test]
    fn a_node_must_name_its_key_and_hardware_and_an_edge_need_not() {
        let bare = EnrollRequest {
            wireguard_public_key: None,
            hardware: Hardware::default(),
            ..request()
        };
        let admit =
            |role, request: &EnrollRequest| admit(Some(&token(role)), request, Timestamp(0));
        assert_eq!(admit(EnrollRole::Edge, &bare), Ok(EnrollRole::Edge));
        let refused = admit(EnrollRole::Node, &bare);
        assert_eq!(refused, Err(EnrollmentRefused::NoWireguardKey));
        for (token, wanted) in [
            (EnrollRole::Node, EnrollRole::Edge),
            (EnrollRole::Edge, EnrollRole::Node),
        ] {
            let asks = |role| EnrollRequest {
                role: Some(role),
                ..request()
            };
            let refused = admit(token, &asks(wanted)).unwrap_err();
            assert_eq!(refused, EnrollmentRefused::OtherRole { token, wanted });
            assert_eq!(admit(token, &asks(token)), Ok(token));
        }
        let mut request = request();
        request.hardware.memory_bytes = 0;
        let refused = admit(EnrollRole::Node, &request);
        assert_eq!(refused, Err(EnrollmentRefused::NoHardware("memory")));
    }

    #[test]
    fn a_token_lives_a_day_at_most() {
        assert_eq!(token_expiry(Timestamp(5), 2), Ok(Timestamp(2005)));
        assert_eq!(
            token_expiry(Timestamp(0), 0),
            Err(EnrollmentRefused::TokenLife(0))
        );
        let long = MAX_TOKEN_SECONDS + 1;
        assert_eq!(
            token_expiry(Timestamp(0), long),
            Err(EnrollmentRefused::TokenLife(long))
        );
    }

    #[test]
    fn a_member_gets_a_unique_dns_label_for_its_name() {
        let taken = BTreeSet::from(["box".to_owned(), "box-2".to_owned()]);
        for (wanted, name) in [
            ("box", "box-3"),
            ("Box.example.com", "box-3"),
            ("my_box", "my-box"),
            ("--", "machine"),
            ("", "machine"),
            ("ü", "machine"),
        ] {
            assert_eq!(unique_name(wanted, &taken), name, "{wanted}");
        }
    }

    #[test]
    fn numbers_are_never_given_twice() {
        assert_eq!(next_node(None), Ok(NodeId(1)));
        assert_eq!(next_node(Some(NodeId(7))), Ok(NodeId(8)));
        let none_left = Err(EnrollmentRefused::NoNumberLeft(u16::MAX));
        assert_eq!(next_node(Some(NodeId(u16::MAX))), none_left);
        assert_eq!(next_edge(None), Ok(EdgeId(1)));
    }

    proptest! {
        #[test]
        fn any_wanted_name_becomes_a_unique_dns_label(wanted in ".{0,80}", again in 0_usize..12) {
            let mut taken = BTreeSet::new();
            for _ in 0..=again {
                let name = unique_name(&wanted, &taken);
                prop_assert!(!name.is_empty() && name.len() <= MAX_NAME_BYTES);
                prop_assert!(!name.starts_with('-') && !name.ends_with('-'));
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert!(taken.insert(name));
            }
        }
    }
}

//! Which machines may join, under which name and number (ADR 0004).
//!
//! A token is good for one member, of one role, until it expires. Of several callers at once one spends it: commands are
//! carried out one after the other. The machine that spent it may ask again with the same key, and is the same member: its answer
//! may have been lost.

use std::collections::{BTreeMap, BTreeSet};

use api::enrollment::{EnrollRequest, EnrollRole, Member};
use api::member::Approval;
use model::ids::MAX_NAME_BYTES;
use model::{NodeId, PublicKey, Timestamp};

use crate::apply::{Command, NewMember};
use crate::cluster_state::{
    ClusterState, Edge, MemberIdentity, Node, Presence, Scheduling, TokenHash, TokenRecord,
};
use crate::numbers::{NoNumberLeft, next_edge, next_overlay_number};
use crate::underlay::RecordedUnderlay;

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
    /// In which region.
    pub region: String,
    /// Whether a user has to approve it first.
    pub pending: bool,
    /// Its number in the overlay; absent: an edge of before the overlay.
    pub number: Option<NodeId>,
}

/// The generation of a new node's desired state, in which it has no instances.
const FIRST_GENERATION: u64 = 1;

/// Lets the holder of a token in, whose key is this, and who is reached as `underlay` says: the command that makes it a member and spends the token, and who it is. No command: it is
/// the machine that joined with this token, and the answer was lost. It is the same member, also when the token has expired since.
///
/// # Errors
/// The token or the request is not good. Nothing is spent.
pub fn enroll(
    cluster: &ClusterState,
    token: TokenHash,
    key: &PublicKey,
    request: &EnrollRequest,
    underlay: Option<RecordedUnderlay>,
    now: Timestamp,
) -> Result<(Option<Command>, Enrolled), EnrollmentRefused> {
    let record = match admit(cluster, &token, key, request, now)? {
        Admitted::Again(enrolled) => return Ok((None, enrolled)),
        Admitted::New(record) => record,
    };
    let region = record.region.as_ref().unwrap_or(&request.region).clone();
    let approval = if record.approve {
        Approval::Pending
    } else {
        Approval::Approved
    };
    let identity = MemberIdentity::of(key.clone(), approval);
    let (member, id, name, number) = match record.role {
        EnrollRole::Node => {
            let replaced = match record.replaces {
                Some(Member::Node(id)) => cluster.nodes.get(&id).map(|node| (id, node)),
                _ => None,
            };
            let (id, name) = match replaced {
                Some((id, node)) => (id, node.name.clone()),
                None => {
                    let taken = cluster.nodes.values().map(|node| node.name.clone());
                    let id = next_overlay_number(cluster, now)?;
                    let name = unique_name(&request.name, Member::Node(id), &taken.collect());
                    (id, name)
                }
            };
            let before = replaced.map(|(_, node)| node);
            let node = Node {
                labels: before.map_or_else(BTreeMap::new, |node| node.labels.clone()),
                org: (record.org.clone()).or_else(|| before.and_then(|node| node.org.clone())),
                name: name.clone(),
                region: region.clone(),
                identity,
                hardware: request.hardware.clone(),
                approved: request.hardware.clone(),
                unknown: BTreeMap::new(),
                claimed: None,
                wireguard_key: request.wireguard_public_key.clone(),
                underlay,
                driver: None,
                egress: None,
                seen_at: None,
                enrolled_at: now,
                presence: Presence::NotHeardYet,
                scheduling: before.map_or_else(Scheduling::default, |node| node.scheduling),
                generation: before.map_or(FIRST_GENERATION, |node| node.generation + 1),
            };
            let new = NewMember::Node(id, Box::new(node));
            (new, Member::Node(id), name, Some(id))
        }
        EnrollRole::Edge => {
            let replaced = match record.replaces {
                Some(Member::Edge(id)) => cluster.edges.get(&id).map(|edge| (id, edge)),
                _ => None,
            };
            let (id, name) = match replaced {
                Some((id, edge)) => (id, edge.name.clone()),
                None => {
                    let taken = cluster.edges.values().map(|edge| edge.name.clone());
                    let id = next_edge(cluster, now)?;
                    let name = unique_name(&request.name, Member::Edge(id), &taken.collect());
                    (id, name)
                }
            };
            let number = match replaced.and_then(|(_, edge)| edge.number) {
                None if request.wireguard_public_key.is_some() => {
                    Some(next_overlay_number(cluster, now)?)
                }
                had => had,
            };
            let edge = Edge {
                name: name.clone(),
                region: region.clone(),
                identity,
                number,
                wireguard_key: request.wireguard_public_key.clone(),
                underlay,
                enrolled_at: now,
            };
            (NewMember::Edge(id, edge), Member::Edge(id), name, number)
        }
    };
    let enrolled = Enrolled {
        member: id,
        name,
        region,
        pending: record.approve,
        number,
    };
    let command = Command::Enroll { token, member, now };
    Ok((Some(command), enrolled))
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
        "the enrollment token is for the role {token}, and this machine is to be {wanted}; make one with `platform tokens \
         create --role {wanted}`"
    )]
    OtherRole {
        /// What the token is for.
        token: EnrollRole,
        /// What the machine means to become.
        wanted: EnrollRole,
    },
    /// The key of the request is that of a member that was revoked, or of another kind.
    #[error("this machine's key is that of a member that was revoked, or is of another kind")]
    KeyTaken,
    /// Another member has the key of WireGuard that the request names.
    #[error(
        "another member has the WireGuard key of this machine, whose data folder is a copy of that one's; remove keys.json there, and join again"
    )]
    WireguardKeyTaken,
    /// The token is for a machine that takes the place of a member that is not there.
    #[error("there is no member {0} whose place the machine could take")]
    NoneToReplace(Member),
    /// The token is for a machine that takes the place of a node, and that node's volumes would be lost.
    #[error(
        "{node} has {volumes} volumes, whose data is on its machine: `platform nodes remove {node} --lost` gives them up"
    )]
    ReplacedHasVolumes {
        /// The node.
        node: NodeId,
        /// How many volumes it has.
        volumes: usize,
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
    #[error(transparent)]
    NoNumberLeft(#[from] NoNumberLeft),
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

/// Whether and how the holder of a token may enroll.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted<'c> {
    /// By this token, which is spent with it.
    New(&'c TokenRecord),
    /// It did so before, with the same key.
    Again(Enrolled),
}

/// Whether the holder of the token of this hash, whose key is `key`, may enroll with this request. It costs no more than a few look-ups: servers
/// ask before anything is queued or written.
///
/// # Errors
/// Why not.
pub fn admit<'c>(
    cluster: &'c ClusterState,
    token: &TokenHash,
    key: &PublicKey,
    request: &EnrollRequest,
    now: Timestamp,
) -> Result<Admitted<'c>, EnrollmentRefused> {
    let record = known_token(cluster, token, request, now)?;
    // The machine has the key: it is that member, whichever of its tokens it shows.
    if let Some(member) = cluster.member_keys.member_of(key)
        && let Some(identity) = cluster.identity(member)
    {
        let is_role = match member {
            Member::Node(_) => record.role == EnrollRole::Node,
            Member::Edge(_) => record.role == EnrollRole::Edge,
        };
        if !is_role || matches!(identity.approval, Approval::Revoked { .. }) {
            return Err(EnrollmentRefused::KeyTaken);
        }
        let region = match member {
            Member::Node(id) => cluster.nodes.get(&id).map(|node| &node.region),
            Member::Edge(id) => cluster.edges.get(&id).map(|edge| &edge.region),
        };
        return Ok(Admitted::Again(Enrolled {
            member,
            name: cluster.member_name(member),
            region: region.unwrap_or(&request.region).clone(),
            pending: identity.approval == Approval::Pending,
            number: match member {
                Member::Node(id) => Some(id),
                Member::Edge(id) => cluster.edges.get(&id).and_then(|edge| edge.number),
            },
        }));
    }
    if record.used.is_some() {
        return Err(EnrollmentRefused::TokenUsed);
    }
    if let Some(replaced) = record.replaces {
        check_replaced(cluster, replaced)?;
    }
    // Whose place it takes may have had the key.
    let replaced = record.replaces;
    if let Some(key) = &request.wireguard_public_key
        && let Some(holder) = cluster.member_keys.member_with_wireguard_key(key)
        && replaced != Some(holder)
    {
        return Err(EnrollmentRefused::WireguardKeyTaken);
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
    Ok(Admitted::New(record))
}

/// The token of this hash, where it may let this machine in: it is known, for its role, and has neither expired nor been used by another machine.
/// Nothing of the request is needed but its role: what costs time is looked at afterwards.
///
/// # Errors
/// Why it may not.
pub fn known_token<'c>(
    cluster: &'c ClusterState,
    token: &TokenHash,
    request: &EnrollRequest,
    now: Timestamp,
) -> Result<&'c TokenRecord, EnrollmentRefused> {
    let record = cluster.tokens.get(token);
    let record = record.ok_or(EnrollmentRefused::UnknownToken)?;
    if record.used.is_none() && now >= record.expires_at {
        return Err(EnrollmentRefused::TokenExpired);
    }
    if let Some(wanted) = request.role.filter(|wanted| *wanted != record.role) {
        let token = record.role;
        return Err(EnrollmentRefused::OtherRole { token, wanted });
    }
    Ok(record)
}

/// Whether another machine may take the place of this member.
///
/// # Errors
/// There is no such member, or data of volumes would be lost without a word.
pub fn check_replaced(cluster: &ClusterState, member: Member) -> Result<(), EnrollmentRefused> {
    if cluster.identity(member).is_none() {
        return Err(EnrollmentRefused::NoneToReplace(member));
    }
    let Member::Node(id) = member else {
        return Ok(());
    };
    let on_node = cluster.volumes.on_node(id);
    match on_node.filter(|(_, volume)| volume.is_made()).count() {
        0 => Ok(()),
        volumes => Err(EnrollmentRefused::ReplacedHasVolumes { node: id, volumes }),
    }
}

/// A name of its own for a new member, as near to the wanted one as can be: a DNS label, with
/// `-2`, `-3` .. appended where it is taken. An id names a member, too: no other one, `id`, has it for its name, or
/// `platform nodes revoke n7` would turn out another machine than n7.
pub fn unique_name(wanted: &str, id: Member, taken: &BTreeSet<String>) -> String {
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
    let is_other_id = (name.parse::<Member>()).is_ok_and(|named| named != id);
    if !is_other_id && !taken.contains(name) {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::cluster_state::KEPT_EXPIRED_MS;
    use api::enrollment::Hardware;
    use model::EdgeId;
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
            sent_at: None,
            underlay: None,
        }
    }

    fn token(role: EnrollRole) -> TokenRecord {
        TokenRecord::new(role, Timestamp(1000))
    }

    /// A key of its own for each number.
    fn public_key(number: u8) -> PublicKey {
        PublicKey::of_der(&[number; 91]).unwrap()
    }

    const HASH: TokenHash = [1; 32];

    fn with_token(token: &TokenRecord) -> ClusterState {
        let mut cluster = crate::fixtures::cluster(0);
        cluster.tokens.insert(HASH, token.clone());
        cluster
    }

    /// Asks for a machine that is no member yet.
    fn admitted(
        token: &TokenRecord,
        request: &EnrollRequest,
        now: Timestamp,
    ) -> Result<EnrollRole, EnrollmentRefused> {
        let cluster = with_token(token);
        match admit(&cluster, &HASH, &public_key(9), request, now)? {
            Admitted::New(record) => Ok(record.role),
            Admitted::Again(again) => panic!("{again:?}"),
        }
    }

    #[test]
    fn a_token_is_accepted_once_until_it_expires() {
        let node = token(EnrollRole::Node);
        let at = |now| admitted(&node, &request(), Timestamp(now));
        assert_eq!(at(999), Ok(EnrollRole::Node));
        assert_eq!(at(1000), Err(EnrollmentRefused::TokenExpired));
        let cluster = with_token(&node);
        let unknown = admit(&cluster, &[2; 32], &public_key(1), &request(), Timestamp(0));
        assert_eq!(unknown, Err(EnrollmentRefused::UnknownToken));
        let used = TokenRecord {
            used: Some((Timestamp(5), Member::Edge(EdgeId(1)))),
            ..node.clone()
        };
        let used = admitted(&used, &request(), Timestamp(2000));
        assert_eq!(used, Err(EnrollmentRefused::TokenUsed));
    }

    #[test]
    fn case_a_lost_answer_asked_again_is_the_same_member() {
        use crate::apply::apply;
        let mut cluster = with_token(&token(EnrollRole::Node));
        let ask = |cluster: &ClusterState, key, now| {
            enroll(
                cluster,
                HASH,
                &public_key(key),
                &request(),
                None,
                Timestamp(now),
            )
        };
        let (command, first) = ask(&cluster, 1, 5).unwrap();
        apply(&mut cluster, &command.unwrap()).unwrap();
        // Long after the token expired, too: the machine was down.
        let (command, again) = ask(&cluster, 1, 1_000_000).unwrap();
        assert_eq!((command, again), (None, first.clone()));
        assert_eq!(cluster.nodes.len(), 1);
        let refused = ask(&cluster, 2, 6).unwrap_err();
        assert_eq!(refused, EnrollmentRefused::TokenUsed);
        // With a new token in its hand the machine is that member, too, and the token is not spent.
        let other = [3; 32];
        let add = Command::AddToken {
            hash: other,
            token: token(EnrollRole::Node),
            now: Timestamp(6),
        };
        apply(&mut cluster, &add).unwrap();
        let again = enroll(
            &cluster,
            other,
            &public_key(1),
            &request(),
            None,
            Timestamp(7),
        );
        assert_eq!(again, Ok((None, first.clone())));
        let revoke = Command::Revoke {
            member: first.member,
            now: Timestamp(8),
        };
        apply(&mut cluster, &revoke).unwrap();
        let refused = ask(&cluster, 1, 9).unwrap_err();
        assert_eq!(refused, EnrollmentRefused::KeyTaken);
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
        let mut machine = 0;
        let mut join = |number: u8| {
            machine += 1;
            let key = public_key(machine);
            let request = EnrollRequest {
                wireguard_public_key: Some(format!("key {machine}")),
                ..request()
            };
            let (command, enrolled) =
                enroll(&cluster, hash(number), &key, &request, None, Timestamp(5))?;
            let command = command.unwrap();
            let changes = apply(&mut cluster, &command).unwrap();
            let used = changes.tokens[&hash(number)].as_ref().unwrap().used;
            assert_eq!(used, Some((Timestamp(5), enrolled.member)));
            assert_eq!(cluster.member_keys.member_of(&key), Some(enrolled.member));
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
    fn a_wiped_machine_comes_back_under_its_name_and_number_by_another_key() {
        use crate::apply::apply;
        let mut cluster = with_token(&token(EnrollRole::Node));
        let old = public_key(1);
        let (first, before) = enroll(&cluster, HASH, &old, &request(), None, Timestamp(5)).unwrap();
        apply(&mut cluster, &first.unwrap()).unwrap();
        let again = TokenRecord {
            replaces: Some(before.member),
            region: Some("north".to_owned()),
            approve: true,
            ..token(EnrollRole::Node)
        };
        cluster.tokens.insert([2; 32], again);
        let new = public_key(2);
        let request = EnrollRequest {
            name: "other".to_owned(),
            ..request()
        };
        let (command, after) =
            enroll(&cluster, [2; 32], &new, &request, None, Timestamp(6)).unwrap();
        assert_eq!((after.member, after.name.as_str()), (before.member, "box"));
        assert_eq!((after.region.as_str(), after.pending), ("north", true));
        let mut patched = cluster.clone();
        let changes = apply(&mut cluster, &command.unwrap()).unwrap();
        changes.patch(&mut patched);
        assert_eq!(patched, cluster);
        assert_eq!(cluster.member_keys.member_of(&old), None);
        assert_eq!(cluster.member_keys.member_of(&new), Some(before.member));
        assert_eq!(cluster.nodes.len(), 1);
        let gone = TokenRecord {
            replaces: Some(Member::Node(NodeId(7))),
            ..token(EnrollRole::Node)
        };
        let refused = admitted(&gone, &request, Timestamp(0)).unwrap_err();
        assert_eq!(
            refused,
            EnrollmentRefused::NoneToReplace(Member::Node(NodeId(7)))
        );
    }

    #[test]
    fn a_node_must_name_its_key_and_hardware_and_an_edge_need_not() {
        let bare = EnrollRequest {
            wireguard_public_key: None,
            hardware: Hardware::default(),
            ..request()
        };
        let admit = |role, request: &EnrollRequest| admitted(&token(role), request, Timestamp(0));
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
            // Its own id, and those of others, whether they are there or not.
            ("n4", "n4"),
            ("N7", "n7-2"),
            ("e4", "e4-2"),
        ] {
            let id = Member::Node(NodeId(4));
            assert_eq!(unique_name(wanted, id, &taken), name, "{wanted}");
        }
    }

    proptest! {
        #[test]
        fn any_wanted_name_becomes_a_unique_dns_label(wanted in ".{0,80}", again in 0_usize..12) {
            let mut taken = BTreeSet::new();
            for _ in 0..=again {
                let name = unique_name(&wanted, Member::Node(NodeId(1)), &taken);
                prop_assert!(!name.is_empty() && name.len() <= MAX_NAME_BYTES);
                prop_assert!(!name.starts_with('-') && !name.ends_with('-'));
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert!(taken.insert(name));
            }
        }
    }
}

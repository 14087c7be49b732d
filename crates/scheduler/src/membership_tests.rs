#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use api::enrollment::Hardware;
use api::node::{DriverChoice, NodeReport};

use super::*;
use crate::apply::{Command, KeyChange, Refused, apply};
use crate::cluster_state::TokenRecord;
use crate::fixtures::{cluster, deploy, key as env, manifest, process};
use crate::leader::Leader;
use crate::routes::RouteIndex;
use api::enrollment::EnrollRole;
use model::EdgeId;

fn public_key(number: u8) -> PublicKey {
    PublicKey::of_der(&[number; 91]).unwrap()
}

fn node(number: u16) -> Member {
    Member::Node(NodeId(number))
}

/// Carries a command out, and holds what the store would have against it.
fn carry_out(cluster: &mut ClusterState, command: &Command) -> Result<(), Refused> {
    let mut patched = cluster.clone();
    let changes = apply(cluster, command)?;
    changes.patch(&mut patched);
    patched.hear_as(cluster);
    assert_eq!(patched, *cluster, "{command:?}");
    Ok(())
}

/// Nodes that have keys of their numbers, for both networks.
fn members(count: u8) -> ClusterState {
    let mut cluster = cluster(count.into());
    for number in 1..=count {
        let member = node(number.into());
        let change = KeyChange::Record(public_key(number));
        carry_out(&mut cluster, &Command::SetKeys { member, change }).unwrap();
        let id = NodeId(number.into());
        let key = format!("wg{number}");
        let node = cluster.nodes.get_mut(&id).unwrap();
        node.wireguard_key = Some(key.clone());
        (cluster.member_keys).update(member, Some(&node.identity), Some(&key));
    }
    cluster
}

fn peers_of(cluster: &ClusterState, number: u16) -> Vec<u16> {
    let peers = node_keys(cluster, node(number));
    peers.iter().map(|peer| peer.node.0).collect()
}

#[test]
fn a_revoked_node_is_nobodys_peer_and_its_instances_are_planned_elsewhere() {
    let mut cluster = members(3);
    let release = manifest(&[("web", process(3))]);
    deploy(&mut cluster, "shop/prod", release, Timestamp(0));
    let mut leader = Leader::new(cluster, RouteIndex::default());
    let mut id = 0;
    let mut draw = || {
        id += 1;
        id
    };
    while leader.plan_next(Timestamp(1), &mut draw).is_some() {}
    assert_eq!(leader.state().instances.count_on_node(NodeId(2)), 1);
    assert_eq!(peers_of(leader.state(), 1), [2, 3]);
    let before = leader.state().membership_generation();
    let revoke = Command::Revoke {
        member: node(2),
        now: Timestamp(5),
    };
    assert!(
        leader
            .execute(&crate::fixtures::origin(), std::slice::from_ref(&revoke))
            .unwrap()
    );
    while leader.plan_next(Timestamp(6), &mut draw).is_some() {}
    let after = leader.state();
    assert!(after.membership_generation().supersedes(before));
    for number in [1, 3] {
        assert!(!peers_of(after, number).contains(&2));
    }
    assert_eq!(after.instances.count_on_node(NodeId(2)), 0);
    assert_eq!(after.instances.of_env(&env("shop/prod")).count(), 3);
    assert_eq!(after.ended.len(), 1);
    assert!(!after.approved_members().any(|member| member == node(2)));
    // It is known still by whom it was, so that it is told that it was revoked.
    assert_eq!(after.member_keys.member_of(&public_key(2)), Some(node(2)));
    let refused = leader
        .execute(&crate::fixtures::origin(), &[revoke])
        .unwrap_err();
    assert_eq!(refused, Refused::MemberRevoked(node(2)));
    let approve = Command::Approve { member: node(2) };
    let refused = leader
        .execute(&crate::fixtures::origin(), &[approve])
        .unwrap_err();
    assert_eq!(refused, Refused::MemberRevoked(node(2)));
    // It need not be heard to be lost.
    let remove = Command::RemoveNode {
        node: NodeId(2),
        lost: true,
        now: Timestamp(7),
    };
    assert!(
        leader
            .execute(&crate::fixtures::origin(), &[remove])
            .unwrap()
    );
    assert_eq!(leader.state().member_keys.member_of(&public_key(2)), None);
}

#[test]
fn a_node_that_waits_for_approval_takes_nothing_and_is_nobodys_peer() {
    let mut cluster = members(2);
    for number in [1, 2] {
        let node = cluster.nodes.get_mut(&NodeId(number)).unwrap();
        node.identity.approval = Approval::Pending;
    }
    let release = manifest(&[("web", process(2))]);
    deploy(&mut cluster, "shop/prod", release, Timestamp(0));
    let mut leader = Leader::new(cluster, RouteIndex::default());
    let mut id = 0;
    let mut draw = || {
        id += 1;
        id
    };
    while leader.plan_next(Timestamp(1), &mut draw).is_some() {}
    assert!(leader.state().instances.is_empty());
    assert!(peers_of(leader.state(), 1).is_empty());
    let approve = Command::Approve { member: node(2) };
    assert!(
        leader
            .execute(&crate::fixtures::origin(), &[approve])
            .unwrap()
    );
    while leader.plan_next(Timestamp(2), &mut draw).is_some() {}
    let state = leader.state();
    assert_eq!(state.instances.count_on_node(NodeId(2)), 2);
    assert_eq!(peers_of(state, 1), [2]);
}

#[test]
fn a_key_is_replaced_in_two_steps_and_both_are_known_between() {
    let mut cluster = members(2);
    let member = node(1);
    let set = |cluster: &mut ClusterState, change| {
        carry_out(cluster, &Command::SetKeys { member, change })
    };
    let ask = Command::AskForKeys {
        member,
        now: Timestamp(1),
    };
    carry_out(&mut cluster, &ask).unwrap();
    let next = |key| KeyChange::Next {
        key: public_key(key),
        wireguard_key: Some("wg9".to_owned()),
    };
    assert_eq!(set(&mut cluster, next(2)), Err(Refused::KeyTaken(member)));
    // Nor with the other's key of WireGuard: all others would take it for that one.
    let stolen = cluster.nodes[&NodeId(2)].wireguard_key.clone();
    assert!(stolen.is_some());
    let theft = KeyChange::Next {
        key: public_key(9),
        wireguard_key: stolen,
    };
    let refused = Err(Refused::WireguardKeyTaken(member));
    assert_eq!(set(&mut cluster, theft), refused);
    // Asked again, because the answer was lost.
    set(&mut cluster, next(9)).unwrap();
    set(&mut cluster, next(9)).unwrap();
    for key in [1, 9] {
        let holder = cluster.member_keys.member_of(&public_key(key));
        assert_eq!(holder, Some(member));
    }
    assert_eq!(node_keys(&cluster, node(2))[0].wireguard_public_key, "wg9");
    let complete = || KeyChange::Complete(public_key(9));
    set(&mut cluster, complete()).unwrap();
    assert_eq!(cluster.member_keys.member_of(&public_key(1)), None);
    assert_eq!(cluster.identity(member).unwrap().rotate_since, None);
    assert_eq!(
        set(&mut cluster, complete()),
        Err(Refused::KeyTaken(member))
    );
    // A key is recorded once.
    let again = KeyChange::Record(public_key(7));
    assert_eq!(set(&mut cluster, again), Err(Refused::KeyTaken(member)));
}

#[test]
fn an_edge_is_removed_when_it_was_revoked() {
    let mut cluster = cluster(0);
    let token = TokenRecord::new(EnrollRole::Edge, Timestamp(9));
    cluster.tokens.insert([1; 32], token);
    let request = api::enrollment::EnrollRequest {
        role: None,
        token: String::new(),
        name: "edge".to_owned(),
        region: "local".to_owned(),
        csr_pem: String::new(),
        wireguard_public_key: None,
        hardware: Hardware::default(),
        sent_at: None,
        underlay: None,
    };
    let enrolled = crate::enrollment::enroll(
        &cluster,
        [1; 32],
        &public_key(1),
        &request,
        None,
        Timestamp(0),
    );
    carry_out(&mut cluster, &enrolled.unwrap().0.unwrap()).unwrap();
    let edge = EdgeId(1);
    let remove = Command::RemoveEdge { edge };
    let refused = carry_out(&mut cluster, &remove).unwrap_err();
    assert_eq!(refused, Refused::EdgeNotRevoked(edge));
    let revoke = Command::Revoke {
        member: Member::Edge(edge),
        now: Timestamp(1),
    };
    carry_out(&mut cluster, &revoke).unwrap();
    carry_out(&mut cluster, &remove).unwrap();
    assert!(cluster.edges.is_empty());
    assert_eq!(cluster.last_edge, 1);
}

#[test]
fn numbers_that_members_show_are_not_given_again() {
    let mut cluster = cluster(2);
    let skip = |node, edge| Command::SkipNumbers { node, edge };
    carry_out(&mut cluster, &skip(7, 3)).unwrap();
    assert_eq!((cluster.last_node, cluster.last_edge), (7, 3));
    let changes = apply(&mut cluster, &skip(5, 1)).unwrap();
    assert!(changes.is_empty(), "known: nothing is written");
}

fn report(memory_bytes: u64, cpus: u32) -> NodeReport {
    NodeReport {
        generation: Generation::default(),
        egress: None,
        driver: DriverChoice {
            name: "qemu-tcg".to_owned(),
            reason: "a test".to_owned(),
        },
        hardware: Hardware {
            arch: "amd64".to_owned(),
            cpus,
            memory_bytes,
            ..Hardware::default()
        },
        instances: Vec::new(),
        volumes: Vec::new(),
        highest_network: model::EnvNetwork::default(),
        images: Vec::new(),
    }
}

#[test]
fn env_networks_that_nodes_report_are_not_given_again_and_a_liar_cannot_use_them_up() {
    use crate::reports::MAX_NETWORKS_AHEAD;
    let mut cluster = members(1);
    let say = |cluster: &mut ClusterState, highest| {
        let mut report = Box::new(report(1 << 30, 1));
        report.highest_network = model::EnvNetwork(highest);
        let command = Command::Report {
            node: NodeId(1),
            report,
            now: Timestamp(1),
        };
        carry_out(cluster, &command).unwrap();
        cluster.last_network.0
    };
    assert_eq!(say(&mut cluster, 7), 7);
    assert_eq!(say(&mut cluster, 5), 7);
    assert_eq!(say(&mut cluster, u32::MAX), 7);
    assert_eq!(
        say(&mut cluster, 7 + MAX_NETWORKS_AHEAD),
        7 + MAX_NETWORKS_AHEAD
    );
}

#[test]
fn case_a_node_that_claims_more_than_was_approved_is_named_and_not_believed() {
    let mut cluster = members(1);
    let id = NodeId(1);
    let approved = cluster.nodes[&id].hardware.clone();
    let say = |cluster: &mut ClusterState, memory, cpus| {
        let report = Box::new(report(memory, cpus));
        let command = Command::Report {
            node: id,
            report,
            now: Timestamp(1),
        };
        carry_out(cluster, &command).unwrap();
    };
    say(&mut cluster, 1 << 50, 2);
    let known = &cluster.nodes[&id];
    assert_eq!(known.hardware.memory_bytes, approved.memory_bytes);
    assert_eq!(known.hardware.cpus, 2, "less counts at once");
    assert_eq!(known.claimed.as_ref().unwrap().memory_bytes, 1 << 50);
    // What it costs to run an instance is not what it likes to say, either.
    assert_eq!(known.hardware.overhead, approved.overhead);
    say(&mut cluster, approved.memory_bytes * 2, 4);
    let approve = Command::Approve { member: node(1) };
    carry_out(&mut cluster, &approve).unwrap();
    let known = &cluster.nodes[&id];
    assert_eq!(known.hardware.memory_bytes, approved.memory_bytes * 2);
    assert_eq!(known.claimed, None);
    // Approved twice: nothing more.
    assert!(apply(&mut cluster, &approve).unwrap().is_empty());
}

#[test]
fn the_index_of_keys_follows_the_members() {
    let mut keys = MemberKeys::default();
    let of = |key| MemberIdentity::of(public_key(key), Approval::Approved);
    keys.update(node(1), Some(&of(1)), None);
    // Its number was given to another machine, and its key to another number.
    keys.update(node(2), Some(&of(1)), None);
    keys.update(node(1), Some(&of(3)), None);
    let expected = BTreeMap::from([(1, Some(node(2))), (2, None), (3, Some(node(1)))]);
    for (key, member) in expected {
        assert_eq!(keys.member_of(&public_key(key)), member);
    }
    keys.update(node(1), None, None);
    keys.update(node(2), None, None);
    let wireguard = |key: &str| key.to_owned();
    keys.update(node(1), None, Some(&wireguard("a")));
    keys.update(node(1), None, Some(&wireguard("b")));
    assert_eq!(keys.member_with_wireguard_key("a"), None);
    assert_eq!(keys.member_with_wireguard_key("b"), Some(node(1)));
    keys.update(node(1), None, None);
    assert_eq!(keys, MemberKeys::default());
}

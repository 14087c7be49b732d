//! Nodes that run the apps of one org only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use expect_test::expect;
use model::{NodeId, OrgName, Timestamp};
use proptest::prelude::*;

use super::plan;
use super::tests::{NOW, check, put, serving};
use crate::access::{AccessCommand, AccessRefused};
use crate::apply::{Command, Refused, apply};
use crate::cluster_state::{ClusterState, TokenRecord};
use crate::fixtures::{attach, cluster, database, deploy, key, manifest, name, origin, process};
use crate::leader::Leader;
use crate::placement::{Demand, Placement, Resources};
use crate::routes::RouteIndex;

fn org(name: &str) -> OrgName {
    name.parse().unwrap()
}

fn access(cluster: &mut ClusterState, command: AccessCommand) {
    apply(cluster, &Command::Access(command)).unwrap();
}

/// These orgs; the app `shop` is the first one's.
fn with_orgs(mut cluster: ClusterState) -> ClusterState {
    for name in ["trade", "bank"] {
        let now = Timestamp(0);
        let name = org(name);
        access(&mut cluster, AccessCommand::CreateOrg { name, now });
    }
    own(&mut cluster, "trade");
    cluster
}

fn own(cluster: &mut ClusterState, name: &str) {
    let app = key("shop/prod").app;
    let org = org(name);
    access(cluster, AccessCommand::SetOwner { app, org });
}

fn give(cluster: &mut ClusterState, node: u16, name: Option<&str>) {
    let node = NodeId(node);
    let org = name.map(org);
    apply(cluster, &Command::SetNodeOrg { node, org }).unwrap();
}

#[test]
fn instances_leave_a_node_that_is_given_to_another_org_once_others_are_ready() {
    let mut cluster = with_orgs(serving());
    give(&mut cluster, 2, Some("trade"));
    check(&cluster, expect![[""]]);
    give(&mut cluster, 2, Some("bank"));
    check(
        &cluster,
        expect![[r#"
        create 00000011 web v1 on n1, fd00:1111:2222:1:0:1:0:11
        - shop/prod web: instance 00000011 of v1 on node-1: waiting for the node
    "#]],
    );
    put(&mut cluster, 0x11, "web", 1, 1).make_ready();
    check(
        &cluster,
        expect![[r#"
        terminate 00000002: node-2 runs the apps of another org only
    "#]],
    );
    // Where no other takes them, they stay until one does, and the reason is named.
    let mut nowhere = with_orgs(serving());
    give(&mut nowhere, 1, Some("bank"));
    give(&mut nowhere, 2, Some("bank"));
    check(
        &nowhere,
        expect![[r#"
        - shop/prod web: no node can take it: node-1 (n1): it runs the apps of another org only; node-2 (n2): it runs the apps of another org only
        - shop/prod worker: no node can take it: node-1 (n1): it runs the apps of another org only; node-2 (n2): it runs the apps of another org only
    "#]],
    );
}

#[test]
fn an_instance_with_volumes_stays_with_them_and_the_reason_is_named() {
    let mut cluster = with_orgs(cluster(1));
    let process = manifest(&[("web", database(1))]);
    deploy(&mut cluster, "shop/prod", process, Timestamp(0));
    put(&mut cluster, 1, "web", 1, 1).make_ready();
    attach(&mut cluster, 1, 0);
    give(&mut cluster, 1, Some("bank"));
    let plan = plan(&cluster, NOW, &mut || 0x11);
    assert_eq!(plan.actions.len(), 1, "the rollout is done: {plan:?}");
}

/// The planner looks at an app's envs again when its owner or a node's is another.
#[test]
fn an_app_that_moves_to_another_org_leaves_the_nodes_of_the_one_before() {
    let mut cluster = with_orgs(serving());
    give(&mut cluster, 2, Some("trade"));
    let mut leader = Leader::new(cluster, RouteIndex::default());
    let mut id = 0x20;
    let mut draw = || {
        id += 1;
        id
    };
    let mut plan = |leader: &mut Leader| {
        let mut actions = Vec::new();
        while let Some(planned) = leader.plan_next(NOW, &mut draw) {
            actions.extend(planned);
        }
        actions
    };
    assert_eq!(plan(&mut leader), []);
    let moved = AccessCommand::SetOwner {
        app: key("shop/prod").app,
        org: org("bank"),
    };
    let moved = Command::Access(moved);
    leader.execute(&origin(), &[moved]).unwrap();
    assert_eq!(plan(&mut leader).len(), 1);
}

#[test]
fn an_org_that_nodes_are_of_stays() {
    let mut cluster = with_orgs(cluster(2));
    let remove = |cluster: &mut ClusterState| {
        let name = org("bank");
        let removed = apply(cluster, &Command::Access(AccessCommand::RemoveOrg { name }));
        removed.map(drop)
    };
    let has = |what: &str| {
        let (org, what) = (org("bank"), what.to_owned());
        Err(Refused::Access(AccessRefused::OrgHasNodes { org, what }))
    };
    give(&mut cluster, 2, Some("bank"));
    assert_eq!(remove(&mut cluster), has("node node-2 (n2)"));
    give(&mut cluster, 2, None);
    let role = api::enrollment::EnrollRole::Node;
    let token = |name: &str| TokenRecord {
        org: Some(org(name)),
        ..TokenRecord::new(role, Timestamp(100))
    };
    let add = |cluster: &mut ClusterState, name| {
        let (hash, token, now) = ([7; 32], token(name), Timestamp(0));
        apply(cluster, &Command::AddToken { hash, token, now }).map(drop)
    };
    add(&mut cluster, "bank").unwrap();
    assert_eq!(remove(&mut cluster), has("an enrollment token"));
    apply(&mut cluster, &Command::DeleteToken { hash: [7; 32] }).unwrap();
    assert_eq!(remove(&mut cluster), Ok(()));
    let gone = || Err(Refused::Access(AccessRefused::NoOrg(org("bank"))));
    assert_eq!(add(&mut cluster, "bank"), gone());
    let set = Command::SetNodeOrg {
        node: NodeId(1),
        org: Some(org("bank")),
    };
    assert_eq!(apply(&mut cluster, &set).map(drop), gone());
}

proptest! {
    /// Whoever the nodes and the app are of: an instance goes to a node that takes it where there is one, and else to none, whose reason is named.
    #[test]
    fn an_instance_goes_to_nodes_of_its_org_and_of_all_only(
        nodes in prop::collection::vec(0usize..3, 0..12), owner in 0usize..3
    ) {
        let orgs = [None, Some("trade"), Some("bank")];
        let mut cluster = with_orgs(cluster(u16::try_from(nodes.len()).unwrap()));
        for (number, of) in (1..).zip(&nodes) {
            give(&mut cluster, number, orgs[*of]);
        }
        let owner = orgs[owner].map(org);
        let chosen = Placement::new(&cluster).choose(&Demand {
            env: &key("shop/prod"),
            process: &name("web"),
            org: owner.as_ref(),
            needs: Resources::default(),
            archs: &["amd64"],
            region: None,
            labels: &BTreeMap::new(),
            protocol: None,
            pinned: None,
        });
        let any = cluster.nodes.values().any(|node| node.takes_apps_of(owner.as_ref()));
        match chosen {
            Ok(node) => prop_assert!(cluster.nodes[&node].takes_apps_of(owner.as_ref())),
            Err(error) => {
                prop_assert!(!any);
                prop_assert!(!error.is_the_fault_of_the_release());
                let text = error.to_string();
                prop_assert!(nodes.is_empty() || text.contains("runs the apps of another org only"), "{}", text);
                // Which org it is is nobody's business.
                prop_assert!(!text.contains("bank") && !text.contains("trade"), "{}", text);
            }
        }
    }

    /// However nodes are given and taken: once all is ready and planned, nothing is where it may not be, and planning again changes nothing.
    #[test]
    fn at_rest_nothing_is_on_a_node_of_another_org(
        changes in prop::collection::vec((1u16..4, 0usize..3), 0..8), moves in any::<bool>()
    ) {
        let orgs = [None, Some("trade"), Some("bank")];
        let mut cluster = with_orgs(cluster(4));
        let release = manifest(&[("web", process(3))]);
        deploy(&mut cluster, "shop/prod", release, Timestamp(0));
        let mut id = 0x100;
        // Node 4 is everybody's: there is always a place.
        for change in changes.into_iter().map(Some).chain([None]) {
            match change {
                Some((node, of)) => give(&mut cluster, node, orgs[of]),
                None if moves => own(&mut cluster, "bank"),
                None => {}
            }
            for _ in 0..20 {
                let planned = plan(&cluster, NOW, &mut || { id += 1; id });
                if planned.actions.is_empty() {
                    break;
                }
                for action in planned.actions {
                    apply(&mut cluster, &Command::Plan(action)).unwrap();
                }
                let all: Vec<_> = cluster.instances.keys().copied().collect();
                for id in all {
                    if cluster.instances.get(&id).unwrap().is_terminating() {
                        let gone = crate::cluster_state::InstancePhase::Gone { reason: String::new() };
                        cluster.instances.get_mut(&id).unwrap().phase = gone;
                    } else {
                        cluster.instances.get_mut(&id).unwrap().make_ready();
                    }
                }
            }
        }
        let owner = cluster.access.owner(&key("shop/prod").app).cloned();
        prop_assert_eq!(cluster.instances.len(), 3);
        for instance in cluster.instances.values() {
            prop_assert!(cluster.nodes[&instance.node].takes_apps_of(owner.as_ref()));
        }
        let planned = plan(&cluster, NOW, &mut || 1);
        prop_assert_eq!(planned.actions, vec![]);
    }
}

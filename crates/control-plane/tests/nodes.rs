//! Nodes from the outside: cordoned, drained, removed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use api::enrollment::{EnrollRole, Member};
use api::error_code;
use api::user::{CreateTokenRequest, RolloutPhase, Scheduling};
use api_client::ClientError;
use identity::MemberKey;
use model::{Generation, NodeId, OrgName};
use support::members::{enroll, member, token_of};
use support::registry::Registry;
use support::{
    Joined, ReportsAll as _, Server, enroll_request, env_key, eventually, manifest, report, running,
};
use tokio::task::JoinHandle;

/// A node that does what it is told, and has every disk it ever made.
fn obey(node: &Joined) -> JoinHandle<()> {
    let told = node.client.clone();
    tokio::spawn(async move {
        let (mut generation, mut disks) = (Generation::default(), BTreeSet::new());
        let mut instances = Vec::new();
        loop {
            let state = told.desired(generation, Duration::from_millis(200)).await;
            if let Ok(Some(state)) = state {
                generation = state.generation;
                let volumes = state.instances.iter().flat_map(|spec| &spec.volumes);
                disks.extend(volumes.map(|volume| volume.id));
                instances = state.instances.iter().map(|spec| spec.id).collect();
            }
            let mut said = report(generation, instances.iter().copied().map(running).collect());
            said.volumes = disks.iter().copied().collect();
            if told.report_all(&said).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    })
}

async fn on(server: &Server, node: NodeId) -> usize {
    let rows = server.user.instances(None).await.unwrap();
    rows.iter().filter(|row| row.node == node).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_node_is_drained_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (first, one) = server.join_node().await;
    let (second, two) = server.join_node().await;
    let obedient = [obey(&one), obey(&two)];
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;
    eventually("it is rolled out", async || {
        let status = server.user.rollout(&key, None, None, Duration::ZERO).await;
        (status.unwrap().phase == RolloutPhase::Done).then_some(())
    })
    .await;
    assert!(on(&server, first).await > 0 && on(&server, second).await > 0);

    let refused = server.user.remove_node(first, false).await.unwrap_err();
    assert!(refused.to_string().contains("still has"), "{refused}");
    let refused = server.user.remove_node(first, true).await.unwrap_err();
    assert!(refused.to_string().contains("is not lost"), "{refused}");
    let drain = Scheduling::Draining {
        with_volumes: false,
    };
    server.user.set_scheduling(first, drain).await.unwrap();
    eventually("the node is empty", async || {
        (on(&server, first).await == 0).then_some(())
    })
    .await;
    let rows = server.user.nodes().await.unwrap();
    let row = rows.iter().find(|row| row.id == first).unwrap();
    assert_eq!((row.scheduling, row.instances), (drain, 0));
    server.user.remove_node(first, false).await.unwrap();
    let rows = server.user.nodes().await.unwrap();
    assert!(rows.iter().all(|row| row.id != first));
    // Its certificate opens nothing any more.
    let refused = one
        .client
        .report_all(&report(Generation::default(), Vec::new()))
        .await;
    assert!(refused.unwrap_err().to_string().contains("not a member"));
    let unknown = server.user.set_scheduling(first, drain).await.unwrap_err();
    assert!(
        unknown.to_string().contains("there is no node"),
        "{unknown}"
    );
    for node in obedient {
        node.abort();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_set_of_a_node_that_was_revoked_and_the_reason_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (node, _one) = server.join_node().await;
    let user = &server.user;
    user.revoke(Member::Node(node)).await.unwrap();
    let drain = Scheduling::Draining { with_volumes: true };
    let label = [("disk".parse().unwrap(), Some("nvme".parse().unwrap()))];
    let mut refusals = vec![user.set_labels(node, label.into()).await];
    for scheduling in [Scheduling::Schedulable, Scheduling::Cordoned, drain] {
        refusals.push(user.set_scheduling(node, scheduling).await);
    }
    for refused in refusals {
        let error = refused.unwrap_err();
        assert_eq!(error.code(), Some(error_code::REVOKED));
        assert!(error.to_string().contains("was revoked"), "{error}");
        assert!(error.hint().unwrap().contains("--replaces"), "{error}");
    }
    let row = user.nodes().await.unwrap().remove(0);
    assert!(row.labels.is_empty() && row.scheduling == Scheduling::Schedulable);
    server.stop().await;
}

const VOLUMES: &str = "[[processes.web.volumes]]\nname = \"data\"\nsize = \"1GiB\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn case_volumes_are_not_drained_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (first, one) = server.join_node().await;
    let obedient = obey(&one);
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server
        .deploy(&key, &(manifest("hello") + VOLUMES), &image)
        .await;
    eventually("it runs", async || {
        (on(&server, first).await > 0).then_some(())
    })
    .await;
    let drain = |with_volumes| Scheduling::Draining { with_volumes };
    let refused = server
        .user
        .set_scheduling(first, drain(false))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("which cannot move"),
        "{refused}"
    );
    server
        .user
        .set_scheduling(first, drain(true))
        .await
        .unwrap();
    eventually("the node is empty", async || {
        (on(&server, first).await == 0).then_some(())
    })
    .await;
    eventually("what waits is named", async || {
        let envs = server.user.envs().await.unwrap();
        let waits = envs[0].waits.join("; ");
        waits.contains("it is being drained").then_some(())
    })
    .await;
    server
        .user
        .set_scheduling(first, Scheduling::Schedulable)
        .await
        .unwrap();
    eventually("it runs again", async || {
        (on(&server, first).await > 0).then_some(())
    })
    .await;
    obedient.abort();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_one_org_runs_its_apps_only_and_others_leave_it() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let user = &server.user;
    let org = |name: &str| name.parse::<OrgName>().unwrap();
    for name in ["trade", "bank"] {
        user.create_org(&org(name)).await.unwrap();
    }
    // By its token.
    let request = |role, name: &str| CreateTokenRequest {
        org: Some(org(name)),
        ..CreateTokenRequest::new(role, 600)
    };
    let token = token_of(&server, &request(EnrollRole::Node, "trade")).await;
    let key = MemberKey::generate().unwrap();
    let joined = enroll(&server, &token, &enroll_request(&token, &key))
        .await
        .unwrap();
    let Member::Node(first) = joined.member else {
        panic!("a node became {}", joined.member);
    };
    let listed = user.tokens().await.unwrap();
    assert!(listed.iter().any(|row| row.org == Some(org("trade"))));
    let client = Joined {
        client: member(&server, &joined, &key),
        response: joined,
        key_pem: key.key_pem(),
    };
    let obeys = obey(&client);
    let of = async |node: NodeId| {
        let nodes = user.nodes().await.unwrap();
        nodes.into_iter().find(|row| row.id == node).unwrap().org
    };
    assert_eq!(of(first).await, Some(org("trade")));
    let code = |error: ClientError| error.code().map(str::to_owned).unwrap();
    for (role, name, expected) in [
        (EnrollRole::Node, "nowhere", "org_not_found"),
        (EnrollRole::Edge, "trade", "edge_of_an_org"),
    ] {
        let refused = user.create_token(&request(role, name)).await;
        assert_eq!(code(refused.unwrap_err()), expected);
    }
    let removed = user.remove_org(&org("trade")).await;
    assert_eq!(code(removed.unwrap_err()), "org_has_nodes");

    // The app of another org finds no node; the reason does not say whose the node is.
    let shop = env_key("shop", "prod");
    let digest = registry.push("shop", "amd64", "one").await;
    let image = format!("{}/shop@{digest}", registry.host);
    server.deploy(&shop, &manifest("shop"), &image).await;
    let waits = async |text: &str| {
        let envs = user.envs().await.unwrap();
        let env = envs.iter().find(|row| row.env == shop).unwrap();
        let waits = env.waits.join("; ");
        (waits.contains(text) && !waits.contains("trade")).then_some(())
    };
    eventually("the reason", async || {
        waits("it runs the apps of another org only").await
    })
    .await;
    assert_eq!(on(&server, first).await, 0);

    // A node for all takes it, until it is given to an org.
    let (second, two) = server.join_node().await;
    let obeys_too = obey(&two);
    let rests_on = async |node: NodeId, count: usize| {
        eventually("the instances to be there", async || {
            (on(&server, node).await == count).then_some(())
        })
        .await;
    };
    rests_on(second, 2).await;
    user.set_node_org(first, None).await.unwrap();
    user.set_node_org(second, Some(org("trade"))).await.unwrap();
    rests_on(first, 2).await;
    rests_on(second, 0).await;
    let refused = user.set_node_org(second, Some(org("nowhere"))).await;
    assert_eq!(code(refused.unwrap_err()), "org_not_found");
    let refused = user.set_node_org(NodeId(99), None).await;
    assert_eq!(code(refused.unwrap_err()), "node_not_found");
    // Its own org's app goes there.
    user.move_app(&shop.app, &org("trade")).await.unwrap();
    user.set_node_org(first, Some(org("bank"))).await.unwrap();
    rests_on(second, 2).await;
    obeys.abort();
    obeys_too.abort();
    server.stop().await;

    // It is stored.
    let server = Server::start(folder.path()).await;
    let nodes = server.user.nodes().await.unwrap();
    let orgs: Vec<_> = nodes.iter().map(|row| row.org.clone()).collect();
    assert_eq!(orgs, [Some(org("bank")), Some(org("trade"))]);
    server.stop().await;
}

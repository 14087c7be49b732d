//! Releases that change a part of an app.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use api::node::DesiredState;
use api::user::{DeployRequest, RolloutPhase};
use model::instance::InstanceSpec;
use model::{EnvKey, Generation, InstanceId};
use support::registry::Registry;
use support::{ObedientNode, Server, env_key, eventually, manifest};

const WORKER: &str = "[processes.worker]\n[processes.worker.scaling]\nmin = 1\nmax = 1\n";

async fn desired(node: &ObedientNode) -> DesiredState {
    let wait = Duration::from_millis(100);
    let state = node.joined.client.desired(Generation::default(), wait);
    state.await.unwrap().unwrap()
}

async fn done(server: &Server, env: &EnvKey, release: u32) {
    eventually("the release is done", async || {
        let status = server.user.rollout(env, None, None, Duration::ZERO).await;
        let status = status.unwrap();
        (status.release.0 == release && status.phase == RolloutPhase::Done).then_some(())
    })
    .await;
}

fn by_id(state: &DesiredState, process: &str) -> BTreeMap<InstanceId, InstanceSpec> {
    let specs = state.instances.iter();
    let mine = specs.filter(|spec| spec.process.as_str() == process);
    mine.map(|spec| (spec.id, spec.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_deploy_of_one_process_leaves_the_others_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let node = ObedientNode::start(&server).await;
    let key = env_key("hello", "prod");
    let one = registry.push("hello", "amd64", "one").await;
    let two = registry.push("hello", "amd64", "two").await;
    let request = |digest, only: &[&str], manifest: &str| DeployRequest {
        only: only.iter().map(|name| name.parse().unwrap()).collect(),
        manifest: manifest.to_owned(),
        image: format!("{}/hello@{digest}", registry.host),
    };
    let both = manifest("hello") + WORKER;
    let refused = server
        .user
        .deploy(&key, &request(&one, &["web"], &both))
        .await;
    assert_eq!(refused.unwrap_err().code(), Some("env_not_found"));
    server
        .user
        .deploy(&key, &request(&one, &[], &both))
        .await
        .unwrap();
    done(&server, &key, 1).await;
    let first = desired(&node).await;

    // The same again: a release in which nothing is another.
    server
        .user
        .deploy(&key, &request(&one, &[], &both))
        .await
        .unwrap();
    done(&server, &key, 2).await;
    assert_eq!(desired(&node).await.instances, first.instances);
    let status = server.user.rollout(&key, None, None, Duration::ZERO).await;
    assert_eq!(status.unwrap().instances.len(), 3);

    // Another image and other variables, of which the worker gets neither.
    let green = format!("{both}[env]\nCOLOUR = \"green\"\n");
    let refused = server
        .user
        .deploy(&key, &request(&two, &["wep"], &green))
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Some("process_not_found"));
    assert!(refused.to_string().contains("web, worker"), "{refused}");
    let request = request(&two, &["web"], &green);
    server.user.deploy(&key, &request).await.unwrap();
    done(&server, &key, 3).await;
    let third = desired(&node).await;
    assert_eq!(by_id(&third, "worker"), by_id(&first, "worker"));
    let web = by_id(&third, "web");
    assert_eq!(web.len(), 2);
    for spec in web.values() {
        assert_eq!(
            (spec.release.0, spec.image.digest.clone()),
            (3, two.clone())
        );
        assert_eq!(spec.variables["COLOUR"], "green");
    }

    // A restarted server knows it, too.
    let edge_routes = server.user.rollout(&key, None, None, Duration::ZERO).await;
    assert_eq!(edge_routes.unwrap().release.0, 3);
    server.stop().await;
    let server = Server::start(folder.path()).await;
    done(&server, &key, 3).await;
    server.stop().await;
}

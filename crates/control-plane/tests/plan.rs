//! What a deploy would do, and that asking does nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use api::user::{DeployRequest, RolloutPhase};
use model::Generation;
use support::registry::Registry;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_a_deploy_would_do_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let first = Generation {
        counter: 1,
        ..Generation::default()
    };
    node.client
        .report_all(&report(first, Vec::new()))
        .await
        .unwrap();
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let request = |manifest: String| DeployRequest {
        only: BTreeSet::new(),
        manifest,
        image: image.clone(),
    };
    let plan = async |manifest: String| {
        let planned = server.user.plan(&key, &request(manifest)).await;
        planned.unwrap()
    };

    // Nothing is there yet.
    let planned = plan(manifest("hello")).await;
    assert_eq!((planned.current, planned.changes), (None, true));
    assert_eq!(planned.outcome, Some(RolloutPhase::Done));
    assert_eq!(planned.processes[0].places.len(), 2);
    assert_eq!(planned.processes[0].places[0].node_name, "box");
    let absent = server.user.releases(&key).await.unwrap_err();
    assert_eq!(absent.code(), Some("env_not_found"));

    server.deploy(&key, &manifest("hello"), &image).await;
    eventually("two instances", async || {
        let rows = server.user.instances(Some(&key)).await.unwrap();
        (rows.len() == 2).then_some(())
    })
    .await;
    let same = plan(manifest("hello")).await;
    assert!(!same.changes && same.manifest.is_empty(), "{same:?}");

    // More than the node has: the reason is that of a deploy.
    let large = format!(
        "{}\n[processes.web.resources]\nmemory = \"1TiB\"\n",
        manifest("hello")
    );
    let planned = plan(large).await;
    assert!(
        planned.blocked.iter().any(|why| why.contains("memory")),
        "{planned:?}"
    );
    assert_ne!(planned.outcome, Some(RolloutPhase::Done));
    let paths: Vec<_> = planned
        .manifest
        .iter()
        .map(|change| change.path.as_str())
        .collect();
    assert_eq!(paths, ["processes.web.resources.memory"]);

    // What a deploy refuses is refused with its words.
    let secret = manifest("hello").replace(
        "[processes.web]\n",
        "[processes.web]\nsecrets = [\"door\"]\n",
    );
    let planned = plan(secret.clone()).await;
    let refused = planned.refused.unwrap();
    let deployed = server
        .user
        .deploy(&key, &request(secret))
        .await
        .unwrap_err();
    assert_eq!(deployed.code(), Some(refused.code.as_str()));
    assert_eq!(refused.code, "secret_not_found");

    assert_eq!(server.user.releases(&key).await.unwrap().len(), 1);
    server.stop().await;
}

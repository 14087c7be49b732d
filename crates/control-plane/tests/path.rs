//! The way of a release through the control plane, over real TLS, with a real registry.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use api::edge::HasRoutes;
use api::enrollment::EnrollRole;
use api::user::{DeployRequest, EnvRow, RolloutPhase, RolloutStatus, ScaleRequest};
use model::instance::InstanceState;
use model::{EnvKey, Generation, ReleaseNumber};
use support::registry::Registry;
use support::*;

async fn rolled_out(server: &Server, key: &EnvKey, release: u32) -> RolloutStatus {
    let mut after = None;
    let release = Some(ReleaseNumber(release));
    let following = async {
        loop {
            let wait = Duration::from_secs(5);
            let status = server
                .user
                .rollout(key, release, after, wait)
                .await
                .unwrap();
            if status.phase != RolloutPhase::Rolling {
                return status;
            }
            after = Some(status.revision);
        }
    };
    tokio::time::timeout(PATIENCE, following).await.unwrap()
}

fn ready(row: &EnvRow) -> (u32, u32) {
    row.processes[&"web".parse().unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_deployed_served_scaled_replaced_and_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    assert!(server.ready.first_start);
    let mode = std::fs::metadata(&server.ready.client_config)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    server.user.health().await.unwrap();

    let node = ObedientNode::start(&server).await;
    let edge = server.join(EnrollRole::Edge).await;
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("hello"),
        image: format!("{}/hello:latest", registry.host),
    };
    let deployed = server.user.deploy(&key, &request).await.unwrap();
    assert_eq!(deployed.release, ReleaseNumber(1));
    assert_eq!(deployed.image_ref_digest, digest);
    assert_eq!(deployed.pinned_tag.as_deref(), Some("latest"));
    assert_eq!(
        deployed.resolved_image_digest,
        BTreeMap::from([("amd64".to_owned(), digest.clone())])
    );

    let status = rolled_out(&server, &key, 1).await;
    assert_eq!(status.phase, RolloutPhase::Done, "{}", status.reason);
    assert_eq!(status.instances.len(), 2);
    for instance in &status.instances {
        assert_eq!(instance.node, node.id);
        assert_eq!(instance.node_name, "box");
        assert!(instance.report.as_ref().unwrap().state.is_ready());
    }

    // The edge learns of both, and of nothing newer.
    let table = eventually("both backends", async || {
        let table = edge
            .client
            .routes(HasRoutes::default(), Duration::ZERO)
            .await;
        table.unwrap().filter(|t| {
            t.routes
                .get("hello.localhost")
                .is_some_and(|r| r.backends.len() == 2)
        })
    })
    .await;
    let nothing = edge
        .client
        .routes(table.as_had(), Duration::from_millis(50))
        .await;
    assert_eq!(nothing.unwrap(), None);

    // Scaling reaches the node and comes back.
    let scale = ScaleRequest {
        processes: BTreeMap::from([("web".parse().unwrap(), 3)]),
    };
    assert_eq!(
        ready(&server.user.scale(&key, &scale).await.unwrap()),
        (3, 2)
    );
    eventually("three are ready", async || {
        let envs = server.user.envs().await.unwrap();
        (ready(&envs[0]) == (3, 3)).then_some(())
    })
    .await;
    assert_eq!(server.user.nodes().await.unwrap()[0].instances, 3);

    // A second release replaces the first.
    let second = registry.push("hello", "amd64", "two").await;
    let image = format!("{}/hello@{second}", registry.host);
    assert_eq!(server.deploy(&key, &manifest("hello"), &image).await, 2);
    let status = rolled_out(&server, &key, 2).await;
    assert_eq!(status.phase, RolloutPhase::Done, "{}", status.reason);
    let instances = server.user.instances(Some(&key)).await.unwrap();
    assert!(
        instances
            .iter()
            .all(|i| i.release == ReleaseNumber(2) || i.terminating)
    );
    let old = server
        .user
        .rollout(&key, Some(ReleaseNumber(1)), None, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(old.phase, RolloutPhase::Superseded);

    server.user.destroy(&key).await.unwrap();
    eventually("nothing is left", async || {
        let envs = server.user.envs().await.unwrap();
        let instances = server.user.instances(None).await.unwrap();
        (envs.is_empty() && instances.is_empty()).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desired_state_is_whole_and_names_every_stop() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (id, node) = server.join_node().await;
    let wait = Duration::from_secs(10);
    let empty = node
        .client
        .desired(Generation::default(), wait)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((empty.node, empty.instances.len()), (id, 0));
    assert_eq!(empty.cluster, node.response.cluster);
    node.client
        .report_all(&report(empty.generation, Vec::new()))
        .await
        .unwrap();

    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;
    let two = eventually("two instances", async || {
        let newer = node.client.desired(empty.generation, wait).await.unwrap();
        newer.filter(|desired| desired.instances.len() == 2)
    })
    .await;
    for spec in &two.instances {
        assert_eq!(spec.image.digest, digest);
        assert_eq!(spec.image.registry, registry.host);
    }

    // It starts, fails for a while, and says why; the user can read it.
    let mut failing = running(two.instances[0].id);
    failing.state = InstanceState::Backoff;
    failing.failure = Some("could not start `/hello`: no such file".to_owned());
    let reports = vec![failing.clone(), running(two.instances[1].id)];
    node.client
        .report_all(&report(two.generation, reports))
        .await
        .unwrap();
    let rows = server.user.instances(Some(&key)).await.unwrap();
    let row = rows.iter().find(|row| row.id == failing.id).unwrap();
    assert_eq!(row.report.as_ref(), Some(&failing));

    server.user.destroy(&key).await.unwrap();
    let stops = eventually("both are to stop", async || {
        let newer = node.client.desired(two.generation, wait).await.unwrap();
        newer.filter(|desired| desired.stop.len() == 2)
    })
    .await;
    assert!(stops.instances.is_empty());
    // As long as the node has not said so, they are not gone.
    let reports = two.instances.iter().map(|spec| running(spec.id)).collect();
    node.client
        .report_all(&report(stops.generation, reports))
        .await
        .unwrap();
    assert_eq!(server.user.instances(None).await.unwrap().len(), 2);
    node.client
        .report_all(&report(stops.generation, Vec::new()))
        .await
        .unwrap();
    eventually("they are gone", async || {
        server
            .user
            .instances(None)
            .await
            .unwrap()
            .is_empty()
            .then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_the_same_server() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start().await;
    let server = Server::start(folder.path()).await;
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let node = ObedientNode::start(&server).await;
    let edge = server.join(EnrollRole::Edge).await;
    server.deploy(&key, &manifest("hello"), &image).await;
    assert_eq!(rolled_out(&server, &key, 1).await.phase, RolloutPhase::Done);
    let before = server.user.instances(None).await.unwrap();
    let table = eventually("both backends", async || {
        let table = edge
            .client
            .routes(HasRoutes::default(), Duration::ZERO)
            .await
            .unwrap();
        table.filter(|t| t.routes["hello.localhost"].backends.len() == 2)
    })
    .await;
    let config = server.config.clone();
    let address = server.ready.address;
    drop(node);
    server.stop().await;

    // On the same port, so that the members' clients find it.
    let (sender, ready) = tokio::sync::oneshot::channel();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let mut again = options(folder.path());
    again.listen = address;
    again.ready = Some(sender);
    let task = tokio::spawn(control_plane::run(again, shutdown.clone()));
    let ready = ready.await.unwrap();
    assert!(!ready.first_start);
    let same = api_client::ClientConfig::load(&ready.client_config).unwrap();
    assert_eq!(same, config);
    let user = api_client::ApiClient::user(&same).unwrap();
    assert_eq!(user.instances(None).await.unwrap(), before);
    // The edge is told the table once, because its counters are of another session, and it is the same: none went empty meanwhile.
    let wait = Duration::from_millis(500);
    let told = edge.client.routes(table.as_had(), wait).await.unwrap();
    let told = told.unwrap();
    assert_eq!((&told.routes, told.since), (&table.routes, None));
    let again = edge.client.routes(told.as_had(), wait).await;
    assert_eq!(again.unwrap(), None);
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_has_one_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let second = control_plane::run(
        options(folder.path()),
        tokio_util::sync::CancellationToken::new(),
    );
    let error = second.await.unwrap_err();
    assert!(error.to_string().contains("another server"), "{error}");
    assert!(error.hint().is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_client_configuration_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let lost = server.config.clone();
    let path = server.ready.client_config.clone();
    server.stop().await;
    std::fs::remove_file(&path).unwrap();
    let server = Server::start(folder.path()).await;
    assert_ne!(server.config.token, lost.token);
    assert_eq!(server.config.ca_pem, lost.ca_pem);
    server.user.envs().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_does_not_wait_for_long_polls() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, node) = server.join_node().await;
    let first = node
        .client
        .desired(Generation::default(), Duration::from_secs(10))
        .await;
    let after = first.unwrap().unwrap().generation;
    let long = Duration::from_secs(30);
    let (polling, streams) = (node.client.clone(), node.client.clone());
    let polling = tokio::spawn(async move { polling.desired(after, long).await });
    let streams = tokio::spawn(async move { streams.streams(long).await });
    tokio::time::timeout(Duration::from_secs(10), server.stop())
        .await
        .expect("it waited for the long polls");
    for error in [
        polling.await.unwrap().unwrap_err(),
        streams.await.unwrap().unwrap_err(),
    ] {
        assert!(error.is_transient(), "{error}");
    }
}

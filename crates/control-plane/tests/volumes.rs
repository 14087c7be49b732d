//! Volumes from the outside: made, kept, refused, deleted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use api::user::{DeployRequest, RolloutPhase, ScaleRequest};
use model::Generation;
use support::registry::Registry;
use support::{ReportsAll as _, Server, env_key, eventually, manifest, report, running};

const VOLUMES: &str = "[[processes.web.volumes]]\nname = \"data\"\nsize = \"1GiB\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn volumes_stay_until_a_user_deletes_them() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (id, node) = server.join_node().await;
    // A node that does what it is told, and has every disk it ever made.
    let told = node.client.clone();
    let obedient = tokio::spawn(async move {
        let (mut generation, mut disks) =
            (Generation::default(), std::collections::BTreeSet::new());
        loop {
            let state = told.desired(generation, Duration::from_millis(200)).await;
            if let Ok(Some(state)) = state {
                generation = state.generation;
                let volumes = state.instances.iter().flat_map(|spec| &spec.volumes);
                disks.extend(volumes.map(|volume| volume.id));
                disks.retain(|id| !state.remove_volumes.contains(id));
                let instances = state.instances.iter().map(|spec| running(spec.id));
                let mut said = report(generation, instances.collect());
                said.volumes = disks.iter().copied().collect();
                told.report_all(&said).await.unwrap();
            }
        }
    });
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let text = manifest("hello") + VOLUMES;
    let release = server.deploy(&key, &text, &image).await;
    eventually("it is rolled out", async || {
        let status = server.user.rollout(&key, None, None, Duration::ZERO).await;
        (status.unwrap().phase == RolloutPhase::Done).then_some(())
    })
    .await;
    assert_eq!(release, 1);
    let mut volumes = server.user.volumes(Some(&key)).await.unwrap();
    assert!(!volumes.is_empty());
    // Volumes are listed by id, and ids are random.
    volumes.sort_by_key(|row| row.ordinal);
    for (ordinal, row) in (0..).zip(&volumes) {
        assert_eq!((row.name.as_str(), row.ordinal), ("data", ordinal));
        assert_eq!((row.node, row.size_bytes), (id, 1 << 30));
        assert!(row.instance.is_some() && row.made && !row.deleting);
    }

    let refused = server.user.delete_volume(volumes[0].id).await.unwrap_err();
    assert!(
        refused.to_string().contains("belongs to instance"),
        "{refused}"
    );
    let larger = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: text.replace("1GiB", "2GiB"),
        image: image.clone(),
    };
    let refused = server.user.deploy(&key, &larger).await.unwrap_err();
    assert!(refused.to_string().contains("keeps its size"), "{refused}");

    let none = ScaleRequest {
        processes: [("web".parse().unwrap(), 0)].into(),
    };
    server.user.scale(&key, &none).await.unwrap();
    eventually("nobody has it", async || {
        let rows = server.user.volumes(Some(&key)).await.unwrap();
        assert_eq!(rows.len(), volumes.len());
        rows.iter().all(|row| row.instance.is_none()).then_some(())
    })
    .await;
    server.user.delete_volume(volumes[0].id).await.unwrap();
    eventually("it is gone", async || {
        let rows = server.user.volumes(None).await.unwrap();
        (rows.len() == volumes.len() - 1).then_some(())
    })
    .await;
    let unknown = server.user.delete_volume(volumes[0].id).await.unwrap_err();
    assert!(
        unknown.to_string().contains("there is no volume"),
        "{unknown}"
    );

    server.user.destroy(&key).await.unwrap();
    eventually("the env is gone", async || {
        server.user.envs().await.unwrap().is_empty().then_some(())
    })
    .await;
    let kept = server.user.volumes(Some(&key)).await.unwrap();
    assert_eq!(kept.len(), volumes.len() - 1);
    obedient.abort();
    server.stop().await;
}

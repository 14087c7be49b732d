//! Records of the store that cannot be read, from the outside: they are named, and hurt nobody but those whose they are.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use api::user::{DeployRequest, EnvRow, RolloutPhase, ScaleRequest, Scheduling};
use model::{EnvKey, NodeId};
use sqlx::{Connection as _, SqliteConnection};
use support::registry::Registry;
use support::{ObedientNode, Server, env_key, eventually, manifest};

async fn execute(folder: &Path, sql: &'static str) {
    let url = format!("sqlite:{}", folder.join("platform.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

/// The server again, after this was done to its store.
async fn damaged(server: Server, folder: &Path, sql: &'static str) -> Server {
    let url = server.ready.url.clone();
    server.stop().await;
    execute(folder, sql).await;
    eventually("the server starts again", async || {
        Server::try_start_at(folder, &url).await
    })
    .await
}

async fn rolled_out(server: &Server, key: &EnvKey, image: &str) {
    server.deploy(key, &manifest(key.app.as_str()), image).await;
    eventually("it is rolled out", async || {
        let status = server.user.rollout(key, None, None, Duration::ZERO).await;
        (status.unwrap().phase == RolloutPhase::Done).then_some(())
    })
    .await;
}

async fn env_row(server: &Server, key: &EnvKey) -> EnvRow {
    let rows = server.user.envs().await.unwrap();
    rows.into_iter().find(|row| row.env == *key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_records_that_cannot_be_read_are_named_and_hurt_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (one, two) = (
        ObedientNode::start(&server).await,
        ObedientNode::start(&server).await,
    );
    assert_eq!((one.id, two.id), (NodeId(1), NodeId(2)));
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let [lost, blind, half] = ["lost", "blind", "half"].map(|app| env_key(app, "prod"));
    for key in [&lost, &blind, &half] {
        rolled_out(&server, key, &image).await;
    }
    let before = server.user.instances(None).await.unwrap();
    assert_eq!(before.len(), 6);
    let server = damaged(
        server,
        folder.path(),
        "UPDATE nodes SET generation = 9223372036854775807 WHERE id = 1;
         UPDATE envs SET scale_json = '{' WHERE app = 'lost';
         UPDATE releases SET release_json = '{' WHERE app = 'blind';
         UPDATE instances SET spec_json = '{' WHERE app = 'half' AND node = 2;
         UPDATE cluster SET last_route_table = 9223372036854775807;",
    )
    .await;

    // Another env goes to the node that is left, beside an instance that cannot be read.
    let fine = env_key("fine", "prod");
    rolled_out(&server, &fine, &image).await;
    let rows = server.user.instances(Some(&fine)).await.unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.node == two.id));

    // The nodes are named, and what is counted on them.
    let nodes = server.user.nodes().await.unwrap();
    let [first, second] = nodes.as_slice() else {
        panic!("{nodes:?}");
    };
    let unreadable = first.unreadable.as_deref().unwrap();
    assert!(unreadable.contains("a generation is out of range"));
    assert!(!first.online && second.unreadable.is_none());
    let [instance] = second.unreadable_records.as_slice() else {
        panic!("{second:?}");
    };
    assert!(instance.assumed && instance.record.contains("the record of instance"));
    assert!(instance.promised.memory_bytes > 0);
    let cordoned = server.user.set_scheduling(one.id, Scheduling::Cordoned);
    let refused = cordoned.await.unwrap_err().to_string();
    assert!(refused.contains("the record of node n1 cannot be read"));

    // The envs are named, with the hosts that lead to them, and say the same to whoever wants to change them.
    let row = env_row(&server, &lost).await;
    assert_eq!(
        (row.release.0, row.hosts),
        (0, vec!["lost.localhost".to_owned()])
    );
    for key in [&lost, &blind, &half] {
        let row = env_row(&server, key).await;
        assert!(row.unreadable.unwrap().contains("cannot be read"));
        let deploy = DeployRequest {
            only: std::collections::BTreeSet::new(),
            manifest: manifest(key.app.as_str()),
            image: image.clone(),
        };
        let scale = ScaleRequest {
            processes: BTreeMap::from([("web".parse().unwrap(), 3)]),
        };
        let refusals = [
            server.user.deploy(key, &deploy).await.unwrap_err(),
            server.user.redeploy(key).await.unwrap_err(),
            server.user.scale(key, &scale).await.unwrap_err(),
            server.user.destroy(key).await.unwrap_err(),
        ];
        for refused in refusals {
            let refused = refused.to_string();
            let why = format!("nothing of env {key} is changed: the record of");
            assert!(refused.contains(&why), "{refused}");
        }
    }
    for key in [&lost, &blind] {
        let status = server.user.rollout(key, None, None, Duration::ZERO).await;
        let refused = status.unwrap_err().to_string();
        assert!(refused.contains("cannot be read"), "{refused}");
    }

    // Their hosts are theirs.
    for key in [&lost, &blind, &half] {
        let host = format!("{}.localhost", key.app);
        let thief = DeployRequest {
            only: std::collections::BTreeSet::new(),
            manifest: manifest("thief").replace("thief.localhost", &host),
            image: image.clone(),
        };
        let deployed = server.user.deploy(&env_key("thief", "prod"), &thief).await;
        let refused = deployed.unwrap_err().to_string();
        assert!(
            refused.contains(&format!("{host} leads to {key}")),
            "{refused}"
        );
    }

    // Once the rows are right again, they go on; nothing was stopped meanwhile.
    let server = damaged(
        server,
        folder.path(),
        "UPDATE nodes SET generation = 20 WHERE id = 1; UPDATE envs SET scale_json = '{}' WHERE app = 'lost';",
    )
    .await;
    let nodes = server.user.nodes().await.unwrap();
    assert!(nodes.iter().all(|row| row.unreadable.is_none()));
    assert_eq!(env_row(&server, &lost).await.unreadable, None);
    let after = server.user.instances(Some(&lost)).await.unwrap();
    let ids = |rows: &[api::user::InstanceRow]| rows.iter().map(|row| row.id).collect::<Vec<_>>();
    let of_lost: Vec<_> = before.into_iter().filter(|row| row.env == lost).collect();
    assert_eq!(ids(&after), ids(&of_lost));
    server.user.destroy(&lost).await.unwrap();
    server.stop().await;
}

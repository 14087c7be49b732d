//! Rows of older versions are read, and rows that cannot be read are kept and named.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use model::instance::InstanceState;
use model::{EnvNetwork, InstanceId, NodeId, ReleaseNumber, VolumeId};
use scheduler::apply::{Command, Refused};
use scheduler::changes::Changes;
use scheduler::cluster_state::{ClusterState, CountedAs, InstancePhase, Subject, VolumePhase};
use scheduler::desired::desired_state;
use scheduler::planner::plan;
use sqlx::{Connection as _, SqliteConnection};
use store::JSON_VERSION;
use support::*;

/// A store as commit f29f308 left it.
const VERSION_1: &str = include_str!("fixtures/json_version_1.sql");

async fn execute(folder: &Path, sql: &'static str) {
    let url = format!("sqlite:{}?mode=rwc", folder.join("platform.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

async fn version_1(folder: &Path) -> LedStore {
    execute(folder, VERSION_1).await;
    open(folder).await
}

fn subjects(cluster: &ClusterState) -> Vec<Subject> {
    (cluster.unreadable.iter())
        .map(|record| record.subject.clone())
        .collect()
}

#[tokio::test]
async fn a_store_of_version_1_is_read_as_it_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let store = version_1(folder.path()).await;
    let cluster = store.load().await.unwrap();
    assert_eq!(cluster.unreadable, []);
    assert_eq!(cluster.settings, settings());
    assert_eq!(cluster.last_network, EnvNetwork(2));

    let node = &cluster.nodes[&NodeId(1)];
    assert_eq!((node.name.as_str(), node.generation), ("box", 8));
    assert_eq!(node.driver.as_ref().unwrap().name, "qemu-tcg");
    assert_eq!(node.egress.as_ref().unwrap().reason, "no uplink");
    assert_eq!(cluster.nodes[&NodeId(2)].driver, None);

    let env = &cluster.envs[&env_key("shop")];
    assert_eq!(env.rollout.reason, "it failed");
    assert_eq!(env.scale[&"web".parse().unwrap()], 3);
    assert_eq!(env.releases[&ReleaseNumber(2)].secrets["database"], 1);
    assert!(cluster.envs[&env_key("old")].destroying);
    assert_eq!(cluster.secrets[&env_key("shop")]["database"], 1);

    let phase = |id| cluster.instances[&InstanceId(id)].phase.clone();
    assert_eq!(phase(1), InstancePhase::Established);
    assert_eq!(phase(2), InstancePhase::New);
    let terminating = InstancePhase::Terminating {
        was_ready: true,
        reason: "more than the 2 wanted".to_owned(),
    };
    assert_eq!(phase(3), terminating);
    let gone = InstancePhase::Gone {
        reason: "more than the 2 wanted".to_owned(),
    };
    assert_eq!(phase(4), gone);
    assert_eq!(phase(5), InstancePhase::New);
    let failed = cluster.instances[&InstanceId(2)].report.as_ref().unwrap();
    assert_eq!(failed.state, InstanceState::Failed);
    assert_eq!(failed.log_tail, ["no such file"]);

    let volume = |id| cluster.volumes[&VolumeId(id)].phase;
    assert_eq!(volume(0xd0), VolumePhase::Made);
    assert_eq!(volume(0xd1), VolumePhase::Planned);
    assert_eq!(volume(0xd2), VolumePhase::Deleting { made: true });
    assert_eq!(volume(0xd3), VolumePhase::Deleted);
    let routes = store.routes().await.unwrap();
    let routes = routes.whole(cluster.incarnation).routes;
    assert_eq!(routes["shop.example.com"].backends.len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_row_of_version_1_is_written_with_the_current_version() {
    let folder = tempfile::tempdir().unwrap();
    let store = version_1(folder.path()).await;
    let cluster = store.load().await.unwrap();
    let mut said = report(cluster.generation(NodeId(1)).unwrap(), Vec::new());
    "something new".clone_into(&mut said.driver.reason);
    let later = model::Timestamp(NOW.0 + 120_000);
    reported(&store, NodeId(1), &said, later).await.unwrap();
    store.close().await;
    let url = format!("sqlite:{}", folder.path().join("platform.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    let versions: Vec<i64> = sqlx::query_scalar("SELECT json_version FROM nodes ORDER BY id")
        .fetch_all(&mut db)
        .await
        .unwrap();
    assert_eq!(versions, [JSON_VERSION, 1]);
}

#[tokio::test]
async fn rows_of_a_newer_server_are_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    version_1(folder.path()).await.close().await;
    let newer = "UPDATE nodes SET json_version = 99 WHERE id = 1;";
    execute(folder.path(), newer).await;
    let store = open(folder.path()).await;

    let said = report(model::Generation::default(), Vec::new());
    let refused = reported(&store, NodeId(1), &said, NOW).await;
    assert_eq!(refused, Err(Refused::NoNode(NodeId(1))));
    // Others are served.
    reported(&store, NodeId(2), &said, NOW).await.unwrap();
    store.close().await;

    let older = "UPDATE nodes SET json_version = 1 WHERE id = 1;";
    execute(folder.path(), older).await;
    let store = open(folder.path()).await;
    assert!(!store.routes().await.unwrap().is_empty());
    assert!(subjects(&store.load().await.unwrap()).is_empty());
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_kept_and_named() {
    let folder = tempfile::tempdir().unwrap();
    version_1(folder.path()).await.close().await;
    execute(
        folder.path(),
        "UPDATE instances SET json_version = 99 WHERE id = 1;
         UPDATE instances SET report_json = '{' WHERE id = 2;
         UPDATE releases SET release_json = '[]' WHERE app = 'shop' AND number = 2;
         UPDATE envs SET rollout_json = '{}' WHERE app = 'old';
         UPDATE nodes SET hardware_json = '7' WHERE id = 2;
         UPDATE volumes SET phase = 'frozen' WHERE id = 209;
         INSERT INTO ended_instances VALUES (9, '{}', 99);",
    )
    .await;
    let store = open(folder.path()).await;
    let cluster = store.load().await.unwrap();
    let expected = [
        Subject::Node(NodeId(2)),
        Subject::Env(env_key("old")),
        Subject::Release(env_key("shop"), ReleaseNumber(2)),
        Subject::Instance(InstanceId(1)),
        Subject::Volume(VolumeId(209)),
        Subject::Row("row 9 of ended_instances".to_owned()),
    ];
    assert_eq!(subjects(&cluster), expected);
    let newer = &cluster.unreadable[3];
    assert_eq!(
        newer.to_string(),
        "the record of instance 00000001 cannot be read: an instance's spec has version 99, and this server reads up \
         to 2: upgrade the server"
    );
    assert_eq!(
        (newer.node, &newer.env),
        (Some(NodeId(1)), &Some(env_key("shop")))
    );
    // A node reports again: the instance is readable without its report.
    assert_eq!(cluster.instances[&InstanceId(2)].report, None);

    // The node is not told to stop the instance, and nothing of its env changes.
    assert_eq!(desired_state(&cluster, NodeId(1)).unwrap().stop.len(), 2);
    let planned = plan(&cluster, NOW, &mut || 1);
    let frozen = planned.findings.iter();
    let frozen = frozen.filter(|f| f.message.starts_with("nothing of it is changed"));
    assert_eq!(frozen.count(), 1, "{planned:?}");
    let again = update(&store, vec![placed("shop", 1, InstanceId(1), NodeId(1))]).await;
    assert!(matches!(again, Err(Refused::InstanceExists(_))));
    let destroy = Command::DestroyEnv {
        env: env_key("shop"),
    };
    let refused = update(&store, vec![destroy]).await;
    assert!(matches!(refused, Err(Refused::EnvFrozen { .. })));

    // A node's report brings back what could not be read of the node.
    let said = report(
        model::Generation {
            counter: 2,
            ..model::Generation::default()
        },
        Vec::new(),
    );
    reported(&store, NodeId(2), &said, NOW).await.unwrap();
    let cluster = store.load().await.unwrap();
    assert_eq!(subjects(&cluster), expected[1..]);
    assert_eq!(cluster.nodes[&NodeId(2)].hardware, hardware());
    // The rows are as they were.
    execute(
        folder.path(),
        "UPDATE instances SET json_version = 1 WHERE id = 1;",
    )
    .await;
    let healed = store.load().await.unwrap();
    assert!(healed.instances.contains_key(&InstanceId(1)));
    store.close().await;
}

/// Numbers that cannot be: each row is kept and named, and nothing else is touched.
#[tokio::test]
async fn rows_with_numbers_out_of_range_are_kept_and_named() {
    let folder = tempfile::tempdir().unwrap();
    version_1(folder.path()).await.close().await;
    execute(
        folder.path(),
        "UPDATE nodes SET generation = 9223372036854775807 WHERE id = 2;
         UPDATE envs SET scale_json = '{\"web\": 4294967295}' WHERE app = 'shop';
         UPDATE envs SET network = 4294967295 WHERE app = 'old';
         UPDATE releases SET release_json = replace(release_json, '\"min\":1', '\"min\":4294967295')
            WHERE app = 'old';
         UPDATE instances SET spec_json = json_set(spec_json, '$.memory_bytes', 1152921504606846977) WHERE id = 1;
         UPDATE instances SET spec_json = json_set(spec_json, '$.cpu_millis', 4294967295) WHERE id = 2;
         UPDATE instances SET spec_json = json_set(spec_json, '$.scratch_bytes', 9223372036854775807) WHERE id = 3;
         UPDATE instances SET spec_json = json_set(spec_json, '$.app', 'other') WHERE id = 4;
         UPDATE instances SET spec_json = '{' WHERE id = 5;
         UPDATE volumes SET size_bytes = 9223372036854775807 WHERE id = 208;
         UPDATE volumes SET phase = 'lost' WHERE id = 209;",
    )
    .await;
    let store = open(folder.path()).await;
    let cluster = store.load().await.unwrap();
    let expected = [
        Subject::Node(NodeId(2)),
        Subject::Env(env_key("old")),
        Subject::Env(env_key("shop")),
        Subject::Release(env_key("old"), ReleaseNumber(1)),
        Subject::Instance(InstanceId(1)),
        Subject::Instance(InstanceId(2)),
        Subject::Instance(InstanceId(3)),
        Subject::Instance(InstanceId(4)),
        Subject::Instance(InstanceId(5)),
        Subject::Volume(VolumeId(208)),
        Subject::Volume(VolumeId(209)),
    ];
    assert_eq!(subjects(&cluster), expected);
    assert!(cluster.nodes.contains_key(&NodeId(1)) && cluster.has_node(NodeId(2)));
    assert_eq!(cluster.last_network, EnvNetwork(2));

    // What can still be read is counted, and the rest is assumed.
    let held: Vec<_> = (cluster.unreadable.iter())
        .filter_map(|record| record.holds)
        .map(|held| {
            (
                held.cpu_millis,
                held.memory_bytes,
                held.disk_bytes,
                held.is_assumed,
            )
        })
        .collect();
    let (memory, disk) = (256 << 20, 1 << 30);
    let assumed = (
        CountedAs::ASSUMED_CPU_MILLIS,
        CountedAs::ASSUMED_MEMORY_BYTES,
        CountedAs::ASSUMED_DISK_BYTES,
    );
    let (cpu, assumed_memory, assumed_disk) = assumed;
    let expected = [
        (250, assumed_memory, disk, true),
        (cpu, memory, disk, true),
        (250, memory, assumed_disk, true),
        (250, memory, disk, false),
        (cpu, assumed_memory, assumed_disk, true),
        (0, 0, assumed_disk, true),
        (0, 0, 1 << 30, false),
    ];
    assert_eq!(held, expected);
    store.close().await;
}

/// A counter that cannot grow is left behind with its incarnation.
#[tokio::test]
async fn a_route_counter_out_of_range_ends_the_incarnation() {
    let folder = tempfile::tempdir().unwrap();
    let store = version_1(folder.path()).await;
    let incarnation = store.load().await.unwrap().incarnation;
    let next = model::Incarnation(incarnation.0.wrapping_add(7));
    assert_eq!(
        store.mend_route_counter(store.term, next).await.unwrap(),
        None
    );
    assert_eq!(store.load().await.unwrap().incarnation, incarnation);
    store.close().await;
    for damaged in [
        "UPDATE cluster SET last_route_table = 9223372036854775807; UPDATE routes SET changed = 9223372036854775807;",
        "UPDATE cluster SET last_route_table = -1; UPDATE routes SET changed = -1;",
    ] {
        execute(folder.path(), damaged).await;
        let store = open(folder.path()).await;
        let mended = store.mend_route_counter(store.term, next).await.unwrap();
        assert!(mended.is_some());
        assert_eq!(store.load().await.unwrap().incarnation, next);
        let routes = store.routes().await.unwrap();
        assert_eq!((routes.counter(), routes.is_empty()), (0, false));
        // The next table can be counted.
        let hosts = routes.whole(next).routes.into_keys();
        let changes = Changes {
            routes: hosts.map(|host| (host, None)).collect(),
            ..Changes::default()
        };
        store.write(store.term, &changes).await.unwrap();
        assert_eq!(store.routes().await.unwrap().counter(), 1);
        let again = "INSERT INTO routes VALUES ('shop.example.com', '{\"env\":{\"app\":\"shop\",\"env\":\"prod\"},\"process\":\"web\",\"proxy_protocol\":null,\"backends\":[]}', 1, 2);";
        store.close().await;
        execute(folder.path(), again).await;
    }
}

//! The store, on real files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use model::Incarnation;
use scheduler::routes::StoredRoute;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use api::edge::Route;
use api::enrollment::{EnrollRole, Member};
use api::node::NodeReport;
use api::user::Role;
use model::{
    AppName, EdgeId, EnvNetwork, Generation, InstanceId, NodeId, OrgName, PublicKey, ReleaseNumber,
    Timestamp, UserName, VolumeId,
};
use scheduler::access::{AccessCommand, UserToken};
use scheduler::action::{Action, PlannedVolume};
use scheduler::apply::{Command, Refused, apply};
use scheduler::changes::{Changes, SealedVersion};
use scheduler::cluster_state::{Instance, InstancePhase, VolumeKey, VolumePhase};
use scheduler::enrollment::{EnrollmentRefused, enroll};
use scheduler::rollout::begin;
use sqlx::Connection as _;
use store::{Store, StoreError};
use support::*;

on_both_stores!(
    a_written_cluster_state_is_read_back,
    only_the_node_of_a_changed_instance_gets_a_new_generation,
    a_change_that_cannot_be_written_leaves_nothing,
    batches_of_any_size_are_written_and_deleted_whole,
    members_and_spent_tokens_are_read_back,
    versions_of_a_secret_bundle_are_written_and_deleted,
    a_user_is_found_by_the_hash_of_their_token,
    who_may_do_what_is_stored_and_goes,
    a_report_is_written_when_it_differs_from_the_last,
    routes_are_written_by_host_and_their_counter_outlives_the_server,
    a_cluster_is_created_once,
    a_volume_outlives_its_env_and_is_deleted_when_its_node_says_so,
    the_record_of_an_ended_instance_outlives_its_env_until_it_is_pruned,
);

async fn generation(store: &LedStore, node: NodeId) -> u64 {
    store.load().await.unwrap().nodes[&node].generation
}

async fn a_written_cluster_state_is_read_back(place: Place) {
    let store = place.open().await;
    let node = add_node(&store, "box").await;
    let id = InstanceId(7);
    let added = created("shop", 1);
    write(&store, vec![added, placed("shop", 1, id, node)]).await;
    write(
        &store,
        vec![
            Command::AddRelease {
                env: env_key("shop"),
                number: ReleaseNumber(2),
                release: Box::new(release("shop")),
                rollout: begin(None, ReleaseNumber(2), NOW),
            },
            Command::SetScale {
                env: env_key("shop"),
                scale: BTreeMap::from([("web".parse().unwrap(), 3)]),
            },
            Command::DestroyEnv {
                env: env_key("shop"),
            },
        ],
    )
    .await;
    let before = store.load().await.unwrap();
    store.close().await;

    let store = place.open().await;
    let after = store.load().await.unwrap();
    assert_eq!(before, after);
    let env = &after.envs[&env_key("shop")];
    assert_eq!(env.releases.len(), 2);
    assert_eq!(env.rollout.release, ReleaseNumber(2));
    assert_eq!(env.scale.len(), 1);
    assert!(env.destroying);
    assert!(!after.nodes[&node].is_online(), "only a listener knows");
    assert_eq!(after.last_network, EnvNetwork(1));
    assert_eq!(store.cluster().await.unwrap().unwrap().settings, settings());
    if let Place::Sqlite(folder) = &place {
        let mode = std::fs::metadata(folder.path().join("platform.db"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "keys are in it, wrapped");
    }
}

async fn only_the_node_of_a_changed_instance_gets_a_new_generation(place: Place) {
    let store = place.open().await;
    let (one, two) = (add_node(&store, "a").await, add_node(&store, "b").await);
    let id = InstanceId(7);
    let added = created("shop", 1);
    write(&store, vec![added]).await;
    let at = async || (generation(&store, one).await, generation(&store, two).await);
    assert_eq!(at().await, (1, 1));
    write(
        &store,
        vec![
            placed("shop", 1, id, one),
            placed("shop", 1, InstanceId(8), one),
        ],
    )
    .await;
    assert_eq!(at().await, (3, 1));
    let terminate = Command::Plan(Action::Terminate {
        id,
        reason: "scaled down".to_owned(),
    });
    write(&store, vec![terminate.clone()]).await;
    assert_eq!(at().await, (4, 1));
    let again = update(&store, vec![terminate]).await.unwrap_err();
    assert!(matches!(again, Refused::InstanceTerminating(_)));
    assert_eq!(at().await, (4, 1));
}

async fn a_change_that_cannot_be_written_leaves_nothing(place: Place) {
    let store = place.open().await;
    let before = store.load().await.unwrap();
    // A batch of which the last record has no place: its node is not there.
    let mut changes = Changes::default();
    let mut later = before.clone();
    changes.then(apply(&mut later, &created("shop", 1)).unwrap());
    let Command::Plan(Action::Create(placed)) = placed("shop", 1, InstanceId(1), NodeId(99)) else {
        panic!("an instance is created");
    };
    let instance = Instance::new(placed.spec, NodeId(99), NOW);
    changes
        .instances
        .insert(InstanceId(1), Some(instance.into()));
    let failed = store.write(store.term, &changes).await;
    assert!(
        matches!(failed, Err(StoreError::Query { .. })),
        "{failed:?}"
    );
    let missing = Command::DestroyEnv {
        env: env_key("nothing"),
    };
    let failed = update(&store, vec![created("shop", 1), missing]).await;
    assert!(matches!(failed, Err(Refused::NoEnv(_))));
    assert_eq!(store.load().await.unwrap(), before);
}

/// Records of one kind share statements, each of a few sizes.
async fn batches_of_any_size_are_written_and_deleted_whole(place: Place) {
    let store = place.open().await;
    let node = add_node(&store, "box").await;
    write(&store, vec![created("shop", 1)]).await;
    let mut expected = BTreeMap::new();
    for count in [1_u32, 3, 4, 35, 256, 295] {
        let ids = (count * 1000..).take(count as usize).map(InstanceId);
        let mut changes = Changes::default();
        // Every one that was there before goes in the same batch.
        for id in std::mem::take(&mut expected).into_keys() {
            changes.instances.insert(id, None);
        }
        for id in ids {
            let Command::Plan(Action::Create(placed)) = placed("shop", 1, id, node) else {
                panic!("an instance is created");
            };
            let instance = Instance::new(placed.spec, node, NOW);
            expected.insert(id, instance.clone());
            changes.instances.insert(id, Some(instance.into()));
        }
        store.write(store.term, &changes).await.unwrap();
        let cluster = store.load().await.unwrap();
        let found = cluster.instances.iter();
        let found: BTreeMap<_, _> = found.map(|(id, found)| (*id, found.clone())).collect();
        assert_eq!(found, expected, "{count}");
    }
}

async fn members_and_spent_tokens_are_read_back(place: Place) {
    let store = place.open().await;
    let node = add_member(&store, [1; 32], EnrollRole::Node, "box").await;
    let edge = add_member(&store, [2; 32], EnrollRole::Edge, "box").await;
    assert_eq!(node, Member::Node(NodeId(1)));
    assert_eq!(edge, Member::Edge(EdgeId(1)));
    store.close().await;
    let store = place.open().await;
    let cluster = store.load().await.unwrap();
    assert!(cluster.has_member(node) && cluster.has_member(edge));
    assert!(!cluster.has_member(Member::Edge(EdgeId(2))));
    // The edge has a number of the overlay, beside its own.
    assert_eq!((cluster.last_node, cluster.last_edge), (2, 1));
    assert_eq!(cluster.tokens[&[2; 32]].used, Some((NOW, edge)));
    let other = PublicKey::of_der(b"another key").unwrap();
    let spent = enroll(&cluster, [1; 32], &other, &request("other"), None, NOW);
    assert_eq!(spent.unwrap_err(), EnrollmentRefused::TokenUsed);
    // The same key again is the same member.
    let key = cluster.nodes[&NodeId(1)].identity.key.clone().unwrap();
    let (again, enrolled) = enroll(&cluster, [1; 32], &key, &request("box"), None, NOW).unwrap();
    assert!(again.is_none());
    assert_eq!(enrolled.member, node);
}

async fn versions_of_a_secret_bundle_are_written_and_deleted(place: Place) {
    let store = place.open().await;
    let version = |version, byte| Command::AddSecretVersion {
        env: env_key("shop"),
        bundle: "database".to_owned(),
        version,
        content: SealedVersion {
            sealed: vec![byte],
            created_at: NOW,
        },
    };
    write(&store, vec![version(1, 7), version(2, 8)]).await;
    let refused = update(&store, vec![version(2, 9)]).await;
    assert!(matches!(refused, Err(Refused::SecretVersion { .. })));
    let kept = async || {
        let mut kept = Vec::new();
        for version in 1..=3 {
            let env = env_key("shop");
            let bundle = store.secret_bundle(&env, "database", version).await;
            kept.extend(bundle.unwrap().map(|b| (b.version, b.sealed)));
        }
        let env = env_key("shop");
        let newest = store.newest_secret_bundles(&env, Some("database")).await;
        let newest = newest.unwrap();
        assert_eq!(newest.len(), 1);
        assert_eq!(Some(newest[0].version), kept.last().map(|(v, _)| *v));
        kept
    };
    // No release has the first, so nothing can ask for it.
    assert_eq!(kept().await, [(2, vec![8])]);
    let delete = Command::DeleteSecrets {
        env: env_key("shop"),
        bundle: "database".to_owned(),
    };
    // In one batch with what was added before and what is added after.
    write(&store, vec![version(3, 9), delete, version(1, 1)]).await;
    assert_eq!(kept().await, [(1, vec![1])]);
}

async fn a_user_is_found_by_the_hash_of_their_token(place: Place) {
    let store = place.open().await;
    let admin = UserName::admin();
    store.add_admin_token(&[1; 32], &admin, NOW).await.unwrap();
    store.add_admin_token(&[3; 32], &admin, NOW).await.unwrap();
    let (token, user) = store.user_token(&[1; 32]).await.unwrap().unwrap();
    assert_eq!(token.user, admin);
    assert_eq!(user.unwrap().grants.cluster, Some(Role::Admin));
    assert_eq!(store.user_token(&[2; 32]).await.unwrap(), None);
    let access = store.load().await.unwrap().access;
    // No event has told of them: the leader takes each in as it is first shown.
    assert_eq!(access.tokens_of(&admin).count(), 0);
    assert!(!access.users().contains_key(&admin));
    assert!(access.orgs().contains_key(&OrgName::default()));
}

async fn who_may_do_what_is_stored_and_goes(place: Place) {
    let store = place.open().await;
    let (shop, bank): (OrgName, OrgName) = ("shop".parse().unwrap(), "bank".parse().unwrap());
    let (ann, web) = (UserName::admin(), "web".parse::<AppName>().unwrap());
    let grant = |org: Option<&OrgName>, role| AccessCommand::Grant {
        user: ann.clone(),
        org: org.cloned(),
        role,
        now: NOW,
    };
    let token = |hash: u8, org: Option<&OrgName>| AccessCommand::AddToken {
        hash: [hash; 32],
        token: UserToken {
            user: ann.clone(),
            org: org.cloned(),
            role: Some(Role::Deployer),
            created_at: NOW,
            expires_at: Some(Timestamp(NOW.0 + 5)),
            by: Some(ann.clone()),
            note: "CI".to_owned(),
        },
        now: NOW,
    };
    let commands = [
        AccessCommand::CreateOrg {
            name: shop.clone(),
            now: NOW,
        },
        AccessCommand::CreateOrg {
            name: bank.clone(),
            now: NOW,
        },
        grant(Some(&shop), Some(Role::Admin)),
        grant(Some(&bank), Some(Role::Viewer)),
        AccessCommand::SetOwner {
            app: web.clone(),
            org: bank.clone(),
        },
        AccessCommand::SetOwner {
            app: web.clone(),
            org: shop.clone(),
        },
        token(1, None),
        token(2, Some(&bank)),
    ];
    write(&store, commands.map(Command::Access).to_vec()).await;
    let access = store.load().await.unwrap().access;
    assert_eq!(access.owner(&web), Some(&shop));
    assert_eq!(
        access.tokens().get(&[2; 32]).unwrap().org,
        Some(bank.clone())
    );
    let grants = &access.users().get(&ann).unwrap().grants;
    assert_eq!(grants.orgs.len(), 2);

    // The user goes with the last role, and the tokens with the user; all of it in one batch.
    let commands = [
        AccessCommand::RemoveOrg { name: bank },
        grant(Some(&shop), None),
        AccessCommand::RemoveApp { app: web.clone() },
        AccessCommand::RemoveOrg { name: shop },
    ];
    write(&store, commands.map(Command::Access).to_vec()).await;
    let access = store.load().await.unwrap().access;
    assert!(access.tokens().is_empty() && access.users().is_empty() && access.apps().is_empty());
    assert_eq!(access.orgs().len(), 1);
}

async fn a_report_is_written_when_it_differs_from_the_last(place: Place) {
    let store = place.open().await;
    let node = add_node(&store, "box").await;
    let (id, stray) = (InstanceId(7), InstanceId(99));
    let added = created("shop", 1);
    write(&store, vec![added, placed("shop", 1, id, node)]).await;

    let good = report(
        Generation {
            counter: 2,
            ..Generation::default()
        },
        vec![running(id), running(stray)],
    );
    assert_eq!(reported(&store, node, &good, NOW).await, Ok(true));
    assert_eq!(reported(&store, node, &good, NOW).await, Ok(false));
    let cluster = store.load().await.unwrap();
    let instance = &cluster.instances[&id];
    assert_eq!(instance.report, Some(running(id)));
    assert_eq!(instance.phase, InstancePhase::Established);
    let detail = &cluster.nodes[&node];
    assert_eq!(detail.driver, Some(good.driver.clone()));
    assert_eq!(detail.egress, good.egress);
    assert_eq!(detail.seen_at, Some(NOW));
    let nobody = reported(&store, NodeId(9), &good, NOW).await;
    assert_eq!(nobody, Err(Refused::NoNode(NodeId(9))));
}

async fn routes_are_written_by_host_and_their_counter_outlives_the_server(place: Place) {
    let store = place.open().await;
    let stored = |changed| StoredRoute {
        route: Route {
            env: env_key("shop"),
            process: "web".parse().unwrap(),
            proxy_protocol: None,
            protocol: api::edge::AppProtocol::default(),
            settings: model::RouteSettings::default(),
            backends: Vec::new(),
        },
        changed,
    };
    assert_eq!(store.routes().await.unwrap().counter(), 0);
    let (one, two) = ("one.example.com".to_owned(), "two.example.com".to_owned());
    let both = [
        (one.clone(), Some(stored(1))),
        (two.clone(), Some(stored(1))),
    ];
    for routes in [BTreeMap::from(both), BTreeMap::from([(one, None)])] {
        let changes = Changes {
            routes,
            ..Changes::default()
        };
        store.write(store.term, &changes).await.unwrap();
    }
    let incarnation = store.load().await.unwrap().incarnation;
    store.close().await;
    let store = place.open().await;
    let routes = store.routes().await.unwrap();
    assert_eq!(store.load().await.unwrap().incarnation, incarnation);
    assert_eq!(routes.counter(), 2);
    let hosts = routes.whole(incarnation).routes.into_keys();
    assert_eq!(hosts.collect::<Vec<_>>(), [two]);
}

async fn a_cluster_is_created_once(place: Place) {
    let store = place.open().await;
    let mut other = store.cluster().await.unwrap().unwrap();
    "c2".clone_into(&mut other.settings.id);
    store
        .create_cluster(&other, Incarnation(2), NOW)
        .await
        .unwrap();
    assert_eq!(store.cluster().await.unwrap().unwrap().settings.id, "c1");
}

#[tokio::test]
async fn other_stores_and_newer_schemas_are_refused() {
    for url in ["mysql://localhost/x", "sqlite:", "/tmp/x.db"] {
        let error = Store::open(url).await.unwrap_err();
        assert!(matches!(error, StoreError::UnknownStore(_)), "{error}");
    }
    let missing = Store::open("sqlite:/nonexistent/folder/x.db")
        .await
        .unwrap_err();
    assert!(matches!(missing, StoreError::Open { .. }), "{missing}");

    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.close().await;
    let url = format!("sqlite:{}", folder.path().join("platform.db").display());
    let mut db = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (999, 'from the future', 1, x'00', 0)",
    )
    .execute(&mut db)
    .await
    .unwrap();
    db.close().await.unwrap();
    let error = Store::open(&url).await.unwrap_err();
    assert!(
        matches!(error, StoreError::NewerSchema { found: 999, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("has schema 999"), "{error}");
}

async fn a_volume_outlives_its_env_and_is_deleted_when_its_node_says_so(place: Place) {
    let store = place.open().await;
    let node = add_node(&store, "a").await;
    let id = VolumeId(0xffff_0001);
    let planned = PlannedVolume {
        id,
        key: VolumeKey {
            env: env_key("shop"),
            process: "web".parse().unwrap(),
            name: "data".to_owned(),
            ordinal: 3,
        },
        node,
        size_bytes: 5 << 30,
        created_at: NOW,
    };
    let made = Command::Plan(Action::MakeVolume(Box::new(planned.clone())));
    write(&store, vec![created("shop", 1), made]).await;
    assert_eq!(generation(&store, node).await, 1);
    let destroyed = Command::DestroyEnv {
        env: env_key("shop"),
    };
    let removed = Command::Plan(Action::RemoveEnv {
        env: env_key("shop"),
    });
    write(&store, vec![destroyed, removed]).await;
    drop(store);

    let store = place.open().await;
    let volume = async || store.load().await.unwrap().volumes.get(&id).cloned();
    let known = volume().await.unwrap();
    assert_eq!((&known.key, known.node), (&planned.key, node));
    assert_eq!(
        (known.size_bytes, known.phase),
        (5 << 30, VolumePhase::Planned)
    );
    // A key belongs to one volume.
    let twice = Command::Plan(Action::MakeVolume(Box::new(PlannedVolume {
        id: VolumeId(9),
        ..planned
    })));
    let failed = update(&store, vec![twice]).await;
    assert!(matches!(failed, Err(Refused::VolumeExists(_))));

    let mut said = report(
        Generation {
            counter: 1,
            ..Generation::default()
        },
        Vec::new(),
    );
    said.volumes = vec![id];
    let changed = async |said: NodeReport| {
        let changed = reported(&store, node, &said, NOW).await.unwrap();
        (changed, volume().await.unwrap().phase)
    };
    assert_eq!(changed(said.clone()).await, (true, VolumePhase::Made));
    assert_eq!(changed(said.clone()).await, (false, VolumePhase::Made));
    let deleting = VolumePhase::Deleting { made: true };
    write(&store, vec![Command::DeleteVolume { id }]).await;
    assert_eq!(generation(&store, node).await, 2);
    said.volumes.clear();
    assert_eq!(changed(said.clone()).await, (false, deleting));
    said.generation = Generation {
        counter: 2,
        ..Generation::default()
    };
    assert_eq!(changed(said.clone()).await, (true, VolumePhase::Deleted));
    let delete = Command::Plan(Action::DeleteVolume { id });
    write(&store, vec![delete]).await;
    assert_eq!(volume().await, None);
    assert_eq!(generation(&store, node).await, 3);
}

async fn the_record_of_an_ended_instance_outlives_its_env_until_it_is_pruned(place: Place) {
    let store = place.open().await;
    let node = add_node(&store, "a").await;
    let id = InstanceId(7);
    let (reason, at) = ("scaled down".to_owned(), NOW);
    let commands = [
        created("shop", 1),
        placed("shop", 1, id, node),
        Command::Plan(Action::Terminate { id, reason }),
    ];
    write(&store, commands.into()).await;
    let said = report(
        Generation {
            counter: generation(&store, node).await,
            ..Default::default()
        },
        Vec::new(),
    );
    reported(&store, node, &said, NOW).await.unwrap();
    let destroy = Command::DestroyEnv {
        env: env_key("shop"),
    };
    let remove = Command::Plan(Action::RemoveEnv {
        env: env_key("shop"),
    });
    let delete = Command::Plan(Action::Delete { id, at });
    write(&store, vec![delete, destroy, remove]).await;
    store.close().await;

    let store = place.open().await;
    let cluster = store.load().await.unwrap();
    assert!(cluster.envs.is_empty() && cluster.instances.is_empty());
    let ended = &cluster.ended[&id];
    assert_eq!(
        (&ended.env, ended.node, ended.reason.as_str()),
        (&env_key("shop"), node, "scaled down")
    );
    let prune = Command::Plan(Action::PruneEnded { id });
    write(&store, vec![prune]).await;
    assert!(store.load().await.unwrap().ended.is_empty());
    store.close().await;
}

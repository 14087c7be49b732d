//! What is refused, and what is changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::access::AccessCommand;
use crate::cluster_state::{Subject, UnreadableRecord};
use crate::fixtures::{
    InstanceFixture, attach, cluster, database, deploy, exit, key, manifest, name, process, report,
};
use crate::table::Table;
use api::node::InstanceReport;
use model::InstanceId;
use model::instance::InstanceState;

/// `shop/prod` with one instance that has a volume.
fn one() -> ClusterState {
    let mut cluster = cluster(1);
    let release = manifest(&[("web", database(1))]);
    deploy(&mut cluster, "shop/prod", release, Timestamp(0));
    InstanceFixture {
        id: 1,
        env: "shop/prod",
        process: "web",
        release: 1,
        node: 1,
    }
    .into_cluster(&mut cluster);
    attach(&mut cluster, 1, 0);
    cluster
}

/// Applies a command that is refused, and nothing changes.
fn refused(cluster: &ClusterState, command: impl Into<Command>) -> Refused {
    let mut after = cluster.clone();
    let refused = apply(&mut after, &command.into()).unwrap_err();
    assert_eq!(after, *cluster, "{refused}");
    refused
}

fn terminate(id: u32) -> Action {
    Action::Terminate {
        id: InstanceId(id),
        reason: "a test".to_owned(),
    }
}

#[test]
fn an_instance_is_deleted_only_when_it_is_gone_or_its_node_was_removed() {
    let mut cluster = one();
    let id = InstanceId(1);
    let at = Timestamp(7);
    let delete = Action::Delete { id, at };
    assert_eq!(
        refused(&cluster, delete.clone()),
        Refused::InstanceNotGone(id)
    );
    apply(&mut cluster, &terminate(1).into()).unwrap();
    assert_eq!(
        refused(&cluster, terminate(1)),
        Refused::InstanceTerminating(id)
    );
    assert_eq!(
        refused(&cluster, delete.clone()),
        Refused::InstanceNotGone(id)
    );

    let mut removed = cluster.clone();
    let node = removed.nodes.remove(&NodeId(1)).unwrap();
    removed.unreadable = vec![UnreadableRecord {
        subject: Subject::Node(NodeId(1)),
        env: None,
        node: Some(NodeId(1)),
        holds: None,
        cause: "a test".to_owned(),
    }];
    assert_eq!(
        refused(&removed, delete.clone()),
        Refused::InstanceNotGone(id)
    );
    removed.unreadable.clear();
    apply(&mut removed, &delete.clone().into()).unwrap();
    assert_eq!(removed.ended[&id].reason, "a test; its node was removed");

    let instance = cluster.instances.get_mut(&id).unwrap();
    instance.phase = InstancePhase::Gone {
        reason: "a test".to_owned(),
    };
    let said = InstanceReport {
        restarts: 2,
        failure: Some("no such file".to_owned()),
        last_exit: Some(exit(7)),
        ..report(id, InstanceState::Failed)
    };
    instance.report = Some(said);
    let before = node.generation;
    let changes = apply(&mut cluster, &delete.into()).unwrap();
    assert_eq!(changes.instances, BTreeMap::from([(id, None)]));
    assert_eq!(cluster.nodes[&NodeId(1)].generation, before + 1);

    // What is known of it stays, until it is pruned.
    let ended = EndedInstance {
        env: key("shop/prod"),
        process: name("web"),
        release: ReleaseNumber(1),
        node: NodeId(1),
        created_at: Timestamp(0),
        ended_at: at,
        reason: "a test".to_owned(),
        restarts: 2,
        last_exit: Some(exit(7)),
        failure: Some("no such file".to_owned()),
    };
    assert_eq!(changes.ended, BTreeMap::from([(id, Some(ended.clone()))]));
    assert_eq!(cluster.ended, Table::from([(id, ended)]));
    let mut pruned = cluster.clone();
    let prune = Action::PruneEnded { id };
    let changes = apply(&mut pruned, &prune.clone().into()).unwrap();
    assert_eq!(changes.ended, BTreeMap::from([(id, None)]));
    assert_eq!(refused(&pruned, prune), Refused::NoEndedInstance(id));
    assert_eq!(refused(&cluster, terminate(1)), Refused::NoInstance(id));
}

#[test]
fn case_who_takes_the_name_of_an_app_that_was_removed_learns_nothing_of_what_it_ran() {
    let mut cluster = one();
    let app = key("shop/prod").app;
    let owner = |org: &str| AccessCommand::SetOwner {
        app: app.clone(),
        org: org.parse().unwrap(),
    };
    let org = |name: &str| AccessCommand::CreateOrg {
        name: name.parse().unwrap(),
        now: Timestamp(0),
    };
    for command in [org("first"), org("other"), owner("first")] {
        apply(&mut cluster, &Command::Access(command)).unwrap();
    }
    let remove = Command::Access(AccessCommand::RemoveApp { app: app.clone() });
    for (id, instance) in &cluster.instances.clone() {
        let mut gone = instance.clone();
        gone.phase = InstancePhase::Gone {
            reason: "destroyed".to_owned(),
        };
        cluster.instances.insert(*id, gone);
        let delete = Action::Delete {
            id: *id,
            at: Timestamp(1),
        };
        apply(&mut cluster, &delete.into()).unwrap();
    }
    let ended: Vec<_> = cluster.ended.keys().copied().collect();
    assert!(!ended.is_empty());
    cluster.envs.clear();
    cluster.secrets.clear();
    cluster.volumes = crate::instances::Volumes::default();
    let changes = apply(&mut cluster, &remove).unwrap();
    assert_eq!(changes.ended.keys().copied().collect::<Vec<_>>(), ended);
    assert!(changes.ended.values().all(Option::is_none) && cluster.ended.is_empty());
    apply(&mut cluster, &Command::Access(owner("other"))).unwrap();
}

#[test]
fn a_volume_is_deleted_only_when_no_instance_has_it() {
    let mut cluster = one();
    let id = VolumeId(0xd0);
    let in_use = Refused::VolumeInUse {
        volume: id,
        instance: InstanceId(1),
    };
    assert_eq!(refused(&cluster, Command::DeleteVolume { id }), in_use);
    cluster.instances.clear();
    let reap = Action::DeleteVolume { id };
    assert_eq!(
        refused(&cluster, reap.clone()),
        Refused::VolumeNotDeleted(id)
    );
    apply(&mut cluster, &Command::DeleteVolume { id }).unwrap();
    assert_eq!(
        refused(&cluster, Command::DeleteVolume { id }),
        Refused::VolumeDeleting(id)
    );
    assert_eq!(
        refused(&cluster, reap.clone()),
        Refused::VolumeNotDeleted(id)
    );
    cluster.volumes.get_mut(&id).unwrap().phase = VolumePhase::Deleted;
    apply(&mut cluster, &reap.clone().into()).unwrap();
    assert_eq!(refused(&cluster, reap), Refused::NoVolume(id));
}

#[test]
fn an_env_is_removed_only_when_it_is_destroyed_and_empty() {
    let mut cluster = one();
    let env = key("shop/prod");
    let remove = Action::RemoveEnv { env: env.clone() };
    assert_eq!(
        refused(&cluster, remove.clone()),
        Refused::EnvNotDestroying(env.clone())
    );
    apply(&mut cluster, &Command::DestroyEnv { env: env.clone() }).unwrap();
    let scale = Command::SetScale {
        env: env.clone(),
        scale: BTreeMap::new(),
    };
    assert_eq!(
        refused(&cluster, scale),
        Refused::EnvDestroying(env.clone())
    );
    let not_empty = Refused::EnvNotEmpty {
        env: env.clone(),
        instance: InstanceId(1),
    };
    assert_eq!(refused(&cluster, remove.clone()), not_empty);
    cluster.instances.clear();
    let changes = apply(&mut cluster, &remove.clone().into()).unwrap();
    assert!(changes.deleted_envs.contains(&env));
    assert_eq!(refused(&cluster, remove), Refused::NoEnv(env));
}

#[test]
fn nothing_of_a_frozen_env_is_changed() {
    let mut cluster = one();
    cluster.instances.clear();
    let env = key("shop/prod");
    cluster.unreadable = vec![UnreadableRecord {
        subject: Subject::Release(env.clone(), ReleaseNumber(7)),
        env: Some(env.clone()),
        node: None,
        holds: None,
        cause: "a test".to_owned(),
    }];
    let commands = [
        Command::DestroyEnv { env: env.clone() },
        Command::DeleteVolume { id: VolumeId(0xd0) },
        Command::DeleteSecrets {
            env: env.clone(),
            bundle: "database".to_owned(),
        },
        Action::SetRollout {
            rollout: cluster.envs[&env].rollout.clone(),
            env: env.clone(),
        }
        .into(),
    ];
    for command in commands {
        let refused = refused(&cluster, command);
        assert!(matches!(refused, Refused::EnvFrozen { .. }), "{refused}");
    }
    // Other envs go on.
    let release = manifest(&[("web", process(1))]);
    deploy(&mut cluster, "shop/test", release, Timestamp(0));
}

#[test]
fn a_deleted_env_takes_what_was_written_of_it_before_along() {
    let mut cluster = cluster(1);
    let before = cluster.clone();
    let env = key("shop/prod");
    let mut all = Changes::default();
    deploy(
        &mut cluster,
        "shop/prod",
        manifest(&[("web", process(1))]),
        Timestamp(0),
    );
    all.then(create_env(&mut before.clone(), &env, &cluster.envs[&env]).unwrap());
    let destroy = Command::DestroyEnv { env: env.clone() };
    all.then(apply(&mut cluster, &destroy).unwrap());
    let remove = Action::RemoveEnv { env: env.clone() };
    all.then(apply(&mut cluster, &remove.into()).unwrap());
    let mut stored = before;
    all.patch(&mut stored);
    assert_eq!(stored.envs, cluster.envs);
    assert!(all.releases.is_empty() && all.envs.is_empty());
}

/// Failed, reverted and overtaken releases are nothing to go back to.
#[test]
fn how_rollouts_ended_is_kept_as_long_as_their_releases() {
    let mut cluster = cluster(1);
    let env = key("shop/prod");
    let end = |cluster: &mut ClusterState, phase| {
        deploy(
            cluster,
            "shop/prod",
            manifest(&[("web", process(1))]),
            Timestamp(0),
        );
        let mut rollout = cluster.envs.get(&env).unwrap().rollout.clone();
        if phase != RolloutPhase::Rolling {
            rollout.phase = phase;
            if phase == RolloutPhase::Reverted {
                rollout.wanted = rollout.previous.unwrap();
            }
            let env = env.clone();
            apply(cluster, &Action::SetRollout { env, rollout }.into()).unwrap();
        }
    };
    let phases = [
        RolloutPhase::Done,
        RolloutPhase::Failed,
        RolloutPhase::Rolling,
        RolloutPhase::Reverted,
        RolloutPhase::Done,
    ];
    for phase in phases {
        end(&mut cluster, phase);
    }
    let outcomes = |cluster: &ClusterState| cluster.envs.get(&env).unwrap().outcomes.clone();
    let mut expected: BTreeMap<_, _> = (1..).map(ReleaseNumber).zip(phases).collect();
    expected.insert(ReleaseNumber(3), RolloutPhase::Superseded);
    assert_eq!(outcomes(&cluster), expected);
    let before = |number| {
        cluster
            .envs
            .get(&env)
            .unwrap()
            .before(ReleaseNumber(number))
    };
    assert_eq!(before(5), Some(ReleaseNumber(1)));
    assert_eq!(before(1), None);
    for _ in 0..MAX_RELEASES {
        end(&mut cluster, RolloutPhase::Done);
    }
    let kept: Vec<_> = (cluster.envs.get(&env).unwrap().releases.keys().copied()).collect();
    assert_eq!(outcomes(&cluster).into_keys().collect::<Vec<_>>(), kept);
}

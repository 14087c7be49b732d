#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use expect_test::{Expect, expect};
use model::instance::InstanceState;

use super::*;
use crate::apply::KeyChange;
use crate::changes::SealedVersion;
use crate::cluster_state::{Scheduling, TokenRecord};
use crate::fixtures::{
    READY, RUNNING, cluster, database, deployment, exit, key, manifest, name, node, origin,
    process, release, report,
};
use crate::leader::Leader;
use crate::routes::RouteIndex;
use api::node::{DriverChoice, InstanceReport, NodeReport};
use model::{EnvNetwork, InstanceId};

struct Story {
    leader: Leader,
    now: Timestamp,
    next_id: u32,
    told: String,
}

impl Story {
    fn new() -> Self {
        let leader = Leader::new(cluster(2), RouteIndex::default());
        Self {
            leader,
            now: Timestamp(0),
            next_id: 0x10,
            told: String::new(),
        }
    }

    /// Takes what was decided to the store, and checks that it is told.
    fn commit(&mut self) {
        let before = self.leader.committed().clone();
        let batch = self.leader.take_batch();
        super::check::check(&before, &batch.changes).unwrap();
        let mut patched = before;
        batch.changes.patch(&mut patched);
        assert_eq!(patched.event_log, batch.after.event_log);
        for event in &batch.changes.events {
            let subject = [
                event.app.as_ref().map(ToString::to_string),
                event.process.as_ref().map(ToString::to_string),
                event.release.map(|release| release.to_string()),
                event.instance.map(|id| id.to_string()),
                event.volume.map(|id| id.to_string()),
                event.node.map(|id| id.to_string()),
                event.edge.map(|id| id.to_string()),
                event.user.as_ref().map(ToString::to_string),
            ];
            let subject: Vec<_> = subject.into_iter().flatten().collect();
            self.told += &format!(
                "{} {} {} [{}] {}\n",
                event.number,
                event.by,
                event.kind,
                subject.join(" "),
                event.message
            );
        }
        self.leader.commit(&batch);
    }

    fn execute(&mut self, command: Command) {
        self.leader.execute(&origin(), &[command]).unwrap();
        self.commit();
    }

    fn plan(&mut self) {
        let next = &mut self.next_id;
        let mut draw = || {
            *next += 0x10;
            *next
        };
        while self.leader.plan_next(self.now, &mut draw).is_some() {}
        self.commit();
    }

    /// Every node reports these instances of its own, and all volumes.
    fn report(&mut self, said: &[InstanceReport]) {
        for id in [NodeId(1), NodeId(2)] {
            let state = self.leader.state();
            let here = state.instances.on_node(id).map(|(id, _)| id);
            let here: Vec<_> = here.collect();
            let instances = said.iter().filter(|said| here.contains(&said.id)).cloned();
            let report = Box::new(NodeReport {
                generation: state.generation(id).unwrap(),
                egress: None,
                driver: DriverChoice {
                    name: "qemu-tcg".to_owned(),
                    reason: "a test".to_owned(),
                },
                hardware: state.nodes[&id].hardware.clone(),
                instances: instances.collect(),
                volumes: state.volumes.on_node(id).map(|(id, _)| id).collect(),
                highest_network: EnvNetwork::default(),
                images: Vec::new(),
            });
            let origin = Origin {
                by: Actor::Node(id),
                at: self.now,
            };
            let now = self.now;
            let command = Command::Report {
                node: id,
                report,
                now,
            };
            self.leader.execute(&origin, &[command]).unwrap();
        }
        self.commit();
    }

    fn deploy(&mut self, web: manifest::Process) {
        let release = release(manifest(&[("web", web)]));
        let command = deployment(self.leader.state(), "shop/prod", release, self.now);
        self.execute(command);
        self.plan();
    }

    fn instances(&self) -> Vec<InstanceId> {
        self.leader.state().instances.keys().copied().collect()
    }

    fn all(&self, state: InstanceState) -> Vec<InstanceReport> {
        let instances = self.instances().into_iter();
        instances.map(|id| report(id, state)).collect()
    }

    fn expect_told(&mut self, expected: &Expect) {
        expected.assert_eq(&std::mem::take(&mut self.told));
    }
}

#[test]
fn a_rollout_is_told_from_its_deploy_to_its_end() {
    let mut story = Story::new();
    story.deploy(process(1));
    let running = story.all(RUNNING);
    story.report(&running);
    let ready = story.all(READY);
    story.report(&ready);
    // The same again tells nothing.
    story.report(&ready);
    story.plan();
    story.expect_told(&expect![[r#"
        1 ann release-deployed [shop v1] image sha256:0707070707070707070707070707070707070707070707070707070707070707
        2 planner instance-scheduled [shop web v1 00000020 n1] release v1 on node-1 (n1)
        3 n1 node-changed [n1] driver qemu-tcg: a test
        4 n1 instance-started [shop web v1 00000020 n1] release v1
        5 n2 node-changed [n2] driver qemu-tcg: a test
        6 n1 instance-ready [shop web v1 00000020 n1] 
        7 planner release-rolled-out [shop v1] every instance is ready
    "#]]);
}

#[test]
fn a_crash_loop_tells_its_causes_and_then_folds() {
    let mut story = Story::new();
    story.deploy(process(1));
    let id = story.instances()[0];
    for restarts in 0..6 {
        let said = InstanceReport {
            restarts,
            failure: (restarts > 0).then(|| "the app ended: exit code 3".to_owned()),
            last_exit: (restarts > 0).then(|| exit(3)),
            ..report(id, READY)
        };
        story.report(&[said]);
    }
    let failed = InstanceReport {
        restarts: 5,
        failure: Some("given up after 5 restarts in a row: the app ended: exit code 3".to_owned()),
        last_exit: Some(exit(3)),
        ..report(id, InstanceState::Failed)
    };
    story.report(&[failed]);
    story.expect_told(&expect![[r#"
        1 ann release-deployed [shop v1] image sha256:0707070707070707070707070707070707070707070707070707070707070707
        2 planner instance-scheduled [shop web v1 00000020 n1] release v1 on node-1 (n1)
        3 n1 node-changed [n1] driver qemu-tcg: a test
        4 n1 instance-started [shop web v1 00000020 n1] release v1
        5 n1 instance-ready [shop web v1 00000020 n1] 
        6 n2 node-changed [n2] driver qemu-tcg: a test
        7 n1 instance-restarted [shop web v1 00000020 n1] the app ended: exit code 3
        8 n1 instance-started [shop web v1 00000020 n1] release v1
        9 n1 instance-ready [shop web v1 00000020 n1] 
        10 n1 instance-restarted [shop web v1 00000020 n1] the app ended: exit code 3
        11 n1 instance-started [shop web v1 00000020 n1] release v1
        12 n1 instance-ready [shop web v1 00000020 n1] 
        13 n1 instance-restarted [shop web v1 00000020 n1] the app ended: exit code 3
        14 n1 instance-started [shop web v1 00000020 n1] release v1
        15 n1 instance-ready [shop web v1 00000020 n1] 
        16 n1 instance-restarted [shop web v1 00000020 n1] the app ended: exit code 3
        17 n1 instance-started [shop web v1 00000020 n1] release v1
        18 n1 instance-ready [shop web v1 00000020 n1] 
        19 n1 instance-restarted [shop web v1 00000020 n1] the app ended: exit code 3
        20 n1 instance-started [shop web v1 00000020 n1] release v1
        21 n1 instance-ready [shop web v1 00000020 n1] 
        22 n1 instance-failed [shop web v1 00000020 n1] given up after 5 restarts in a row: the app ended: exit code 3
    "#]]);
}

#[test]
fn a_failed_liveness_check_and_unreadiness_are_told() {
    let mut story = Story::new();
    story.deploy(process(1));
    let ready = story.all(READY);
    story.report(&ready);
    story.plan();
    story.told.clear();
    let id = story.instances()[0];
    let unready = InstanceReport {
        failure: Some("the health check failed 3 times in a row: status 500".to_owned()),
        ..report(id, RUNNING)
    };
    story.report(&[unready]);
    let dead = InstanceReport {
        liveness_failure: Some("the liveness check failed 3 times in a row: no answer".to_owned()),
        ..report(id, READY)
    };
    story.report(&[dead]);
    story.plan();
    story.expect_told(&expect![[r#"
        8 n1 instance-unready [shop web v1 00000020 n1] the health check failed 3 times in a row: status 500
        9 n1 instance-ready [shop web v1 00000020 n1] 
        10 n1 instance-unhealthy [shop web v1 00000020 n1] the liveness check failed 3 times in a row: no answer
        11 planner instance-stopping [shop web v1 00000020 n1] the liveness check failed 3 times in a row: no answer; another is made
        12 planner instance-scheduled [shop web v1 00000030 n1] release v1 on node-1 (n1)
    "#]]);
}

#[test]
fn what_users_do_to_the_cluster_is_told() {
    let mut story = Story::new();
    let set = |scheduling| Command::SetScheduling {
        node: NodeId(1),
        scheduling,
    };
    story.execute(set(Scheduling::Cordoned));
    story.execute(set(Scheduling::Draining { with_volumes: true }));
    story.execute(set(Scheduling::Schedulable));
    // Again: nothing changed.
    story.execute(set(Scheduling::Schedulable));
    story.execute(Command::SetLabels {
        node: NodeId(1),
        labels: [
            ("disk".parse().unwrap(), Some("ssd".parse().unwrap())),
            ("rack".parse().unwrap(), None),
        ]
        .into(),
    });
    story.execute(Command::AddSecretVersion {
        env: key("shop/prod"),
        bundle: "database".to_owned(),
        version: 1,
        content: SealedVersion {
            sealed: b"sealed".to_vec(),
            created_at: Timestamp(0),
        },
    });
    story.execute(Command::DeleteSecrets {
        env: key("shop/prod"),
        bundle: "database".to_owned(),
    });
    let token = TokenRecord::new(api::enrollment::EnrollRole::Node, Timestamp(100));
    story.execute(Command::AddToken {
        hash: [1; 32],
        token,
        now: Timestamp(0),
    });
    let joined = crate::apply::NewMember::Node(NodeId(3), Box::new(node(3, 4096).1));
    story.execute(Command::Enroll {
        token: [1; 32],
        member: joined,
        now: Timestamp(0),
    });
    let three = api::enrollment::Member::Node(NodeId(3));
    story.execute(Command::SetKeys {
        member: three,
        change: KeyChange::Record(model::PublicKey::of_der(&[3; 91]).unwrap()),
    });
    story.execute(Command::Revoke {
        member: three,
        now: Timestamp(0),
    });
    story.execute(Command::RemoveNode {
        node: NodeId(3),
        lost: false,
        now: Timestamp(0),
    });
    story.execute(Command::SetNetwork {
        mode: None,
        mtu: Some(1400),
        private_networks: None,
    });
    story.expect_told(&expect![[r#"
        1 ann node-cordoned [n1] node-1
        2 ann node-drained [n1] node-1, those with volumes are stopped
        3 ann node-uncordoned [n1] node-1
        4 ann node-labelled [n1] disk=ssd
        5 ann secret-set [shop] database, version 1
        6 ann secret-deleted [shop] database
        7 ann token-created [] for one node
        8 n3 node-joined [n3] node-3 in local
        9 ann node-keys-changed [n3] its key is recorded
        10 ann node-revoked [n3] node-3
        11 ann node-removed [n3] node-3 (n3)
        12 ann network-changed [] MTU 1400
    "#]]);
}

#[test]
fn volumes_are_told_until_they_are_gone() {
    let mut story = Story::new();
    story.deploy(database(1));
    let ready = story.all(READY);
    story.report(&ready);
    story.plan();
    story.told.clear();
    story.execute(Command::DestroyEnv {
        env: key("shop/prod"),
    });
    story.plan();
    story.report(&[]);
    story.plan();
    let volume = *story.leader.state().volumes.keys().next().unwrap();
    story.execute(Command::DeleteVolume { id: volume });
    story.expect_told(&expect![[r#"
        10 ann env-destroying [shop] shop/prod
        11 planner instance-stopping [shop web v1 00000030 n1] its env is destroyed
        12 planner instance-stopped [shop web v1 00000030 n1] its env is destroyed
        13 planner env-destroyed [shop] shop/prod
        14 ann volume-deleting [shop web 00000020 n1] data 0 of shop/prod web on node-1 (n1)
    "#]]);
}

#[test]
fn a_node_that_lapses_and_comes_back_is_told() {
    let mut story = Story::new();
    story.leader.set_heard(NodeId(2), None, Timestamp(5));
    assert!(!story.leader.has_pending());
    story.execute(Command::SetSeen {
        node: NodeId(2),
        at: Timestamp(1),
    });
    story.leader.set_heard(NodeId(2), Some(3), Timestamp(9));
    assert!(story.leader.has_pending());
    story.commit();
    // A sign of life tells nothing.
    story.leader.set_heard(NodeId(2), Some(3), Timestamp(10));
    assert!(!story.leader.has_pending());
    story.leader.begins_term(model::Term(7), Timestamp(11));
    let cause = "the planner failed".to_owned();
    story
        .leader
        .quarantine(key("shop/prod"), cause, Timestamp(12), Timestamp(100));
    story.commit();
    story.expect_told(&expect![[r#"
        1 ann node-offline [n2] node-2 (n2)
        2 n2 node-online [n2] node-2 (n2)
        3 server server-leads [] term 7
        4 server env-quarantined [shop] the planner failed
    "#]]);
}

#[test]
fn a_refused_batch_takes_its_events_along() {
    let mut story = Story::new();
    story.deploy(process(1));
    let last = story.leader.committed().event_log.last();
    let scale = Command::SetScale {
        env: key("shop/prod"),
        scale: [(name("web"), 2)].into(),
    };
    story
        .leader
        .execute(&origin(), std::slice::from_ref(&scale))
        .unwrap();
    let batch = story.leader.take_batch();
    assert_eq!(batch.changes.events.last().unwrap().number, last + 1);
    story.leader.roll_back();
    story.told.clear();
    story.execute(scale);
    story.expect_told(&expect![[r#"
        3 ann env-scaled [shop] web=2
    "#]]);
}

/// The check that the simulation makes of every batch: without any of these events it says so.
#[test]
fn a_batch_without_an_event_of_what_it_changed_is_found() {
    let mut story = Story::new();
    let release = release(manifest(&[("web", process(1))]));
    let command = deployment(story.leader.state(), "shop/prod", release, story.now);
    let labels = Command::SetLabels {
        node: NodeId(1),
        labels: [("disk".parse().unwrap(), Some("ssd".parse().unwrap()))].into(),
    };
    let secret = Command::AddSecretVersion {
        env: key("shop/prod"),
        bundle: "database".to_owned(),
        version: 1,
        content: SealedVersion {
            sealed: Vec::new(),
            created_at: Timestamp(0),
        },
    };
    let commands = [command, labels, secret];
    story.leader.execute(&origin(), &commands).unwrap();
    let mut draw = || 0x20;
    while story.leader.plan_next(story.now, &mut draw).is_some() {}
    let before = story.leader.committed().clone();
    let changes = story.leader.take_batch().changes;
    assert_eq!(changes.events.len(), 4, "{:#?}", changes.events);
    for missing in 0..changes.events.len() {
        let mut told = changes.clone();
        let event = told.events.remove(missing);
        super::check::check(&before, &told).expect_err(event.kind.as_str());
        // Nor is it told twice, or with a number that was given.
        let mut told = changes.clone();
        told.events.push(event);
        super::check::check(&before, &told).unwrap_err();
    }
    let mut told = changes.clone();
    told.replaced_events.insert(99);
    super::check::check(&before, &told).unwrap_err();
    super::check::check(&before, &changes).unwrap();
}

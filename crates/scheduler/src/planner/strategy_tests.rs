//! How a release replaces another, step by step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::protocol::PROTOCOL_VERSION;
use api::user::RolloutPhase;
use manifest::{Process, Strategy};
use model::instance::InstanceState;
use model::{EnvNetwork, InstanceId, ReleaseNumber, Timestamp};

use super::plan;
use crate::action::Action;
use crate::apply::apply;
use crate::cluster_state::{ClusterState, Presence};
use crate::fixtures::{READY, RUNNING, cluster, deploy, key, manifest, process, report};
use crate::routes::routes;

const START: Timestamp = Timestamp(10_000_000);

/// A cluster in which every report is played by the test.
pub(super) struct Played {
    pub(super) cluster: ClusterState,
    pub(super) now: Timestamp,
    drawn: u32,
}

impl Played {
    /// Two ready instances of release 1, and release 2 with this change begins.
    pub(super) fn of(change: impl Fn(&mut Process)) -> Self {
        let mut rollout = Self::first(manifest(&[("web", process(2))]));
        rollout.report_all(READY);
        rollout.step();
        assert_eq!(rollout.phase(), RolloutPhase::Done);
        let mut web = process(2);
        web.env.insert("COLOUR".to_owned(), "green".to_owned());
        change(&mut web);
        let second = manifest(&[("web", web)]);
        rollout.deploy(second);
        rollout.step();
        rollout
    }

    /// Release 1 of this manifest begins.
    pub(super) fn first(manifest: manifest::Manifest) -> Self {
        let mut rollout = Self {
            cluster: cluster(3),
            now: START,
            drawn: 0,
        };
        deploy(&mut rollout.cluster, "shop/prod", manifest, Timestamp(0));
        rollout.step();
        rollout
    }

    pub(super) fn deploy(&mut self, manifest: manifest::Manifest) {
        deploy(&mut self.cluster, "shop/prod", manifest, self.now);
    }

    /// The next release of this manifest, down to the variables of the one before, which the fixture makes others each time.
    fn deploy_with_its_variables(&mut self, mut manifest: manifest::Manifest) {
        let env = self.cluster.envs.get(&key("shop/prod")).unwrap();
        let (last, mut release) = (env.releases.iter().next_back())
            .map(|(number, release)| (*number, release.clone()))
            .unwrap();
        manifest.env.clone_from(&release.manifest.env);
        release.manifest = manifest;
        let number = ReleaseNumber(last.0 + 1);
        let command = crate::apply::Command::AddRelease {
            env: key("shop/prod"),
            number,
            release: Box::new(release),
            rollout: crate::rollout::begin(Some(&env.rollout), number, self.now),
        };
        apply(&mut self.cluster, &command).unwrap();
    }

    /// Plans until nothing more is to do, and takes what is terminated away.
    pub(super) fn step(&mut self) {
        for _ in 0..20 {
            let drawn = &mut self.drawn;
            let planned = plan(&self.cluster, self.now, &mut || {
                // More than one plan creates: the ids of instances that are gone are not given again.
                *drawn += 0x10;
                *drawn
            });
            if planned.actions.is_empty() {
                return;
            }
            for action in planned.actions {
                let id = match &action {
                    Action::Terminate { id, .. } => Some(*id),
                    _ => None,
                };
                apply(&mut self.cluster, &action.into()).unwrap();
                if let Some(id) = id {
                    self.cluster.instances.remove(&id);
                }
            }
        }
        panic!("the planner never rests");
    }

    pub(super) fn after(&mut self, ms: u64) {
        self.now.0 += ms;
        self.step();
    }

    /// The instances of a release, oldest first.
    fn of_release(&self, release: u32) -> Vec<InstanceId> {
        let all = self.cluster.instances.iter();
        let mine = all.filter(|(_, i)| i.spec.release == ReleaseNumber(release));
        mine.map(|(id, _)| *id).collect()
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.of_release(1).len(), self.of_release(2).len())
    }

    pub(super) fn report(&mut self, id: InstanceId, state: InstanceState, restarts: u32) {
        self.report_with(id, state, |said| said.restarts = restarts);
    }

    pub(super) fn report_with(
        &mut self,
        id: InstanceId,
        state: InstanceState,
        change: impl FnOnce(&mut api::node::InstanceReport),
    ) {
        let mut said = report(id, state);
        change(&mut said);
        let node = self.cluster.instances.get(&id).unwrap().node;
        let instances = self.cluster.instances.on_node(node);
        let others = instances.filter(|(other, _)| *other != id);
        let mut all: Vec<_> = others.filter_map(|(_, i)| i.report.clone()).collect();
        all.push(said);
        let known = self.cluster.nodes.get(&node).unwrap();
        let command = crate::apply::Command::Report {
            node,
            report: Box::new(api::node::NodeReport {
                generation: self.cluster.generation(node).unwrap(),
                egress: None,
                driver: api::node::DriverChoice {
                    name: "qemu-tcg".to_owned(),
                    reason: "a test".to_owned(),
                },
                hardware: known.hardware.clone(),
                instances: all,
                volumes: Vec::new(),
                highest_network: EnvNetwork::default(),
                images: Vec::new(),
            }),
            now: self.now,
        };
        apply(&mut self.cluster, &command).unwrap();
    }

    pub(super) fn report_all(&mut self, state: InstanceState) {
        for id in self.cluster.instances.keys().copied().collect::<Vec<_>>() {
            self.report(id, state, 0);
        }
    }

    pub(super) fn phase(&self) -> RolloutPhase {
        self.cluster.envs[&key("shop/prod")].rollout.phase
    }

    pub(super) fn reason(&self) -> &str {
        &self.cluster.envs[&key("shop/prod")].rollout.reason
    }
}

#[test]
fn case_a_new_instance_counts_when_it_was_ready_for_a_while() {
    let mut rollout = Played::of(|web| web.deploy.min_healthy_ms = 10_000);
    assert_eq!(rollout.counts(), (2, 1));
    let new = rollout.of_release(2)[0];
    rollout.report(new, READY, 0);
    rollout.after(9_999);
    assert_eq!(rollout.counts(), (2, 1), "it is not ready for long enough");
    // It crashes, is started again, and begins anew.
    rollout.report(new, READY, 1);
    rollout.after(9_999);
    assert_eq!(rollout.counts(), (2, 1));
    rollout.after(1);
    assert_eq!(rollout.counts(), (1, 2));
    rollout.report_all(READY);
    rollout.after(10_000);
    assert_eq!(rollout.counts(), (0, 2));
    assert_eq!(rollout.phase(), RolloutPhase::Done);
}

#[test]
fn case_an_instance_that_is_ready_now_and_then_fails_its_release_in_time() {
    let mut rollout = Played::of(|web| {
        web.deploy.min_healthy_ms = 10_000;
        web.deploy.deadline_ms = Some(120_000);
    });
    let new = rollout.of_release(2)[0];
    for _ in 0..11 {
        rollout.report(new, READY, 0);
        rollout.after(5_000);
        rollout.report(new, RUNNING, 0);
        rollout.after(5_000);
        assert_eq!(rollout.phase(), RolloutPhase::Rolling);
    }
    // The deadline, and the time for which it is to be ready.
    rollout.after(19_999);
    assert_eq!(rollout.phase(), RolloutPhase::Rolling);
    rollout.after(1);
    assert_eq!(rollout.phase(), RolloutPhase::Reverted);
    assert!(
        rollout
            .reason()
            .contains("not ready for 10 s on end after 130 s"),
        "{}",
        rollout.reason()
    );
    assert_eq!(rollout.counts(), (2, 0));
}

#[test]
fn case_a_deadline_counts_only_while_the_node_is_heard() {
    let mut rollout = Played::of(|web| web.deploy.deadline_ms = Some(60_000));
    let new = rollout.of_release(2)[0];
    rollout.report(new, RUNNING, 0);
    rollout.after(59_000);
    let node = rollout.cluster.instances.get(&new).unwrap().node;
    let set = |rollout: &mut Played, presence| {
        rollout.cluster.nodes.get_mut(&node).unwrap().presence = presence;
    };
    set(&mut rollout, Presence::NotHeardYet);
    rollout.after(10 * 60_000);
    assert_eq!(rollout.phase(), RolloutPhase::Rolling);
    let since = rollout.now;
    set(
        &mut rollout,
        Presence::Heard {
            since,
            protocol: PROTOCOL_VERSION,
        },
    );
    rollout.after(59_000);
    assert_eq!(rollout.phase(), RolloutPhase::Rolling);
    rollout.after(1_000);
    assert_eq!(rollout.phase(), RolloutPhase::Reverted);
    assert!(
        rollout.reason().contains("not ready after 1 min"),
        "{}",
        rollout.reason()
    );
}

#[test]
fn case_an_immediate_release_replaces_all_at_once() {
    let mut rollout = Played::of(|web| web.deploy.strategy = Strategy::Immediate);
    assert_eq!(rollout.counts(), (0, 2));
    rollout.report_all(READY);
    rollout.step();
    assert_eq!(rollout.phase(), RolloutPhase::Done);
}

#[test]
fn case_a_canary_comes_first_and_alone() {
    let mut rollout = Played::of(|web| {
        web.deploy.strategy = Strategy::Canary;
        web.deploy.max_surge = 5;
        web.deploy.max_unavailable = 1;
        web.deploy.min_healthy_ms = 10_000;
    });
    assert_eq!(
        rollout.counts(),
        (2, 1),
        "one more, and none of the old goes"
    );
    rollout.report_all(READY);
    rollout.step();
    assert_eq!(rollout.counts(), (2, 1));
    rollout.after(10_000);
    assert_eq!(rollout.counts(), (0, 2));
    // A canary that fails leaves the old as they were.
    let mut rollout = Played::of(|web| web.deploy.strategy = Strategy::Canary);
    let new = rollout.of_release(2)[0];
    rollout.report(new, InstanceState::Failed, 0);
    rollout.step();
    assert_eq!(
        (rollout.phase(), rollout.counts()),
        (RolloutPhase::Reverted, (2, 0))
    );
}

#[test]
fn case_blue_green_switches_when_all_the_new_are_ready() {
    let mut rollout = Played::of(|web| web.deploy.strategy = Strategy::BlueGreen);
    assert_eq!(rollout.counts(), (2, 2));
    let backends = |rollout: &Played| {
        let routes = routes(&rollout.cluster);
        let backends = routes.values().flat_map(|route| &route.backends);
        let mut ids: Vec<_> = backends.map(|backend| backend.instance).collect();
        ids.sort();
        ids
    };
    let (blue, green) = (rollout.of_release(1), rollout.of_release(2));
    rollout.report(green[0], READY, 0);
    rollout.step();
    assert_eq!(rollout.counts(), (2, 2));
    assert_eq!(backends(&rollout), blue, "the new get no traffic yet");
    rollout.report(green[1], READY, 0);
    rollout.step();
    assert_eq!(rollout.counts(), (0, 2));
    assert_eq!(backends(&rollout), green);
    assert_eq!(rollout.phase(), RolloutPhase::Done);
}

#[test]
fn case_what_is_not_alive_is_replaced_one_at_a_time() {
    let mut rollout = Played::of(|_| {});
    for _ in 0..3 {
        rollout.report_all(READY);
        rollout.step();
    }
    assert_eq!(
        (rollout.phase(), rollout.counts()),
        (RolloutPhase::Done, (0, 2))
    );
    let dead = |rollout: &mut Played| {
        for id in rollout.of_release(2) {
            let instance = rollout.cluster.instances.get_mut(&id).unwrap();
            if let Some(report) = &mut instance.report {
                report.liveness_failure = Some("the liveness check failed".to_owned());
            }
        }
    };
    // What both need is away: each new one is no better, and there is never more than one that starts.
    let mut before = rollout.of_release(2);
    for _ in 0..4 {
        dead(&mut rollout);
        rollout.step();
        let after = rollout.of_release(2);
        let stayed = before.iter().filter(|id| after.contains(id)).count();
        assert_eq!((after.len(), stayed), (2, 1));
        // It is not replaced further while the new one starts.
        rollout.after(60_000);
        assert_eq!(rollout.of_release(2), after);
        let new = after
            .iter()
            .find(|id| !before.contains(id))
            .copied()
            .unwrap();
        rollout.report(new, READY, 0);
        before = after;
    }
    // A new release fails by it.
    let mut rollout = Played::of(|_| {});
    let new = rollout.of_release(2)[0];
    rollout.report(new, READY, 0);
    dead(&mut rollout);
    rollout.step();
    assert_eq!(rollout.phase(), RolloutPhase::Reverted);
    assert!(
        rollout
            .reason()
            .contains("is not alive: the liveness check failed"),
        "{}",
        rollout.reason()
    );
}

#[test]
fn case_an_instance_moves_when_a_release_asks_for_labels_that_its_node_does_not_have() {
    let labelled = |web: &mut Process| {
        web.env.clear();
        web.labels = [("disk".to_owned(), "nvme".to_owned())].into();
    };
    let mut rollout = Played::first(manifest(&[("web", process(1))]));
    rollout.report_all(READY);
    rollout.step();
    let (before, instance) = rollout.cluster.instances.iter().next().unwrap();
    let (before, was_on) = (*before, instance.node);
    let other = model::NodeId(if was_on.0 == 1 { 2 } else { 1 });
    let label = |cluster: &mut ClusterState, node, value: &str| {
        let labels = &mut cluster.nodes.get_mut(&node).unwrap().labels;
        labels.insert("disk".parse().unwrap(), value.parse().unwrap());
    };
    label(&mut rollout.cluster, other, "nvme");
    let mut web = process(1);
    labelled(&mut web);
    rollout.deploy_with_its_variables(manifest(&[("web", web.clone())]));
    rollout.step();
    while rollout.phase() == RolloutPhase::Rolling {
        rollout.report_all(READY);
        rollout.step();
    }
    let after: Vec<_> = rollout.cluster.instances.values().collect();
    assert_eq!(after.len(), 1);
    assert_ne!(after[0].spec.id, before);
    assert_eq!(after[0].node, other);
    // A node that loses the label keeps what it has, also when the next release asks for the same.
    let stays = after[0].spec.id;
    label(&mut rollout.cluster, other, "hdd");
    rollout.step();
    rollout.deploy_with_its_variables(manifest(&[("web", web)]));
    rollout.step();
    let ids: Vec<_> = rollout.cluster.instances.keys().copied().collect();
    assert_eq!(ids, [stays]);
}

#[test]
fn case_a_release_that_was_never_rolled_out_wholly_is_watched_again_when_the_next_has_the_same() {
    let bad = |web: &mut Process| web.deploy.deadline_ms = Some(40_000);
    let mut rollout = Played::of(bad);
    // What release 2 makes never becomes ready; it is deployed again before it fails.
    let mut again = process(2);
    again.env.insert("COLOUR".to_owned(), "green".to_owned());
    bad(&mut again);
    let new = rollout.of_release(2);
    for id in &new {
        rollout.report(*id, RUNNING, 0);
    }
    rollout.after(8_000);
    assert_eq!(rollout.phase(), RolloutPhase::Rolling);
    rollout.deploy_with_its_variables(manifest(&[("web", again)]));
    rollout.step();
    assert_eq!(rollout.of_release(2), new, "they are as release 3 has them");
    assert_eq!(rollout.phase(), RolloutPhase::Rolling);
    rollout.after(40_000);
    assert_eq!(
        rollout.phase(),
        RolloutPhase::Reverted,
        "{}",
        rollout.reason()
    );
    assert_eq!(rollout.counts(), (2, 0));
}

#[test]
fn case_the_time_to_be_ready_on_end_comes_on_top_of_the_deadline_and_the_pull_does_not_count() {
    let mut rollout = Played::of(|web| {
        web.deploy.deadline_ms = Some(30_000);
        web.deploy.min_healthy_ms = 60_000;
    });
    // The image takes 54 s; then it is ready in 20 s.
    let pulled = |said: &mut api::node::InstanceReport| said.preparing_ms = 54_000;
    while rollout.phase() == RolloutPhase::Rolling {
        let unready: Vec<_> = (rollout.cluster.instances.iter())
            .filter(|(_, instance)| instance.report.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in &unready {
            rollout.report(*id, InstanceState::Preparing, 0);
        }
        rollout.after(if unready.is_empty() { 10_000 } else { 74_000 });
        for id in unready {
            rollout.report_with(id, READY, pulled);
        }
        rollout.step();
    }
    assert_eq!(rollout.phase(), RolloutPhase::Done, "{}", rollout.reason());
}

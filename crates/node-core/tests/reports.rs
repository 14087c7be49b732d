//! Both ends of a node's reports over a network that loses, repeats and delays them, with restarts of both: once it heals, the server has
//! what the node has.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use api::node::{
    AgentSession, CachedImage, DriverChoice, EgressState, InstanceReport, NodeReport, ReportAnswer,
    ReportDelta,
};
use model::instance::{InstanceState, PinnedImage};
use model::{Digest, EnvNetwork, Generation, InstanceId, NodeId, Timestamp, VolumeId};
use node_core::report_sender::{Answered, ReportSender};
use proptest::prelude::*;
use scheduler::apply::apply;
use scheduler::cluster_state::ClusterState;
use scheduler::fixtures::{InstanceFixture, cluster, deploy, manifest, process};
use scheduler::report_receiver::{ReportReceiver, Verdict};

const NODE: NodeId = NodeId(1);
/// How often the server asks for a report.
const EVERY: Duration = Duration::from_secs(3);
/// Instances that the server knows; the node may have as many more.
const KNOWN: u32 = 4;

/// What happens.
#[derive(Debug, Clone)]
enum Event {
    /// The node changes.
    Change(Change),
    /// It reports, and gets an answer.
    Report,
    /// The report is lost.
    Lose,
    /// It arrives, and its answer is lost.
    LoseAnswer,
    /// A copy of it arrives later.
    Delay,
    /// One of the copies arrives now.
    Late(prop::sample::Index),
    /// The agent starts again. `lost`: and does not know its number any more.
    RestartAgent { lost: bool },
    /// Another server leads, or the same one starts again.
    RestartServer,
    /// The store refuses what the next report changes.
    Refuse,
}

#[derive(Debug, Clone)]
enum Change {
    Instance(u32, Option<(u8, u32)>),
    Volume(u32, bool),
    Image(u8, Option<u64>),
    Generation(u64),
    Egress(bool),
    Memory(u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (1..=2 * KNOWN, prop::option::of((0_u8..5, 0_u32..3))).prop_map(|(i, s)| Change::Instance(i, s)),
        1 => (0_u32..4, any::<bool>()).prop_map(|(v, there)| Change::Volume(v, there)),
        1 => (0_u8..4, prop::option::of(0_u64..3)).prop_map(|(i, used)| Change::Image(i, used)),
        1 => (0_u64..6).prop_map(Change::Generation),
        1 => any::<bool>().prop_map(Change::Egress),
        1 => (1_u64..4).prop_map(Change::Memory),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => change().prop_map(Event::Change),
        6 => Just(Event::Report),
        2 => Just(Event::Lose),
        2 => Just(Event::LoseAnswer),
        3 => Just(Event::Delay),
        4 => any::<prop::sample::Index>().prop_map(Event::Late),
        1 => any::<bool>().prop_map(|lost| Event::RestartAgent { lost }),
        1 => Just(Event::RestartServer),
        1 => Just(Event::Refuse),
    ]
}

struct Cluster {
    node: NodeReport,
    sender: ReportSender,
    /// The highest number that an agent had.
    session: u64,
    /// How many agents lost theirs.
    lost: u64,
    server: ClusterState,
    receiver: ReportReceiver,
    delayed: Vec<ReportDelta>,
    refuse: bool,
}

impl Cluster {
    fn new() -> Self {
        let mut server = cluster(1);
        let release = manifest(&[("web", process(1))]);
        deploy(&mut server, "shop/prod", release, Timestamp(0));
        for id in 1..=KNOWN {
            InstanceFixture {
                id,
                env: "shop/prod",
                process: "web",
                release: 1,
                node: NODE.0,
            }
            .into_cluster(&mut server);
        }
        Self {
            node: NodeReport {
                generation: Generation::default(),
                driver: DriverChoice {
                    name: "test".to_owned(),
                    reason: "a test".to_owned(),
                },
                egress: None,
                hardware: server.nodes[&NODE].hardware.clone(),
                instances: Vec::new(),
                volumes: Vec::new(),
                highest_network: EnvNetwork::default(),
                images: Vec::new(),
            },
            sender: ReportSender::new(AgentSession(1000)),
            session: 1000,
            lost: 0,
            server,
            receiver: ReportReceiver::default(),
            delayed: Vec::new(),
            refuse: false,
        }
    }

    fn change(&mut self, change: Change) {
        let node = &mut self.node;
        match change {
            Change::Instance(id, state) => {
                let id = InstanceId(id);
                node.instances.retain(|said| said.id != id);
                let state = state.map(|(state, restarts)| InstanceReport {
                    restarts,
                    ..InstanceReport::new(id, states()[usize::from(state)])
                });
                node.instances.extend(state);
            }
            Change::Volume(id, there) => {
                node.volumes.retain(|volume| *volume != VolumeId(id));
                node.volumes.extend(there.then_some(VolumeId(id)));
            }
            Change::Image(id, used) => {
                let digest = Digest::from_sha256(&[id; 32]);
                node.images.retain(|cached| cached.image.digest != digest);
                node.images.extend(used.map(|last_used| CachedImage {
                    image: PinnedImage {
                        registry: "registry.test".to_owned(),
                        repository: "app".to_owned(),
                        digest,
                    },
                    size_bytes: 1,
                    last_used: Timestamp(last_used),
                    instances: 0,
                    pinned: false,
                }));
            }
            Change::Generation(counter) => {
                node.generation = Generation {
                    incarnation: self.server.incarnation,
                    counter,
                };
            }
            Change::Egress(on) => {
                let reason = "a test".to_owned();
                node.egress = Some(EgressState { on, reason });
            }
            Change::Memory(memory_bytes) => node.hardware.memory_bytes = memory_bytes,
        }
    }

    /// As the server does it. `None`: it answers that it could not.
    fn receive(&mut self, delta: &ReportDelta) -> Option<api::node::ReportAnswer> {
        let mut delta = delta.clone();
        assert_eq!(delta.bound(), [], "the sender keeps to the bounds");
        let verdict = self.receiver.check(&delta);
        if verdict == Verdict::Apply {
            if std::mem::take(&mut self.refuse) {
                return None;
            }
            let now = Timestamp(9);
            let command = self.receiver.command(&self.server, NODE, &delta, now);
            if let Some(command) = command {
                apply(&mut self.server, &command).unwrap();
            }
            let exceeded = Vec::new();
            self.receiver.received(&self.server, NODE, &delta, exceeded);
        }
        Some(self.receiver.answer(verdict, EVERY))
    }

    fn report(&mut self) -> Option<Answered> {
        let delta = self.sender.next(&self.node);
        let answer = self.receive(&delta)?;
        let answered = self.sender.answered(answer);
        if let Answered::NewSession(session) = answered {
            self.session = self.session.max(session.0);
        }
        Some(answered)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Change(change) => self.change(change),
            Event::Report => drop(self.report()),
            Event::Lose => drop(self.sender.next(&self.node)),
            Event::LoseAnswer => {
                let delta = self.sender.next(&self.node);
                self.receive(&delta);
            }
            Event::Delay => {
                let delta = self.sender.next(&self.node);
                self.delayed.push(delta);
            }
            Event::Late(which) => {
                if !self.delayed.is_empty() {
                    let index = which.index(self.delayed.len());
                    let late = self.delayed.remove(index);
                    let before = (
                        self.server.clone(),
                        self.receiver.answer(Verdict::Known, EVERY),
                    );
                    let verdict = self.receiver.check(&late);
                    self.receive(&late);
                    if verdict != Verdict::Apply {
                        let after = (
                            self.server.clone(),
                            self.receiver.answer(Verdict::Known, EVERY),
                        );
                        assert!(before == after, "a {verdict:?} report changed something");
                    }
                }
            }
            Event::RestartAgent { lost } => {
                // The number comes from the clock where the last one is lost: it may be of before, and was not given yet.
                // Once: who loses it again may get one that was given.
                let session = if lost && self.lost == 0 {
                    self.lost = 1;
                    self.session - 1
                } else {
                    self.session += 1000;
                    self.session
                };
                self.sender = ReportSender::new(AgentSession(session));
            }
            Event::RestartServer => self.receiver = ReportReceiver::default(),
            Event::Refuse => self.refuse = true,
        }
    }

    /// The network heals: no more than a whole report, or one under a new number, is needed.
    fn heal(&mut self) {
        self.refuse = false;
        for _ in 0..5 {
            // The one in flight may be of before the last change, so one more follows it.
            let answered = self.report().unwrap();
            let last = self.sender.clone().next(&self.node);
            if answered == Answered::Applied && last.is_empty() {
                return;
            }
        }
        panic!("it does not heal");
    }

    fn check(&self) {
        let node = &self.node;
        let known = &self.server.nodes[&NODE];
        assert_eq!(known.hardware, node.hardware.within(&known.approved));
        assert_eq!(
            known.claimed.is_some(),
            node.hardware.exceeds(&known.approved)
        );
        assert_eq!(known.driver.as_ref(), Some(&node.driver));
        assert_eq!(known.egress, node.egress);
        assert_eq!(self.receiver.observed(), node.generation);
        let said = |id| node.instances.iter().find(|said| said.id == InstanceId(id));
        for id in 1..=KNOWN {
            let report = self.server.instances[&InstanceId(id)].report.as_ref();
            assert_eq!(report, said(id), "instance {id}");
        }
        let unknown = self.receiver.unknown(&self.server, NODE);
        let runs = |said: &&InstanceReport| {
            said.id.0 > KNOWN
                && !matches!(said.state, InstanceState::Stopped | InstanceState::Failed)
        };
        let expected: BTreeSet<_> = (node.instances.iter().filter(runs))
            .map(|said| said.id)
            .collect();
        assert_eq!(
            unknown.instances.into_iter().collect::<BTreeSet<_>>(),
            expected
        );
        let volumes: BTreeSet<_> = node.volumes.iter().copied().collect();
        assert_eq!(
            unknown.volumes.into_iter().collect::<BTreeSet<_>>(),
            volumes
        );
        let mut images = node.images.clone();
        images.sort_by(|a, b| (b.last_used, &a.image.digest).cmp(&(a.last_used, &b.image.digest)));
        assert_eq!(self.receiver.images(), images);
    }
}

fn states() -> [InstanceState; 5] {
    [
        InstanceState::Preparing,
        InstanceState::Running {
            ready: true,
            started_at: Some(Timestamp(1)),
        },
        InstanceState::Backoff,
        InstanceState::Stopped,
        InstanceState::Failed,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_server_has_what_its_node_has_once_the_network_heals(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut cluster = Cluster::new();
        for event in events {
            cluster.happen(event);
        }
        cluster.heal();
        cluster.check();
        // What is still on its way changes nothing any more.
        for late in std::mem::take(&mut cluster.delayed) {
            cluster.receive(&late);
            // Only where an agent lost its number may one that is gone seem to be the later one; the next report says so.
            if cluster.lost > 0 {
                cluster.heal();
            }
            cluster.check();
        }
        // And a node at rest says next to nothing.
        let rest = cluster.sender.next(&cluster.node);
        prop_assert!(rest.is_empty());
    }
}

#[test]
fn a_node_reports_as_often_as_the_server_asks_within_bounds() {
    let Cluster {
        node, mut sender, ..
    } = Cluster::new();
    let seconds = |sender: &ReportSender| sender.heartbeat_interval().as_secs();
    assert_eq!(seconds(&sender), 3);
    for (asked, is) in [
        (Some(5_000), 5),
        (Some(0), 3),
        (Some(u32::MAX), 60),
        (None, 3),
    ] {
        let delta = sender.next(&node);
        let answer = ReportAnswer {
            session: delta.session,
            sequence: delta.sequence,
            whole: false,
            heartbeat_interval_ms: asked,
        };
        assert_eq!(sender.answered(answer), Answered::Applied);
        assert_eq!(seconds(&sender), is, "{asked:?}");
    }
}

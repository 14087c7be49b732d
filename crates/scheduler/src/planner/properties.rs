//! Properties of the planner on generated cluster states of every shape, most of which no cluster ever reaches: planning a
//! planned state returns no change, and what `apply` changes is what it says it changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use api::enrollment::{InstanceOverhead, NodeDisk};
use api::node::{DriverChoice, InstanceReport, NodeReport};
use api::protocol::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use api::user::RolloutPhase;
use model::instance::{EgressPolicy, InstanceState, Runs};
use model::{EnvNetwork, Generation, InstanceId, NodeId, ReleaseNumber, Timestamp};
use overlay::address_plan::{EGRESS_BITS, egress_address};
use proptest::prelude::*;

use super::tests::{NOW, put};
use super::{Action, WAITING_LOOK_MS, plan};
use crate::apply::{Command, apply};
use crate::changes::Changes;
use crate::cluster_state::{
    ClusterState, InstancePhase, Presence, ReleaseCommand, Scheduling, VolumePhase,
};
use crate::fixtures::{
    MIB, READY, RUNNING, attach, cluster, database, deploy, deployment, exit, key, manifest, name,
    node, process, release, report, show, worker,
};
use crate::leader::Leader;
use crate::node_protocol::NeededProtocol;
use crate::placement::{Demand, Placement, Resources};
use crate::routes::RouteIndex;

fn any_state() -> impl Strategy<Value = InstanceState> {
    prop_oneof![
        1 => Just(InstanceState::Created),
        1 => Just(InstanceState::Booting),
        2 => Just(RUNNING),
        2 => Just(READY),
        1 => Just(InstanceState::Stopping),
        1 => Just(InstanceState::Stopped),
        1 => Just(InstanceState::Backoff),
        1 => Just(InstanceState::Failed),
    ]
}

type AnyInstance = (
    (bool, u32, u16),
    (InstancePhase, u64),
    Option<(InstanceState, u32, Option<u8>)>,
);

fn any_instance() -> impl Strategy<Value = AnyInstance> {
    let view = (any::<bool>(), 1_u32..4, 1_u16..6);
    let phase = prop_oneof![
        2 => Just(InstancePhase::New),
        2 => Just(InstancePhase::Established),
        2 => any::<bool>().prop_map(|was_ready| InstancePhase::Terminating {
            was_ready,
            reason: "a test".to_owned(),
        }),
        1 => Just(InstancePhase::Gone { reason: "a test".to_owned() }),
    ];
    let flags = (phase, 0_u64..20_000_000);
    let said = (any_state(), 0_u32..5, proptest::option::of(0_u8..2));
    (view, flags, proptest::option::of(said))
}

/// Prints in short when a property fails.
#[derive(Clone)]
struct AnyState(ClusterState);

impl std::fmt::Debug for AnyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (id, node) in &self.0.nodes {
            let (presence, memory) = (node.presence, node.hardware.memory_bytes / MIB);
            writeln!(f, "{id} {presence:?} {:?}, {memory} MiB", node.scheduling)?;
        }
        for env in self.0.envs.values() {
            let (previous, scale) = (env.rollout.previous, &env.scale);
            writeln!(
                f,
                "previous {previous:?} scale {scale:?} destroying {}",
                env.destroying
            )?;
            for (number, release) in &env.releases {
                for (name, process) in &release.manifest.processes {
                    let (min, deploy) = (process.scaling.min, &process.deploy);
                    writeln!(f, "{number} {name} {min} {deploy:?}")?;
                }
            }
        }
        for (id, instance) in &self.0.instances {
            let (phase, at, report) = (&instance.phase, instance.created_at, &instance.report);
            writeln!(f, "{id} {phase:?} {at:?} {report:?}")?;
        }
        f.write_str(&show(&self.0))
    }
}

fn any_cluster_state() -> impl Strategy<Value = AnyState> {
    let phase = prop_oneof![
        4 => Just(RolloutPhase::Rolling),
        1 => Just(RolloutPhase::Done),
        1 => Just(RolloutPhase::Failed),
        1 => Just(RolloutPhase::Reverted),
    ];
    let deploys = (0_u32..5, 0_u32..3, 0_u32..3, any::<(bool, bool)>());
    (
        prop::collection::vec((any::<bool>(), 256_u64..3000), 0..5),
        prop::collection::vec(deploys, 3),
        (
            phase,
            proptest::option::of(1_u32..4),
            any::<bool>(),
            proptest::option::of(0_u32..5),
        ),
        prop::collection::vec(any_instance(), 0..12),
        any::<bool>(),
    )
        .prop_map(|(nodes, deploys, rollout, instances, destroying)| {
            let mut cluster = cluster(0);
            cluster.last_node = 9;
            for (number, (online, memory)) in (1..).zip(nodes) {
                let (id, mut node) = node(number, memory);
                node.presence = match (online, memory % 5) {
                    (true, _) => Presence::Heard {
                        since: Timestamp(memory),
                        // Some agents are not upgraded yet.
                        protocol: if memory % 11 < 4 {
                            OLDEST_PROTOCOL_VERSION
                        } else {
                            PROTOCOL_VERSION
                        },
                    },
                    (false, 0) => Presence::NotHeardYet,
                    (false, _) => Presence::Lapsed {
                        since: Timestamp(NOW.0 - 60 * memory),
                    },
                };
                node.scheduling = match memory % 7 {
                    0 => Scheduling::Cordoned,
                    1 => Scheduling::Draining { with_volumes: true },
                    2 => Scheduling::Draining {
                        with_volumes: false,
                    },
                    _ => Scheduling::Schedulable,
                };
                // Some have hardly a disk, and some say neither what they have nor what an instance costs.
                let hardware = &mut node.hardware;
                hardware.disk = (memory % 4 > 0).then(|| NodeDisk {
                    total_bytes: memory / 4 * MIB,
                    reserved_bytes: 10 * MIB,
                    ..NodeDisk::default()
                });
                hardware.overhead = (memory % 3 > 0).then_some(InstanceOverhead {
                    memory_bytes: 90 * MIB,
                    disk_bytes: MIB,
                });
                cluster.nodes.insert(id, node);
            }
            for (count, surge, unavailable, (auto_revert, volumes)) in deploys {
                let mut web = if volumes {
                    database(count)
                } else {
                    process(count)
                };
                web.deploy.max_surge = surge;
                web.deploy.max_unavailable = unavailable;
                web.deploy.auto_revert = auto_revert;
                web.egress = [
                    EgressPolicy::All,
                    EgressPolicy::Internet,
                    EgressPolicy::None,
                ][count as usize % 3];
                if surge == 2 {
                    web.deploy.release_command = Some(vec!["migrate".to_owned()]);
                }
                let mut processes = vec![("web", web)];
                if count % 2 == 0 {
                    processes.push(("worker", worker(count)));
                }
                deploy(
                    &mut cluster,
                    "shop/prod",
                    manifest(&processes),
                    Timestamp(0),
                );
            }
            let mut ordinals = 0..;
            for (id, ((is_web, release, node), flags, said)) in (1..).zip(instances) {
                let (phase, created_at) = flags;
                let process = if is_web { "web" } else { "worker" };
                let env = &cluster.envs[&key("shop/prod")];
                let manifest = &env.releases[&ReleaseNumber(release)].manifest;
                if !manifest.processes.contains_key(&name(process)) {
                    continue;
                }
                let has_volumes = !manifest.processes[&name(process)].volumes.is_empty();
                put(&mut cluster, id, process, release, node);
                if has_volumes {
                    // Some are skipped, some on nodes that are not there.
                    let ordinal = ordinals.nth(usize::from(release == 2)).unwrap_or(0);
                    attach(&mut cluster, id, ordinal);
                }
                let instance = cluster.instances.get_mut(&InstanceId(id)).unwrap();
                if is_web && !has_volumes && id % 4 == 0 {
                    std::sync::Arc::make_mut(&mut instance.spec).runs = Runs::ReleaseCommand;
                }
                if !has_volumes && id % 7 == 3 {
                    let runs = &mut std::sync::Arc::make_mut(&mut instance.spec).runs;
                    *runs = Runs::Command {
                        attached: id % 2 == 0,
                        ends_at: Timestamp(10_000_000),
                    };
                }
                instance.phase = phase;
                instance.created_at = Timestamp(created_at);
                instance.report = said.map(|(state, restarts, code)| InstanceReport {
                    restarts,
                    last_exit: code.map(exit),
                    ..report(InstanceId(id), state)
                });
            }
            let (phase, previous, back, scale) = rollout;
            let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
            env.rollout.phase = phase;
            env.rollout.previous = previous.filter(|p| *p != 3).map(ReleaseNumber);
            if back && phase == RolloutPhase::Rolling {
                let web = (name("web"), ReleaseCommand::Started);
                env.rollout.release_commands = BTreeMap::from([web]);
            }
            if back && phase == RolloutPhase::Reverted {
                env.rollout.wanted = env.rollout.previous.unwrap_or(ReleaseNumber(3));
            }
            if let Some(scale) = scale {
                env.scale.insert(name("web"), scale);
            }
            env.destroying = destroying;
            AnyState(cluster)
        })
}

/// Something that happens to a cluster.
#[derive(Debug, Clone)]
enum Event {
    /// By which version of the protocol, where it is heard.
    Online(u16, Option<u32>),
    Scale(u32),
    Report(u16, bool, Vec<InstanceState>),
    Deploy(u32),
    Later(u64),
    Scheduling(u16, Scheduling),
    Remove(u16, bool),
    ClockWasSet(bool),
}

fn any_scheduling() -> impl Strategy<Value = Scheduling> {
    prop_oneof![
        2 => Just(Scheduling::Schedulable),
        1 => Just(Scheduling::Cordoned),
        2 => any::<bool>().prop_map(|with_volumes| Scheduling::Draining { with_volumes }),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let said = prop::collection::vec(any_state(), 0..6);
    prop_oneof![
        2 => (1_u16..5, proptest::option::of(OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION))
            .prop_map(|(node, heard)| Event::Online(node, heard)),
        1 => (0_u32..5).prop_map(Event::Scale),
        4 => (1_u16..5, any::<bool>(), said).prop_map(|(n, current, said)| Event::Report(n, current, said)),
        1 => (0_u32..4).prop_map(Event::Deploy),
        1 => (0_u64..400_000).prop_map(Event::Later),
        1 => (1_u16..5, any_scheduling()).prop_map(|(node, mode)| Event::Scheduling(node, mode)),
        1 => (1_u16..5, any::<bool>()).prop_map(|(node, lost)| Event::Remove(node, lost)),
        1 => any::<bool>().prop_map(Event::ClockWasSet),
    ]
}

/// Carries an event out. A command that does not fit is refused, and nothing happens.
fn happen(leader: &mut Leader, event: &Event, now: &mut Timestamp) {
    let command = match event {
        Event::Online(node, online) => {
            leader.set_heard(NodeId(*node), *online, *now);
            return;
        }
        Event::Later(ms) => {
            now.0 += ms;
            return;
        }
        Event::ClockWasSet(back) => {
            now.0 = if *back {
                now.0.saturating_sub(5_000_000)
            } else {
                now.0 + 5_000_000
            };
            leader.clock_was_set(*now);
            return;
        }
        Event::Scheduling(node, scheduling) => Command::SetScheduling {
            node: NodeId(*node),
            scheduling: *scheduling,
        },
        Event::Remove(node, lost) => Command::RemoveNode {
            node: NodeId(*node),
            lost: *lost,
            now: *now,
        },
        Event::Scale(count) => Command::SetScale {
            env: key("shop/prod"),
            scale: BTreeMap::from([(name("web"), *count)]),
        },
        Event::Deploy(count) => {
            let mut web = process(*count);
            web.deploy.min_healthy_ms = 10_000;
            web.deploy.strategy = match count {
                0 => manifest::Strategy::Rolling,
                1 => manifest::Strategy::Immediate,
                2 => manifest::Strategy::Canary,
                _ => manifest::Strategy::BlueGreen,
            };
            let release = release(manifest(&[("web", web)]));
            deployment(leader.state(), "shop/prod", release, *now)
        }
        Event::Report(node, current, said) => {
            let node = NodeId(*node);
            let Some(known) = leader.state().nodes.get(&node) else {
                return;
            };
            let here = leader.state().instances.on_node(node);
            // Instances beyond the states that were drawn are not listed.
            let instances = here.zip(said).map(|((id, _), state)| report(id, *state));
            let newest = leader.state().generation(node).unwrap_or_default();
            let older = Generation {
                counter: newest.counter.saturating_sub(1),
                ..newest
            };
            let report = Box::new(NodeReport {
                generation: if *current { newest } else { older },
                egress: None,
                driver: DriverChoice {
                    name: "qemu-tcg".to_owned(),
                    reason: "a test".to_owned(),
                },
                hardware: known.hardware.clone(),
                instances: instances.collect(),
                volumes: leader
                    .state()
                    .volumes
                    .on_node(node)
                    .map(|(id, _)| id)
                    .collect(),
                highest_network: EnvNetwork::default(),
                images: Vec::new(),
            });
            let now = *now;
            Command::Report { node, report, now }
        }
    };
    let _ = leader.execute(&crate::fixtures::origin(), &[command]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Looking at what changed finds what looking at everything finds.
    #[test]
    fn a_planner_that_rests_has_nothing_to_do(
        before in any_cluster_state(),
        events in prop::collection::vec(any_event(), 0..12),
    ) {
        let AnyState(before) = before;
        let mut leader = Leader::new(before.clone(), RouteIndex::default());
        let mut stored = before;
        let mut now = NOW;
        let mut next = 0x1000;
        let mut draw = || {
            next += 1;
            next
        };
        for event in std::iter::once(Event::Later(0)).chain(events) {
            happen(&mut leader, &event, &mut now);
            // What waits for time to pass is looked at when that is due.
            now.0 += WAITING_LOOK_MS;
            for _ in 0..16 {
                let mut actions = 0;
                while let Some(planned) = leader.plan_next(now, &mut draw) {
                    actions += planned.len();
                }
                if actions == 0 {
                    break;
                }
            }
            leader.prune(now);
            prop_assert_eq!(leader.state(), &leader.decided(), "after {:?}", event);
            let batch = leader.take_batch();
            let told = crate::events::check::check(&stored, &batch.changes);
            prop_assert_eq!(told, Ok(()), "after {:?}", event);
            batch.changes.patch(&mut stored);
            leader.commit(&batch);
            stored.hear_as(&batch.after);
            prop_assert_eq!(&stored, &batch.after, "what is stored is what was decided");
            let whole = plan(&stored, now, &mut draw);
            prop_assert_eq!(whole.actions, vec![], "after {:?}", event);
            let known: Vec<_> = batch.findings.values().flatten().cloned().collect();
            prop_assert_eq!(whole.findings, known, "after {:?}", event);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_instance_is_refused_that_fits_on_a_node(before in any_cluster_state(), memory in 0_u64..3000, cpu in 0_u64..9) {
        let chosen = Placement::new(&before.0).choose(&Demand {
            env: &key("shop/prod"),
            process: &name("web"),
            org: None,
            needs: Resources {
                cpu_millis: cpu * 4000,
                memory_bytes: memory * MIB,
                disk_bytes: 0,
            },
            archs: &["amd64"],
            region: None,
            labels: &BTreeMap::new(),
            protocol: None,
            pinned: None,
        });
        // An error has the reason of each node.
        if let Err(error) = chosen {
            let named: usize = error.reasons.values().map(|alike| alike.count).sum();
            prop_assert_eq!(named, before.0.nodes.len(), "{}", error);
        }
    }

    #[test]
    fn planning_a_planned_state_returns_no_change(before in any_cluster_state(), seed: u32) {
        let AnyState(before) = before;
        let mut draw = seed;
        // Few, so that ids and the addresses that follow from a part of them meet.
        let mut draws = || {
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((draw >> 8) % 16) | (((draw >> 16) % 4) << EGRESS_BITS)
        };
        let planned = plan(&before, NOW, &mut draws);
        let mut cluster = before.clone();
        let mut stored = before.clone();
        let mut all = Changes::default();
        for action in &planned.actions {
            match action {
                Action::MakeVolume(planned) => {
                    prop_assert!(!cluster.volumes.contains_key(&planned.id), "an id twice");
                    prop_assert!(planned.id.0 != 0);
                }
                Action::DeleteVolume { id } => prop_assert!(cluster.volumes.contains_key(id)),
                Action::Create(placed) => {
                    let egress = egress_address(placed.spec.id);
                    for other in cluster.instances.keys() {
                        prop_assert!(egress_address(*other) != egress, "{egress} twice");
                    }
                    prop_assert!(placed.spec.id.0 != 0);
                    prop_assert!(!cluster.ended.contains_key(&placed.spec.id));
                    let Presence::Heard { protocol, .. } = cluster.nodes[&placed.node].presence else {
                        return Err(TestCaseError::fail("on a node that is not heard"));
                    };
                    let needed = NeededProtocol::of_spec(&placed.spec);
                    prop_assert!(needed.is_none_or(|needed| needed.is_met_by(protocol)), "{needed:?} of {protocol}");
                }
                Action::Terminate { id, .. } => {
                    prop_assert!(!cluster.instances[id].is_terminating());
                    prop_assert!(before.instances.contains_key(id), "created and terminated at once");
                }
                Action::Delete { id, .. } => prop_assert!(cluster.instances.contains_key(id)),
                Action::PruneEnded { id } => prop_assert!(cluster.ended.contains_key(id)),
                Action::SetRollout { env, rollout } => {
                    prop_assert!(cluster.envs[env].rollout != *rollout);
                }
                Action::RemoveEnv { env } => prop_assert!(cluster.envs.contains_key(env)),
            }
            let changes = apply(&mut cluster, &Command::Plan(action.clone()));
            let changes = changes.map_err(|refused| TestCaseError::fail(refused.to_string()))?;
            changes.patch(&mut stored);
            prop_assert_eq!(&stored, &cluster, "the changes are not what changed: {:?}", action);
            all.then(changes);
        }
        let mut stored_at_once = before.clone();
        all.patch(&mut stored_at_once);
        prop_assert_eq!(&stored_at_once, &cluster, "the batch is not what changed");
        let again = plan(&cluster, NOW, &mut draws);
        prop_assert_eq!(&again.actions, &[], "{}\n{}", show(&before), show(&cluster));
        prop_assert_eq!(again.findings, planned.findings);

        // No two have one volume, and who has one is on its node.
        let mut taken = BTreeSet::new();
        for instance in cluster.instances.values() {
            for volume in &instance.spec.volumes {
                prop_assert!(taken.insert(volume.id), "volume {} twice", volume.id);
                prop_assert_eq!(cluster.volumes[&volume.id].node, instance.node);
            }
        }
        // Memory and disk are hard caps for everything that was placed now.
        let mut placed: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for instance in cluster.instances.values() {
            let overhead = cluster.nodes.get(&instance.node).map(|node| node.hardware.instance_overhead());
            let overhead = overhead.unwrap_or_default();
            let (memory, disk) = placed.entry(instance.node).or_default();
            *memory += instance.spec.memory_bytes + overhead.memory_bytes;
            *disk += instance.spec.scratch_bytes + overhead.disk_bytes;
        }
        for volume in cluster.volumes.values().filter(|v| v.phase != VolumePhase::Deleted) {
            placed.entry(volume.node).or_default().1 += volume.size_bytes;
        }
        for action in &planned.actions {
            if let Action::Create(created) = action {
                let hardware = &cluster.nodes[&created.node].hardware;
                let (memory, disk) = placed[&created.node];
                prop_assert!(memory <= hardware.memory_bytes, "{} MiB", memory / MIB);
                if let Some(has) = hardware.disk {
                    prop_assert!(disk <= has.instances_bytes(), "{} MiB of disk", disk / MIB);
                }
            }
        }
        // A node's generation grows when something changes for it, and only then.
        for (id, node) in &cluster.nodes {
            let changes = planned.actions.iter().filter(|action| match action {
                Action::Create(placed) => placed.node == *id,
                Action::Terminate { id: instance, .. } | Action::Delete { id: instance, .. } =>
                    before.instances[instance].node == *id,
                Action::DeleteVolume { id: volume } => before.volumes[volume].node == *id,
                Action::MakeVolume(_)
                | Action::PruneEnded { .. }
                | Action::SetRollout { .. }
                | Action::RemoveEnv { .. } => false,
            });
            prop_assert_eq!(node.generation - before.nodes[id].generation, changes.count() as u64);
        }
    }
}

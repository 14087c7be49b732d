//! Measurements of the planner, for `make bench`.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement prints what it takes"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::enrollment::{InstanceOverhead, NodeDisk};
use manifest::Process;
use model::{EnvKey, Timestamp};

use super::Planner;
use crate::action::Action;
use crate::apply::{Command, apply};
use crate::cluster_state::{ClusterState, InstancePhase};
use crate::fixtures::{MIB, cluster, database, deployment, manifest, name, node, process, release};
use crate::leader::Leader;
use crate::routes::RouteIndex;

/// As in the `platform` binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn created(actions: &[Action]) -> usize {
    let creates = actions.iter();
    creates
        .filter(|action| matches!(action, Action::Create(_)))
        .count()
}

/// CPU of this thread so far: neither other programs on the machine count nor other measurements.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = stat.split(' ').next().unwrap();
    Duration::from_nanos(nanoseconds.parse().unwrap())
}

const NODES: u16 = 10_000;
const ENVS: u32 = 1_000;
const PER_ENV: u32 = 100;
/// Envs in one batch, as on the server.
const BATCH: usize = 64;

fn env(number: u32) -> String {
    format!("shop{number}/prod")
}

/// Adds an env with one process type `web`.
fn add_env(cluster: &mut ClusterState, number: u32, web: Process) {
    let mut manifest = manifest(&[("web", web)]);
    manifest.routes.clear();
    let env = env(number);
    let (app, _) = env.split_once('/').unwrap();
    manifest.app = app.parse().unwrap();
    let command = deployment(cluster, &env, release(manifest), Timestamp(0));
    apply(cluster, &command).unwrap();
}

/// Nodes that say all of what they have, in four regions, every second of them with a label.
fn machines(nodes: u16) -> ClusterState {
    let mut cluster = cluster(0);
    for number in 1..=nodes {
        let (id, mut node) = node(number, 65_536);
        node.hardware.cpus = 32;
        node.hardware.disk = Some(NodeDisk {
            total_bytes: 1_000_000 * MIB,
            reserved_bytes: 10_000 * MIB,
            ..NodeDisk::default()
        });
        node.hardware.overhead = Some(InstanceOverhead {
            memory_bytes: 40 * MIB,
            disk_bytes: MIB,
        });
        node.region = format!("region-{}", number % 4);
        if number % 2 == 0 {
            let label = ("disk".parse().unwrap(), "nvme".parse().unwrap());
            node.labels = [label].into();
        }
        cluster.nodes.insert(id, node);
    }
    cluster.last_node = nodes;
    cluster
}

/// Many nodes, and many envs of which nothing runs yet: with volumes, of one region, of nodes with a label, spread over all.
fn empty() -> ClusterState {
    let mut cluster = machines(NODES);
    for number in 0..ENVS {
        let mut web = if number % 20 == 0 {
            database(PER_ENV)
        } else {
            process(PER_ENV)
        };
        web.scaling.max = PER_ENV * 2;
        if number % 3 == 0 {
            web.labels = [("disk".to_owned(), "nvme".to_owned())].into();
        }
        if number % 5 == 0 && number % 2 == 0 {
            web.region = Some(format!("region-{}", number % 4));
        }
        add_env(&mut cluster, number, web);
    }
    cluster
}

#[test]
#[ignore = "a measurement: make bench"]
fn planner_measurements() {
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    let mut draw = || draw.id();
    let cluster = empty();
    let (started, started_at) = (cpu(), Instant::now());
    let mut leader = Leader::new(cluster, RouteIndex::default());
    let mut instances = 0;
    let mut planned = 0;
    while let Some(actions) = leader.plan_next(Timestamp(1), &mut draw) {
        instances += created(&actions);
        planned += 1;
        if planned % BATCH == 0 {
            let batch = leader.take_batch();
            leader.commit(&batch);
        }
    }
    let (took, passed) = (cpu().saturating_sub(started), started_at.elapsed());
    println!(
        "planning {NODES} nodes x {instances} instances from empty: {took:.2?} of CPU in {passed:.2?}"
    );
    assert_eq!(instances, (ENVS * PER_ENV) as usize);
    let batch = leader.take_batch();
    leader.commit(&batch);

    let rounds = 200;
    let started = cpu();
    for number in 0..rounds {
        let key: EnvKey = crate::fixtures::key(&env(number));
        let scale = [(name("web"), PER_ENV + 1)].into();
        let command = Command::SetScale { env: key, scale };
        leader
            .execute(&crate::fixtures::origin(), &[command])
            .unwrap();
        let actions = leader.plan_next(Timestamp(2), &mut draw).unwrap();
        assert_eq!(created(&actions), 1);
        let batch = leader.take_batch();
        leader.commit(&batch);
    }
    println!(
        "one more instance: {:.1?} of CPU",
        cpu().saturating_sub(started) / rounds
    );
    for round in 1..=5 {
        let nodes: Vec<_> = leader.state().nodes.keys().copied().collect();
        let now = Timestamp(round * 60_000);
        let started = cpu();
        for node in &nodes {
            leader.set_heard(*node, None, now);
        }
        for node in &nodes {
            let (node, at) = (*node, now);
            let seen = Command::SetSeen { node, at };
            leader.execute(&crate::fixtures::origin(), &[seen]).unwrap();
        }
        for node in &nodes {
            leader.set_heard(*node, Some(3), now);
        }
        let batch = leader.take_batch();
        leader.commit(&batch);
        println!(
            "{} nodes lapse and are back, {} events: {:.1?} of CPU",
            nodes.len(),
            batch.changes.events.len(),
            cpu().saturating_sub(started)
        );
    }
}

/// xorshift64, so that each run is the same.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn id(&mut self) -> u32 {
        u32::try_from(self.below(u64::from(u32::MAX))).unwrap()
    }
}

/// A cluster that is planned, and whose nodes do at once what they are told.
struct Packed {
    cluster: ClusterState,
    planner: Planner,
    draw: Draw,
    /// Draws ids, so that what comes and goes does not depend on how many are drawn.
    ids: Draw,
    /// Envs that were added so far.
    added: u32,
}

impl Packed {
    fn execute(&mut self, command: &Command) {
        let changes = apply(&mut self.cluster, command).unwrap();
        self.planner.observe(&self.cluster, &changes);
        self.settle();
    }

    fn settle(&mut self) {
        let ids = &mut self.ids;
        let mut id = || ids.id();
        while (self.planner)
            .plan_next(&mut self.cluster, Timestamp(1), &mut id)
            .is_some()
        {}
    }

    /// Deploys an env; what waits in it, if not all of it was placed.
    fn add(&mut self, web: Process) -> (EnvKey, Option<String>) {
        self.added += 1;
        let env = env(self.added);
        let mut manifest = manifest(&[("web", web)]);
        manifest.routes.clear();
        manifest.app = format!("shop{}", self.added).parse().unwrap();
        let command = deployment(&self.cluster, &env, release(manifest), Timestamp(0));
        self.execute(&command);
        let key = crate::fixtures::key(&env);
        let findings = self.planner.findings().get(&key);
        let refused = findings.into_iter().flatten();
        let mut refused = refused.filter(|finding| finding.message.starts_with("no node"));
        let refused = refused.next().map(|finding| finding.message.clone());
        (key, refused)
    }

    fn destroy(&mut self, env: EnvKey) {
        self.execute(&Command::DestroyEnv { env: env.clone() });
        let ids: Vec<_> = (self.cluster.instances.of_env(&env))
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            let reason = String::new();
            self.cluster.instances.get_mut(&id).unwrap().phase = InstancePhase::Gone { reason };
        }
        self.planner.queue.insert(env);
        self.settle();
    }
}

/// Envs of one to five instances, each on another node, come and go on 200 nodes of which 85 % of the memory is promised. Nothing is
/// moved. How well that packs depends on what comes and goes, so it is measured several times.
#[test]
#[ignore = "a measurement: make bench"]
fn packing_measurements() {
    for seed in [0x9e37_79b9_7f4a_7c15, 1, 2, 3] {
        packing(seed);
    }
}

/// How many instances of this size fit when all that there is is placed anew on empty nodes, the largest first, each on the fullest node that takes it and has none of
/// its env (best fit decreasing). Nobody who moves nothing can know what comes next, so this is more than a scheduler can do.
fn large_beside_a_repacking(cluster: &ClusterState, node: u64, overhead: u64, large: u64) -> u64 {
    let instances = cluster.instances.iter();
    let mut sizes: Vec<_> = instances
        .map(|(_, i)| (i.spec.memory_bytes + overhead, i.spec.env_key()))
        .collect();
    sizes.sort();
    let mut free: Vec<(u64, BTreeSet<EnvKey>)> = vec![(node, BTreeSet::new()); cluster.nodes.len()];
    for (size, env) in sizes.into_iter().rev() {
        let fits = free
            .iter_mut()
            .filter(|(left, envs)| *left >= size && !envs.contains(&env));
        let (left, envs) = fits.min_by_key(|(left, _)| *left).unwrap();
        *left -= size;
        envs.insert(env);
    }
    free.iter().map(|(left, _)| left / large).sum()
}

fn packing(seed: u64) {
    const NODES: u16 = 200;
    const NODE: u64 = 65_536 * MIB;
    const OVERHEAD: u64 = 40 * MIB;
    const LARGE: u64 = 15 * 1024 * MIB;
    let cluster = machines(NODES);
    let mut packed = Packed {
        planner: Planner::new(&cluster),
        cluster,
        draw: Draw(seed),
        ids: Draw(0x2545_f491_4f6c_dd1d),
        added: 0,
    };
    let room = u64::from(NODES) * NODE;
    let (mut envs, mut promised, mut replaced) = (Vec::new(), 0_u64, 0);
    while replaced < 5_000 || promised < room / 100 * 85 {
        if promised < room / 100 * 85 {
            let draw = &mut packed.draw;
            let count = 1 + draw.below(5);
            let mut web = process(u32::try_from(count).unwrap());
            let sizes = [128, 256, 512, 1024, 2048, 4096];
            let size = sizes[usize::try_from(draw.below(6)).unwrap()] + 32 * draw.below(8);
            web.resources.memory_bytes = size * MIB;
            let memory = count * (web.resources.memory_bytes + OVERHEAD);
            let (key, refused) = packed.add(web);
            assert_eq!(refused, None);
            envs.push((key, memory));
            promised += memory;
        } else {
            let at = packed.draw.below(envs.len() as u64);
            let (key, memory) = envs.swap_remove(usize::try_from(at).unwrap());
            packed.destroy(key);
            promised -= memory;
            replaced += 1;
        }
    }
    let nodes = packed.cluster.nodes.keys();
    let used = nodes.filter(|id| packed.cluster.instances.count_on_node(**id) > 0);
    let (used, least) = (used.count(), promised.div_ceil(NODE));
    println!(
        "packing {NODES} nodes at 85 %, {} instances after {replaced} envs were replaced: {used} nodes used, at least {least} needed: {:.3}",
        packed.cluster.instances.len(),
        used as f64 / least as f64,
    );
    let could = (room - promised) / (LARGE + OVERHEAD);
    let offline = large_beside_a_repacking(&packed.cluster, NODE, OVERHEAD, LARGE + OVERHEAD);
    let mut large = 0;
    let refused = loop {
        let mut web = process(1);
        web.resources.memory_bytes = LARGE;
        match packed.add(web).1 {
            None => large += 1,
            Some(refused) => break refused,
        }
    };
    println!(
        "large instances of a quarter of a node: {large} of {could} that the free memory of all nodes as one would hold: {:.3}; \
         of {offline} beside the same instances placed anew, the largest first: {:.3}",
        f64::from(large) / could as f64,
        f64::from(large) / offline as f64
    );
    // Nothing that fits is refused: every node has its reason.
    assert!(
        refused.contains("197 more are short of memory"),
        "{refused}"
    );
}

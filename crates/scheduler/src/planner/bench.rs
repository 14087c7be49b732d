//! Measurements of the planner, for `make bench`.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "a measurement prints what it takes"
)]

use std::time::Instant;

use model::{EnvKey, Timestamp};

use crate::cluster_state::ClusterState;
use crate::fixtures::{cluster, deployment, manifest, name, node, process, release};
use crate::leader::Leader;
use crate::routes::RouteIndex;

const NODES: u16 = 10_000;
const ENVS: u32 = 1_000;
const PER_ENV: u32 = 100;

fn env(number: u32) -> String {
    format!("shop{number}/prod")
}

/// Many nodes, and many envs of which nothing runs yet.
fn empty() -> ClusterState {
    let mut cluster = cluster(0);
    for number in 1..=NODES {
        let (id, mut node) = node(number, 65_536);
        node.hardware.cpus = 32;
        node.region = format!("region-{}", number % 4);
        cluster.nodes.insert(id, node);
    }
    cluster.last_node = NODES;
    for number in 0..ENVS {
        let mut web = process(PER_ENV);
        web.scaling.max = PER_ENV * 2;
        let mut manifest = manifest(&[("web", web)]);
        manifest.routes.clear();
        let env = env(number);
        (manifest.app, _) = env
            .split_once('/')
            .map(|(app, env)| (app.parse().unwrap(), env))
            .unwrap();
        let command = deployment(&cluster, &env, release(manifest), Timestamp(0));
        crate::apply::apply(&mut cluster, &command).unwrap();
    }
    cluster
}

#[test]
#[ignore = "a measurement: make bench"]
fn planner_measurements() {
    let mut next = 0;
    let mut draw = || {
        next += 1;
        next
    };
    let cluster = empty();
    let started = Instant::now();
    let mut leader = Leader::new(cluster, RouteIndex::default());
    let mut instances = 0;
    while let Some(planned) = leader.plan_next(Timestamp(1), &mut draw) {
        instances += planned.changes.instances.len();
    }
    let took = started.elapsed();
    println!("planning {NODES} nodes x {instances} instances from empty: {took:.2?}");
    assert_eq!(instances, (ENVS * PER_ENV) as usize);
    let batch = leader.take_batch();
    leader.commit(&batch);

    let rounds = 200;
    let started = Instant::now();
    for number in 0..rounds {
        let key: EnvKey = crate::fixtures::key(&env(number));
        let scale = [(name("web"), PER_ENV + 1)].into();
        let command = crate::apply::Command::SetScale { env: key, scale };
        leader.execute(&[command]).unwrap();
        let planned = leader.plan_next(Timestamp(2), &mut draw).unwrap();
        assert_eq!(planned.changes.instances.len(), 1);
        let batch = leader.take_batch();
        leader.commit(&batch);
    }
    println!("one more instance: {:.1?}", started.elapsed() / rounds);
}

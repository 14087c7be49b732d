#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use model::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::cluster_state::UnreadableRecord;
use crate::fixtures::{InstanceFixture, cluster, deploy, key, lapse, manifest, process};

/// Two envs of the same shape on four nodes.
fn two_envs() -> ClusterState {
    let mut cluster = cluster(4);
    for env in ["shop/prod", "blog/prod"] {
        let release = manifest(&[("web", process(2)), ("work", process(1))]);
        deploy(&mut cluster, env, release, Timestamp(0));
    }
    cluster
}

fn put<'c>(
    cluster: &'c mut ClusterState,
    env: &'static str,
    id: u32,
    node: u16,
) -> &'c mut Instance {
    let put = InstanceFixture {
        id,
        env,
        process: "web",
        release: 1,
        node,
    };
    put.into_cluster(cluster)
}

fn names(index: &DirectoryIndex, node: u16) -> Vec<(String, Vec<(u32, bool)>)> {
    let told = index.changes(NodeId(node), None);
    let envs = told.envs.into_values().map(|env| {
        assert!(env.whole);
        let instances = env.instances.into_iter();
        let instances = instances.map(|(id, entry)| (id.0, entry.ready));
        (env.app.to_string(), instances.collect())
    });
    envs.collect()
}

#[test]
fn a_node_hears_of_the_envs_that_it_runs_and_of_no_other() {
    let mut cluster = two_envs();
    put(&mut cluster, "shop/prod", 1, 1).make_ready();
    put(&mut cluster, "shop/prod", 2, 2);
    put(&mut cluster, "blog/prod", 3, 3).make_ready();
    let (shop, blog) = (key("shop/prod"), key("blog/prod"));
    let mut index = DirectoryIndex::default();
    let concerned = index.update(&cluster, [&shop, &blog]);
    assert_eq!(concerned, BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)]));
    let of_shop = vec![("shop".to_owned(), vec![(1, true), (2, false)])];
    assert_eq!(
        (names(&index, 1), names(&index, 2)),
        (of_shop.clone(), of_shop)
    );
    assert_eq!(names(&index, 3), [("blog".to_owned(), vec![(3, true)])]);
    assert!(names(&index, 4).is_empty());
    // A report that says nothing new raises nothing and wakes nobody.
    let counter = index.counter();
    assert!(index.update(&cluster, [&shop, &blog]).is_empty());
    assert_eq!(index.counter(), counter);
    // What changes in one env wakes nobody of the other.
    cluster.instances.get_mut(&InstanceId(2)).unwrap();
    put(&mut cluster, "shop/prod", 4, 1);
    let concerned = index.update(&cluster, [&shop]);
    assert_eq!(concerned, BTreeSet::from([NodeId(1), NodeId(2)]));
    assert!(!index.has_news(NodeId(3), counter) && index.has_news(NodeId(2), counter));
}

#[test]
fn names_lead_to_ready_instances_on_nodes_that_are_heard_where_there_are_any() {
    let mut cluster = two_envs();
    put(&mut cluster, "shop/prod", 1, 1).make_ready();
    put(&mut cluster, "shop/prod", 2, 2).make_ready();
    put(&mut cluster, "shop/prod", 3, 3)
        .make_ready()
        .terminate();
    let shop = key("shop/prod");
    let mut index = DirectoryIndex::default();
    index.update(&cluster, [&shop]);
    let ready = |index: &DirectoryIndex| names(index, 1).remove(0).1;
    assert_eq!(ready(&index), [(1, true), (2, true), (3, false)]);
    lapse(&mut cluster, 2, Timestamp(5));
    index.update(&cluster, [&shop]);
    assert_eq!(ready(&index), [(1, true), (2, false), (3, false)]);
    lapse(&mut cluster, 1, Timestamp(5));
    index.update(&cluster, [&shop]);
    assert_eq!(
        ready(&index),
        [(1, true), (2, true), (3, false)],
        "better than none"
    );
}

#[test]
fn an_instance_whose_record_cannot_be_read_is_not_gone() {
    let mut cluster = two_envs();
    put(&mut cluster, "shop/prod", 1, 1).make_ready();
    put(&mut cluster, "shop/prod", 2, 2).make_ready();
    let shop = key("shop/prod");
    let mut index = DirectoryIndex::default();
    index.update(&cluster, [&shop]);
    cluster.instances.remove(&InstanceId(2));
    cluster.unreadable = vec![UnreadableRecord {
        subject: Subject::Instance(InstanceId(2)),
        env: Some(shop.clone()),
        node: Some(NodeId(2)),
        holds: None,
        cause: "a test".to_owned(),
    }];
    index.update(&cluster, [&shop]);
    assert_eq!(
        names(&index, 1),
        [("shop".to_owned(), vec![(1, true), (2, true)])]
    );
    // A server that never could read it still lets its node's packets in.
    let mut fresh = DirectoryIndex::default();
    fresh.update(&cluster, [&shop]);
    let told = fresh.changes(NodeId(1), None);
    let env = told.envs.into_values().next().unwrap();
    assert_eq!(env.also_on, BTreeSet::from([NodeId(2)]));
    assert_eq!(names(&fresh, 2).len(), 1, "and its node hears of the env");
}

/// What a node makes of what it is told: app to instances.
type Told = BTreeMap<EnvNetwork, BTreeMap<InstanceId, DirectoryEntry>>;

fn take(told: &mut Told, changes: DirectoryChanges) {
    if changes.since.is_none() {
        told.clear();
    }
    told.retain(|network, _| !changes.removed.contains(network));
    for (network, env) in changes.envs {
        let known = told.entry(network).or_default();
        if env.whole {
            known.clear();
        }
        known.retain(|id, _| !env.removed.contains(id));
        known.extend(env.instances);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn differences_add_up_to_the_whole(
        steps in prop::collection::vec((0..4_u8, 1..7_u32, 1..5_u16, any::<bool>(), 1..4_usize), 1..40),
    ) {
        let mut cluster = two_envs();
        let mut index = DirectoryIndex::default();
        let mut told: BTreeMap<u16, (Option<u64>, Told)> = BTreeMap::new();
        for (round, (what, id, node, of_shop, patience)) in steps.into_iter().enumerate() {
            // Ids of the two envs differ.
            let (env, id) = if of_shop { ("shop/prod", id) } else { ("blog/prod", id + 100) };
            let is_there = cluster.instances.contains_key(&InstanceId(id));
            match what {
                0 if !is_there => drop(put(&mut cluster, env, id, node)),
                1 if is_there => drop(cluster.instances.remove(&InstanceId(id))),
                2 if is_there => drop(cluster.instances.get_mut(&InstanceId(id)).unwrap().make_ready()),
                3 => lapse(&mut cluster, node, Timestamp(5)),
                _ => {}
            }
            let keys = [key("shop/prod"), key("blog/prod")];
            let before: Vec<_> = (1..5).map(|node| index.changes(NodeId(node), None).envs).collect();
            let concerned = index.update(&cluster, &keys);
            for (node, before) in (1..5).zip(before) {
                let is_other = index.changes(NodeId(node), None).envs != before;
                prop_assert_eq!(concerned.contains(&NodeId(node)), is_other);
            }
            if round % patience != 0 {
                continue;
            }
            for node in 1..5 {
                let (position, known) = told.entry(node).or_default();
                let changes = index.changes(NodeId(node), *position);
                let has_news = position.is_none_or(|seen| index.has_news(NodeId(node), seen));
                let is_empty = changes.envs.is_empty() && changes.removed.is_empty();
                prop_assert_eq!(has_news || position.is_none(), !is_empty || position.is_none());
                *position = Some(changes.counter);
                take(known, changes);
                let mut whole = Told::new();
                take(&mut whole, index.changes(NodeId(node), None));
                prop_assert_eq!(&*known, &whole);
            }
        }
    }
}

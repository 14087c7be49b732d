//! What one node is to run: the cluster state, seen from it.
//!
//! Terminating instances are named as stops until the node has said that they are gone ([`crate::reports`]). So a stop
//! always names its instance: one that is in neither list (an empty or restored store, a record that cannot be read)
//! is left running. What a restored store does not know is stopped when a user says so ([`crate::cluster_state::UnknownInstance`]).

use std::collections::{BTreeMap, BTreeSet};

use api::node::DesiredState;
use model::instance::InstanceSpec;
use model::{Digest, EnvKey, Generation, InstanceId, NodeId, Term};

use crate::cluster_state::ClusterState;

/// The instances that `node` is to run and those it is to stop, both in the order of their ids.
pub fn desired(cluster: &ClusterState, node: NodeId) -> (Vec<InstanceSpec>, Vec<InstanceId>) {
    let (mut run, mut stop) = (Vec::new(), Vec::new());
    for (_, instance) in cluster.instances.on_node(node) {
        if instance.is_terminating() {
            stop.push(instance.spec.id);
        } else {
            run.push(instance.spec.as_ref().clone());
        }
    }
    let unknown = cluster.nodes.get(&node).map(|node| &node.unknown);
    let unknown = unknown.into_iter().flatten();
    stop.extend(unknown.filter(|(_, known)| known.stop).map(|(id, _)| *id));
    stop.sort_unstable();
    (run, stop)
}

/// [`desired`] as the message to the node, whose term its sender names; absent when there is no such node.
pub fn desired_state(cluster: &ClusterState, node: NodeId) -> Option<DesiredState> {
    let generation = cluster.generation(node)?;
    let (instances, stop) = desired(cluster, node);
    Some(DesiredState {
        cluster: cluster.settings.id.clone(),
        node,
        generation,
        term: Term::default(),
        instances,
        unreadable: BTreeMap::new(),
        stop,
        remove_volumes: cluster
            .volumes
            .on_node(node)
            .filter(|(_, volume)| volume.is_deleting())
            .map(|(id, _)| id)
            .collect(),
        pinned_images: pinned_images(cluster, node).into_iter().collect(),
    })
}

/// What a leader of this term answers a node that has applied `has`: its desired state, where that is another. Absent: it has it, or there
/// is no such node.
pub fn newer_state(
    cluster: &ClusterState,
    node: NodeId,
    has: Generation,
    term: Term,
) -> Option<DesiredState> {
    let newest = cluster.generation(node)?;
    if !newest.supersedes(has.within(cluster.incarnation)) {
        return None;
    }
    Some(DesiredState {
        term,
        ..desired_state(cluster, node)?
    })
}

/// The last releases of an env whose root disks stay in the caches of the nodes that run it, besides the
/// release that runs and the one that a revert goes back to.
pub const KEPT_RELEASES: usize = 3;

/// The images that `node` is to keep although it may not run them now.
fn pinned_images(cluster: &ClusterState, node: NodeId) -> BTreeSet<Digest> {
    let Some(arch) = cluster.nodes.get(&node).map(|node| &node.hardware.arch) else {
        return BTreeSet::new();
    };
    let instances = cluster.instances.on_node(node);
    let readable = instances.map(|(_, instance)| instance.spec.env_key());
    let unreadable = (cluster.unreadable.iter())
        .filter(|record| record.node == Some(node))
        .filter_map(|record| record.env.clone());
    let here: BTreeSet<EnvKey> = readable.chain(unreadable).collect();
    let envs = here.iter().filter_map(|key| cluster.envs.get(key));
    envs.flat_map(|env| {
        let last = env.releases.keys().rev().take(KEPT_RELEASES).copied();
        let needed = [Some(env.rollout.wanted), env.rollout.previous];
        last.chain(needed.into_iter().flatten())
            .filter_map(|number| env.releases.get(&number))
            .flat_map(|release| {
                let kept = release.kept.values().map(|kept| &kept.resolved);
                kept.chain([&release.resolved])
            })
            .filter_map(|images| images.get(arch))
    })
    .map(|image| image.digest.clone())
    .collect()
}

/// Whether `node` has to pull from this registry: only then it is given the login.
pub fn pulls_from(cluster: &ClusterState, node: NodeId, registry: &str) -> bool {
    let mut instances = cluster.instances.on_node(node);
    instances
        .any(|(_, instance)| !instance.is_terminating() && instance.spec.image.registry == registry)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{InstanceFixture, cluster, deploy, key, manifest, process};
    use model::{ReleaseNumber, Timestamp};

    #[test]
    fn a_desired_state_has_the_instances_of_its_node_and_names_every_stop() {
        let mut cluster = cluster(2);
        let release = manifest(&[("web", process(3))]);
        deploy(&mut cluster, "shop/prod", release, Timestamp(0));
        for (id, node) in [(1, 1), (2, 1), (3, 2)] {
            let put = InstanceFixture {
                id,
                env: "shop/prod",
                process: "web",
                release: 1,
                node,
            };
            let instance = put.into_cluster(&mut cluster);
            if id == 2 {
                instance.terminate();
            }
        }
        cluster.nodes.get_mut(&NodeId(1)).unwrap().generation = 4;
        let state = desired_state(&cluster, NodeId(1)).unwrap();
        let run: Vec<_> = state.instances.iter().map(|spec| spec.id.0).collect();
        assert_eq!((run, state.stop), (vec![1], vec![InstanceId(2)]));
        assert_eq!(
            (state.node, state.generation),
            (NodeId(1), cluster.generation(NodeId(1)).unwrap())
        );
        assert_eq!(state.cluster, "cluster-1");
        assert_eq!(desired_state(&cluster, NodeId(9)), None);
    }

    #[test]
    fn a_desired_state_keeps_the_images_of_the_last_releases() {
        let mut cluster = cluster(2);
        for _ in 0..6 {
            let release = manifest(&[("web", process(1))]);
            deploy(&mut cluster, "shop/prod", release, Timestamp(0));
        }
        let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
        for (number, release) in (1..).zip(env.releases.values_mut()) {
            for image in release.resolved.values_mut() {
                image.digest = Digest::from_sha256(&[number; 32]);
            }
        }
        env.rollout.wanted = ReleaseNumber(1);
        env.rollout.previous = Some(ReleaseNumber(1));
        let registry = env.releases[&ReleaseNumber(1)].resolved["amd64"]
            .registry
            .clone();
        InstanceFixture {
            id: 1,
            env: "shop/prod",
            process: "web",
            release: 1,
            node: 1,
        }
        .into_cluster(&mut cluster);

        let pinned = desired_state(&cluster, NodeId(1)).unwrap().pinned_images;
        let expected = [1, 4, 5, 6].map(|number| Digest::from_sha256(&[number; 32]));
        assert_eq!(pinned, expected);
        assert_eq!(
            desired_state(&cluster, NodeId(2)).unwrap().pinned_images,
            []
        );

        assert!(pulls_from(&cluster, NodeId(1), &registry));
        assert!(!pulls_from(&cluster, NodeId(1), "other.example"));
        assert!(!pulls_from(&cluster, NodeId(2), &registry));
        cluster
            .instances
            .get_mut(&InstanceId(1))
            .unwrap()
            .terminate();
        assert!(!pulls_from(&cluster, NodeId(1), &registry));
    }
}

//! What one node is to run: the world, seen from it.
//!
//! Leaving instances are named as stops, for as long as the world remembers them, which is until
//! the node has said that they are gone ([`crate::reports`]). So a stop is always said by name: an
//! instance that is in neither list (an empty or restored store) is left running.

use contract::api::DesiredState;
use contract::instance::InstanceSpec;
use contract::{InstanceId, NodeId};

use crate::world::World;

/// The instances that `node` is to run and those it is to stop, both in the order of their ids.
pub fn desired(world: &World, node: NodeId) -> (Vec<InstanceSpec>, Vec<InstanceId>) {
    let (mut run, mut stop) = (Vec::new(), Vec::new());
    for instance in world.instances.values().filter(|i| i.node == node) {
        if instance.leaving {
            stop.push(instance.spec.id);
        } else {
            run.push(instance.spec.clone());
        }
    }
    (run, stop)
}

/// [`desired`] as the message to the node; absent when there is no such node.
pub fn desired_state(world: &World, node: NodeId) -> Option<DesiredState> {
    let generation = world.nodes.get(&node)?.generation;
    let (instances, stop) = desired(world, node);
    Some(DesiredState {
        cluster: world.settings.id.clone(),
        node,
        generation,
        instances,
        stop,
        remove_volumes: world
            .volumes
            .iter()
            .filter(|(_, volume)| volume.node == node && volume.deleting)
            .map(|(id, _)| *id)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{Put, deploy, manifest, process, world};
    use contract::{Generation, Timestamp};

    #[test]
    fn a_node_gets_its_own_and_every_stop_by_name() {
        let mut world = world(2);
        let release = manifest(&[("web", process(3))]);
        deploy(&mut world, "shop/prod", release, Timestamp(0));
        for (id, node) in [(1, 1), (2, 1), (3, 2)] {
            let put = Put {
                id,
                env: "shop/prod",
                process: "web",
                release: 1,
                node,
            };
            put.into_world(&mut world).leaving = id == 2;
        }
        world.nodes.get_mut(&NodeId(1)).unwrap().generation = Generation(4);
        let state = desired_state(&world, NodeId(1)).unwrap();
        let run: Vec<_> = state.instances.iter().map(|spec| spec.id.0).collect();
        assert_eq!((run, state.stop), (vec![1], vec![InstanceId(2)]));
        assert_eq!((state.node, state.generation), (NodeId(1), Generation(4)));
        assert_eq!(state.cluster, "cluster-1");
        assert_eq!(desired_state(&world, NodeId(9)), None);
    }
}

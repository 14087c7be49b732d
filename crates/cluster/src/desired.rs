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
    })
}

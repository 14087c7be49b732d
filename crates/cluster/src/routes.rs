//! Where hosts lead.

use std::collections::BTreeMap;

use contract::EnvKey;
use contract::api::Route;
use manifest::Manifest;

use crate::world::World;

/// The whole route table: host name to the ready instances behind it.
pub fn routes(world: &World) -> BTreeMap<String, Route> {
    let _ = world;
    todo!()
}

/// The hosts of a manifest that lead to another env already. To be asked before a release is made.
pub fn taken_hosts(world: &World, env: &EnvKey, manifest: &Manifest) -> BTreeMap<String, EnvKey> {
    let _ = (world, env, manifest);
    todo!()
}

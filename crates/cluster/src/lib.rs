//! Every decision of the platform, as pure functions over values.
//!
//! State and time go in, actions come out; no I/O, clock, randomness, async or hash-ordered map is
//! here, so that every decision can be replayed, shown and tested without a machine.
//!
//! What the control plane decides, over one [`world::World`]:
//! - [`planner`]: what is to change now: instances created, leaving, forgotten; rollouts.
//! - [`rollout`]: how an env gets from one release to another, and when that failed.
//! - [`placement`]: which node takes an instance, or why none does.
//! - [`release`]: a process of a release as the complete description of one instance.
//! - [`desired`]: what one node is to run. [`reports`]: what a node's report means for the world.
//! - [`routes`]: where hosts lead. [`ingress`]: where edges knock at an instance.
//! - [`enrollment`]: who may join, under which name and number.
//! - [`address_plan`]: where every address comes from.
//!
//! What a node decides:
//! - [`node`]: desired state against what it sees.
//! - [`instance`]: the life of one instance.
//! - [`boot`]: what its guest is told to run.
//! - [`cache`]: what goes from its image cache.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::format_push_string,
        clippy::needless_pass_by_value,
        clippy::needless_raw_string_hashes,
        reason = "tests count few things, and expect-test writes its texts so"
    )
)]

pub mod address_plan;
pub mod boot;
pub mod cache;
pub mod desired;
pub mod enrollment;
pub mod ingress;
pub mod instance;
pub mod node;
pub mod placement;
pub mod planner;
pub mod release;
pub mod reports;
pub mod rollout;
pub mod routes;
pub mod world;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod simulation;

//! The real scheduler, the real leader lease and the real node agents, with the real instance tasks, on simulated machines
//! under a seeded clock, network and faults.
//!
//! ```text
//! scenario  operations and faults, drawn from the seed
//!    ├ servers   one or several: the real leader and planner, under the real lease
//!    │   └ store     records in memory, a lease with the database's clock, transactions that check their term
//!    │   ╎ link      latency, loss, late and repeated messages, partitions in one direction or both
//!    ├ edge      takes routes from any server
//!    └ node      node_agent::agent::run on a simulated host
//!        └ machine   VMs with guests that speak guest-protocol, taps, disks, files; survives the agent
//! ```
//!
//! A run is one thread under the runtime's paused time, and every random choice is drawn from the seed: the same seed gives the same trace.
//! docs/simulation.md says what is real, which faults there are, what must hold, and how each rule was broken on purpose.
//!
//! `cargo xtask simulate --seed N` replays one run and prints its trace.

mod computer;
mod edge;
mod guest;
mod host;
mod invariants;
mod link;
mod machine;
mod node;
mod operate;
mod operation;
mod overlay;
mod rng;
mod scenario;
mod server;
mod servers;
mod simulator;
mod store;
mod tasks;
mod term;

#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;

pub use scenario::{Outcome, run};

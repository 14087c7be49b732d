//! The real scheduler and the real node agents, with the real instance tasks, on simulated machines
//! under a seeded clock, network and faults.
//!
//! ```text
//! scenario  operations and faults, drawn from the seed
//!    ├ server    scheduler::{plan, apply, record, routes, desired_state}
//!    │   ╎ link   latency, loss, late and repeated messages, partitions
//!    └ node      node_agent::agent::run on a simulated host
//!        └ machine  VMs with guests that speak guest-protocol, taps, disks, files; survives the agent
//! ```
//!
//! A run is one thread under the runtime's paused time, and every random choice is drawn from the seed:
//! the same seed gives the same trace. At every step these hold, or the run fails with its trace:
//! no instance has two VMs, no volume two writers, no plan takes a process type below its minimum, no VM
//! that is well ends without its stop, no agent that restarts starts anything twice. Once all faults are
//! healed, the cluster comes to the state that was asked for, leaks nothing, and rests.
//!
//! `cargo xtask simulate --seed N` replays one run and prints its trace.

mod guest;
mod host;
mod invariants;
mod machine;
mod operation;
mod rng;
mod scenario;
mod server;
mod simulator;

#[cfg(test)]
mod tests;

pub use scenario::{Outcome, run};

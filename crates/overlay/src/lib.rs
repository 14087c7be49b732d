//! The overlay as pure functions (ADR 0004).
//!
//! - [`address_plan`]: where every address comes from.
//! - [`ingress`]: the ports at which edges reach an instance's PROXY adapter.
//! - [`private_networks`]: what instances reach beside the internet.
//! - [`topology`]: who is whose WireGuard peer.

pub mod address_plan;
pub mod ingress;
pub mod private_networks;
pub mod topology;
pub mod underlay;

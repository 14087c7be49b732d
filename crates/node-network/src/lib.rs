//! The workload network of one node: a network namespace, a link to it, one tap for each instance,
//! and the rules between them (ADR 0004).
//!
//! Instances live in a namespace of their own, so that IPv6 forwarding and our rules never touch
//! the machine's own network:
//!
//! ```text
//!  machine                      netns platform-<suffix>
//!  plat-<suffix> ------------- host            forwarding on, nft `inet platform`, policy drop
//!    <node>::1/128, fe80::2      fe80::1
//!    route <cluster>/48 ------>  lo <node>::2  source of this namespace's own ICMPv6 errors
//!                                t<instance>   fe80::1, route <instance>/128  ---- the VMM's NIC
//! ```
//!
//! Every address is `<48 cluster> <16 node> <32 env network> <32 instance>`, so who may talk to
//! whom is a comparison of bits 64 to 96: the same env passes, network 0 (the platform's) reaches
//! instances, everything else is dropped. A source address is pinned to its tap before anything
//! else looks at the packet, and how much one may send and be sent is bounded. Packet Too Big (`ICMPv6`) from a rightful source is never filtered.
//!
//! Taps are not persistent: each lives exactly as long as the VMM that holds its file descriptor,
//! and goes on undisturbed while the agent restarts. (A driver that opens taps by name makes its tap
//! persist; [`Network::release`] removes it.) [`Network::ensure`] may be called at any time.
//! Rules are always replaced whole, in one transaction; connections live on across it.
//!
//! Deliberately absent: choosing addresses (`cluster::address_plan` does), the overlay between
//! nodes, egress to the world outside the cluster, IPv4. This room drives Debian's `ip` and `nft`
//! and opens taps by ioctl; it keeps no state of its own.

mod command;
mod error;
mod names;
mod namespace;
mod network;
mod rules;
mod tap;

pub use error::NetworkError;
pub use names::{MAX_SUFFIX_BYTES, Suffix, mac_of, tap_name};
pub use network::{Network, NetworkSettings};
pub use tap::Tap;

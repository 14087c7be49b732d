//! The workload network of one node: a network namespace, a link to it, one tap for each instance, a way
//! out to the world, and the rules between them (ADR 0004).
//!
//! Instances live in a namespace of their own, so that forwarding and our rules never touch
//! the machine's own network:
//!
//! ```text
//!  machine                      netns platform-<suffix>
//!  plat-<suffix> ------------- host            forwarding on, nft `inet platform`, policy drop
//!    <node>::1/128, fe80::2      fe80::1
//!    route <cluster>/48 ------>  lo <node>::2  source of this namespace's own ICMPv6 errors
//!                                t<instance>   fe80::1, route <instance>/128  ---- the VMM's NIC
//!                                              and its IPv4 address, via inet6 <instance>
//!  slirp4netns ================ world          192.0.0.100/25, default route; IPv4 is masqueraded
//!    sockets of the machine's    lo             last default route, to be refused while that is not there
//! ```
//!
//! Every address is `<48 cluster> <16 node> <32 env network> <32 instance>`, so who may talk to
//! whom is a comparison of bits 64 to 96: the same env passes, network 0 (the platform's) reaches
//! instances, everything else is dropped. A source address is pinned to its tap before anything
//! else looks at the packet, and how much one may send and be sent is bounded. Packet Too Big (`ICMPv6`) from
//! a rightful source is never filtered.
//!
//! IPv4 leads out only, from each instance's own address and by `slirp4netns` ([`Network::ensure_egress`]), which
//! is no part of the machine's network: it forwards nothing there and leaves nothing. The machine's own
//! addresses are not for instances, because what it connects to passes no firewall.
//!
//! Taps are not persistent: each lives exactly as long as the VMM that holds its file descriptor,
//! and goes on undisturbed while the agent restarts. (A driver that opens taps by name makes its tap
//! persist; [`Network::release`] removes it.) [`Network::ensure`] may be called at any time.
//! Rules are always replaced whole, in one transaction; connections live on across it.
//!
//! Deliberately absent: choosing addresses (`overlay::address_plan` does), the overlay between
//! nodes, IPv4 between instances, IPv6 to the world. This room drives Debian's `ip`, `nft` and `slirp4netns`
//! and opens taps by ioctl; it keeps no state of its own.

mod command;
mod egress;
mod error;
mod host_network;
mod names;
mod namespace;
mod network;
mod rules;
mod tap;

pub use egress::Egress;
pub use error::NetworkError;
pub use names::{MAX_SUFFIX_BYTES, Suffix, mac_of, tap_name};
pub use network::{Network, NetworkSettings};
pub use rules::Endpoint;
pub use tap::Tap;

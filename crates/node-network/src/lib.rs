//! The workload network of one node: a network namespace, a link to it, one tap for each instance, an uplink
//! for egress, and the rules between them (ADR 0004).
//!
//! Instances live in a namespace of their own, so that forwarding and our rules never touch
//! the machine's own network:
//!
//! ```text
//!  machine                      netns platform-<suffix>
//!  plat-<suffix> ------------- host            forwarding on, nft `inet platform`, policy drop
//!    <node>::1/128, fe80::2      fe80::1
//!    route <cluster>/48 ------>  lo <node>::2  source of this namespace's own ICMPv6 errors
//!                                               route <node>::3/128 of a small MTU, for measurements
//!                                t<instance>   fe80::1, route <instance>/128  ---- the VMM's NIC
//!                                              and its IPv4 address, via inet6 <instance>
//!  slirp4netns ================ uplink         192.0.0.100/25, default route; IPv4 is masqueraded
//!    sockets of the machine's    lo             last default route: packets are refused without an uplink
//!  WireGuard's socket ========= overlay        route <cluster>/48: the other members
//! ```
//!
//! Every address is `<48 cluster> <16 node> <32 env network> <32 instance>`, so a comparison of bits 64 to 96
//! decides whether a packet passes: inside one env it does, network 0 (the platform's) reaches instances, and
//! everything else is dropped. The first rule pins a source address to its tap. Rates to and from a tap are
//! bounded. Packet Too Big (`ICMPv6`) of a connection that exists is never filtered.
//!
//! From other members packets come in by `overlay` (`wireguard::interface`, [`Network::attach_overlay`]). A source passes where its node is known to have instances of its env ([`OverlayAccess`]), and only to
//! instances of that env; edges reach every port; a hub passes on what is between others. [`EdgeLink`] is an edge's end of the same.
//!
//! IPv4 is for egress only, from each instance's own address and by `slirp4netns` ([`Network::ensure_egress`]).
//! The machine forwards nothing for it, has no rule for it, and keeps nothing of it afterwards. Instances do not
//! reach the machine's own addresses: a connection of `slirp4netns` comes from the machine, so its firewall would
//! not apply.
//!
//! The namespace's name and its link are looked at whenever egress is ensured ([`Network::mend`]). A name that was removed is
//! given to the same namespace again, whose taps and VMs went on meanwhile; an agent that starts finds that namespace by a
//! VMM's tap. A link that was removed is made again.
//!
//! Taps are not persistent: each lives exactly as long as the VMM that holds its file descriptor,
//! and goes on undisturbed while the agent restarts. (A driver that opens taps by name makes its tap
//! persist; [`Network::release`] removes it.) [`Network::ensure`] may be called at any time.
//! A start or a stop changes only the rules' elements of its instance, in one transaction; the first call of an agent
//! replaces all rules, in one transaction as well. Connections and limits live on across both.
//!
//! A guest cannot fill the machine's neighbour tables, which all namespaces share: the kernel learns a neighbour from
//! solicitations, and those pass from a tap's own addresses only; ARP is not answered on taps.
//!
//! Deliberately absent: choosing addresses (`overlay::address_plan` does), the tunnels themselves (`wireguard`),
//! IPv4 between instances, IPv6 egress. This crate drives Debian's `ip`, `nft` and `slirp4netns` and opens
//! taps by ioctl; it keeps no state of its own.

mod attached;
mod command;
mod edge_link;
mod egress;
mod error;
mod host_links;
mod host_network;
mod lost;
mod names;
mod namespace;
mod neighbour;
mod network;
mod overlay_link;
mod rules;
mod tap;

pub use edge_link::EdgeLink;
pub use egress::Egress;
pub use error::NetworkError;
pub use host_links::{HostLink, host_links};
pub use names::{ECHO_PORT, MAX_SUFFIX_BYTES, OVERLAY_LINK, Suffix, mac_of, tap_name};
pub use network::{Network, NetworkSettings};
pub use rules::{Endpoint, OverlayAccess};
pub use tap::Tap;

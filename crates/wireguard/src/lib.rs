//! WireGuard in user space, for kernels that have none (ADR 0004).
//!
//! - [`interface`]: what agents use: an interface of the kernel, where it has WireGuard, or a process that is one.
//! - [`process`]: what that process does (`platform wireguard`).
//! - [`settings`]: what an interface is set to, and what it says of itself.
//! - [`device`]: the interface: one thread between a TUN device and a UDP socket.
//! - [`control`]: how an agent talks to the process that is the interface. That process outlives agents.
//!
//! The state of the protocol is of a crate (`gotatun::noise`), the way of the packets is ours, because that is what makes an interface fast: the
//! kernel gives a run of TCP segments as one packet, which is cut, sealed into one buffer and sent by one call
//! (`UDP_SEGMENT`); it joins datagrams that come in (`UDP_GRO`), which are opened and given back to it joined.
//!
//! Deliberately absent: who is whose peer ([`overlay::topology`](../overlay/topology/index.html)), addresses and routes of the interface, IPv4 within tunnels.

pub mod control;
mod cut;
pub mod device;
pub mod interface;
mod kernel;
mod link;
mod netlink;
mod options;
mod peers;
pub mod process;
mod routes;
mod run;
mod sandbox;
pub mod settings;
mod userspace;
mod waiting;

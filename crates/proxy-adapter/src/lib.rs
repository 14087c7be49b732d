//! The guest's proxies (ADR 0003), each in a process of its own.
//!
//! - The **PROXY adapter**: ports on which only edges may connect, and where each connection begins with a PROXY v2 header
//!   that says who the client is. The adapter checks the header, connects to the app's own port, and carries the
//!   bytes; the app gets the header too, or not.
//! - The **forwarder**: one listener, to which the kernel hands connections to ports of the instance's address where
//!   nothing listens. The forwarder connects to the same port where the app does listen, on IPv4 or on loopback, and
//!   carries the bytes.
//!
//! `platform-init` executes itself as [`ADAPTER_NAME`] or [`FORWARDER_NAME`]: another user, no rights, no environment, no
//! config but its arguments ([`adapter_arguments`], [`forwarder_arguments`]), and no file but the descriptors in
//! them. That process calls [`run_adapter`] or [`run_forwarder`].
//!
//! One thread, edge-triggered. The server owns the connections and gets the events; a connection moves the
//! bytes that can be moved and says what it needs next. Everything is bounded: connections (others wait in the
//! kernel's queue), the header's size and time, the bytes held in each direction and in all, the bytes moved before
//! other connections have their turn, and the lines logged.
//!
//! Absent on purpose: a limit on idle time (tunnels may be silent; a dead peer is found by
//! keep-alive), and any use of the addresses in the header.

mod connection;
mod header;
mod listener;
mod process;
mod refusals;
mod server;
mod targets;
#[cfg(test)]
mod tests;

pub use listener::Listener;
pub use process::{
    ADAPTER_NAME, FORWARDER_NAME, Forwarder, adapter_arguments, forwarder_arguments, run_adapter,
    run_forwarder,
};
pub use server::OPEN_FILES;

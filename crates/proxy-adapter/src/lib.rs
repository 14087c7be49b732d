//! The PROXY adapter of a guest (ADR 0003): ports on which only edges may connect, and where each
//! connection begins with a PROXY v2 header that says who the client is. The adapter checks the header,
//! connects to the app's own port, and carries the bytes; the app gets the header too, or not.
//!
//! `platform-init` executes itself as [`NAME`] in a process of its own: another user, no rights, no
//! environment, no config but its [`arguments`], and no file but its listeners. That process calls [`run`].
//!
//! One thread, edge-triggered. The server owns the connections and gets the events; a connection moves the
//! bytes that can be moved and says what it needs next. Everything is bounded: connections (others wait in the
//! kernel's queue), the header's size and time, the bytes held in each direction, the bytes moved before
//! other connections have their turn, and the lines logged.
//!
//! Absent on purpose: a limit on idle time (tunnels may be silent; a dead edge is found by
//! keep-alive), and any use of the addresses in the header.

mod connection;
mod header;
mod listener;
mod process;
mod refusals;
mod server;
#[cfg(test)]
mod tests;

pub use listener::Listener;
pub use process::{NAME, arguments, run};
pub use server::OPEN_FILES;

//! The crate against a real registry, and against hostile ones.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod distribution;
mod hostile;
mod server;
mod support;

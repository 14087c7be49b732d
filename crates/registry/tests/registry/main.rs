//! The crate against a real registry, and against one that lies.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;
mod lies;
mod real;
mod server;
mod support;

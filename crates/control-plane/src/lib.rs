//! The API server: it gathers, asks `scheduler`, and performs.
//!
//! - [`run`] starts a server: it creates the cluster at the first start ([`bootstrap`]), serves TLS with optional
//!   client certificates ([`serve`]), the routes ([`api`]) and one planner task ([`planning`]).
//! - Every caller's kind is checked where the call is handled ([`callers`]): users by bearer token,
//!   nodes and edges by the certificate they enrolled for, and enrolling by its one-time token.
//! - The planner task is the only one that plans. Every handler that changes the cluster state wakes it; it plans until
//!   nothing changes and publishes the cluster state ([`state::Published`]), which wakes every long poll.
//! - Every change is a command of [`scheduler::apply`], applied and written by [`state::Shared::change`].
//! - Secret bundles are sealed before the store sees them ([`secrets`]); a node gets the bundles of the instances that
//!   are placed on it, and no others.
//! - Registry logins are sealed in the store, and opened when a registry asks or a node has to pull ([`logins`]).
//! - Streams (logs, commands, calls of instances) are opened by nodes when asked ([`streams`]), and joined to the user
//!   that wants them.
//!
//! ```text
//! user --deploy--> apply, store --wake--> planner --plan--> apply, store
//!                                            | publish
//!            node <--desired-----------------+----------routes--> edge
//!            node --report--> apply, store --wake--> planner
//! ```
//!
//! Deliberately absent: decisions (they are in `scheduler`, as pure functions), and several servers
//! on one store (a lock on the data folder refuses the second; a later issue adds PostgreSQL and a
//! fenced lease).

mod api;
mod bootstrap;
mod callers;
mod clock;
mod failure;
mod limits;
mod logins;
mod options;
mod planning;
mod presence;
mod refused_enrollments;
mod rows;
mod sealed;
mod secrets;
mod serve;
mod state;
mod streams;

pub use limits::{
    MAX_CONNECTIONS, MAX_EXECS, MAX_LOG_READERS, MAX_PLAN_ROUNDS, ONLINE_WITHIN, PLAN_INTERVAL,
    SHUTDOWN_GRACE,
};
pub use options::{Ready, ServerError, ServerOptions};
pub use serve::run;

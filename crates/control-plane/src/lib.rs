//! The API server: it gathers, asks `scheduler`, and performs.
//!
//! - [`run`] starts a server: it creates the cluster at the first start ([`keys`], [`bootstrap`]), serves TLS with optional
//!   client certificates ([`serve`]), the routes ([`api`]) and one planner task ([`planner_loop`]).
//! - [`init`] creates the cluster and listens nowhere.
//! - Every caller's kind is checked where the call is handled ([`callers`]): users by bearer token,
//!   whose roles say what they may ([`access`]), nodes and edges by the certificate they enrolled for, and enrolling by its one-time token.
//! - The cluster state is in memory, loaded once. Every change is a command of [`scheduler::apply`], decided there
//!   ([`state::Shared::change`]), and answered when its batch is in the store and published ([`leader_handle`], [`commit_loop`]).
//! - The planner task is the only one that plans ([`planner_loop`]). Every handler that changes the cluster state wakes it.
//! - A change wakes the long polls that it is about ([`topics`]).
//! - Secret bundles are sealed before the store sees them ([`secrets`]); a node gets the bundles of the instances that
//!   are placed on it, and no others.
//! - Registry logins are sealed in the store, and opened when a registry asks or a node has to pull ([`logins`]).
//! - Certificates of hosts are sealed, too, and told to edges ([`certificates`]); those of hosts for which nobody added one are ordered by ACME, where that is
//!   turned on ([`acme`], [`acme_loop`], [`acme_order`]).
//! - Streams (logs, commands, calls of instances) are opened by nodes when asked ([`streams`]), and joined to the user
//!   that wants them.
//!
//! ```text
//! user --deploy--+
//! node --report--+--> decide, apply in memory --batch--> store --> publish --+--desired--> node
//! planner --plan-+                                                           +--routes--> edge
//!                                                                            +--> whoever asks
//! ```
//!
//! Several servers may share one PostgreSQL. One of them leads, in a term ([`election`], [`term`]); the others forward their callers
//! to it ([`dispatch`]).
//!
//! Deliberately absent: decisions (they are in `scheduler`, as pure functions).

mod access;
mod acme;
mod acme_loop;
mod acme_order;
mod api;
mod authority;
mod backup;
mod backup_file;
mod bootstrap;
mod callers;
mod certificate_index;
mod certificate_loop;
mod certificates;
mod clock;
mod commit_loop;
mod connection;
mod copies;
mod dispatch;
mod doctor;
mod election;
mod enrollment_rate;
mod failure;
mod http2;
mod init;
mod keys;
mod leader_handle;
mod limits;
mod listens_at;
mod logins;
mod members;
mod metrics;
mod not_committed;
mod open_files;
mod options;
mod overlay;
mod page;
mod planner_loop;
mod presence;
mod refused_enrollments;
mod reporting;
mod rows;
mod sealed;
mod secrets;
mod serve;
mod shares;
mod signing_rate;
mod slots;
mod state;
mod streams;
mod term;
mod tls;
mod topics;
mod users;

pub use backup::{RestoreOptions, Restored, backup, restore};
pub use init::{Initialized, init};
pub use keys::KEY_FILE;
pub use limits::{MAX_EXECS, MAX_LOG_READERS, PLAN_INTERVAL, SHUTDOWN_GRACE};
pub use options::{Ready, ServerError, ServerOptions};
pub use serve::run;

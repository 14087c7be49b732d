//! The control plane's state in SQL: SQLite, one file.
//!
//! Every change is one transaction, begun with `BEGIN IMMEDIATE` on the one writing connection and
//! committed with `synchronous=FULL`: what a caller was told is done survives `kill -9` and a loss
//! of power, and half a change does not exist. Decisions are not made here. [`Store::update`]
//! loads the [`scheduler::cluster_state::ClusterState`] inside the transaction, hands it to a pure function, and
//! writes the [`Change`]s it returns, so that nothing can come between the look and the act.
//!
//! A node's generation grows in the same transaction in which its desired state changes, and only
//! then.
//!
//! Deliberately absent: PostgreSQL and the fenced lease by which several servers would share it
//! (a later issue: [`StoreError::UnknownStore`] says so), and any cache: SQLite's own is enough.

mod change;
mod enroll;
mod error;
mod load;
mod logins;
mod open;
mod report;
mod routes;
mod rows;
mod secrets;
mod volumes;

pub use change::Change;
pub use enroll::Enrolled;
pub use error::{EnrollError, StoreError};
pub use load::{NodeDetail, Snapshot};
pub use open::{BUSY_TIMEOUT, ClusterRecord, READERS, Store};
pub use report::{ReportEffect, SEEN_GRANULARITY_MS};
pub use secrets::SealedBundle;

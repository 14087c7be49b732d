//! What the control plane decides, as pure functions over one [`cluster_state::ClusterState`].
//!
//! State and time go in, actions come out; no I/O, clock, randomness, async or hash-ordered map is
//! here, so that every decision can be replayed, shown and tested without a machine.
//!
//! ```text
//! planner: Action --+
//! user ------------ +--> apply(ClusterState, Command) --> Changes --> the store
//! node: report -----+
//! ```
//!
//! - [`leader`]: the cluster state in the hands of its one writer: what is decided, and what of it the store has.
//! - [`lease`]: which of several servers that writer is on.
//!
//! - [`apply`]: carries every change out on the cluster state; [`changes`]: the records that it changed.
//! - [`table`]: what the cluster state is made of: ordered maps that share what they have in common.
//! - [`planner`]: what is to change now: instances created, terminated, deleted; rollouts.
//! - [`action`]: what the planner may decide.
//! - [`rollout`]: how an env gets from one release to another, and when that failed.
//! - [`placement`]: which node takes an instance, or why none does.
//! - [`release`]: a process of a release as the complete description of one instance.
//! - [`desired`]: what one node is to run. [`reports`]: what a node's report means for the state.
//! - [`report_receiver`]: which of a node's reports is applied.
//! - [`ended`]: the records of instances that are gone.
//! - [`events`]: what people are told of each change. [`event_log`]: its number, and the folding of what repeats.
//! - [`why`]: why something is as it is, and what comes next.
//! - [`directory`]: which instances a node knows of.
//! - [`routes`]: where hosts lead. [`host_claims`]: which envs claim them.
//! - [`access`]: who may do what: orgs, users, tokens.
//! - [`acme`]: which hosts need a certificate by ACME, and when.
//! - [`enrollment`]: which machines may join, under which name and number. [`membership`]: who is a member, by which key. [`underlay`]: how it is
//!   reached. [`peers`]: what each member is told of the others. [`hubs`]: which hubs
//!   are dead. [`doctor`]: what members measure of their links, and what that means.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::format_push_string,
        clippy::needless_pass_by_value,
        clippy::needless_raw_string_hashes,
        reason = "tests count few things, and expect-test writes its texts so"
    )
)]

pub mod access;
pub mod acme;
pub mod action;
pub mod apply;
pub mod changes;
pub mod cluster_state;
pub mod desired;
pub mod directory;
pub mod doctor;
pub mod ended;
pub mod enrollment;
pub mod event_log;
pub mod events;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod heartbeats;
pub mod host_claims;
pub mod hubs;
pub mod instances;
pub mod keyed_runs;
pub mod leader;
pub mod lease;
pub mod membership;
pub mod node_protocol;
pub mod numbers;
pub mod peers;
pub mod placement;
pub mod planner;
pub mod quota;
pub mod release;
pub mod report_receiver;
pub mod reports;
pub mod rollout;
pub mod routes;
mod secret_versions;
pub mod table;
pub mod underlay;
pub mod why;

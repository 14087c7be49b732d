//! What a node decides, as pure functions over values: no I/O, clock, randomness or async.
//!
//! - [`reconcile`]: desired state against what the node observes.
//! - [`instance`]: the life cycle of one instance.
//! - [`liveness`]: what its liveness probes say.
//! - [`boot`]: what its guest is told to run.
//! - [`cache`]: which cached images are evicted.
//! - [`directory`]: the instances of its envs, wherever they are.
//! - [`ended_logs`]: which logs of ended instances are kept.
//! - [`report_sender`]: what is reported next.

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

pub mod boot;
pub mod cache;
pub mod directory;
pub mod ended_logs;
pub mod instance;
pub mod liveness;
pub mod reconcile;
pub mod report_sender;

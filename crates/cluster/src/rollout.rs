//! How an env gets from one release to another, and when that failed.

use std::collections::BTreeMap;

use contract::{ProcessName, ReleaseNumber, Timestamp};

use crate::world::{Env, Rollout};

/// Restarts after which a new instance that is not ready fails its release.
pub const MAX_NEW_RESTARTS: u32 = 3;
/// How long a new instance may take until it is ready, or until it finds a place, in milliseconds.
pub const READY_DEADLINE_MS: u64 = 5 * 60 * 1000;

/// The rollout of a new release, given the one under way or done.
pub fn begin(before: Option<&Rollout>, release: ReleaseNumber, now: Timestamp) -> Rollout {
    let _ = (before, release, now);
    todo!()
}

/// How many instances of each process the release `number` is to have.
pub fn wanted_counts(env: &Env, number: ReleaseNumber) -> BTreeMap<ProcessName, u32> {
    let _ = (env, number);
    todo!()
}

/// Why a number of instances cannot be wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScaleRefused {
    /// There is no such process type.
    #[error("there is no process type {process}; there are: {known}")]
    NoProcess {
        /// As asked for.
        process: ProcessName,
        /// What there is.
        known: String,
    },
    /// More than the manifest allows.
    #[error(
        "{process} can have at most {max} instances (`scaling.max` of its manifest), not {wanted}"
    )]
    TooMany {
        /// The process type.
        process: ProcessName,
        /// As asked for.
        wanted: u32,
        /// `scaling.max`.
        max: u32,
    },
}

/// Whether these numbers of instances can be wanted. To be asked before they are recorded.
pub fn check_scale(env: &Env, wanted: &BTreeMap<ProcessName, u32>) -> Result<(), ScaleRefused> {
    let _ = (env, wanted);
    todo!()
}

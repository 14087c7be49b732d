//! What a VMM answers when it is asked about its guest.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What the VMM says about its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmStatus {
    /// The guest runs.
    Running,
    /// The guest does not run, for this reason in the VMM's words (`paused`, `io-error`, `internal-error`).
    Stopped(String),
}

/// Why the VMM did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The connection failed.
    #[error("cannot talk to the VMM by {}", path.display())]
    Connection {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM did not answer in time: it is stopped, or hangs.
    #[error("the VMM did not answer within {} ms", limit.as_millis())]
    Timeout {
        /// How long it was given.
        limit: Duration,
    },
    /// The answer is not one to this question.
    #[error("the VMM's answer is not understood: {0}")]
    Answer(String),
}

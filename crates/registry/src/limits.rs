//! Bounds of this crate, by name and unit.

use std::time::Duration;

use oci::ImageLimits;

/// Bounds on the answers of a registry, and on the time they may take. [`Limits::default`] is what the platform uses;
/// tests shorten the times.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bounds on an image.
    pub image: ImageLimits,
    /// Layers of one image that are fetched concurrently.
    pub parallel_layers: usize,
    /// Attempts at one request, or at one blob. An attempt at a blob resumes where the last one was cut off.
    pub attempts: u32,
    /// Pause before the second attempt. It doubles with each further attempt, and up to half of it is
    /// added at random so that nodes do not retry in step.
    pub backoff: Duration,
    /// Longest pause before an attempt, unless the registry asks for a longer one.
    pub backoff_max: Duration,
    /// Longest pause that a registry may ask for (`Retry-After`).
    pub retry_after_max: Duration,
    /// What happens where it asks for a longer one.
    pub longer_wait: LongerWait,
    /// Longest wait for a TCP and TLS connection.
    pub connect: Duration,
    /// Longest wait for an answer's head, and then for each next piece of its body.
    pub stall: Duration,
    /// Time that a blob of any size may take. Together with [`Limits::slowest_bytes_per_second`] it
    /// ends a download that trickles.
    pub blob_grace: Duration,
    /// Slowest accepted average rate of a blob after the grace, in bytes per second.
    pub slowest_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image: ImageLimits::default(),
            parallel_layers: 4,
            attempts: 5,
            backoff: Duration::from_millis(250),
            backoff_max: Duration::from_secs(10),
            retry_after_max: Duration::from_mins(5),
            longer_wait: LongerWait::Cut,
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            blob_grace: Duration::from_mins(2),
            slowest_bytes_per_second: 16 << 10,
        }
    }
}

/// What happens where a registry asks for a longer pause than [`Limits::retry_after_max`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongerWait {
    /// The pause is cut to the limit.
    Cut,
    /// There is no further attempt: the caller, who has someone waiting, gets the pause in
    /// [`crate::Problem::Refused`] and decides.
    Return,
}

/// Shortest pause before an attempt that is reported ([`crate::FetchEvent::Waiting`]).
pub(crate) const REPORTED_PAUSE: Duration = Duration::from_secs(1);
/// Attempts at one request to a mirror, before the registry itself is asked.
pub(crate) const MIRROR_ATTEMPTS: u32 = 2;
/// How long an `Authorization` that was accepted is reused before the credential is looked up again.
pub(crate) const AUTHORIZATION_LIFETIME: Duration = Duration::from_mins(5);
/// Largest answer of a token service, in bytes.
pub(crate) const MAX_TOKEN_ANSWER_BYTES: u64 = 64 << 10;
/// Most redirects that are followed from one request.
pub(crate) const MAX_REDIRECTS: usize = 5;
/// Largest error answer whose message is read, in bytes.
pub(crate) const MAX_ERROR_ANSWER_BYTES: u64 = 16 << 10;
/// Longest part of a registry's or helper's message that is shown, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 200;
/// Pieces of a blob between the network and the disk; each is at most a few hundred KiB.
pub(crate) const PIECES_IN_FLIGHT: usize = 16;
/// Bytes between two reports of progress.
pub(crate) const PROGRESS_STEP_BYTES: u64 = 1 << 20;

//! Every bound of this crate, by name and unit.

use std::time::Duration;

/// What is accepted from a registry, and how long it is waited for. [`Limits::default`] is what the platform uses;
/// tests shorten the times.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest manifest or index, in bytes. 4 MiB is what the distribution spec asks registries to
    /// accept.
    pub manifest_bytes: u64,
    /// Largest image config, in bytes.
    pub config_bytes: u64,
    /// Most layers of an image.
    pub layers: usize,
    /// Largest layer as stored in the registry, in bytes.
    pub layer_bytes: u64,
    /// Largest sum of an image's layers as stored in the registry, in bytes.
    pub image_bytes: u64,
    /// Layers of one image fetched at the same time.
    pub parallel_layers: usize,
    /// Attempts at one request, or at one blob; each goes on where the last one was cut off.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles with each further one, and up to half of it is
    /// added by chance so that nodes do not come back in step.
    pub backoff: Duration,
    /// Longest pause before an attempt, also where the registry asks for more (`Retry-After`).
    pub backoff_max: Duration,
    /// Longest wait for a TCP and TLS connection.
    pub connect: Duration,
    /// Longest wait for an answer's head, and then for each next piece of its body.
    pub stall: Duration,
    /// Time a blob may take whatever its size. Together with [`Limits::slowest_bytes_per_second`] it
    /// ends a download that drips.
    pub blob_grace: Duration,
    /// Slowest accepted average rate of a blob, in bytes per second, after the grace.
    pub slowest_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            layers: 512,
            layer_bytes: 32 << 30,
            image_bytes: 64 << 30,
            parallel_layers: 4,
            attempts: 5,
            backoff: Duration::from_millis(250),
            backoff_max: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            blob_grace: Duration::from_mins(2),
            slowest_bytes_per_second: 16 << 10,
        }
    }
}

/// Attempts at one request to a mirror, before the registry itself is asked.
pub(crate) const MIRROR_ATTEMPTS: u32 = 2;
/// How long an `Authorization` that worked is shown again, before the credential is looked for anew.
pub(crate) const AUTHORIZATION_KEPT: Duration = Duration::from_mins(5);
/// Largest answer of a token service, in bytes.
pub(crate) const MAX_TOKEN_ANSWER_BYTES: u64 = 64 << 10;
/// Most redirects followed from one request.
pub(crate) const MAX_REDIRECTS: usize = 5;
/// Largest error answer that is read for its message, in bytes.
pub(crate) const MAX_ERROR_ANSWER_BYTES: u64 = 16 << 10;
/// Longest part of an error answer that is shown, in bytes.
pub(crate) const MAX_ERROR_TEXT_BYTES: usize = 200;
/// Entries of an index without a platform that are looked into for one, at most.
pub(crate) const MAX_UNLABELLED_ENTRIES: usize = 8;
/// Most entries of an index.
pub(crate) const MAX_INDEX_ENTRIES: usize = 1024;
/// Pieces of a blob between the network and the disk; each is at most a few hundred KiB.
pub(crate) const PIECES_IN_FLIGHT: usize = 16;
/// Progress is told about every so many bytes.
pub(crate) const PROGRESS_STEP_BYTES: u64 = 1 << 20;
/// Most entries of a docker archive.
pub(crate) const MAX_ARCHIVE_ENTRIES: usize = 16 << 10;

//! A connection to a VMM, by which it is asked and heard.

use std::future::Future;
use std::pin::Pin;

use crate::{StatusError, VmStatus};

/// The future of a method of a driver or a monitor.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request of a guest to one of its disks that failed on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFault {
    /// Which of the VM's disks, from 0; absent where the VMM does not say.
    pub disk: Option<usize>,
    /// `read` or `write`, in the VMM's word.
    pub operation: String,
    /// Whether the host's file system is full.
    pub no_space: bool,
    /// Why, in the host's words: `No space left on device`.
    pub reason: String,
}

/// What a VMM says unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A request to a disk failed.
    DiskFault(DiskFault),
    /// It has paused its guest, or goes on with it: it is to be asked why.
    Changed,
}

/// A connection to a VMM.
pub(crate) trait Monitor: Send {
    /// Asks about the guest. A caller that gives up may ask again.
    fn status(&mut self) -> Answer<'_, Result<VmStatus, StatusError>>;

    /// What the VMM says next; never, from one that says nothing unasked. Cancel-safe.
    fn event(&mut self) -> Answer<'_, Event>;
}

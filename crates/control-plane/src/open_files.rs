//! The server's limit of open files: each connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as this process may. Gives what it is then; `None`: there is none.
pub(crate) fn raise() -> Option<u64> {
    let now = getrlimit(Resource::Nofile);
    let current = now.current?;
    let raised = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => now.maximum,
        Err(_) => Some(current),
    }
}

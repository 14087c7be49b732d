//! Every queue, retry, size and timeout of the edge, by name.

use std::time::Duration;

/// Connections from clients at once. The next one waits in the kernel's backlog.
pub(crate) const MAX_CLIENT_CONNECTIONS: usize = 10_000;
/// Bytes of a request's or a response's head (first line and headers).
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Headers in a request or a response.
pub(crate) const MAX_HEADERS: usize = 128;
/// A client that has not sent a whole head by then is cut off; also how long an idle connection
/// is kept for its next request.
pub(crate) const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that sends nothing of a body it announced for this long gets a 408.
pub(crate) const REQUEST_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A backend that has not accepted the connection by then is unreachable.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A backend that has not begun its answer this long after it took the last byte of the request
/// gets its client a 504. The answer's body may take as long as it likes.
pub(crate) const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Backends tried for one request.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// A backend that could not be reached comes last in the order for this long.
pub(crate) const AVOID_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Idle connections kept for each backend.
pub(crate) const MAX_IDLE_PER_BACKEND: usize = 64;
/// An idle connection to a backend older than this is not used again.
pub(crate) const MAX_IDLE_AGE: Duration = Duration::from_secs(20);

/// TCP keep-alive: silence before the first probe, time between probes, probes without an answer
/// before the connection is given up. This is what ends bodies and tunnels of a peer that vanished.
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// See [`KEEPALIVE_IDLE`].
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// See [`KEEPALIVE_IDLE`].
pub(crate) const KEEPALIVE_PROBES: u32 = 3;

/// At shutdown, requests in flight get this long to finish.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// At shutdown, upgraded connections (websockets), which never finish by themselves, get this long.
pub(crate) const TUNNEL_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after the kernel refused to accept (no file descriptors left).
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// First pause before the server is asked again after a failure; doubles up to
/// [`MAX_POLL_RETRY`].
pub(crate) const FIRST_POLL_RETRY: Duration = Duration::from_millis(250);
/// Longest pause before the server is asked again.
pub(crate) const MAX_POLL_RETRY: Duration = Duration::from_secs(10);
/// Bytes of the journal of the routes, where the table is smaller, before the table is written anew.
pub(crate) const MIN_JOURNAL_BYTES: u64 = 256 * 1024;

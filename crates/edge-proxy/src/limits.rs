//! Every queue, retry, size and timeout of the edge, by name.

use std::time::Duration;

/// Connections from clients at once. The next one waits in the kernel's backlog.
pub(crate) const MAX_CLIENT_CONNECTIONS: usize = 10_000;
/// Connections of TCP routes at once, apart from those of HTTP. The next one waits in the kernel's backlog.
pub(crate) const MAX_TCP_CONNECTIONS: usize = 10_000;
/// Connections that wait to be accepted, for each port. Beyond them the kernel forgets those that ask, and they ask again after a second. It takes no
/// more than `net.core.somaxconn`, which is 4096.
pub(crate) const BACKLOG: i32 = 4096;
/// Bytes of a request's or a response's head (first line and headers).
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Headers in a request or a response.
pub(crate) const MAX_HEADERS: usize = 128;
/// Bytes of a request's target.
pub(crate) const MAX_TARGET_BYTES: usize = 16 * 1024;
/// Empty lines that are passed over in front of a request (RFC 9112, 2.2).
pub(crate) const MAX_EMPTY_LINES: usize = 4;
/// Bytes of each direction of a connection that were read and not sent on. A connection that waits has none.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// Buffers that a thread keeps for the next that needs one.
pub(crate) const MAX_SPARE_BUFFERS: usize = 256;
/// A client that has not sent a whole head this long after its first byte, or after it connected, is cut off.
pub(crate) const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an idle connection is kept for its next request: longer than balancers in front keep theirs (60 s).
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// A TLS handshake that is not done by then is cut off, from the connection on.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS handshakes at once whose ClientHello came and was not answered yet. The next one waits for its turn.
pub(crate) const MAX_HANDSHAKES: usize = 512;
/// Bytes of a client's first message of TLS at a port of TCP routes, which names its host. Those of today have 2 KiB at most.
pub(crate) const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;
/// How long the server may take to sign a host's certificate.
pub(crate) const HOST_CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after a refusal, or a failure, the server is not asked again for a host's certificate.
pub(crate) const HOST_CERTIFICATE_PAUSE: Duration = Duration::from_secs(5);
/// Hosts of which a refusal is remembered.
pub(crate) const MAX_REFUSED_HOSTS: usize = 1000;
/// How often certificates of hosts that are routed no longer are removed.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// How long after certificates could not be written to disk, or removed there, that is tried again.
pub(crate) const KEEP_RETRY: Duration = Duration::from_secs(10);
/// How long a server of before, which knows of no challenges of ACME, is not asked again.
pub(crate) const CHALLENGES_UNKNOWN_PAUSE: Duration = Duration::from_secs(60);
/// A client that sends nothing of a body it announced for this long gets a 408.
pub(crate) const REQUEST_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that takes nothing of an answer for this long is cut off.
pub(crate) const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes a second that a client sends of a body, or takes of an answer, on average of the time in which it is waited for. One that is slower is cut off.
pub(crate) const MIN_BYTES_PER_SECOND: u64 = 240;
/// For so long it is waited for in any case.
pub(crate) const SLOW_GRACE: Duration = Duration::from_secs(60);
/// A client that has closed its sending side, and is sent nothing for this long, is gone.
pub(crate) const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(120);
/// A client that still sends when it has its last answer is read for this long, so that it gets that answer.
pub(crate) const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a body that no app wanted, up to which a client may go on with its next request.
pub(crate) const MAX_DRAINED_BYTES: u64 = 256 * 1024;
/// An upgraded connection on which nothing moves for this long is closed.
pub(crate) const TUNNEL_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Connections of one client: an IPv4 address, or a /64 of IPv6. More get a 429. Trusted proxies may have any number.
pub(crate) const MAX_CONNECTIONS_PER_CLIENT: usize = MAX_CLIENT_CONNECTIONS / 8;
/// Connections beyond their client's share that are waited for, as long as [`LINGER_TIMEOUT`], so that they see why they are refused. More are closed at once.
pub(crate) const MAX_REFUSED: usize = 128;
/// Requests without a whole answer, and tunnels, of one host. More get a 503.
pub(crate) const MAX_IN_FLIGHT_PER_HOST: usize = MAX_CLIENT_CONNECTIONS / 2;

/// How long a request waits for an instance that has fewer requests than its route lets it have (`hard_limit`), or, over HTTP/2, than it allows itself.
pub(crate) const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients of a route whose requests are counted (`rate_limit`).
pub(crate) const MAX_RATED_CLIENTS: usize = 100_000;
/// Clients of a route up to which none is looked for that need not be counted any more.
pub(crate) const MIN_RATED_CLIENTS: usize = 1024;

/// A backend that has not accepted the connection by then is unreachable.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A backend that has not begun its answer this long after it took the last byte of the request
/// gets its client a 504. The answer's body may take as long as it likes.
pub(crate) const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Backends tried for one request.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// How long a backend that could not be reached is out before it is probed; twice as long after each probe that fails, up to [`MAX_PROBE_PAUSE`].
pub(crate) const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(250);
/// See [`FIRST_PROBE_PAUSE`].
pub(crate) const MAX_PROBE_PAUSE: Duration = Duration::from_secs(5);
/// How many of a hundred requests of a route may be given to another backend.
pub(crate) const RETRY_PERCENT: u64 = 20;
/// How many requests of a route may be given to another backend each second besides: else a route with few requests had none.
pub(crate) const RETRIES_PER_SECOND: u64 = 10;
/// How many may be at first.
pub(crate) const FIRST_RETRIES: u64 = 10;
/// How many may be at once, when none were for a while.
pub(crate) const MAX_SAVED_RETRIES: u64 = 100;
/// Idle connections kept for each backend.
pub(crate) const MAX_IDLE_PER_BACKEND: usize = 64;
/// An idle connection to a backend older than this is not used again.
pub(crate) const MAX_IDLE_AGE: Duration = Duration::from_secs(20);
/// A client's connection keeps its connection to a backend for this long after an answer; then others may use it.
pub(crate) const BACKEND_HELD: Duration = Duration::from_secs(1);
/// How often idle connections to backends are looked at, whether they were closed.
pub(crate) const IDLE_SWEEP: Duration = Duration::from_secs(5);

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
/// When another process has taken its place, what is open has this long. Then it is as at a shutdown.
pub(crate) const HANDED_OVER_TIMEOUT: Duration = Duration::from_secs(3600);
/// Pause after the kernel refused to accept (no file descriptors left).
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Pause before a port of a TCP route that is taken is tried again.
pub(crate) const LISTEN_RETRY: Duration = Duration::from_secs(2);

/// First pause before the server is asked again after a failure; doubles up to
/// [`MAX_POLL_RETRY`].
pub(crate) const FIRST_POLL_RETRY: Duration = Duration::from_millis(250);
/// Longest pause before the server is asked again.
pub(crate) const MAX_POLL_RETRY: Duration = Duration::from_secs(10);
/// Bytes of the journal of the routes, where the table is smaller, before the table is written anew.
pub(crate) const MIN_JOURNAL_BYTES: u64 = 256 * 1024;
/// Interim answers (1xx) of a backend to one request.
pub(crate) const MAX_INTERIM_ANSWERS: usize = 32;
/// Bytes of the header of the PROXY protocol that a trusted proxy sends, behind its fixed part.
pub(crate) const MAX_PROXY_HEADER_BYTES: usize = 2048;
/// Lines of the access log that wait to be written.
pub(crate) const MAX_ACCESS_LOG_LINES: usize = 8192;
/// Bytes of a request id that a trusted proxy gave.
pub(crate) const MAX_REQUEST_ID_BYTES: usize = 128;
/// Bytes of an error page of the operator's.
pub(crate) const MAX_ERROR_PAGE_BYTES: u64 = 64 * 1024;
/// How often the folder of error pages is looked at.
pub(crate) const ERROR_PAGES_LOOK: Duration = Duration::from_secs(5);

/// Requests of one connection of HTTP/2 at once (SETTINGS_MAX_CONCURRENT_STREAMS), and tunnels.
pub(crate) const MAX_STREAMS: u32 = 128;
/// Requests over HTTP/2 at once, of all clients. The next one is refused before anything of it was done (REFUSED_STREAM), so clients send it again.
pub(crate) const MAX_ALL_STREAMS: usize = MAX_CLIENT_CONNECTIONS;
/// Bytes of a request's headers over HTTP/2, as RFC 9113, 6.5.2, counts them: 32 more for each.
pub(crate) const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Bytes of a request's body that a client of HTTP/2 may send before they are passed on, for each stream.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all streams of a connection: what bodies take of memory.
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a stream that wait to be written in frames.
pub(crate) const STREAM_SEND_BUFFER: usize = 64 * 1024;
/// Streams of a client that the edge resets because they are malformed, or too many. With more the connection ends.
pub(crate) const MAX_LOCAL_RESETS: usize = 1024;
/// Streams that a client resets before they were looked at. With more the connection ends.
pub(crate) const MAX_UNSEEN_RESETS: usize = 20;
/// A client of HTTP/2 that resets more streams than these whose answer has not begun, and more than every second one, does nothing else (CVE-2023-44487).
pub(crate) const MAX_RESETS: u64 = 500;
/// Frames that are no request and no body which a client of HTTP/2 may send ahead (`http2::meter`).
pub(crate) const CREDITS: u32 = 1000;
/// Those that come with a request.
pub(crate) const CREDITS_A_REQUEST: u32 = 10;
/// Those that come with a DATA frame, in either direction: it is answered by two WINDOW_UPDATEs and a PING at most, and one is left.
pub(crate) const CREDITS_A_DATA_FRAME: u32 = 4;
/// What DATA frames that are smaller than 256 bytes and wait to be passed on may lack of that, all together (`h2`): so much memory they take beside their bytes.
/// A window of [`CONNECTION_WINDOW`] full of messages of 64 bytes is within it.
pub(crate) const SMALL_FRAMES_BUDGET: usize = 4 * 1024 * 1024;
/// Frames of bodies that may wait on a connection of HTTP/2 without more: a window full of large ones. For each there is room of some 256 bytes, which h2 keeps as
/// long as the connection is there. So a connection on which more have waited counts in [`MAX_ALL_WAITING_FRAMES`], and ends as soon as it is idle.
pub(crate) const WAITING_FRAMES: usize = 512;
/// Those beyond [`WAITING_FRAMES`], of all connections: 128 MiB. The next connection that needs more ends.
pub(crate) const MAX_ALL_WAITING_FRAMES: usize = 512 * 1024;
/// Those that come with time: keep-alive.
pub(crate) const CREDITS_A_SECOND: u32 = 20;
/// What the answer to a PING costs that was never sent.
pub(crate) const UNASKED_PONG_CREDITS: u32 = 100;
/// A client of HTTP/2 with a request under way that was not heard for this long gets a PING.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A client of HTTP/2 that has not answered a PING by then is gone. It comes behind what is on its way already, which takes its time on a slow link.
pub(crate) const PING_TIMEOUT: Duration = CLIENT_WRITE_TIMEOUT;

/// Bytes of an answer's body that an instance which speaks HTTP/2 may send before they are passed on, for each stream. All streams of a connection together are
/// bounded by that alone: a slow client holds up no other.
pub(crate) const BACKEND_STREAM_WINDOW: u32 = 128 * 1024;
/// The same as [`SMALL_FRAMES_BUDGET`] for a connection to an instance: a quarter of a million of the smallest frames that slow clients have not taken yet. With more
/// the connection ends, with the requests on it.
pub(crate) const BACKEND_SMALL_FRAMES_BUDGET: usize = 64 * 1024 * 1024;
/// Requests on a connection to an instance that speaks HTTP/2 which their clients took back. Then it takes no more: some servers end a connection after a few
/// hundred (CVE-2023-44487), with what others have under way.
pub(crate) const MAX_TAKEN_BACK: u32 = 50;
/// Bytes of a request's body that are kept, until its answer begins, for another instance or connection where an instance that speaks HTTP/2 does nothing of it.
pub(crate) const MAX_KEPT_BODY_BYTES: usize = 16 * 1024;
/// Connections to one instance that speaks HTTP/2: room for the requests of all clients, where it allows as many on each as others do. One that allows fewer gets
/// fewer at once, and the next ones wait ([`QUEUE_TIMEOUT`]).
pub(crate) const MAX_SHARED_CONNECTIONS: usize = MAX_CLIENT_CONNECTIONS / BACKEND_STREAMS;
/// Requests at once on one connection to an instance that speaks HTTP/2, where it says nothing else. The next one has a connection of its own.
pub(crate) const BACKEND_STREAMS: usize = 100;

//! Every bound of the server, with its unit.

use std::time::Duration;

/// The planner looks at the cluster state this often, also when nobody woke it.
pub const PLAN_INTERVAL: Duration = Duration::from_secs(2);
/// Requests to change the cluster state that wait; further ones wait before the queue.
pub(crate) const MAX_QUEUED_CHANGES: usize = 1024;
/// Requests that are decided for one transaction.
pub(crate) const MAX_BATCH: usize = 512;
/// Envs that are planned in one batch.
pub(crate) const PLAN_BATCH: u32 = 64;
/// How long an env that cannot be planned is quarantined: it is not planned meanwhile. In milliseconds.
pub(crate) const QUARANTINE_MS: u64 = 60_000;

/// Age at which other keys seal session tickets, in milliseconds: 12 h. They open tickets for as long again.
pub(crate) const TICKET_KEY_LIFE_MS: u64 = 12 * 60 * 60 * 1000;
/// How often certificates that end soon and the age of the keys of tickets are looked at.
pub(crate) const CERTIFICATE_LOOK_INTERVAL: Duration = Duration::from_secs(600);

/// Certificates of hosts that the ingress CA signs for one edge at once, and in a second after that, on average.
pub(crate) const SIGNATURES_AT_ONCE: f64 = 1_000.0;
/// See [`SIGNATURES_AT_ONCE`].
pub(crate) const SIGNATURES_PER_SECOND: f64 = 10.0;
/// Orders of certificates by ACME that are under way at a time.
pub(crate) const MAX_ACME_ORDERS: usize = 8;
/// How long a leader that begins waits for edges that it has not heard yet before it orders.
pub(crate) const ACME_SETTLE: Duration = Duration::from_secs(15);
/// An edge that has not called for so long is not waited for, in milliseconds: a poll waits for half a minute at most.
pub(crate) const ACME_EDGE_SILENCE_MS: u64 = 45_000;
/// How long edges may take to answer a challenge that they are told of.
pub(crate) const ACME_EDGE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a term has been going on when an edge that has not asked for challenges is one of before them.
pub(crate) const ACME_OLD_EDGE_AFTER: Duration = Duration::from_secs(60);
/// How long an authority may take to look at the answers to a challenge, or to sign.
pub(crate) const ACME_DECISION_TIMEOUT: Duration = Duration::from_secs(180);
/// First pause before it is asked again whether it has; half as long again each time.
pub(crate) const ACME_FIRST_LOOK: Duration = Duration::from_millis(500);
/// Longest whole order: a hook, edges, and an authority that takes its time.
pub(crate) const ACME_ORDER_TIMEOUT: Duration = Duration::from_secs(1200);
/// Longest wait for a connection to an authority.
pub(crate) const ACME_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request to an authority.
pub(crate) const ACME_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer of an authority, in bytes: a chain of certificates.
pub(crate) const MAX_ACME_ANSWER_BYTES: usize = 1024 * 1024;
/// Longest pause that an authority may ask for.
pub(crate) const MAX_ACME_PAUSE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Largest difference between the server's clock and an authority's with which certificates are ordered, in milliseconds: 1 h.
pub(crate) const MAX_ACME_CLOCK_SKEW_MS: u64 = 60 * 60 * 1000;
/// First pause of all orders after an authority could not be reached, or limits their rate; twice as long each time on end.
pub(crate) const ACME_FIRST_PAUSE_MS: u64 = 30_000;
/// The same after an authority has refused several nonces.
pub(crate) const ACME_NONCE_PAUSE_MS: u64 = 1_000;
/// Longest such pause, in milliseconds.
pub(crate) const MAX_ACME_ALL_PAUSE_MS: u64 = 60 * 60 * 1000;
/// How often an authority is asked when a certificate is to be renewed, at most and at least, in milliseconds.
pub(crate) const MIN_RENEWAL_LOOK_MS: u64 = 60 * 60 * 1000;
/// See [`MIN_RENEWAL_LOOK_MS`].
pub(crate) const MAX_RENEWAL_LOOK_MS: u64 = 24 * 60 * 60 * 1000;
/// Time over which a leader that begins asks about the certificates that are there, in milliseconds.
pub(crate) const RENEWAL_SPREAD_MS: u64 = 6 * 60 * 60 * 1000;
/// Longest sleep of the task that orders certificates.
pub(crate) const ACME_LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a hook for DNS-01 may take.
pub(crate) const DNS_HOOK_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes of what it says that are kept.
pub(crate) const MAX_DNS_HOOK_OUTPUT_BYTES: usize = 400;

/// How long a call about the lease may take before it is given up and tried again.
pub(crate) const LEASE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server that could not begin its term leaves the lease to others.
pub(crate) const FAILED_TERM_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for a connection to the leader.
pub(crate) const FORWARD_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle time after which the kernel asks whether the leader still lives.
pub(crate) const FORWARD_KEEPALIVE: Duration = Duration::from_secs(5);
/// When a caller may try again that found no leader.
pub(crate) const LEADER_RETRY: Duration = Duration::from_secs(1);

/// Reports with changes that one node may send on end before it waits for their answers.
pub(crate) const REPORT_BURST: f64 = 50.0;
/// Reports with changes that are taken of one node in a second, on average. Signs of life are not counted.
pub(crate) const REPORTS_PER_SECOND: f64 = 10.0;

/// Connections of which nobody knows whose they are.
pub(crate) const MAX_STRANGERS: usize = 512;
/// Those from one address, or one /64 of IPv6.
pub(crate) const MAX_STRANGERS_OF_AN_ADDRESS: usize = 64;
/// How long a stranger keeps its place although others want it who have no more: it may be about to show who it is.
pub(crate) const STRANGER_GRACE: Duration = Duration::from_secs(1);
/// How long a stranger may take, from its first packet, until it has shown a certificate or a user's token. One that enrolls shows neither.
pub(crate) const STRANGER_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of users.
pub(crate) const MAX_USER_CONNECTIONS: usize = 1024;
/// Those of one user: readers of logs and commands have one each.
pub(crate) const MAX_CONNECTIONS_OF_A_USER: usize = 512;
/// How long a connection of a user has been idle at least before another of the same user gets its place: whoever has just had an answer may ask again.
pub(crate) const IDLE_GRACE: Duration = Duration::from_secs(1);
/// How long a user is known by a token without a look at the store.
pub(crate) const USER_KNOWN_FOR: Duration = Duration::from_secs(5);
/// How long the store may take to say whose a token is. A database that is away is no reason to wait: others may lead.
pub(crate) const USER_LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// Users known so at a time; the store is asked for all others.
pub(crate) const MAX_USERS_KNOWN: usize = 4096;
/// Connections that wait to be accepted. Beyond them the kernel forgets those that ask, and they ask again after a second. It takes no more than
/// `net.core.somaxconn`, which is 4096.
pub(crate) const BACKLOG: i32 = 4096;
/// Connections of nodes and edges.
pub(crate) const MAX_MEMBER_CONNECTIONS: usize = 32_768;
/// Those of one member: its polls and reports have one, and each stream of logs, of a command or of a forwarded connection has one.
pub(crate) const MAX_CONNECTIONS_OF_A_MEMBER: usize =
    MAX_LOG_READERS + MAX_EXECS + MAX_FORWARDS + 16;
/// Connections of other servers, which share one name: each has one for polls, and one for each stream that it forwards.
pub(crate) const MAX_SERVER_CONNECTIONS: usize = 4096;
/// See [`MAX_SERVER_CONNECTIONS`].
pub(crate) const MAX_CONNECTIONS_OF_A_SERVER: usize = MAX_SERVER_CONNECTIONS;
/// Open files that are left for other things than connections.
pub(crate) const OTHER_FILES: usize = 128;
/// How often the connections that were turned away are logged, where there were any.
pub(crate) const TURNED_AWAY_INTERVAL: Duration = Duration::from_secs(60);
/// Requests under way on one HTTP/2 connection of a member or a user.
pub(crate) const MAX_STREAMS_OF_OTHERS: u32 = 64;
/// Bytes that a client may send on a stream of HTTP/2 before they are read, and on all of a connection.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// See [`STREAM_WINDOW_BYTES`].
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// Those of another server, which forwards the polls of many members.
pub(crate) const MAX_STREAMS_OF_A_SERVER: u32 = 65_536;
/// Largest header of an HTTP/2 request, in bytes.
pub(crate) const MAX_HEADER_BYTES: u32 = 32 << 10;
/// How often an HTTP/2 connection is asked whether its other end still lives.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer may take.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest TLS handshake.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a request's head, idle time between two requests included. It is longer than
/// clients keep idle connections, so that they close first.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest handling of a request, streams excepted: a deploy waits for a registry.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(115);
/// Longest wait for a registry at a deploy.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(100);
/// Longest pause that a registry may ask for at a deploy before the user is told, who then decides.
pub(crate) const REGISTRY_PAUSE: Duration = Duration::from_secs(5);
/// How long a server that is told to stop waits for the requests under way.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Pause after a failure to accept a connection (no file descriptors left, say).
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Characters of what is wrong with a body, in an answer.
pub(crate) const MAX_REASON_CHARS: usize = 400;
/// Longest body of a call that anybody may make, in bytes: an enrollment has a certificate request and a few names. Strangers have so many of them open at a
/// time that those of users would fill the memory.
pub(crate) const MAX_STRANGERS_BODY_BYTES: usize = 16 << 10;
/// How long the rest of a body that is too long stays with its stream, so that the refusal is sent before the stream is reset.
pub(crate) const REFUSED_BODY_GRACE: Duration = Duration::from_secs(1);
/// Users who read logs at a time.
pub const MAX_LOG_READERS: usize = 128;
/// Commands that users run beside apps at a time, in the whole cluster.
pub const MAX_EXECS: usize = 128;
/// Deploys whose outcome is worked out at a time (`platform plan`): each takes as long as a look at the whole cluster.
pub(crate) const MAX_PLANS: usize = 1;
/// Connections that users forward to instances at a time, in the whole cluster.
pub(crate) const MAX_FORWARDS: usize = 512;
/// How long a node may take to answer a call about its instances: guests are asked meanwhile.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Largest answer of a node to a call, in bytes: stats of its instances.
pub(crate) const MAX_CALL_ANSWER_BYTES: usize = 1024 * 1024;
/// A command's stream is cut when its node has been offline at two checks in a row, this far apart.
pub(crate) const EXEC_NODE_CHECK: Duration = Duration::from_secs(10);
/// How long a user's command line may take to hang up once its command has ended.
pub(crate) const EXEC_HANG_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// When a caller may try again whose node has as many streams of a kind as it takes.
pub(crate) const NODE_BUSY_RETRY: Duration = Duration::from_secs(5);
/// Streams that wait for one node to open them.
pub(crate) const MAX_WAITING_STREAMS: usize = 256;
/// How long a node may take to open a stream it is asked for.
pub(crate) const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream that broke is asked for again after this long, while its reader follows.
pub(crate) const STREAM_RESUME_PAUSE: Duration = Duration::from_secs(2);
/// Pieces of a log stream between the nodes and one reader; a slower reader slows the nodes down.
pub(crate) const STREAM_BUFFER_PIECES: usize = 64;
/// An empty line is sent to a silent log reader this often, so that a closed connection is noticed.
pub(crate) const STREAM_SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Longest tail that a reader may ask for, in lines for each instance.
pub(crate) const MAX_TAIL: u32 = 10_000;

/// Times that a secret bundle is sealed anew because another caller was first.
pub(crate) const MAX_SECRET_ATTEMPTS: u32 = 16;

/// Largest secret of a registry login, in bytes of its JSON; identity tokens of the large clouds have up to 5 KiB.
pub(crate) const MAX_LOGIN_BYTES: usize = 32 << 10;

/// How long a member's endpoint stays as recorded before another is: each change is a write, and wakes its peers.
pub(crate) const UNDERLAY_CHANGE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a leader looks at its hubs where nobody says anything of them.
pub(crate) const HUB_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two looks because members said something.
pub(crate) const HUB_EVALUATION_PAUSE: Duration = Duration::from_millis(200);

/// How long members are given to measure their links: two handshakes that are tried again, what follows them, and the answer.
pub(crate) const MEASUREMENT_TIMEOUT: Duration = Duration::from_secs(25);
/// How long their answers are waited for after that.
pub(crate) const MEASUREMENT_GRACE: Duration = Duration::from_secs(2);
/// A member that has not called for so long is not asked: a poll waits for half a minute at most.
pub(crate) const MEASURING_MEMBER_SILENCE_MS: u64 = 60_000;
/// Links of which an answer has all that was measured; beyond, those that are well are left out.
pub(crate) const MAX_DIAGNOSED_LINKS: usize = 20_000;

/// MTU of a new cluster's overlay, in bytes (ADR 0004).
pub(crate) const DEFAULT_MTU: u32 = 1420;
/// Longest name of a region, in bytes.
pub(crate) const MAX_REGION_BYTES: usize = 63;
/// Characters of the reason for which a member's message was refused that the log has.
pub(crate) const MAX_LOGGED_REASON: usize = 300;
/// Enrollments from one address that are refused on end before it has to wait: 64 machines that were given one token are told so at once.
pub(crate) const ENROLLMENT_BURST: u32 = 100;
/// Those of all addresses together.
pub(crate) const MAX_ENROLLMENT_BURST: u32 = 2000;
/// Refused enrollments of one address, and of all, that are looked at in a second, on average.
pub(crate) const ENROLLMENTS_PER_SECOND: f64 = 1.0;
/// Longest URL that a token carries, in bytes.
pub(crate) const MAX_TOKEN_URL_BYTES: usize = 1024;
/// Addresses of which refused enrollments are counted at a time.
pub(crate) const MAX_ENROLLMENT_ADDRESSES: usize = 4096;
/// How often a server looks whether the cluster has another CA.
pub(crate) const CA_LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How long a member that was revoked may keep its connection, so that the answer which says so arrives.
pub(crate) const REVOKED_GRACE: Duration = Duration::from_secs(1);
/// Refused enrollments that the log has within [`REFUSED_ENROLLMENTS_PERIOD`].
pub(crate) const MAX_REFUSED_ENROLLMENTS_LOGGED: usize = 10;
/// See [`MAX_REFUSED_ENROLLMENTS_LOGGED`].
pub(crate) const REFUSED_ENROLLMENTS_PERIOD: Duration = Duration::from_secs(60);
/// Characters of the name of a machine that was refused that the log has.
pub(crate) const MAX_LOGGED_NAME: usize = 64;

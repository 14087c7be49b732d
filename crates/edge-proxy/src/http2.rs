//! HTTP/2 (RFC 9113), from clients and to instances. The frames are the crate `h2`'s.
//!
//! To the rest of the edge a stream of a client is a connection of HTTP/1.1 with one request: what came in frames is given as the bytes of such a request, and
//! the bytes of the answer become frames (`client_stream`). An instance that speaks HTTP/2 is one of HTTP/1.1 in the same way (`backend_stream`). So every
//! rule of docs/edge.md is one rule, wherever a request comes from and goes to, and none is understood in two ways.
//!
//! ```text
//!   client == frames ==> meter --> h2 --> client_stream -- bytes of HTTP/1.1 --> crate::connection -- bytes of HTTP/1.1 --> instance
//!                                                                                               \--> backend_stream --> h2 == frames ==> instance
//! ```
//!
//! A client's connection is one task with all its streams (`connection`). Those to instances are shared by all clients (`backends`), each with a task of its own.
//!
//! Deliberately absent: server push, which browsers gave up, and priorities (RFC 9218): streams have their turn.

mod backend_stream;
mod backends;
mod client_stream;
mod connection;
mod incoming;
mod message;
mod meter;
mod outgoing;

pub(crate) use backend_stream::BackendStream;
pub(crate) use backends::{NoStream, SharedConnections};
pub(crate) use connection::serve;

/// How HTTP/2 is named in ALPN (RFC 9113, 3.2).
pub(crate) const ALPN: &[u8] = b"h2";
/// What a client that knows that it speaks to HTTP/2 begins with, as far as it is a head of HTTP/1 (RFC 9113, 3.4).
pub(crate) const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

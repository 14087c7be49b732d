//! HTTP/1.1 messages as bytes (RFC 9112), as a proxy needs them: a head is read once, where it lies in the buffer, and written for the other
//! side with its names as they came; bodies are followed, not copied.
//!
//! Requests are read strictly: whatever two readers might understand in two ways is refused ([`Refusal`]). Responses are read as
//! browsers and nginx read them: one bad line is dropped and named, a folded line becomes one line.
//!
//! Deliberately absent: I/O, time, HTTP/2, and what a message is for.

mod chunks;
mod field;
mod grammar;
mod head_end;
mod host;
mod request;
mod response;
mod rewrite;

pub use chunks::{BadChunk, Chunks, MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES, Step};
pub use field::{Field, Name, Span};
pub use head_end::{HeadEnd, find_request_end, find_response_end};
pub use host::{Authority, HostError, authority};
pub use request::Refusal;
pub use request::{
    MAX_METHOD_BYTES, RequestHead, RequestLimits, Target, Version, refused_wants_json,
};
pub use response::{BadResponse, ResponseHead};
pub use rewrite::{ForBackend, ForClient, write_request, write_response};

/// How far a message's body reaches (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// In chunks, see [`Chunks`].
    Chunked,
    /// Until the connection closes. Responses only.
    UntilClose,
}

//! The framing of a body in chunks (RFC 9112, 7.1), followed without a copy: what is valid passes as it is.

use memchr::memchr;

use crate::field::Name;
use crate::grammar::{is_token, is_value};

/// Bytes of a line with a chunk's size and its extensions.
pub const MAX_CHUNK_LINE_BYTES: usize = 1024;
/// Bytes of all extensions of a body: nobody reads them, and each costs.
const MAX_EXTENSION_BYTES: usize = 16 * 1024;
/// Bytes of trailers.
pub const MAX_TRAILER_BYTES: usize = 8 * 1024;

/// What is wrong with a body in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says it")]
pub enum BadChunk {
    #[error("the size of a chunk is not a hexadecimal number")]
    Size,
    #[error(
        "the extensions of a chunk are too long, or have a control character or a quoted string without an end"
    )]
    Extension,
    #[error("a chunk does not end where its size says")]
    End,
    #[error("the trailers are no headers, too long, or such as may not come behind a body")]
    Trailer,
}

/// Follows a body from its first byte to its last.
#[derive(Debug, Clone)]
pub struct Chunks {
    state: State,
    extension_bytes: usize,
    is_strict: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of sizes, ends and trailers.
    Framing(usize),
    /// So many bytes of data.
    Data(usize),
    /// There are too few to say: more are needed, and these with them.
    More,
    /// The body is over.
    Done,
}

impl Chunks {
    /// Of a request, which is followed strictly.
    pub fn of_request() -> Self {
        Self {
            state: State::Size,
            extension_bytes: 0,
            is_strict: true,
        }
    }

    /// Of a response: some servers write spaces behind a size.
    pub fn of_response() -> Self {
        Self {
            is_strict: false,
            ..Self::of_request()
        }
    }

    /// Whether the body is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What these bytes, which follow those that were stepped over, begin with.
    ///
    /// # Errors
    /// They are no part of a body in chunks.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, BadChunk> {
        match self.state {
            State::Done => Ok(Step::Done),
            _ if bytes.is_empty() => Ok(Step::More),
            State::Size => self.size(bytes),
            State::Data(left) => {
                let length =
                    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.state = match left - length as u64 {
                    0 => State::DataEnd,
                    left => State::Data(left),
                };
                Ok(Step::Data(length))
            }
            State::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Step::Framing(2))
                }
                [b'\r'] => Ok(Step::More),
                _ => Err(BadChunk::End),
            },
            State::Trailers => self.trailers(bytes),
        }
    }

    fn size(&mut self, bytes: &[u8]) -> Result<Step, BadChunk> {
        let digits = bytes
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        if digits == 0 || digits > 16 {
            return Err(BadChunk::Size);
        }
        let line = &bytes[..bytes.len().min(MAX_CHUNK_LINE_BYTES)];
        let Some(feed) = memchr(b'\n', line) else {
            return if line.len() == MAX_CHUNK_LINE_BYTES {
                Err(BadChunk::Extension)
            } else {
                Ok(Step::More)
            };
        };
        let rest = line[digits..feed]
            .strip_suffix(b"\r")
            .ok_or(BadChunk::Size)?;
        let spaces = rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count();
        let extension = &rest[spaces..];
        if (spaces > 0 && self.is_strict) || !matches!(extension, [] | [b';', ..]) {
            return Err(BadChunk::Size);
        }
        self.extension_bytes += rest.len();
        let is_whole = is_value(extension) && !ends_in_quotes(extension);
        if !is_whole || self.extension_bytes > MAX_EXTENSION_BYTES {
            return Err(BadChunk::Extension);
        }
        let size = line[..digits].iter().fold(0_u64, |size, digit| {
            let digit = char::from(*digit).to_digit(16).unwrap_or_default();
            (size << 4) | u64::from(digit)
        });
        if i64::try_from(size).is_err() {
            return Err(BadChunk::Size);
        }
        self.state = if size == 0 {
            State::Trailers
        } else {
            State::Data(size)
        };
        Ok(Step::Framing(feed + 1))
    }

    /// They are checked, and pass, all at once.
    fn trailers(&mut self, bytes: &[u8]) -> Result<Step, BadChunk> {
        let mut at = 0;
        loop {
            let Some(length) = memchr(b'\n', &bytes[at..]) else {
                return if bytes.len() > MAX_TRAILER_BYTES {
                    Err(BadChunk::Trailer)
                } else {
                    Ok(Step::More)
                };
            };
            let line = &bytes[at..at + length];
            let line = line.strip_suffix(b"\r").ok_or(BadChunk::Trailer)?;
            at += length + 1;
            if at > MAX_TRAILER_BYTES {
                return Err(BadChunk::Trailer);
            }
            if line.is_empty() {
                self.state = State::Done;
                return Ok(Step::Framing(at));
            }
            let colon = memchr(b':', line).ok_or(BadChunk::Trailer)?;
            let name = &line[..colon];
            if !is_token(name) || !is_value(&line[colon + 1..]) || !self.may_trail(name) {
                return Err(BadChunk::Trailer);
            }
        }
    }

    /// Whether a header may come behind a body: it does not frame the message; of a request it neither names its host nor says who the client is
    /// (RFC 9110, 6.5.1).
    fn may_trail(&self, name: &[u8]) -> bool {
        let known = Name::of(name);
        if matches!(known, Name::ContentLength | Name::TransferEncoding) {
            return false;
        }
        let is_of_head = matches!(known, Name::Host | Name::Expect | Name::Underscored)
            || known.is_hop_by_hop()
            || known.is_of_client();
        !(self.is_strict && is_of_head)
    }
}

/// Whether a quoted string (RFC 9110, 5.6.4) has no end there. To a reader that looks for it in the next line the body is another one.
fn ends_in_quotes(extension: &[u8]) -> bool {
    let mut bytes = extension.iter();
    let mut is_quoted = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => drop(bytes.next()),
            _ => {}
        }
    }
    is_quoted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    /// What a body that comes in such pieces is, with what follows it.
    fn followed(mut chunks: Chunks, pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>), BadChunk> {
        let (mut data, mut rest) = (Vec::new(), Vec::new());
        for piece in pieces {
            rest.extend_from_slice(piece);
            loop {
                match chunks.step(&rest)? {
                    Step::Framing(bytes) => drop(rest.drain(..bytes)),
                    Step::Data(bytes) => data.extend(rest.drain(..bytes)),
                    Step::More | Step::Done => break,
                }
            }
        }
        assert!(chunks.is_done(), "{rest:?}");
        Ok((data, rest))
    }

    fn in_chunks(chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for chunk in chunks {
            bytes.extend(format!("{:x};n=v\r\n", chunk.len()).bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\nX: y\r\n\r\n");
        bytes
    }

    proptest! {
        /// However a body is cut into pieces, its data is the same, and what follows it is no part of it.
        #[test]
        fn pieces_make_no_difference(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bytes = in_chunks(&chunks);
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            let (data, rest) = followed(Chunks::of_request(), &pieces).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(rest, b"GET / HTTP/1.1\r\n");
        }

        /// Any bytes at all are followed, refused or too few, in steps that are not longer than they.
        #[test]
        fn any_bytes_are_followed_or_refused(bytes in "[0-9a-fA-F;\r\n: xy]{0,60}") {
            let mut chunks = Chunks::of_request();
            let mut rest = bytes.as_bytes();
            while let Ok(Step::Framing(length) | Step::Data(length)) = chunks.step(rest) {
                prop_assert!(length > 0 && length <= rest.len());
                rest = &rest[length..];
            }
        }
    }

    #[test]
    fn a_server_may_write_spaces_behind_a_size_and_a_client_may_not() {
        let bytes = b"3  \r\nabc\r\n0\r\n\r\n";
        let (data, _) = followed(Chunks::of_response(), &[bytes]).unwrap();
        assert_eq!(data, b"abc");
        assert_eq!(Chunks::of_request().step(bytes), Err(BadChunk::Size));
    }

    #[test]
    fn a_quoted_string_of_an_extension_ends_in_its_line() {
        let line = |extension: &str| format!("3;{extension}\r\nabc\r\n0\r\n\r\n");
        for extension in ["a=\"x\"", "a=\"x\\\" y\";b=z", "a"] {
            let bytes = line(extension);
            let (data, _) = followed(Chunks::of_request(), &[bytes.as_bytes()]).unwrap();
            assert_eq!(data, b"abc", "{extension}");
        }
        for extension in ["a=\"x", "a=\"x\\\"", "a=\"x\\"] {
            let bytes = line(extension);
            for mut chunks in [Chunks::of_request(), Chunks::of_response()] {
                assert_eq!(
                    chunks.step(bytes.as_bytes()),
                    Err(BadChunk::Extension),
                    "{extension}"
                );
            }
        }
    }
}

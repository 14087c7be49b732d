//! How far a body reaches, followed from its first byte to its last.

use http1::{BadChunk, Chunks, Framing, Step};

/// A body of which some bytes have passed.
#[derive(Debug)]
pub(crate) enum Body {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunks(Chunks),
    /// Until the connection closes.
    UntilClose,
}

/// What some bytes begin with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Bytes of the body, its framing among them.
    pub(crate) bytes: usize,
    /// How many of them are data.
    pub(crate) data: usize,
}

impl Body {
    pub(crate) fn of_request(framing: Framing) -> Self {
        match framing {
            Framing::Chunked => Self::Chunks(Chunks::of_request()),
            framing => Self::of_response(framing),
        }
    }

    pub(crate) fn of_response(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunks(Chunks::of_response()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether its last byte was seen.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunks(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }

    /// As much of these bytes as belongs to it and is whole. None: more are needed, or it is over.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Part, BadChunk> {
        match self {
            Self::Length(left) => {
                let length =
                    usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= length as u64;
                Ok(Part {
                    bytes: length,
                    data: length,
                })
            }
            Self::Chunks(chunks) => {
                let mut part = Part::default();
                loop {
                    let step = match chunks.step(&bytes[part.bytes..]) {
                        // What came before the fault passes; the next call finds it again.
                        Err(_) if part.bytes > 0 => return Ok(part),
                        step => step?,
                    };
                    match step {
                        Step::Framing(length) => part.bytes += length,
                        Step::Data(length) => {
                            part.bytes += length;
                            part.data += length;
                        }
                        Step::More | Step::Done => return Ok(part),
                    }
                }
            }
            Self::UntilClose => Ok(Part {
                bytes: bytes.len(),
                data: bytes.len(),
            }),
        }
    }

    /// The next bytes that are all framing, or all data.
    pub(crate) fn take_one(&mut self, bytes: &[u8]) -> Result<Part, BadChunk> {
        let Self::Chunks(chunks) = self else {
            return self.take(bytes);
        };
        Ok(match chunks.step(bytes)? {
            Step::Framing(bytes) => Part { bytes, data: 0 },
            Step::Data(bytes) => Part { bytes, data: bytes },
            Step::More | Step::Done => Part::default(),
        })
    }
}

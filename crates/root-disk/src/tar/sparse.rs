//! The maps of sparse files: where in a file the stored bytes belong.

use crate::error::{ArchiveProblem, LayerError, OverLimit};
use crate::limits::MAX_SPARSE_PIECES;
use crate::tar::header::{BLOCK, number};
use crate::tar::input::{Chunks, Input};
use crate::tar::pax::decimal;

/// Stored bytes that follow each other in the file, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// In the file, in bytes.
    pub(crate) at: u64,
    /// In bytes.
    pub(crate) length: u64,
}

/// Pieces are in order, apart, within the file, and as many bytes as there are.
pub(crate) fn check(pieces: &[Piece], size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for piece in pieces {
        if piece.at < end {
            return Err("its pieces overlap or are out of order");
        }
        end = piece
            .at
            .checked_add(piece.length)
            .ok_or("it is longer than any file")?;
        total = total.saturating_add(piece.length);
    }
    if end > size {
        return Err("it is longer than the file");
    }
    if total != stored {
        return Err("it names more or less than there is");
    }
    Ok(())
}

/// A map that is grown by a piece, as far as one may.
#[derive(Debug, Default)]
struct Map(Vec<Piece>);

impl Map {
    fn push(&mut self, piece: Piece) -> Result<(), LayerError> {
        if self.0.len() >= MAX_SPARSE_PIECES {
            return Err(OverLimit {
                limit: "MAX_SPARSE_PIECES",
                allowed: MAX_SPARSE_PIECES as u64,
                unit: "pieces",
            }
            .into());
        }
        self.0.push(piece);
        Ok(())
    }
}

fn malformed(offset: u64, problem: &'static str) -> LayerError {
    LayerError::Archive {
        offset,
        source: ArchiveProblem::Sparse { problem },
    }
}

/// The old GNU form: in the header, and in blocks after it.
pub(crate) fn read_gnu<C: Chunks>(
    input: &mut Input<C>,
    in_header: &[u8],
    mut extended: bool,
) -> Result<Vec<Piece>, LayerError> {
    let mut map = Map::default();
    add_gnu(&mut map, in_header, input.offset())?;
    while extended {
        let offset = input.offset();
        let mut block = [0; BLOCK];
        if !input.read_block(&mut block)? {
            return Err(LayerError::Archive {
                offset,
                source: ArchiveProblem::Truncated,
            });
        }
        add_gnu(&mut map, &block[..504], offset)?;
        extended = block[504] != 0;
        // An extension must extend, or there could be endlessly many.
        if extended && block[480] == 0 {
            return Err(malformed(offset, "an empty extension"));
        }
    }
    Ok(map.0)
}

fn add_gnu(map: &mut Map, fields: &[u8], offset: u64) -> Result<(), LayerError> {
    for pair in fields.chunks_exact(24) {
        // The first that is not filled is the end.
        if pair[0] == 0 {
            break;
        }
        let field = |bytes| {
            number(bytes)
                .and_then(|value| u64::try_from(value).ok())
                .ok_or_else(|| malformed(offset, "something else than numbers"))
        };
        map.push(Piece {
            at: field(&pair[..12])?,
            length: field(&pair[12..])?,
        })?;
    }
    Ok(())
}

/// PAX version 1.0: lines of decimal numbers before the content, how many first; and how many bytes of
/// the stored ones that takes.
pub(crate) fn read_pax_1_0<C: Chunks>(
    input: &mut Input<C>,
    stored: u64,
) -> Result<(Vec<Piece>, u64), LayerError> {
    let mut lines = Lines {
        input,
        left: stored,
        taken: 0,
        block: [0; BLOCK],
        at: BLOCK,
    };
    let count = lines.number()?;
    let mut map = Map::default();
    for _ in 0..count {
        map.push(Piece {
            at: lines.number()?,
            length: lines.number()?,
        })?;
    }
    Ok((map.0, lines.taken))
}

struct Lines<'a, C> {
    input: &'a mut Input<C>,
    left: u64,
    taken: u64,
    block: [u8; BLOCK],
    at: usize,
}

impl<C: Chunks> Lines<'_, C> {
    fn number(&mut self) -> Result<u64, LayerError> {
        /// Digits of 2^63.
        const MAX_DIGITS: usize = 19;
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                let offset = self.input.offset();
                if self.left < BLOCK as u64 || !self.input.read_block(&mut self.block)? {
                    return Err(malformed(offset, "it is longer than what is stored"));
                }
                self.left -= BLOCK as u64;
                self.taken += BLOCK as u64;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                let offset = self.input.offset();
                return decimal(&digits)
                    .ok_or_else(|| malformed(offset, "something else than numbers"));
            }
            digits.push(byte);
            if digits.len() > MAX_DIGITS {
                return Err(malformed(
                    self.input.offset(),
                    "something else than numbers",
                ));
            }
        }
    }
}

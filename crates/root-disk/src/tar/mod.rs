//! A tar archive as a stream of entries, read as Go's `archive/tar` reads it, which docker and containerd use. Where that
//! one and other programs would see different files, the archive is refused: sizes and names that contradict, headers
//! of a kind in a row, global headers that rename.
//!
//! Understood are ustar, PAX (with attributes and all three kinds of GNU sparse maps), GNU (long names,
//! sparse) and the archives before them; PAX and GNU's long names together, as several libraries write them; types without
//! content whose header has a size nevertheless, as old programs wrote hard links. Deliberately absent: multi-volume
//! archives, and everything that could touch the host.

mod header;
mod input;
mod pax;
mod sparse;

pub(crate) use input::{Chunk, Chunks, Input};

use crate::error::{ArchiveProblem, LayerError};
use crate::limits::{MAX_PAX_BYTES, MAX_SPARSE_PIECES, within};
use crate::tree::Time;
use header::{BLOCK, Header};
use pax::Pax;
use sparse::Piece;

/// A size that the eleven octal digits of a header cannot tell.
const FIRST_SIZE_BEYOND_HEADER: u64 = 1 << 33;

/// An entry, but for its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it is in the archive.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// The low twelve bits.
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Time,
    /// The archive tells it rarely.
    pub(crate) accessed: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// Of so many bytes, holes included.
    File {
        size: u64,
    },
    HardLink {
        target: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
    },
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Directory,
    Fifo,
}

/// An archive that is being read.
#[derive(Debug)]
pub(crate) struct Archive<C> {
    input: Input<C>,
    /// Pieces of the current file that are still to be read, the next one last.
    pieces: Vec<Piece>,
    /// Zeros after the content, in bytes.
    padding: u64,
    ended: bool,
}

/// What came before an entry and is about it.
#[derive(Debug, Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<C: Chunks> Archive<C> {
    pub(crate) fn new(input: Input<C>) -> Self {
        Self {
            input,
            pieces: Vec::new(),
            padding: 0,
            ended: false,
        }
    }

    /// The next entry, past what was not read of the content of the one before; none at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        if self.ended {
            return Ok(None);
        }
        while self.next_content()?.is_some() {}
        // An archive may end with the last content: umoci insert closes none, and Go's reader takes it as the end.
        if !self
            .input
            .skip_unless_ended(std::mem::take(&mut self.padding))?
        {
            self.ended = true;
            return Ok(None);
        }
        let mut pending = Pending::default();
        loop {
            let at = self.input.offset();
            let problem = |source| LayerError::Archive { offset: at, source };
            let mut block = [0; BLOCK];
            if !self.input.read_block(&mut block)? || (block == [0; BLOCK] && self.is_end(at)?) {
                if !pending.is_empty() {
                    return Err(problem(ArchiveProblem::StackedHeaders));
                }
                self.ended = true;
                return Ok(None);
            }
            let header = Header::parse(&block).map_err(problem)?;
            let taken = match header.type_flag() {
                b'x' => {
                    let pax = self.read_pax(&header)?;
                    pending.pax.replace(pax).is_some()
                }
                b'g' => {
                    // Docker and containerd ignore it, others apply it to all entries.
                    if self.read_pax(&header)?.moves_bytes() {
                        let source = ArchiveProblem::Pax {
                            problem: "a global header that gives every entry a name or size",
                        };
                        return Err(problem(source));
                    }
                    !pending.is_empty()
                }
                b'L' => {
                    let name = self.read_long(&header)?;
                    pending.long_name.replace(name).is_some()
                }
                b'K' => {
                    let name = self.read_long(&header)?;
                    pending.long_link.replace(name).is_some()
                }
                _ => return self.entry(at, &header, pending).map(Some),
            };
            if taken {
                return Err(problem(ArchiveProblem::StackedHeaders));
            }
        }
    }

    /// After a block of zeros at `at`.
    fn is_end(&mut self, at: u64) -> Result<bool, LayerError> {
        let mut second = [0; BLOCK];
        if self.input.read_block(&mut second)? && second != [0; BLOCK] {
            return Err(LayerError::Archive {
                offset: at,
                source: ArchiveProblem::LoneZeroBlock,
            });
        }
        Ok(true)
    }

    fn read_pax(&mut self, header: &Header<'_>) -> Result<Pax, LayerError> {
        let offset = self.input.offset();
        let content = self.read_special(header)?;
        pax::parse(&content, 2 * MAX_SPARSE_PIECES).map_err(|problem| LayerError::Archive {
            offset,
            source: ArchiveProblem::Pax { problem },
        })
    }

    /// A long name: up to the first NUL.
    fn read_long(&mut self, header: &Header<'_>) -> Result<Vec<u8>, LayerError> {
        let mut content = self.read_special(header)?;
        if let Some(end) = content.iter().position(|byte| *byte == 0) {
            content.truncate(end);
        }
        Ok(content)
    }

    fn read_special(&mut self, header: &Header<'_>) -> Result<Vec<u8>, LayerError> {
        let offset = self.input.offset();
        let size = header
            .size()
            .map_err(|source| LayerError::Archive { offset, source })?;
        within(size, MAX_PAX_BYTES, "MAX_PAX_BYTES", "bytes")?;
        let content = self.input.read_vec(size)?;
        self.input.skip(padding(size))?;
        Ok(content)
    }

    fn entry(
        &mut self,
        at: u64,
        header: &Header<'_>,
        pending: Pending,
    ) -> Result<Entry, LayerError> {
        let problem = |source| LayerError::Archive { offset: at, source };
        let pax = pending.pax.unwrap_or_default();
        let type_flag = header.type_flag();
        let in_header = header.size().map_err(problem)?;
        let agreed = |pax: Option<Vec<u8>>, long: Option<Vec<u8>>| match (pax, long) {
            (Some(pax), Some(long)) if pax != long => Err(problem(ArchiveProblem::NamesDisagree)),
            (pax, long) => Ok(pax.or(long)),
        };
        let name = agreed(pax.sparse.name.clone().or(pax.path), pending.long_name)?;
        let name = name.unwrap_or_else(|| header.name());
        let stored = match pax.size {
            // Some programs write the size of a hard link's target here. No content follows.
            _ if is_header_only(type_flag, &name) => 0,
            // Who cannot write a size into the header writes there whatever he likes.
            Some(size) if size >= FIRST_SIZE_BEYOND_HEADER => size,
            Some(size) if size != in_header => {
                return Err(problem(ArchiveProblem::SizesDisagree {
                    header: in_header,
                    pax: size,
                }));
            }
            _ => in_header,
        };
        let link = agreed(pax.link_path, pending.long_link)?;
        let link = || link.unwrap_or_else(|| header.link_name());

        let is_sparse = type_flag == b'S' || pax.sparse != pax::PaxSparse::default();
        let kind = match type_flag {
            0 if name.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File { size: stored },
            b'1' => EntryKind::HardLink { target: link() },
            b'2' => EntryKind::Symlink { target: link() },
            b'3' | b'4' => {
                let (major, minor) = header.device().map_err(problem)?;
                if type_flag == b'3' {
                    EntryKind::CharacterDevice { major, minor }
                } else {
                    EntryKind::BlockDevice { major, minor }
                }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            type_flag => return Err(problem(ArchiveProblem::EntryType { type_flag })),
        };
        let kind = match kind {
            EntryKind::File { .. } if is_sparse => EntryKind::File {
                size: self.begin_sparse(at, header, &pax.sparse, stored)?,
            },
            EntryKind::File { size } => {
                self.pieces = vec![Piece {
                    at: 0,
                    length: size,
                }];
                kind
            }
            _ if is_sparse => {
                return Err(problem(ArchiveProblem::Sparse {
                    problem: "it is not a file's",
                }));
            }
            kind => kind,
        };
        self.padding = padding(stored);
        let seconds = header.mtime().map_err(problem)?;
        Ok(Entry {
            name,
            kind,
            permissions: (header.mode().map_err(problem)? & 0o7777)
                .try_into()
                .unwrap_or(0),
            uid: pax.uid.map_or_else(|| header.uid(), Ok).map_err(problem)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok).map_err(problem)?,
            modified: pax.modified.unwrap_or(Time {
                seconds,
                nanoseconds: 0,
            }),
            accessed: pax.accessed,
            xattrs: pax.xattrs,
        })
    }

    /// The size of a sparse file, whose map becomes the pieces to be read.
    fn begin_sparse(
        &mut self,
        at: u64,
        header: &Header<'_>,
        pax: &pax::PaxSparse,
        stored: u64,
    ) -> Result<u64, LayerError> {
        let problem = |problem| LayerError::Archive {
            offset: at,
            source: ArchiveProblem::Sparse { problem },
        };
        let (mut pieces, size, stored) = if header.type_flag() == b'S' {
            if *pax != pax::PaxSparse::default() {
                return Err(problem("two kinds of map"));
            }
            let (map, extended, size) = header
                .sparse()
                .map_err(|source| LayerError::Archive { offset: at, source })?;
            (
                sparse::read_gnu(&mut self.input, map, extended)?,
                size,
                stored,
            )
        } else {
            let size = pax
                .real_size
                .ok_or_else(|| problem("it does not tell the file's size"))?;
            match pax.version {
                (Some(1), Some(0)) if pax.map.is_empty() => {
                    let (pieces, taken) = sparse::read_pax_1_0(&mut self.input, stored)?;
                    (pieces, size, stored - taken)
                }
                (None, None) | (Some(0), Some(0 | 1)) => {
                    let pieces = pax.map.chunks_exact(2).map(|pair| Piece {
                        at: pair[0],
                        length: pair[1],
                    });
                    (pieces.collect(), size, stored)
                }
                _ => return Err(problem("a kind that nobody writes")),
            }
        };
        sparse::check(&pieces, size, stored).map_err(problem)?;
        pieces.reverse();
        self.pieces = pieces;
        Ok(size)
    }

    /// The next bytes of the current file's content, and where they are in the file; none at its end.
    pub(crate) fn next_content(&mut self) -> Result<Option<(u64, &[u8])>, LayerError> {
        loop {
            match self.pieces.last_mut() {
                None => return Ok(None),
                Some(piece) if piece.length == 0 => {
                    self.pieces.pop();
                }
                Some(piece) => {
                    let bytes = self.input.take(piece.length)?;
                    let at = piece.at;
                    piece.at += bytes.len() as u64;
                    piece.length -= bytes.len() as u64;
                    return Ok(Some((at, bytes)));
                }
            }
        }
    }

    /// Reads what follows the archive, so that all bytes were seen.
    pub(crate) fn drain(&mut self) -> Result<(), LayerError> {
        self.input.drain()
    }
}

/// Whether an entry of this type never has content: links, devices, directories, pipes. Before ustar, directories were
/// files with a slash.
fn is_header_only(type_flag: u8, name: &[u8]) -> bool {
    matches!(type_flag, b'1'..=b'6') || (type_flag == 0 && name.ends_with(b"/"))
}

/// Bytes up to the next block.
fn padding(size: u64) -> u64 {
    // Sizes are below 2^63.
    size.next_multiple_of(BLOCK as u64) - size
}

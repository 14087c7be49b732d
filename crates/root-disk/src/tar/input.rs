//! The bytes of an archive as they come, in chunks.

use std::sync::Arc;

use crate::error::{ArchiveProblem, LayerError};

/// Bytes that several threads look at.
pub(crate) type Chunk = Arc<Vec<u8>>;

/// Where chunks come from.
pub(crate) trait Chunks {
    /// The next one; none at the end.
    fn next(&mut self) -> Result<Option<Chunk>, LayerError>;
    /// This one is not needed any more.
    fn done(&mut self, chunk: Chunk) {
        drop(chunk);
    }
}

/// Reads from chunks.
#[derive(Debug)]
pub(crate) struct Input<C> {
    chunks: C,
    chunk: Option<Chunk>,
    /// In `chunk`.
    at: usize,
    /// In the whole, in bytes.
    offset: u64,
}

impl<C: Chunks> Input<C> {
    pub(crate) fn new(chunks: C) -> Self {
        Self {
            chunks,
            chunk: None,
            at: 0,
            offset: 0,
        }
    }

    /// Bytes read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the current chunk, or of the next one when it is used up; zero at the end.
    fn available(&mut self) -> Result<usize, LayerError> {
        loop {
            if let Some(chunk) = &self.chunk
                && self.at < chunk.len()
            {
                return Ok(chunk.len() - self.at);
            }
            if let Some(used) = self.chunk.take() {
                self.chunks.done(used);
            }
            self.at = 0;
            self.chunk = self.chunks.next()?;
            if self.chunk.is_none() {
                return Ok(0);
            }
        }
    }

    /// One to `max` bytes, which is not zero. The end of the input is an error.
    pub(crate) fn take(&mut self, max: u64) -> Result<&[u8], LayerError> {
        let available = self.available()?;
        if available == 0 {
            return Err(self.truncated());
        }
        let length = usize::try_from(max).unwrap_or(usize::MAX).min(available);
        let at = self.at;
        self.at += length;
        self.offset += length as u64;
        Ok(self
            .chunk
            .as_ref()
            .map_or(&[], |chunk| &chunk[at..at + length]))
    }

    /// A whole block; false where the input ends right before it.
    pub(crate) fn read_block(&mut self, block: &mut [u8; 512]) -> Result<bool, LayerError> {
        if self.available()? == 0 {
            return Ok(false);
        }
        let mut filled = 0;
        while filled < block.len() {
            let bytes = self.take((block.len() - filled) as u64)?;
            block[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        }
        Ok(true)
    }

    /// Exactly `size` bytes. The caller keeps it small.
    pub(crate) fn read_vec(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let left = size - bytes.len() as u64;
            bytes.extend_from_slice(self.take(left)?);
        }
        Ok(bytes)
    }

    /// Passes over exactly `size` bytes.
    pub(crate) fn skip(&mut self, mut size: u64) -> Result<(), LayerError> {
        while size > 0 {
            size -= self.take(size)?.len() as u64;
        }
        Ok(())
    }

    /// Passes over `size` bytes; false where the input ends before.
    pub(crate) fn skip_unless_ended(&mut self, mut size: u64) -> Result<bool, LayerError> {
        while size > 0 {
            if self.available()? == 0 {
                return Ok(false);
            }
            size -= self.take(size)?.len() as u64;
        }
        Ok(true)
    }

    /// Passes over everything that is left.
    pub(crate) fn drain(&mut self) -> Result<(), LayerError> {
        while self.available()? > 0 {
            self.take(u64::MAX)?;
        }
        Ok(())
    }

    fn truncated(&self) -> LayerError {
        LayerError::Archive {
            offset: self.offset,
            source: ArchiveProblem::Truncated,
        }
    }
}

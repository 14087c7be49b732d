//! Blocks are appended, in order and each once; a thread of its own writes them to the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::error::{DiskError, OverLimit};
use crate::ext4::layout::BLOCK;
use crate::tree::Extent;

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1024 * 1024;
/// Bytes after which a write-back is begun.
const SYNC_BYTES: usize = 32 * 1024 * 1024;
/// Buffers that may wait to be written.
const WAITING_BUFFERS: usize = 3;

/// Appends blocks to a disk.
#[derive(Debug)]
pub(crate) struct BlockWriter {
    path: PathBuf,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are whole blocks.
    filled: usize,
    /// The number of the block at `filled`.
    next: u32,
    /// One more than the last that may be written.
    end: u32,
    full: SyncSender<Full>,
    spare: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<io::Result<File>>>,
}

impl BlockWriter {
    /// Appends from block `first` on, and up to `end`. `path` is for errors.
    pub(crate) fn new(file: File, path: PathBuf, first: u32, end: u32) -> Self {
        let (full, waiting) = sync_channel::<Full>(WAITING_BUFFERS);
        let (done, spare) = channel();
        let thread = std::thread::spawn(move || write(file, &waiting, &done));
        Self {
            path,
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
            next: first,
            end,
            full,
            spare,
            thread: Some(thread),
        }
    }

    /// The number that the next block will get.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// The block that is being filled. What it holds at first is anything.
    pub(crate) fn current(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..self.filled + BLOCK]
    }

    /// Takes the current block as it is; its number.
    pub(crate) fn commit(&mut self) -> Result<u32, DiskError> {
        let number = self.next;
        if number >= self.end {
            return Err(OverLimit {
                limit: "disk_bytes",
                allowed: u64::from(self.end) * BLOCK as u64,
                unit: "bytes",
            }
            .into());
        }
        self.next += 1;
        self.filled += BLOCK;
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(number)
    }

    /// Appends one whole block.
    pub(crate) fn append(&mut self, block: &[u8]) -> Result<u32, DiskError> {
        self.current().copy_from_slice(block);
        self.commit()
    }

    /// Leaves the next block out: a hole.
    pub(crate) fn leave_out(&mut self) -> Result<(), DiskError> {
        self.flush()?;
        self.next += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        let length = std::mem::take(&mut self.filled);
        if length == 0 {
            return Ok(());
        }
        let spare = self
            .spare
            .try_recv()
            .unwrap_or_else(|_| vec![0; BUFFER_BYTES]);
        let first = u64::from(self.next) - (length / BLOCK) as u64;
        let buffer = std::mem::replace(&mut self.buffer, spare);
        if self
            .full
            .send((first * BLOCK as u64, length, buffer))
            .is_err()
        {
            return Err(self.failure());
        }
        Ok(())
    }

    /// Why the thread ended before its time.
    fn failure(&mut self) -> DiskError {
        let error = match self.thread.take().map(join) {
            Some(Err(error)) => error,
            // It ends early for nothing but an error, which was told the first time.
            Some(Ok(_)) | None => io::Error::other("an earlier write failed"),
        };
        DiskError::io("write", &self.path, error)
    }

    /// Waits until everything is written; gives the file back. What was written last is not synced.
    pub(crate) fn finish(mut self) -> Result<File, DiskError> {
        self.flush()?;
        let Some(thread) = self.thread.take() else {
            return Err(self.failure());
        };
        drop(self.full);
        join(thread).map_err(|error| DiskError::io("write", &self.path, error))
    }
}

fn join(thread: JoinHandle<io::Result<File>>) -> io::Result<File> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Bytes to be written: where, how many, and a buffer that begins with them.
type Full = (u64, usize, Vec<u8>);

/// Writes everything that comes. Meanwhile what is written is brought to stable storage bit by bit, so that
/// little is left to wait for at the end.
fn write(file: File, full: &Receiver<Full>, done: &Sender<Vec<u8>>) -> io::Result<File> {
    std::thread::scope(|scope| {
        let (enough, wanted) = sync_channel::<()>(1);
        let syncing = scope.spawn(|| wanted.into_iter().try_for_each(|()| file.sync_data()));
        let mut unsynced = 0;
        let mut written = Ok(());
        for (offset, length, buffer) in full {
            written = file.write_all_at(&buffer[..length], offset);
            if written.is_err() {
                break;
            }
            unsynced += length;
            // When one is waiting to be done, that will do.
            if unsynced >= SYNC_BYTES && enough.try_send(()).is_ok() {
                unsynced = 0;
            }
            // When nobody wants buffers any more, this one is dropped.
            let _ = done.send(buffer);
        }
        drop(enough);
        // The kernel tells of a failed write-back only once.
        let synced = syncing
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(synced)
    })?;
    Ok(file)
}

/// Whether a block is all zeros. Such blocks of files are holes.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    block == ZEROS
}

/// The content of one file on its way to the disk.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Bytes so far, holes included.
    position: u64,
    extents: Vec<Extent>,
}

impl Content {
    /// Continues with these bytes.
    pub(crate) fn push(
        &mut self,
        writer: &mut BlockWriter,
        mut bytes: &[u8],
    ) -> Result<(), DiskError> {
        while !bytes.is_empty() {
            let within = self.within_block();
            let length = bytes.len().min(BLOCK - within);
            writer.current()[within..within + length].copy_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            self.position += length as u64;
            if self.within_block() == 0 {
                self.block_done(writer)?;
            }
        }
        Ok(())
    }

    /// Continues with zeros up to `position`.
    pub(crate) fn skip_to(
        &mut self,
        writer: &mut BlockWriter,
        position: u64,
    ) -> Result<(), DiskError> {
        let within = self.within_block();
        let block = BLOCK as u64;
        if within > 0 {
            let rest = usize::try_from((position - self.position).min((BLOCK - within) as u64))
                .unwrap_or(0);
            writer.current()[within..within + rest].fill(0);
            self.position += rest as u64;
            if self.within_block() == 0 {
                self.block_done(writer)?;
            }
        }
        if self.position < position {
            // At the begin of a block: whole blocks are left out, of the last a part is zero.
            self.position = position;
            let within = usize::try_from(position % block).unwrap_or(0);
            writer.current()[..within].fill(0);
        }
        Ok(())
    }

    /// No more; where everything is.
    pub(crate) fn finish(mut self, writer: &mut BlockWriter) -> Result<Vec<Extent>, DiskError> {
        if self.within_block() > 0 {
            self.skip_to(writer, self.position.next_multiple_of(BLOCK as u64))?;
        }
        self.extents.shrink_to_fit();
        Ok(self.extents)
    }

    /// Bytes of memory that the list of runs takes.
    pub(crate) fn memory(&self) -> u64 {
        (self.extents.capacity() * size_of::<Extent>()) as u64
    }

    fn within_block(&self) -> usize {
        usize::try_from(self.position % BLOCK as u64).unwrap_or(0)
    }

    /// The block before the position is full.
    fn block_done(&mut self, writer: &mut BlockWriter) -> Result<(), DiskError> {
        if is_zero(writer.current()) {
            return Ok(());
        }
        let physical = writer.commit()?;
        // Files are smaller than 2^32 blocks: `Limits::expanded_bytes` is capped.
        let logical = u32::try_from(self.position / BLOCK as u64 - 1).unwrap_or(u32::MAX);
        append_extent(&mut self.extents, logical, physical);
        Ok(())
    }
}

/// Adds one block to a list of runs.
pub(crate) fn append_extent(extents: &mut Vec<Extent>, logical: u32, physical: u32) {
    if let Some(last) = extents.last_mut()
        && last.logical + last.blocks == logical
        && last.physical + last.blocks == physical
        && last.blocks < MAX_EXTENT_BLOCKS
    {
        last.blocks += 1;
        return;
    }
    extents.push(Extent {
        logical,
        physical,
        blocks: 1,
    });
}

/// Blocks of one run, by ext4.
const MAX_EXTENT_BLOCKS: u32 = 32768;

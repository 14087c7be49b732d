//! The bytes that one side sent and nobody has used yet. A connection that waits for bytes has no memory for them: a thread's spare
//! memory is given to the first one for which some have come.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::limits::{BUFFER_BYTES, MAX_SPARE_BUFFERS};

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes between `start` and `end` of its memory.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn data(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub(crate) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// These bytes were used.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        if self.is_empty() {
            self.clear();
        }
    }

    /// Gives its memory to whoever needs some next.
    pub(crate) fn clear(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        (self.start, self.end) = (0, 0);
        if memory.len() == BUFFER_BYTES {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE_BUFFERS {
                    spare.push(memory);
                }
            });
        }
    }

    /// Reads what has come, behind what there is, which is `limit` bytes at most. `Ok(0)`: the other side ended.
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        self.make_room(limit)?;
        let mut unused = ReadBuf::new(&mut self.memory[self.end..]);
        let polled = Pin::new(stream).poll_read(context, &mut unused);
        let read = unused.filled().len();
        self.end += read;
        if self.is_empty() {
            self.clear();
        }
        ready!(polled)?;
        Poll::Ready(Ok(read))
    }

    fn make_room(&mut self, limit: usize) -> io::Result<()> {
        if self.memory.is_empty() {
            self.memory = SPARE
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        }
        if self.end < self.memory.len() {
            return Ok(());
        }
        if self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else if self.memory.len() < limit {
            let larger = (self.memory.len() * 2).min(limit);
            self.memory.resize(larger, 0);
        } else {
            return Err(io::Error::other(
                "a message needs more memory than it may have",
            ));
        }
        Ok(())
    }
}

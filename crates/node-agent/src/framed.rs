//! A connection to a guest as frames.

use std::io;
use std::time::Duration;

use guest_protocol::{Frame as _, FrameBuffer, FrameError, GuestFrame, HostFrame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::host::GuestStream;

/// A frame must be taken by the guest within this time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that the node closes may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes that are read and thrown away while a connection is closed.
const CLOSE_BYTES: usize = 1024 * 1024;
/// Bytes asked for by one read.
const READ_BYTES: usize = 64 * 1024;

/// Why a connection to a guest is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FramedError {
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the guest violated the guest protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the guest did not take a frame in time")]
    Late,
}

/// Both directions.
#[derive(Debug)]
pub(crate) struct FramedGuest {
    pub(crate) reader: GuestReader,
    pub(crate) writer: GuestWriter,
}

impl FramedGuest {
    pub(crate) fn new(stream: Box<dyn GuestStream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: GuestReader {
                reader,
                buffer: FrameBuffer::default(),
                chunk: vec![0; READ_BYTES],
            },
            writer: GuestWriter(writer),
        }
    }

    /// The next frame; none at the end. Cancel-safe.
    pub(crate) async fn read(&mut self) -> Result<Option<GuestFrame>, FramedError> {
        self.reader.read().await
    }

    /// Sends a frame to the guest, which must take it in time.
    pub(crate) async fn write(&mut self, frame: &HostFrame) -> Result<(), FramedError> {
        match timeout(WRITE_TIMEOUT, self.writer.write(frame)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(FramedError::Late),
        }
    }

    /// Closes the connection so that the guest hears of it: what it has sent by then is read first, within bounds. A Unix
    /// socket that is closed with bytes unread is *reset*, and QEMU's vsock device does not tell its guest of that.
    pub(crate) async fn close(mut self) {
        let closing = async {
            self.writer.0.shutdown().await?;
            let mut bytes = 0;
            while bytes < CLOSE_BYTES {
                match self.reader.reader.read(&mut self.reader.chunk).await? {
                    0 => break,
                    count => bytes += count,
                }
            }
            Ok::<_, io::Error>(())
        };
        // A guest that does not take part is not waited for.
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}

/// What a guest reader. Holds at most one frame and one read's bytes.
#[derive(Debug)]
pub(crate) struct GuestReader {
    reader: ReadHalf<Box<dyn GuestStream>>,
    buffer: FrameBuffer,
    chunk: Vec<u8>,
}

impl GuestReader {
    /// The next frame that was already read.
    pub(crate) fn buffered(&mut self) -> Result<Option<GuestFrame>, FramedError> {
        Ok(self.buffer.next()?)
    }

    /// The next frame; none at the end. Cancel-safe.
    pub(crate) async fn read(&mut self) -> Result<Option<GuestFrame>, FramedError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            let count = self.reader.read(&mut self.chunk).await?;
            if count == 0 {
                return Ok(None);
            }
            self.buffer.push(&self.chunk[..count]);
        }
    }
}

/// What a guest writer.
#[derive(Debug)]
pub(crate) struct GuestWriter(WriteHalf<Box<dyn GuestStream>>);

impl GuestWriter {
    /// Tells the guest, however long it takes to listen.
    pub(crate) async fn write(&mut self, frame: &HostFrame) -> io::Result<()> {
        self.0.write_all(&frame.encode()).await
    }
}

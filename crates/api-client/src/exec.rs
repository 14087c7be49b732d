//! A connection upgraded to exec frames: the input and output of a command.

use std::io;
use std::time::Duration;

use api::exec::UserFrame;
use guest_protocol::{Frame, FrameBuffer, GuestFrame};
use reqwest::Upgraded;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

/// Bytes asked for by one read.
const READ_BYTES: usize = 32 * 1024;
/// How long the other end may take to hang up once all was sent.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Frames both ways. Dropping it cuts the stream, and ends the command.
#[derive(Debug)]
pub struct ExecStream<Received> {
    /// Frames of the other end.
    pub reader: ExecReader<Received>,
    /// Frames of this end.
    pub writer: ExecWriter,
}

/// The stream as a user has it: they receive the output of the command.
pub type UserExec = ExecStream<GuestFrame>;
/// The stream as a node has it: it receives the input of the user.
pub type NodeExec = ExecStream<UserFrame>;

impl<Received: Frame> ExecStream<Received> {
    pub(crate) fn new(connection: Upgraded) -> Self {
        let (reader, writer) = tokio::io::split(connection);
        Self {
            reader: ExecReader {
                reader,
                buffer: FrameBuffer::default(),
                chunk: vec![0; READ_BYTES],
                frames: std::marker::PhantomData,
            },
            writer: ExecWriter { writer },
        }
    }

    /// Ends the stream so that what was sent last is not lost: bytes of the other end that nobody
    /// read would make the kernel reset the connection.
    pub async fn hang_up(mut self) {
        let hanging_up = async {
            self.writer.writer.shutdown().await?;
            while self.reader.reader.read(&mut self.reader.chunk).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        // One that does not hang up in time, or broke, is cut.
        let _ = tokio::time::timeout(HANG_UP_TIMEOUT, hanging_up).await;
    }
}

/// Reads the frames of the other end.
#[derive(Debug)]
pub struct ExecReader<Received> {
    reader: ReadHalf<Upgraded>,
    buffer: FrameBuffer,
    chunk: Vec<u8>,
    frames: std::marker::PhantomData<fn() -> Received>,
}

impl<Received: Frame> ExecReader<Received> {
    /// The next frame; none when the other end has left. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke, or what came is no frame.
    pub async fn next(&mut self) -> io::Result<Option<Received>> {
        loop {
            if let Some(frame) = self.buffer.next().map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            match self.reader.read(&mut self.chunk).await {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.push(&self.chunk[..count]),
                // TLS without its goodbye: the other end was killed.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes frames to the other end.
#[derive(Debug)]
pub struct ExecWriter {
    writer: WriteHalf<Upgraded>,
}

impl ExecWriter {
    /// Sends a frame, and waits until the connection has taken it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, frame: &impl Frame) -> io::Result<()> {
        self.writer.write_all(&frame.encode()).await?;
        self.writer.flush().await
    }
}

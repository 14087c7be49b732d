//! Log lines as they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use api::node::{LogLine, MAX_STREAM_LINE_BYTES};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::BoxStream;

use crate::ClientError;

const OPERATION: &str = "reading logs";

/// Log lines as they come; ends when the server has no more to say. Dropping it ends the stream
/// at the server and at the nodes, too.
pub struct LogStream {
    server: String,
    body: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    buffer: BytesMut,
    /// How much of the buffer was searched for a line feed already.
    searched: usize,
    ended: bool,
}

impl std::fmt::Debug for LogStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStream")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl LogStream {
    pub(crate) fn new(
        server: String,
        body: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    ) -> Self {
        Self {
            server,
            body,
            buffer: BytesMut::new(),
            searched: 0,
            ended: false,
        }
    }

    fn next_line(&mut self) -> Option<Bytes> {
        let found = self.buffer[self.searched..]
            .iter()
            .position(|b| *b == b'\n');
        let Some(at) = found else {
            self.searched = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.searched + at).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        Some(line)
    }

    fn bad(&self, cause: String) -> ClientError {
        ClientError::Answer {
            operation: OPERATION,
            server: self.server.clone(),
            cause,
        }
    }
}

impl Stream for LogStream {
    type Item = Result<LogLine, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(line) = self.next_line() {
                if line.is_empty() {
                    continue; // The server's sign of life.
                }
                let parsed = serde_json::from_slice(&line).map_err(|e| self.bad(e.to_string()));
                self.ended = parsed.is_err();
                return Poll::Ready(Some(parsed));
            }
            if self.buffer.len() > MAX_STREAM_LINE_BYTES {
                self.ended = true;
                let error = self.bad(format!("a line is over {MAX_STREAM_LINE_BYTES} bytes"));
                return Poll::Ready(Some(Err(error)));
            }
            match std::task::ready!(self.body.as_mut().poll_next(cx)) {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(source)) => {
                    self.ended = true;
                    let error = ClientError::of_request(
                        OPERATION,
                        &self.server,
                        std::time::Duration::ZERO,
                        source,
                    );
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.ended = true;
                    if !self.buffer.is_empty() {
                        let error = self.bad("the last line was cut".to_owned());
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }
}

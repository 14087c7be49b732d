//! Log lines as they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use api::node::{LogLine, MAX_STREAM_LINE_BYTES};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::BoxStream;
use tokio::time::Sleep;

use crate::ClientError;
use crate::silence::STREAM_SILENCE;

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
    /// Whether the server has given a sign of life: it does where lines may come, however late.
    gives_signs: bool,
    /// Until when what is waited for is to come, once it is waited for.
    silence: Option<Pin<Box<Sleep>>>,
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
            gives_signs: false,
            silence: None,
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

    /// Nothing has come. Who reads slowly is not the one who waits: time counts from the first look that found nothing.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<LogLine, ClientError>>> {
        if !self.gives_signs {
            return Poll::Pending;
        }
        let silence = self
            .silence
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(STREAM_SILENCE)));
        std::task::ready!(silence.as_mut().poll(cx));
        self.ended = true;
        Poll::Ready(Some(Err(ClientError::TimedOut {
            operation: OPERATION,
            server: self.server.clone(),
            limit: STREAM_SILENCE,
        })))
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
                    self.gives_signs = true;
                    continue;
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
            let Poll::Ready(next) = self.body.as_mut().poll_next(cx) else {
                return self.poll_silence(cx);
            };
            self.silence = None;
            match next {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use futures_util::{StreamExt as _, stream};
    use tokio::time::{Instant, sleep};

    use super::*;

    /// A body that says something after each of these times, in seconds, and nothing after the last.
    fn body(times: &'static [u64]) -> BoxStream<'static, Result<Bytes, reqwest::Error>> {
        let signs = stream::iter(times).then(|seconds| async {
            sleep(Duration::from_secs(*seconds)).await;
            Ok(Bytes::from_static(b"\n"))
        });
        signs.chain(stream::pending()).boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn case_a_log_that_is_followed_through_a_connection_that_stalls_ends() {
        let began = Instant::now();
        let mut lines = LogStream::new("server".to_owned(), body(&[15, 15, 30]));
        let error = lines.next().await.unwrap().unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(error.to_string().contains("within 35 s"), "{error}");
        assert_eq!(began.elapsed(), Duration::from_secs(60 + 35));
        assert!(lines.next().await.is_none());

        // Who reads nothing for long, and then goes on, has missed nothing.
        let mut lines = LogStream::new("server".to_owned(), body(&[15]));
        let look = tokio::time::timeout(Duration::from_secs(20), lines.next()).await;
        assert!(look.is_err());
        // The past is waited for however long it takes: the server gives no signs meanwhile.
        let mut past = LogStream::new("server".to_owned(), body(&[]));
        let look = tokio::time::timeout(Duration::from_secs(600), past.next()).await;
        assert!(look.is_err());
    }
}

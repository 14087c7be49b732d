//! One request at one backend: the request goes there while its answer comes back, both on the task of the client's connection.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use http1::{BadChunk, BadResponse, HeadEnd, find_response_end};
use prometheus_client::metrics::counter::Counter;

use crate::backend::BackendConnection;
use crate::body::Body;
use crate::client::{Client, Stream, poll_write};
use crate::limits::{
    BUFFER_BYTES, CLIENT_WRITE_TIMEOUT, HALF_CLOSED_TIMEOUT, MAX_HEAD_BYTES, MIN_BYTES_PER_SECOND,
    REQUEST_STALL_TIMEOUT, RESPONSE_HEAD_TIMEOUT,
};
use crate::pace::Pace;
use crate::timer::{Timer, now};
use crate::upload::{Upload, UploadError};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Why a backend gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the connection to {0} broke before it answered: {1}")]
    Broken(SocketAddr, #[source] io::Error),
    #[error("{0} answered with what is no HTTP/1.1: {1}")]
    Malformed(SocketAddr, #[source] BadResponse),
    #[error("{0} did not answer within {limit} s", limit = RESPONSE_HEAD_TIMEOUT.as_secs())]
    TooLate(SocketAddr),
    #[error(
        "the request's body stalled for {limit} s",
        limit = REQUEST_STALL_TIMEOUT.as_secs()
    )]
    ClientStalled,
    #[error(
        "the client sends less than {MIN_BYTES_PER_SECOND} bytes of the request's body a second"
    )]
    ClientSlow,
    #[error("{0}")]
    Client(#[from] UploadError),
}

/// Why an answer that had begun was cut off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the connection to {0} broke within its answer: {1}")]
    Backend(SocketAddr, #[source] io::Error),
    #[error("the body that {0} answered with is malformed: {1}")]
    Malformed(SocketAddr, #[source] BadChunk),
    #[error("the client's connection broke: {0}")]
    Client(#[source] io::Error),
    #[error("the client took nothing for {} s", CLIENT_WRITE_TIMEOUT.as_secs())]
    ClientStalled,
    #[error("the client takes less than {MIN_BYTES_PER_SECOND} bytes a second")]
    ClientSlow,
    #[error("{0}")]
    Upload(#[from] UploadError),
}

/// What takes part in it.
pub(crate) struct Exchange<'a, S> {
    pub(crate) client: &'a mut Client<S>,
    pub(crate) backend: &'a mut BackendConnection,
    pub(crate) upload: &'a mut Upload,
    /// What is left of the request's head.
    pub(crate) head: &'a [u8],
    /// What is to be written to the client before a body, and how much of it was.
    pub(crate) to_client: &'a mut Vec<u8>,
    pub(crate) written: usize,
    pub(crate) timer: &'a mut Timer,
}

/// An answer's body on its way to the client.
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) body: Body,
    pub(crate) passing: Passing,
    /// Bytes at the begin of the backend's buffer that are to be written.
    checked: usize,
    /// Whether trailers were left out: where the answer ends on the backend's connection is not known.
    pub(crate) is_without_trailers: bool,
    /// Bytes of data that came.
    pub(crate) bytes: u64,
    pace: Pace,
    sent: Counter,
}

/// How a body passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    /// As it is.
    Whole,
    /// Its data without its chunks, for a client of HTTP/1.0.
    Unchunked,
    /// In chunks, where the backend ends it with its connection.
    Chunked,
}

impl Download {
    pub(crate) fn new(body: Body, passing: Passing, sent: Counter) -> Self {
        Self {
            body,
            passing,
            checked: 0,
            is_without_trailers: false,
            bytes: 0,
            pace: Pace::default(),
            sent,
        }
    }
}

impl<S: Stream> Exchange<'_, S> {
    fn poll_upload(
        &mut self,
        context: &mut Context<'_>,
        moved: &mut bool,
    ) -> Poll<Result<(), UploadError>> {
        let stream = &mut self.backend.stream;
        (self.upload).poll(context, self.client, stream, &mut self.head, moved)
    }

    /// Writes what is to be written to the client first.
    fn poll_to_client(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.to_client.len() {
            let rest = &self.to_client[self.written..];
            let polled = poll_write(&mut self.client.stream, context, rest, &[]);
            self.written += std::task::ready!(polled)?;
        }
        self.to_client.clear();
        self.written = 0;
        std::pin::Pin::new(&mut self.client.stream).poll_flush(context)
    }

    /// Sends the request until the head of an answer is in the backend's buffer; returns how long that is. With `says_continue` the client is told to send the
    /// body when the backend has the head.
    pub(crate) async fn head(&mut self, says_continue: bool) -> Result<usize, NoAnswer> {
        let mut says_continue = says_continue;
        let mut scanned = 0;
        let mut last = now();
        poll_fn(|context| {
            let mut moved = false;
            let uploaded = self.poll_upload(context, &mut moved);
            if let Poll::Ready(Err(error)) = uploaded {
                return Poll::Ready(Err(error.into()));
            }
            if says_continue && self.head.is_empty() {
                says_continue = false;
                // Who has sent some of it does not wait.
                if self.client.buffer.is_empty() && !self.upload.has_come() {
                    self.to_client.extend_from_slice(CONTINUE);
                }
            }
            if !self.to_client.is_empty()
                && let Poll::Ready(Err(error)) = self.poll_to_client(context)
            {
                return Poll::Ready(Err(UploadError::Broken(error).into()));
            }
            let address = self.backend.address;
            loop {
                let bytes = self.backend.buffer.data();
                match find_response_end(bytes, scanned) {
                    HeadEnd::At(end) => return Poll::Ready(Ok(end)),
                    HeadEnd::NotYet(line) => scanned = line,
                    HeadEnd::BareLineFeed => {}
                }
                if bytes.len() >= MAX_HEAD_BYTES {
                    let error = BadResponse::HeadTooLarge;
                    return Poll::Ready(Err(NoAnswer::Malformed(address, error)));
                }
                let buffer = &mut self.backend.buffer;
                match buffer.poll_read(&mut self.backend.stream, context, MAX_HEAD_BYTES) {
                    Poll::Ready(Ok(0)) => {
                        let error = io::ErrorKind::UnexpectedEof.into();
                        return Poll::Ready(Err(NoAnswer::Broken(address, error)));
                    }
                    Poll::Ready(Ok(_)) => moved = true,
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(NoAnswer::Broken(address, error)));
                    }
                    Poll::Pending => break,
                }
            }
            if uploaded.is_ready()
                && let Poll::Ready(error) = self.client.poll_broken(context)
            {
                return Poll::Ready(Err(UploadError::Broken(error).into()));
            }
            if moved {
                last = now();
            }
            let upload = &mut *self.upload;
            let too_slow = (upload.pace).update(upload.waits_for_client, upload.bytes, now);
            let (due, error) = match too_slow {
                None => (last + RESPONSE_HEAD_TIMEOUT, NoAnswer::TooLate(address)),
                Some(at) if at < last + REQUEST_STALL_TIMEOUT => (at, NoAnswer::ClientSlow),
                Some(_) => (last + REQUEST_STALL_TIMEOUT, NoAnswer::ClientStalled),
            };
            self.timer.set(due);
            self.timer.poll(context).map(|()| Err(error))
        })
        .await
    }

    /// Passes the answer's body on, behind what is to be written first. The request's body goes on meanwhile.
    pub(crate) async fn body(&mut self, download: &mut Download) -> Result<(), Cut> {
        let mut last = None;
        poll_fn(|context| {
            let mut moved = false;
            let written = self.poll_download(context, download, &mut moved);
            let is_blocked = match written {
                Poll::Ready(done) => return Poll::Ready(done),
                Poll::Pending => download.checked > 0 || !self.to_client.is_empty(),
            };
            match self.poll_upload(context, &mut moved) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) => {
                    if let Poll::Ready(error) = self.client.poll_broken(context) {
                        return Poll::Ready(Err(Cut::Client(error)));
                    }
                }
                Poll::Pending => {}
            }
            let last = match last {
                Some(last) if !moved => last,
                _ => *last.insert(now()),
            };
            let mut error = Cut::ClientStalled;
            if let Some(too_slow) = download.pace.update(is_blocked, download.bytes, now) {
                let stalled = last + CLIENT_WRITE_TIMEOUT;
                if too_slow < stalled {
                    error = Cut::ClientSlow;
                }
                self.timer.set(stalled.min(too_slow));
            } else if self.client.has_ended {
                self.timer.set(last + HALF_CLOSED_TIMEOUT);
            } else {
                self.timer.stop();
            }
            self.timer.poll(context).map(|()| Err(error))
        })
        .await
    }

    fn poll_download(
        &mut self,
        context: &mut Context<'_>,
        download: &mut Download,
        moved: &mut bool,
    ) -> Poll<Result<(), Cut>> {
        let address = self.backend.address;
        loop {
            if download.checked == 0 {
                self.check(download)
                    .map_err(|error| Cut::Malformed(address, error))?;
            }
            let first = &self.to_client[self.written..];
            let second = &self.backend.buffer.data()[..download.checked];
            if !first.is_empty() || !second.is_empty() {
                let stream = &mut self.client.stream;
                let polled = poll_write(stream, context, first, second);
                let bytes = std::task::ready!(polled).map_err(Cut::Client)?;
                let of_first = bytes.min(first.len());
                self.written += of_first;
                download.checked -= bytes - of_first;
                self.backend.buffer.consume(bytes - of_first);
                *moved = true;
                continue;
            }
            self.to_client.clear();
            self.written = 0;
            let stream = std::pin::Pin::new(&mut self.client.stream);
            let flushed = stream.poll_flush(context).map_err(Cut::Client)?;
            if download.body.is_done() {
                return flushed.map(Ok);
            }
            let buffer = &mut self.backend.buffer;
            let polled = buffer.poll_read(&mut self.backend.stream, context, BUFFER_BYTES);
            let read = std::task::ready!(polled).map_err(|error| Cut::Backend(address, error))?;
            *moved = true;
            if read > 0 {
                continue;
            }
            if !matches!(download.body, Body::UntilClose) {
                let error = io::ErrorKind::UnexpectedEof.into();
                return Poll::Ready(Err(Cut::Backend(address, error)));
            }
            download.body = Body::Length(0);
            if download.passing == Passing::Chunked {
                self.to_client.extend_from_slice(LAST_CHUNK);
            }
        }
    }

    /// Finds what is to be written next in the backend's buffer.
    pub(crate) fn check(&mut self, download: &mut Download) -> Result<(), BadChunk> {
        match self.find(download) {
            // All data has passed by then, so the answer is whole without them.
            Err(BadChunk::Trailer) => {
                tracing::warn!(
                    backend = %self.backend.address,
                    "an app's answer has trailers that are no headers; they are left out"
                );
                self.backend.buffer.clear();
                if download.passing == Passing::Whole {
                    self.to_client.extend_from_slice(b"\r\n");
                }
                download.body = Body::Length(0);
                download.is_without_trailers = true;
                Ok(())
            }
            found => found,
        }
    }

    fn find(&mut self, download: &mut Download) -> Result<(), BadChunk> {
        let buffer = &mut self.backend.buffer;
        let mut data = 0;
        match download.passing {
            Passing::Whole => {
                let part = download.body.take(buffer.data())?;
                download.checked = part.bytes;
                data = part.data;
            }
            Passing::Unchunked => loop {
                let part = download.body.take_one(buffer.data())?;
                if part.bytes == 0 || part.data > 0 {
                    download.checked = part.bytes;
                    data = part.data;
                    break;
                }
                buffer.consume(part.bytes);
            },
            // What was made of the last piece is written first.
            Passing::Chunked if self.to_client.len() > self.written => {}
            Passing::Chunked => {
                data = buffer.data().len();
                if data > 0 && matches!(download.body, Body::UntilClose) {
                    let size = format!("{data:x}\r\n");
                    self.to_client.extend_from_slice(size.as_bytes());
                    self.to_client.extend_from_slice(buffer.data());
                    self.to_client.extend_from_slice(b"\r\n");
                    buffer.clear();
                }
            }
        }
        download.bytes += data as u64;
        download.sent.inc_by(data as u64);
        Ok(())
    }
}

//! One TCP connection, carried by a forward stream: the same at both ends of it, the user's machine and the node.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use api::forward::{ForwardFailure, ForwardFailureKind, ForwardFrame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::exec::ExecStream;
use crate::silence::{STREAM_LOST, STREAM_SIGN_OF_LIFE, unless_silent};

/// The stream of one forwarded connection. Dropping it cuts the stream, which resets the connection at the other end.
pub type ForwardStream = ExecStream<ForwardFrame>;

/// Bytes that are read of a TCP connection at a time. As many are under way in each direction at most, beside what the kernels
/// hold: a slow receiver slows its sender down.
const READ_BYTES: usize = 32 * 1024;

/// How carrying ended early.
enum Broken {
    /// This end's TCP connection broke, or is to end: the other end is told.
    Here(ForwardFailure),
    /// The other end said so, or has left.
    There(ForwardFailure),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Here(reset(&error))
    }
}

fn reset(error: &io::Error) -> ForwardFailure {
    ForwardFailure::new(ForwardFailureKind::Reset, error.to_string())
}

/// Carries bytes both ways until both directions have ended, each by itself: half-closed connections stay open in the other
/// direction. `gone` is ready when the connection is to be ended before that, with the reason. `silent` is called where the stream stalls
/// ([`crate::STREAM_SILENCE`]); one that stays so is cut.
///
/// # Errors
/// The connection, the stream or the other end's connection broke, or `gone` was ready. This end's connection is reset then, and
/// so is the other's.
pub async fn carry(
    mut connection: TcpStream,
    mut stream: ForwardStream,
    gone: impl Future<Output = ForwardFailure>,
    silent: impl Fn(),
) -> Result<(), ForwardFailure> {
    // A frame that was begun and not sent to its end: nothing may follow it.
    let in_frame = AtomicBool::new(false);
    let carried = {
        let (mut source, mut sink) = connection.split();
        let (reader, writer) = (&mut stream.reader, &mut stream.writer);
        let to_stream = async {
            let mut bytes = vec![0; READ_BYTES];
            loop {
                let read = tokio::time::timeout(STREAM_SIGN_OF_LIFE, source.read(&mut bytes));
                let count = read.await.ok().transpose()?;
                let frame = match count {
                    // A sign of life: no bytes.
                    None => ForwardFrame::Data(Vec::new()),
                    Some(0) => ForwardFrame::End,
                    Some(count) => ForwardFrame::Data(bytes[..count].to_vec()),
                };
                in_frame.store(true, Ordering::Relaxed);
                writer
                    .send(&frame)
                    .await
                    .map_err(|e| Broken::There(reset(&e)))?;
                in_frame.store(false, Ordering::Relaxed);
                if count == Some(0) {
                    return Ok::<(), Broken>(());
                }
            }
        };
        let from_stream = async {
            let mut gives_signs = false;
            loop {
                let next = unless_silent(gives_signs, reader.next(), &silent).await;
                let Some(next) = next else {
                    return Err(Broken::There(stalled()));
                };
                match next {
                    Ok(Some(ForwardFrame::Data(bytes))) if bytes.is_empty() => gives_signs = true,
                    Ok(Some(ForwardFrame::Data(bytes))) => sink.write_all(&bytes).await?,
                    Ok(Some(ForwardFrame::End)) => {
                        // One that was closed meanwhile has no direction left to end.
                        let _ = sink.shutdown().await;
                        return Ok::<(), Broken>(());
                    }
                    Ok(Some(ForwardFrame::Failed(failure))) => return Err(Broken::There(failure)),
                    Ok(Some(ForwardFrame::Opened)) => {
                        return Err(Broken::Here(ForwardFailure::new(
                            ForwardFailureKind::Reset,
                            "the stream has what does not belong there",
                        )));
                    }
                    Ok(None) => return Err(Broken::There(cut())),
                    Err(error) => return Err(Broken::There(reset(&error))),
                }
            }
        };
        let both = async { tokio::try_join!(to_stream, from_stream).map(|_| ()) };
        tokio::select! {
            carried = both => carried,
            failure = gone => Err(Broken::Here(failure)),
        }
    };
    let failure = match carried {
        Ok(()) => {
            stream.hang_up().await;
            return Ok(());
        }
        Err(Broken::There(failure)) => failure,
        Err(Broken::Here(failure)) => {
            let last = ForwardFrame::Failed(failure.clone());
            // blocks: a flag in memory
            if !in_frame.load(Ordering::Relaxed) && stream.writer.send(&last).await.is_ok() {
                stream.hang_up().await;
            }
            failure
        }
    };
    // A connection that did not end well does not look as if it had.
    let _ = connection.set_zero_linger();
    Err(failure)
}

/// Nothing came on the stream for too long.
fn stalled() -> ForwardFailure {
    let seconds = STREAM_LOST.as_secs();
    ForwardFailure::new(
        ForwardFailureKind::Reset,
        format!("nothing has come through the server for {seconds} s: the connection to it stalls"),
    )
}

/// The stream ended before its connection did.
fn cut() -> ForwardFailure {
    ForwardFailure::new(
        ForwardFailureKind::Reset,
        "the stream was cut: was the server or the node's agent restarted, or your token revoked?",
    )
}

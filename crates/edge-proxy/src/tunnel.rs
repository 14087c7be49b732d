//! An upgraded connection: bytes both ways, on the task of the client's connection, until both ends have closed.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::backend::BackendConnection;
use crate::buffer::Buffer;
use crate::client::{Client, Stream, poll_write};
use crate::limits::{BUFFER_BYTES, TUNNEL_IDLE_TIMEOUT};
use crate::timer::Timer;

/// How far one direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Open,
    /// Its sender has ended; what is left is written.
    Ending,
    Closed,
}

/// Why a tunnel ended, other than by its ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelEnd {
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("nothing moved for {} s", TUNNEL_IDLE_TIMEOUT.as_secs())]
    Idle,
}

/// Copies both ways. What either side has sent already is in its buffer.
pub(crate) async fn carry<S: Stream>(
    client: &mut Client<S>,
    backend: &mut BackendConnection,
    timer: &mut Timer,
) -> Result<(), TunnelEnd> {
    let mut up = if client.has_ended {
        Direction::Ending
    } else {
        Direction::Open
    };
    let mut down = Direction::Open;
    timer.set(Instant::now() + TUNNEL_IDLE_TIMEOUT);
    poll_fn(|context| {
        let mut moved = false;
        let (from, to) = (&mut client.stream, &mut backend.stream);
        poll_copy(context, from, &mut client.buffer, to, &mut up, &mut moved)?;
        let (from, to) = (&mut backend.stream, &mut client.stream);
        poll_copy(
            context,
            from,
            &mut backend.buffer,
            to,
            &mut down,
            &mut moved,
        )?;
        if (up, down) == (Direction::Closed, Direction::Closed) {
            return Poll::Ready(Ok(()));
        }
        if moved {
            timer.set(Instant::now() + TUNNEL_IDLE_TIMEOUT);
        }
        timer.poll(context).map(|()| Err(TunnelEnd::Idle))
    })
    .await
}

/// Copies one way what can be copied now.
fn poll_copy<R, W>(
    context: &mut Context<'_>,
    from: &mut R,
    buffer: &mut Buffer,
    to: &mut W,
    direction: &mut Direction,
    moved: &mut bool,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while *direction != Direction::Closed {
        if !buffer.is_empty() {
            match poll_write(to, context, buffer.data(), &[]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(written) => buffer.consume(written?),
            }
            *moved = true;
            continue;
        }
        if *direction == Direction::Ending {
            match Pin::new(&mut *to).poll_shutdown(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(ended) => ended?,
            }
            *direction = Direction::Closed;
            return Ok(());
        }
        match buffer.poll_read(from, context, BUFFER_BYTES) {
            Poll::Pending => {
                if let Poll::Ready(flushed) = Pin::new(&mut *to).poll_flush(context) {
                    flushed?;
                }
                return Ok(());
            }
            Poll::Ready(Ok(0)) => *direction = Direction::Ending,
            Poll::Ready(read) => {
                read?;
                *moved = true;
            }
        }
    }
    Ok(())
}

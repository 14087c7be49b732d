//! An upgraded connection: bytes both ways, on the task of the client's connection, until both ends have closed.
//!
//! ```text
//!   open --> (both ends have closed) done
//!      \-> one end takes no more: what it sent before is passed on, for a moment --> broken
//!      \-> one end cannot be read any more, or nothing moves --> broken
//! ```
//!
//! What is broken is reset by whoever has the connections: neither end takes what was cut off for whole.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::buffer::Buffer;
use crate::client::poll_write;
use crate::limits::{BUFFER_BYTES, LINGER_TIMEOUT, TUNNEL_IDLE_TIMEOUT};
use crate::timer::{Timer, now};

/// How far one direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Open,
    /// It goes on until its sender has no more, and nobody is told of that: the other direction broke.
    Last,
    /// Its sender has ended; what is left is written.
    Ending,
    Closed,
}

/// Bytes that moved in one direction.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) read: usize,
    pub(crate) written: usize,
}

/// Which end of a direction broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// Its sender. All that was read of it is written.
    #[error("{0}")]
    From(#[source] io::Error),
    /// Its receiver, which may have sent what was not read yet.
    #[error("{0}")]
    To(#[source] io::Error),
}

impl From<CopyError> for io::Error {
    fn from(error: CopyError) -> Self {
        let (CopyError::From(error) | CopyError::To(error)) = error;
        error
    }
}

/// Why a tunnel ended, other than by its ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelEnd {
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("nothing moved for {} s", TUNNEL_IDLE_TIMEOUT.as_secs())]
    Idle,
    #[error("the edge ends")]
    CutOff,
}

/// One end of a tunnel, and what it has sent already.
pub(crate) type End<'a, S> = (&'a mut S, &'a mut Buffer);

/// How far a tunnel is.
struct Ways {
    up: Direction,
    down: Direction,
    /// Why one of them is closed, where that is not its end.
    broken: Option<io::Error>,
}

/// Copies both ways, until both ends have closed. `has_ended`: the client has closed its sending side. `idle`: how long nothing may move; without, for ever.
/// `tell` is told what moves, from the client and to it.
pub(crate) async fn carry<C, B>(
    client: End<'_, C>,
    backend: End<'_, B>,
    has_ended: bool,
    idle: Option<Duration>,
    timer: &mut Timer,
    tell: impl Fn(Moved, Moved),
) -> Result<(), TunnelEnd>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let ((client, of_client), (backend, of_backend)) = (client, backend);
    let mut ways = Ways {
        up: if has_ended {
            Direction::Ending
        } else {
            Direction::Open
        },
        down: Direction::Open,
        broken: None,
    };
    match idle {
        Some(idle) => timer.set(now() + idle),
        None => timer.stop(),
    }
    poll_fn(|context| {
        let (mut up, mut down) = (Moved::default(), Moved::default());
        let was_broken = ways.broken.is_some();
        let (from, to) = (&mut *client, &mut *backend);
        let copied = poll_copy(context, from, of_client, to, &mut ways.up, &mut up);
        let copied = ways.note(copied, true).and_then(|()| {
            let (from, to) = (&mut *backend, &mut *client);
            let copied = poll_copy(context, from, of_backend, to, &mut ways.down, &mut down);
            ways.note(copied, false)
        });
        tell(up, down);
        copied?;
        if (ways.up, ways.down) == (Direction::Closed, Direction::Closed) {
            return Poll::Ready(ways.end());
        }
        let has_moved = [up, down]
            .iter()
            .any(|moved| moved.read + moved.written > 0);
        match (&ways.broken, idle) {
            (Some(_), _) if !was_broken => timer.set(now() + LINGER_TIMEOUT),
            (None, Some(idle)) if has_moved => timer.set(now() + idle),
            _ => {}
        }
        timer
            .poll(context)
            .map(|()| ways.end().and(Err(TunnelEnd::Idle)))
    })
    .await
}

impl Ways {
    /// What becomes of both when one was copied. Err: it is over.
    fn note(&mut self, copied: Result<(), CopyError>, is_up: bool) -> io::Result<()> {
        let (own, other) = if is_up {
            (&mut self.up, &mut self.down)
        } else {
            (&mut self.down, &mut self.up)
        };
        match (copied, self.broken.take()) {
            (Ok(()), earlier) => self.broken = earlier,
            (Err(_), Some(earlier)) => return Err(earlier),
            (Err(CopyError::From(error)), None) => return Err(error),
            (Err(CopyError::To(error)), None) => {
                *own = Direction::Closed;
                if *other == Direction::Open {
                    *other = Direction::Last;
                }
                self.broken = Some(error);
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), TunnelEnd> {
        self.broken.take().map_or(Ok(()), |error| Err(error.into()))
    }
}

/// Copies one way what can be copied now.
pub(crate) fn poll_copy<R, W>(
    context: &mut Context<'_>,
    from: &mut R,
    buffer: &mut Buffer,
    to: &mut W,
    direction: &mut Direction,
    moved: &mut Moved,
) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while *direction != Direction::Closed {
        if !buffer.is_empty() {
            match poll_write(to, context, buffer.data(), &[]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(written) => {
                    let written = written.map_err(CopyError::To)?;
                    buffer.consume(written);
                    moved.written += written;
                }
            }
            continue;
        }
        if *direction == Direction::Ending {
            match Pin::new(&mut *to).poll_shutdown(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(ended) => ended.map_err(CopyError::To)?,
            }
            *direction = Direction::Closed;
            return Ok(());
        }
        match buffer.poll_read(from, context, BUFFER_BYTES) {
            Poll::Pending => {
                if let Poll::Ready(flushed) = Pin::new(&mut *to).poll_flush(context) {
                    flushed.map_err(CopyError::To)?;
                }
                return Ok(());
            }
            Poll::Ready(Ok(0)) if *direction == Direction::Last => *direction = Direction::Closed,
            Poll::Ready(Ok(0)) => *direction = Direction::Ending,
            Poll::Ready(read) => moved.read += read.map_err(CopyError::From)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// A tunnel between two streams, each of which holds so many bytes.
    fn tunnel(
        bytes: usize,
    ) -> (
        DuplexStream,
        DuplexStream,
        tokio::task::JoinHandle<Result<(), TunnelEnd>>,
    ) {
        let (client, mut near_client) = duplex(bytes);
        let (backend, mut near_backend) = duplex(bytes);
        let carried = tokio::spawn(async move {
            let (mut of_client, mut of_backend) = (Buffer::default(), Buffer::default());
            let client = (&mut near_client, &mut of_client);
            let backend = (&mut near_backend, &mut of_backend);
            let (mut timer, idle) = (Timer::new(now()), Some(TUNNEL_IDLE_TIMEOUT));
            carry(client, backend, false, idle, &mut timer, |_, _| {}).await
        });
        (client, backend, carried)
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_when_nothing_moved_for_its_time_and_not_before() {
        let (mut client, mut backend, carried) = tunnel(64);
        let almost = TUNNEL_IDLE_TIMEOUT.saturating_sub(Duration::from_secs(1));
        // Either direction counts.
        for _ in 0..3 {
            tokio::time::sleep(almost).await;
            client.write_u8(1).await.unwrap();
            assert_eq!(backend.read_u8().await.unwrap(), 1);
            tokio::time::sleep(almost).await;
            backend.write_u8(2).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), 2);
        }
        let begun = now();
        let ended = carried.await.unwrap();
        assert!(matches!(ended, Err(TunnelEnd::Idle)), "{ended:?}");
        assert_eq!((now() - begun).as_secs(), TUNNEL_IDLE_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_takes_nothing_holds_a_tunnel_for_its_time_and_a_bounded_part_of_what_comes()
     {
        let (client, mut backend, carried) = tunnel(64);
        let written = tokio::spawn(async move {
            let mut written = 0;
            while backend.write_all(&[7; 64]).await.is_ok() {
                written += 64;
            }
            written
        });
        let ended = carried.await.unwrap();
        assert!(matches!(ended, Err(TunnelEnd::Idle)), "{ended:?}");
        drop(client);
        let written = written.await.unwrap();
        assert!(written <= BUFFER_BYTES + 3 * 64, "{written}");
    }
}

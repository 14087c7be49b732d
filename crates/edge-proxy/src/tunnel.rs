//! An upgraded connection: bytes both ways, on the task of the client's connection, until both ends have closed.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::buffer::Buffer;
use crate::client::{Client, Stream, poll_write};
use crate::limits::{BUFFER_BYTES, TUNNEL_IDLE_TIMEOUT};
use crate::timer::{Timer, now};

/// How far one direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Open,
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

/// Why a tunnel ended, other than by its ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelEnd {
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("nothing moved for {} s", TUNNEL_IDLE_TIMEOUT.as_secs())]
    Idle,
}

/// Copies both ways. What either side has sent already is in its buffer; the backend's is beside its stream.
pub(crate) async fn carry<S: Stream, B: Stream>(
    client: &mut Client<S>,
    backend: (&mut B, &mut Buffer),
    timer: &mut Timer,
) -> Result<(), TunnelEnd> {
    let mut up = if client.has_ended {
        Direction::Ending
    } else {
        Direction::Open
    };
    let mut down = Direction::Open;
    let (backend, of_backend) = backend;
    timer.set(now() + TUNNEL_IDLE_TIMEOUT);
    poll_fn(|context| {
        let mut moved = Moved::default();
        let (from, to) = (&mut client.stream, &mut *backend);
        poll_copy(context, from, &mut client.buffer, to, &mut up, &mut moved)?;
        let (from, to) = (&mut *backend, &mut client.stream);
        poll_copy(context, from, &mut *of_backend, to, &mut down, &mut moved)?;
        if (up, down) == (Direction::Closed, Direction::Closed) {
            return Poll::Ready(Ok(()));
        }
        if moved.read + moved.written > 0 {
            timer.set(now() + TUNNEL_IDLE_TIMEOUT);
        }
        timer.poll(context).map(|()| Err(TunnelEnd::Idle))
    })
    .await
}

/// Copies one way what can be copied now.
pub(crate) fn poll_copy<R, W>(
    context: &mut Context<'_>,
    from: &mut R,
    buffer: &mut Buffer,
    to: &mut W,
    direction: &mut Direction,
    moved: &mut Moved,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while *direction != Direction::Closed {
        if !buffer.is_empty() {
            match poll_write(to, context, buffer.data(), &[]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(written) => {
                    let written = written?;
                    buffer.consume(written);
                    moved.written += written;
                }
            }
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
            Poll::Ready(read) => moved.read += read?,
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
        let (client, near_client) = duplex(bytes);
        let (backend, mut near_backend) = duplex(bytes);
        let carried = tokio::spawn(async move {
            let (mut client, mut buffer) = (Client::new(near_client), Buffer::default());
            let mut timer = Timer::new(now());
            carry(&mut client, (&mut near_backend, &mut buffer), &mut timer).await
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

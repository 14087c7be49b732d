//! A user's command: their stream, through the server, joined to the guest's channel.
//!
//! What ends it: the command; the user, who hangs up; the instance; but for the command that an instance was made for, [`IDLE_LIMIT`]. However it ends,
//! the guest's channel is dropped, and with it the command and what it started in its group. An
//! agent that ends takes the commands of its node with it: the user's connection breaks, and the
//! command line says so.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::node::ExecWanted;
use api_client::{ApiClient, NodeExec, STREAM_SIGN_OF_LIFE};
use guest_protocol::{GuestFrame, HostFrame, Stream};
use tokio::time::{Instant, sleep_until, timeout};

use crate::directory::Directory;
use crate::framed::GuestReader;
use crate::guest_calls::{ExecSession, Terminal, exec_failed, is_output};

/// A command with neither input nor output for this long is ended.
const IDLE_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Runs one command to its end.
pub(crate) async fn serve(
    client: &ApiClient,
    stream: &str,
    wanted: ExecWanted,
    directory: &Directory,
) -> Result<(), api_client::ClientError> {
    let mut user = client.open_exec(stream).await?;
    let id = wanted.instance;
    // The command that the instance was made for has a time of its own.
    let idle_limit = (!wanted.command.is_empty()).then_some(IDLE_LIMIT);
    let terminal = wanted.terminal.map(|size| Terminal {
        size,
        kind: wanted.terminal_type,
    });
    let end = match directory.calls(id) {
        Ok(calls) => match calls.exec(wanted.command, terminal).await {
            Ok(session) => relay(&mut user, session, idle_limit).await,
            Err(error) => Some(exec_failed(format!("instance {id}: {error}"))),
        },
        Err(reason) => Some(exec_failed(reason)),
    };
    if let Some(end) = end
        && let Err(error) = user.writer.send(&end).await
    {
        tracing::debug!(%error, "a user left before the end of their command");
    }
    user.hang_up().await;
    Ok(())
}

/// Hands frames on, both ways. Returns the last frame for the user; none when they have left.
async fn relay(
    user: &mut NodeExec,
    mut session: ExecSession,
    idle_limit: Option<Duration>,
) -> Option<GuestFrame> {
    let frames = &mut session.channel.frames;
    let (reader, writer) = (&mut frames.reader, &mut frames.writer);
    let moved = Mutex::new(Instant::now());
    let touch = || *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    let to_user = async {
        loop {
            match timeout(STREAM_SIGN_OF_LIFE, next_output(reader)).await {
                Ok(Ok(frame)) => user.writer.send(&frame).await.ok()?,
                Ok(Err(last)) => return Some(last),
                Err(_) => {
                    user.writer.send(&sign_of_life()).await.ok()?;
                    continue;
                }
            }
            touch();
        }
    };
    let to_guest = async {
        while let Ok(Some(frame)) = user.reader.next().await {
            if writer.write(&HostFrame::from(frame)).await.is_err() {
                // Its last frames are still to be read.
                std::future::pending::<()>().await;
            }
            touch();
        }
    };
    tokio::select! {
        last = to_user => last,
        () = to_guest => None,
        () = idle(&moved, idle_limit) => {
            let minutes = IDLE_LIMIT.as_secs() / 60;
            Some(exec_failed(format!("ended: no input or output for {minutes} minutes")))
        }
    }
}

/// Output of no bytes: the user's end knows by it that the connection stalls nowhere.
fn sign_of_life() -> GuestFrame {
    GuestFrame::ExecOutput {
        stream: Stream::Stdout,
        bytes: Vec::new(),
    }
}

/// The command's next output, or the last word. Cancel-safe.
async fn next_output(reader: &mut GuestReader) -> Result<GuestFrame, GuestFrame> {
    match reader.read().await {
        Ok(Some(frame)) if is_output(&frame) => Ok(frame),
        Ok(Some(end @ GuestFrame::ExecExited(_))) => Err(end),
        Ok(Some(_)) => Err(exec_failed("the guest violated the guest protocol")),
        Ok(None) => Err(exec_failed("the instance ended before the command did")),
        Err(error) => Err(exec_failed(error)),
    }
}

async fn idle(moved: &Mutex<Instant>, limit: Option<Duration>) {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    loop {
        let until = *moved.lock().unwrap_or_else(PoisonError::into_inner) + limit;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}

//! Calls on a running guest: commands beside its app, signals, stats.
//!
//! ```text
//! caller --- Exec{session} ---> queue ---> control connection ---> guest
//!        <-- its frames ------- expected <---- Hello{exec, session}: the guest dials
//! ```
//!
//! A call waits for the guest's control connection, and is thrown away when its caller has given up:
//! nothing reaches a guest late. Exec channels that nobody asked for are refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_protocol::{ExecRequest, GuestFrame, GuestStats, HostFrame, Stream};
use model::instance::ExitEvent;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::framed::FramedGuest;

/// Commands of users that run in one guest at a time.
pub(crate) const MAX_USER_SESSIONS: usize = 8;
/// Calls of one guest that may wait for its control connection.
const CALL_QUEUE: usize = 32;
/// How long a guest may take to hear a call, to answer it, or to dial for a command.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Bytes of a probe's last output that are kept, to say why it failed.
const PROBE_WORDS_BYTES: usize = 512;

/// Why a guest was not called, or gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// Before its start, after its end.
    #[error("its app does not run at the moment")]
    NotRunning,
    /// As many as are allowed are there.
    #[error("{MAX_USER_SESSIONS} commands run in it already")]
    TooMany,
    /// By the guest's own word, made plain.
    #[error("{0}")]
    Refused(String),
    /// It is busy, or hostile.
    #[error("its guest did not {0} within {limit} s", limit = CALL_TIMEOUT.as_secs())]
    Silent(&'static str),
}

/// A user's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Rows and columns.
    pub(crate) size: (u16, u16),
    /// Its type, the value of `TERM`; absent: not known.
    pub(crate) kind: Option<String>,
}

/// A frame for the control connection.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) frame: HostFrame,
    /// Told when the guest has the frame; closed when nobody waits for that any more.
    pub(crate) delivered: oneshot::Sender<()>,
}

/// A handle for whoever calls a guest. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct GuestCalls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Call>,
    running: watch::Sender<bool>,
    /// The newest stats, and how often they came.
    stats: watch::Sender<(u64, GuestStats)>,
    expected: Mutex<BTreeMap<u32, Expected>>,
    next_session: AtomicU32,
    user_slots: Arc<Semaphore>,
}

/// Who waits for a command's channel, or for the reason why there is none.
pub(crate) type Expected = oneshot::Sender<Result<ExecChannel, CallError>>;

/// A command's channel, as the guest dialled it.
#[derive(Debug)]
pub(crate) struct ExecChannel {
    pub(crate) frames: FramedGuest,
    /// The connection counts as one of the guest's for as long as it is held.
    pub(crate) _connection: OwnedSemaphorePermit,
}

/// A command that runs in a guest. Dropping it ends the command.
#[derive(Debug)]
pub(crate) struct ExecSession {
    pub(crate) channel: ExecChannel,
    _user_slot: Option<OwnedSemaphorePermit>,
}

impl GuestCalls {
    /// A handle, and the calls for the control connection to make. Sessions are numbered from
    /// `first_session`: a guest may still know those of an agent before us.
    pub(crate) fn new(first_session: u32) -> (Self, mpsc::Receiver<Call>) {
        let (queue, calls) = mpsc::channel(CALL_QUEUE);
        let shared = Shared {
            queue,
            running: watch::Sender::new(false),
            stats: watch::Sender::new((0, GuestStats::default())),
            expected: Mutex::default(),
            next_session: AtomicU32::new(first_session),
            user_slots: Arc::new(Semaphore::new(MAX_USER_SESSIONS)),
        };
        (Self(Arc::new(shared)), calls)
    }

    /// Whether the app runs, by the guest's last report.
    pub(crate) fn set_running(&self, running: bool) {
        self.0.running.send_replace(running);
    }

    /// Whether the app runs, and what it will be: the watch is closed when the guest has ended.
    pub(crate) fn running(&self) -> watch::Receiver<bool> {
        self.0.running.subscribe()
    }

    /// The guest sent stats, asked or not.
    pub(crate) fn set_stats(&self, stats: GuestStats) {
        self.0
            .stats
            .send_modify(|(count, newest)| (*count, *newest) = (*count + 1, stats));
    }

    /// Whether a command's channel with this number is waited for; at most once for each.
    pub(crate) fn expects(&self, session: u32) -> Option<Expected> {
        self.expected(|expected| expected.remove(&session))
    }

    /// The guest says why it does not run a command. Nothing, where nobody waits for that one.
    pub(crate) fn refused(&self, session: u32, reason: String) {
        if let Some(expected) = self.expects(session) {
            let _ = expected.send(Err(CallError::Refused(reason)));
        }
    }

    fn expected<T>(&self, act: impl FnOnce(&mut BTreeMap<u32, Expected>) -> T) -> T {
        act(&mut self
            .0
            .expected
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends a signal to the app.
    pub(crate) async fn signal(&self, signal: String) -> Result<(), CallError> {
        self.send(HostFrame::Signal { signal }).await
    }

    /// The guest's stats.
    pub(crate) async fn stats(&self) -> Result<GuestStats, CallError> {
        let mut stats = self.0.stats.subscribe();
        self.send(HostFrame::Stats).await?;
        match timeout(CALL_TIMEOUT, stats.changed()).await {
            Ok(Ok(())) => Ok(stats.borrow().1.clone()),
            _ => Err(CallError::Silent("answer with its stats")),
        }
    }

    /// Runs a user's command; an empty one is that which the guest is for.
    pub(crate) async fn exec(
        &self,
        argv: Vec<String>,
        terminal: Option<Terminal>,
    ) -> Result<ExecSession, CallError> {
        let slot = Arc::clone(&self.0.user_slots)
            .try_acquire_owned()
            .map_err(|_| CallError::TooMany)?;
        self.begin(argv, terminal, Some(slot)).await
    }

    /// Runs a health check's command; its end with exit code 0 is a success. Dropping the future
    /// ends the command, which is how a probe that takes too long is ended.
    ///
    /// # Errors
    /// For people: how it ended, and the last line that it wrote.
    pub(crate) async fn probe(&self, argv: Vec<String>) -> Result<(), String> {
        let name = argv.first().cloned().unwrap_or_default();
        let failed = |how: &dyn std::fmt::Display| format!("`{name}`: {how}");
        let begun = self.begin(argv, None, None).await;
        let mut frames = begun.map_err(|error| failed(&error))?.channel.frames;
        let end_of_input = HostFrame::ExecInput { bytes: Vec::new() };
        frames
            .write(&end_of_input)
            .await
            .map_err(|error| failed(&error))?;
        let mut words = Vec::new();
        loop {
            match frames.read().await.map_err(|error| failed(&error))? {
                Some(GuestFrame::ExecOutput { bytes, .. }) => {
                    words.extend_from_slice(&bytes);
                    let excess = words.len().saturating_sub(PROBE_WORDS_BYTES);
                    words.drain(..excess);
                }
                Some(GuestFrame::ExecExited(exit)) => {
                    return evaluate(&exit, &words).map_err(|how| failed(&how));
                }
                Some(_) | None => return Err(failed(&"its channel broke before it ended")),
            }
        }
    }

    async fn begin(
        &self,
        argv: Vec<String>,
        terminal: Option<Terminal>,
        user_slot: Option<OwnedSemaphorePermit>,
    ) -> Result<ExecSession, CallError> {
        let session = self.0.next_session.fetch_add(1, Ordering::Relaxed);
        let (sender, channel) = oneshot::channel();
        self.expected(|expected| {
            // Those whose callers gave up are of no use any more.
            expected.retain(|_, sender| !sender.is_closed());
            expected.insert(session, sender);
        });
        let request = ExecRequest {
            session,
            main: argv.is_empty(),
            argv,
            terminal: terminal.as_ref().map(|terminal| terminal.size),
            terminal_type: terminal.and_then(|terminal| terminal.kind),
        };
        self.send(HostFrame::Exec(request)).await?;
        match timeout(CALL_TIMEOUT, channel).await {
            Ok(Ok(channel)) => Ok(ExecSession {
                channel: channel?,
                _user_slot: user_slot,
            }),
            _ => Err(CallError::Silent("start the command")),
        }
    }

    async fn send(&self, frame: HostFrame) -> Result<(), CallError> {
        if !*self.0.running.borrow() {
            return Err(CallError::NotRunning);
        }
        let (delivered, delivery) = oneshot::channel();
        let saying = async {
            self.0.queue.send(Call { frame, delivered }).await.ok()?;
            delivery.await.ok()
        };
        match timeout(CALL_TIMEOUT, saying).await {
            Ok(Some(())) => Ok(()),
            // Its connection broke while it was sent: it is not sent twice.
            _ => Err(CallError::Silent("listen")),
        }
    }
}

fn evaluate(exit: &ExitEvent, words: &[u8]) -> Result<(), String> {
    if exit.exit_code == 0 && exit.signal.is_none() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(words);
    let last = words.lines().rfind(|line| !line.trim().is_empty());
    Err(match last {
        Some(line) => format!("{exit}: {}", display::one_line(line, PROBE_WORDS_BYTES)),
        None => exit.to_string(),
    })
}

/// A frame that tells a user why their command has no end to tell.
pub(crate) fn exec_failed(reason: impl std::fmt::Display) -> GuestFrame {
    GuestFrame::ExecFailed {
        reason: reason.to_string(),
    }
}

/// Whether a frame is output of a command: the streams a command has.
pub(crate) fn is_output(frame: &GuestFrame) -> bool {
    matches!(
        frame,
        GuestFrame::ExecOutput {
            stream: Stream::Stdout | Stream::Stderr,
            ..
        }
    )
}

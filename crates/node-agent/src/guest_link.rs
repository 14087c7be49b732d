//! The node's end of the vsock connection to one guest (`guest_protocol`).
//!
//! The guest dials. Each connection comes in on the instance's own socket, so the guest needs no proof
//! of its identity, and nothing it says about itself is believed. Within the guest only init is served: the first
//! connection of a boot comes before the app runs, and its token ([`Hello::token`]) is asked of every later one. The boot
//! config, with its secrets, is sent to init only, and never once the app was started. The node's commands (the boot config,
//! the stop, the acknowledged end) are kept as the current state and sent again on every new control connection,
//! so that a lost connection or a restarted agent loses nothing.
//!
//! A hostile guest is bounded: so many connections, so many bytes a frame, one control and one log
//! connection at a time, exec channels only where one was asked for, one end. A violation of the
//! protocol closes its connection, is counted, and is noted in the instance's log: at the first, the
//! second, the fourth and so on, so that the log is not flooded either.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use guest_protocol::{
    BootConfig, BootFailure, Channel, Forwarded, FrameError, GuestFrame, GuestMtu, Hello,
    HostFrame, MAX_TOKEN_BYTES, NodeTime, Phase, refusal,
};
use model::instance::ExitEvent;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::framed::{FramedError, FramedGuest};
use crate::guest_calls::{Call, ExecChannel, GuestCalls};
use crate::host::{GuestListener, GuestStream, Log};
use display::{Repeated, one_line};

/// A connection must say hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of one guest at a time, those without a hello too; others wait in the
/// kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// Events of one guest that may wait for its instance.
const EVENT_QUEUE: usize = 16;
/// Longest name of a failed step that is believed, in bytes.
const MAX_STEP_BYTES: usize = 100;
/// Longest reason of a failed step or a refused command that is believed, in bytes.
const MAX_REASON_BYTES: usize = 1000;
/// Most ports of a guest that are shown as forwarded to.
const MAX_FORWARDED_PORTS: usize = 64;

/// What the guest reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestEvent {
    /// Its first connection: init has this token. It comes before the first [`GuestEvent::Hello`].
    Bound(String),
    /// It dialled and named its phase.
    Hello(Phase),
    /// A step of its boot has done more than before.
    Progressed,
    /// Its app runs.
    Started,
    /// It could not start its app.
    BootFailed(BootFailure),
    /// Its app ended.
    Exited(ExitEvent),
    /// Nothing listens on these ports over IPv6, and connections to them are forwarded.
    Forwarded(Vec<u16>),
    /// It speaks a version of the protocol that this node does not serve.
    Refused {
        /// The version it speaks.
        contract: u32,
    },
}

/// The commands for the guest, sent on every new control connection and when they change.
#[derive(Debug, Clone, Default)]
struct GuestCommands {
    boot: Option<Arc<BootConfig>>,
    stop_timeout_ms: Option<u64>,
    end_acknowledged: bool,
}

/// The line to one guest. Dropping it closes the line; the guest dials again if it lives.
#[derive(Debug)]
pub(crate) struct GuestLink {
    commands: watch::Sender<GuestCommands>,
    events: mpsc::Receiver<GuestEvent>,
    protocol_violations: Arc<AtomicU64>,
    calls: GuestCalls,
    _serving: AbortOnDropHandle<()>,
}

impl GuestLink {
    /// Serves the guest that dials this socket. `token`: that of the guest's init; absent: the first connection brings it.
    pub(crate) fn serve(
        listener: Box<dyn GuestListener>,
        log: Arc<dyn Log>,
        clock: Clock,
        token: Option<String>,
        mtu: watch::Receiver<u32>,
    ) -> Self {
        let commands = watch::Sender::new(GuestCommands::default());
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let protocol_violations = Arc::new(AtomicU64::new(0));
        // Another agent's sessions began at another time.
        let (calls, queue) = GuestCalls::new(clock.now().0 as u32);
        let line = GuestServer {
            commands: commands.subscribe(),
            events: sender,
            log,
            clock,
            protocol_violations: protocol_violations.clone(),
            calls: calls.clone(),
            queue: Arc::new(Mutex::new(queue)),
            end: Arc::default(),
            token: Arc::new(std::sync::Mutex::new(token)),
            started: Arc::default(),
            mtu,
        };
        let serving = AbortOnDropHandle::new(tokio::spawn(line.serve(listener)));
        Self {
            commands,
            events,
            protocol_violations,
            calls,
            _serving: serving,
        }
    }

    /// For whoever calls the guest.
    pub(crate) fn calls(&self) -> &GuestCalls {
        &self.calls
    }

    /// Gives the guest its config as soon as it asks, until it has started its app. The guest's token must be recorded before
    /// ([`GuestEvent::Bound`]): the app runs from then on, and could bring a token of its own to another agent.
    pub(crate) fn boot(&self, config: BootConfig) {
        self.commands
            .send_modify(|commands| commands.boot = Some(Arc::new(config)));
    }

    /// The guest has started its app: it is sent no config any more.
    pub(crate) fn booted(&self) {
        self.commands.send_modify(|commands| commands.boot = None);
    }

    /// Asks the guest to stop its app.
    pub(crate) fn stop(&self, timeout_ms: u64) {
        self.commands
            .send_modify(|commands| commands.stop_timeout_ms = Some(timeout_ms));
    }

    /// Tells the guest that its end was written down, so it may power off.
    pub(crate) fn acknowledge_end(&self) {
        self.commands
            .send_modify(|commands| commands.end_acknowledged = true);
    }

    /// The next event. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<GuestEvent> {
        self.events.recv().await
    }

    /// Connections that were closed because they violated the guest protocol.
    pub(crate) fn protocol_violations(&self) -> u64 {
        self.protocol_violations.load(Ordering::Relaxed)
    }
}

/// The side that serves connections.
#[derive(Clone)]
struct GuestServer {
    commands: watch::Receiver<GuestCommands>,
    events: mpsc::Sender<GuestEvent>,
    log: Arc<dyn Log>,
    clock: Clock,
    protocol_violations: Arc<AtomicU64>,
    calls: GuestCalls,
    /// Locked by the one control connection.
    queue: Arc<Mutex<mpsc::Receiver<Call>>>,
    /// The end that was reported, if one was: there is no other.
    end: Arc<Mutex<Option<GuestEvent>>>,
    /// That of the guest's init; absent: nothing has dialled yet.
    token: Arc<std::sync::Mutex<Option<String>>>,
    /// Whether the guest has said that its app was started.
    started: Arc<AtomicBool>,
    /// The MTU that the guest's interface is to have, in bytes: it is told on each new connection, and when it changes.
    mtu: watch::Receiver<u32>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error(transparent)]
    Framed(#[from] FramedError),
    #[error("the guest violated the guest protocol: {0}")]
    Contract(&'static str),
    #[error("the guest did not say hello in time")]
    Late,
    #[error("its log cannot be written: {0}")]
    Log(io::Error),
    #[error("{}", refusal(*.0))]
    Version(u32),
    #[error("replaced by a newer connection")]
    Replaced,
    #[error("the instance is gone")]
    Gone,
}

impl GuestServer {
    async fn serve(self, mut listener: Box<dyn GuestListener>) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // The newest connection of each kind wins: the guest dials again only when it lost the old.
        let control_epoch = Arc::new(watch::Sender::new(0_u64));
        let log_epoch = Arc::new(watch::Sender::new(0_u64));
        let mut connections = tokio::task::JoinSet::new();
        let mut refused = Repeated::default();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    if refused.is_due(tokio::time::Instant::now(), &error.to_string()) {
                        tracing::warn!(%error, "cannot accept a guest's connection; trying again");
                    }
                    // Out of descriptors, most likely: others must close some first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let line = self.clone();
            let epochs = (control_epoch.clone(), log_epoch.clone());
            connections.spawn(async move {
                match line.connection(stream, slot, &epochs.0, &epochs.1).await {
                    Ok(()) | Err(ConnectionEnd::Replaced | ConnectionEnd::Gone) => {}
                    Err(end @ ConnectionEnd::Framed(FramedError::Broken(_))) => {
                        tracing::debug!(%end);
                    }
                    // The machine's fault; the guest keeps what fits and counts the rest.
                    Err(end @ ConnectionEnd::Log(_)) => {
                        tracing::warn!(%end, "closed a guest's connection");
                    }
                    Err(end) => line.on_violation(&end).await,
                }
            });
        }
    }

    /// Counts a protocol violation, and says so where the instance's owner looks.
    async fn on_violation(&self, end: &ConnectionEnd) {
        let count = self.protocol_violations.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(%end, count, "closed a guest's connection");
            let line =
                format!("closed {count} connection(s) of this guest so far; this one: {end}");
            if let Err(error) = self.log.note(self.clock.wall(), line).await {
                tracing::warn!(%error, "cannot write an instance's log");
            }
        }
    }

    async fn connection(
        &self,
        stream: Box<dyn GuestStream>,
        slot: OwnedSemaphorePermit,
        control_epoch: &watch::Sender<u64>,
        log_epoch: &watch::Sender<u64>,
    ) -> Result<(), ConnectionEnd> {
        let mut frames = FramedGuest::new(stream);
        let ended = match self.hello(&mut frames).await {
            Ok(None) => return Ok(()),
            Ok(Some(Hello {
                channel: Channel::Exec { session },
                ..
            })) => match self.calls.expects(session) {
                Some(sender) => {
                    // Whoever asked may have given up just now: dropped, it ends the command.
                    drop(sender.send(Ok(ExecChannel {
                        frames,
                        _connection: slot,
                    })));
                    return Ok(());
                }
                None => Err(ConnectionEnd::Contract("no such command was asked for")),
            },
            Ok(Some(hello)) => {
                let epoch = match hello.channel {
                    Channel::Log => log_epoch,
                    _ => control_epoch,
                };
                let mut replaced = newest(epoch);
                let serving = async {
                    match hello.channel {
                        Channel::Log => self.log(&mut frames).await,
                        _ => self.control(&mut frames, hello).await,
                    }
                };
                tokio::select! {
                    biased;
                    end = serving => end,
                    _ = replaced.changed() => Err(ConnectionEnd::Replaced),
                }
            }
            Err(end) => Err(end),
        };
        frames.close().await;
        ended
    }

    /// The hello of a connection, of the guest's init; absent: it ended before.
    async fn hello(&self, frames: &mut FramedGuest) -> Result<Option<Hello>, ConnectionEnd> {
        let hello = match timeout(HELLO_TIMEOUT, frames.read()).await {
            Ok(Ok(Some(GuestFrame::Hello(hello)))) => hello,
            Ok(Ok(Some(_))) => return Err(ConnectionEnd::Contract("the first frame is no hello")),
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(FramedError::Frame(FrameError::Version { contract }))) => {
                let reason = refusal(contract);
                frames.write(&HostFrame::Refused { reason }).await?;
                self.emit(GuestEvent::Refused { contract }).await?;
                return Err(ConnectionEnd::Version(contract));
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(ConnectionEnd::Late),
        };
        // Before it can take the place of another connection.
        self.authenticate(&hello).await?;
        Ok(Some(hello))
    }

    /// Refuses what is not the guest's init.
    async fn authenticate(&self, hello: &Hello) -> Result<(), ConnectionEnd> {
        if hello.token.len() > MAX_TOKEN_BYTES {
            return Err(ConnectionEnd::Contract("its token is too long"));
        }
        let first = {
            let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
            match &*token {
                Some(token) if is_same(token.as_bytes(), hello.token.as_bytes()) => false,
                Some(_) => return Err(ConnectionEnd::Contract("it is not the guest's init")),
                None => {
                    *token = Some(hello.token.clone());
                    true
                }
            }
        };
        if first {
            self.emit(GuestEvent::Bound(hello.token.clone())).await?;
        }
        if hello.phase == Phase::Waiting && self.started.load(Ordering::Relaxed) {
            return Err(ConnectionEnd::Contract(
                "it asks for the boot config of an app that was started",
            ));
        }
        if hello.phase == Phase::Running {
            self.started.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn control(&self, frames: &mut FramedGuest, hello: Hello) -> Result<(), ConnectionEnd> {
        let mut commands = self.commands.clone();
        commands.mark_changed();
        let mut boot_due = hello.phase == Phase::Waiting;
        let mut stop_due = true;
        let mut end_due = true;
        let mut mtu = self.mtu.clone();
        let mut mtu_sent = None;
        self.calls.set_running(hello.phase == Phase::Running);
        self.emit(GuestEvent::Hello(hello.phase)).await?;
        let mut queue = self.queue.lock().await;
        loop {
            // A guest without its config has no network yet.
            let wanted = *mtu.borrow_and_update();
            let frame = HostFrame::Mtu(GuestMtu { mtu: wanted });
            if !boot_due && mtu_sent != Some(wanted) && frame.may_be_sent_to(hello.contract) {
                frames.write(&frame).await?;
                mtu_sent = Some(wanted);
            }
            tokio::select! {
                biased;
                Ok(()) = mtu.changed() => {}
                Some(call) = queue.recv() => {
                    // A call that its caller gave up is not sent late.
                    if !call.delivered.is_closed() {
                        frames.write(&call.frame.for_version(hello.contract)).await?;
                        let _ = call.delivered.send(());
                    }
                }
                changed = commands.changed() => {
                    changed.map_err(|_| ConnectionEnd::Gone)?;
                    let now = commands.borrow_and_update().clone();
                    if let (true, Some(config)) = (boot_due, now.boot) {
                        let boot = HostFrame::Boot(Box::new((*config).clone()));
                        frames.write(&boot.for_version(hello.contract)).await?;
                        boot_due = false;
                        mtu_sent = Some(config.network.mtu);
                    }
                    // A guest without its config has no app to stop yet.
                    if let (true, false, Some(timeout_ms)) = (stop_due, boot_due, now.stop_timeout_ms) {
                        frames.write(&HostFrame::Stop { timeout_ms }).await?;
                        stop_due = false;
                    }
                    if end_due && now.end_acknowledged {
                        frames.write(&HostFrame::ExitAck).await?;
                        end_due = false;
                    }
                }
                frame = frames.read() => match frame? {
                    None => return Ok(()),
                    Some(GuestFrame::Started) => {
                        self.started.store(true, Ordering::Relaxed);
                        self.calls.set_running(true);
                        self.emit(GuestEvent::Started).await?;
                    }
                    // Once its app was started, it would be no init that says so.
                    Some(GuestFrame::Progressed(_)) => {
                        if !self.started.load(Ordering::Relaxed) {
                            self.emit(GuestEvent::Progressed).await?;
                        }
                    }
                    Some(GuestFrame::BootFailed(failure)) => {
                        let failure = BootFailure {
                            step: one_line(&failure.step, MAX_STEP_BYTES),
                            reason: one_line(&failure.reason, MAX_REASON_BYTES),
                            exit_code: failure.exit_code,
                        };
                        self.tell_end(GuestEvent::BootFailed(failure)).await?;
                    }
                    Some(GuestFrame::Exited(event)) => {
                        self.tell_end(GuestEvent::Exited(event)).await?;
                    }
                    Some(GuestFrame::TimeAsked(asked)) => {
                        let time = NodeTime {
                            number: asked.number,
                            unix_nanos: u64::try_from(self.clock.wall_since_epoch().as_nanos())
                                .unwrap_or(u64::MAX),
                        };
                        frames.write(&HostFrame::Time(time)).await?;
                    }
                    Some(GuestFrame::Stats(stats)) => self.calls.set_stats(stats),
                    Some(GuestFrame::Forwarded(Forwarded { mut ports })) => {
                        ports.truncate(MAX_FORWARDED_PORTS);
                        self.emit(GuestEvent::Forwarded(ports)).await?;
                    }
                    Some(GuestFrame::ExecRefused { session, reason }) => {
                        self.calls.refused(session, one_line(&reason, MAX_REASON_BYTES));
                    }
                    Some(_) => return Err(ConnectionEnd::Contract("not a control frame")),
                },
            }
        }
    }

    async fn log(&self, frames: &mut FramedGuest) -> Result<(), ConnectionEnd> {
        loop {
            let Some(first) = frames.read().await? else {
                return Ok(());
            };
            let mut records = Vec::new();
            let mut next = Some(first);
            while let Some(frame) = next {
                let GuestFrame::Log(record) = frame else {
                    return Err(ConnectionEnd::Contract("not a log frame"));
                };
                records.push(record);
                next = frames.reader.buffered()?;
            }
            // An unwritable log is not acknowledged: the guest keeps what fits and counts the rest.
            let now = self.clock.wall();
            let appended = self.log.append(now, records).await;
            let seq = appended.map_err(ConnectionEnd::Log)?;
            frames.write(&HostFrame::LogAck { seq }).await?;
        }
    }

    /// Tells the end, once. A guest says it again when it was not acknowledged on the connection
    /// that it had; another end than that is a lie.
    async fn tell_end(&self, event: GuestEvent) -> Result<(), ConnectionEnd> {
        self.calls.set_running(false);
        let mut end = self.end.lock().await;
        match &*end {
            Some(told) if *told == event => Ok(()),
            Some(_) => Err(ConnectionEnd::Contract("a second end")),
            None => {
                *end = Some(event.clone());
                self.emit(event).await
            }
        }
    }

    async fn emit(&self, event: GuestEvent) -> Result<(), ConnectionEnd> {
        self.events
            .send(event)
            .await
            .map_err(|_| ConnectionEnd::Gone)
    }
}

/// Whether two tokens are the same, in a time that does not depend on where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |bits, (a, b)| bits | (a ^ b)) == 0
}

/// Makes this connection the newest of its kind; the receiver changes when a newer one comes.
fn newest(epoch: &watch::Sender<u64>) -> watch::Receiver<u64> {
    epoch.send_modify(|number| *number += 1);
    epoch.subscribe()
}

#[cfg(test)]
mod tests;

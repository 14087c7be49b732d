//! The node's end of the vsock line to one guest (`contract::guest`).
//!
//! The guest dials; each connection comes in on the instance's own Unix socket, so it needs no proof
//! of who it is, and nothing it says about itself is believed. What is told to the guest is kept as
//! a level (the boot config, the wish to stop, the acknowledged end) and told again on every new
//! control connection, so that a lost connection or a restarted agent loses nothing.
//!
//! A hostile guest is bounded: so many connections, so many bytes a frame, one control and one log
//! connection at a time. What breaks the contract closes its connection and is counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use contract::guest::{
    BootConfig, BootFailure, CONTRACT_VERSION, Channel, Frame, FrameBuffer, GuestFrame, Hello,
    HostFrame, Phase,
};
use contract::instance::ExitEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::logs::InstanceLog;

/// A connection must say hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A frame must be taken by the guest within this time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one guest at a time, those that have not said hello yet too.
const MAX_CONNECTIONS: usize = 16;
/// Bytes asked for by one read.
const READ_BYTES: usize = 64 * 1024;
/// Events of one guest that may wait for its instance.
const EVENT_QUEUE: usize = 16;

/// What the guest reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestEvent {
    /// It dialled and said how far it is.
    Hello(Phase),
    /// Its app runs.
    Started,
    /// It could not start its app.
    BootFailed(BootFailure),
    /// Its app ended.
    Exited(ExitEvent),
    /// It speaks another version of the contract.
    Refused {
        /// The version it speaks.
        contract: u32,
    },
}

/// What the guest is to know; told on every new control connection, and when it changes.
#[derive(Debug, Clone, Default)]
struct Told {
    boot: Option<Arc<BootConfig>>,
    stop_timeout_ms: Option<u64>,
    end_acknowledged: bool,
}

/// The line to one guest. Dropping it closes the line; the guest dials again if it lives.
#[derive(Debug)]
pub(crate) struct GuestLink {
    told: watch::Sender<Told>,
    events: mpsc::Receiver<GuestEvent>,
    breaches: Arc<AtomicU64>,
    _serving: AbortOnDropHandle<()>,
}

impl GuestLink {
    /// Serves the guest that dials this socket.
    pub(crate) fn serve(listener: UnixListener, log: Arc<InstanceLog>) -> Self {
        let told = watch::Sender::new(Told::default());
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let breaches = Arc::new(AtomicU64::new(0));
        let line = Line {
            told: told.subscribe(),
            events: sender,
            log,
            breaches: breaches.clone(),
        };
        let serving = AbortOnDropHandle::new(tokio::spawn(line.serve(listener)));
        Self {
            told,
            events,
            breaches,
            _serving: serving,
        }
    }

    /// Gives the guest its config as soon as it asks.
    pub(crate) fn boot(&self, config: BootConfig) {
        self.told
            .send_modify(|told| told.boot = Some(Arc::new(config)));
    }

    /// Asks the guest to stop its app.
    pub(crate) fn stop(&self, timeout_ms: u64) {
        self.told
            .send_modify(|told| told.stop_timeout_ms = Some(timeout_ms));
    }

    /// Tells the guest that its end was written down, so it may power off.
    pub(crate) fn acknowledge_end(&self) {
        self.told.send_modify(|told| told.end_acknowledged = true);
    }

    /// The next event. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<GuestEvent> {
        self.events.recv().await
    }

    /// Connections that were closed because they broke the contract.
    pub(crate) fn breaches(&self) -> u64 {
        self.breaches.load(Ordering::Relaxed)
    }
}

/// The side that serves connections.
#[derive(Clone)]
struct Line {
    told: watch::Receiver<Told>,
    events: mpsc::Sender<GuestEvent>,
    log: Arc<InstanceLog>,
    breaches: Arc<AtomicU64>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the guest broke the contract: {0}")]
    Frame(#[from] contract::guest::FrameError),
    #[error("the guest broke the contract: {0}")]
    Contract(&'static str),
    #[error("the guest did not {0} in time")]
    Late(&'static str),
    #[error("the guest speaks version {0} of the boot contract, this node {CONTRACT_VERSION}")]
    Version(u32),
    #[error("replaced by a newer connection")]
    Replaced,
    #[error("the instance is gone")]
    Gone,
}

impl Line {
    async fn serve(self, listener: UnixListener) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // The newest connection of each kind wins: the guest dials again only when it lost the old.
        let control_epoch = Arc::new(watch::Sender::new(0_u64));
        let log_epoch = Arc::new(watch::Sender::new(0_u64));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a guest's connection");
                    // Out of descriptors, most likely: others must close some first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let line = self.clone();
            let epochs = (control_epoch.clone(), log_epoch.clone());
            connections.spawn(async move {
                let _slot = slot;
                match line.connection(stream, &epochs.0, &epochs.1).await {
                    Ok(()) | Err(ConnectionEnd::Replaced | ConnectionEnd::Gone) => {}
                    Err(end @ ConnectionEnd::Broken(_)) => tracing::debug!(%end),
                    Err(end) => {
                        line.breaches.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(%end, "closed a guest's connection");
                    }
                }
            });
        }
    }

    async fn connection(
        &self,
        stream: UnixStream,
        control_epoch: &watch::Sender<u64>,
        log_epoch: &watch::Sender<u64>,
    ) -> Result<(), ConnectionEnd> {
        let mut frames = FramedGuest::new(stream);
        let hello = match timeout(HELLO_TIMEOUT, frames.read()).await {
            Ok(Ok(Some(GuestFrame::Hello(hello)))) => hello,
            Ok(Ok(Some(_))) => return Err(ConnectionEnd::Contract("the first frame is no hello")),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(ConnectionEnd::Late("say hello")),
        };
        if hello.contract != CONTRACT_VERSION {
            let end = ConnectionEnd::Version(hello.contract);
            frames
                .write(&HostFrame::Refused {
                    reason: end.to_string(),
                })
                .await?;
            self.tell(GuestEvent::Refused {
                contract: hello.contract,
            })
            .await?;
            return Err(end);
        }
        match hello.channel {
            Channel::Control => {
                let mut replaced = newest(control_epoch);
                tokio::select! {
                    end = self.control(frames, hello) => end,
                    _ = replaced.changed() => Err(ConnectionEnd::Replaced),
                }
            }
            Channel::Log => {
                let mut replaced = newest(log_epoch);
                tokio::select! {
                    end = self.log(frames) => end,
                    _ = replaced.changed() => Err(ConnectionEnd::Replaced),
                }
            }
            Channel::Exec { .. } => Err(ConnectionEnd::Contract("no exec session was asked for")),
        }
    }

    async fn control(&self, mut frames: FramedGuest, hello: Hello) -> Result<(), ConnectionEnd> {
        let mut told = self.told.clone();
        told.mark_changed();
        let mut boot_due = hello.phase == Phase::Waiting;
        let mut stop_due = true;
        let mut end_due = true;
        self.tell(GuestEvent::Hello(hello.phase)).await?;
        loop {
            tokio::select! {
                changed = told.changed() => {
                    changed.map_err(|_| ConnectionEnd::Gone)?;
                    let now = told.borrow_and_update().clone();
                    if let (true, Some(config)) = (boot_due, now.boot) {
                        frames.write(&HostFrame::Boot(Box::new((*config).clone()))).await?;
                        boot_due = false;
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
                    Some(GuestFrame::Started) => self.tell(GuestEvent::Started).await?,
                    Some(GuestFrame::BootFailed(failure)) => {
                        self.tell(GuestEvent::BootFailed(failure)).await?;
                    }
                    Some(GuestFrame::Exited(event)) => self.tell(GuestEvent::Exited(event)).await?,
                    Some(_) => return Err(ConnectionEnd::Contract("not a control frame")),
                },
            }
        }
    }

    async fn log(&self, mut frames: FramedGuest) -> Result<(), ConnectionEnd> {
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
                next = frames.buffered()?;
            }
            // An unwritable log is not acknowledged: the guest keeps what fits and counts the rest.
            match self.log.append(records) {
                Ok(seq) => frames.write(&HostFrame::LogAck { seq }).await?,
                Err(error) => {
                    tracing::warn!(%error, "cannot write an instance's log");
                    return Err(error.into());
                }
            }
        }
    }

    async fn tell(&self, event: GuestEvent) -> Result<(), ConnectionEnd> {
        self.events
            .send(event)
            .await
            .map_err(|_| ConnectionEnd::Gone)
    }
}

/// Makes this connection the newest of its kind; the receiver changes when a newer one comes.
fn newest(epoch: &watch::Sender<u64>) -> watch::Receiver<u64> {
    epoch.send_modify(|number| *number += 1);
    epoch.subscribe()
}

/// A connection as frames.
struct FramedGuest {
    stream: UnixStream,
    buffer: FrameBuffer,
    chunk: Vec<u8>,
}

impl FramedGuest {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: FrameBuffer::default(),
            chunk: vec![0; READ_BYTES],
        }
    }

    /// The next frame that was already read.
    fn buffered(&mut self) -> Result<Option<GuestFrame>, ConnectionEnd> {
        Ok(self.buffer.next()?)
    }

    /// The next frame; none at the end. Cancel-safe.
    async fn read(&mut self) -> Result<Option<GuestFrame>, ConnectionEnd> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            let count = self.stream.read(&mut self.chunk).await?;
            if count == 0 {
                return Ok(None);
            }
            self.buffer.push(&self.chunk[..count]);
        }
    }

    async fn write(&mut self, frame: &HostFrame) -> Result<(), ConnectionEnd> {
        match timeout(WRITE_TIMEOUT, self.stream.write_all(&frame.encode())).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(ConnectionEnd::Late("take a frame")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::Path;

    use contract::Timestamp;
    use contract::guest::{GuestNetwork, LogRecord, Stream};

    use super::*;

    struct Guest {
        stream: UnixStream,
        buffer: FrameBuffer,
    }

    impl Guest {
        async fn dial(socket: &Path, channel: Channel, phase: Phase) -> Self {
            let stream = UnixStream::connect(socket).await.unwrap();
            let mut guest = Self {
                stream,
                buffer: FrameBuffer::default(),
            };
            guest
                .say(&GuestFrame::Hello(Hello {
                    contract: CONTRACT_VERSION,
                    channel,
                    phase,
                }))
                .await;
            guest
        }

        async fn say(&mut self, frame: &GuestFrame) {
            self.stream.write_all(&frame.encode()).await.unwrap();
        }

        /// The next frame; none when the host closed the connection.
        async fn hear(&mut self) -> Option<HostFrame> {
            loop {
                if let Some(frame) = self.buffer.next().unwrap() {
                    return Some(frame);
                }
                let mut chunk = [0; 4096];
                match self.stream.read(&mut chunk).await {
                    Ok(0) | Err(_) => return None,
                    Ok(count) => self.buffer.push(&chunk[..count]),
                }
            }
        }
    }

    fn config() -> BootConfig {
        BootConfig {
            hostname: "web-00000001".to_owned(),
            argv: vec!["/bin/true".to_owned()],
            environment: vec![],
            working_dir: "/".to_owned(),
            user: "0".to_owned(),
            stop_signal: "SIGTERM".to_owned(),
            network: GuestNetwork {
                address: "fd00::1".parse().unwrap(),
                gateway: contract::guest::GATEWAY,
                mtu: 1420,
                resolvers: vec![],
            },
            root_device: "/dev/vda".to_owned(),
            scratch_device: "/dev/vdb".to_owned(),
            volumes: vec![],
            image_volumes: vec![],
            secrets: vec![],
        }
    }

    fn exit(code: u8) -> ExitEvent {
        ExitEvent {
            exit_code: code,
            signal: None,
            oom_killed: false,
            requested_stop: false,
            at: Timestamp(0),
        }
    }

    fn link(dir: &Path) -> (GuestLink, std::path::PathBuf) {
        let log = Arc::new(InstanceLog::open(&dir.join("log")).unwrap());
        let socket = dir.join("guest.sock");
        (
            GuestLink::serve(UnixListener::bind(&socket).unwrap(), log),
            socket,
        )
    }

    #[tokio::test]
    async fn a_guest_is_told_its_config_its_stop_and_its_acknowledged_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut link, socket) = link(dir.path());
        let mut guest = Guest::dial(&socket, Channel::Control, Phase::Waiting).await;
        assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Waiting)));
        link.boot(config());
        assert_eq!(
            guest.hear().await,
            Some(HostFrame::Boot(Box::new(config())))
        );
        guest.say(&GuestFrame::Started).await;
        assert_eq!(link.next().await, Some(GuestEvent::Started));
        link.stop(500);
        let stop = HostFrame::Stop { timeout_ms: 500 };
        assert_eq!(guest.hear().await, Some(stop.clone()));

        // A new connection hears again what still holds; the old one is closed.
        let mut again = Guest::dial(&socket, Channel::Control, Phase::Running).await;
        assert_eq!(again.hear().await, Some(stop));
        assert_eq!(guest.hear().await, None);
        assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Running)));
        again.say(&GuestFrame::Exited(exit(3))).await;
        assert_eq!(link.next().await, Some(GuestEvent::Exited(exit(3))));
        link.acknowledge_end();
        assert_eq!(again.hear().await, Some(HostFrame::ExitAck));
    }

    #[tokio::test]
    async fn log_records_are_acknowledged_once_written() {
        let dir = tempfile::tempdir().unwrap();
        let (link, socket) = link(dir.path());
        let mut guest = Guest::dial(&socket, Channel::Log, Phase::Running).await;
        for seq in 1..=3 {
            guest
                .say(&GuestFrame::Log(LogRecord {
                    seq,
                    at_nanos: 0,
                    stream: Stream::Stderr,
                    partial: false,
                    dropped: 0,
                    line: format!("line {seq}").into_bytes(),
                }))
                .await;
        }
        loop {
            let Some(HostFrame::LogAck { seq }) = guest.hear().await else {
                panic!("no ack")
            };
            if seq == 3 {
                break;
            }
        }
        let log = InstanceLog::open(&dir.path().join("log")).unwrap();
        assert_eq!(log.last_words(9), ["line 1", "line 2", "line 3"]);
        assert_eq!(link.breaches(), 0);
    }

    #[tokio::test]
    async fn a_guest_that_breaks_the_contract_loses_the_connection_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut link, socket) = link(dir.path());
        for bytes in [
            &[0, 0, 0, 0, 1][..],
            &[255; 8],
            &[2, 0, 0, 0, 1, b'{'],
            &[1, 0, 0, 0, 99],
        ] {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        }
        let mut old = UnixStream::connect(&socket).await.unwrap();
        let hello = Hello {
            contract: 0,
            channel: Channel::Control,
            phase: Phase::Waiting,
        };
        old.write_all(&GuestFrame::Hello(hello).encode())
            .await
            .unwrap();
        assert_eq!(link.next().await, Some(GuestEvent::Refused { contract: 0 }));

        let _guest = Guest::dial(&socket, Channel::Control, Phase::Waiting).await;
        assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Waiting)));
        assert!(link.breaches() >= 4, "{}", link.breaches());
    }
}

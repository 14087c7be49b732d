//! An edge that runs starts the next one in its place (SIGUSR2), from the program that is at its own path then, and hands over its sockets.
//!
//! ```text
//!   old                                        new
//!    |<------------------------------ "pid 7" --|  the channel is its standard input
//!    |-- "lock:listener:tcp-30000", "end" ----->|  with the descriptors
//!    |<------------------------------ "ready" --|  it has opened all that it needs
//!    |-- "go" --------------------------------->|  systemd has heard of it (MAINPID): it accepts clients, and says READY
//!   finishes what is open                       |
//!    |<------------------------------- "stop" --|  it stops: the old one has no more time than it
//! ```
//!
//! Where the new process ends before it is ready, or is not ready in time, the old one goes on. Where the old one ends before it says `go`, so does the new one.
//!
//! The new process is started in two steps, so that its parent is who started the first edge: systemd notices the end of its own children only.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_proxy::Succession;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use process_handle::Process;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair, sockopt,
};
use rustix::process::getpid;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::notify;
use crate::sockets::Sockets;

/// The variable that tells a process that it is to take the place of another one, and which of the two steps it is.
const VARIABLE: &str = "PLATFORM_EDGE_SUCCESSION";
const FIRST_STEP: &str = "1";
const SECOND_STEP: &str = "2";
/// How long the next process may take until it is ready. It reads all routes and certificates.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Descriptors in one message: the kernel takes 253.
const MOST_AT_ONCE: usize = 250;
/// Longest message with descriptors: as many names.
const MAX_NAMES_BYTES: usize = 8 * 1024;
/// Longest other message.
const MAX_MESSAGE_BYTES: usize = 64;

/// The name of the lock of the data folder among the descriptors.
const LOCK: &str = "lock";
/// That of a channel to a process before the one that hands over.
const BEFORE: &str = "before";
const END: &str = "end";
const PID: &str = "pid ";
const READY: &str = "ready";
const GO: &str = "go";
const STOP: &str = "stop";

/// What two processes say to each other: packets of text.
#[derive(Debug)]
struct Channel(UnixStream);

impl Channel {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        UnixStream::from_std(socket.into()).map(Self)
    }

    /// A message always has room: there are few.
    fn send(&self, message: &str) -> io::Result<()> {
        send(&self.0, message.as_bytes(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Sends descriptors with their names, and [`END`].
    async fn send_descriptors(&self, named: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
        for some in named.chunks(MOST_AT_ONCE) {
            let (names, descriptors): (Vec<_>, Vec<_>) = some.iter().copied().unzip();
            let names = names.join(":");
            let send_some = || {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
                let names = [IoSlice::new(names.as_bytes())];
                sendmsg(&self.0, &names, &mut ancillary, SendFlags::NOSIGNAL)?;
                Ok(())
            };
            self.0.async_io(Interest::WRITABLE, send_some).await?;
        }
        let send_end = || self.send(END);
        self.0.async_io(Interest::WRITABLE, send_end).await
    }

    /// Whether the other process runs.
    fn is_open(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = recv(&self.0, &mut [0; 1], flags);
        peeked.map_or_else(|error| error == Errno::WOULDBLOCK, |(_, length)| length > 0)
    }

    /// The next message. Cancel-safe.
    async fn receive(&self) -> io::Result<String> {
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => return Ok(String::from_utf8_lossy(&bytes[..length]).into_owned()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What the process before this one hands over.
#[derive(Debug)]
pub(crate) struct Before {
    /// To it, then to those before it that have not finished yet.
    channels: Vec<Channel>,
    lock: File,
    /// Its listening sockets, by their names.
    pub(crate) sockets: Vec<(String, std::net::TcpListener)>,
}

/// What the process before this one hands over, where there is one. In the first of the two steps this starts the second one, and ends the process.
pub(crate) fn before() -> io::Result<Option<Before>> {
    let input = io::stdin();
    let step = std::env::var(VARIABLE).unwrap_or_default();
    // What this process starts has the variable, too.
    if step.is_empty() || sockopt::socket_type(&input) != Ok(SocketType::SEQPACKET) {
        return Ok(None);
    }
    if step == FIRST_STEP {
        own_command(&overlay_member::own_program())
            .env(VARIABLE, SECOND_STEP)
            .spawn()?;
        std::process::exit(0);
    }
    // Nobody else reads from it, and no process gets it: each has an input of its own.
    let socket = input.as_fd().try_clone_to_owned()?;
    let pid = format!("{PID}{}", getpid().as_raw_nonzero());
    send(&socket, pid.as_bytes(), SendFlags::NOSIGNAL)?;
    // It ends with the process at the other end.
    rustix::io::ioctl_fionbio(&socket, false)?;
    let (mut lock, mut sockets, mut before) = (None, Vec::new(), Vec::new());
    loop {
        let (names, descriptors) = receive_descriptors(&socket)?;
        if names == END {
            break;
        }
        for (name, descriptor) in names.split(':').zip(descriptors) {
            match name {
                LOCK => lock = Some(File::from(descriptor)),
                BEFORE => before.push(Channel::new(descriptor)?),
                _ => sockets.push((name.to_owned(), descriptor.into())),
            }
        }
    }
    rustix::io::ioctl_fionbio(&socket, true)?;
    before.insert(0, Channel::new(socket)?);
    Ok(Some(Before {
        channels: before,
        lock: lock.ok_or(io::ErrorKind::InvalidData)?,
        sockets,
    }))
}

/// The path by which this process was started, where it is whole and leads to its program: a link may lead to another version by the time of a reload. Else
/// that of the program itself.
fn own_path() -> PathBuf {
    let program = overlay_member::own_program();
    let named = std::env::args_os().next().map(PathBuf::from);
    let named = named.filter(|path| path.is_absolute());
    let leads_here = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == program);
    named.filter(leads_here).unwrap_or(program)
}

/// The program at this path, with the arguments of this process.
fn own_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let mut words = std::env::args_os();
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    command.args(words);
    command
}

fn receive_descriptors(from: &OwnedFd) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; MAX_NAMES_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(from, &mut into, &mut ancillary, flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    let names = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    Ok((names, descriptors))
}

/// The processes before and after this one.
#[derive(Debug)]
pub(crate) struct Processes {
    /// Where its program was when it started. Another one may be there since.
    program: PathBuf,
    sockets: Arc<Sockets>,
    before: Vec<Channel>,
    lock: Mutex<Option<File>>,
    /// SIGUSR2.
    asked: tokio::sync::Mutex<Signal>,
    /// The stop of this process.
    shutdown: CancellationToken,
}

impl Processes {
    pub(crate) fn new(
        sockets: Arc<Sockets>,
        before: Option<Before>,
        asked: Signal,
        shutdown: CancellationToken,
    ) -> Self {
        let (before, lock) = before.map(|before| (before.channels, before.lock)).unzip();
        Self {
            program: own_path(),
            sockets,
            before: before.unwrap_or_default(),
            lock: Mutex::new(lock),
            asked: tokio::sync::Mutex::new(asked),
            shutdown,
        }
    }

    /// This process stops. Those before it that have not finished yet do, too.
    pub(crate) fn stop(&self) {
        self.sockets.drop_copies();
        for before in &self.before {
            // It may have ended.
            let _ = before.send(STOP);
        }
    }

    async fn start_next(&self, lock: &File) -> io::Result<()> {
        if getpid().is_init() {
            let why = "this is the first process of a container, which ends with it";
            return Err(io::Error::other(why));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let sockets = self.sockets.copies()?;
        let mut named = vec![(LOCK, lock.as_fd())];
        named.extend(
            sockets
                .iter()
                .map(|(name, socket)| (&**name, socket.as_fd())),
        );
        let before = self.before.iter().filter(|before| before.is_open());
        named.extend(before.map(|before| (BEFORE, before.0.as_fd())));
        let channel = Channel::new(ours)?;
        let mut command = tokio::process::Command::from(own_command(&self.program));
        command
            .env(VARIABLE, FIRST_STEP)
            .stdin(Stdio::from(theirs))
            .kill_on_drop(true);
        let mut first_step = command.spawn()?;
        // Its end of the channel: when the new process ends, nobody else has it.
        drop(command);
        tracing::info!("another process is started in the place of this one");
        let starting = async {
            let pid = channel.receive().await?;
            let pid = pid.strip_prefix(PID).and_then(|pid| pid.parse().ok());
            let next = Starting::hold(pid.ok_or(io::ErrorKind::InvalidData)?)?;
            // Not before: where the program is another one, they would stay in the channel, and listen, for as long as anybody has its end.
            channel.send_descriptors(&named).await?;
            // From its end on who started this process is the parent of the new one.
            first_step.wait().await?;
            if channel.receive().await? != READY {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
            Ok(next)
        };
        let next = tokio::time::timeout(START_TIMEOUT, starting).await??;
        // Before systemd hears of the next one: what this one says afterwards is not heard.
        self.sockets.hand_over(&sockets);
        notify::main_process(next.pid());
        channel.send(GO)?;
        next.release();
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            match channel.receive().await {
                Ok(message) if message == STOP => tracing::info!(
                    "stopping, as the process does that has taken the place of this one"
                ),
                Ok(message) => {
                    return tracing::error!(message, "another process says what is not known here");
                }
                // Nobody would tell this one of a stop any more.
                Err(_) => tracing::warn!(
                    "stopping: the process that has taken the place of this one, and each that took its place, is gone"
                ),
            }
            shutdown.cancel();
        });
        Ok(())
    }
}

impl Succession for Processes {
    fn lock(&self) -> Option<File> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.take()
    }

    fn take_over(&self) -> BoxFuture<'_, io::Result<()>> {
        async {
            if let Some(before) = self.before.first() {
                before.send(READY)?;
                if before.receive().await? != GO {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            self.sockets.begin();
            notify::ready();
            Ok(())
        }
        .boxed()
    }

    fn asked(&self) -> BoxFuture<'_, ()> {
        async {
            self.asked.lock().await.recv().await;
        }
        .boxed()
    }

    fn hand_over<'a>(&'a self, lock: &'a File) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let started = self.start_next(lock).await;
            // Who asked twice meanwhile asked for this one.
            let _ = self.asked().now_or_never();
            started.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    io::Error::other("it ended before it was ready; the log says why")
                }
                io::ErrorKind::TimedOut => {
                    let seconds = START_TIMEOUT.as_secs();
                    io::Error::other(format!("it was not ready within {seconds} s"))
                }
                _ => error,
            })
        }
        .boxed()
    }
}

/// The next process, which ends when this is dropped.
struct Starting(Option<Process>);

impl Starting {
    fn hold(pid: i32) -> io::Result<Self> {
        Process::hold(pid).map(Some).map(Self)
    }

    fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, Process::pid)
    }

    /// It goes on by itself.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn more_descriptors_than_one_message_takes_are_handed_over_by_their_names() {
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::SEQPACKET;
        let (old, new) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        rustix::io::ioctl_fionbio(&old, true).unwrap();
        let file = File::open("/dev/null").unwrap();
        // More than what the channel has room for.
        let names: Vec<_> = (0..=60 * MOST_AT_ONCE)
            .map(|number| format!("tcp-{}", 30000 + number))
            .collect();
        let receiving = tokio::task::spawn_blocking(move || {
            let mut received = Vec::new();
            loop {
                let (names, descriptors) = receive_descriptors(&new).unwrap();
                if names == END {
                    return received;
                }
                assert_eq!(names.split(':').count(), descriptors.len());
                received.extend(names.split(':').map(str::to_owned));
            }
        });
        let named: Vec<_> = names.iter().map(|name| (&**name, file.as_fd())).collect();
        let channel = Channel::new(old).unwrap();
        channel.send_descriptors(&named).await.unwrap();
        assert_eq!(receiving.await.unwrap(), names);
    }
}

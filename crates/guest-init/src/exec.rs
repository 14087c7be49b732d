//! Commands that run beside the app, for `platform exec` and command health checks: on a terminal, or
//! on three pipes. Each has a channel of its own, and is killed when that breaks.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use guest_protocol::{BootConfig, Channel, ExecRequest, GuestFrame, HostFrame, Phase, Stream};
use model::instance::ExitEvent;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::Winsize;

use crate::link::{Event, Link};
use crate::namespace::AppNamespace;
use crate::plan::APP_CGROUP;
use crate::spawn::{
    self, EXIT_NOT_EXECUTABLE, Executable, Namespaces, Program, StartError, Streams,
};
use crate::user::User;
use crate::{clock, signals, sys};

/// Most sessions at once; more are refused.
pub(crate) const MAX_SESSIONS: usize = 32;
/// Bytes of output that wait for a slow node before the command's pipes are no longer read, and of input that
/// wait for a slow command before the channel is no longer read.
const BUFFER_BYTES: usize = 128 * 1024;
/// How long a finished session waits for the node to close the channel.
const LINGER: Duration = Duration::from_secs(5);
/// How long the node may take to accept the channel that it asked for.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// Bytes read from a pipe at a time.
const READ_BYTES: usize = 16 * 1024;
/// The variable with the type of a terminal.
const TERM: &str = "TERM";
/// The type of a terminal where neither the node nor the app's environment names one.
const DEFAULT_TERMINAL_TYPE: &str = "xterm";
/// End of input, as typed on a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// The app that a command runs beside.
pub(crate) struct Beside<'a> {
    /// Its environment and working directory.
    pub(crate) config: &'a BootConfig,
    /// Its user.
    pub(crate) user: &'a User,
    /// Its namespaces.
    pub(crate) namespace: &'a AppNamespace,
    /// Its main process.
    pub(crate) main: i32,
}

/// One command and its channel.
pub(crate) struct Session {
    request: ExecRequest,
    link: Link,
    /// When to give up dialling; absent once it is connected.
    dial_until: Option<Instant>,
    pid: Option<i32>,
    status: Option<ExitEvent>,
    input: Option<OwnedFd>,
    input_pending: Vec<u8>,
    input_ended: bool,
    outputs: Vec<(Stream, OwnedFd)>,
    terminal: Option<OwnedFd>,
    linger_until: Option<Instant>,
    over: bool,
}

/// One of a session's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExecToken {
    /// The channel.
    Link,
    /// The command's input.
    Input,
    /// One of the command's outputs, by its index.
    Output(usize),
}

impl Session {
    /// A session that dials at once, and starts the command once it is connected.
    pub(crate) fn new(request: ExecRequest, now: Instant) -> Self {
        let channel = Channel::Exec {
            session: request.session,
        };
        Self {
            request,
            link: Link::new(channel, now),
            dial_until: Some(now + DIAL_LIMIT),
            pid: None,
            status: None,
            input: None,
            input_pending: Vec::new(),
            input_ended: false,
            outputs: Vec::new(),
            terminal: None,
            linger_until: None,
            over: false,
        }
    }

    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        self.request.session
    }

    /// Whether this session's command has this pid.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        self.pid == Some(pid)
    }

    /// How the command ended, where it did.
    pub(crate) fn status(&self) -> Option<ExitEvent> {
        self.status.clone()
    }

    /// Sends a signal to the command and what it started.
    pub(crate) fn signal(&self, signal: i32) {
        if let Some(pid) = self.pid {
            // It may have ended just now.
            let _ = sys::kill(-pid, signal);
        }
    }

    /// Whether the session is finished.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Handles the end of the command.
    pub(crate) fn ended(&mut self, event: ExitEvent) {
        self.status = Some(event);
        self.pid = None;
        self.input = None;
    }

    /// Moves the bytes that can be moved, and applies the session's time limits.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.link.tick(now);
        self.write_input();
        if let Some(event) = self.status.clone()
            && self.linger_until.is_none()
            && self.drain()
        {
            self.link.send(&GuestFrame::ExecExited(event));
            self.linger_until = Some(now + LINGER);
        }
        let limits = [self.linger_until, self.dial_until];
        if limits.into_iter().flatten().any(|until| until <= now) {
            self.over = true;
        }
        if self.link.flush().is_err() {
            self.abandon();
        }
    }

    /// When [`Self::tick`] has something to do without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.linger_until, self.dial_until, self.link.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The events to wait for.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (ExecToken, BorrowedFd<'_>, PollFlags)> {
        let listen = self.input_pending.len() < BUFFER_BYTES;
        let link = self
            .link
            .interest(false, listen)
            .map(|(fd, flags)| (ExecToken::Link, fd, flags));
        let input = self
            .input
            .as_ref()
            .filter(|_| !self.input_pending.is_empty())
            .map(|fd| (ExecToken::Input, fd.as_fd(), PollFlags::OUT));
        let room = self.link.outgoing_bytes() < BUFFER_BYTES && self.status.is_none();
        let outputs = self
            .outputs
            .iter()
            .enumerate()
            .filter(move |_| room)
            .map(|(at, (_, fd))| (ExecToken::Output(at), fd.as_fd(), PollFlags::IN));
        link.into_iter().chain(input).chain(outputs)
    }

    /// Handles an event that [`Self::interests`] waited for.
    pub(crate) fn ready(
        &mut self,
        token: ExecToken,
        beside: &Beside<'_>,
        phase: &Phase,
        now: Instant,
    ) {
        match token {
            ExecToken::Input => self.write_input(),
            ExecToken::Output(at) => {
                self.read_output(at);
            }
            ExecToken::Link => {
                for event in self.link.ready(phase, now) {
                    match event {
                        Event::Connected => {
                            self.dial_until = None;
                            self.start(beside);
                        }
                        Event::Frame(frame) => self.handle(frame),
                        // A channel that was never connected is dialled again.
                        Event::Lost if self.dial_until.is_none() => self.abandon(),
                        Event::Refused | Event::Lost => {}
                    }
                }
            }
        }
    }

    fn handle(&mut self, frame: HostFrame) {
        match frame {
            HostFrame::ExecInput { bytes } if bytes.is_empty() => {
                self.input_ended = true;
                if self.terminal.is_some() {
                    self.input_pending.push(END_OF_TRANSMISSION);
                }
                self.write_input();
            }
            HostFrame::ExecInput { bytes } if self.input.is_some() && !self.input_ended => {
                self.input_pending.extend_from_slice(&bytes);
                self.write_input();
            }
            HostFrame::ExecResize { rows, columns } => {
                if let Some(terminal) = &self.terminal {
                    // Cannot fail: this process has the terminal's master.
                    let _ = rustix::termios::tcsetwinsize(terminal, window(rows, columns));
                }
            }
            HostFrame::Signal { signal } => {
                if let Some(signal) = signals::number(&signal) {
                    self.signal(signal);
                }
            }
            _ => {}
        }
    }

    fn start(&mut self, beside: &Beside<'_>) {
        let started = match self.request.terminal {
            Some((rows, columns)) => self.start_on_terminal(rows, columns, beside),
            None => self.start_on_pipes(beside),
        };
        if let Err(error) = started {
            self.link.send(&GuestFrame::ExecOutput {
                stream: Stream::Stderr,
                bytes: format!("platform: {error}\n").into_bytes(),
            });
            self.outputs.clear();
            self.ended(ExitEvent {
                exit_code: error.exit_code().unwrap_or(EXIT_NOT_EXECUTABLE),
                signal: None,
                oom_killed: false,
                requested_stop: false,
                at: clock::now(),
            });
        }
    }

    fn start_on_pipes(&mut self, beside: &Beside<'_>) -> Result<(), StartError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(prepare("make a pipe"));
        let (input, ours_in) = pipe()?;
        let (ours_out, output) = pipe()?;
        let (ours_err, error) = pipe()?;
        for fd in [&ours_in, &ours_out, &ours_err] {
            rustix::io::ioctl_fionbio(fd, true).map_err(prepare("set up a pipe"))?;
        }
        let streams = Streams::Pipes {
            input: Some(input),
            output,
            error,
        };
        self.pid = Some(self.spawn(beside, &beside.config.environment, streams)?);
        self.input = Some(ours_in);
        self.outputs = vec![(Stream::Stdout, ours_out), (Stream::Stderr, ours_err)];
        Ok(())
    }

    fn start_on_terminal(
        &mut self,
        rows: u16,
        columns: u16,
        beside: &Beside<'_>,
    ) -> Result<(), StartError> {
        let open = || -> std::io::Result<(OwnedFd, OwnedFd)> {
            let master: OwnedFd = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
                .open("/dev/ptmx")?
                .into();
            let terminal = sys::terminal_of(master.as_fd())?;
            rustix::termios::tcsetwinsize(&terminal, window(rows, columns))?;
            Ok((master, terminal))
        };
        let duplicate = |fd: &OwnedFd| {
            fd.try_clone().map_err(|source| StartError::Prepare {
                what: "open a terminal",
                source,
            })
        };
        let (master, terminal) = open().map_err(|source| StartError::Prepare {
            what: "open a terminal",
            source,
        })?;
        let environment = terminal_environment(
            &beside.config.environment,
            self.request.terminal_type.as_deref(),
        );
        self.input = Some(duplicate(&master)?);
        self.terminal = Some(duplicate(&master)?);
        self.outputs = vec![(Stream::Stdout, master)];
        self.pid = Some(self.spawn(beside, &environment, Streams::Terminal(terminal))?);
        Ok(())
    }

    fn spawn(
        &self,
        beside: &Beside<'_>,
        environment: &[(String, String)],
        streams: Streams,
    ) -> Result<i32, StartError> {
        let cgroup = cgroup(beside.main);
        let program = Program {
            argv: if self.request.main {
                &beside.config.argv
            } else {
                &self.request.argv
            },
            environment,
            working_dir: &beside.config.working_dir,
            user: beside.user,
            cgroup: Some(&cgroup),
            executable: Executable::Image,
            namespaces: Namespaces::Beside(beside.namespace),
        };
        spawn::spawn(&program, streams)
    }

    fn write_input(&mut self) {
        let Some(fd) = &self.input else {
            self.input_pending.clear();
            return;
        };
        while !self.input_pending.is_empty() {
            match rustix::io::write(fd, &self.input_pending) {
                Ok(bytes) => drop(self.input_pending.drain(..bytes)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The command closed its input.
                Err(_) => {
                    self.input = None;
                    self.input_pending.clear();
                    return;
                }
            }
        }
        if self.input_ended {
            self.input = None;
        }
    }

    /// Reads once from an output. True: nothing more can be read now.
    fn read_output(&mut self, at: usize) -> bool {
        let Some((stream, fd)) = self.outputs.get(at) else {
            return true;
        };
        let mut bytes = [0; READ_BYTES];
        match rustix::io::read(fd, &mut bytes) {
            Err(Errno::INTR) => false,
            Err(Errno::AGAIN) => true,
            // A terminal whose other end is closed answers EIO.
            Ok(0) | Err(_) => {
                self.outputs.remove(at);
                true
            }
            Ok(length) => {
                self.link.send(&GuestFrame::ExecOutput {
                    stream: *stream,
                    bytes: bytes[..length].to_vec(),
                });
                false
            }
        }
    }

    /// Reads the output that a command left in its pipes when it ended. True: all was read. Processes that go
    /// on in the background with the pipes open are not waited for.
    fn drain(&mut self) -> bool {
        while let Some(last) = self.outputs.len().checked_sub(1) {
            // The last first: an output is removed when it is empty.
            while self.link.outgoing_bytes() < BUFFER_BYTES {
                if self.read_output(last) {
                    self.outputs.truncate(last);
                    break;
                }
            }
            if self.outputs.len() > last {
                return false;
            }
        }
        true
    }

    /// The channel broke, or nobody is behind it any more: kills the command and its process group.
    pub(crate) fn abandon(&mut self) {
        if let Some(pid) = self.pid.take() {
            // It may have ended just now.
            let _ = sys::kill(-pid, libc::SIGKILL);
        }
        self.over = true;
    }
}

/// The cgroup of a command: the app's own. An app that divides it among cgroups of its own (systemd does) leaves no room
/// for processes in it: then that of the main process.
fn cgroup(main: i32) -> String {
    let divided = fs::read_to_string(format!("{APP_CGROUP}/cgroup.subtree_control"))
        .is_ok_and(|controllers| !controllers.trim().is_empty());
    divided
        .then(|| AppNamespace::cgroup_of(main))
        .flatten()
        .unwrap_or_else(|| APP_CGROUP.to_owned())
}

/// The environment of a command on a terminal: `TERM` is the type of the user's, where the node names it.
fn terminal_environment(
    environment: &[(String, String)],
    terminal_type: Option<&str>,
) -> Vec<(String, String)> {
    let known = environment.iter().rfind(|(name, _)| name == TERM);
    let value = terminal_type
        .or(known.map(|(_, value)| value.as_str()))
        .unwrap_or(DEFAULT_TERMINAL_TYPE);
    environment
        .iter()
        .filter(|(name, _)| name != TERM)
        .cloned()
        .chain([(TERM.to_owned(), value.to_owned())])
        .collect()
}

fn prepare(what: &'static str) -> impl FnOnce(Errno) -> StartError {
    move |error| StartError::Prepare {
        what,
        source: error.into(),
    }
}

fn window(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::terminal_environment;

    #[test]
    fn a_terminal_has_the_type_of_the_users_and_one_only() {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let term = |environment: &[(String, String)], wanted| {
            terminal_environment(environment, wanted)
                .into_iter()
                .filter(|(name, _)| name == "TERM")
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
        };
        let set = [variable("TERM", "dumb"), variable("PATH", "/bin")];
        assert_eq!(term(&set, Some("screen-256color")), ["screen-256color"]);
        assert_eq!(term(&set, None), ["dumb"]);
        assert_eq!(term(&set[1..], None), ["xterm"]);
    }
}

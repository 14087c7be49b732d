//! The life of a guest: boot, run, end; and the loop that serves it.
//!
//! ```text
//!  waiting --Boot--> starting --app runs--> running --app ended--> ending --all dead--> exited
//!     |                  |                                                                |
//!     +---- early step   +---- step failed -----> failed                                  |
//!                                                    +---------- ExitAck -----------------+--> off
//! ```
//!
//! The end is reported to the node only when every process is dead and every volume unmounted, because the
//! node may destroy the VM as soon as it has the report.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{
    BootConfig, BootFailure, Channel, ExecRequest, Forwarded, GuestFrame, HostFrame, Phase, Stream,
};
use model::instance::ExitEvent;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{WaitOptions, WaitStatus, wait};

use crate::adapter::Adapter;
use crate::exec::{ExecToken, MAX_SESSIONS, Session};
use crate::execute::{self, Booted};
use crate::forward::{Forward, ForwardToken};
use crate::link::{Event, Link};
use crate::output::{Output, OutputToken};
use crate::plan::{APP_CGROUP, boot_plan};
use crate::user::User;
use crate::{clock, console, early, signals, stats, sys};

/// How long the app may take to stop when the guest itself is asked to end (`kill 1`).
const OWN_STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long killed processes may take to disappear: the kernel may be waiting for a disk.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last lines may take to be acknowledged after the node has the exit.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// After this long without a boot config the console says what init is waiting for.
const QUIET_WAIT: Duration = Duration::from_secs(10);

/// Runs the guest from boot to end. Returns when the machine is to be powered off.
///
/// # Errors
/// The node cannot be reached, or refuses this guest.
pub(crate) fn run() -> io::Result<()> {
    let signals = sys::signal_fd()?;
    let early = early::prepare();
    let mut control = Link::new(Channel::Control, Instant::now());
    if let Err(error) = early {
        let failure = failed(error.step().to_owned(), error.to_string(), None);
        return Guest::new(signals, control, State::Reporting(failure)).serve();
    }
    let (mut config, early_frames) = wait_for_boot(&mut control)?;
    if config.working_dir.is_empty() {
        "/".clone_into(&mut config.working_dir);
    }
    match boot(&config) {
        Err(failure) => Guest::new(signals, control, State::Reporting(failure)).serve(),
        Ok((user, app, booted)) => {
            // They are in files on a tmpfs now: init keeps no copy.
            config.secrets = Vec::new();
            let running = Running {
                config,
                user,
                volumes: booted.volumes,
                pid: app.pid,
            };
            let mut guest = Guest::new(signals, control, State::Running(running));
            if let Some((adapter, output)) = booted.adapter {
                guest.adapter = Some(adapter);
                guest.output.read_from(Stream::Platform, output);
            }
            if let Some((forward, output)) = booted.forward {
                guest.forward = Some(forward);
                guest.output.read_from(Stream::Platform, output);
            }
            guest.output.read_from(Stream::Stdout, app.stdout);
            guest.output.read_from(Stream::Stderr, app.stderr);
            for note in booted.notes {
                guest.output.log(&note);
            }
            guest.control.send(&GuestFrame::Started);
            for frame in early_frames {
                guest.handle(frame, Instant::now());
            }
            guest.serve()
        }
    }
}

fn failed(step: String, reason: String, exit_code: Option<u8>) -> GuestFrame {
    console::print(&format!("{step}: {reason}"));
    GuestFrame::BootFailed(BootFailure {
        step,
        reason,
        exit_code,
    })
}

fn boot(config: &BootConfig) -> Result<(User, execute::App, Booted), GuestFrame> {
    let mut booted = Booted::default();
    for step in boot_plan(config) {
        if let Err(error) = execute::perform(&step, config, &mut booted) {
            unmount_volumes(&booted.volumes);
            return Err(failed(step.name(), error.to_string(), error.exit_code()));
        }
    }
    match (booted.user.take(), booted.app.take()) {
        (Some(user), Some(app)) => Ok((user, app, booted)),
        _ => Err(failed(
            "start the app".to_owned(),
            "the boot plan has no such step".to_owned(),
            None,
        )),
    }
}

/// Dials the node until it sends the boot config. Returns also the frames that came right after it.
fn wait_for_boot(control: &mut Link) -> io::Result<(BootConfig, Vec<HostFrame>)> {
    let since = Instant::now();
    let mut printed = false;
    loop {
        let now = Instant::now();
        control.tick(now);
        if control.is_hopeless() {
            return Err(io::Error::other(
                "this machine has no vsock device, so no node can be asked for a boot config",
            ));
        }
        if !printed && now.duration_since(since) > QUIET_WAIT {
            printed = true;
            let reason = control
                .last_error()
                .map_or("no boot config yet".to_owned(), io::Error::to_string);
            console::print(&format!("waiting for the node: {reason}"));
        }
        let deadline = control
            .deadline()
            .or((!printed).then_some(since + QUIET_WAIT));
        let Some((fd, flags)) = control.interest(false, true) else {
            pause(&mut [], deadline);
            continue;
        };
        let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
        pause(&mut polled, deadline);
        if polled[0].revents().is_empty() {
            continue;
        }
        let mut events = control.ready(&Phase::Waiting, Instant::now()).into_iter();
        while let Some(event) = events.next() {
            match event {
                Event::Frame(HostFrame::Boot(config)) => {
                    let rest = events.filter_map(|event| match event {
                        Event::Frame(frame) => Some(frame),
                        _ => None,
                    });
                    return Ok((*config, rest.collect()));
                }
                Event::Refused => {
                    return Err(io::Error::other(
                        "without the node's boot config there is nothing to run",
                    ));
                }
                _ => {}
            }
        }
    }
}

/// Waits until a descriptor is ready, or until a deadline.
fn pause(fds: &mut [PollFd<'_>], deadline: Option<Instant>) {
    let timeout = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    });
    // A wake-up without an event is harmless, and errors of a descriptor are found by its owner.
    let _ = poll(fds, timeout.as_ref());
}

/// What the loop waits for: one of the guest's descriptors.
#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    Control,
    Output(OutputToken),
    Forward(ForwardToken),
    Exec(u32, ExecToken),
}

/// The state of the guest, once it has its boot config.
enum State {
    /// The app runs.
    Running(Running),
    /// The app ended; the processes that it left are being killed.
    Ending {
        running: Running,
        event: ExitEvent,
        until: Instant,
    },
    /// The end is reported, again on each connection, until the node acknowledges it.
    Reporting(GuestFrame),
    /// The node acknowledged the end; the last lines are being sent.
    Acknowledged { until: Instant },
    /// Nothing is left to do.
    Over,
}

struct Running {
    config: BootConfig,
    user: User,
    volumes: Vec<String>,
    pid: i32,
}

struct Guest {
    signals: OwnedFd,
    control: Link,
    output: Output,
    state: State,
    sessions: Vec<Session>,
    /// Where the instance has one, while the app runs.
    adapter: Option<Adapter>,
    /// Where the kernel can have one, while the app runs.
    forward: Option<Forward>,
    kill_at: Option<Instant>,
    requested_stop: bool,
}

impl Guest {
    fn new(signals: OwnedFd, control: Link, state: State) -> Self {
        let mut guest = Self {
            signals,
            control,
            output: Output::new(Instant::now()),
            state,
            sessions: Vec::new(),
            adapter: None,
            forward: None,
            kill_at: None,
            requested_stop: false,
        };
        guest.report_end();
        guest
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Running(_) | State::Ending { .. } => Phase::Running,
            State::Reporting(GuestFrame::BootFailed(_)) => Phase::Failed,
            _ => Phase::Exited,
        }
    }

    /// Sends the end, where there is one, on the present connection.
    fn report_end(&mut self) {
        if let State::Reporting(frame) = &self.state {
            self.control.send(frame);
        }
    }

    /// Sends the ports that are forwarded to, where there are any, on the present connection.
    fn report_forwarded(&mut self) {
        let ports = self.forward.as_ref().map_or(&[][..], Forward::ports);
        if !ports.is_empty() {
            let ports = ports.to_vec();
            self.control
                .send(&GuestFrame::Forwarded(Forwarded { ports }));
        }
    }

    /// The loop, until the machine is to be powered off.
    fn serve(mut self) -> io::Result<()> {
        loop {
            let now = Instant::now();
            self.tick(now);
            match &self.state {
                State::Over => return Ok(()),
                State::Acknowledged { until } if *until <= now || self.output.is_done() => {
                    return Ok(());
                }
                State::Reporting(_) if self.control.is_hopeless() => {
                    return Err(io::Error::other(
                        "this machine has no vsock device, so the node cannot be told of the end",
                    ));
                }
                _ => {}
            }
            for token in self.wait() {
                self.dispatch(token, Instant::now());
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        self.control.tick(now);
        if let Err(error) = self.control.flush() {
            self.control.lost(Some(error), now);
        }
        self.output.tick(now);
        for session in &mut self.sessions {
            session.tick(now);
        }
        self.sessions.retain(|session| !session.is_over());
        if let Some(adapter) = &mut self.adapter
            && let Err(error) = adapter.tick(now)
        {
            self.output
                .log(&format!("the PROXY adapter does not start: {error}"));
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            kill_app();
        }
        if let State::Ending { until, .. } = &self.state
            && *until <= now
        {
            self.output
                .log("killed processes did not disappear; the guest ends without waiting for them");
            self.output.close();
            self.end();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let end = match &self.state {
            State::Ending { until, .. } | State::Acknowledged { until } => Some(*until),
            _ => None,
        };
        let sessions = self.sessions.iter().filter_map(Session::deadline).min();
        [
            end,
            sessions,
            self.adapter.as_ref().and_then(Adapter::deadline),
            self.forward.as_ref().and_then(Forward::deadline),
            self.kill_at,
            self.control.deadline(),
            self.output.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn wait(&self) -> Vec<Token> {
        let mut tokens = vec![Token::Signals];
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        let mut add = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some((fd, flags)) = self.control.interest(false, true) {
            add(Token::Control, fd, flags);
        }
        for (token, fd, flags) in self.output.interests() {
            add(Token::Output(token), fd, flags);
        }
        for (token, fd) in self.forward.iter().flat_map(Forward::interests) {
            add(Token::Forward(token), fd, PollFlags::IN);
        }
        for session in &self.sessions {
            for (token, fd, flags) in session.interests() {
                add(Token::Exec(session.number(), token), fd, flags);
            }
        }
        pause(&mut fds, self.deadline());
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        tokens
            .into_iter()
            .zip(ready)
            .filter_map(|(token, ready)| ready.then_some(token))
            .collect()
    }

    fn dispatch(&mut self, token: Token, now: Instant) {
        let phase = self.phase();
        match token {
            Token::Signals => self.take_signals(now),
            Token::Output(token) => self.output.ready(token, &phase, now),
            Token::Control => {
                for event in self.control.ready(&phase, now) {
                    match event {
                        Event::Connected => {
                            self.report_end();
                            self.report_forwarded();
                        }
                        Event::Frame(frame) => self.handle(frame, now),
                        Event::Refused | Event::Lost => {}
                    }
                }
            }
            Token::Forward(token) => {
                if let Some(forward) = &mut self.forward {
                    let (ports, lines) = forward.ready(token, now);
                    if let Some(ports) = ports {
                        self.control
                            .send(&GuestFrame::Forwarded(Forwarded { ports }));
                    }
                    for line in lines {
                        self.output.log(&line);
                    }
                }
            }
            Token::Exec(number, token) => {
                if let State::Running(running) | State::Ending { running, .. } = &self.state
                    && let Some(session) = self
                        .sessions
                        .iter_mut()
                        .find(|session| session.number() == number)
                {
                    session.ready(token, &running.config, &running.user, &phase, now);
                }
            }
        }
    }

    fn handle(&mut self, frame: HostFrame, now: Instant) {
        match frame {
            HostFrame::Stop { timeout_ms } => {
                self.requested_stop |= matches!(self.state, State::Running(_));
                self.stop(Duration::from_millis(timeout_ms), now);
            }
            HostFrame::Signal { signal } => match (&self.state, signals::number(&signal)) {
                (State::Running(running), Some(signal)) => {
                    // It may have ended just now.
                    let _ = sys::kill(running.pid, signal);
                }
                (_, None) => self.output.log(&format!("there is no signal {signal:?}")),
                _ => {}
            },
            HostFrame::Stats => self.control.send(&GuestFrame::Stats(stats::read())),
            HostFrame::Exec(request) => self.exec(request, now),
            HostFrame::ExitAck => {
                if let State::Reporting(_) = self.state {
                    self.state = State::Acknowledged {
                        until: now + LOG_FLUSH_TIMEOUT,
                    };
                }
            }
            // A boot config for a guest that has one, and frames of other channels.
            _ => {}
        }
    }

    fn exec(&mut self, request: ExecRequest, now: Instant) {
        let session = request.session;
        let reason = if !matches!(self.state, State::Running(_)) {
            "its app is not running".to_owned()
        } else if self.sessions.len() >= MAX_SESSIONS {
            format!("{MAX_SESSIONS} commands are running in it already")
        } else if self.sessions.iter().any(|s| s.number() == session) {
            format!("it has a session {session} already")
        } else {
            self.sessions.push(Session::new(request, now));
            return;
        };
        self.control
            .send(&GuestFrame::ExecRefused { session, reason });
    }

    /// Signals the app, and kills it and all its processes when it has not ended in time.
    fn stop(&mut self, timeout: Duration, now: Instant) {
        let State::Running(running) = &self.state else {
            return;
        };
        let name = &running.config.stop_signal;
        let signal = signals::number(name).unwrap_or_else(|| {
            self.output
                .log(&format!("there is no signal {name:?}: stopping by SIGTERM"));
            libc::SIGTERM
        });
        // It may have ended just now.
        let _ = sys::kill(running.pid, signal);
        let kill_at = now.checked_add(timeout).unwrap_or(now);
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
    }

    fn take_signals(&mut self, now: Instant) {
        const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();
        let mut bytes = [0; INFO_BYTES * 8];
        while let Ok(length) = rustix::io::read(&self.signals, &mut bytes) {
            if length == 0 {
                break;
            }
            for info in bytes[..length].chunks_exact(INFO_BYTES) {
                let number = info.first_chunk().map_or(0, |n| i32::from_ne_bytes(*n));
                let ends = [
                    libc::SIGTERM,
                    libc::SIGINT,
                    libc::SIGPWR,
                    libc::SIGUSR1,
                    libc::SIGUSR2,
                ];
                if ends.contains(&number) {
                    self.stop(OWN_STOP_TIMEOUT, now);
                }
            }
        }
        self.reap(now);
    }

    /// Reaps all children: init's own and orphans.
    fn reap(&mut self, now: Instant) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    self.child_ended(pid.as_raw_nonzero().get(), status, now);
                }
                Err(Errno::INTR) => {}
                Ok(None) => return,
                // There are no children left.
                Err(_) => {
                    if let State::Ending { .. } = self.state {
                        self.end();
                    }
                    return;
                }
            }
        }
    }

    fn child_ended(&mut self, pid: i32, status: WaitStatus, now: Instant) {
        if let Some(session) = self
            .sessions
            .iter_mut()
            .find(|session| session.has_pid(pid))
        {
            session.ended(exit_event(status, false));
            return;
        }
        if let Some(adapter) = self.adapter.as_mut().filter(|adapter| adapter.has_pid(pid)) {
            adapter.ended(now);
            self.output
                .log("the PROXY adapter ended; it is started again");
            return;
        }
        if let Some(forward) = self.forward.as_mut().filter(|forward| forward.has_pid(pid)) {
            forward.ended(now);
            self.output
                .log("the forwarder ended; another is started for the next connection");
            return;
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Running(running) if running.pid == pid => {
                self.kill_at = None;
                self.adapter = None;
                self.forward = None;
                let event = exit_event(status, self.requested_stop);
                // Processes that outlive the app are killed: all but init, whatever their cgroup.
                let _ = sys::kill(-1, libc::SIGKILL);
                self.state = State::Ending {
                    running,
                    event,
                    until: now + KILL_TIMEOUT,
                };
            }
            other => self.state = other,
        }
    }

    /// Every process is dead: unmounts the volumes and reports the end.
    fn end(&mut self) {
        if let State::Ending { running, event, .. } =
            std::mem::replace(&mut self.state, State::Over)
        {
            unmount_volumes(&running.volumes);
            self.state = State::Reporting(GuestFrame::Exited(event));
            self.report_end();
        }
    }
}

/// How a process ended, by the platform's rules.
fn exit_event(status: WaitStatus, requested_stop: bool) -> ExitEvent {
    let signal = status
        .terminating_signal()
        .and_then(|signal| u8::try_from(signal).ok());
    let code = status
        .exit_status()
        .and_then(|code| u8::try_from(code).ok());
    ExitEvent {
        exit_code: signal.map_or(code.unwrap_or(0), |signal| signal.saturating_add(128)),
        signal,
        oom_killed: stats::oom_kills() > 0,
        requested_stop,
        at: clock::now(),
    }
}

/// Kills the app and all processes in its cgroup.
fn kill_app() {
    if fs::write(format!("{APP_CGROUP}/cgroup.kill"), "1").is_err() {
        // A kernel before 5.14, or an app that took its cgroup apart.
        let _ = sys::kill(-1, libc::SIGKILL);
    }
}

/// Syncs the volumes and unmounts them. A volume that is still in use is made read-only, which leaves its
/// file system clean as well.
fn unmount_volumes(volumes: &[String]) {
    for volume in volumes.iter().rev() {
        if let Ok(directory) = fs::File::open(volume) {
            let _ = rustix::fs::syncfs(&directory);
        }
        if unmount(volume.as_str(), UnmountFlags::empty()).is_err() {
            let remounted = mount_remount(volume.as_str(), MountFlags::RDONLY, "");
            let _ = unmount(volume.as_str(), UnmountFlags::DETACH);
            if let Err(error) = remounted {
                console::print(&format!("{volume} is left mounted: {error}"));
            }
        }
    }
}

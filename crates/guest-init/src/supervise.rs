//! The life of a guest: boot, run, end; and the loop that serves it.
//!
//! ```text
//!  waiting --Boot--> starting --app runs--> running --main process ended--> draining --none left--> ending
//!     |                  |                                                                             |
//!     +---- early step   +---- step failed --> failed           off <--ExitAck-- exited <--all dead----+
//!                                                +-------ExitAck--^
//! ```
//!
//! The app is its main process. What that leaves when it ends gets the stop signal as well, and time to end: after
//! a requested stop the rest of the stop's timeout, after an end by itself [`DRAIN_TIMEOUT`]. Then everything is
//! killed.
//!
//! The end is reported to the node only when every process is dead and every volume unmounted, because the
//! node may destroy the VM as soon as it has the report.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{
    BootConfig, Channel, ExecRequest, Forwarded, GuestFrame, GuestMtu, HostFrame, Phase, Stream,
};
use model::instance::ExitEvent;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};

use crate::adapter::Adapter;
use crate::boot::{boot, failed, wait_for_boot};
use crate::clock::ClockSync;
use crate::exec::{Beside, ExecToken, MAX_SESSIONS, Session};
use crate::forward::{Forward, ForwardToken};
use crate::link::{Event, Link};
use crate::namespace::AppNamespace;
use crate::oom::{self, KernelLog};
use crate::output::{Output, OutputToken};
use crate::progress::{Progress, pause};
use crate::unmount::unmount_volumes;
use crate::user::User;
use crate::{clock, early, namespace, netlink, signals, stats, sys};

/// How long the processes that the main process leaves may take to stop when it ended by itself.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long killed processes may take to disappear: the kernel may be waiting for a disk.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last lines may take to be acknowledged after the node has the exit.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an attached command waits for its user.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the guest from boot to end. Returns when the machine is to be powered off.
///
/// # Errors
/// The node cannot be reached, or refuses this guest.
pub(crate) fn run() -> io::Result<()> {
    let signals = sys::signal_fd()?;
    let early = early::prepare();
    let mut control = Link::new(Channel::Control, Instant::now());
    let mut clock = ClockSync::new(Instant::now());
    if let Err(error) = early {
        let failure = failed(error.step().to_owned(), error.to_string(), None);
        return Guest::new(signals, control, clock, State::Reporting(failure)).serve();
    }
    let (mut config, mut early_frames) = wait_for_boot(&mut control, &mut clock)?;
    if config.working_dir.is_empty() {
        "/".clone_into(&mut config.working_dir);
    }
    let mut progress = Progress::new(&mut control, &mut clock, Instant::now());
    let booted = boot(&config, &mut progress);
    early_frames.extend(progress.into_frames());
    match booted {
        Err(failure) => Guest::new(signals, control, clock, State::Reporting(failure)).serve(),
        Ok((user, app, booted)) => {
            // They are in files on a tmpfs now: init keeps no copy.
            config.secrets = Vec::new();
            let attached = if config.attached {
                Attached::Waits {
                    until: Instant::now() + ATTACH_TIMEOUT,
                }
            } else {
                Attached::Never
            };
            let running = Running {
                config,
                user,
                volumes: booted.volumes,
                pid: app.pid,
                namespace: app.namespace,
            };
            let mut guest = Guest::new(signals, control, clock, State::Running(running));
            guest.attached = attached;
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

/// What the loop waits for: one of the guest's descriptors.
#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    KernelLog,
    Control,
    Output(OutputToken),
    Forward(ForwardToken),
    Exec(u32, ExecToken),
}

/// How the kernel reports the end of a PID 1 that halted or powered off (reboot(2)): as SIGINT.
const POWERED_OFF: u8 = 2;

/// The signal by which a session ends whose user has left: SIGHUP.
const HUNG_UP: u8 = 1;

/// The state of the guest, once it has its boot config.
enum State {
    /// The app runs.
    Running(Running),
    /// The app's main process ended; those that it left have been asked to end.
    Draining {
        running: Running,
        event: ExitEvent,
        until: Instant,
    },
    /// Every process is being killed.
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

/// The session that a guest is for ([`BootConfig::attached`]).
enum Attached {
    /// There is none: the app is.
    Never,
    /// The node has not asked for it yet.
    Waits { until: Instant },
    /// It was asked for.
    Session(u32),
    /// It is over, with this end; absent: the user left before.
    Over(Option<ExitEvent>),
}

struct Running {
    config: BootConfig,
    user: User,
    volumes: Vec<String>,
    /// The main process, by the pid that init sees.
    pid: i32,
    namespace: AppNamespace,
}

impl Running {
    /// The main process is PID 1 of its namespace: the image brings an init of its own.
    fn is_pid_1(&self) -> bool {
        self.namespace.has_pid_1(self.pid)
    }

    /// The signal that stops the app, and a warning where the one that is wanted does not exist.
    fn stop_signal(&self) -> (i32, Option<String>) {
        let name = &self.config.stop_signal;
        match signals::number(name) {
            // To systemd, SIGTERM says "execute yourself again"; the order to stop has another (systemd(1)).
            Some(libc::SIGTERM) if self.is_pid_1() && namespace::is_systemd(self.pid) => {
                (libc::SIGRTMIN() + 3, None)
            }
            Some(signal) => (signal, None),
            None => {
                let warning = format!("there is no signal {name:?}: stopping by SIGTERM");
                (libc::SIGTERM, Some(warning))
            }
        }
    }
}

struct Guest {
    signals: OwnedFd,
    kernel_log: KernelLog,
    control: Link,
    clock: ClockSync,
    output: Output,
    state: State,
    sessions: Vec<Session>,
    /// Where the instance has one, while the app runs.
    adapter: Option<Adapter>,
    /// Where the kernel can have one, while the app runs.
    forward: Option<Forward>,
    kill_at: Option<Instant>,
    requested_stop: bool,
    attached: Attached,
}

impl Guest {
    fn new(signals: OwnedFd, control: Link, clock: ClockSync, state: State) -> Self {
        let kernel_log = KernelLog::open();
        let mut output = Output::new(Instant::now());
        if let Err(error) = &kernel_log {
            output.log(&format!(
                "kills for want of memory are not reported: /dev/kmsg: {error}"
            ));
        }
        let mut guest = Self {
            signals,
            kernel_log: KernelLog::new(kernel_log.ok()),
            control,
            clock,
            output,
            state,
            sessions: Vec::new(),
            adapter: None,
            forward: None,
            kill_at: None,
            requested_stop: false,
            attached: Attached::Never,
        };
        guest.report_end();
        guest
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Running(_) | State::Draining { .. } | State::Ending { .. } => Phase::Running,
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
        if self.control.tick(now) {
            self.abandon_sessions();
        }
        self.clock.tick(&mut self.control, now);
        if let Err(error) = self.control.flush() {
            self.control.lost(Some(error), now);
        }
        self.kernel_log.tick(now);
        self.output.tick(now);
        for session in &mut self.sessions {
            session.tick(now);
        }
        self.tick_attached(now);
        self.sessions.retain(|session| !session.is_over());
        if let Some(adapter) = &mut self.adapter
            && let Err(error) = adapter.tick(now)
        {
            self.output
                .log(&format!("the PROXY adapter does not start: {error}"));
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            // The main process's end is what follows.
            kill_all();
        }
        if let State::Draining { until, .. } = &self.state
            && *until <= now
        {
            self.output.log(
                "processes that the app's main process left did not stop in time: they are killed",
            );
            self.kill(now);
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

    /// Ends the guest with the session that it is for.
    fn tick_attached(&mut self, now: Instant) {
        let end = match &self.attached {
            Attached::Waits { until } if *until <= now => {
                let seconds = ATTACH_TIMEOUT.as_secs();
                self.output.log(&format!(
                    "the command was not run: nobody was at its streams within {seconds} s"
                ));
                None
            }
            Attached::Session(number) => {
                let mut sessions = self.sessions.iter();
                match sessions.find(|session| session.number() == *number) {
                    Some(session) if !session.is_over() => return,
                    session => session.and_then(Session::status),
                }
            }
            Attached::Never | Attached::Waits { .. } | Attached::Over(_) => return,
        };
        self.end_attached(end);
    }

    fn end_attached(&mut self, end: Option<ExitEvent>) {
        self.attached = Attached::Over(end);
        if let State::Running(running) = &self.state {
            // The placeholder.
            let _ = sys::kill(running.pid, libc::SIGKILL);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let attached = match &self.attached {
            Attached::Waits { until } => Some(*until),
            _ => None,
        };
        let end = match &self.state {
            State::Draining { until, .. }
            | State::Ending { until, .. }
            | State::Acknowledged { until } => Some(*until),
            _ => None,
        };
        let sessions = self.sessions.iter().filter_map(Session::deadline).min();
        [
            end,
            attached,
            sessions,
            self.adapter.as_ref().and_then(Adapter::deadline),
            self.forward.as_ref().and_then(Forward::deadline),
            self.kill_at,
            self.kernel_log.deadline(),
            self.control.deadline(),
            Some(self.clock.deadline()),
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
        if let Some(fd) = self.kernel_log.interest() {
            add(Token::KernelLog, fd, PollFlags::IN);
        }
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
            Token::KernelLog => self.take_kernel_log(now),
            Token::Output(token) => self.output.ready(token, &phase, now),
            Token::Control => {
                for event in self.control.ready(&phase, now) {
                    match event {
                        Event::Connected => {
                            self.clock.connected(&mut self.control, now);
                            self.report_end();
                            self.report_forwarded();
                        }
                        Event::Frame(frame) => self.handle(frame, now),
                        Event::Lost => self.abandon_sessions(),
                        Event::Refused => {}
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
                if let State::Running(running)
                | State::Draining { running, .. }
                | State::Ending { running, .. } = &self.state
                    && let Some(session) = self
                        .sessions
                        .iter_mut()
                        .find(|session| session.number() == number)
                {
                    let beside = Beside {
                        config: &running.config,
                        user: &running.user,
                        namespace: &running.namespace,
                        main: running.pid,
                    };
                    session.ready(token, &beside, &phase, now);
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
            HostFrame::Time(time) => {
                if let Some(said) = self.clock.answered(time, now) {
                    self.output.log(&said);
                }
            }
            HostFrame::Mtu(GuestMtu { mtu }) => {
                if let Err(error) = netlink::set_mtu(mtu) {
                    self.output
                        .log(&format!("the MTU stays as it was: {error}"));
                }
            }
            // A boot config for a guest that has one, and frames of other channels.
            _ => {}
        }
    }

    /// Ends the commands: the agent that wanted them has lost its connections, and the end of theirs may not arrive.
    fn abandon_sessions(&mut self) {
        for session in &mut self.sessions {
            session.abandon();
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
        } else if request.main && !matches!(self.attached, Attached::Waits { .. }) {
            "its command has been run".to_owned()
        } else {
            if request.main {
                self.attached = Attached::Session(session);
            }
            self.sessions.push(Session::new(request, now));
            return;
        };
        self.control
            .send(&GuestFrame::ExecRefused { session, reason });
    }

    /// Signals the app, and kills it and all its processes when it has not ended in time.
    fn stop(&mut self, timeout: Duration, now: Instant) {
        let at = now.checked_add(timeout).unwrap_or(now);
        match &mut self.state {
            State::Running(running) => {
                let (signal, warning) = running.stop_signal();
                if running.is_pid_1() && !namespace::has_handler(running.pid, signal) {
                    self.output.log(&format!(
                        "the app is PID 1 and does not handle {}, which does nothing then: it is killed after {} s",
                        running.config.stop_signal,
                        timeout.as_secs_f64()
                    ));
                }
                // It may have ended just now.
                let _ = sys::kill(running.pid, signal);
                self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
                if let Some(warning) = warning {
                    self.output.log(&warning);
                }
                match &self.attached {
                    Attached::Waits { .. } => self.end_attached(None),
                    Attached::Session(number) => {
                        let mut sessions = self.sessions.iter();
                        if let Some(session) = sessions.find(|s| s.number() == *number) {
                            session.signal(signal);
                        }
                    }
                    Attached::Never | Attached::Over(_) => {}
                }
            }
            State::Draining { until, .. } => *until = at.min(*until),
            _ => {}
        }
    }

    /// Reads the signals that wait. They all say the same: children have ended. Nothing in the guest can send init
    /// another, since init is in no namespace of the app.
    fn take_signals(&mut self, now: Instant) {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>() * 8];
        while rustix::io::read(&self.signals, &mut bytes).is_ok_and(|length| length > 0) {}
        self.reap(now);
    }

    /// Reports the kernel's kills for want of memory.
    fn take_kernel_log(&mut self, now: Instant) {
        for kill in self.kernel_log.read(now) {
            let name = kill.name;
            let main = match &self.state {
                State::Running(running)
                | State::Draining { running, .. }
                | State::Ending { running, .. } => running.pid == kill.pid,
                _ => false,
            };
            let whose = if main { "the app's main process " } else { "" };
            let pid = oom::pid_within(kill.pid).map_or(String::new(), |pid| format!("pid {pid}, "));
            let mebibytes = kill.kibibytes / 1024;
            self.output.log(&format!(
                "out of memory: the kernel killed {whose}{name} ({pid}{mebibytes} MiB)"
            ));
        }
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
        if self.sessions.iter().any(|session| session.has_pid(pid)) {
            let oom_killed = self.was_oom_killed(pid, status, now);
            if let Some(session) = self.sessions.iter_mut().find(|s| s.has_pid(pid)) {
                session.ended(exit_event(status, oom_killed, false));
            }
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
                self.main_ended(running, status, now);
            }
            draining @ State::Draining { .. } => {
                let over = matches!(
                    &draining,
                    State::Draining { running, .. } if running.namespace.has_pid_1(pid)
                );
                self.state = draining;
                if over {
                    self.report_reboot(status);
                    self.kill(now);
                }
            }
            other => self.state = other,
        }
    }

    /// The main process ended: what it left is asked to end too. With an image's own PID 1 nothing is left.
    fn main_ended(&mut self, running: Running, status: WaitStatus, now: Instant) {
        let until = self.kill_at.take().unwrap_or(now + DRAIN_TIMEOUT);
        let is_pid_1 = running.is_pid_1();
        // Whether memory ran out is asked at the end: the kernel logs it after the kill.
        let mut event = exit_event(status, false, self.requested_stop);
        if let Attached::Over(end) = &self.attached {
            let end = end.clone().unwrap_or(ExitEvent {
                exit_code: 128 + HUNG_UP,
                signal: Some(HUNG_UP),
                ..event
            });
            event = ExitEvent {
                requested_stop: self.requested_stop,
                ..end
            };
        }
        if is_pid_1 && event.signal == Some(POWERED_OFF) {
            // An image's own init has brought everything down in order.
            (event.exit_code, event.signal) = (0, None);
        }
        if !is_pid_1 {
            let (signal, _) = running.stop_signal();
            // Without resources for it, all are killed at the timeout.
            let _ = running.namespace.signal_all(signal);
            running.namespace.main_ended();
        }
        self.state = State::Draining {
            running,
            event,
            until,
        };
        if is_pid_1 {
            if status.terminating_signal() == Some(POWERED_OFF.into()) {
                self.output.log("the app's PID 1 powered off");
            } else {
                self.report_reboot(status);
            }
            self.kill(now);
        }
    }

    /// PID 1 of a namespace ends by these signals for one reason only (reboot(2)).
    fn report_reboot(&mut self, status: WaitStatus) {
        if let Some(libc::SIGHUP | libc::SIGINT) = status.terminating_signal() {
            self.output
                .log("the app asked for a reboot or a power-off: all its processes were killed");
        }
    }

    /// Kills what is left.
    fn kill(&mut self, now: Instant) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Draining { running, event, .. } => {
                self.adapter = None;
                self.forward = None;
                kill_all();
                self.state = State::Ending {
                    running,
                    event,
                    until: now + KILL_TIMEOUT,
                };
            }
            other => self.state = other,
        }
    }

    /// Whether a process that ended was killed because memory ran out.
    fn was_oom_killed(&mut self, pid: i32, status: WaitStatus, now: Instant) -> bool {
        if status.terminating_signal() != Some(libc::SIGKILL) {
            return false;
        }
        self.take_kernel_log(now);
        self.kernel_log.take_victim(pid)
    }

    /// Every process is dead: unmounts the volumes and reports the end.
    fn end(&mut self) {
        self.take_kernel_log(Instant::now());
        if let State::Ending {
            running, mut event, ..
        } = std::mem::replace(&mut self.state, State::Over)
        {
            event.oom_killed |= self.kernel_log.take_victim(running.pid);
            unmount_volumes(&running.volumes);
            self.state = State::Reporting(GuestFrame::Exited(event));
            self.report_end();
        }
    }
}

/// How a process ended, by the platform's rules.
fn exit_event(status: WaitStatus, oom_killed: bool, requested_stop: bool) -> ExitEvent {
    let signal = status
        .terminating_signal()
        .and_then(|signal| u8::try_from(signal).ok());
    let code = status
        .exit_status()
        .and_then(|code| u8::try_from(code).ok());
    ExitEvent {
        exit_code: signal.map_or(code.unwrap_or(0), |signal| signal.saturating_add(128)),
        signal,
        oom_killed,
        requested_stop,
        at: clock::now(),
    }
}

/// Kills every process but init, the app's and the platform's.
fn kill_all() {
    // There may be none.
    let _ = sys::kill(-1, libc::SIGKILL);
}

//! A process of the platform's own in the guest, beside the app ([`crate::adapter`], [`crate::forward`]): this program
//! executed anew under another name, so that nothing of init's memory is in it: no config, no secret. It shares nothing
//! with the app: another user without rights, another cgroup with a memory limit of its own. One that ends is replaced,
//! after a pause.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::spawn::{self, Executable, Namespaces, Program, StartError, Streams};
use crate::user::User;

/// User and group id of `nobody`.
const NOBODY: u32 = 65_534;
/// Shortest and longest pause before a process that ended is replaced.
const RESTART: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));
/// After a process that lived this long the next pause is the shortest again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// Such a process.
pub(crate) struct Confined {
    arguments: Vec<String>,
    cgroup: &'static str,
    /// The writing end of its output.
    output: OwnedFd,
    state: State,
    pause: Duration,
}

enum State {
    Runs { pid: i32, since: Instant },
    Ended { until: Instant },
}

impl Confined {
    /// Prepares a process with these arguments, a name first, that may have as much memory. Returns also its output, to
    /// be read.
    ///
    /// # Errors
    /// What could not be done, and why.
    pub(crate) fn prepare(
        arguments: Vec<String>,
        cgroup: &'static str,
        memory_bytes: u64,
        now: Instant,
    ) -> Result<(Self, OwnedFd), (&'static str, io::Error)> {
        let at = |what| move |error| (what, error);
        let directory = Path::new(cgroup);
        fs::create_dir_all(directory).map_err(at("make its cgroup"))?;
        fs::write(directory.join("memory.max"), memory_bytes.to_string())
            .map_err(at("bound its memory"))?;
        let (output, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| ("make a pipe", error.into()))?;
        let confined = Self {
            arguments,
            cgroup,
            output: writing,
            state: State::Ended { until: now },
            pause: RESTART.0,
        };
        Ok((confined, output))
    }

    /// Starts the process. It keeps these descriptors, under the same numbers.
    ///
    /// # Errors
    /// It does not start; [`Self::is_due`] says when to try again.
    pub(crate) fn run(&mut self, kept: &[BorrowedFd<'_>], now: Instant) -> Result<(), StartError> {
        match self.start(kept) {
            Ok(pid) => {
                self.state = State::Runs { pid, since: now };
                Ok(())
            }
            Err(error) => {
                self.ended(now);
                Err(error)
            }
        }
    }

    fn start(&self, kept: &[BorrowedFd<'_>]) -> Result<i32, StartError> {
        let clone = || {
            self.output
                .try_clone()
                .map_err(|source| StartError::Prepare {
                    what: "hand over its output",
                    source,
                })
        };
        let nobody = User {
            uid: NOBODY,
            gid: NOBODY,
            groups: Vec::new(),
            home: String::new(),
        };
        let program = Program {
            argv: &self.arguments,
            environment: &[],
            working_dir: "/",
            user: &nobody,
            cgroup: Some(self.cgroup),
            executable: Executable::Confined(kept),
            namespaces: Namespaces::Init,
        };
        let streams = Streams::Pipes {
            input: None,
            output: clone()?,
            error: clone()?,
        };
        spawn::spawn(&program, streams)
    }

    /// Whether the process has this pid.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        matches!(self.state, State::Runs { pid: own, .. } if own == pid)
    }

    /// Handles the end of the process: it is replaced after a pause, longer each time.
    pub(crate) fn ended(&mut self, now: Instant) {
        if let State::Runs { since, .. } = self.state
            && now.duration_since(since) >= GOOD_LIFE
        {
            self.pause = RESTART.0;
        }
        self.state = State::Ended {
            until: now + self.pause,
        };
        self.pause = (self.pause * 4).min(RESTART.1);
    }

    /// When a process that does not run may be started.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Ended { until } => Some(until),
            State::Runs { .. } => None,
        }
    }

    /// Whether it does not run and may be started.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|until| until <= now)
    }
}

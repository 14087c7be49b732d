//! Init's side of the PROXY adapter (`proxy_adapter`): its listeners, its process, and the process's
//! replacement.
//!
//! Init opens the listeners before the app starts, and keeps them: while a process that died is replaced,
//! connections wait instead of being refused. The process executes this program anew, so that nothing of
//! init's memory is in it: no config, no secret. It shares nothing with the app: another user without rights,
//! another cgroup with a memory limit of its own.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use guest_protocol::BootConfig;
use model::instance::ProxyProtocol;
use proxy_adapter::Listener;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::plan::ADAPTER_CGROUP;
use crate::spawn::{self, Executable, Namespaces, Program, StartError, Streams};
use crate::user::User;

/// Most memory of the adapter, in bytes, the kernel's buffers of its connections included. The kernel kills
/// it above this limit, and it is started again.
const MAX_MEMORY_BYTES: &str = "50331648";
/// Connections of one port that wait for the adapter.
const BACKLOG: i32 = 1024;
/// User and group id of `nobody`.
const NOBODY: u32 = 65_534;
/// Shortest and longest pause before a process that died is replaced.
const RESTART: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));
/// After a process that lived this long the next pause is the shortest again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// The adapter of this guest.
pub(crate) struct Adapter {
    arguments: Vec<String>,
    listeners: Vec<Listener>,
    /// The writing end of its output.
    output: OwnedFd,
    process: Process,
    pause: Duration,
}

enum Process {
    Runs { pid: i32, since: Instant },
    Ended { until: Instant },
}

/// Why the adapter could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterError {
    /// It cannot listen: its port is in use, for one.
    #[error("listen on [{address}]:{port}: {source}")]
    Listen {
        /// The instance's address.
        address: Ipv6Addr,
        /// The ingress port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Another preparation failed.
    #[error("{what}: {source}")]
    Prepare {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Its process did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Adapter {
    /// Listens on the adapter's ports and starts its process. Returns also the process's output, to be read.
    ///
    /// # Errors
    /// A port is taken, or the process does not start.
    pub(crate) fn start(
        config: &BootConfig,
        now: Instant,
    ) -> Result<(Self, OwnedFd), AdapterError> {
        let prepare = |what| move |source| AdapterError::Prepare { what, source };
        let cgroup = Path::new(ADAPTER_CGROUP);
        fs::create_dir_all(cgroup).map_err(prepare("make the adapter's cgroup"))?;
        fs::write(cgroup.join("memory.max"), MAX_MEMORY_BYTES)
            .map_err(prepare("bound the adapter's memory"))?;
        let address = config.network.address;
        let listeners = config
            .proxy
            .iter()
            .map(|port| {
                let fd =
                    listen_on(address, port.ingress).map_err(|error| AdapterError::Listen {
                        address,
                        port: port.ingress,
                        source: error.into(),
                    })?;
                Ok(Listener {
                    fd,
                    app: SocketAddrV6::new(address, port.port, 0, 0),
                    strip: port.mode == ProxyProtocol::Strip,
                    peers: port.peers,
                    peers_mask: port.peers_mask,
                })
            })
            .collect::<Result<Vec<_>, AdapterError>>()?;
        let (output, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| prepare("make a pipe")(error.into()))?;
        let mut adapter = Self {
            arguments: proxy_adapter::arguments(&listeners),
            listeners,
            output: writing,
            process: Process::Ended { until: now },
            pause: RESTART.0,
        };
        adapter.run(now)?;
        Ok((adapter, output))
    }

    fn run(&mut self, now: Instant) -> Result<(), StartError> {
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
        let kept: Vec<BorrowedFd<'_>> = self.listeners.iter().map(|l| l.fd.as_fd()).collect();
        let program = Program {
            argv: &self.arguments,
            environment: &[],
            working_dir: "/",
            user: &nobody,
            cgroup: Some(ADAPTER_CGROUP),
            executable: Executable::Adapter(&kept),
            namespaces: Namespaces::Init,
        };
        let streams = Streams::Pipes {
            input: None,
            output: clone()?,
            error: clone()?,
        };
        let pid = spawn::spawn(&program, streams)?;
        self.process = Process::Runs { pid, since: now };
        Ok(())
    }

    /// Whether the adapter's process has this pid.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        matches!(self.process, Process::Runs { pid: own, .. } if own == pid)
    }

    /// Handles the end of the process: it is replaced after a pause, longer each time.
    pub(crate) fn ended(&mut self, now: Instant) {
        if let Process::Runs { since, .. } = self.process
            && now.duration_since(since) >= GOOD_LIFE
        {
            self.pause = RESTART.0;
        }
        self.process = Process::Ended {
            until: now + self.pause,
        };
        self.pause = (self.pause * 4).min(RESTART.1);
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.process {
            Process::Ended { until } => Some(until),
            Process::Runs { .. } => None,
        }
    }

    /// Replaces a process that ended, once the pause is over.
    ///
    /// # Errors
    /// The process does not start; the next try is after another pause.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), StartError> {
        match self.process {
            Process::Ended { until } if until <= now => {
                self.run(now).inspect_err(|_| self.ended(now))
            }
            _ => Ok(()),
        }
    }
}

fn listen_on(address: Ipv6Addr, port: u16) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
    set_socket_reuseaddr(&fd, true)?;
    bind(&fd, &SocketAddrV6::new(address, port, 0, 0))?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

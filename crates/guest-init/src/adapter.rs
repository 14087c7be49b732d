//! Init's side of the PROXY adapter: its listeners, its process, and its next process.
//!
//! The listeners are init's: they are there before the app is, whichever process serves them, and
//! while a process that died is replaced, connections wait instead of being refused. The process is
//! this program again under another name, so that nothing of init's memory is in it: no config, no
//! secret. It is none of the app's: another user without rights, another cgroup with a bound of its own.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use guest_protocol::{BootConfig, ProxyPort};
use model::instance::ProxyProtocol;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::plan::ADAPTER_CGROUP;
use crate::proxy::{LIMITS, Listener, serve};
use crate::spawn::{self, Program, StartError, Streams};
use crate::sys;
use crate::user::User;

/// The name that this program has as an adapter.
pub(crate) const NAME: &str = "platform-proxy";
/// Most memory of the adapter's, what the kernel holds for its connections counted, in bytes. It is
/// ended above it, and started again.
const MAX_MEMORY_BYTES: &str = "50331648";
/// Connections that wait for the adapter.
const BACKLOG: i32 = 1024;
/// User and group that are nobody's.
const NOBODY: u32 = 65_534;
/// Shortest and longest pause before a process that died is replaced.
const RESTART: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));
/// A process that lived this long was a good one: the next pause is the shortest again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// The adapter, as init has it.
pub(crate) struct Adapter {
    arguments: Vec<String>,
    listeners: Vec<OwnedFd>,
    /// The writing end of its output.
    output: OwnedFd,
    process: Process,
    pause: Duration,
}

enum Process {
    Runs { pid: i32, since: Instant },
    Ended { until: Instant },
}

/// Why there is no adapter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterError {
    /// Somebody has its port, for one.
    #[error("listen on [{address}]:{port}: {source}")]
    Listen {
        /// The instance's address.
        address: Ipv6Addr,
        /// The ingress port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// Something else before its start.
    #[error("{what}: {source}")]
    Prepare {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Its start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Adapter {
    /// Listens and starts the process. Returns also its output, to be read.
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
                listen_on(address, port.ingress).map_err(|error| AdapterError::Listen {
                    address,
                    port: port.ingress,
                    source: error.into(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (output, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| prepare("make a pipe")(error.into()))?;
        let mut adapter = Self {
            arguments: arguments(address, &config.proxy, &listeners),
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
        let program = Program {
            argv: &self.arguments,
            environment: &[],
            working_dir: "/",
            user: &nobody,
            cgroup: ADAPTER_CGROUP,
            adapter: Some(&self.listeners),
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

    /// Whether it is the adapter that has this pid.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        matches!(self.process, Process::Runs { pid: own, .. } if own == pid)
    }

    /// The process ended: it is to be replaced, later each time.
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

    /// Replaces a process that ended, when it is time to.
    ///
    /// # Errors
    /// It does not start; it is tried again later.
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

/// The adapter's arguments: its name, the app's address, and five for each port.
fn arguments(address: Ipv6Addr, ports: &[ProxyPort], listeners: &[OwnedFd]) -> Vec<String> {
    let mut arguments = vec![NAME.to_owned(), address.to_string()];
    for (port, listener) in ports.iter().zip(listeners) {
        let mode = match port.mode {
            ProxyProtocol::Strip => STRIP,
            ProxyProtocol::V2 => "v2",
        };
        arguments.extend([
            listener.as_raw_fd().to_string(),
            port.port.to_string(),
            mode.to_owned(),
            port.peers.to_string(),
            port.peers_mask.to_string(),
        ]);
    }
    arguments
}

const STRIP: &str = "strip";

/// What [`arguments`] says, by the process that it is for.
fn listeners(mut arguments: impl Iterator<Item = String>) -> Option<Vec<Listener>> {
    let address = arguments.next()?.parse().ok()?;
    let mut listeners = Vec::new();
    while let Some(fd) = arguments.next() {
        listeners.push(Listener {
            fd: sys::inherited(fd.parse().ok()?),
            app: SocketAddrV6::new(address, arguments.next()?.parse().ok()?, 0, 0),
            strip: arguments.next()? == STRIP,
            peers: arguments.next()?.parse().ok()?,
            peers_mask: arguments.next()?.parse().ok()?,
        });
    }
    Some(listeners)
}

/// The adapter's process, given the arguments after its name. Returns only when it cannot go on.
pub(crate) fn main(arguments: impl Iterator<Item = String>) {
    // For who lists processes: executed as it was, its name would be `exe`.
    let _ = rustix::thread::set_name(c"platform-proxy");
    let say = |line: &str| {
        // One write, so that it is a whole line or, where init is slow, none.
        let _ = rustix::io::write(io::stdout(), [line, "\n"].concat().as_bytes());
    };
    match listeners(arguments) {
        Some(listeners) => say(&[
            "PROXY adapter: ",
            &serve(listeners, LIMITS, say).to_string(),
        ]
        .concat()),
        None => say("PROXY adapter: started with arguments that are none"),
    }
}

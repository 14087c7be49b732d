//! Connections to an app that does not listen on IPv6 (ADR 0003, amendment "apps on IPv4").
//!
//! Cluster addresses are IPv6. An app that listens on `0.0.0.0` or on loopback is reached all the same: the kernel hands
//! connections for its port to one listener of ours ([`crate::bpf`]), and the forwarder (`proxy_adapter`) carries their bytes to where the
//! app listens. Init holds the listener, and starts the process when the first connection waits there: an app that listens on IPv6
//! never has that process.
//!
//! The app sees such connections come from `127.0.0.1`.

use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use guest_protocol::BootConfig;
use proxy_adapter::Forwarder;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::adapter::listen_on;
use crate::bpf::Steering;
use crate::confined::Confined;
use crate::plan::FORWARD_CGROUP;
use crate::spawn::StartError;
use crate::stats;

/// Ports of the forwarder's listener, on loopback: the first that the manifest does not declare. IANA gave them to nobody.
const PORTS: [u16; 2] = [6, 4];
/// The forwarder's memory, at least: it is a quarter of the guest's, the kernel's buffers of its connections included. The kernel
/// kills it above this limit, and it is started again.
const MIN_MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// Most ports that are reported to the node.
const MAX_REPORTED: usize = 64;

/// What the forwarder waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForwardToken {
    /// Ports that are forwarded to.
    Notices,
    /// A connection without a process.
    Waiting,
}

/// The forwarder of this guest.
pub(crate) struct Forward {
    listener: OwnedFd,
    tables: [OwnedFd; 2],
    /// The pipe of the ports that the process forwards to: its end, and ours.
    notices: (OwnedFd, OwnedFd),
    process: Confined,
    /// In ascending order.
    ports: Vec<u16>,
    _steering: Steering,
}

impl Forward {
    /// Prepares all but the process. Returns also the process's output, to be read.
    ///
    /// # Errors
    /// What could not be done, and why. The guest works without it.
    pub(crate) fn prepare(
        config: &BootConfig,
        now: Instant,
    ) -> Result<(Self, OwnedFd), (&'static str, io::Error)> {
        let at = |what| move |error: io::Error| (what, error);
        let open = |path: &str| File::open(path).map_err(at("open"));
        let declared = || config.ports.iter().copied();
        let port = PORTS
            .into_iter()
            .find(|port| declared().all(|declared| declared != *port))
            .unwrap_or(PORTS[0]);
        let listener = listen_on(Ipv6Addr::LOCALHOST, port)
            .map_err(|error| ("listen on loopback", error.into()))?;
        let tables = [
            open("/proc/net/tcp")?.into(),
            open("/proc/net/tcp6")?.into(),
        ];
        let notices = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| ("make a pipe", error.into()))?;
        let memory_bytes = stats::memory_total();
        let arguments = proxy_adapter::forwarder_arguments(&Forwarder {
            listener: listener.as_fd(),
            tables: [&tables[0], &tables[1]].map(|table: &OwnedFd| table.as_fd()),
            ports: notices.1.as_fd(),
            memory_bytes,
        });
        let bound = (memory_bytes / 4).max(MIN_MEMORY_BYTES);
        let (process, output) = Confined::prepare(arguments, FORWARD_CGROUP, bound, now)?;
        let steering = Steering::begin(
            config.network.address,
            config.network.ipv4,
            declared(),
            listener.as_fd(),
            open("/proc/self/ns/net")?.as_fd(),
            open("/sys/fs/cgroup")?.as_fd(),
        )
        .map_err(at("load BPF programs"))?;
        let forward = Self {
            listener,
            tables,
            notices: (notices.1, notices.0),
            process,
            ports: Vec::new(),
            _steering: steering,
        };
        Ok((forward, output))
    }

    /// What to wait for: ports that are forwarded to for the first time, and a connection while no process serves
    /// the listener.
    pub(crate) fn interests(&self) -> Vec<(ForwardToken, BorrowedFd<'_>)> {
        let mut interests = vec![(ForwardToken::Notices, self.notices.1.as_fd())];
        if self.process.is_due(Instant::now()) {
            interests.push((ForwardToken::Waiting, self.listener.as_fd()));
        }
        interests
    }

    /// When [`Self::interests`] changes.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        self.process.due().filter(|due| *due > now)
    }

    /// Handles what was waited for. Returns all ports that are forwarded to when there are new ones, and lines
    /// for the instance's log.
    pub(crate) fn ready(
        &mut self,
        token: ForwardToken,
        now: Instant,
    ) -> (Option<Vec<u16>>, Vec<String>) {
        match token {
            ForwardToken::Waiting => {
                let failed = self.run(now).err();
                let line = |error| format!("the forwarder does not start: {error}");
                (None, failed.into_iter().map(line).collect())
            }
            ForwardToken::Notices => {
                let new = self.take_notices();
                let ports = (!new.is_empty()).then(|| self.ports.clone());
                (ports, new.into_iter().map(notice).collect())
            }
        }
    }

    fn run(&mut self, now: Instant) -> Result<(), StartError> {
        if !self.process.is_due(now) {
            return Ok(());
        }
        let [ipv4, ipv6] = &self.tables;
        let kept = [&self.listener, ipv4, ipv6, &self.notices.0].map(|fd: &OwnedFd| fd.as_fd());
        self.process.run(&kept, now)
    }

    /// Whether the process has this pid.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        self.process.has_pid(pid)
    }

    /// Handles the end of the process: another is started for the next connection.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.process.ended(now);
    }

    /// Ports that are forwarded to and were not before.
    fn take_notices(&mut self) -> Vec<u16> {
        let mut bytes = [0; 512];
        let length = rustix::io::read(&self.notices.1, &mut bytes).unwrap_or(0);
        let mut new = Vec::new();
        // Each is written whole.
        for port in bytes[..length].chunks_exact(2) {
            let port = port
                .first_chunk()
                .map_or(0, |port| u16::from_ne_bytes(*port));
            if let Err(at) = self.ports.binary_search(&port)
                && self.ports.len() < MAX_REPORTED
            {
                self.ports.insert(at, port);
                new.push(port);
            }
        }
        new
    }

    /// The ports that were forwarded to so far.
    pub(crate) fn ports(&self) -> &[u16] {
        &self.ports
    }
}

/// The log's line about a port.
fn notice(port: u16) -> String {
    format!(
        "nothing listens on port {port} over IPv6, so connections to it are forwarded to where the app listens on IPv4 or on \
         loopback, and the app sees them come from 127.0.0.1; listening on [::]:{port} avoids both"
    )
}

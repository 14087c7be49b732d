//! The listening sockets of an edge, by their names: those that the process before this one had, and those that the next one gets.
//!
//! They come from that process itself ([`crate::succession`]), or from systemd, which keeps all but that of metrics ([`notify`]).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use edge_proxy::KeepPorts;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpListener;

use crate::notify;

/// For plain HTTP.
pub(crate) const HTTP: &str = "listener";
/// For HTTPS.
pub(crate) const HTTPS: &str = "listener-tls";
/// For those who watch.
pub(crate) const METRICS: &str = "metrics";
/// What the names of the sockets of TCP routes begin with; the port follows.
const PORT_PREFIX: &str = "tcp-";

/// The listening sockets of an edge.
#[derive(Debug)]
pub(crate) struct Sockets(Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// Those of the process before this one of which there was no use yet.
    before: Vec<(String, std::net::TcpListener)>,
    /// Whether that process has ended.
    is_alone: bool,
    /// Copies of those in use.
    open: BTreeMap<String, OwnedFd>,
    /// Those of them that systemd does not keep yet.
    new: Vec<&'static str>,
}

impl Sockets {
    /// `is_alone`: the process before this one has ended, and systemd kept them.
    pub(crate) fn new(before: Vec<(String, std::net::TcpListener)>, is_alone: bool) -> Self {
        Self(Mutex::new(Known {
            before,
            is_alone,
            open: BTreeMap::new(),
            new: Vec::new(),
        }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that the process before this one had at this address. Where it had the one of this name elsewhere, that listens no longer: at once where the
    /// process has ended, else with [`Self::begin`].
    pub(crate) fn take(
        &self,
        name: &'static str,
        address: SocketAddr,
    ) -> io::Result<Option<TcpListener>> {
        let mut known = self.known();
        let is_at = |listener: &std::net::TcpListener| listener.local_addr().ok() == Some(address);
        let place = known.before.iter().position(|(_, known)| is_at(known));
        let Some(place) = place else {
            if known.is_alone {
                known.close(name);
            }
            return Ok(None);
        };
        let (_, listener) = known.before.swap_remove(place);
        let copy = listener.as_fd().try_clone_to_owned()?;
        known.open.insert(name.to_owned(), copy);
        TcpListener::from_std(listener).map(Some)
    }

    /// This one is new.
    pub(crate) fn add(&self, name: &'static str, listener: &TcpListener) -> io::Result<()> {
        let mut known = self.known();
        let copy = listener.as_fd().try_clone_to_owned()?;
        known.open.insert(name.to_owned(), copy);
        known.new.push(name);
        Ok(())
    }

    /// Those of TCP routes that the process before this one had.
    pub(crate) fn ports(&self) -> io::Result<Vec<TcpListener>> {
        let mut known = self.known();
        let of_ports = |(name, _): &mut (String, _)| name.starts_with(PORT_PREFIX);
        let ports: Vec<_> = known.before.extract_if(.., of_ports).collect();
        let mut listeners = Vec::new();
        for (name, listener) in ports {
            let copy = listener.as_fd().try_clone_to_owned()?;
            known.open.insert(name, copy);
            listeners.push(TcpListener::from_std(listener)?);
        }
        Ok(listeners)
    }

    /// The clients are this process's: systemd keeps what is new, and nobody listens where this process does not.
    pub(crate) fn begin(&self) {
        let mut known = self.known();
        for name in [HTTP, HTTPS, METRICS] {
            known.close(name);
        }
        for name in std::mem::take(&mut known.new) {
            if name != METRICS
                && let Some(socket) = known.open.get(name)
            {
                notify::keep(name, socket.as_fd());
            }
        }
    }

    /// Copies of all that are in use, for the next process.
    pub(crate) fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let known = self.known();
        let copies = known.open.iter();
        copies
            .map(|(name, socket)| Ok((name.clone(), socket.try_clone()?)))
            .collect()
    }

    /// The next process has these, and is to have the others by itself.
    pub(crate) fn hand_over(&self, handed_over: &[(String, OwnedFd)]) {
        for (name, _) in std::mem::take(&mut self.known().open) {
            if !handed_over.iter().any(|(other, _)| *other == name) {
                notify::stop_keeping(&name);
            }
        }
    }

    /// This process stops: who connects from now on is refused, unless systemd keeps the sockets.
    pub(crate) fn drop_copies(&self) {
        self.known().open.clear();
    }
}

impl Known {
    /// Ends the listening of what the process before this one had by this name, in that one too.
    fn close(&mut self, name: &str) {
        for (_, socket) in self.before.extract_if(.., |(other, _)| other == name) {
            if name != METRICS {
                notify::stop_keeping(name);
            }
            if let Err(error) = shutdown(&socket, Shutdown::Both) {
                tracing::debug!(%error, "a socket did not listen");
            }
        }
    }
}

impl KeepPorts for Sockets {
    fn keep(&self, listener: &TcpListener) {
        let Ok(address) = listener.local_addr() else {
            return;
        };
        let name = format!("{PORT_PREFIX}{}", address.port());
        notify::keep(&name, listener.as_fd());
        match listener.as_fd().try_clone_to_owned() {
            Ok(copy) => drop(self.known().open.insert(name, copy)),
            Err(error) => tracing::warn!(%error, name, "a socket cannot be handed over later"),
        }
    }

    fn stop_keeping(&self, address: SocketAddr) {
        let name = format!("{PORT_PREFIX}{}", address.port());
        self.known().open.remove(&name);
        notify::stop_keeping(&name);
    }
}

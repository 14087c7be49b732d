//! Where a member's interface is, and where that saw its peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use wireguard::interface::{Interface, InterfaceOptions};
use wireguard::settings::{Key, Settings, Status};

/// A session ends after so long without a handshake (WireGuard, 6.1: Reject-After-Time), in milliseconds.
const SESSION_MS: u64 = 180_000;

/// Where a member's interface is, and how it is made.
#[derive(Debug, Clone)]
pub struct Place {
    /// The link's name.
    pub link: String,
    /// The file of the link's network namespace; absent: the caller's.
    pub namespace: Option<PathBuf>,
    /// The program `platform`.
    pub program: PathBuf,
    /// A folder of the role for control sockets.
    pub run_dir: PathBuf,
    /// Whether the kernel's WireGuard is not to be used.
    pub force_userspace: bool,
}

impl Place {
    pub(crate) fn options(&self, port: u16, mtu: u32) -> InterfaceOptions {
        InterfaceOptions {
            name: self.link.clone(),
            namespace: self.namespace.clone(),
            port,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            program: self.program.clone(),
            run_dir: self.run_dir.clone(),
            force_userspace: self.force_userspace,
        }
    }
}

/// The interface that there is, for whoever asks how it is, and what is known of the one before it.
#[derive(Debug, Default)]
pub(crate) struct Current {
    interface: RwLock<Option<Arc<Interface>>>,
    seen: Mutex<BTreeMap<Key, Seen>>,
}

/// Where a peer was seen that has a session with the interface, and where it was recorded then.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: SocketAddr,
    recorded: Option<SocketAddr>,
}

impl Current {
    pub(crate) async fn read(&self) -> RwLockReadGuard<'_, Option<Arc<Interface>>> {
        self.interface.read().await
    }

    pub(crate) async fn write(&self) -> RwLockWriteGuard<'_, Option<Arc<Interface>>> {
        self.interface.write().await
    }

    /// Remembers where the interface sees its peers, which are recorded there.
    pub(crate) fn remember(
        &self,
        recorded: impl Iterator<Item = (Key, Option<SocketAddr>)>,
        status: &Status,
    ) {
        // One that was not told of its peers yet has seen nobody.
        if status.peers.is_empty() {
            return;
        }
        let seen = recorded.filter_map(|(key, recorded)| {
            let now = status.peers.get(&key)?;
            now.handshake_age_ms.filter(|age| *age < SESSION_MS)?;
            let at = now.endpoint?;
            Some((key, Seen { at, recorded }))
        });
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen.collect();
    }

    /// The settings of an interface that was just made: its peers are where the one before it saw them, unless another place is recorded since.
    pub(crate) fn with_seen(&self, mut settings: Settings) -> Settings {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let still = settings.peers.iter().filter_map(|(key, peer)| {
            let seen = seen.get(key)?;
            (seen.recorded == peer.endpoint).then_some((*key, seen.at))
        });
        settings.seen = still.collect();
        settings
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use wireguard::settings::{PeerSettings, PeerStatus, Prefix, PrivateKey};

    use super::*;

    fn settings(peers: &[(u8, Option<&str>)]) -> Settings {
        let peer = |(number, endpoint): &(u8, Option<&str>)| {
            let settings = PeerSettings {
                endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()),
                allowed: Vec::new(),
                keepalive: None,
            };
            (Key([*number; 32]), settings)
        };
        Settings {
            private_key: PrivateKey(Key([9; 32])),
            inside: Prefix {
                address: "fd12::".parse().unwrap(),
                bits: 48,
            },
            peers: peers.iter().map(peer).collect(),
            seen: BTreeMap::new(),
        }
    }

    #[test]
    fn peers_with_sessions_are_where_they_were_seen_unless_another_place_is_recorded_since() {
        let current = Current::default();
        let recorded = settings(&[(1, None), (2, Some("10.0.0.2:1")), (3, None), (4, None)]);
        assert!(current.with_seen(recorded.clone()).seen.is_empty());
        let peers = [
            (1, "10.1.0.1:7", Some(179_999)),
            (2, "10.1.0.2:7", Some(0)),
            (3, "10.1.0.3:7", Some(180_000)),
            (4, "10.1.0.4:7", None),
            // One that was removed since.
            (5, "10.1.0.5:7", Some(0)),
        ];
        let peers = peers.map(|(number, at, handshake_age_ms)| {
            let status = PeerStatus {
                endpoint: at.parse().ok(),
                handshake_age_ms,
                received: 0,
                sent: 0,
            };
            (Key([number; 32]), status)
        });
        let status = Status {
            peers: peers.into(),
            ..Status::default()
        };
        let peers = recorded
            .peers
            .iter()
            .map(|(key, peer)| (*key, peer.endpoint));
        current.remember(peers, &status);
        let seen = |settings| -> Vec<_> {
            let seen = current.with_seen(settings).seen.into_iter();
            seen.map(|(key, at)| (key.0[0], at.to_string())).collect()
        };
        let (one, two) = ((1, "10.1.0.1:7".to_owned()), (2, "10.1.0.2:7".to_owned()));
        assert_eq!(seen(recorded), [one.clone(), two]);
        current.remember(std::iter::empty(), &Status::default());
        let moved = settings(&[(1, None), (2, Some("10.0.0.9:1")), (5, None)]);
        assert_eq!(seen(moved), [one]);
    }
}

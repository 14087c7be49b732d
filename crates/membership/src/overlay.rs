//! What this machine knows of the overlay: who it is there and who its peers are, kept on its disk, so that a start needs no server.

// ring: the state begins as the membership says it, and the membership is left with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use ::overlay::private_networks::PrivateNetworks;
use api::enrollment::Member;
use api::member::{DEFAULT_OVERLAY_PORT, OverlayChanges, Peer, PeerKind, Underlay};
use blocking_work::blocking;
use model::NodeId;
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};

use crate::Membership;

/// A place in the internet that is never sent anything to (RFC 5737): the address by which the machine would go there is the one that others
/// reach it at, where any is.
const ANYWHERE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 443);
/// The same in IPv6 (RFC 3849).
const ANYWHERE_V6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    443,
);

/// Addresses of servers that are remembered.
const MAX_SERVERS: usize = 256;

/// A WireGuard private key, base64. It is in no log and in no file of the overlay's state.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WireguardPrivateKey(Option<String>);

impl WireguardPrivateKey {
    /// The key, base64; absent: this machine has none yet.
    pub fn base64(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl std::fmt::Debug for WireguardPrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "a key",
            None => "no key",
        })
    }
}

/// Who this machine is in the overlay, and who its peers are: whole, as it is from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayState {
    /// Its number, the 16 bits of its /64. Absent: an edge that was not given one yet.
    pub number: Option<NodeId>,
    /// The cluster's /48, as its first address.
    pub cluster_prefix: Ipv6Addr,
    /// MTU of the overlay, the taps and the guests, in bytes.
    pub mtu: u32,
    /// Which private networks instances of egress `all` reach.
    #[serde(default, skip_serializing_if = "PrivateNetworks::is_all")]
    pub private_networks: PrivateNetworks,
    /// Whether it relays for others.
    #[serde(default)]
    pub is_hub: bool,
    /// Its peers.
    #[serde(default)]
    pub peers: BTreeMap<NodeId, Peer>,
    /// Where servers answer, as they said: at most [`MAX_SERVERS`], the newest ones.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub servers: BTreeSet<SocketAddr>,
    /// The numbers of all edges, peers or not: they reach every instance.
    #[serde(default)]
    pub edges: BTreeSet<NodeId>,
    /// The private key by which its peers know it. It changes with [`Membership`], where it is kept.
    #[serde(skip)]
    pub private_key: WireguardPrivateKey,
    /// Counts the changes that this agent was told, so that whoever follows can say which it has applied ([`api::member::OverlayReport::applied`]).
    #[serde(skip)]
    pub revision: u64,
}

impl StateFormat for OverlayState {
    const VERSION: u32 = 1;
}

impl OverlayState {
    fn file(data_dir: &Path) -> PathBuf {
        data_dir.join("overlay.json")
    }

    /// What a member knows that has heard nothing.
    pub fn of(membership: &Membership) -> Self {
        Self {
            number: match membership.member {
                Member::Node(id) => Some(id),
                Member::Edge(_) => membership.overlay_number,
            },
            cluster_prefix: membership.cluster_prefix,
            mtu: membership.mtu,
            private_networks: PrivateNetworks::default(),
            is_hub: false,
            peers: BTreeMap::new(),
            servers: BTreeSet::new(),
            edges: BTreeSet::new(),
            private_key: WireguardPrivateKey(membership.wireguard_private_key.clone()),
            revision: 0,
        }
    }

    /// What this member was last told. Where that cannot be read it is as if it had heard nothing: the server says it again.
    pub async fn load(membership: &Membership, data_dir: &Path) -> Self {
        let file = Self::file(data_dir);
        let kept = blocking(move || state_file::read::<Self>(&file)).await;
        let fresh = Self::of(membership);
        match kept {
            Ok(Some(kept)) if kept.cluster_prefix == fresh.cluster_prefix => Self {
                number: kept.number.or(fresh.number),
                private_key: fresh.private_key,
                ..kept
            },
            Ok(_) => fresh,
            Err(error) => {
                let reason = display::chain(&error);
                tracing::warn!(
                    reason,
                    "what was kept of the overlay cannot be read; the server is asked for it"
                );
                fresh
            }
        }
    }

    /// Keeps it on the disk.
    pub(crate) async fn keep(&self, data_dir: &Path) -> Result<(), StateFileError> {
        let (file, kept) = (Self::file(data_dir), self.clone());
        blocking(move || state_file::write(&file, &kept)).await
    }

    /// Forgets what was kept in a data folder. Blocks.
    pub(crate) fn remove(data_dir: &Path) -> Result<(), StateFileError> {
        let path = Self::file(data_dir);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StateFileError::Io {
                    operation: "remove",
                    path,
                    source,
                })
            }
            _ => Ok(()),
        }
    }

    /// Takes what a server says that changed. Gives whether it is another now.
    pub(crate) fn apply(&mut self, changes: OverlayChanges) -> bool {
        let before = self.clone();
        self.number = changes.number.or(self.number);
        self.mtu = changes.mtu;
        self.private_networks = changes.private_networks;
        self.is_hub = changes.is_hub;
        if changes.since.is_none() {
            self.peers = changes.peers;
        } else {
            for gone in &changes.removed {
                self.peers.remove(gone);
            }
            self.peers.extend(changes.peers);
        }
        // Each server says its own, and any of them answers.
        if self.servers.len() + changes.servers.len() > MAX_SERVERS {
            self.servers.clear();
        }
        self.servers
            .extend(changes.servers.into_iter().take(MAX_SERVERS));
        if let Some(edges) = changes.edges {
            self.edges = edges;
        }
        let is_other = *self != before;
        self.revision += u64::from(is_other);
        is_other
    }

    pub(crate) fn set_key(&mut self, membership: &Membership) {
        let key = WireguardPrivateKey(membership.wireguard_private_key.clone());
        if key != self.private_key {
            self.private_key = key;
            self.revision += 1;
        }
    }

    /// The hubs that are peers: whether they answer in the tunnel is to be reported ([`api::member::LinkReport::answers`]). The first is the home.
    /// None: a mesh, or a hub itself.
    pub fn hubs(&self) -> Vec<NodeId> {
        let home = self.peers.iter().filter(|(_, peer)| peer.is_home());
        let standby = (self.peers.iter())
            .filter(|(_, peer)| peer.kind == PeerKind::Node && peer.is_standby());
        let home: Vec<_> = home.map(|(id, _)| *id).collect();
        if home.is_empty() {
            return home;
        }
        home.into_iter().chain(standby.map(|(id, _)| *id)).collect()
    }
}

/// What an operator says of how this machine is reached by its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderlayOptions {
    /// The UDP port of its WireGuard.
    pub port: u16,
    /// Where its peers reach it. Absent: the server sees it.
    pub advertise: Option<SocketAddr>,
}

impl Default for UnderlayOptions {
    fn default() -> Self {
        Self {
            port: DEFAULT_OVERLAY_PORT,
            advertise: None,
        }
    }
}

/// Where the server at `url` answers (or those at several, with commas between), as its name resolves now. One whose name does not resolve has none.
pub async fn server_addresses(url: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for url in url.split(',') {
        let host = url.trim().trim_start_matches("https://");
        let host = host.split('/').next().unwrap_or_default();
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port {
            host.to_owned()
        } else {
            format!("{host}:443")
        };
        if let Ok(addresses) = tokio::net::lookup_host(host).await {
            found.extend(addresses);
        }
    }
    found
}

/// How this machine is reached by its peers: what its operator says, and the address and MTU of its way to the server at `url` (or at several,
/// with commas between). The kernel is asked, and nothing is sent but questions for names.
pub async fn underlay(url: &str, options: UnderlayOptions) -> Underlay {
    let UnderlayOptions { port, advertise } = options;
    let way = server_addresses(url).await.into_iter().find_map(way_to);
    let is_outward = |(address, _): &(IpAddr, Option<u32>)| !address.is_loopback();
    // The server is on this machine: what others reach is the address by which the machine goes out.
    let way = way
        .filter(is_outward)
        .or_else(|| way_to(ANYWHERE_V4).filter(is_outward))
        .or_else(|| way_to(ANYWHERE_V6).filter(is_outward));
    Underlay {
        port,
        advertise,
        local: way.map(|(address, _)| address),
        mtu: way.and_then(|(_, mtu)| mtu),
    }
}

/// The address and the MTU by which this machine sends to another.
fn way_to(to: SocketAddr) -> Option<(IpAddr, Option<u32>)> {
    let from: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect(to).ok()?;
    let mtu = match to {
        SocketAddr::V4(_) => rustix::net::sockopt::ip_mtu(&socket),
        SocketAddr::V6(_) => rustix::net::sockopt::ipv6_mtu(&socket),
    };
    let address = socket.local_addr().ok()?.ip();
    Some((address, mtu.ok()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const FIXTURE: &str = include_str!("fixtures/overlay/version-1.json");

    #[test]
    fn overlay_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<OverlayState>(&[FIXTURE]);
    }

    #[test]
    fn the_home_is_probed_first_then_the_hubs_that_would_take_its_place() {
        let mut state: OverlayState = serde_json::from_str(FIXTURE).unwrap();
        assert_eq!(state.hubs(), [NodeId(1), NodeId(2)]);
        // A hub, whose members are reached at their probe addresses, has no home.
        state.peers.remove(&NodeId(1));
        assert_eq!(state.hubs(), []);
    }

    #[tokio::test]
    async fn a_member_starts_with_what_it_was_told_last_and_a_damaged_file_costs_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let member = include_str!("fixtures/member/version-1.json");
        let membership: Membership = serde_json::from_str(member).unwrap();
        let fresh = OverlayState::load(&membership, dir.path()).await;
        assert_eq!(fresh, OverlayState::of(&membership));
        assert_eq!(fresh.private_key.base64(), Some("AAAA"));
        std::fs::write(OverlayState::file(dir.path()), FIXTURE).unwrap();
        let kept = OverlayState::load(&membership, dir.path()).await;
        assert_eq!(kept.peers.len(), 3);
        assert_eq!(kept.private_key.base64(), Some("AAAA"), "of member.json");
        std::fs::write(OverlayState::file(dir.path()), "{").unwrap();
        assert_eq!(OverlayState::load(&membership, dir.path()).await, fresh);
        // It is another cluster's.
        let other = FIXTURE.replace("\"fd12:3456:789a::\",\n  \"mtu\"", "\"fd00::\",\n  \"mtu\"");
        std::fs::write(OverlayState::file(dir.path()), other).unwrap();
        assert_eq!(OverlayState::load(&membership, dir.path()).await, fresh);
    }

    #[tokio::test]
    async fn the_underlay_is_found_without_sending_anything() {
        let options = UnderlayOptions::default();
        let found = underlay("https://127.0.0.1:7443", options).await;
        assert_eq!((found.port, found.advertise), (51_820, None));
        // The server is on this machine: what others reach is told, or nothing where there is no network.
        assert!(found.local.is_none_or(|address| !address.is_loopback()));
        let found = underlay("https://nobody.invalid:1, https://127.0.0.1", options).await;
        assert!(found.local.is_none_or(|address| !address.is_loopback()));
    }

    #[test]
    fn a_key_is_in_no_log() {
        let key = WireguardPrivateKey(Some("secret".to_owned()));
        assert_eq!(format!("{key:?}"), "a key");
    }
}

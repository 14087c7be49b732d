//! The peers of an interface, and what they are found by.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use gotatun::noise::Tunn;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::WgKind;
use gotatun::x25519::{PublicKey, StaticSecret};

use crate::routes::Routes;
use crate::settings::{Key, PeerSettings, PeerStatus, Settings};

/// So many handshakes of one address are answered in a second; beyond, it has to show first that it is there.
const HANDSHAKES_PER_SECOND: u64 = 100;

/// One peer.
pub(crate) struct Peer {
    pub(crate) tunnel: Tunn,
    /// Where it is: as recorded, or where it was seen since.
    pub(crate) endpoint: Option<SocketAddr>,
    settings: PeerSettings,
}

/// The place of a peer in [`Peers`]. It is not given twice.
pub(crate) type PeerId = u64;

/// All peers.
pub(crate) struct Peers {
    private: StaticSecret,
    public: PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
    indexes: IndexTable,
    peers: HashMap<PeerId, Peer>,
    last: PeerId,
    by_key: HashMap<Key, PeerId>,
    /// By the numbers of sessions and handshakes, which a peer puts into its messages.
    by_index: HashMap<u32, PeerId>,
    routes: Routes<PeerId>,
}

impl Peers {
    pub(crate) fn new(settings: &Settings) -> Self {
        let private = StaticSecret::from(settings.private_key.0.0);
        let public = PublicKey::from(&private);
        let mut peers = Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND)),
            private,
            public,
            indexes: IndexTable::from_os_rng(),
            peers: HashMap::new(),
            last: 0,
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            routes: Routes::new(std::iter::empty()),
        };
        peers.set(settings);
        peers
    }

    /// Whether these settings are of another key: no session goes on with it.
    pub(crate) fn is_of(&self, settings: &Settings) -> bool {
        self.private.to_bytes() == settings.private_key.0.0
    }

    /// Follows the settings. The sessions of peers that stay go on.
    pub(crate) fn set(&mut self, settings: &Settings) {
        let gone: Vec<_> = (self.by_key.iter())
            .filter(|(key, _)| !settings.peers.contains_key(key))
            .map(|(key, id)| (*key, *id))
            .collect();
        for (key, id) in gone {
            self.by_key.remove(&key);
            self.peers.remove(&id);
            self.by_index.retain(|_, of| *of != id);
        }
        for (key, peer) in &settings.peers {
            let known = self.by_key.get(key).and_then(|id| self.peers.get_mut(id));
            if let Some(known) = known {
                if known.settings.endpoint != peer.endpoint && peer.endpoint.is_some() {
                    known.endpoint = peer.endpoint;
                }
                if known.settings.keepalive != peer.keepalive {
                    known.tunnel.set_persistent_keepalive(peer.keepalive);
                }
                known.settings = peer.clone();
                continue;
            }
            self.last += 1;
            let tunnel = Tunn::new(
                self.private.clone(),
                PublicKey::from(key.0),
                None,
                peer.keepalive,
                self.indexes.clone(),
                Arc::clone(&self.limiter),
            );
            let added = Peer {
                tunnel,
                endpoint: peer.endpoint,
                settings: peer.clone(),
            };
            self.peers.insert(self.last, added);
            self.by_key.insert(*key, self.last);
        }
        let routes = self.by_key.values().flat_map(|id| {
            let peer = self.peers.get(id);
            let allowed = peer.into_iter().flat_map(|peer| &peer.settings.allowed);
            allowed.map(|prefix| (*prefix, *id))
        });
        self.routes = Routes::new(routes);
    }

    /// The peer to which an address goes.
    pub(crate) fn to(&self, address: Ipv6Addr) -> Option<PeerId> {
        self.routes.find(address)
    }

    pub(crate) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(&id)
    }

    pub(crate) fn ids(&self) -> Vec<PeerId> {
        self.peers.keys().copied().collect()
    }

    /// Whose message this is.
    pub(crate) fn sender(&self, message: &WgKind) -> Option<PeerId> {
        let index = match message {
            WgKind::HandshakeInit(begin) => {
                let half = parse_handshake_anon(&self.private, &self.public, begin).ok()?;
                return self.by_key.get(&Key(half.peer_static_public)).copied();
            }
            WgKind::HandshakeResp(message) => message.receiver_idx.get(),
            WgKind::CookieReply(message) => message.receiver_idx.get(),
            WgKind::Data(message) => message.header.receiver_idx.get(),
        };
        self.by_index.get(&index).copied()
    }

    /// A message goes out: what answers it will have its number.
    pub(crate) fn sending(&mut self, id: PeerId, message: &WgKind) {
        let index = match message {
            WgKind::HandshakeInit(message) => message.sender_idx.get(),
            WgKind::HandshakeResp(message) => message.sender_idx.get(),
            WgKind::CookieReply(_) | WgKind::Data(_) => return,
        };
        self.by_index.insert(index, id);
    }

    /// Drops the numbers of sessions that ended.
    pub(crate) fn reap_ended_sessions(&mut self) {
        let indexes = &self.indexes;
        self.by_index.retain(|index, _| indexes.in_use(*index));
        self.limiter.try_reset_count();
    }

    pub(crate) fn status(&self) -> std::collections::BTreeMap<Key, PeerStatus> {
        let status = self.by_key.iter().filter_map(|(key, id)| {
            let peer = self.peers.get(id)?;
            let (age, sent, received, ..) = peer.tunnel.stats();
            let millis = |age: std::time::Duration| u64::try_from(age.as_millis()).ok();
            let status = PeerStatus {
                endpoint: peer.endpoint,
                handshake_age_ms: age.and_then(millis),
                received: received as u64,
                sent: sent as u64,
            };
            Some((*key, status))
        });
        status.collect()
    }
}

//! The peers of an interface, and what they are found by.

use std::collections::{HashMap, VecDeque};
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
/// Peers to which an interface that was just made begins handshakes by itself, beyond those that were seen before: each takes a tunnel from then on.
const MAX_GREETED: usize = 1000;

/// One peer with which something was exchanged, or is to be.
pub(crate) struct Peer {
    /// It takes 17 KiB.
    pub(crate) tunnel: Box<Tunn>,
    /// Where it is: as recorded, or where it was seen since.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Whether the last handshake was begun though nothing was to be sent.
    pub(crate) greeted: bool,
}

/// A peer as it is recorded. Most of a large cluster are silent: they have no tunnel yet.
struct Recorded {
    key: Key,
    settings: PeerSettings,
    peer: Option<Peer>,
}

/// The place of a peer in [`Peers`]. It is not given twice.
pub(crate) type PeerId = u64;

/// All peers.
pub(crate) struct Peers {
    private: StaticSecret,
    public: PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
    indexes: IndexTable,
    peers: HashMap<PeerId, Recorded>,
    last: PeerId,
    by_key: HashMap<Key, PeerId>,
    /// By the numbers of sessions and handshakes, which a peer puts into its messages.
    by_index: HashMap<u32, PeerId>,
    routes: Routes<PeerId>,
    /// With these a handshake is to be begun.
    ungreeted: VecDeque<PeerId>,
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
            ungreeted: VecDeque::new(),
        };
        peers.set(settings);
        peers
    }

    /// The peers of a process that was just started. Another may have been here before: the peers then have sessions with that one, and what they send by them is lost until
    /// their own timers notice, 15 s later or more. A handshake of ours has them use another at once, so each peer gets one ([`Self::greet`]): those that were seen before
    /// first, and where they were seen.
    pub(crate) fn of_new_process(settings: &Settings) -> Self {
        let mut peers = Self::new(settings);
        for key in settings.seen.keys() {
            if let Some(endpoint) = settings.seen(key)
                && let Some(id) = peers.by_key.get(key).copied()
                && let Some(peer) = peers.get_mut(id)
            {
                peer.endpoint = Some(endpoint);
                peers.ungreeted.push_back(id);
            }
        }
        let others = (settings.peers.iter())
            .filter(|(key, peer)| peer.endpoint.is_some() && settings.seen(key).is_none())
            .filter_map(|(key, _)| peers.by_key.get(key));
        peers.ungreeted.extend(others.take(MAX_GREETED));
        peers
    }

    /// Begins handshakes with up to so many peers that are to be greeted: what is to be sent, and where.
    pub(crate) fn greet(&mut self, most: usize) -> Vec<(SocketAddr, WgKind)> {
        let mut messages = Vec::new();
        while messages.len() < most
            && let Some(id) = self.ungreeted.pop_front()
        {
            // One that is gone meanwhile, or that was quicker.
            let Some(peer) = self.get_mut(id) else {
                continue;
            };
            if peer.tunnel.has_active_session() {
                continue;
            }
            let message = peer.tunnel.format_handshake_initiation(false);
            peer.greeted = message.is_some();
            if let Some((to, message)) = peer.endpoint.zip(message) {
                let message = WgKind::from(message);
                self.sending(id, &message);
                messages.push((to, message));
            }
        }
        messages
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
        for (key, wanted) in &settings.peers {
            let known = self.by_key.get(key).and_then(|id| self.peers.get_mut(id));
            if let Some(known) = known {
                if let Some(peer) = &mut known.peer {
                    if known.settings.endpoint != wanted.endpoint && wanted.endpoint.is_some() {
                        peer.endpoint = wanted.endpoint;
                    }
                    if known.settings.keepalive != wanted.keepalive {
                        peer.tunnel.set_persistent_keepalive(wanted.keepalive);
                    }
                }
                known.settings = wanted.clone();
            } else {
                self.last += 1;
                let recorded = Recorded {
                    key: *key,
                    settings: wanted.clone(),
                    peer: None,
                };
                self.peers.insert(self.last, recorded);
                self.by_key.insert(*key, self.last);
            }
            if wanted.keepalive.is_some()
                && let Some(id) = self.by_key.get(key).copied()
            {
                // It is sent to from now on.
                self.get_mut(id);
            }
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

    /// The peer, with a tunnel from now on.
    pub(crate) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let Recorded {
            key,
            settings,
            peer,
        } = self.peers.get_mut(&id)?;
        Some(peer.get_or_insert_with(|| Peer {
            tunnel: Box::new(Tunn::new(
                self.private.clone(),
                PublicKey::from(key.0),
                None,
                settings.keepalive,
                self.indexes.clone(),
                Arc::clone(&self.limiter),
            )),
            endpoint: settings.endpoint,
            greeted: false,
        }))
    }

    /// Those that have a tunnel: the others have no timers.
    pub(crate) fn with_tunnel(&self) -> Vec<PeerId> {
        let with = self.peers.iter().filter(|(_, of)| of.peer.is_some());
        with.map(|(id, _)| *id).collect()
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
            let recorded = self.peers.get(id)?;
            let peer = recorded.peer.as_ref();
            let (age, sent, received) = peer.map_or((None, 0, 0), |peer| {
                let (age, sent, received, ..) = peer.tunnel.stats();
                (age, sent, received)
            });
            let millis = |age: std::time::Duration| u64::try_from(age.as_millis()).ok();
            let status = PeerStatus {
                endpoint: peer.map_or(recorded.settings.endpoint, |peer| peer.endpoint),
                handshake_age_ms: age.and_then(millis),
                received: received as u64,
                sent: sent as u64,
            };
            Some((*key, status))
        });
        status.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::settings::{Prefix, PrivateKey};

    fn key(number: u16) -> Key {
        let [high, low] = number.to_be_bytes();
        let mut key = [7; 32];
        (key[0], key[1]) = (high, low);
        Key(key)
    }

    fn at(number: u16) -> SocketAddr {
        (Ipv4Addr::from(0x0a00_0000 | u32::from(number)), 51820).into()
    }

    fn settings(peers: std::ops::Range<u16>) -> Settings {
        let peer = |number| {
            let settings = PeerSettings {
                endpoint: Some(at(number)),
                allowed: Vec::new(),
                keepalive: None,
            };
            (key(number), settings)
        };
        Settings {
            private_key: PrivateKey(Key([9; 32])),
            inside: Prefix {
                address: "fd12::".parse().unwrap(),
                bits: 48,
            },
            peers: peers.map(peer).collect(),
            seen: BTreeMap::new(),
        }
    }

    #[test]
    fn a_new_process_greets_whom_it_knows_once_and_in_bounds() {
        let mut wanted = settings(0..1500);
        wanted.peers.get_mut(&key(3)).unwrap().endpoint = None;
        wanted.peers.get_mut(&key(4)).unwrap().endpoint = None;
        // They roamed; one was seen inside of the tunnels, and one is a peer no more.
        let seen = [1400, 3, 2000].map(|number| (key(number), at(number + 5000)));
        wanted.seen = BTreeMap::from(seen);
        wanted.seen.insert(key(5), "[fd12::1]:1".parse().unwrap());
        let mut peers = Peers::of_new_process(&wanted);
        let mut greeted = Vec::new();
        loop {
            let some = peers.greet(128);
            assert!(some.len() <= 128);
            if some.is_empty() {
                break;
            }
            assert!(
                some.iter()
                    .all(|(_, message)| matches!(message, WgKind::HandshakeInit(_)))
            );
            greeted.extend(some.into_iter().map(|(to, _)| to));
        }
        assert_eq!(greeted.len(), MAX_GREETED + 2);
        assert_eq!(greeted[..2], [at(5003), at(6400)]);
        assert!(greeted.contains(&at(5)) && !greeted.contains(&at(1400)));
        // Whoever comes later is greeted by who has something to say, and so is everybody after another key.
        peers.set(&settings(0..1600));
        assert!(peers.greet(128).is_empty());
        assert!(Peers::new(&wanted).greet(128).is_empty());
        // One that is gone before its turn is left out.
        let mut peers = Peers::of_new_process(&settings(0..2));
        peers.set(&settings(1..2));
        let greeted = peers.greet(128);
        assert_eq!(greeted.len(), 1);
        assert_eq!(greeted[0].0, at(1));
    }
}

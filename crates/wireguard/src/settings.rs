//! What an interface is set to, and what it says of itself: the forms in which the agent and the process of the interface talk.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// An X25519 key in base64, as `wg` writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(pub [u8; 32]);

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a WireGuard key is 32 bytes in base64, which this is not")]
pub struct NotAKey;

impl FromStr for Key {
    type Err = NotAKey;
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| NotAKey)?;
        bytes.try_into().map(Self).map_err(|_| NotAKey)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Key {
    type Error = NotAKey;
    fn try_from(text: String) -> Result<Self, NotAKey> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

/// A private key; its text is in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrivateKey(pub Key);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A range of IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prefix {
    /// Its first address.
    pub address: Ipv6Addr,
    /// How many bits of that count, up to 128.
    pub bits: u8,
}

impl Prefix {
    /// The bits that count.
    pub(crate) fn mask(bits: u8) -> u128 {
        u128::MAX
            .checked_shl(128 - u32::from(bits.min(128)))
            .unwrap_or(0)
    }

    /// Whether the address is in the range.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        (self.address.to_bits() ^ address.to_bits()) & Self::mask(self.bits) == 0
    }
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSettings {
    /// Where it is, as far as is recorded. Packets of its own from elsewhere move it: it is set again only when another is recorded. Absent: it
    /// is not sent to before it has sent.
    #[serde(default)]
    pub endpoint: Option<SocketAddr>,
    /// What goes to it, and may come from it.
    pub allowed: Vec<Prefix>,
    /// How often something is sent at least, in seconds, so that a NAT on the way keeps its entry.
    #[serde(default)]
    pub keepalive: Option<u16>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its key.
    pub private_key: PrivateKey,
    /// The range that is inside of the tunnels: no peer's endpoint is in it.
    pub inside: Prefix,
    /// Its peers, by their public keys.
    pub peers: BTreeMap<Key, PeerSettings>,
    /// Where peers were seen last by an interface that was here before, and with which they may have sessions still. An interface that was just made takes
    /// it instead of what is recorded; any other does not look at it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seen: BTreeMap<Key, SocketAddr>,
}

/// Settings that contradict themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The tunnel would lead through itself.
    #[error(
        "the endpoint {endpoint} of {peer} is inside of the tunnels: give an address of the network between the machines"
    )]
    EndpointInside {
        /// Whose.
        peer: Key,
        /// Where it is.
        endpoint: SocketAddr,
    },
    /// What goes there is not clear.
    #[error("{}/{} goes to {one} and to {other}: it may go to one peer", prefix.address, prefix.bits)]
    SharedPrefix {
        /// What goes to both.
        prefix: Prefix,
        /// One of them.
        one: Key,
        /// The other.
        other: Key,
    },
}

impl Settings {
    /// Where the peer was seen before, if that is not inside of the tunnels.
    pub(crate) fn seen(&self, peer: &Key) -> Option<SocketAddr> {
        let is_outside = |seen: &SocketAddr| match seen {
            SocketAddr::V6(v6) => !self.inside.contains(*v6.ip()),
            SocketAddr::V4(_) => true,
        };
        self.seen.get(peer).copied().filter(is_outside)
    }

    /// Whether they can be followed.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), Contradiction> {
        let mut owners = BTreeMap::new();
        for (key, peer) in &self.peers {
            if let Some(endpoint @ SocketAddr::V6(v6)) = peer.endpoint
                && self.inside.contains(*v6.ip())
            {
                let peer = *key;
                return Err(Contradiction::EndpointInside { peer, endpoint });
            }
            for prefix in &peer.allowed {
                if let Some(one) = owners.insert(*prefix, *key)
                    && one != *key
                {
                    return Err(Contradiction::SharedPrefix {
                        prefix: *prefix,
                        one,
                        other: *key,
                    });
                }
            }
        }
        Ok(())
    }
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Where it was last seen, or is recorded.
    pub endpoint: Option<SocketAddr>,
    /// How long ago the last handshake was, in milliseconds; absent where there was none.
    pub handshake_age_ms: Option<u64>,
    /// What was received from it, in bytes.
    pub received: u64,
    /// What was sent to it, in bytes.
    pub sent: u64,
}

/// What an interface says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its peers, by their public keys.
    pub peers: BTreeMap<Key, PeerStatus>,
    /// Packets that were dropped, by why.
    pub dropped: Dropped,
    /// Whether the kernel cuts and joins packets of the TUN device and of the socket.
    pub offloads: Offloads,
    /// The UDP port at which it listens.
    #[serde(default)]
    pub port: u16,
}

/// Packets that were dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// They go to no peer, or to one of which nobody knows where it is.
    pub no_route: u64,
    /// A peer sent them from an address that does not go to it.
    pub wrong_source: u64,
    /// They are no message of WireGuard for this interface, or were repeated.
    pub invalid: u64,
    /// The kernel did not take them.
    pub not_sent: u64,
}

/// What the kernel does for many packets at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// The TUN device gives and takes segments of TCP that are many packets.
    pub tun: bool,
    /// So many datagrams are sent at once at most.
    pub sent_at_once: usize,
}

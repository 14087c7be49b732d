//! Which private networks instances of egress `all` reach, a setting of the cluster (ADR 0004).
//!
//! Egress is IPv4. Whatever the setting, no instance reaches loopback, link-local addresses, the places where clouds answer with the machine's credentials
//! or the machine's own addresses: `node_network::rules` denies these to everybody. So a setting that names them is refused, because it would do nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Networks that are not the internet's and that egress may reach: of organisations (RFC 1918) and of measurements (RFC 2544).
pub const PRIVATE: [Ipv4Network; 4] = [
    Ipv4Network::of(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Network::of(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Network::of(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Network::of(Ipv4Addr::new(198, 18, 0, 0), 15),
];

/// Networks that no egress reaches, and what they are.
pub const DENIED: [(Ipv4Network, &str); 8] = [
    (
        Ipv4Network::of(Ipv4Addr::UNSPECIFIED, 8),
        "of no machine (RFC 1122)",
    ),
    (
        Ipv4Network::of(Ipv4Addr::new(100, 64, 0, 0), 10),
        "where instances have their own addresses (RFC 6598)",
    ),
    (
        Ipv4Network::of(Ipv4Addr::new(127, 0, 0, 0), 8),
        "loopback, the machine itself",
    ),
    (
        Ipv4Network::of(Ipv4Addr::new(168, 63, 129, 16), 32),
        "where a cloud answers with the machine's credentials",
    ),
    (
        Ipv4Network::of(Ipv4Addr::new(169, 254, 0, 0), 16),
        "link-local, where clouds answer with the machine's credentials (169.254.169.254)",
    ),
    (
        Ipv4Network::of(Ipv4Addr::new(192, 0, 0, 0), 24),
        "where instances ask for names (RFC 6890)",
    ),
    (Ipv4Network::of(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
    (
        Ipv4Network::of(Ipv4Addr::new(240, 0, 0, 0), 4),
        "reserved, and broadcast",
    ),
];

/// Most networks that the setting may name.
pub const MAX_PRIVATE_NETWORKS: usize = 256;

/// An IPv4 network in the notation of RFC 4632: its first address and how many bits of that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(extend("pattern" = "^([0-9]{1,3}\\.){3}[0-9]{1,3}/[0-9]{1,2}$"))
)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Network {
    address: Ipv4Addr,
    bits: u8,
}

impl Ipv4Network {
    /// The network that begins here. For constants: the address has no bit beyond `bits`, which are 32 at most.
    const fn of(address: Ipv4Addr, bits: u8) -> Self {
        Self { address, bits }
    }

    /// Its first address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// How many bits of the address count, 0 to 32.
    pub fn bits(self) -> u8 {
        self.bits
    }

    fn mask(bits: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
    }

    /// Whether all of the other is in this one.
    pub fn contains(self, other: Self) -> bool {
        self.bits <= other.bits
            && other.address.to_bits() & Self::mask(self.bits) == self.address.to_bits()
    }

    /// Whether they have an address in common.
    fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl From<Ipv4Network> for String {
    fn from(network: Ipv4Network) -> Self {
        network.to_string()
    }
}

impl TryFrom<String> for Ipv4Network {
    type Error = NotANetwork;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Why a text names no IPv4 network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotANetwork {
    /// It is none.
    #[error("`{0}` is no network: write one as 10.0.0.0/8, a single address as 10.1.2.3/32")]
    Form(String),
    /// It has a longer address than its length says.
    #[error(
        "`{given}` has bits beyond its length: write {meant}, or {address}/32 for the address alone"
    )]
    BitsBeyond {
        /// What was given.
        given: String,
        /// The network of that length.
        meant: Ipv4Network,
        /// The address.
        address: Ipv4Addr,
    },
    /// It is one of IPv6.
    #[error(
        "`{0}` is of IPv6, and egress is IPv4 only; between instances of the cluster the env decides, and no setting"
    )]
    Ipv6(String),
}

impl FromStr for Ipv4Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || NotANetwork::Form(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(form)?;
        if address.parse::<Ipv6Addr>().is_ok() {
            return Err(NotANetwork::Ipv6(text.to_owned()));
        }
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let is_number = bits.bytes().all(|digit| digit.is_ascii_digit());
        let bits: u8 = bits.parse().map_err(|_| form())?;
        if bits > 32 || !is_number {
            return Err(form());
        }
        let first = Ipv4Addr::from_bits(address.to_bits() & Self::mask(bits));
        let network = Self::of(first, bits);
        if first != address {
            return Err(NotANetwork::BitsBeyond {
                given: text.to_owned(),
                meant: network,
                address,
            });
        }
        Ok(network)
    }
}

/// Why a network cannot be one of those that instances reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrivateNetworkRefused {
    /// No egress reaches it, whatever the setting.
    #[error("{network}: {denied} in it is {what}, and no instance reaches that")]
    Denied {
        /// What was given.
        network: Ipv4Network,
        /// The part that is denied.
        denied: Ipv4Network,
        /// What that is.
        what: &'static str,
    },
    /// It is the internet's, or has a part of it.
    #[error(
        "{0} is not within a private network (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15): what else there is \
         belongs to the internet, which the setting does not change"
    )]
    NotPrivate(Ipv4Network),
    /// There are too many.
    #[error("{0} networks, and {MAX_PRIVATE_NETWORKS} are the most")]
    TooMany(usize),
}

/// The private networks that instances of egress `all` reach. All of [`PRIVATE`] unless somebody sets others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct PrivateNetworks(pub BTreeSet<Ipv4Network>);

impl Default for PrivateNetworks {
    fn default() -> Self {
        Self(PRIVATE.into())
    }
}

impl PrivateNetworks {
    /// Whether they are all that there are.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether these may be set.
    ///
    /// # Errors
    /// The first one that may not.
    pub fn check(&self) -> Result<(), PrivateNetworkRefused> {
        if self.0.len() > MAX_PRIVATE_NETWORKS {
            return Err(PrivateNetworkRefused::TooMany(self.0.len()));
        }
        for network in &self.0 {
            if PRIVATE.iter().any(|private| private.contains(*network)) {
                continue;
            }
            let denied = DENIED.iter().find(|(denied, _)| denied.contains(*network));
            let denied = denied.or_else(|| DENIED.iter().find(|(d, _)| d.overlaps(*network)));
            return Err(match denied {
                Some((denied, what)) => PrivateNetworkRefused::Denied {
                    network: *network,
                    denied: *denied,
                    what,
                },
                None => PrivateNetworkRefused::NotPrivate(*network),
            });
        }
        Ok(())
    }
}

impl fmt::Display for PrivateNetworks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("all");
        }
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (at, network) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{network}")?;
        }
        Ok(())
    }
}

impl FromStr for PrivateNetworks {
    type Err = NotANetwork;

    /// `all`, `none`, or networks with commas between: what its `Display` writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::default()),
            "none" => Ok(Self(BTreeSet::new())),
            _ => {
                let networks = text.split(',').map(|network| network.trim().parse());
                networks.collect::<Result<_, _>>().map(Self)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn refusal(text: &str) -> String {
        match text.parse::<PrivateNetworks>() {
            Ok(networks) => networks.check().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn networks_are_read_as_they_are_written() {
        for text in [
            "all",
            "none",
            "10.0.0.0/8",
            "10.1.2.3/32,172.16.0.0/12,192.168.7.0/24,198.18.0.0/15",
        ] {
            let networks: PrivateNetworks = text.parse().unwrap();
            networks.check().unwrap();
            assert_eq!(networks.to_string(), text);
            let json = serde_json::to_string(&networks).unwrap();
            assert_eq!(
                serde_json::from_str::<PrivateNetworks>(&json).unwrap(),
                networks
            );
        }
        let all = "192.168.0.0/16, 10.0.0.0/8,198.18.0.0/15,172.16.0.0/12";
        assert!(all.parse::<PrivateNetworks>().unwrap().is_all());
        assert!(serde_json::from_str::<PrivateNetworks>(r#"["10.0.0.1/8"]"#).is_err());
    }

    #[test]
    fn what_the_setting_cannot_open_is_refused_with_what_it_is() {
        for (text, says) in [
            ("", "is no network"),
            ("10.0.0.0", "is no network"),
            ("10.0.0.0/33", "is no network"),
            ("10.0.0.0/+8", "is no network"),
            ("10.0.0.0/8,", "is no network"),
            ("10.1.2.3/8", "write 10.0.0.0/8, or 10.1.2.3/32"),
            ("fd12:3456:789a::/48", "of IPv6"),
            ("127.0.0.0/8", "loopback"),
            ("127.0.0.1/32", "loopback"),
            ("169.254.169.254/32", "the machine's credentials"),
            ("168.63.129.16/32", "the machine's credentials"),
            ("100.64.0.0/10", "their own addresses"),
            ("100.100.100.200/32", "their own addresses"),
            ("224.0.0.0/4", "multicast"),
            ("0.0.0.0/0", "no instance reaches that"),
            ("203.0.113.0/24", "not within a private network"),
            ("172.0.0.0/8", "not within a private network"),
            ("10.0.0.0/7", "not within a private network"),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(says), "{text}: {refusal}");
        }
        let many =
            (0..=256).map(|n: u32| Ipv4Network::of(Ipv4Addr::from_bits(0x0a00_0000 + n), 32));
        let refused = PrivateNetworks(many.collect()).check();
        assert_eq!(refused, Err(PrivateNetworkRefused::TooMany(257)));
    }
}

//! Which proxies in front of the edge are believed, and the header of the PROXY protocol that they may begin a connection with.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use proxy_header::{ParseConfig, ProxyHeader};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::limits::{HEAD_READ_TIMEOUT, MAX_PROXY_HEADER_BYTES};

/// How a header of version 2 begins (haproxy's proxy-protocol.txt, section 2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family, and the length of what follows.
const FIXED_BYTES: usize = 16;
/// Pause before a header of which only a part came is looked at again.
const PART_PAUSE: Duration = Duration::from_millis(5);

/// A network of proxies that are believed what they say of clients: an address, and how many bits of it count (RFC 4632, RFC 4291).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyNetwork {
    address: IpAddr,
    bits: u8,
}

/// A text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address and no network: write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")]
pub struct ProxyNetworkError(String);

impl FromStr for ProxyNetwork {
    type Err = ProxyNetworkError;

    fn from_str(text: &str) -> Result<Self, ProxyNetworkError> {
        let error = || ProxyNetworkError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().map_err(|_| error())?,
            None => most,
        };
        if bits > most {
            return Err(error());
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for ProxyNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl TryFrom<String> for ProxyNetwork {
    type Error = ProxyNetworkError;

    fn try_from(text: String) -> Result<Self, ProxyNetworkError> {
        text.parse()
    }
}

impl From<ProxyNetwork> for String {
    fn from(network: ProxyNetwork) -> Self {
        network.to_string()
    }
}

impl ProxyNetwork {
    /// Whether the address, which is an IPv4 one where it is one in IPv6's clothes, is of this network.
    fn contains(&self, address: IpAddr) -> bool {
        let is_same = |one: u128, other: u128, of: u32| {
            let shift = of - u32::from(self.bits);
            one.checked_shr(shift).unwrap_or(0) == other.checked_shr(shift).unwrap_or(0)
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(address)) => {
                is_same(own.to_bits().into(), address.to_bits().into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(address)) => {
                is_same(own.to_bits(), address.to_bits(), 128)
            }
            _ => false,
        }
    }
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustedProxies(Vec<ProxyNetwork>);

impl TrustedProxies {
    pub(crate) fn new(networks: Vec<ProxyNetwork>) -> Self {
        Self(networks)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client of a request that a trusted proxy handed on: the last address of `X-Forwarded-For` that is no trusted proxy's. With how many are behind it,
    /// each of a trusted proxy that was told by the one before it.
    pub(crate) fn client_of<'a>(
        &self,
        forwarded_for: impl Iterator<Item = &'a [u8]>,
    ) -> Option<(IpAddr, usize)> {
        // Elements are bytes: what a client wrote may be no text, and hides none of those behind it.
        let elements = forwarded_for.flat_map(|value| value.split(|byte| *byte == b','));
        let elements: Vec<&[u8]> = elements.collect();
        let mut client = None;
        for (behind, element) in elements.into_iter().rev().enumerate() {
            let text = std::str::from_utf8(element).ok();
            let Some(address) = text.and_then(|text| address_of(text.trim())) else {
                break;
            };
            client = Some((address, behind));
            if !self.contains(address) {
                break;
            }
        }
        client
    }
}

/// An address, perhaps in brackets and with a port, as some proxies write it.
fn address_of(text: &str) -> Option<IpAddr> {
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let bare = inner.unwrap_or(text).parse::<IpAddr>();
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    bare.or_else(|_| with_port())
        .ok()
        .map(|address| address.to_canonical())
}

/// Takes the header of the PROXY protocol off a connection of a trusted proxy: the client, and whom that connected to. `None`: there is none, or it
/// is about the proxy itself.
///
/// # Errors
/// The connection broke, or begins with half a header.
pub(crate) async fn take_header(
    stream: &mut TcpStream,
) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let taken = tokio::time::timeout(HEAD_READ_TIMEOUT, take(stream)).await;
    taken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn take(stream: &mut TcpStream) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let mut fixed = [0; FIXED_BYTES];
    loop {
        let seen = stream.peek(&mut fixed).await?;
        let of_signature = seen.min(SIGNATURE.len());
        if seen == 0 || fixed[..of_signature] != SIGNATURE[..of_signature] {
            return Ok(None);
        }
        if seen == FIXED_BYTES {
            break;
        }
        // It is one write of the proxy, so this is rare: `peek` cannot wait for more than it has seen.
        tokio::time::sleep(PART_PAUSE).await;
    }
    let rest = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if rest > MAX_PROXY_HEADER_BYTES {
        return Err(io::Error::other(
            "the header of the PROXY protocol is too long",
        ));
    }
    let mut header = vec![0; FIXED_BYTES + rest];
    stream.read_exact(&mut header).await?;
    let (header, _) =
        ProxyHeader::parse(&header, ParseConfig::default()).map_err(io::Error::other)?;
    let ends = header.proxied_address();
    Ok(ends.map(|ends| (ends.source, ends.destination)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn network(text: &str) -> ProxyNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_the_addresses_whose_first_bits_are_its_own() {
        for (of, address, expected) in [
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("192.0.2.0/24", "::ffff:192.0.2.1", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            let contains = network(of).contains(address.parse().unwrap());
            assert_eq!(contains, expected, "{of} {address}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_an_example() {
        for text in [
            "",
            "a",
            "192.0.2.0/33",
            "192.0.2.0/-1",
            "192.0.2/24",
            "::/129",
            "::/",
        ] {
            let error = text.parse::<ProxyNetwork>().unwrap_err().to_string();
            assert!(error.contains("192.0.2.0/24"), "{error}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
        let trusted = TrustedProxies::new(vec![network("10.0.0.0/8")]);
        for (values, expected) in [
            (&["203.0.113.7"][..], Some(("203.0.113.7", 0))),
            (
                &["6.6.6.6, 203.0.113.7, 10.1.1.1"],
                Some(("203.0.113.7", 1)),
            ),
            (&["6.6.6.6", "203.0.113.7"], Some(("203.0.113.7", 0))),
            (&["[2001:db8::1]:443"], Some(("2001:db8::1", 0))),
            (&["203.0.113.7:1234"], Some(("203.0.113.7", 0))),
            (&["unknown"], None),
            (&["unknown, 10.1.1.1"], Some(("10.1.1.1", 0))),
            (&["10.1.1.1, 10.1.1.2"], Some(("10.1.1.1", 1))),
            (&[], None),
        ] {
            let client = trusted.client_of(values.iter().map(|value| value.as_bytes()));
            assert_eq!(
                client,
                expected.map(|(text, behind)| (text.parse().unwrap(), behind)),
                "{values:?}"
            );
        }
        let values: [&[u8]; 2] = [b"6.6.6.6, \xff", b"\xfe, 203.0.113.7, 10.1.1.1"];
        let client = trusted.client_of(values.into_iter());
        assert_eq!(client, Some(("203.0.113.7".parse().unwrap(), 1)));
    }
}

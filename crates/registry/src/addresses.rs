//! To which addresses a registry client connects.
//!
//! An image reference names a host and a port, and whoever may deploy writes it. A server and a node must not connect for them to what only their own
//! machine reaches: link-local addresses, where clouds answer with the machine's credentials; loopback behind a name; multicast. A name is looked up
//! once, in [`Checked`], and the connection goes to what was looked at: a name that leads elsewhere a moment later (DNS rebinding) gains nothing.
//!
//! Deliberately absent: private networks. Registries are there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use oci::is_loopback;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Which addresses a client connects to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Addresses {
    /// All: who runs the program names the registry.
    #[default]
    Any,
    /// No link-local, multicast and unspecified ones; and loopback only where the reference says so (`127.0.0.1:5000`, `localhost:5000`), or the host is
    /// listed in [`crate::RegistryOptions::insecure`]: others name the registry.
    Checked,
}

/// An address that a client does not connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} leads to {address}, {why}")]
pub(crate) struct RefusedAddress {
    /// The host, as it was named.
    pub(crate) host: String,
    pub(crate) address: IpAddr,
    pub(crate) why: &'static str,
}

/// Azure's metadata, which is not link-local.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Amazon's metadata by IPv6.
const AMAZON: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Why no registry is at an address; absent: one may be, loopback among them.
fn no_registry_at(address: IpAddr) -> Option<&'static str> {
    let link_local = "where clouds answer with the machine's credentials, and no registry is";
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_link_local() || v4 == AZURE => Some(link_local),
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6 == AMAZON => Some(link_local),
        ip if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            Some("which is multicast")
        }
        // The kernel takes it for loopback.
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("which is no host's"),
        ip if ip.is_unspecified() => Some("which is no host's"),
        // NAT64 and 6to4 carry an address of IPv4.
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let v4 =
                |high: u16, low: u16| IpAddr::V4(((u32::from(high) << 16) | u32::from(low)).into());
            let carried = match (a, b) {
                (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => v4(g, h),
                (0x2002, _) => v4(b, c),
                _ => return None,
            };
            no_registry_at(carried).or(carried
                .is_loopback()
                .then_some("which is this machine itself"))
        }
        IpAddr::V4(_) => None,
    }
}

/// Checks the host of a URL that is an address itself, of which no name is looked up.
pub(crate) fn check_literal(host: &str) -> Result<(), RefusedAddress> {
    let text = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let Ok(address) = text.unwrap_or(host).parse::<IpAddr>() else {
        return Ok(());
    };
    match no_registry_at(address) {
        Some(why) => Err(RefusedAddress {
            host: host.to_owned(),
            address,
            why,
        }),
        None => Ok(()),
    }
}

/// The addresses of a name to which the client connects: those that are no registry's are left out.
///
/// # Errors
/// None is left.
fn checked(
    host: &str,
    may_be_loopback: bool,
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, RefusedAddress> {
    let mut refused = None;
    let mut kept = Vec::new();
    for address in found {
        let ip = address.ip();
        let is_here = ip.to_canonical().is_loopback() && !may_be_loopback;
        let here = is_here.then_some("which is this machine itself");
        match no_registry_at(ip).or(here) {
            Some(why) => refused = Some((ip, why)),
            None => kept.push(address),
        }
    }
    match refused {
        Some((address, why)) if kept.is_empty() => Err(RefusedAddress {
            host: host.to_owned(),
            address,
            why,
        }),
        _ => Ok(kept),
    }
}

/// Looks names up, and gives the addresses that a registry may have.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Registries that were listed: `host` or `host:port`.
    pub(crate) listed: Arc<BTreeSet<String>>,
}

impl Checked {
    /// Whether the operator, or the reference itself, says that the host is on this machine.
    fn may_be_loopback(&self, host: &str) -> bool {
        is_loopback(host)
            || self.listed.iter().any(|listed| {
                let rest = listed.strip_prefix(host);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            })
    }
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let may_be_loopback = self.may_be_loopback(&host);
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let kept = checked(&host, may_be_loopback, found)?;
            Ok(Box::new(kept.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn no_registry_is_at_link_local_multicast_and_unspecified_addresses() {
        for host in [
            "169.254.169.254",
            "169.254.0.1",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "[fe80::1]",
            "[febf::1]",
            "[ff02::1]",
            "[::]",
            "[fd00:ec2::254]",
            // The same in other writings.
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b::7f00:1]",
            "[2002:a9fe:a9fe::1]",
        ] {
            let refused = check_literal(host).unwrap_err();
            assert!(refused.to_string().starts_with(host), "{refused}");
        }
        for host in [
            "127.0.0.1",
            "[::1]",
            "10.0.0.5",
            "192.168.1.1",
            "[fd00::1]",
            "203.0.113.7",
            "[2001:db8::1]",
            "registry.example.com",
            "169.254.169.254.example.com",
        ] {
            assert_eq!(check_literal(host), Ok(()), "{host}");
        }
    }

    #[test]
    fn a_name_is_reached_at_what_is_left_of_its_addresses() {
        let found = |addresses: &[&str]| {
            let found: Vec<SocketAddr> = addresses
                .iter()
                .map(|address| SocketAddr::new(address.parse().unwrap(), 0))
                .collect();
            let kept = checked("evil.example.com", false, found.into_iter());
            kept.map(|kept| kept.len())
                .map_err(|refused| refused.to_string())
        };
        assert_eq!(found(&["203.0.113.7", "10.0.0.1"]), Ok(2));
        assert_eq!(found(&["169.254.169.254", "203.0.113.7"]), Ok(1));
        assert_eq!(found(&[]), Ok(0));
        assert_eq!(
            found(&["127.0.0.1"]),
            Err("evil.example.com leads to 127.0.0.1, which is this machine itself".to_owned())
        );
        assert!(found(&["::1", "fe80::1"]).is_err());
        assert!(found(&["::ffff:127.0.0.1"]).is_err());

        let resolver = Checked {
            listed: Arc::new(BTreeSet::from(["box.example.com:5000".to_owned()])),
        };
        for (host, may) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("box.example.com", true),
            ("box.example.co", false),
            ("evil.example.com", false),
        ] {
            assert_eq!(resolver.may_be_loopback(host), may, "{host}");
        }
    }

    #[tokio::test]
    async fn what_was_looked_at_is_what_is_connected_to() {
        let resolver = Checked {
            listed: Arc::default(),
        };
        let found = resolver
            .resolve("localhost".parse().unwrap())
            .await
            .unwrap();
        let found: Vec<_> = found.collect();
        assert!(!found.is_empty());
        assert!(found.iter().all(|address| address.ip().is_loopback()));
    }
}

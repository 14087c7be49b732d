//! How a member is reached over the underlay: what it says, what the server sees, and what is recorded of both (ADR 0004).
//!
//! What is recorded is where peers *first* try. A member that moves is found by its packets, as WireGuard does it; so the record and what
//! peers see never fight.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use api::member::Underlay;
use overlay::address_plan::locate;
use overlay::underlay::may_be_endpoint;

/// The MTUs that an underlay may have, in bytes. What is named outside of these is not believed.
const UNDERLAY_MTUS: std::ops::RangeInclusive<u32> = 576..=65_536;

/// What is recorded of how a member is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordedUnderlay {
    /// Where its peers first try to reach it. Absent: nowhere; it has to call them.
    pub endpoint: Option<SocketAddr>,
    /// Whether a NAT is between it and the server. It keeps its mappings alive then ([`api::member::KEEPALIVE_SECONDS`]).
    pub is_behind_nat: bool,
    /// Whether its operator said the endpoint.
    pub is_advertised: bool,
    /// MTU of its underlay, in bytes; absent: it did not say.
    pub mtu: Option<u32>,
}

impl RecordedUnderlay {
    /// Whether others reach it without its calling them first. Only such a member is a hub by itself.
    pub fn is_reachable(&self) -> bool {
        self.endpoint.is_some() && (self.is_advertised || !self.is_behind_nat)
    }
}

/// Why what a member says is not recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnderlayRefused {
    /// Its tunnels would have to go through themselves.
    #[error(
        "the endpoint {0} is inside of the cluster's own prefix: packets to it would go through the tunnel that they are to carry"
    )]
    InsideOfTheCluster(SocketAddr),
    /// Nobody can send there.
    #[error("nobody can send to the endpoint {0}")]
    NoEndpoint(SocketAddr),
    /// WireGuard has to have a port.
    #[error("the overlay port is 0")]
    NoPort,
}

/// What is recorded of a member that says this, and that the server sees at `seen`, in the cluster with this prefix.
///
/// # Errors
/// What it says cannot be.
pub fn record(
    said: &Underlay,
    seen: Option<IpAddr>,
    cluster: Ipv6Addr,
) -> Result<RecordedUnderlay, UnderlayRefused> {
    if said.port == 0 {
        return Err(UnderlayRefused::NoPort);
    }
    if let Some(advertised) = said.advertise {
        let address = advertised.ip().to_canonical();
        if is_inside(address, cluster) {
            return Err(UnderlayRefused::InsideOfTheCluster(advertised));
        }
        // Each machine would send to itself.
        let is_own = address.is_loopback();
        if advertised.port() == 0 || is_own || !may_be_endpoint(address) {
            return Err(UnderlayRefused::NoEndpoint(advertised));
        }
    }
    let usable = |address: IpAddr| {
        let address = address.to_canonical();
        (may_be_endpoint(address) && !is_inside(address, cluster)).then_some(address)
    };
    let (seen, local) = (seen.and_then(usable), said.local.and_then(usable));
    let is_behind_nat = match (seen, local) {
        // The server's machine is its own, or it comes by the other family.
        (Some(seen), Some(local)) => {
            !seen.is_loopback() && seen.is_ipv4() == local.is_ipv4() && seen != local
        }
        _ => false,
    };
    let found = match (seen, local) {
        (Some(seen), Some(local)) if seen.is_loopback() => Some(local),
        (Some(seen), _) => Some(seen),
        (None, local) => local,
    };
    let found = found.map(|address| SocketAddr::new(address, said.port));
    let advertised = (said.advertise)
        .map(|advertised| SocketAddr::new(advertised.ip().to_canonical(), advertised.port()));
    Ok(RecordedUnderlay {
        endpoint: advertised.or(found),
        is_behind_nat,
        is_advertised: advertised.is_some(),
        mtu: said.mtu.filter(|mtu| UNDERLAY_MTUS.contains(mtu)),
    })
}

fn is_inside(address: IpAddr, cluster: Ipv6Addr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => locate(cluster, address).is_some(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const CLUSTER: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 0, 0, 0, 0, 0);

    fn underlay(advertise: Option<&str>, local: Option<&str>) -> Underlay {
        Underlay {
            port: 51_820,
            advertise: advertise.map(|text| text.parse().unwrap()),
            local: local.map(|text| text.parse().unwrap()),
            mtu: Some(1500),
        }
    }

    fn recorded(said: &Underlay, seen: &str) -> (Option<String>, bool, bool) {
        let recorded = record(said, Some(seen.parse().unwrap()), CLUSTER).unwrap();
        let endpoint = recorded.endpoint.map(|endpoint| endpoint.to_string());
        (endpoint, recorded.is_behind_nat, recorded.is_reachable())
    }

    #[test]
    fn the_endpoint_is_what_is_advertised_or_what_the_server_sees() {
        let at = |text: &str| Some(text.to_owned());
        let plain = underlay(None, Some("10.0.0.5"));
        assert_eq!(
            recorded(&plain, "10.0.0.5"),
            (at("10.0.0.5:51820"), false, true)
        );
        // A server that listens on both families sees it mapped.
        assert_eq!(
            recorded(&plain, "::ffff:10.0.0.5"),
            (at("10.0.0.5:51820"), false, true)
        );
        assert_eq!(
            recorded(&plain, "203.0.113.9"),
            (at("203.0.113.9:51820"), true, false),
            "a NAT"
        );
        let forwarded = underlay(Some("203.0.113.9:4000"), Some("10.0.0.5"));
        assert_eq!(
            recorded(&forwarded, "203.0.113.9"),
            (at("203.0.113.9:4000"), true, true)
        );
        assert_eq!(
            recorded(&plain, "127.0.0.1"),
            (at("10.0.0.5:51820"), false, true),
            "the server is on its machine"
        );
        assert_eq!(
            recorded(&underlay(None, None), "127.0.0.1"),
            (at("127.0.0.1:51820"), false, true),
            "a machine without a network"
        );
        assert_eq!(
            recorded(&plain, "2001:db8::5"),
            (at("[2001:db8::5]:51820"), false, true),
            "the other family is no NAT"
        );
    }

    #[test]
    fn an_endpoint_inside_of_the_cluster_is_refused() {
        let inside = underlay(Some("[fd00:1:2:5::1]:51820"), None);
        let seen = Some("10.0.0.5".parse().unwrap());
        let refused = record(&inside, seen, CLUSTER).unwrap_err();
        assert!(matches!(refused, UnderlayRefused::InsideOfTheCluster(_)));
        // One that calls through the overlay is not recorded with that address.
        let plain = underlay(None, Some("10.0.0.5"));
        assert_eq!(
            recorded(&plain, "fd00:1:2:5::1").0,
            Some("10.0.0.5:51820".to_owned())
        );
        for nowhere in [
            "0.0.0.0:51820",
            "127.0.0.1:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "255.255.255.255:51820",
            "[fe80::1]:51820",
            "169.254.1.1:51820",
            "192.0.0.3:51820",
            "10.0.0.1:0",
            "[ff02::1]:51820",
        ] {
            let refused = record(&underlay(Some(nowhere), None), seen, CLUSTER).unwrap_err();
            assert!(
                matches!(refused, UnderlayRefused::NoEndpoint(_)),
                "{nowhere}"
            );
        }
        let portless = Underlay { port: 0, ..plain };
        assert_eq!(
            record(&portless, seen, CLUSTER),
            Err(UnderlayRefused::NoPort)
        );
    }

    #[test]
    fn an_mtu_that_no_link_has_is_not_believed() {
        for (said_mtu, recorded_mtu) in [(0, None), (1280, Some(1280)), (1 << 20, None)] {
            let plain = Underlay {
                mtu: Some(said_mtu),
                ..underlay(None, None)
            };
            assert_eq!(record(&plain, None, CLUSTER).unwrap().mtu, recorded_mtu);
        }
    }
}

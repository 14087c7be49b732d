//! Which addresses of the network between the machines members may be reached at.

use std::net::IpAddr;

/// Whether packets of WireGuard may be sent to this address, which is not an IPv4 address mapped into IPv6. Those that belong to nobody, to all of a link, or to
/// each machine itself in another way are refused; loopback is not, because a server and its members may be on one machine without a network.
pub fn may_be_endpoint(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            // RFC 6890: this network, IETF protocol assignments. Shared address space (100.64.0.0/10) is that of providers' NATs and of some
            // clouds, so a machine may be there.
            !(address.is_broadcast() || address.is_link_local() || a == 0 || a >= 240)
                && [a, b, c] != [192, 0, 0]
        }
        // A link-local address says nothing without the link.
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn addresses_of_machines_may_be_and_those_of_nobody_may_not() {
        let may = |text: &str| may_be_endpoint(text.parse().unwrap());
        for address in [
            "10.0.0.5",
            "203.0.113.7",
            "100.64.3.4",
            "127.0.0.1",
            "2001:db8::7",
            "fd00::1",
        ] {
            assert!(may(address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "240.0.0.1",
            "224.0.0.1",
            "169.254.1.1",
            "192.0.0.3",
            "::",
            "ff02::1",
            "fe80::1",
        ] {
            assert!(!may(address), "{address}");
        }
    }
}

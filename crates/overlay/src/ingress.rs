//! The ports at which edges connect to an instance.
//!
//! A port without `proxy_protocol` is the app's own. One with it has an ingress port beside it,
//! where the guest's PROXY adapter listens (ADR 0001, 0003): edges go there, while neighbours and
//! health checks keep the app's own port, plain. Ingress ports follow from the release alone, so
//! the route table and the guest agree without telling each other.

use model::instance::{Port, ProxyProtocol};

/// The first ingress port: above those that Linux gives to outgoing connections (32768 to 60999),
/// so that no app ever sits on one by chance.
pub const FIRST_INGRESS_PORT: u16 = 61_001;

/// Ports with `proxy_protocol`, with the ingress port and the manner of each, in the order of the
/// process. A port that the process has for itself is left out, whichever it is.
pub fn ingress_ports(ports: &[Port]) -> impl Iterator<Item = (u16, &Port, ProxyProtocol)> {
    let free = (FIRST_INGRESS_PORT..=u16::MAX)
        .filter(|ingress| ports.iter().all(|port| port.port != *ingress));
    let wanted = ports
        .iter()
        .filter_map(|port| Some((port, port.proxy_protocol?)));
    // A process has far fewer ports than there are from the first on (`manifest` bounds them).
    free.zip(wanted)
        .map(|(ingress, (port, mode))| (ingress, port, mode))
}

/// Where edges connect to reach `port`.
pub fn edge_port(ports: &[Port], port: u16) -> u16 {
    ingress_ports(ports)
        .find(|(_, app, _)| app.port == port)
        .map_or(port, |(ingress, _, _)| ingress)
}

#[cfg(test)]
mod tests {
    use model::instance::Protocol;
    use proptest::prelude::*;

    use super::*;

    fn port(port: u16, proxy_protocol: Option<ProxyProtocol>) -> Port {
        Port {
            port,
            protocol: Protocol::Tcp,
            proxy_protocol,
        }
    }

    #[test]
    fn each_port_with_proxy_protocol_has_an_ingress_port_of_its_own() {
        let ports = [
            port(8080, Some(ProxyProtocol::Strip)),
            port(9090, None),
            port(61_002, Some(ProxyProtocol::V2)),
            port(7070, Some(ProxyProtocol::V2)),
        ];
        let given: Vec<_> = ingress_ports(&ports)
            .map(|(ingress, port, _)| (ingress, port.port))
            .collect();
        assert_eq!(given, [(61_001, 8080), (61_003, 61_002), (61_004, 7070)]);
        assert_eq!(
            [8080, 9090, 61_002, 1].map(|port| edge_port(&ports, port)),
            [61_001, 9090, 61_003, 1]
        );
    }

    proptest! {
        #[test]
        fn no_port_is_given_twice(
            numbers in prop::collection::btree_set(
                prop_oneof![1..=u16::MAX, 61_000..61_070_u16], 0..64,
            ),
            proxied in any::<u64>(),
        ) {
            let ports: Vec<_> = (0..)
                .zip(numbers)
                .map(|(at, number)| {
                    port(number, ((proxied >> at) & 1 == 1).then_some(ProxyProtocol::Strip))
                })
                .collect();
            let mut taken: Vec<_> = ports.iter().map(|port| port.port).collect();
            taken.extend(ingress_ports(&ports).map(|(ingress, _, _)| ingress));
            let all = taken.len();
            taken.sort_unstable();
            taken.dedup();
            prop_assert_eq!(taken.len(), all);
            let wanted = ports.iter().filter(|port| port.proxy_protocol.is_some());
            prop_assert_eq!(all, ports.len() + wanted.count());
        }
    }
}

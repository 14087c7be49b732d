//! Whether a link still has the route and the addresses that it was given: whoever sets the link down and up, or restarts the machine's network, removes them.
//!
//! Read from `/proc` without starting a program, because it is looked at every few seconds. What cannot be read counts as there.

use std::fs;
use std::net::Ipv6Addr;

use model::NodeId;

use crate::names::platform_address;

/// Whether packets to this /48 go to the link, in the network namespace of the thread. Blocks.
pub(crate) fn has_route(cluster: Ipv6Addr, link: &str) -> bool {
    fs::read_to_string("/proc/thread-self/net/ipv6_route")
        .is_ok_and(|routes| route_is_in(&routes, cluster, link))
}

/// Whether the link has an edge's two addresses, in the network namespace of the thread. Blocks.
pub(crate) fn has_addresses(cluster: Ipv6Addr, edge: NodeId, link: &str) -> bool {
    fs::read_to_string("/proc/thread-self/net/if_inet6").is_ok_and(|addresses| {
        [1, 2].iter().all(|number| {
            let address = hex(platform_address(cluster, edge, *number));
            let mut lines = addresses.lines();
            lines.any(|line| line.starts_with(&address) && is_of(line, link))
        })
    })
}

/// Destination and length come first, the link last.
fn route_is_in(routes: &str, cluster: Ipv6Addr, link: &str) -> bool {
    let destination = format!("{} 30 ", hex(cluster));
    let mut lines = routes.lines();
    lines.any(|line| line.starts_with(&destination) && is_of(line, link))
}

fn is_of(line: &str, link: &str) -> bool {
    line.split_ascii_whitespace().next_back() == Some(link)
}

fn hex(address: Ipv6Addr) -> String {
    format!("{:032x}", address.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_found_by_prefix_and_link() {
        let routes = "\
fd123456789a00000000000000000000 30 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001  overlay
fd123456789a00030000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001    other
";
        let cluster = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
        assert!(route_is_in(routes, cluster, "overlay"));
        assert!(!route_is_in(routes, cluster, "other"));
        let another = Ipv6Addr::new(0xfd12, 0x3456, 0x789b, 0, 0, 0, 0, 0);
        assert!(!route_is_in(routes, another, "overlay"));
    }
}

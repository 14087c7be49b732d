//! The PROXY protocol header, version 2: tells a backend who the client is, before the first byte
//! of the request (haproxy's proxy-protocol.txt, section 2.2). Written, never read, here.

use std::net::SocketAddr;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header for one connection of `client`, who connected to `edge`.
pub(crate) fn encode(client: SocketAddr, edge: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_AND_COMMAND);
    let mut addresses = Vec::with_capacity(36);
    // An IPv4 client of a dual-stack socket shows up as ::ffff:a.b.c.d.
    let family = match (client.ip().to_canonical(), edge.ip().to_canonical()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            addresses.extend(from.octets());
            addresses.extend(to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            for ip in [from, to] {
                addresses.extend(match ip {
                    std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    std::net::IpAddr::V6(ip) => ip.octets(),
                });
            }
            TCP_OVER_IPV6
        }
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(edge.port().to_be_bytes());
    header.push(family);
    // 12 or 36 bytes: always fits.
    header.extend([0, u8::try_from(addresses.len()).unwrap_or(0)]);
    header.extend(addresses);
    header
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::{Expect, expect};
    use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader};

    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
    fn check(client: &str, edge: &str, expected: Expect) {
        let header = encode(client.parse().unwrap(), edge.parse().unwrap());
        let hex: Vec<String> = header[12..].iter().map(|b| format!("{b:02x}")).collect();
        expected.assert_eq(&hex.join(" "));
        // As another reads it.
        let (read, length) = ProxyHeader::parse(&header, ParseConfig::default()).unwrap();
        let canonical = |text: &str| {
            let address: SocketAddr = text.parse().unwrap();
            SocketAddr::new(address.ip().to_canonical(), address.port())
        };
        let ends = ProxiedAddress::stream(canonical(client), canonical(edge));
        assert_eq!(
            (read.proxied_address(), length),
            (Some(&ends), header.len())
        );
    }

    #[test]
    fn ipv4() {
        check(
            "10.1.2.3:1000",
            "10.0.0.1:80",
            expect!["21 11 00 0c 0a 01 02 03 0a 00 00 01 03 e8 00 50"],
        );
        check(
            "[::ffff:10.1.2.3]:1000",
            "[::ffff:10.0.0.1]:80",
            expect!["21 11 00 0c 0a 01 02 03 0a 00 00 01 03 e8 00 50"],
        );
    }

    #[test]
    fn ipv6() {
        check(
            "[fd00::1]:1000",
            "[fd00::2]:80",
            expect![
                "21 21 00 24 fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 03 e8 00 50"
            ],
        );
    }
}

//! The PROXY protocol header, version 2: tells a backend who the client is, before the first byte
//! of the request (haproxy's proxy-protocol.txt, section 2.2). Written, never read, here.

use std::net::SocketAddr;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Types of what may follow the addresses (section 2.2).
const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_VERSION: u8 = 0x21;
/// The client came by TLS.
const CLIENT_SSL: u8 = 0x01;
/// It showed no certificate that was verified.
const NOT_VERIFIED: u32 = 1;

/// The TLS of a client that ended at the edge.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientTls<'a> {
    /// The host that it named.
    pub(crate) host: &'a str,
    /// `TLSv1.2` or `TLSv1.3`.
    pub(crate) version: &'a str,
    /// What was agreed on by ALPN.
    pub(crate) alpn: Option<&'a [u8]>,
}

/// The header for one connection of `client`, who connected to `edge`; with what an app may want to know of its TLS, where that ended at the edge.
pub(crate) fn encode(client: SocketAddr, edge: SocketAddr, tls: Option<ClientTls<'_>>) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_AND_COMMAND);
    let mut rest = Vec::with_capacity(36);
    // An IPv4 client of a dual-stack socket shows up as ::ffff:a.b.c.d.
    let family = match (client.ip().to_canonical(), edge.ip().to_canonical()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            rest.extend(from.octets());
            rest.extend(to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            for ip in [from, to] {
                rest.extend(match ip {
                    std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    std::net::IpAddr::V6(ip) => ip.octets(),
                });
            }
            TCP_OVER_IPV6
        }
    };
    rest.extend(client.port().to_be_bytes());
    rest.extend(edge.port().to_be_bytes());
    if let Some(tls) = tls {
        if let Some(alpn) = tls.alpn {
            append(&mut rest, TYPE_ALPN, alpn);
        }
        append(&mut rest, TYPE_AUTHORITY, tls.host.as_bytes());
        let mut ssl = vec![CLIENT_SSL];
        ssl.extend(NOT_VERIFIED.to_be_bytes());
        append(&mut ssl, SUBTYPE_SSL_VERSION, tls.version.as_bytes());
        append(&mut rest, TYPE_SSL, &ssl);
    }
    header.push(family);
    header.extend(length_of(&rest));
    header.extend(rest);
    header
}

/// A value of this type behind others.
fn append(values: &mut Vec<u8>, kind: u8, value: &[u8]) {
    values.push(kind);
    values.extend(length_of(value));
    values.extend(value);
}

/// The addresses, a host and the name of a protocol always fit.
fn length_of(value: &[u8]) -> [u8; 2] {
    u16::try_from(value.len()).unwrap_or(0).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::{Expect, expect};
    use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader};

    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
    fn check(client: &str, edge: &str, expected: Expect) {
        let header = encode(client.parse().unwrap(), edge.parse().unwrap(), None);
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

    #[test]
    fn of_a_client_whose_tls_ended_here() {
        let tls = ClientTls {
            host: "db.example.com",
            version: "TLSv1.3",
            alpn: Some(b"postgresql"),
        };
        let ends = ["10.1.2.3:1000", "10.0.0.1:5432"].map(|text| text.parse().unwrap());
        let header = encode(ends[0], ends[1], Some(tls));
        let config = ParseConfig {
            include_tlvs: true,
            ..ParseConfig::default()
        };
        let (read, length) = ProxyHeader::parse(&header, config).unwrap();
        assert_eq!(length, header.len());
        assert_eq!(
            read.proxied_address(),
            Some(&ProxiedAddress::stream(ends[0], ends[1]))
        );
        assert_eq!(read.authority(), Some("db.example.com"));
        assert_eq!(read.alpn(), Some(&b"postgresql"[..]));
        let ssl = read.ssl().unwrap();
        assert_eq!(ssl.version(), Some("TLSv1.3"));
        assert!(ssl.verify() != 0);
    }
}

//! Names of routes: a host name; `tcp:` and a port of edges; or `tls:`, a host name and a port of edges. No host name is like the latter two (RFC 1123, 2.1).

/// What the name of a TCP route begins with; the port follows.
const TCP: &str = "tcp:";
/// What the name of a TCP route for one host begins with; the host, `:` and the port follow.
const TLS: &str = "tls:";

/// The name of the TCP route of a port of edges.
pub fn of_tcp(listen: u16) -> String {
    format!("{TCP}{listen}")
}

/// The name of the TCP route of a port of edges for clients that name this host by TLS.
pub fn of_tls(host: &str, listen: u16) -> String {
    format!("{TLS}{host}:{listen}")
}

/// What the names of all TCP routes for this host begin with, whatever their ports, and no other name.
pub fn tls_prefix(host: &str) -> String {
    format!("{TLS}{host}:")
}

/// The port of edges, where this is the name of a TCP route for whoever connects.
pub fn tcp_port(name: &str) -> Option<u16> {
    port_of(name.strip_prefix(TCP)?)
}

/// The host and the port of edges, where this is the name of a TCP route for one host.
pub fn tls(name: &str) -> Option<(&str, u16)> {
    let (host, port) = name.strip_prefix(TLS)?.rsplit_once(':')?;
    let is_host = !host.is_empty() && !host.contains(':');
    Some((host, port_of(port)?)).filter(|_| is_host)
}

/// The port of edges, where this is the name of a TCP route of either kind.
pub fn port_of_edges(name: &str) -> Option<u16> {
    tcp_port(name).or_else(|| tls(name).map(|(_, port)| port))
}

/// Whether it is a host name: requests of HTTP come for it.
pub fn is_host(name: &str) -> bool {
    port_of_edges(name).is_none()
}

/// As it is written here: each port has one name.
fn port_of(text: &str) -> Option<u16> {
    let is_canonical = !text.starts_with(['+', '0']);
    text.parse().ok().filter(|_| is_canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_edges_has_one_name() {
        for port in [1, 80, 30_432, u16::MAX] {
            assert_eq!(tcp_port(&of_tcp(port)), Some(port));
            assert_eq!(port_of_edges(&of_tcp(port)), Some(port));
            assert!(!is_host(&of_tcp(port)));
        }
        for name in [
            "tcp.example.com",
            "tcp:",
            "tcp:0",
            "tcp:080",
            "tcp:+80",
            "tcp:65536",
            "5432",
            "",
        ] {
            assert_eq!(tcp_port(name), None, "{name}");
            assert!(is_host(name), "{name}");
        }
    }

    #[test]
    fn a_host_at_a_port_of_edges_has_one_name_and_is_no_host_of_http() {
        let name = of_tls("db.example.com", 30_432);
        assert_eq!(name, "tls:db.example.com:30432");
        assert_eq!(tls(&name), Some(("db.example.com", 30_432)));
        assert_eq!(port_of_edges(&name), Some(30_432));
        assert_eq!(tcp_port(&name), None);
        assert!(!is_host(&name));
        assert!(name.starts_with(&tls_prefix("db.example.com")));
        for other in ["db.example", "example.com", "db.example.com.b"] {
            assert!(!name.starts_with(&tls_prefix(other)), "{other}");
        }
        for name in [
            "tls.example.com",
            "tls:",
            "tls:a",
            "tls:a:",
            "tls::80",
            "tls:a:080",
            "tls:a:b:80",
            "tls:a:0",
        ] {
            assert_eq!(tls(name), None, "{name}");
            assert!(is_host(name), "{name}");
        }
    }
}

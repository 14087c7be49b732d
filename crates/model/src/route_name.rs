//! Names of routes: a host name, or `tcp:` and a port of edges, which no host name is like (RFC 1123, 2.1).

/// What the name of a TCP route begins with; the port follows.
const TCP: &str = "tcp:";

/// The name of the TCP route of a port of edges.
pub fn of_tcp(listen: u16) -> String {
    format!("{TCP}{listen}")
}

/// The port of edges, where this is the name of a TCP route.
pub fn tcp_port(name: &str) -> Option<u16> {
    let port = name.strip_prefix(TCP)?;
    // As `of_tcp` writes it: each port has one name.
    let is_canonical = !port.starts_with(['+', '0']);
    port.parse().ok().filter(|_| is_canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_edges_has_one_name() {
        for port in [1, 80, 30_432, u16::MAX] {
            assert_eq!(tcp_port(&of_tcp(port)), Some(port));
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
        }
    }
}

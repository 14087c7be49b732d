//! Which names an authority of ACME can certify.

/// Last labels of names that no public authority certifies: RFC 2606, 6761, 6762, 7686, 8375 and 9476, and `internal` (ICANN, 2024), which is the cluster's own.
const SPECIAL: [&str; 12] = [
    "alt",
    "arpa",
    "corp",
    "example",
    "home",
    "internal",
    "invalid",
    "lan",
    "local",
    "localhost",
    "onion",
    "test",
];
/// Of those, names that mean each machine itself, or nothing: no authority at all certifies them.
const NOBODYS: [&str; 2] = ["invalid", "localhost"];

/// A name is no wildcard that can be ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no wildcard: one is `*.` and a host of two labels or more, in lowercase, such as `*.example.com`"
)]
pub struct NotWildcard(pub String);

/// Whether a public authority may certify this host: it has two labels or more, and its last one is no special name.
pub fn is_public(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    host.contains('.')
        && !SPECIAL.contains(&last)
        // An address is no name.
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a certificate is ordered for this host. `is_private`: the authority is one of the cluster's own.
pub(super) fn is_eligible(host: &str, is_private: bool) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_somebodys = is_host(host) && !NOBODYS.contains(&last);
    is_somebodys && (is_private || is_public(host))
}

/// A name for which a wildcard may be ordered.
///
/// # Errors
/// It is none.
pub fn check_wildcard(name: &str) -> Result<(), NotWildcard> {
    let host = name.strip_prefix("*.").unwrap_or_default();
    if host.contains('.') && is_host(host) {
        Ok(())
    } else {
        Err(NotWildcard(name.to_owned()))
    }
}

/// The wildcard that fits a host: in the place of its first label (RFC 6125, 6.4.3).
pub(super) fn wildcard_of(host: &str) -> Option<String> {
    let (_, parent) = host.split_once('.').filter(|(first, _)| *first != "*")?;
    parent.contains('.').then(|| format!("*.{parent}"))
}

/// Whether it is a host in lowercase: names of TCP routes are none.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(is_good)
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_certifies_public_hosts_and_one_of_the_clusters_own_others_too() {
        for host in [
            "shop.example.com",
            "example.org",
            "xn--bcher-kva.example.net",
        ] {
            assert!(
                is_eligible(host, false) && is_eligible(host, true),
                "{host}"
            );
        }
        for host in [
            "intranet",
            "shop.internal",
            "a.test",
            "b.lan",
            "x.home.arpa",
            "10.0.0.1",
        ] {
            assert!(!is_eligible(host, false), "{host}");
            assert!(is_eligible(host, true), "{host}");
        }
        for host in [
            "localhost",
            "hello.localhost",
            "x.invalid",
            "tcp:30432",
            "",
            "a..b",
            "A.example.com",
        ] {
            assert!(
                !is_eligible(host, false) && !is_eligible(host, true),
                "{host}"
            );
        }
    }

    #[test]
    fn a_wildcard_is_of_a_host_of_two_labels_or_more() {
        for name in ["*.example.com", "*.a.example.com"] {
            assert_eq!(check_wildcard(name), Ok(()));
        }
        for name in [
            "*.com",
            "example.com",
            "*",
            "*.",
            "a.*.example.com",
            "*.*.example.com",
            "*.Example.com",
        ] {
            assert!(check_wildcard(name).is_err(), "{name}");
        }
        assert_eq!(
            wildcard_of("a.example.com").as_deref(),
            Some("*.example.com")
        );
        for host in ["example.com", "localhost", "*.example.com"] {
            assert_eq!(wildcard_of(host), None, "{host}");
        }
    }
}

//! The host that a request is for (RFC 9112, 3.2).

use crate::grammar::{decimal, is_authority};

/// Why a request names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is none, or it is empty.
    #[error("the request names no host: a Host header is needed")]
    Missing,
    /// There are several `Host` headers.
    #[error("the request has more than one Host header")]
    Several,
    /// It is none.
    #[error("the Host header is not a host name")]
    Malformed,
}

/// A host and perhaps a port, as they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Without its port and the final dot; not in lower case yet.
    pub host: &'a [u8],
    /// The port, where there is one.
    pub port: Option<u16>,
}

/// Reads `host`, `host:port`, `[address]` and `[address]:port`.
///
/// # Errors
/// [`HostError::Missing`] where there is no host, [`HostError::Malformed`] where it is none.
pub fn authority(text: &[u8]) -> Result<Authority<'_>, HostError> {
    if text.is_empty() {
        return Err(HostError::Missing);
    }
    if !is_authority(text) {
        return Err(HostError::Malformed);
    }
    let host_end = if text[0] == b'[' {
        text.iter()
            .position(|byte| *byte == b']')
            .ok_or(HostError::Malformed)?
            + 1
    } else {
        text.iter()
            .position(|byte| *byte == b':')
            .unwrap_or(text.len())
    };
    let (host, rest) = text.split_at(host_end);
    let inner = host
        .strip_prefix(b"[")
        .map_or(host, |inner| &inner[..inner.len() - 1]);
    if inner.contains(&b'[') || inner.contains(&b']') {
        return Err(HostError::Malformed);
    }
    let port = match rest {
        // `host:` is a host without a port (RFC 3986, 3.2.3).
        [] | [b':'] => None,
        [b':', digits @ ..] => {
            let port = decimal(digits).and_then(|port| u16::try_from(port).ok());
            Some(port.ok_or(HostError::Malformed)?)
        }
        _ => return Err(HostError::Malformed),
    };
    // One is that of the root of names; `a.test..` is no name, nor that of somebody else (RFC 1034, 3.1).
    let host = host.strip_suffix(b".").unwrap_or(host);
    if host.is_empty() || inner.is_empty() {
        return Err(HostError::Missing);
    }
    if host.ends_with(b".") {
        return Err(HostError::Malformed);
    }
    Ok(Authority { host, port })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_pass_by_value, reason = "reads better at the call")]

    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: Expect) {
        let seen = match authority(text.as_bytes()) {
            Ok(Authority { host, port }) => format!("{} {port:?}", String::from_utf8_lossy(host)),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&seen);
    }

    #[test]
    fn hosts() {
        check("Shop.Example.COM", expect!["Shop.Example.COM None"]);
        check("a.test:8080", expect!["a.test Some(8080)"]);
        check("a.test:", expect!["a.test None"]);
        check("a.test.", expect!["a.test None"]);
        check("[::1]:8080", expect!["[::1] Some(8080)"]);
        check("[::1]", expect!["[::1] None"]);
        check(
            "",
            expect!["the request names no host: a Host header is needed"],
        );
        check(
            ".",
            expect!["the request names no host: a Host header is needed"],
        );
        check(
            ":80",
            expect!["the request names no host: a Host header is needed"],
        );
        check(
            "[]",
            expect!["the request names no host: a Host header is needed"],
        );
        for text in [
            "a b",
            "x@a.test",
            "a<b>",
            "a.test:x",
            "a.test:-1",
            "a.test:65536",
            "a.test:80:80",
            "a.test..",
            "a.test..:80",
            "..",
            "[::1",
            "::1",
            "[::1]x",
            "a[b]",
            "[[::1]]",
            "a/b",
            "a?b",
            "a#b",
            "ä.test",
            "a\tb",
            "a,b]",
        ] {
            check(text, expect!["the Host header is not a host name"]);
        }
    }
}

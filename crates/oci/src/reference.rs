//! References to images, as the users of docker and skopeo write them.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use model::Digest;
use model::instance::PinnedImage;

/// Longest reference, in bytes.
const MAX_REFERENCE_BYTES: usize = 512;
/// Longest repository, in bytes (distribution spec).
const MAX_REPOSITORY_BYTES: usize = 255;
/// Longest tag, in bytes (distribution spec).
const MAX_TAG_BYTES: usize = 128;
/// The registry of names without a host, as in docker.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag where neither tag nor digest is written.
const DEFAULT_TAG: &str = "latest";

/// A registry, a repository there, and a tag or a digest or both.
///
/// Its text is `[docker://][HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`. The first part is a host if it has a dot or a
/// colon or is `localhost`. Without a host the registry is `docker.io`, and a repository of one word there is below
/// `library/`. Without tag and digest the tag is `latest`. With both, the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    /// The beginning of the text.
    pub text: String,
    /// The defect.
    pub reason: &'static str,
}

impl Reference {
    /// The registry: host and perhaps port, as written (`docker.io`, `localhost:5000`).
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one is written; `latest` where neither tag nor digest is.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one is written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// This digest in the same repository, without a tag.
    #[must_use]
    pub fn pin(&self, digest: &Digest) -> Self {
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest.clone()),
        }
    }

    /// The image with this digest in the same repository, as a release records it.
    pub fn pinned_image(&self, digest: &Digest) -> PinnedImage {
        PinnedImage {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            digest: digest.clone(),
        }
    }
}

impl From<&PinnedImage> for Reference {
    fn from(image: &PinnedImage) -> Self {
        Self {
            registry: image.registry.clone(),
            repository: image.repository.clone(),
            tag: None,
            digest: Some(image.digest.clone()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |reason| ReferenceError {
            text: text.chars().take(MAX_REPOSITORY_BYTES).collect(),
            reason,
        };
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(error("it is over 512 bytes long"));
        }
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        let (rest, digest) = match rest.split_once('@') {
            None => (rest, None),
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| {
                    error("`sha256:` and 64 lowercase hexadecimal digits must follow the `@`")
                })?;
                (rest, Some(digest))
            }
        };
        // As in docker, the first part is a host only if it cannot be part of a repository.
        let (registry, rest) = match rest.split_once('/') {
            Some((host, rest))
                if host == "localhost" || host.contains(['.', ':']) || host.starts_with('[') =>
            {
                (host, rest)
            }
            _ => (DEFAULT_REGISTRY, rest),
        };
        let registry = match registry {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
            other => other,
        };
        if !is_host(registry) {
            return Err(error(
                "its registry is not a host name or address with an optional port",
            ));
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(error(
                "a tag is 1 to 128 letters, digits, `_`, `.` and `-`, and begins with neither `.` nor `-`",
            ));
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if !is_repository(&repository) {
            return Err(error(
                "a repository consists of lowercase letters and digits, joined by `.`, `_`, `__` \
                 or `-`, with `/` between its parts",
            ));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// A registry as users name it when they log in: `ghcr.io`, `localhost:5000`. The names of docker's own registry all
/// become `docker.io`.
///
/// # Errors
/// The text is not a host name or address with an optional port.
pub fn parse_registry(text: &str) -> Result<String, ReferenceError> {
    let bare = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text)
        .trim_end_matches('/');
    match bare.strip_suffix("/v1").unwrap_or(bare) {
        "index.docker.io" | "registry-1.docker.io" => Ok(DEFAULT_REGISTRY.to_owned()),
        host if is_host(host) => Ok(host.to_owned()),
        _ => Err(ReferenceError {
            text: text.chars().take(MAX_REPOSITORY_BYTES).collect(),
            reason: "a registry is a host name or address with an optional port",
        }),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// `name`, `name:port`, `1.2.3.4:port`, `[::1]:port`.
fn is_host(text: &str) -> bool {
    let (host, port) = split_port(text);
    let port_ok = port.is_none_or(|port| {
        !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            host.len() <= 253
                && host.split('.').all(|label| {
                    !label.is_empty()
                        && label.len() <= 63
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                        && label
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                })
        }
    };
    host_ok && port_ok
}

/// The host (with its brackets) and the port's digits.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rfind(':') {
        Some(colon) if !text[colon..].contains(']') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    }
}

/// Whether this host, with or without a port, is a loopback address or `localhost`.
pub fn is_loopback(registry: &str) -> bool {
    let (host, _) = split_port(registry);
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    host == "localhost"
        || host.parse::<Ipv4Addr>().is_ok_and(|a| a.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|a| a.is_loopback())
}

fn is_tag(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_TAG_BYTES
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_repository(text: &str) -> bool {
    text.len() <= MAX_REPOSITORY_BYTES && text.split('/').all(is_repository_part)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution spec).
fn is_repository_part(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    word(*first)
        && word(*last)
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use expect_test::{Expect, expect};

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[allow(
        clippy::needless_pass_by_value,
        reason = "expect![] reads better by value"
    )]
    fn check(text: &str, expected: Expect) {
        let text = text.replace("DIGEST", &format!("sha256:{HEX}"));
        let actual = match text.parse::<Reference>() {
            Ok(reference) => {
                let shown = reference.to_string();
                assert_eq!(shown.parse::<Reference>().unwrap(), reference, "{shown}");
                shown.replace(HEX, "..")
            }
            Err(error) => error.reason.to_owned(),
        };
        expected.assert_eq(&actual);
    }

    #[test]
    fn references_of_docker_and_skopeo_are_read() {
        check("nginx", expect!["docker.io/library/nginx:latest"]);
        check(
            "docker://nginx:1.25",
            expect!["docker.io/library/nginx:1.25"],
        );
        check("user/app", expect!["docker.io/user/app:latest"]);
        check(
            "index.docker.io/user/app",
            expect!["docker.io/user/app:latest"],
        );
        check("localhost/app", expect!["localhost/app:latest"]);
        check(
            "localhost:5000/a/b/c:v1",
            expect!["localhost:5000/a/b/c:v1"],
        );
        check(
            "127.0.0.1:5000/hello@DIGEST",
            expect!["127.0.0.1:5000/hello@sha256:.."],
        );
        check("[::1]:5000/hello", expect!["[::1]:5000/hello:latest"]);
        check("ghcr.io/o/r:t@DIGEST", expect!["ghcr.io/o/r:t@sha256:.."]);
        check(
            "docker://quay.io/a__b/c-d--e.f",
            expect!["quay.io/a__b/c-d--e.f:latest"],
        );
    }

    #[test]
    fn a_malformed_reference_is_refused_with_the_reason() {
        check(
            "",
            expect![
                "a repository consists of lowercase letters and digits, joined by `.`, `_`, `__` or `-`, with `/` between its parts"
            ],
        );
        check(
            "Nginx",
            expect![
                "a repository consists of lowercase letters and digits, joined by `.`, `_`, `__` or `-`, with `/` between its parts"
            ],
        );
        check(
            "localhost:5000/../x",
            expect![
                "a repository consists of lowercase letters and digits, joined by `.`, `_`, `__` or `-`, with `/` between its parts"
            ],
        );
        check(
            "a/b:",
            expect![
                "a tag is 1 to 128 letters, digits, `_`, `.` and `-`, and begins with neither `.` nor `-`"
            ],
        );
        check(
            "a/b:-x",
            expect![
                "a tag is 1 to 128 letters, digits, `_`, `.` and `-`, and begins with neither `.` nor `-`"
            ],
        );
        check(
            "a/b@sha256:../../x",
            expect!["`sha256:` and 64 lowercase hexadecimal digits must follow the `@`"],
        );
        check(
            "a/b@sha512:00",
            expect!["`sha256:` and 64 lowercase hexadecimal digits must follow the `@`"],
        );
        check(
            "host:99999/x",
            expect!["its registry is not a host name or address with an optional port"],
        );
        check(
            "user@host.com/x",
            expect!["`sha256:` and 64 lowercase hexadecimal digits must follow the `@`"],
        );
        check(
            "a.b?c/x",
            expect!["its registry is not a host name or address with an optional port"],
        );
        check(
            "[::1/x",
            expect!["its registry is not a host name or address with an optional port"],
        );
        check(
            &format!("a/{}", "x".repeat(600)),
            expect!["it is over 512 bytes long"],
        );
    }

    #[test]
    fn loopback_registries_are_recognised_by_address() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "docker.io",
            "localhost.example.com",
            "10.0.0.1:5000",
            "[fd00::1]:5000",
            "127.0.0.1.example.com",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }
}

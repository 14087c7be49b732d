//! Headers on their way through: which host is asked for, what is removed, what is added.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Response, Version};

/// Headers that are between two neighbours only (RFC 9110, 7.6.1), besides those that
/// `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Other headers by which a client could pretend to be someone else.
const CLAIMED: [HeaderName; 3] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

/// Why a request names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    #[error("the request names no host: a Host header is needed")]
    Missing,
    #[error("the request has more than one Host header")]
    Several,
    #[error("the Host header is not a host name")]
    Malformed,
}

/// The host a request is for: as the client wrote it, and as routes are named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AskedHost {
    /// With the port, for the backend's `Host` header.
    pub(crate) authority: HeaderValue,
    /// Lowercase, without port and final dot.
    pub(crate) name: String,
}

/// The host a request is for. An absolute URI wins over the Host header (RFC 9112, 3.2.2).
pub(crate) fn asked_host<B>(request: &Request<B>) -> Result<AskedHost, HostError> {
    let mut values = request.headers().get_all(header::HOST).iter();
    let in_header = values.next();
    if values.next().is_some() {
        return Err(HostError::Several);
    }
    let authority = match (request.uri().authority(), in_header) {
        (Some(authority), _) => authority.clone(),
        (None, Some(value)) => {
            Authority::try_from(value.as_bytes()).map_err(|_| HostError::Malformed)?
        }
        (None, None) => return Err(HostError::Missing),
    };
    if authority.as_str().contains('@') {
        return Err(HostError::Malformed);
    }
    let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
    if name.is_empty() {
        return Err(HostError::Missing);
    }
    Ok(AskedHost {
        authority: HeaderValue::try_from(authority.as_str()).map_err(|_| HostError::Malformed)?,
        name,
    })
}

/// What the client asks to upgrade its connection to, if it does (RFC 9110, 7.8).
pub(crate) fn wanted_upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    if request.version() != Version::HTTP_11 {
        return None;
    }
    connection_options(request.headers())
        .any(|option| option == "upgrade")
        .then(|| request.headers().get(header::UPGRADE).cloned())
        .flatten()
}

/// Whether a request may be given to a backend a second time without harm, even if the first
/// backend may have acted on it (RFC 9110, 9.2.1).
pub(crate) fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}

/// Makes a client's request headers a backend's: hop-by-hop ones go, and only the edge says who
/// the client is.
pub(crate) fn for_backend(
    headers: &mut HeaderMap,
    host: &AskedHost,
    client: IpAddr,
    upgrade: Option<&HeaderValue>,
) {
    remove_hop_by_hop(headers);
    for name in CLAIMED {
        headers.remove(name);
    }
    // The edge itself says 100 when a backend begins to read the body.
    headers.remove(header::EXPECT);
    headers.insert(header::HOST, host.authority.clone());
    headers.insert(FORWARDED_HOST, host.authority.clone());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    // An address is always a valid header value.
    if let Ok(client) = HeaderValue::try_from(client.to_canonical().to_string()) {
        headers.insert(FORWARDED_FOR, client);
    }
    if let Some(upgrade) = upgrade {
        set_upgrade(headers, upgrade.clone());
    }
}

/// Makes a backend's response headers the client's.
pub(crate) fn for_client<B>(response: &mut Response<B>) {
    let upgrade = (response.status() == http::StatusCode::SWITCHING_PROTOCOLS)
        .then(|| response.headers().get(header::UPGRADE).cloned())
        .flatten();
    remove_hop_by_hop(response.headers_mut());
    if let Some(upgrade) = upgrade {
        set_upgrade(response.headers_mut(), upgrade);
    }
}

fn set_upgrade(headers: &mut HeaderMap, upgrade: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, upgrade);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|option| HeaderName::try_from(option).ok())
        // A client may not have the edge drop what frames the message or names its host.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|option| option.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    #![allow(clippy::needless_pass_by_value, reason = "reads better at the call")]

    use expect_test::{Expect, expect};

    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn check_host(uri: &str, hosts: &[&str], expected: Expect) {
        let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        let seen = match asked_host(&request(uri, &headers)) {
            Ok(host) => format!("{} as {}", host.name, host.authority.to_str().unwrap()),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&seen);
    }

    #[test]
    fn hosts() {
        check_host(
            "/",
            &["Shop.Example.COM"],
            expect!["shop.example.com as Shop.Example.COM"],
        );
        check_host("/", &["a.test:8080"], expect!["a.test as a.test:8080"]);
        check_host("/", &["a.test."], expect!["a.test as a.test."]);
        check_host("/", &["[::1]:8080"], expect!["[::1] as [::1]:8080"]);
        check_host("http://b.test/x", &["a.test"], expect!["b.test as b.test"]);
        check_host(
            "/",
            &[],
            expect!["the request names no host: a Host header is needed"],
        );
        check_host(
            "/",
            &["a", "b"],
            expect!["the request has more than one Host header"],
        );
        check_host("/", &["a b"], expect!["the Host header is not a host name"]);
        check_host(
            "/",
            &["x@a.test"],
            expect!["the Host header is not a host name"],
        );
        check_host(
            "/",
            &["a<b>"],
            expect!["the Host header is not a host name"],
        );
    }

    fn check_forwarded(headers: &[(&str, &str)], expected: Expect) {
        let request = request("/", headers);
        let host = asked_host(&request).unwrap();
        let upgrade = wanted_upgrade(&request);
        let mut headers = request.headers().clone();
        for_backend(
            &mut headers,
            &host,
            "::ffff:10.0.0.9".parse().unwrap(),
            upgrade.as_ref(),
        );
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn only_the_edge_says_who_the_client_is() {
        check_forwarded(
            &[
                ("host", "a.test:80"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "bank.test"),
                ("x-real-ip", "1.2.3.4"),
                ("forwarded", "for=1.2.3.4"),
            ],
            expect![[r#"
                host: a.test:80
                x-forwarded-for: 10.0.0.9
                x-forwarded-host: a.test:80
                x-forwarded-proto: http"#]],
        );
    }

    #[test]
    fn hop_by_hop_headers_go() {
        check_forwarded(
            &[
                ("host", "a.test"),
                ("connection", "close, X-Secret"),
                ("connection", "content-length"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
                ("te", "trailers"),
                ("content-length", "3"),
                ("upgrade", "websocket"),
                ("cookie", "stays"),
            ],
            expect![[r#"
                content-length: 3
                cookie: stays
                host: a.test
                x-forwarded-for: 10.0.0.9
                x-forwarded-host: a.test
                x-forwarded-proto: http"#]],
        );
    }

    #[test]
    fn an_upgrade_is_asked_for_again() {
        check_forwarded(
            &[
                ("host", "a.test"),
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "k"),
            ],
            expect![[r#"
                connection: upgrade
                host: a.test
                sec-websocket-key: k
                upgrade: websocket
                x-forwarded-for: 10.0.0.9
                x-forwarded-host: a.test
                x-forwarded-proto: http"#]],
        );
    }
}

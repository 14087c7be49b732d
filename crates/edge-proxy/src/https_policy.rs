//! What leads clients to HTTPS and keeps them there: the redirect of plain HTTP, and `Strict-Transport-Security` (RFC 6797).
//!
//! Both are decided by what a route says and by what the edge has, and are the same for every version of HTTP.
//!
//! ```text
//!   plain HTTP --> the route says `serve`, or the edge has no HTTPS ------------------> the app
//!             \--> the route says `redirect`, or the edge has a certificate for the
//!                  host that an operator added or that came by ACME -----------------> 301 (GET, HEAD) or 308
//! ```
//!
//! A certificate of the ingress CA redirects nobody by itself: browsers do not trust it. Nor does one that has ended.

use std::sync::Arc;

use http::StatusCode;
use model::{Hsts, PlainHttp, RouteSettings};

use crate::certificates::{Certificates, now};

/// The port of HTTPS that no URL names (RFC 9110, 4.2.2).
const HTTPS_PORT: u16 = 443;

/// By what a client speaks to the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// How clients reach this edge by HTTPS.
#[derive(Debug)]
pub(crate) struct Https {
    pub(crate) certificates: Arc<Certificates>,
    /// The port at which it listens.
    pub(crate) port: u16,
    /// The port at which clients come, where the operator says that it is another.
    pub(crate) public_port: Option<u16>,
}

/// A request, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain<'a> {
    /// By what the client came, as far as is known ([`scheme`]).
    pub(crate) scheme: Scheme,
    /// Whether a trusted proxy in front says so.
    pub(crate) by_proxy: bool,
    /// The host, lowercase, without a port.
    pub(crate) host: &'a str,
    /// Path and query as they came; empty, or without a slash in front, where they came so in an absolute URI.
    pub(crate) path: &'a [u8],
}

/// By what the client came: what it speaks to the edge, or what a trusted proxy says of it.
pub(crate) fn scheme(spoken: Scheme, of_proxy: Option<&[u8]>) -> Scheme {
    match of_proxy {
        Some(value) if value.eq_ignore_ascii_case(b"https") => Scheme::Https,
        Some(value) if value.eq_ignore_ascii_case(b"http") => Scheme::Http,
        _ => spoken,
    }
}

/// Where a request in plain HTTP is sent instead: the URL of `Location`. `None`: the app gets it.
pub(crate) fn redirect(
    https: Option<&Https>,
    settings: &RouteSettings,
    request: Plain<'_>,
) -> Option<String> {
    let https = https?;
    if request.scheme == Scheme::Https || settings.http == Some(PlainHttp::Serve) {
        return None;
    }
    let is_wanted = settings.http == Some(PlainHttp::Redirect)
        || https.certificates.is_current_for(request.host, now());
    is_wanted.then(|| location(https, request))
}

/// The status of a redirect. Every client follows a 301 of what it may ask twice; others are told by 308 to send the same again, and not to make a GET of it
/// (RFC 9110, 15.4.2 and 15.4.9).
pub(crate) fn redirect_status(is_get_or_head: bool) -> StatusCode {
    if is_get_or_head {
        StatusCode::MOVED_PERMANENTLY
    } else {
        StatusCode::PERMANENT_REDIRECT
    }
}

fn location(https: &Https, request: Plain<'_>) -> String {
    // Where a proxy is in front, nobody comes to the port of this edge.
    let own = if request.by_proxy {
        HTTPS_PORT
    } else {
        https.port
    };
    let port = https.public_port.unwrap_or(own);
    let mut url = format!("https://{}", request.host);
    if port != HTTPS_PORT {
        url.push(':');
        url.push_str(&port.to_string());
    }
    if request.path.first() != Some(&b'/') {
        url.push('/');
    }
    for byte in request.path {
        // A URL is of visible ASCII (RFC 3986, 2).
        if byte.is_ascii_graphic() {
            url.push(char::from(*byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

/// What `Strict-Transport-Security` says in an answer over HTTPS, in place of what the app says of it. `None`: what the app says passes.
pub(crate) fn strict_transport_security(
    settings: &RouteSettings,
    scheme: Scheme,
) -> Option<String> {
    // A browser does not listen to it in plain HTTP (RFC 6797, 8.1).
    let hsts = settings.hsts.filter(|_| scheme == Scheme::Https)?;
    Some(hsts_value(hsts))
}

fn hsts_value(hsts: Hsts) -> String {
    let mut value = format!("max-age={}", hsts.max_age_seconds);
    if hsts.include_subdomains {
        value.push_str("; includeSubDomains");
    }
    if hsts.preload {
        value.push_str("; preload");
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use model::{Generation, Term};

    use super::*;
    use crate::certificates::Usable;
    use crate::certificates::tests::{certificate, table};

    const NO_ROUTES: (Generation, Term) = (
        Generation {
            incarnation: model::Incarnation(0),
            counter: 0,
        },
        Term(0),
    );

    fn https(port: u16, public_port: Option<u16>) -> Https {
        let (good, ended) = (
            certificate(&["own.example.com", "*.example.org"], 30),
            certificate(&["ended.example.com"], 0),
        );
        let certificates = Certificates::default();
        let kept = [("good", &good), ("ended", &ended)];
        certificates
            .take(table(1, None, &kept, &[]), NO_ROUTES)
            .unwrap();
        let of_ca = certificate(&["ca.example.com"], 7);
        certificates.set_issued("ca.example.com", Usable::of(&of_ca).unwrap());
        Https {
            certificates: Arc::new(certificates),
            port,
            public_port,
        }
    }

    fn plain(host: &str) -> Plain<'_> {
        Plain {
            scheme: Scheme::Http,
            by_proxy: false,
            host,
            path: b"/a/b?c=d",
        }
    }

    fn with_http(http: Option<PlainHttp>) -> RouteSettings {
        RouteSettings {
            http,
            ..RouteSettings::default()
        }
    }

    #[test]
    fn a_certificate_that_browsers_trust_redirects_and_the_route_has_the_last_word() {
        let edge = https(443, None);
        let to = |http, host| redirect(Some(&edge), &with_http(http), plain(host));
        let at = |host: &str| Some(format!("https://{host}/a/b?c=d"));
        let (redirect_it, serve) = (Some(PlainHttp::Redirect), Some(PlainHttp::Serve));
        for host in ["own.example.com", "x.example.org"] {
            assert_eq!(to(None, host), at(host));
            // A key of a newer server is none.
            assert_eq!(to(Some(PlainHttp::Unknown), host), at(host));
            assert_eq!(to(redirect_it, host), at(host));
            assert_eq!(to(serve, host), None);
        }
        for host in ["ca.example.com", "ended.example.com", "none.example.com"] {
            assert_eq!(to(None, host), None, "{host}");
            assert_eq!(to(redirect_it, host), at(host));
        }
        let over_https = Plain {
            scheme: Scheme::Https,
            ..plain("own.example.com")
        };
        assert_eq!(
            redirect(Some(&edge), &with_http(redirect_it), over_https),
            None
        );
        // An edge without HTTPS.
        assert_eq!(
            redirect(None, &with_http(redirect_it), plain("own.example.com")),
            None
        );
    }

    #[test]
    fn a_redirect_keeps_host_path_and_query_and_names_the_port_where_it_is_not_the_usual_one() {
        let settings = with_http(Some(PlainHttp::Redirect));
        let to = |edge: &Https, request| redirect(Some(edge), &settings, request).unwrap();
        let request = plain("a.test");
        assert_eq!(
            to(&https(8443, None), request),
            "https://a.test:8443/a/b?c=d"
        );
        assert_eq!(
            to(&https(8443, Some(443)), request),
            "https://a.test/a/b?c=d"
        );
        assert_eq!(
            to(&https(443, Some(4443)), request),
            "https://a.test:4443/a/b?c=d"
        );
        let behind = Plain {
            by_proxy: true,
            ..request
        };
        assert_eq!(to(&https(8443, None), behind), "https://a.test/a/b?c=d");
        for (path, written) in [
            (&b""[..], "/"),
            (b"?q", "/?q"),
            (b"//b.test/%0d%0aX", "//b.test/%0d%0aX"),
            (b"/\xc3\xa4 \r\n", "/%C3%A4%20%0D%0A"),
            (b"/a?b#c", "/a?b#c"),
        ] {
            let url = to(&https(443, None), Plain { path, ..request });
            assert_eq!(url, format!("https://a.test{written}"));
        }
    }

    #[test]
    fn who_has_come_by_https_to_a_trusted_proxy_has_come_by_https() {
        let of = |value: &[u8]| scheme(Scheme::Http, Some(value));
        assert_eq!(of(b"https"), Scheme::Https);
        assert_eq!(of(b"HTTPS"), Scheme::Https);
        assert_eq!(of(b"wss"), Scheme::Http);
        assert_eq!(scheme(Scheme::Https, Some(b"http")), Scheme::Http);
        assert_eq!(scheme(Scheme::Https, None), Scheme::Https);
    }

    #[test]
    fn browsers_are_told_over_https_only() {
        let settings = RouteSettings {
            hsts: Some(Hsts {
                max_age_seconds: 31_536_000,
                include_subdomains: true,
                preload: true,
            }),
            ..RouteSettings::default()
        };
        assert_eq!(
            strict_transport_security(&settings, Scheme::Https).unwrap(),
            "max-age=31536000; includeSubDomains; preload"
        );
        assert_eq!(strict_transport_security(&settings, Scheme::Http), None);
        let none = RouteSettings::default();
        assert_eq!(strict_transport_security(&none, Scheme::Https), None);
        let forget = Hsts {
            max_age_seconds: 0,
            include_subdomains: false,
            preload: false,
        };
        assert_eq!(hsts_value(forget), "max-age=0");
    }

    #[test]
    fn what_may_be_asked_twice_is_moved_and_all_else_is_to_be_sent_again() {
        assert_eq!(redirect_status(true).as_u16(), 301);
        assert_eq!(redirect_status(false).as_u16(), 308);
    }
}

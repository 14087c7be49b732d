//! How edges treat what comes for a route.

use serde::{Deserialize, Serialize};

/// The keys of a route in a manifest that say how edges treat what comes for it, not where it leads. What is absent has its default, so a route of
/// before a key was there means what it meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteSettings {
    /// Whether a client goes to the instance that it went to before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    /// How long a client's idle connection is kept, in milliseconds. Absent: the edge's own time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Requests under way at an edge, at most. Absent: the edge's own limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Requests that an edge has under way at one instance, at most. Absent: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
    /// How often one client may ask. Absent: as often as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// What becomes of plain HTTP. Absent: a redirect where the edge has a certificate of an operator or by ACME, else the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<PlainHttp>,
    /// That browsers are told to use HTTPS only (RFC 6797). Absent: what the app says of it passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Hsts>,
    /// Of a TCP route for one host: where TLS ends. Absent in all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsMode>,
    /// Of one whose TLS ends at the edge: what that offers by ALPN (RFC 7301), the best first. Empty: nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
}

/// Where the TLS of a TCP route ends: the modes of a `TLSRoute` in Kubernetes' Gateway API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// At the edge, which has a certificate for the host; the app gets what was in it.
    Terminate,
    /// At the app; the edge reads which host the client names, and passes all on.
    Passthrough,
    /// What a newer server says: nobody is led by such a route.
    #[serde(other)]
    Unknown,
}

/// How often one client may ask: a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Requests a second, on average. At least 1.
    pub requests_per_second: u32,
    /// Requests at once, after a while without any. At least 1.
    pub burst: u32,
}

/// What becomes of a request in plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlainHttp {
    /// It is redirected to HTTPS wherever the edge has a port for that.
    Redirect,
    /// The app gets it.
    Serve,
    /// What a newer server says: as if it were absent.
    #[serde(other)]
    Unknown,
}

/// What the header `Strict-Transport-Security` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hsts {
    /// How long browsers remember it, in seconds. 0: they are to forget it.
    pub max_age_seconds: u64,
    /// Whether it is for every host below this one too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub include_subdomains: bool,
    /// Whether browsers may have it built in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preload: bool,
}

impl RouteSettings {
    /// Whether the manifest says nothing of them.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_says_nothing_is_the_default_and_what_is_not_known_is_passed_over() {
        let read = |json: &str| serde_json::from_str::<RouteSettings>(json).unwrap();
        let write = |settings: &RouteSettings| serde_json::to_string(settings).unwrap();
        assert!(read("{}").is_default());
        assert_eq!(write(&RouteSettings::default()), "{}");
        let known = r#"{"sticky":true,"idle_timeout_ms":5000,"max_requests":7,"hard_limit":2,"rate_limit":{"requests_per_second":3,"burst":9}}"#;
        assert_eq!(write(&read(known)), known);
        let by_tls = r#"{"tls":"terminate","alpn":["postgresql"]}"#;
        assert_eq!(write(&read(by_tls)), by_tls);
        assert_eq!(read(r#"{"tls":"teleport"}"#).tls, Some(TlsMode::Unknown));
        let newer = r#"{"sticky":true,"teleport":{"to":"mars"}}"#;
        assert_eq!(write(&read(newer)), r#"{"sticky":true}"#);
    }

    #[test]
    fn what_a_newer_server_says_breaks_nothing() {
        let json =
            r#"{"http": "teleport", "hsts": {"max_age_seconds": 5, "more": 1}, "newer": {}}"#;
        let read: RouteSettings = serde_json::from_str(json).unwrap();
        assert_eq!(read.http, Some(PlainHttp::Unknown));
        assert_eq!(read.hsts.map(|hsts| hsts.max_age_seconds), Some(5));
        assert_eq!(
            serde_json::from_str::<RouteSettings>("{}").unwrap(),
            RouteSettings::default()
        );
        assert_eq!(
            serde_json::to_string(&RouteSettings::default()).unwrap(),
            "{}"
        );
        let serve = RouteSettings {
            http: Some(PlainHttp::Serve),
            ..RouteSettings::default()
        };
        assert_eq!(
            serde_json::to_string(&serve).unwrap(),
            r#"{"http":"serve"}"#
        );
        assert!(!serve.is_default());
    }
}

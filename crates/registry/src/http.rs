//! HTTP requests to registries and their token services: clients, retries, redirects, bounded bodies.
//!
//! A [`Failure`] says whether another attempt is worth it. [`Http::retry`] makes the attempts; the download of a blob
//! makes its own, because it resumes where it was cut off (`download.rs`).
//!
//! Redirects are followed here and not by `reqwest`: an error must name the host that failed, which is often not the
//! registry, and plain HTTP is a matter of the settings.

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use display::one_line;
use model::Digest;
use oci::{ImageError, is_loopback};
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::addresses::{Addresses, Checked, RefusedAddress, check_literal};
use crate::error::{LoginState, Problem};
use crate::limits::{
    Limits, LongerWait, MAX_ERROR_ANSWER_BYTES, MAX_MESSAGE_BYTES, MAX_REDIRECTS, REPORTED_PAUSE,
};
use crate::progress::{FetchEvent, OnEvent};

/// A repository of a registry. The root of a registry's API has an empty name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Repository {
    /// Host and perhaps port, as in references.
    pub(crate) registry: String,
    /// `library/nginx`.
    pub(crate) name: String,
}

/// An attempt failed.
pub(crate) enum Failure {
    /// Another attempt would fail in the same way.
    Permanent(Problem),
    /// The registry is unreachable or too busy, or the connection stalled or was cut off.
    Transient {
        /// The problem if this was the last attempt; `None`: [`Problem::Unreachable`].
        problem: Option<Problem>,
        /// The cause of [`Problem::Unreachable`].
        source: Box<dyn std::error::Error + Send + Sync>,
        /// The pause that the registry asked for.
        retry_after: Option<Duration>,
        /// The host that failed, where that is not the registry.
        redirected_to: Option<String>,
    },
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Permanent(problem)
    }
}

impl Failure {
    pub(crate) fn transient(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Transient {
            problem: None,
            source: source.into(),
            retry_after: None,
            redirected_to: None,
        }
    }

    /// This failure of the server behind `url`, as one of a request to `registry`.
    pub(crate) fn at(mut self, url: &Url, registry: &Url) -> Self {
        if let Self::Transient { redirected_to, .. } = &mut self
            && !is_same_server(url, registry)
        {
            *redirected_to = Some(host_of(url));
        }
        self
    }
}

/// The HTTP clients.
pub(crate) struct Http {
    /// Goes through the proxy that the environment's variables name.
    outward: Client,
    /// Loopback is never reached through a proxy.
    loopback: Client,
    insecure: Arc<BTreeSet<String>>,
    addresses: Addresses,
    pub(crate) limits: Limits,
}

impl Http {
    pub(crate) fn new(
        insecure: BTreeSet<String>,
        addresses: Addresses,
        limits: Limits,
    ) -> Result<Self, reqwest::Error> {
        let insecure = Arc::new(insecure);
        let builder = || {
            let builder = match addresses {
                Addresses::Any => Client::builder(),
                Addresses::Checked => Client::builder().dns_resolver(Arc::new(Checked {
                    listed: Arc::clone(&insecure),
                })),
            };
            builder
                .http1_only()
                .user_agent(concat!("platform/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(limits.connect)
                .referer(false)
                .redirect(redirect::Policy::none())
        };
        Ok(Self {
            outward: builder().build()?,
            loopback: builder().no_proxy().build()?,
            insecure,
            addresses,
            limits,
        })
    }

    /// Whether plain HTTP may be spoken to this registry: to loopback, and to registries that were listed.
    pub(crate) fn is_plain(&self, registry: &str) -> bool {
        is_plain(&self.insecure, registry)
    }

    /// Whether this host was listed as one that is reached over plain HTTP.
    pub(crate) fn is_listed(&self, host: &str) -> bool {
        self.insecure.contains(host)
    }

    pub(crate) fn client(&self, registry: &str) -> &Client {
        if is_loopback(registry) {
            &self.loopback
        } else {
            &self.outward
        }
    }

    /// A URL below `/v2/`.
    pub(crate) fn url(&self, registry: &str, path: &str) -> Result<Url, Problem> {
        let registry = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let scheme = if self.is_plain(registry) {
            "http"
        } else {
            "https"
        };
        // This cannot fail for the parts of a parsed reference.
        Url::parse(&format!("{scheme}://{registry}/v2/{path}")).map_err(|error| {
            let document = "reference";
            let reason = error.to_string();
            ImageError::Malformed { document, reason }.into()
        })
    }

    /// Makes attempts until one succeeds, one fails permanently, or `attempts` are made.
    pub(crate) async fn retry<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        host: &str,
        attempts: u32,
        on_event: &OnEvent<'_>,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Problem> {
        let mut made = 0;
        loop {
            let failure = match attempt().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            made += 1;
            self.pause(host, made, attempts, failure, on_event).await?;
        }
    }

    /// Waits for the next attempt after attempt number `made` of `attempts` failed.
    ///
    /// # Errors
    /// There is no next attempt.
    pub(crate) async fn pause(
        &self,
        host: &str,
        made: u32,
        attempts: u32,
        failure: Failure,
        on_event: &OnEvent<'_>,
    ) -> Result<(), Problem> {
        let (problem, source, retry_after, redirected_to) = match failure {
            Failure::Permanent(problem) => return Err(problem),
            Failure::Transient {
                problem,
                source,
                retry_after,
                redirected_to,
            } => (problem, source, retry_after, redirected_to),
        };
        let too_long = self.limits.longer_wait == LongerWait::Return
            && retry_after.is_some_and(|wait| wait > self.limits.retry_after_max);
        if made >= attempts || too_long {
            return Err(problem.unwrap_or_else(|| {
                let redirected_by = redirected_to.is_some().then(|| host.to_owned());
                Problem::Unreachable {
                    host: redirected_to.unwrap_or_else(|| host.to_owned()),
                    redirected_by,
                    attempts: made,
                    source,
                }
            }));
        }
        let pause = backoff(&self.limits, made, retry_after);
        tracing::debug!(host, made, ?pause, error = %source, "a request failed; trying again");
        if pause >= REPORTED_PAUSE {
            let host = redirected_to.as_deref().unwrap_or(host);
            let reason = problem.map_or_else(
                || format!("{host} does not answer: {source}"),
                |problem| problem.to_string(),
            );
            on_event(FetchEvent::Waiting { reason, pause });
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// A GET request, with its redirects. `url` is the registry's; a credential among the headers is sent to no other
    /// server.
    pub(crate) async fn get(
        &self,
        registry: &str,
        url: &Url,
        mut headers: HeaderMap,
    ) -> Result<Response, Failure> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let client = self.client(&host_of(&at));
            let request = client.get(at.clone()).headers(headers.clone());
            let response = self
                .send(request)
                .await
                .map_err(|failure| failure.at(&at, url))?;
            let Some(target) = redirect_target(&response) else {
                return Ok(response);
            };
            check_redirect(&self.insecure, registry, &at, &target)?;
            self.check_not_here(registry, &target)?;
            if !is_same_server(&at, &target) {
                headers.remove(AUTHORIZATION);
            }
            at = target;
        }
        Err(Problem::UnsafeRedirect {
            host: registry.to_owned(),
            target: shown(&at),
            plain_host: None,
            reason: "there are too many redirects",
        }
        .into())
    }

    /// Nobody else leads to this machine itself: a registry that redirects there, or whose token service is to be there.
    pub(crate) fn check_not_here(&self, registry: &str, target: &Url) -> Result<(), Problem> {
        let host = host_of(target);
        let is_here = is_loopback(&host) && !is_plain(&self.insecure, registry);
        if self.addresses == Addresses::Any || !is_here || self.is_listed(&host) {
            return Ok(());
        }
        Err(Problem::UnsafeRedirect {
            host: registry.to_owned(),
            target: shown(target),
            plain_host: None,
            reason: "that is this machine itself",
        })
    }

    /// One request, without its redirects.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let limit = self.limits.connect + self.limits.stall;
        let (client, request) = request.build_split();
        let request = request.map_err(|error| Failure::transient(error.without_url()))?;
        if self.addresses == Addresses::Checked {
            check_literal(request.url().host_str().unwrap_or_default()).map_err(Problem::from)?;
        }
        match tokio::time::timeout(limit, client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => match refused_address(&error) {
                Some(refused) => Err(Problem::from(refused).into()),
                None => Err(Failure::transient(error.without_url())),
            },
            Err(_) => Err(Failure::transient(format!(
                "no answer in {} s",
                limit.as_secs_f32()
            ))),
        }
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(crate) async fn body(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let over = |actual: u64| {
            Problem::Image(ImageError::OverLimit {
                what: what.to_owned(),
                actual,
                limit,
                unit: "bytes",
            })
        };
        if let Some(length) = response.content_length().filter(|length| *length > limit) {
            return Err(over(length).into());
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(piece) = self.piece(&mut response).await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > limit {
                    return Err(Failure::Permanent(over(bytes.len() as u64)));
                }
            }
            Ok(bytes)
        };
        match tokio::time::timeout(self.limits.blob_grace, read).await {
            Ok(result) => result,
            Err(_) => Err(Failure::transient(format!(
                "the answer takes longer than {} s",
                self.limits.blob_grace.as_secs_f32()
            ))),
        }
    }

    /// The next piece of a body; `None` at its end.
    pub(crate) async fn piece(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.limits.stall, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(Failure::transient(error.without_url())),
            Err(_) => Err(Failure::transient(format!(
                "no data arrived for {} s",
                self.limits.stall.as_secs_f32()
            ))),
        }
    }

    /// The failure that an answer without success means. `path` is the path below `/v2/`, `asked` the URL that was
    /// asked first.
    pub(crate) async fn refusal(
        &self,
        repository: &Repository,
        path: &str,
        asked: &Url,
        response: Response,
    ) -> Failure {
        let is_registry = is_same_server(response.url(), asked);
        let host = if is_registry {
            repository.registry.clone()
        } else {
            host_of(response.url())
        };
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| read_retry_after(value.to_str().ok()?, SystemTime::now()));
        let reason = match self
            .body(response, MAX_ERROR_ANSWER_BYTES, "the error answer")
            .await
        {
            Ok(bytes) => error_reason(&bytes),
            Err(_) => String::new(),
        };
        let reason = match (reason.is_empty(), status.canonical_reason()) {
            (true, Some(words)) => words.to_owned(),
            _ => reason,
        };
        let transient = matches!(status.as_u16(), 408 | 425 | 429 | 500..=599);
        let problem = match status {
            StatusCode::NOT_FOUND => Problem::NotFound {
                host,
                what: subject(repository, path),
            },
            // A login is the registry's affair, not its storage's.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_registry => Problem::Denied {
                host,
                login: LoginState::Unknown,
                reason,
            },
            _ => Problem::Refused {
                host,
                status: status.as_u16(),
                reason,
                retry_after,
            },
        };
        if transient {
            Failure::Transient {
                problem: Some(problem),
                source: format!("status {status}").into(),
                retry_after,
                redirected_to: None,
            }
        } else {
            Failure::Permanent(problem)
        }
    }
}

/// The address for which no connection was made, where that is the cause.
fn refused_address(error: &reqwest::Error) -> Option<RefusedAddress> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<RefusedAddress>() {
            return Some(refused.clone());
        }
        cause = error.source();
    }
    None
}

fn is_plain(insecure: &BTreeSet<String>, registry: &str) -> bool {
    is_loopback(registry) || insecure.contains(registry)
}

/// Host and port of a URL, as a reference names them.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Where an answer redirects to; none for other answers.
fn redirect_target(response: &Response) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(location).ok()
}

fn is_same_server(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// A URL without its query, which may be a signature.
fn shown(url: &Url) -> String {
    let text = format!("{}://{}{}", url.scheme(), host_of(url), url.path());
    one_line(&text, MAX_MESSAGE_BYTES)
}

/// Whether a redirect is followed: to HTTPS always; to plain HTTP where the target is listed as an insecure registry, or
/// from plain HTTP to loopback.
fn check_redirect(
    insecure: &BTreeSet<String>,
    registry: &str,
    from: &Url,
    to: &Url,
) -> Result<(), Problem> {
    let host = host_of(to);
    let refuse = |plain_host, reason| {
        Err(Problem::UnsafeRedirect {
            host: registry.to_owned(),
            target: shown(to),
            plain_host,
            reason,
        })
    };
    match to.scheme() {
        "https" => Ok(()),
        "http" if insecure.contains(&host) => Ok(()),
        "http" if from.scheme() == "http" && is_loopback(&host) => Ok(()),
        "http" => refuse(Some(host), PLAIN_HTTP),
        _ => refuse(None, "it is neither HTTPS nor HTTP"),
    }
}

/// Why a plain address is not used.
pub(crate) const PLAIN_HTTP: &str =
    "plain HTTP is spoken only to hosts that --insecure-registry lists";

/// The pause that a `Retry-After` asks for: seconds, or an HTTP date (RFC 9110, 10.2.3). A date that is past asks for
/// none.
fn read_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// `a/b/manifests/latest` -> `a/b:latest`; `a/b/blobs/sha256:..` -> `a/b@sha256:..`, the digest cut short: the operation
/// names that of the image.
fn subject(repository: &Repository, path: &str) -> String {
    if path.is_empty() {
        return "API at /v2/".to_owned();
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.parse::<Digest>() {
        Ok(digest) => format!("{}@sha256:{}…", repository.name, digest.short()),
        Err(_) => format!("{}:{name}", repository.name),
    }
}

/// The messages of a registry's error answer (distribution spec, error codes), or the beginning of the answer.
fn error_reason(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(bytes) {
        Ok(answer) => {
            let lines = answer.errors.into_iter().map(|e| match e.message.as_str() {
                "" => e.code,
                message => format!("{message} ({})", e.code),
            });
            lines.collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    };
    one_line(&text, MAX_MESSAGE_BYTES)
}

/// The pause after attempt number `made`: doubled each time, with up to half of it added at random; or what the registry
/// asked for, if that is more.
fn backoff(limits: &Limits, made: u32, retry_after: Option<Duration>) -> Duration {
    let doubled = limits
        .backoff
        .saturating_mul(1 << made.saturating_sub(1).min(16));
    // RandomState is seeded by the system, which is random enough to keep nodes from retrying in step.
    let random = RandomState::new().build_hasher().finish() % 1000;
    let added = doubled.saturating_mul(u32::try_from(random).unwrap_or(0)) / 2000;
    let asked = retry_after.unwrap_or_default().min(limits.retry_after_max);
    (doubled + added).min(limits.backoff_max).max(asked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn case_retry_after_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        for (value, seconds) in [
            ("90", Some(90)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2026 07:29:30 GMT", Some(90)),
            ("Wednesday, 21-Oct-26 07:29:30 GMT", Some(90)),
            ("Wed Oct 21 07:29:30 2026", Some(90)),
            ("Wed, 21 Oct 2026 07:27:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let read = read_retry_after(value, now).map(|wait| wait.as_secs());
            assert_eq!(read, seconds, "{value}");
        }
        let limits = Limits::default();
        let asked = |seconds| backoff(&limits, 1, Some(Duration::from_secs(seconds)));
        assert_eq!(asked(90), Duration::from_secs(90));
        assert_eq!(asked(3600), limits.retry_after_max);
        assert!(asked(0) >= limits.backoff && asked(0) <= limits.backoff * 2);
        assert!(backoff(&limits, 9, None) == limits.backoff_max);
    }

    #[test]
    fn case_an_https_registry_may_redirect_to_plain_storage_that_is_listed() {
        let insecure = BTreeSet::from(["minio.example.com:9000".to_owned()]);
        let redirect = |from: &str, to: &str| {
            let [from, to] = [from, to].map(|url| Url::parse(url).unwrap());
            let checked = check_redirect(&insecure, "registry.example.com", &from, &to);
            checked.map_err(|problem| format!("{problem}; {}", problem.hint().unwrap_or_default()))
        };
        let registry = "https://registry.example.com/v2/a/blobs/x";
        for (from, to) in [
            (registry, "https://anywhere.example.com/x"),
            (registry, "http://minio.example.com:9000/x"),
            ("http://minio.example.com:9000/x", "http://127.0.0.1:5000/x"),
        ] {
            assert_eq!(redirect(from, to), Ok(()), "{from} {to}");
        }
        let refused = redirect(
            registry,
            "http://s3.example.com:9000/bucket/x?signature=secret",
        );
        assert_eq!(
            refused.unwrap_err(),
            "registry.example.com points to http://s3.example.com:9000/bucket/x: plain HTTP is spoken only to hosts \
             that --insecure-registry lists; if plain HTTP to s3.example.com:9000 is intended, list it as an \
             insecure registry: --insecure-registry s3.example.com:9000"
        );
        // A node's own loopback is no registry's storage.
        for to in ["http://127.0.0.1:9000/x", "http://localhost/x", "ftp://x/y"] {
            assert!(redirect(registry, to).is_err(), "{to}");
        }
    }
}

//! HTTP requests to registries and their token services: clients, retries, redirects, bounded bodies.
//!
//! A [`Failure`] says whether another attempt is worth it. [`Http::retry`] makes the attempts; the download of a blob
//! makes its own, because it resumes where it was cut off (`download.rs`).

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use display::one_line;
use oci::{ImageError, is_loopback};
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::error::Problem;
use crate::limits::{Limits, MAX_ERROR_ANSWER_BYTES, MAX_MESSAGE_BYTES, MAX_REDIRECTS};

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
        }
    }
}

/// The redirect policy's refusal, inside an error of reqwest.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
struct RefusedRedirect {
    target: String,
    reason: &'static str,
}

/// The HTTP clients.
pub(crate) struct Http {
    /// Goes through the proxy that the environment's variables name.
    outward: Client,
    /// Loopback is never reached through a proxy.
    loopback: Client,
    insecure: Arc<BTreeSet<String>>,
    pub(crate) limits: Limits,
}

impl Http {
    pub(crate) fn new(insecure: BTreeSet<String>, limits: Limits) -> Result<Self, reqwest::Error> {
        let insecure = Arc::new(insecure);
        let builder = || {
            let insecure = Arc::clone(&insecure);
            Client::builder()
                .user_agent(concat!("platform/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(limits.connect)
                .referer(false)
                .redirect(redirect::Policy::custom(
                    move |attempt| match check_redirect(
                        &insecure,
                        attempt.previous(),
                        attempt.url(),
                    ) {
                        Ok(()) => attempt.follow(),
                        Err(refused) => attempt.error(refused),
                    },
                ))
        };
        Ok(Self {
            outward: builder().build()?,
            loopback: builder().no_proxy().build()?,
            insecure,
            limits,
        })
    }

    /// Whether plain HTTP may be spoken to this registry: to loopback, and to registries that were listed.
    pub(crate) fn is_plain(&self, registry: &str) -> bool {
        is_plain(&self.insecure, registry)
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
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Problem> {
        let mut made = 0;
        loop {
            let failure = match attempt().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            made += 1;
            self.pause(host, made, attempts, failure).await?;
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
    ) -> Result<(), Problem> {
        let (problem, source, retry_after) = match failure {
            Failure::Permanent(problem) => return Err(problem),
            Failure::Transient {
                problem,
                source,
                retry_after,
            } => (problem, source, retry_after),
        };
        if made >= attempts {
            return Err(problem.unwrap_or_else(|| Problem::Unreachable {
                host: host.to_owned(),
                attempts: made,
                source,
            }));
        }
        let pause = backoff(&self.limits, made, retry_after);
        tracing::debug!(host, made, ?pause, error = %source, "a request failed; trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    pub(crate) async fn send(
        &self,
        host: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, Failure> {
        let limit = self.limits.connect + self.limits.stall;
        match tokio::time::timeout(limit, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(request_failure(host, error)),
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

    /// The failure that an answer without success means. `path` is the path below `/v2/`.
    pub(crate) async fn refusal(
        &self,
        repository: &Repository,
        path: &str,
        response: Response,
    ) -> Failure {
        let host = repository.registry.clone();
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
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
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Problem::Denied { host, reason },
            _ => Problem::Refused {
                host,
                status: status.as_u16(),
                reason: reason.clone(),
            },
        };
        if transient {
            Failure::Transient {
                problem: Some(problem),
                source: format!("status {status}").into(),
                retry_after,
            }
        } else {
            Failure::Permanent(problem)
        }
    }
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

fn check_redirect(
    insecure: &BTreeSet<String>,
    previous: &[Url],
    target: &Url,
) -> Result<(), RefusedRedirect> {
    let refuse = |reason| {
        Err(RefusedRedirect {
            // Without the query, which may be a signature.
            target: format!("{}://{}{}", target.scheme(), host_of(target), target.path()),
            reason,
        })
    };
    if previous.len() > MAX_REDIRECTS {
        return refuse("there are too many redirects");
    }
    let was_plain = previous.last().is_some_and(|url| url.scheme() == "http");
    match target.scheme() {
        "https" => Ok(()),
        "http" if was_plain && is_plain(insecure, &host_of(target)) => Ok(()),
        _ => refuse("a redirect must lead to HTTPS"),
    }
}

fn request_failure(host: &str, error: reqwest::Error) -> Failure {
    let refused = display::causes(&error).find_map(|cause| cause.downcast_ref::<RefusedRedirect>());
    if let Some(refused) = refused {
        return Failure::Permanent(Problem::UnsafeRedirect {
            host: host.to_owned(),
            target: one_line(&refused.target, MAX_MESSAGE_BYTES),
            reason: refused.reason,
        });
    }
    Failure::transient(error.without_url())
}

/// `a/b/manifests/latest` -> `a/b:latest`; `a/b/blobs/sha256:..` -> `a/b@sha256:..`.
fn subject(repository: &Repository, path: &str) -> String {
    if path.is_empty() {
        return "API at /v2/".to_owned();
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    let joint = if name.contains(':') { '@' } else { ':' };
    format!("{}{joint}{name}", repository.name)
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

/// The pause after attempt number `made`: doubled each time, with up to half of it added at random.
fn backoff(limits: &Limits, made: u32, retry_after: Option<Duration>) -> Duration {
    let doubled = limits
        .backoff
        .saturating_mul(1 << made.saturating_sub(1).min(16));
    // RandomState is seeded by the system, which is random enough to keep nodes from retrying in step.
    let random = RandomState::new().build_hasher().finish() % 1000;
    let added = doubled.saturating_mul(u32::try_from(random).unwrap_or(0)) / 2000;
    (doubled + added)
        .max(retry_after.unwrap_or_default())
        .min(limits.backoff_max)
}

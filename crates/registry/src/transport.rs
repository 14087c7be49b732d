//! GET requests to registries: authentication, redirects, retries, bounded bodies.
//!
//! One request is at most two: the second one after a 401, with a credential or token that was got for
//! it. A second 401 is final. What is worth another attempt is told apart from what is not by
//! [`Failure`]; [`Transport::document`] retries by itself, a blob's download goes on where it
//! was cut off (`download.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::credentials::{Credential, Credentials};
use crate::document::printable;
use crate::error::Problem;
use crate::image::RegistryOptions;
use crate::limits::{
    AUTHORIZATION_KEPT, Limits, MAX_ERROR_ANSWER_BYTES, MAX_REDIRECTS, MIRROR_ATTEMPTS,
};
use crate::reference::is_loopback;

/// A repository in a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) registry: String,
    pub(crate) repository: String,
}

/// A place to ask, and how often.
pub(crate) struct Asked {
    pub(crate) place: Place,
    pub(crate) attempts: u32,
}

/// A body that was read whole, within its limit.
pub(crate) struct Answer {
    pub(crate) content_type: Option<String>,
    /// `Docker-Content-Digest`.
    pub(crate) digest: Option<String>,
    pub(crate) bytes: Vec<u8>,
}

/// Why one attempt failed.
pub(crate) enum Failure {
    /// No other attempt is made.
    Final(Problem),
    /// Cut off, stalled, refused, or too busy.
    Passing {
        /// What to say if it was the last attempt; absent: [`Problem::Unreachable`].
        problem: Option<Problem>,
        /// For the chain under [`Problem::Unreachable`].
        source: Box<dyn std::error::Error + Send + Sync>,
        /// As the registry asked.
        retry_after: Option<Duration>,
    },
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Final(problem)
    }
}

impl Failure {
    pub(crate) fn passing(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Passing {
            problem: None,
            source: source.into(),
            retry_after: None,
        }
    }
}

/// The redirect policy's refusal, on its way through reqwest.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
struct RefusedRedirect {
    target: String,
    reason: &'static str,
}

pub(crate) struct Transport {
    /// As the environment's proxy variables say.
    outward: Client,
    /// Loopback is never reached through a proxy.
    loopback: Client,
    pub(crate) plain: Arc<BTreeSet<String>>,
    pub(crate) credentials: Credentials,
    /// Registries that have what another one has, by that one.
    mirrors: BTreeMap<String, Vec<String>>,
    pub(crate) limits: Limits,
    /// The `Authorization` that worked last, and when it was got. Small: one per repository in use.
    known: Mutex<BTreeMap<Place, (HeaderValue, Instant)>>,
}

impl Transport {
    pub(crate) fn new(options: RegistryOptions) -> Result<Self, reqwest::Error> {
        let RegistryOptions {
            insecure,
            mirrors,
            credentials,
            limits,
        } = options;
        let plain = Arc::new(insecure);
        let builder = || {
            let plain = Arc::clone(&plain);
            Client::builder()
                .user_agent(concat!("platform/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(limits.connect)
                .referer(false)
                .redirect(redirect::Policy::custom(
                    move |attempt| match judge_redirect(&plain, attempt.previous(), attempt.url()) {
                        Ok(()) => attempt.follow(),
                        Err(refused) => attempt.error(refused),
                    },
                ))
        };
        Ok(Self {
            outward: builder().build()?,
            loopback: builder().no_proxy().build()?,
            plain,
            credentials,
            mirrors,
            limits,
            known: Mutex::default(),
        })
    }

    /// Where something that is known by its digest is asked for before the place itself. Whatever comes is
    /// checked, so a mirror need not be trusted; it is shown the credential for its own name only.
    pub(crate) fn mirrors(&self, place: &Place) -> Vec<Asked> {
        let mirrors = self.mirrors.get(&place.registry).into_iter().flatten();
        mirrors
            .map(|mirror| Asked {
                place: Place {
                    registry: mirror.clone(),
                    repository: place.repository.clone(),
                },
                attempts: MIRROR_ATTEMPTS.min(self.limits.attempts),
            })
            .collect()
    }

    /// The place itself: what it says of a tag counts, and its problem is the one that is told.
    pub(crate) fn itself(&self, place: &Place) -> Asked {
        Asked {
            place: place.clone(),
            attempts: self.limits.attempts,
        }
    }

    /// Forgets what worked at a registry, so that its credential is looked for anew.
    pub(crate) fn forget(&self, registry: &str) {
        self.known().retain(|place, _| place.registry != registry);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Place, (HeaderValue, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A small document, of at most `limit` bytes. `what` is its name in errors, `path` what comes after the
    /// repository: `manifests/latest`.
    pub(crate) async fn document(
        &self,
        asked: &Asked,
        path: &str,
        accept: &str,
        what: &str,
        limit: u64,
    ) -> Result<Answer, Problem> {
        let place = &asked.place;
        self.retry(&place.registry, asked.attempts, || async {
            let response = self.get(place, path, accept, 0).await?;
            let header = |name: &str| {
                let value = response.headers().get(name)?;
                value.to_str().ok().map(str::to_owned)
            };
            Ok(Answer {
                content_type: header(CONTENT_TYPE.as_str()),
                digest: header("docker-content-digest"),
                bytes: self.body(response, limit, what).await?,
            })
        })
        .await
    }

    /// Tries until it works, fails for good, or the attempts are used up.
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

    /// After attempt number `made` of `attempts` failed: waits for the next one, or says why there is
    /// none.
    pub(crate) async fn pause(
        &self,
        host: &str,
        made: u32,
        attempts: u32,
        failure: Failure,
    ) -> Result<(), Problem> {
        let (problem, source, retry_after) = match failure {
            Failure::Final(problem) => return Err(problem),
            Failure::Passing {
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

    /// One request below `/v2/<repository>/`, from byte `offset` of the body on. The answer is 200,
    /// or 206 if an offset was asked for.
    pub(crate) async fn get(
        &self,
        place: &Place,
        path: &str,
        accept: &str,
        offset: u64,
    ) -> Result<Response, Failure> {
        let url = self.url(place, path)?;
        let mut authorization = {
            let mut known = self.known();
            known.retain(|_, (_, since)| since.elapsed() < AUTHORIZATION_KEPT);
            known.get(place).map(|(worked, _)| worked.clone())
        };
        let mut authenticated = false;
        loop {
            let mut headers = HeaderMap::new();
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(ACCEPT, accept);
            }
            if let Some(authorization) = &authorization {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            if offset > 0 {
                headers.insert(RANGE, bytes_from(offset));
            }
            let request = self
                .client(&place.registry)
                .get(url.clone())
                .headers(headers);
            let response = self.send(&place.registry, request).await?;
            // A 401 of a storage server that we were sent to is not the registry's challenge.
            let challenged = response.status() == StatusCode::UNAUTHORIZED
                && response.url().host_str() == url.host_str()
                && response.url().port_or_known_default() == url.port_or_known_default();
            if challenged && !authenticated {
                authenticated = true;
                authorization = Some(self.authenticate(place, &response).await?);
                continue;
            }
            if response.status().is_success() && response.status().as_u16() != 204 {
                if let Some(worked) = authorization.filter(|_| authenticated) {
                    self.known().insert(place.clone(), (worked, Instant::now()));
                }
                return Ok(response);
            }
            return Err(self.refusal(place, path, response).await);
        }
    }

    pub(crate) fn client(&self, registry: &str) -> &Client {
        if is_loopback(registry) {
            &self.loopback
        } else {
            &self.outward
        }
    }

    fn url(&self, place: &Place, path: &str) -> Result<Url, Problem> {
        self.api(&place.registry, &format!("{}/{path}", place.repository))
    }

    /// A URL below `/v2/`.
    fn api(&self, registry: &str, path: &str) -> Result<Url, Problem> {
        let registry = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let scheme = if is_plain(&self.plain, registry) {
            "http"
        } else {
            "https"
        };
        // The parts were checked when the reference was parsed; this cannot fail for those.
        Url::parse(&format!("{scheme}://{registry}/v2/{path}")).map_err(|error| {
            Problem::Malformed {
                document: "reference",
                reason: error.to_string(),
            }
        })
    }

    /// Shows a registry a credential, as `docker login` does: at the root of its API.
    pub(crate) async fn log_in(
        &self,
        registry: &str,
        credential: &Credential,
    ) -> Result<(), Failure> {
        let root = Place {
            registry: registry.to_owned(),
            repository: String::new(),
        };
        let url = self.api(registry, "")?;
        let client = self.client(registry);
        let response = self.send(registry, client.get(url.clone())).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED {
            let shown = Some(credential.clone());
            let authorization = self.answer_challenge(&root, &response, shown).await?;
            let request = client.get(url).header(AUTHORIZATION, authorization);
            self.send(registry, request).await?
        } else {
            response
        };
        if response.status().is_success() {
            Ok(())
        } else {
            Err(self.refusal(&root, "", response).await)
        }
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
            Err(_) => Err(Failure::passing(format!(
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
        let over = |actual: u64| Problem::OverLimit {
            what: what.to_owned(),
            actual,
            limit,
            unit: "bytes",
        };
        if let Some(length) = response.content_length().filter(|length| *length > limit) {
            return Err(over(length).into());
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(piece) = self.piece(&mut response).await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > limit {
                    return Err(Failure::Final(over(bytes.len() as u64)));
                }
            }
            Ok(bytes)
        };
        match tokio::time::timeout(self.limits.blob_grace, read).await {
            Ok(result) => result,
            Err(_) => Err(Failure::passing("the answer takes too long")),
        }
    }

    /// The next piece of a body; absent at its end.
    pub(crate) async fn piece(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.limits.stall, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(Failure::passing(error.without_url())),
            Err(_) => Err(Failure::passing(format!(
                "nothing came for {} s",
                self.limits.stall.as_secs_f32()
            ))),
        }
    }

    /// Sorts an answer that is not a success.
    pub(crate) async fn refusal(&self, place: &Place, path: &str, response: Response) -> Failure {
        let host = place.registry.clone();
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let reason = match self
            .body(response, MAX_ERROR_ANSWER_BYTES, "the error")
            .await
        {
            Ok(bytes) => error_reason(&bytes),
            Err(_) => String::new(),
        };
        let reason = match (reason.is_empty(), status.canonical_reason()) {
            (true, Some(words)) => words.to_owned(),
            _ => reason,
        };
        let passing = matches!(status.as_u16(), 408 | 425 | 429 | 500..=599);
        let problem = match status {
            StatusCode::NOT_FOUND => Problem::NotFound {
                host,
                what: what_of_path(place, path),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Problem::Denied { host, reason },
            _ => Problem::Refused {
                host,
                status: status.as_u16(),
                reason: reason.clone(),
            },
        };
        if passing {
            Failure::Passing {
                problem: Some(problem),
                source: format!("status {status}").into(),
                retry_after,
            }
        } else {
            Failure::Final(problem)
        }
    }
}

/// Whether the next place is to be asked after a mirror had this problem.
pub(crate) fn asks_on(mirror: &Asked, problem: &Problem) -> bool {
    tracing::info!(mirror = mirror.place.registry, %problem, "a mirror does not help");
    // Our own disk is the same for every registry.
    !matches!(problem, Problem::Cache(_))
}

/// HTTP is spoken to loopback, and to hosts that were listed.
pub(crate) fn is_plain(listed: &BTreeSet<String>, registry: &str) -> bool {
    is_loopback(registry) || listed.contains(registry)
}

/// Host and port as they stand in a reference.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn judge_redirect(
    listed: &BTreeSet<String>,
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
        return refuse("that is one redirect too many");
    }
    let was_plain = previous.last().is_some_and(|url| url.scheme() == "http");
    match target.scheme() {
        "https" => Ok(()),
        "http" if was_plain && is_plain(listed, &host_of(target)) => Ok(()),
        _ => refuse("only HTTPS may be redirected to"),
    }
}

fn request_failure(host: &str, error: reqwest::Error) -> Failure {
    let refused = display::causes(&error).find_map(|cause| cause.downcast_ref::<RefusedRedirect>());
    if let Some(refused) = refused {
        return Failure::Final(Problem::UnsafeRedirect {
            host: host.to_owned(),
            target: printable(&refused.target),
            reason: refused.reason,
        });
    }
    Failure::passing(error.without_url())
}

/// `manifests/latest` of `a/b` -> `a/b:latest`; `blobs/sha256:..` -> `a/b@sha256:..`.
fn what_of_path(place: &Place, path: &str) -> String {
    if path.is_empty() {
        return "API at /v2/".to_owned();
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    let joint = if name.contains(':') { '@' } else { ':' };
    format!("{}{joint}{name}", place.repository)
}

/// The messages of a registry's error answer (distribution spec, error codes), or its beginning.
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
    printable(&text)
}

fn bytes_from(offset: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes={offset}-"))
        .unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"))
}

/// The pause after attempt number `made`: doubled each time, with up to half of it added by chance.
fn backoff(limits: &Limits, made: u32, retry_after: Option<Duration>) -> Duration {
    let doubled = limits
        .backoff
        .saturating_mul(1 << made.saturating_sub(1).min(16));
    // RandomState is seeded by the system; chance only keeps nodes from coming back in step.
    let chance = RandomState::new().build_hasher().finish() % 1000;
    let added = doubled.saturating_mul(u32::try_from(chance).unwrap_or(0)) / 2000;
    (doubled + added)
        .max(retry_after.unwrap_or_default())
        .min(limits.backoff_max)
}

//! An authority of ACME: how it is reached, and what its refusals mean.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, RETRY_AFTER};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use model::Timestamp;
use reqwest::{Certificate, Client, redirect};
use serde::Deserialize;

use crate::clock::now;
use crate::limits::{
    ACME_CONNECT_TIMEOUT, ACME_REQUEST_TIMEOUT, MAX_ACME_ANSWER_BYTES, MAX_ACME_CLOCK_SKEW_MS,
    MAX_ACME_PAUSE,
};

/// What an authority says of itself (RFC 8555, 7.1.1), of that which users are told.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Directory {
    #[serde(default)]
    pub(crate) meta: DirectoryMeta,
}

/// See [`Directory`].
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DirectoryMeta {
    pub(crate) terms_of_service: Option<String>,
    pub(crate) external_account_required: bool,
}

/// Why an order, or a call about an account, came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcmeError {
    /// Nothing is known of the name or the account: the authority cannot be reached, or fails itself.
    #[error("the authority cannot be reached, or fails: {cause}")]
    Away {
        cause: String,
        retry_after: Option<Duration>,
    },
    /// It asks to be left alone for a while.
    #[error("the authority's rate limit: {cause}")]
    RateLimited {
        cause: String,
        retry_after: Option<Duration>,
    },
    /// It refuses the account.
    #[error("the authority refuses the account: {0}")]
    Account(String),
    /// It does not know the account.
    #[error("the authority does not know the account")]
    NoAccount,
    /// It refuses what was asked, of this name.
    #[error("{cause}")]
    Refused {
        cause: String,
        retry_after: Option<Duration>,
    },
    /// It refused one nonce after the other: it is there, and the next request may do.
    #[error("{0}")]
    Nonce(String),
    /// The clock of this machine and that of the authority differ so much that no date can be trusted.
    #[error(
        "the clock of the server and that of the authority differ by {} s: set the server's",
        .0.as_secs()
    )]
    Clock(Duration),
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error(transparent)]
    Unreached(#[from] reqwest::Error),
    #[error("it answered {status}: {text}")]
    Status { status: u16, text: String },
    #[error("its answer has more than {MAX_ACME_ANSWER_BYTES} bytes")]
    TooLong,
}

/// The cluster's end of connections to an authority.
#[derive(Clone)]
pub(crate) struct AuthorityClient {
    client: Client,
    seen: Arc<Mutex<Seen>>,
}

/// What the last answers said beside their bodies.
#[derive(Debug, Default)]
struct Seen {
    retry_after: Option<Duration>,
    skew: Option<Duration>,
}

impl AuthorityClient {
    /// One that trusts what the machine trusts, or this CA alone.
    ///
    /// # Errors
    /// The CA is none, or TLS cannot be set up.
    pub(crate) fn new(ca_pem: Option<&str>) -> Result<Self, reqwest::Error> {
        let mut builder = Client::builder()
            .user_agent(concat!("platform/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            .connect_timeout(ACME_CONNECT_TIMEOUT)
            .timeout(ACME_REQUEST_TIMEOUT)
            .referer(false)
            .redirect(redirect::Policy::none());
        if let Some(pem) = ca_pem {
            // One of one's own is not behind the proxy that leads to the internet.
            builder = builder
                .no_proxy()
                .tls_certs_only(Certificate::from_pem_bundle(pem.as_bytes())?);
        }
        Ok(Self {
            client: builder.build()?,
            seen: Arc::default(),
        })
    }

    /// What the authority says of itself.
    pub(crate) async fn directory(&self, url: &str) -> Result<Directory, AcmeError> {
        let request = self.client.get(url).build();
        let request = request.map_err(|error| self.away(&error))?;
        let (_, body) = (self.send(request).await).map_err(|error| self.away(&error))?;
        self.check_clock()?;
        serde_json::from_slice(&body).map_err(|error| AcmeError::Away {
            cause: format!("what is at this URL is no directory of ACME: {error}"),
            retry_after: None,
        })
    }

    /// The dates of certificates mean nothing to a server whose clock is wrong.
    pub(crate) fn check_clock(&self) -> Result<(), AcmeError> {
        let skew = self.seen().skew;
        let is_wrong = |skew: &Duration| skew.as_millis() > u128::from(MAX_ACME_CLOCK_SKEW_MS);
        skew.filter(is_wrong)
            .map_or(Ok(()), |skew| Err(AcmeError::Clock(skew)))
    }

    /// What an error of the library means.
    pub(crate) fn error(&self, error: &Error) -> AcmeError {
        let retry_after = self.seen().retry_after;
        match error {
            Error::Api(problem) => of_problem(problem, retry_after),
            Error::Timeout(_) => AcmeError::Refused {
                cause: "the authority did not decide in time".to_owned(),
                retry_after,
            },
            // It does not know what it was asked for, such as an order of before.
            Error::Other(other) if is_gone(&**other) => AcmeError::Refused {
                cause: display::chain(error),
                retry_after,
            },
            error => AcmeError::Away {
                cause: display::chain(error),
                retry_after,
            },
        }
    }

    fn away(&self, error: &(dyn StdError + 'static)) -> AcmeError {
        AcmeError::Away {
            cause: display::chain(error),
            retry_after: self.seen().retry_after,
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(
        &self,
        request: reqwest::Request,
    ) -> Result<(http::response::Parts, Bytes), AnswerError> {
        let mut response = self.client.execute(request).await?;
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = response.status();
        parts.headers = std::mem::take(response.headers_mut());
        let text = |name| {
            let value: Option<&http::HeaderValue> = parts.headers.get(name);
            value.and_then(|value| value.to_str().ok()).map(str::trim)
        };
        let date = text(DATE).and_then(of_http_date);
        let asked = text(RETRY_AFTER).and_then(retry_after);
        {
            let mut seen = self.seen();
            seen.skew = date.map(|date| Duration::from_millis(date.0.abs_diff(now().0)));
            if parts.status.is_client_error() || parts.status.is_server_error() {
                seen.retry_after = asked.map(|pause| pause.min(MAX_ACME_PAUSE));
            }
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_ACME_ANSWER_BYTES {
                return Err(AnswerError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let is_json = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.to_str().unwrap_or_default();
            kind.starts_with("application/problem+json") || kind.starts_with("application/json")
        });
        // What is no problem of ACME would only be no JSON to the library.
        if (parts.status.is_client_error() || parts.status.is_server_error()) && !is_json {
            return Err(AnswerError::Status {
                status: parts.status.as_u16(),
                text: display::one_line(&String::from_utf8_lossy(&body), 200),
            });
        }
        Ok((parts, Bytes::from(body)))
    }
}

impl HttpClient for AuthorityClient {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let other = |error: AnswerError| Error::Other(Box::new(error));
            let request = this
                .client
                .request(head.method, head.uri.to_string())
                .headers(head.headers)
                .body(body)
                .build();
            let request = request.map_err(|error| other(error.into()))?;
            let (parts, body) = this.send(request).await.map_err(other)?;
            Ok(BytesResponse {
                parts,
                body: Box::new(body),
            })
        })
    }
}

/// Whether an answer says that what is at its URL is there no more.
fn is_gone(error: &(dyn StdError + 'static)) -> bool {
    matches!(
        error.downcast_ref(),
        Some(AnswerError::Status {
            status: 404 | 410,
            ..
        })
    )
}

/// What a problem means (RFC 8555, 6.7).
fn of_problem(problem: &Problem, retry_after: Option<Duration>) -> AcmeError {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let kind = kind
        .strip_prefix("urn:ietf:params:acme:error:")
        .unwrap_or(kind);
    let cause = description(problem);
    match kind {
        "rateLimited" => AcmeError::RateLimited { cause, retry_after },
        "accountDoesNotExist" => AcmeError::NoAccount,
        "externalAccountRequired"
        | "invalidContact"
        | "unsupportedContact"
        | "userActionRequired"
        | "badPublicKey"
        | "badSignatureAlgorithm" => AcmeError::Account(cause),
        // The next answer brings another one (RFC 8555, 6.5).
        "badNonce" => AcmeError::Nonce(cause),
        "serverInternal" => AcmeError::Away { cause, retry_after },
        _ if problem.status.is_some_and(|status| status >= 500) => {
            AcmeError::Away { cause, retry_after }
        }
        _ => AcmeError::Refused { cause, retry_after },
    }
}

/// A problem, for people.
pub(crate) fn description(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let kind = kind.rsplit(':').next().unwrap_or_default();
    let detail = problem.detail.as_deref().unwrap_or("it does not say why");
    let mut text = if kind.is_empty() {
        detail.to_owned()
    } else {
        format!("{detail} ({kind})")
    };
    for part in &problem.subproblems {
        text.push_str(&format!("; {part}"));
    }
    display::one_line(&text, scheduler::acme::MAX_FAILURE_BYTES)
}

/// A number of seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = of_http_date(text)?;
    Some(Duration::from_millis(at.millis_since(now())))
}

/// A date of HTTP (RFC 9110, 5.6.7).
fn of_http_date(text: &str) -> Option<Timestamp> {
    let time = httpdate::parse_http_date(text).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(Timestamp)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            of_http_date("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Timestamp(784_111_777_000))
        );
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::ZERO)
        );
        for text in ["", "soon", "-1"] {
            assert_eq!(retry_after(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_the_names_fault_is_told_apart_from_what_is_not() {
        let of = |kind: &str, status: u16| {
            let json = format!(
                r#"{{"type": "urn:ietf:params:acme:error:{kind}", "detail": "so", "status": {status}}}"#
            );
            of_problem(&problem(&json), Some(Duration::from_secs(9)))
        };
        assert!(
            matches!(of("rateLimited", 429), AcmeError::RateLimited { retry_after: Some(pause), .. } if pause.as_secs() == 9)
        );
        assert!(matches!(
            of("accountDoesNotExist", 400),
            AcmeError::NoAccount
        ));
        assert!(matches!(of("invalidContact", 400), AcmeError::Account(_)));
        assert!(matches!(of("serverInternal", 500), AcmeError::Away { .. }));
        assert!(matches!(of("somethingNew", 503), AcmeError::Away { .. }));
        for kind in [
            "unauthorized",
            "caa",
            "dns",
            "rejectedIdentifier",
            "connection",
        ] {
            assert!(matches!(of(kind, 403), AcmeError::Refused { .. }), "{kind}");
        }
        assert_eq!(of("caa", 403).to_string(), "so (caa)");
        assert_eq!(description(&problem("{}")), "it does not say why");
    }
}

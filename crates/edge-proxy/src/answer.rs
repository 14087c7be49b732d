//! The edge's own answers: short, for the public, as plain text or, where the request asks for it, as JSON (RFC 9457). They name the host and no more: which app,
//! instance or address is meant is for the operator, in the edge's log, under the same request id.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use http1::{Refusal, Version};
use serde::Serialize;

use crate::date::with_date;
use crate::error_pages::Page;
use crate::routes::Refused;

/// Seconds after which a client may ask again when no instance is ready, or when there is no room.
const RETRY_AFTER_SECONDS: u64 = 2;
/// What `OPTIONS *` says of the edge: methods are the apps' business.
const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

/// Writes the number that links an answer of the edge, a request at an app and a line of the log: another one each time; those of an edge that restarted
/// begin elsewhere.
pub(crate) fn write_request_id(id: &mut String) {
    static NEXT: LazyLock<AtomicU64> =
        LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one("request")));
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    id.clear();
    for digit in (0..16).rev() {
        let digit = (number >> (4 * digit)) & 15;
        id.push(char::from(DIGITS[digit as usize]));
    }
}

/// The answer to a request over HTTP/2 of a client that has as many as it may have.
pub(crate) fn client_has_its_share() -> http::Response<()> {
    let mut id = String::new();
    write_request_id(&mut id);
    let mut response = http::Response::new(());
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    headers.insert(http::header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
    headers.insert(http::header::CONTENT_LENGTH, 0.into());
    if let Ok(id) = id.parse() {
        headers.insert("x-request-id", id);
    }
    response
}

/// An answer of the edge itself: what happened, and a line on what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    what: Cow<'static, str>,
    /// Absent: the request id is all there is to say.
    meaning: Option<Cow<'static, str>>,
    /// Seconds after which the client may ask again.
    retry_after: Option<u64>,
    /// Where a redirect leads.
    location: Option<String>,
    /// What `Strict-Transport-Security` says.
    hsts: Option<String>,
}

impl Answer {
    fn new(status: StatusCode, what: impl Into<Cow<'static, str>>, meaning: &'static str) -> Self {
        Self {
            status,
            what: what.into(),
            meaning: Some(meaning.into()),
            retry_after: None,
            location: None,
            hsts: None,
        }
    }

    /// The same, from a host that browsers are to use HTTPS for, as this value says.
    pub(crate) fn with_hsts(self, hsts: Option<String>) -> Self {
        Self { hsts, ..self }
    }

    pub(crate) fn unknown_host(host: &str) -> Self {
        let what = format!("no app answers for `{host}`");
        Self::new(
            StatusCode::NOT_FOUND,
            what,
            "There is nothing at this address.",
        )
    }

    /// The same is to be asked at this URL.
    pub(crate) fn redirect(status: StatusCode, url: String) -> Self {
        Self {
            location: Some(url),
            ..Self::new(
                status,
                "this is to be asked by HTTPS",
                "Location says where.",
            )
        }
    }

    /// No instance is ready, or the edge has no routes yet.
    pub(crate) fn not_now() -> Self {
        Self {
            retry_after: Some(RETRY_AFTER_SECONDS),
            ..Self::unavailable(StatusCode::SERVICE_UNAVAILABLE)
        }
    }

    /// The answer when an app gave none; the cause is in the log under the request id.
    pub(crate) fn unavailable(status: StatusCode) -> Self {
        let what = match status {
            StatusCode::GATEWAY_TIMEOUT => "the app did not answer in time",
            StatusCode::REQUEST_TIMEOUT => "the request's body did not come in time",
            StatusCode::SERVICE_UNAVAILABLE => "the app is not available at the moment",
            _ => "the app did not answer",
        };
        Self {
            status,
            what: what.into(),
            meaning: None,
            retry_after: None,
            location: None,
            hsts: None,
        }
    }

    pub(crate) fn bad_body(error: http1::BadChunk) -> Self {
        let what = format!("the request's body is malformed: {error}");
        let meaning = "A body in chunks is one of RFC 9112, 7.1.";
        Self::new(StatusCode::BAD_REQUEST, what, meaning)
    }

    pub(crate) fn broken_body() -> Self {
        let what = "the request's body ended before it was whole";
        let meaning = "Content-Length says how long it is, or its last chunk.";
        Self::new(StatusCode::BAD_REQUEST, what, meaning)
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
        let meaning = match refusal {
            Refusal::Host(_) => "HTTP/1.1 requests name exactly one host (RFC 9112, 3.2).",
            Refusal::Connect => "This is a reverse proxy: it leads to its own apps only.",
            Refusal::HeadTooLarge => "A head has 64 KiB at most.",
            Refusal::TooManyFields => "A request has 128 headers at most.",
            Refusal::TargetTooLong => "A target has 16 KiB at most.",
            Refusal::Version => "This server speaks HTTP/2, HTTP/1.1 and HTTP/1.0.",
            _ => "This is not a request of HTTP/1.1 (RFC 9112).",
        };
        Self::new(status, refusal.to_string(), meaning)
    }

    pub(crate) fn client_has_its_share() -> Self {
        let what = "this client has too many connections";
        let meaning = "Close some, or use those that are open again.";
        Self {
            retry_after: Some(RETRY_AFTER_SECONDS),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, what, meaning)
        }
    }

    /// A limit of the route, or of all hosts, keeps the request out.
    pub(crate) fn not_admitted(refused: Refused) -> Self {
        let (status, what, meaning) = match refused {
            Refused::Host | Refused::Route => (
                if refused == Refused::Host {
                    StatusCode::SERVICE_UNAVAILABLE
                } else {
                    StatusCode::TOO_MANY_REQUESTS
                },
                "too many requests of this host are under way",
                "Ask again when some of them are done.",
            ),
            Refused::Client(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "this client asks too often",
                "Retry-After says in how many seconds it may ask again.",
            ),
        };
        let seconds = match refused {
            Refused::Client(later) => later.as_secs() + u64::from(later.subsec_nanos() > 0),
            Refused::Host | Refused::Route => RETRY_AFTER_SECONDS,
        };
        Self {
            retry_after: Some(seconds),
            ..Self::new(status, what, meaning)
        }
    }

    /// Each instance has as many requests as it may have, and none was done in time.
    pub(crate) fn instances_are_busy() -> Self {
        let what = "the app has as many requests as it takes at a time";
        let meaning = "Ask again when some of them are done.";
        Self {
            retry_after: Some(RETRY_AFTER_SECONDS),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, what, meaning)
        }
    }
}

/// How an answer is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form<'a> {
    pub(crate) wants_json: bool,
    /// Whether the request was `HEAD`: no body.
    pub(crate) is_head: bool,
    pub(crate) version: Version,
    pub(crate) closes: bool,
    pub(crate) request_id: &'a str,
    /// The operator's page, in place of the plain text.
    pub(crate) page: Option<&'a Page>,
}

/// RFC 9457.
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    request_id: &'a str,
}

/// Writes an answer; returns how many bytes its body has.
pub(crate) fn write(out: &mut Vec<u8>, answer: &Answer, form: Form<'_>) -> usize {
    let (status, id) = (answer.status.as_u16(), form.request_id);
    let (kind, body) = if form.wants_json {
        let problem = Problem {
            kind: "about:blank",
            title: &answer.what,
            status,
            detail: answer.meaning.as_deref(),
            request_id: id,
        };
        let body = serde_json::to_string(&problem).unwrap_or_default();
        ("application/problem+json", body)
    } else if let Some(page) = form.page {
        ("text/html; charset=utf-8", page.with(id))
    } else {
        let meaning = match &answer.meaning {
            Some(meaning) => meaning.clone(),
            None => format!("Request id: {id}").into(),
        };
        let body = format!("{status}: {}\n\n{meaning}\n", answer.what);
        ("text/plain; charset=utf-8", body)
    };
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nX-Request-Id: {id}\r\n",
        answer.status.canonical_reason().unwrap_or_default(),
        body.len(),
    );
    if let Some(seconds) = answer.retry_after {
        let _ = write!(head, "Retry-After: {seconds}\r\n");
    }
    if let Some(url) = &answer.location {
        let _ = write!(head, "Location: {url}\r\n");
    }
    if let Some(value) = &answer.hsts {
        let _ = write!(head, "Strict-Transport-Security: {value}\r\n");
    }
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        let _ = write!(head, "Allow: {ALLOWED}\r\n");
    }
    end_head(&mut head, form);
    out.extend_from_slice(head.as_bytes());
    if form.is_head {
        return 0;
    }
    out.extend_from_slice(body.as_bytes());
    body.len()
}

/// Writes the answer to `OPTIONS *`, which is about the edge itself.
pub(crate) fn write_options(out: &mut Vec<u8>, form: Form<'_>) {
    let mut head = format!("HTTP/1.1 200 OK\r\nAllow: {ALLOWED}\r\nContent-Length: 0\r\n");
    end_head(&mut head, form);
    out.extend_from_slice(head.as_bytes());
}

/// Writes the answer to an authority of ACME (RFC 8555, 8.3).
pub(crate) fn write_challenge(out: &mut Vec<u8>, body: &str, form: Form<'_>) -> usize {
    let mut head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n",
        body.len()
    );
    end_head(&mut head, form);
    out.extend_from_slice(head.as_bytes());
    if form.is_head {
        return 0;
    }
    out.extend_from_slice(body.as_bytes());
    body.len()
}

fn end_head(head: &mut String, form: Form<'_>) {
    with_date(|date| {
        let _ = write!(head, "Date: {date}\r\n");
    });
    if form.closes {
        head.push_str("Connection: close\r\n");
    } else if form.version == Version::Http10 {
        head.push_str("Connection: keep-alive\r\n");
    }
    head.push_str("\r\n");
}

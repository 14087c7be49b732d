//! Heads of HTTP/2 as those of HTTP/1.1, and back. Only the form changes: what a head means, and what is refused, is `http1`'s business.

use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher as _;

use h2::Reason;
use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TE, TRAILER};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, request, response};
use http1::{Field, Framing, RequestHead, ResponseHead, Target, authority};

/// Protocol that a stream may become (RFC 8441).
const WEBSOCKET: &str = "websocket";

/// A client's request, as the head of one of HTTP/1.1.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) head: Vec<u8>,
    pub(super) is_head: bool,
    /// Whether it is one that makes the stream a WebSocket (RFC 8441, 5).
    pub(super) is_websocket: bool,
    /// Whether the body, if there is one, comes in chunks.
    pub(super) in_chunks: bool,
}

/// Writes a request's head. `is_whole`: nothing follows it.
///
/// # Errors
/// It is malformed in a way that HTTP/1.1 has no words for: the stream is reset (RFC 9113, 8.1.1).
pub(super) fn write_request(parts: &request::Parts, is_whole: bool) -> Result<Asked, Reason> {
    let protocol = parts.extensions.get::<Protocol>();
    let is_websocket = protocol.is_some_and(|protocol| protocol.as_str() == WEBSOCKET);
    let mut head = Vec::with_capacity(1024);
    let named = parts.uri.authority().map(Authority::as_str);
    let path = parts.uri.path_and_query().map(PathAndQuery::as_str);
    let method = if is_websocket {
        "GET"
    } else {
        parts.method.as_str()
    };
    head.extend_from_slice(method.as_bytes());
    head.push(b' ');
    // CONNECT has an authority in the place of a path, and is refused for what it is.
    head.extend_from_slice(path.or(named).unwrap_or("/").as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(named) = named {
        write_line(&mut head, "Host", named.as_bytes());
    }
    let in_chunks = !is_whole && !is_websocket && !parts.headers.contains_key(CONTENT_LENGTH);
    let mut has_cookies = false;
    for (name, value) in &parts.headers {
        let value = value.as_bytes();
        if is_padded(value) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if name == HOST {
            // Another one than `:authority` makes it a request for two hosts, which is refused (RFC 9113, 8.3.1).
            if named.is_some_and(|named| is_same_host(named.as_bytes(), value)) {
                continue;
            }
        } else if name == COOKIE {
            has_cookies = true;
            continue;
        } else if is_websocket && is_of_handshake(name) {
            continue;
        }
        write_line(&mut head, name.as_str(), value);
    }
    if has_cookies {
        // Crumbs are one line again (RFC 9113, 8.2.3).
        head.extend_from_slice(b"cookie: ");
        for (at, crumb) in parts.headers.get_all(COOKIE).iter().enumerate() {
            if at > 0 {
                head.extend_from_slice(b"; ");
            }
            head.extend_from_slice(crumb.as_bytes());
        }
        head.extend_from_slice(b"\r\n");
    }
    if is_websocket {
        head.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        write_line(&mut head, "Sec-WebSocket-Key", websocket_key().as_bytes());
    } else if in_chunks {
        head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    head.extend_from_slice(b"\r\n");
    Ok(Asked {
        head,
        is_head: parts.method == Method::HEAD,
        is_websocket,
        in_chunks,
    })
}

/// Whether it begins or ends with a space, which makes it malformed (RFC 9113, 8.2.1).
fn is_padded(value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.first()) || is_space(value.last())
}

fn is_same_host(one: &[u8], other: &[u8]) -> bool {
    match (authority(one), authority(other)) {
        (Ok(one), Ok(other)) => one.host.eq_ignore_ascii_case(other.host) && one.port == other.port,
        _ => false,
    }
}

/// What the two ends of a handshake of HTTP/1.1 prove to each other, and HTTP/2 has no use for (RFC 8441, 5).
fn is_of_handshake(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "sec-websocket-key" | "sec-websocket-accept" | "content-length" | "expect"
    )
}

/// Another one each time. It keeps no secret: it shows that the answer is to this request (RFC 6455, 1.3).
fn websocket_key() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let numbers = [(); 2].map(|()| RandomState::new().hash_one("key"));
    let number = (u128::from(numbers[0]) << 64) | u128::from(numbers[1]);
    // 16 bytes are 21 digits of 6 bits, and one of 2 bits.
    let digits = (0..22).map(|at| {
        let shifted = if at < 21 {
            number >> (122 - 6 * at)
        } else {
            number << 4
        };
        char::from(DIGITS[(shifted & 63) as usize])
    });
    digits.chain(['=', '=']).collect()
}

/// The answer's head for a client, of one of HTTP/1.1. What is between two neighbours only is not for this one (RFC 9113, 8.2.2).
pub(super) fn response(
    head: &ResponseHead,
    bytes: &[u8],
    status: StatusCode,
) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    let is_websocket = head.status == 101;
    let fields = head.fields.iter().filter(|field| {
        !(is_websocket
            && field
                .name
                .of(bytes)
                .eq_ignore_ascii_case(b"sec-websocket-accept"))
    });
    fill(response.headers_mut(), fields, bytes);
    response
}

/// A request for an instance that speaks HTTP/2, of one of HTTP/1.1.
///
/// # Errors
/// The host or the path is such as HTTP/2 cannot carry.
pub(super) fn request(head: &RequestHead, bytes: &[u8]) -> Result<http::Request<()>, http::Error> {
    let path = match head.target {
        Target::Server => &b"*"[..],
        Target::Path(path) => path.of(bytes),
    };
    let uri = Uri::builder()
        .scheme("http")
        .authority(head.authority.of(bytes))
        .path_and_query(path)
        .build()?;
    let mut request = http::Request::builder()
        .method(head.method.of(bytes))
        .uri(uri)
        .body(())?;
    let fields = head
        .fields
        .iter()
        .filter(|field| field.known != http1::Name::Host);
    fill(request.headers_mut(), fields, bytes);
    // Trailers are passed on, whatever the client says: gRPC asks for them.
    (request.headers_mut()).insert(TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

fn fill<'f>(headers: &mut HeaderMap, fields: impl Iterator<Item = &'f Field>, bytes: &[u8]) {
    for field in fields.filter(|field| !field.known.is_hop_by_hop()) {
        let name = HeaderName::from_bytes(field.name.of(bytes));
        let value = HeaderValue::from_bytes(field.value.of(bytes));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
}

/// Writes the head of an instance's answer as one of HTTP/1.1; returns how its body is to be given. `is_whole`: nothing follows it.
pub(super) fn write_response(
    out: &mut Vec<u8>,
    parts: &response::Parts,
    is_head: bool,
    is_whole: bool,
) -> Framing {
    let status = parts.status;
    out.extend_from_slice(format!("HTTP/1.1 {} ", status.as_u16()).as_bytes());
    let reason = status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    let is_interim = status.is_informational();
    let has_body = !is_head && !is_interim && !matches!(status.as_u16(), 204 | 304);
    // What has a length cannot have trailers in HTTP/1.1; gRPC has them always.
    let of_grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    let may_trail =
        parts.headers.contains_key(TRAILER) || parts.headers.get(CONTENT_TYPE).is_some_and(of_grpc);
    let keeps_length = !has_body || is_whole || !may_trail;
    let mut has_length = false;
    for (name, value) in &parts.headers {
        if name == CONTENT_LENGTH {
            if !keeps_length {
                continue;
            }
            has_length = true;
        }
        write_line(out, name.as_str(), value.as_bytes());
    }
    let framing = match (has_body, is_whole, has_length) {
        (false, ..) => Framing::Empty,
        (_, true, has_length) => {
            if !has_length {
                write_line(out, "content-length", b"0");
            }
            Framing::Empty
        }
        (_, false, true) => Framing::UntilClose,
        (_, false, false) => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            Framing::Chunked
        }
    };
    if !is_interim {
        // The stream is for this one answer.
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Writes trailers behind a body in chunks, with its end.
pub(super) fn write_trailers(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        write_line(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// The trailers at the end of a body in chunks, of which each line is known to be a header. `None`: there is none.
pub(super) fn trailers(lines: &[u8]) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            trailers.append(name, value);
        }
    }
    (!trailers.is_empty()).then_some(trailers)
}

/// The line before so many bytes of data in chunks.
pub(super) fn write_size(out: &mut Vec<u8>, bytes: usize) {
    let mut text = String::new();
    let _ = write!(text, "{bytes:x}\r\n");
    out.extend_from_slice(text.as_bytes());
}

fn write_line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use super::*;

    fn written(request: http::Request<()>, is_whole: bool) -> Result<String, Reason> {
        let (parts, ()) = request.into_parts();
        write_request(&parts, is_whole).map(|asked| String::from_utf8(asked.head).unwrap())
    }

    fn get(uri: &str) -> request::Builder {
        http::Request::builder().uri(uri)
    }

    #[test]
    fn a_head_is_one_of_http_1_1() {
        let request = get("https://a.test/p?q")
            .header("cookie", "a=1")
            .header("x", "1")
            .header("cookie", "b=2")
            .header("host", "A.test")
            .body(())
            .unwrap();
        assert_eq!(
            written(request, true).unwrap(),
            "GET /p?q HTTP/1.1\r\nHost: a.test\r\nx: 1\r\ncookie: a=1; b=2\r\n\r\n"
        );
        let request = get("https://a.test/").method("POST").body(()).unwrap();
        assert!(
            written(request, false)
                .unwrap()
                .ends_with("\r\nTransfer-Encoding: chunked\r\n\r\n")
        );
        let request = get("https://a.test/")
            .header("content-length", "3")
            .body(())
            .unwrap();
        assert!(
            written(request, false)
                .unwrap()
                .ends_with("\r\ncontent-length: 3\r\n\r\n")
        );
    }

    #[test]
    fn a_host_that_differs_stays_for_the_reader_to_refuse() {
        for (host, lines) in [
            ("a.test", 1),
            ("a.test.", 1),
            ("b.test", 2),
            ("a.test:81", 2),
        ] {
            let request = get("https://a.test/")
                .header("host", host)
                .body(())
                .unwrap();
            let head = written(request, true).unwrap().to_ascii_lowercase();
            assert_eq!(head.matches("\r\nhost: ").count(), lines, "{host}");
        }
    }

    #[test]
    fn spaces_around_a_value_are_malformed() {
        for value in [" a", "a ", "\ta", "a\t", " "] {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let request = get("https://a.test/").header("x", value).body(()).unwrap();
            assert_eq!(written(request, true), Err(Reason::PROTOCOL_ERROR));
        }
    }

    #[test]
    fn a_websocket_is_an_upgrade_with_a_key_of_16_bytes() {
        let mut keys = BTreeSet::new();
        for _ in 0..3 {
            let mut request = get("https://a.test/chat")
                .method("CONNECT")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "theirs")
                .body(())
                .unwrap();
            request
                .extensions_mut()
                .insert(Protocol::from_static("websocket"));
            let head = written(request, false).unwrap();
            assert!(
                head.starts_with("GET /chat HTTP/1.1\r\nHost: a.test\r\n"),
                "{head}"
            );
            assert!(head.contains("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"));
            assert!(
                !head.contains("theirs") && !head.contains("chunked"),
                "{head}"
            );
            let key = head
                .split("Sec-WebSocket-Key: ")
                .nth(1)
                .unwrap()
                .trim()
                .to_owned();
            assert_eq!((key.len(), &key[22..]), (24, "=="));
            assert!("AQgw".contains(&key[21..22]), "{key}");
            keys.insert(key);
        }
        assert_eq!(keys.len(), 3);
    }

    #[test]
    fn trailers_go_there_and_back() {
        let mut map = HeaderMap::new();
        map.append("grpc-status", HeaderValue::from_static("0"));
        map.append("x", HeaderValue::from_static("a: b"));
        let mut out = Vec::new();
        write_trailers(&mut out, Some(&map));
        assert_eq!(out, b"0\r\ngrpc-status: 0\r\nx: a: b\r\n\r\n");
        assert_eq!(trailers(&out[3..]), Some(map));
        assert_eq!(trailers(b"\r\n"), None);
    }
}

//! Heads as the other side gets them: what is between two neighbours only goes, what a proxy says of the client comes, and all else stays as it
//! was written.

use crate::Framing;
use crate::field::{CHUNKED, Field, Name, Span};
use crate::grammar::elements;
use crate::request::{RequestHead, Target, Version, can_carry};
use crate::response::ResponseHead;

/// What a proxy says of a request.
#[derive(Debug, Clone, Copy)]
pub struct ForBackend<'a> {
    /// The address of who connected to the proxy.
    pub peer: &'a str,
    /// The address of the client, as far as it is known: that of who connected, or what a trusted proxy says.
    pub client: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Whether what the request says of its client is kept: it came from a trusted proxy.
    pub is_trusted: bool,
    /// How many trusted proxies were behind the one that named the client: of a list, what that one said counts ([`RequestHead::said`]).
    pub behind: usize,
    /// The id under which it is in the log.
    pub request_id: &'a str,
}

/// Writes a request's head for a backend, in HTTP/1.1.
pub fn write_request(out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8], made: ForBackend<'_>) {
    out.extend_from_slice(head.method.of(bytes));
    out.push(b' ');
    match head.target {
        Target::Server => out.push(b'*'),
        Target::Path(path) => {
            let path = path.of(bytes);
            match path.first() {
                // An absolute URI without a path (RFC 9112, 3.2.4).
                None if head.method.of(bytes) == b"OPTIONS" => out.push(b'*'),
                Some(b'/') => {}
                _ => out.push(b'/'),
            }
            out.extend_from_slice(path);
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let authority = head.authority.of(bytes);
    if head.is_absolute {
        write_line(out, b"Host", authority);
    }
    let passes = |field: &Field| match field.known {
        Name::Host => !head.is_absolute,
        Name::Expect | Name::Underscored => false,
        // It frames the body, which passes as it is.
        Name::TransferEncoding => true,
        known if known.is_hop_by_hop() || known.is_of_client() => false,
        Name::ContentLength => true,
        _ => !(head.names_others && names(&head.fields, bytes, field.name)),
    };
    write_fields(out, &head.fields, bytes, passes);
    write_client(out, head, bytes, made);
    if head.wants_upgrade {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: ");
        let offers = head.values(Name::Upgrade, bytes).flat_map(elements);
        for (at, protocol) in offers.filter(|protocol| can_carry(protocol)).enumerate() {
            if at > 0 {
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(protocol);
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Says who the client is.
fn write_client(out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8], made: ForBackend<'_>) {
    let authority = head.authority.of(bytes);
    // What a trusted proxy said, where it said anything.
    let write = |out: &mut Vec<u8>, name: &[u8], known: Name, appends: bool, own: &[&[u8]]| {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        let mut kept = false;
        if made.is_trusted && !appends {
            if let Some(said) = head.said(known, bytes, made.behind) {
                out.extend_from_slice(said);
                kept = true;
            }
        } else if made.is_trusted {
            for value in head.values(known, bytes).filter(|value| !value.is_empty()) {
                if kept {
                    out.extend_from_slice(b", ");
                }
                out.extend_from_slice(value);
                kept = true;
            }
        }
        if kept && appends {
            out.extend_from_slice(b", ");
        }
        if !kept || appends {
            for part in own {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"\r\n");
    };
    let (peer, scheme) = (made.peer.as_bytes(), made.scheme.as_bytes());
    write(out, b"X-Forwarded-For", Name::XForwardedFor, true, &[peer]);
    write(
        out,
        b"X-Forwarded-Proto",
        Name::XForwardedProto,
        false,
        &[scheme],
    );
    write(
        out,
        b"X-Forwarded-Host",
        Name::XForwardedHost,
        false,
        &[authority],
    );
    let says = |known| made.is_trusted && head.said(known, bytes, made.behind).is_some();
    if says(Name::XForwardedPort) {
        write(out, b"X-Forwarded-Port", Name::XForwardedPort, false, &[]);
    }
    let of_peer = element(peer, authority, scheme);
    let says_forwarded = || {
        head.values(Name::Forwarded, bytes)
            .any(|value| !value.is_empty())
    };
    if made.is_trusted && made.client != made.peer && !says_forwarded() {
        // A proxy that says it by X-Forwarded-* alone: apps that read RFC 7239 learn the same, and not that the proxy is the client.
        let said = |known| {
            head.said(known, bytes, made.behind)
                .filter(|said| is_plain(said))
        };
        let host = said(Name::XForwardedHost).unwrap_or(authority);
        let proto = said(Name::XForwardedProto).unwrap_or(scheme);
        let of_client = element(made.client.as_bytes(), host, proto);
        let both = [&of_client[..], &[b", "], &of_peer].concat();
        write(out, b"Forwarded", Name::Forwarded, true, &both);
    } else {
        write(out, b"Forwarded", Name::Forwarded, true, &of_peer);
    }
    write_line(out, b"X-Real-IP", made.client.as_bytes());
    write_line(out, b"X-Request-Id", made.request_id.as_bytes());
}

/// The parts of an element of `Forwarded`: for whom, the host that was asked for, and how (RFC 7239).
fn element<'a>(address: &'a [u8], host: &'a [u8], proto: &'a [u8]) -> [&'a [u8]; 6] {
    let (open, close) = if address.contains(&b':') {
        (&b"for=\"["[..], &b"]\";host=\""[..])
    } else {
        (&b"for="[..], &b";host=\""[..])
    };
    [open, address, close, host, b"\";proto=", proto]
}

/// Whether what somebody said can be in an element of `Forwarded` as it is.
fn is_plain(said: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".:-_[]".contains(byte);
    !said.is_empty() && said.iter().all(is_plain)
}

/// What a proxy says of a response.
#[derive(Debug, Clone, Copy)]
pub struct ForClient<'a> {
    /// How the body comes to the client.
    pub framing: Framing,
    /// Whether the connection closes behind it.
    pub closes: bool,
    /// What the client speaks.
    pub version: Version,
    /// The date for a response without one (RFC 9110, 6.6.1).
    pub date: &'a str,
    /// The value of `Strict-Transport-Security`, in place of what the response says of it. Absent: what it says passes.
    pub hsts: Option<&'a str>,
}

/// Writes a response's head for a client. One of status 101 says what the connection becomes.
pub fn write_response(out: &mut Vec<u8>, head: &ResponseHead, bytes: &[u8], made: ForClient<'_>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let digit = |number: u16| b'0' + u8::try_from(number % 10).unwrap_or_default();
    let status = head.status;
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
    out.extend_from_slice(head.reason.of(bytes));
    out.extend_from_slice(b"\r\n");
    let drops_length = head.drops_length() || head.repeats_length;
    let passes = |field: &Field| match field.known {
        Name::ContentLength => !drops_length,
        Name::StrictTransportSecurity if made.hsts.is_some() => false,
        known if known.is_hop_by_hop() => false,
        _ => !(head.names_others && names(&head.fields, bytes, field.name)),
    };
    write_fields(out, &head.fields, bytes, passes);
    if let Some(length) = head
        .length()
        .filter(|_| head.repeats_length && !head.drops_length())
    {
        write_line(out, b"Content-Length", length.to_string().as_bytes());
    }
    if let Some(hsts) = made.hsts {
        write_line(out, b"Strict-Transport-Security", hsts.as_bytes());
    }
    if head.status >= 200 && !head.has_date {
        write_line(out, b"Date", made.date.as_bytes());
    }
    if made.framing == Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if head.status == 101 {
        out.extend_from_slice(b"Connection: Upgrade\r\n");
        if let Some(protocol) = head.value(Name::Upgrade, bytes) {
            write_line(out, b"Upgrade", protocol);
        }
    } else if made.closes {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if made.version == Version::Http10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn write_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Copies lines that are together at once.
fn write_fields(
    out: &mut Vec<u8>,
    fields: &[Field],
    bytes: &[u8],
    passes: impl Fn(&Field) -> bool,
) {
    let mut run = Span::default();
    for field in fields {
        if !passes(field) {
            continue;
        }
        if !field.is_clean {
            out.extend_from_slice(run.of(bytes));
            run = Span::default();
            let value = match field.known {
                // In whatever letters it came; there is no other.
                Name::TransferEncoding => CHUNKED,
                _ => field.value.of(bytes),
            };
            write_line(out, field.name.of(bytes), value);
        } else if run.end() == field.line.start() {
            run = Span::new(run.start(), field.line.end());
        } else {
            out.extend_from_slice(run.of(bytes));
            run = field.line;
        }
    }
    out.extend_from_slice(run.of(bytes));
}

/// Whether `Connection` names this header (RFC 9110, 7.6.1).
fn names(fields: &[Field], bytes: &[u8], name: Span) -> bool {
    let name = name.of(bytes);
    let options = fields
        .iter()
        .filter(|field| field.known == Name::Connection);
    let mut options = options.flat_map(|field| elements(field.value.of(bytes)));
    options.any(|option| option.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;
    use crate::{HeadEnd, RequestLimits, find_request_end};

    const LIMITS: RequestLimits = RequestLimits {
        fields: 64,
        target_bytes: 1000,
    };

    fn written(bytes: &[u8]) -> Option<(RequestHead, Vec<u8>)> {
        let HeadEnd::At(end) = find_request_end(bytes, 0) else {
            return None;
        };
        let mut head = RequestHead::default();
        head.read(&bytes[..end], LIMITS).ok()?;
        let made = ForBackend {
            peer: "192.0.2.1",
            client: "192.0.2.1",
            scheme: "http",
            is_trusted: false,
            behind: 0,
            request_id: "0123",
        };
        let mut out = Vec::new();
        write_request(&mut out, &head, &bytes[..end], made);
        Some((head, out))
    }

    #[test]
    fn forwarded_says_what_a_trusted_proxy_said_by_other_headers_and_what_it_said_itself() {
        let forwarded = |lines: &str| {
            let bytes = format!(
                "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 2001:db8::7\r\n{lines}\r\n"
            );
            let mut head = RequestHead::default();
            head.read(bytes.as_bytes(), LIMITS).unwrap();
            let made = ForBackend {
                peer: "192.0.2.1",
                client: "2001:db8::7",
                scheme: "http",
                is_trusted: true,
                behind: 0,
                request_id: "0123",
            };
            let mut out = Vec::new();
            write_request(&mut out, &head, bytes.as_bytes(), made);
            let text = String::from_utf8(out).unwrap();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("Forwarded: "));
            line.unwrap().to_owned()
        };
        let of_proxy = "for=192.0.2.1;host=\"a.test\";proto=http";
        assert_eq!(
            forwarded("X-Forwarded-Proto: https\r\nX-Forwarded-Host: b.test:443\r\n"),
            format!("for=\"[2001:db8::7]\";host=\"b.test:443\";proto=https, {of_proxy}")
        );
        // What cannot be in an element as it is is not.
        assert_eq!(
            forwarded("X-Forwarded-Proto: https;for=1.1.1.1\r\nX-Forwarded-Host: b\";x\r\n"),
            format!("for=\"[2001:db8::7]\";host=\"a.test\";proto=http, {of_proxy}")
        );
        let said = "for=203.0.113.7;proto=https";
        assert_eq!(
            forwarded(&format!("Forwarded: {said}\r\n")),
            format!("{said}, {of_proxy}")
        );
    }

    /// Headers as clients that mean no good write them, mostly valid.
    fn line() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "content-length ",
            "Connection",
            "X-Forwarded-For",
            "X_Y",
            "Upgrade",
            "Cookie",
            " X",
            "X-Real-IP",
            "TE",
            "Expect",
        ]);
        let value = prop::sample::select(vec![
            "a.test",
            "4",
            "chunked",
            "0",
            "004",
            "CHUNKED",
            "chunked,",
            "close",
            "x-forwarded-for, host",
            "upgrade",
            "h2c",
            "websocket, h2c",
            "4, 4",
            "+4",
            "a\rb",
            "a\0b",
            "100-continue",
            "\tchunked ",
            "",
        ]);
        let end = prop::sample::select(vec![
            "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r\n ",
        ]);
        (name, value, end).prop_map(|(name, value, end)| format!("{name}: {value}{end}"))
    }

    proptest! {
        /// What is accepted is, as it is written, one request to another strict reader and to a lax one: the same length, the same host, and nothing of
        /// what only the proxy may say.
        #[test]
        fn what_is_accepted_is_one_request_to_every_reader(
            lines in prop::collection::vec(line(), 0..7),
            target in prop::sample::select(vec!["/", "/a?b#c", "http://b.test", "http://b.test?x", "*", "a"]),
        ) {
            let bytes = format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n{}\r\n", lines.concat());
            let Some((head, out)) = written(bytes.as_bytes()) else { return Ok(()) };
            let (again, _) = written(&out).expect("it is refused as it was written");
            prop_assert_eq!(head.framing, again.framing);
            prop_assert_eq!(head.authority.of(bytes.as_bytes()), again.authority.of(&out));
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut other = httparse::Request::new(&mut fields);
            let end = other.parse(&out).unwrap();
            prop_assert_eq!(end, httparse::Status::Complete(out.len()));
            let values = |name: &str| -> Vec<Vec<u8>> {
                let fields = other.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
                fields.map(|field| field.value.to_vec()).collect()
            };
            prop_assert_eq!(values("x-forwarded-for"), vec![b"192.0.2.1".to_vec()]);
            prop_assert_eq!(values("x-real-ip"), vec![b"192.0.2.1".to_vec()]);
            prop_assert_eq!(values("host").len(), 1);
            // What frames it has one form.
            for line in String::from_utf8_lossy(&out).split("\r\n") {
                let (name, value) = line.split_once(':').unwrap_or_default();
                let form = match (name.to_ascii_lowercase().as_str(), head.framing) {
                    ("content-length", Framing::Length(length)) => format!(" {length}"),
                    ("content-length", _) => " 0".to_owned(),
                    ("transfer-encoding", _) => " chunked".to_owned(),
                    _ => continue,
                };
                prop_assert_eq!(value, form);
            }
            let lengths = (values("content-length").len(), values("transfer-encoding").len());
            let expected = match head.framing {
                Framing::Chunked => (0, 1),
                Framing::Length(_) => (1, 0),
                _ => (lengths.0.min(1), 0),
            };
            prop_assert_eq!(lengths, expected);
            for name in ["te", "expect", "x_y"] {
                prop_assert!(values(name).is_empty(), "{}", name);
            }
            // What the edge itself would be spoken to in.
            for upgrade in values("upgrade") {
                let upgrade = String::from_utf8_lossy(&upgrade).to_ascii_lowercase();
                let is_dropped = ["h2c", "http/", "tls/"].iter().any(|start| upgrade.starts_with(start));
                prop_assert!(!is_dropped, "{}", upgrade);
            }
        }

        /// No bytes make the readers panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for begin in [&b""[..], b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n "] {
                let mut all = [begin, &bytes, b"\r\n\r\n"].concat();
                let _ = written(&all);
                let _ = ResponseHead::default().read(&mut all, 64);
            }
        }
    }
}

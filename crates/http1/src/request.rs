//! The head of a request, read strictly: what two readers might understand in two ways is refused.

use memchr::{memchr, memchr3};

use crate::Framing;
use crate::field::{CHUNKED, Field, Name, Span};
use crate::grammar::{decimal, elements, is_target, is_token, is_value, trimmed};
use crate::host::{Authority, HostError, authority};

/// Bytes of a method. The longest that is registered has 18.
pub const MAX_METHOD_BYTES: usize = 64;

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Headers.
    pub fields: usize,
    /// Bytes of the target.
    pub target_bytes: usize,
}

/// The version of HTTP that a client speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunks, and a connection that closes unless both want otherwise.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A path, perhaps with a query. Empty where an absolute URI has none.
    Path(Span),
    /// `OPTIONS *`: the server itself.
    Server,
}

impl Default for Target {
    fn default() -> Self {
        Self::Path(Span::default())
    }
}

/// Why a request is refused. After each the connection closes: where the next request would begin is not known for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says it")]
pub enum Refusal {
    #[error("a line of the request's head ends without a carriage return")]
    BareLineFeed,
    #[error("the request line is not a method, a target and a version, with one space between")]
    RequestLine,
    #[error("the method is not a token of at most {MAX_METHOD_BYTES} bytes")]
    Method,
    #[error("the target is no path, no http URI and no `*` of OPTIONS")]
    Target,
    #[error("the target is too long")]
    TargetTooLong,
    #[error("the version is not HTTP/1.1 or HTTP/1.0")]
    Version,
    #[error("the request's head is too large")]
    HeadTooLarge,
    #[error("the request has too many headers")]
    TooManyFields,
    #[error("a line of the request's head begins with a space: folded headers are obsolete")]
    Folded,
    #[error("the name of a header is not a token with a colon right behind it")]
    FieldName,
    #[error("the value of a header has a control character")]
    FieldValue,
    #[error("the request has both Content-Length and Transfer-Encoding")]
    BothLengths,
    #[error("the request has no usable Content-Length: one decimal number is")]
    ContentLength,
    #[error("the only Transfer-Encoding of a request is `chunked`, once, in HTTP/1.1")]
    TransferEncoding,
    #[error("{0}")]
    Host(#[from] HostError),
    #[error("CONNECT is not offered")]
    Connect,
}

impl Refusal {
    /// The status that the client gets.
    pub fn status(self) -> u16 {
        match self {
            Self::TargetTooLong => 414,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::Version => 505,
            Self::Connect => 405,
            _ => 400,
        }
    }

    /// What is wrong with a head that ended at none of these bytes, which are as many as a head may have.
    pub fn of_endless(bytes: &[u8], limits: RequestLimits) -> Self {
        let of_line = bytes.len().min(limits.target_bytes);
        if memchr(b'\n', &bytes[..of_line]).is_none() {
            Self::TargetTooLong
        } else {
            Self::HeadTooLarge
        }
    }

    /// What is wrong with the first bytes of a head, of which the end is not there yet; `None`: nothing so far.
    pub fn of_begun(bytes: &[u8], limits: RequestLimits) -> Option<Self> {
        let of_method = &bytes[..bytes.len().min(MAX_METHOD_BYTES + 1)];
        let method = match memchr3(b' ', b'\r', b'\n', of_method) {
            Some(end) => &of_method[..end],
            None => of_method,
        };
        if !is_token(method) || method.len() > MAX_METHOD_BYTES {
            return Some(Self::Method);
        }
        let of_line = method.len() + 1 + limits.target_bytes;
        match memchr(b'\n', &bytes[..bytes.len().min(of_line + 1)]) {
            None => (bytes.len() > of_line).then_some(Self::TargetTooLong),
            // Who speaks something else waits for an answer to its first line.
            Some(end) => {
                let version = bytes[..end].rsplit(|byte| *byte == b' ').next();
                let is_http = version.is_some_and(|version| version.starts_with(b"HTTP/"));
                (!is_http).then_some(Self::RequestLine)
            }
        }
    }
}

/// A request's head, as places in the bytes that it was read from.
#[derive(Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Span,
    /// What it asks for, without the fragment that a target may not have.
    pub target: Target,
    /// What the client speaks.
    pub version: Version,
    /// The headers, in their order.
    pub fields: Vec<Field>,
    /// How far the body reaches.
    pub framing: Framing,
    /// The host that it is for, with the port, as the client wrote it: of an absolute URI, else of `Host` (RFC 9112, 3.2.2).
    pub authority: Span,
    /// Whether the host is from an absolute URI.
    pub is_absolute: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the client wants to keep the connection.
    pub keeps_alive: bool,
    /// Whether it asks to upgrade to something that can be carried.
    pub wants_upgrade: bool,
    /// Whether it asks for JSON.
    pub wants_json: bool,
    /// Whether `Connection` names other headers.
    pub(crate) names_others: bool,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self {
            method: Span::default(),
            target: Target::default(),
            version: Version::default(),
            fields: Vec::new(),
            framing: Framing::Empty,
            authority: Span::default(),
            is_absolute: false,
            expects_continue: false,
            keeps_alive: true,
            wants_upgrade: false,
            wants_json: false,
            names_others: false,
        }
    }
}

impl RequestHead {
    /// Reads a whole head, of which [`crate::find_request_end`] found the end; the memory of the head before is used again.
    ///
    /// # Errors
    /// The first thing that is wrong. What was read up to there is of no use.
    pub fn read(&mut self, bytes: &[u8], limits: RequestLimits) -> Result<(), Refusal> {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self {
            fields,
            ..Self::default()
        };
        let line_end = memchr(b'\n', bytes).ok_or(Refusal::RequestLine)? + 1;
        let in_target = self.read_line(bytes, &bytes[..line_end], limits)?;
        let mut seen = Seen::default();
        let mut at = line_end;
        while at < bytes.len() {
            let end = at + memchr(b'\n', &bytes[at..]).ok_or(Refusal::BareLineFeed)? + 1;
            let line = &bytes[at..end];
            let text = line.strip_suffix(b"\r\n").ok_or(Refusal::BareLineFeed)?;
            if text.is_empty() {
                break;
            }
            if self.fields.len() == limits.fields {
                return Err(Refusal::TooManyFields);
            }
            let field = read_field(bytes, line, text)?;
            seen.take(self, field, bytes)?;
            self.fields.push(field);
            at = end;
        }
        self.conclude(&seen, in_target, bytes)
    }

    /// The request line; returns the host of an absolute URI.
    fn read_line(
        &mut self,
        bytes: &[u8],
        line: &[u8],
        limits: RequestLimits,
    ) -> Result<Option<Span>, Refusal> {
        let line = line.strip_suffix(b"\r\n").ok_or(Refusal::BareLineFeed)?;
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let (Some(method), Some(target), Some(version)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::RequestLine);
        };
        if !is_token(method) || method.len() > MAX_METHOD_BYTES {
            return Err(Refusal::Method);
        }
        if target.len() > limits.target_bytes {
            return Err(Refusal::TargetTooLong);
        }
        if target.is_empty() {
            return Err(Refusal::RequestLine);
        }
        if !is_target(target) {
            return Err(Refusal::Target);
        }
        self.version = match version {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Refusal::Version);
            }
            _ => return Err(Refusal::RequestLine),
        };
        self.method = Span::within(bytes, method);
        if method == b"CONNECT" {
            return Err(Refusal::Connect);
        }
        let target = match memchr(b'#', target) {
            Some(fragment) => &target[..fragment],
            None => target,
        };
        match target {
            [b'/', ..] => {
                self.target = Target::Path(Span::within(bytes, target));
                return Ok(None);
            }
            b"*" if method == b"OPTIONS" => {
                self.target = Target::Server;
                return Ok(None);
            }
            _ => {}
        }
        let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
        });
        let rest = &target[scheme.ok_or(Refusal::Target)?.len()..];
        let host_end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?'))
            .unwrap_or(rest.len());
        let (host, path) = rest.split_at(host_end);
        self.target = Target::Path(Span::within(bytes, path));
        Ok(Some(Span::within(bytes, host)))
    }

    fn conclude(
        &mut self,
        seen: &Seen,
        in_target: Option<Span>,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        self.framing = match (seen.length, seen.encodings) {
            (Some(_), 1..) => return Err(Refusal::BothLengths),
            (_, 2..) => return Err(Refusal::TransferEncoding),
            (_, 1) if self.version == Version::Http10 => return Err(Refusal::TransferEncoding),
            (_, 1) => Framing::Chunked,
            (Some(0) | None, 0) => Framing::Empty,
            (Some(length), 0) => Framing::Length(length),
        };
        if seen.hosts > 1 {
            return Err(HostError::Several.into());
        }
        self.is_absolute = in_target.is_some();
        self.authority = in_target.or(seen.host).ok_or(HostError::Missing)?;
        // Of both: that which is not used is not for somebody else to understand.
        if let Some(host) = seen.host.filter(|_| self.is_absolute) {
            authority(host.of(bytes))?;
        }
        self.host(bytes)?;
        let is_11 = self.version == Version::Http11;
        self.keeps_alive = !seen.closes && (is_11 || seen.keeps_alive);
        self.expects_continue = is_11 && seen.expects && self.framing != Framing::Empty;
        self.wants_upgrade =
            is_11 && seen.upgrades && seen.can_upgrade && self.framing == Framing::Empty;
        Ok(())
    }

    /// The host that it is for, and the port.
    ///
    /// # Errors
    /// None of a head that was read.
    pub fn host<'a>(&self, bytes: &'a [u8]) -> Result<Authority<'a>, HostError> {
        authority(self.authority.of(bytes))
    }

    /// Whether it may be given to a server a second time without harm, even if the first one may have acted on it (RFC 9110, 9.2.1).
    pub fn is_safe(&self, bytes: &[u8]) -> bool {
        matches!(
            self.method.of(bytes),
            b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE"
        )
    }

    /// The values of all headers that are this.
    pub fn values<'a>(&'a self, name: Name, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.fields.iter().filter(move |field| field.known == name);
        fields.map(|field| field.value.of(bytes))
    }
}

impl RequestHead {
    /// Of a header to which each proxy on the way adds an element: the one that was there before the last `behind` proxies added theirs. Where they are not as
    /// many, because a proxy passed on what it got, it is the first.
    pub fn said<'a>(&'a self, name: Name, bytes: &'a [u8], behind: usize) -> Option<&'a [u8]> {
        let said = || self.values(name, bytes).flat_map(elements);
        let last = said().count().checked_sub(1)?;
        said().nth(last.saturating_sub(behind))
    }
}

/// What the headers said so far.
#[derive(Default)]
struct Seen {
    hosts: u32,
    host: Option<Span>,
    length: Option<u64>,
    encodings: u32,
    closes: bool,
    keeps_alive: bool,
    upgrades: bool,
    can_upgrade: bool,
    expects: bool,
}

impl Seen {
    fn take(&mut self, head: &mut RequestHead, field: Field, bytes: &[u8]) -> Result<(), Refusal> {
        let value = field.value.of(bytes);
        match field.known {
            Name::Host => {
                self.hosts += 1;
                self.host = Some(field.value);
            }
            Name::ContentLength => {
                let length = decimal(value).filter(|length| i64::try_from(*length).is_ok());
                if self.length.is_some() || length.is_none() {
                    return Err(Refusal::ContentLength);
                }
                self.length = length;
            }
            Name::TransferEncoding => {
                if !value.eq_ignore_ascii_case(CHUNKED) {
                    return Err(Refusal::TransferEncoding);
                }
                self.encodings += 1;
            }
            Name::Connection => {
                for option in elements(value) {
                    if option.eq_ignore_ascii_case(b"close") {
                        self.closes = true;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        self.keeps_alive = true;
                    } else if option.eq_ignore_ascii_case(b"upgrade") {
                        self.upgrades = true;
                    } else {
                        head.names_others = true;
                    }
                }
            }
            Name::Upgrade => self.can_upgrade |= elements(value).any(can_carry),
            Name::Expect => self.expects |= value.eq_ignore_ascii_case(b"100-continue"),
            Name::Accept => head.wants_json |= accepts_json(value),
            _ => {}
        }
        Ok(())
    }
}

/// Whether a value of `Accept` has JSON.
fn accepts_json(value: &[u8]) -> bool {
    elements(value).any(|range| {
        let kind = range.split(|byte| *byte == b';').next().unwrap_or(range);
        let kind = trimmed(kind);
        kind.eq_ignore_ascii_case(b"application/json")
            || kind.eq_ignore_ascii_case(b"application/problem+json")
    })
}

/// Whether a whole head that is refused asks for JSON, so that the refusal is of that form: nothing else is to be taken from it.
pub fn refused_wants_json(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').skip(1).any(|line| {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let is_accept = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(b"accept"));
        let value = parts.next().unwrap_or_default();
        is_accept && accepts_json(value.strip_suffix(b"\r").unwrap_or(value))
    })
}

/// Whether an upgrade can be carried by whoever copies bytes: another version of HTTP, or TLS, would be spoken to the proxy itself.
pub(crate) fn can_carry(protocol: &[u8]) -> bool {
    let begins = |other: &[u8]| {
        protocol
            .get(..other.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(other))
    };
    is_value(protocol) && !begins(b"h2c") && !begins(b"tls/") && !begins(b"http/")
}

fn read_field(bytes: &[u8], line: &[u8], text: &[u8]) -> Result<Field, Refusal> {
    if matches!(text[0], b' ' | b'\t') {
        return Err(Refusal::Folded);
    }
    let colon = memchr(b':', text).ok_or(Refusal::FieldName)?;
    let (name, value) = (&text[..colon], &text[colon + 1..]);
    if !is_token(name) {
        return Err(Refusal::FieldName);
    }
    if !is_value(value) {
        return Err(Refusal::FieldValue);
    }
    let field = Field {
        line: Span::within(bytes, line),
        name: Span::within(bytes, name),
        value: Span::within(bytes, trimmed(value)),
        known: Name::of(name),
        is_clean: true,
    };
    Ok(field.normalized(bytes))
}

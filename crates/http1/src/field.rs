//! A line of a head, and the names that mean something to a proxy.

/// A part of the bytes that a head was read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Heads are bounded far below 4 GiB; what lies beyond would be empty.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self {
            start: place(start),
            end: place(end),
        }
    }

    /// The span of `part`, which lies in `whole`.
    pub(crate) fn within(whole: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
        Self::new(start, start + part.len())
    }

    /// Where it begins.
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// Where it ends: the byte behind its last.
    pub fn end(self) -> usize {
        self.end as usize
    }

    /// The bytes, of those that the head was read from.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start()..self.end()).unwrap_or_default()
    }
}

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its line, with its end.
    pub line: Span,
    /// The name, as it was written.
    pub name: Span,
    /// The value, without spaces around it.
    pub value: Span,
    /// What it is.
    pub known: Name,
    /// Whether its line can be passed on as it is.
    pub is_clean: bool,
}

impl Field {
    /// The same, with one form for whatever frames a message: whoever reads it after this one is to read the same, however it reads spaces, letters and zeros.
    pub(crate) fn normalized(mut self, bytes: &[u8]) -> Self {
        if self.known == Name::ContentLength {
            let digits = self.value.of(bytes);
            let zeros = digits
                .windows(2)
                .take_while(|pair| pair[0] == b'0' && pair[1].is_ascii_digit())
                .count();
            self.value = Span::new(self.value.start() + zeros, self.value.end());
        } else if self.known != Name::TransferEncoding {
            return self;
        }
        let value = self.value.of(bytes);
        let is_in_form = self.value.start() == self.name.end() + 2
            && bytes[self.name.end()..].starts_with(b": ")
            && self.line.end() == self.value.end() + 2
            && (self.known == Name::ContentLength || value == CHUNKED);
        self.is_clean &= is_in_form;
        self
    }
}

/// The one coding of a body whose length is not known (RFC 9112, 7.1).
pub(crate) const CHUNKED: &[u8] = b"chunked";

/// The names that mean something to a proxy.
#[allow(missing_docs, reason = "they are the names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Accept,
    Connection,
    ContentLength,
    Date,
    Expect,
    Forwarded,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    StrictTransportSecurity,
    Te,
    TransferEncoding,
    Upgrade,
    XForwardedFor,
    XForwardedHost,
    XForwardedPort,
    XForwardedProto,
    XRealIp,
    XRequestId,
    /// Has an underscore: CGI and its kin read it as the name with a dash.
    Underscored,
    /// Any other.
    Other,
}

impl Name {
    /// What a name, in any case, is.
    pub fn of(name: &[u8]) -> Self {
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        // By length first: nearly every name is then compared with one or two.
        let known = match name.len() {
            2 if is(b"te") => Self::Te,
            4 if is(b"host") => Self::Host,
            4 if is(b"date") => Self::Date,
            6 if is(b"accept") => Self::Accept,
            6 if is(b"expect") => Self::Expect,
            7 if is(b"upgrade") => Self::Upgrade,
            9 if is(b"forwarded") => Self::Forwarded,
            9 if is(b"x-real-ip") => Self::XRealIp,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::KeepAlive,
            12 if is(b"x-request-id") => Self::XRequestId,
            14 if is(b"content-length") => Self::ContentLength,
            14 if is(b"http2-settings") => Self::Http2Settings,
            15 if is(b"x-forwarded-for") => Self::XForwardedFor,
            16 if is(b"x-forwarded-host") => Self::XForwardedHost,
            16 if is(b"x-forwarded-port") => Self::XForwardedPort,
            16 if is(b"proxy-connection") => Self::ProxyConnection,
            17 if is(b"transfer-encoding") => Self::TransferEncoding,
            17 if is(b"x-forwarded-proto") => Self::XForwardedProto,
            18 if is(b"proxy-authenticate") => Self::ProxyAuthenticate,
            19 if is(b"proxy-authorization") => Self::ProxyAuthorization,
            25 if is(b"strict-transport-security") => Self::StrictTransportSecurity,
            _ => Self::Other,
        };
        if known == Self::Other && name.contains(&b'_') {
            return Self::Underscored;
        }
        known
    }

    /// Whether it is between two neighbours only (RFC 9110, 7.6.1), besides what `Connection` names.
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::Http2Settings
                | Self::KeepAlive
                | Self::ProxyAuthenticate
                | Self::ProxyAuthorization
                | Self::ProxyConnection
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }

    /// Whether it says who the client is, or where it came from.
    pub fn is_of_client(self) -> bool {
        matches!(
            self,
            Self::Forwarded
                | Self::XForwardedFor
                | Self::XForwardedHost
                | Self::XForwardedPort
                | Self::XForwardedProto
                | Self::XRealIp
                | Self::XRequestId
        )
    }
}

//! The head of a response, read as browsers and nginx read it: what is wrong with one line costs that line only.

use memchr::memchr;

use crate::Framing;
use crate::field::{CHUNKED, Field, Name, Span};
use crate::grammar::{decimal, elements, is_token, is_value, trimmed};
use crate::request::Version;

/// Why a response cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says it")]
pub enum BadResponse {
    #[error("its first line is not a version of HTTP/1 and a status of three digits")]
    StatusLine,
    #[error("its head is too large")]
    HeadTooLarge,
    #[error("it has too many headers")]
    TooManyFields,
    #[error("it has several different Content-Length, or one that is not a number")]
    ContentLength,
    #[error("its Transfer-Encoding is not `chunked`, once")]
    TransferEncoding,
}

/// A response's head, as places in the bytes that it was read from.
#[derive(Debug)]
pub struct ResponseHead {
    /// What the server speaks.
    pub version: Version,
    /// The status, from 100 to 999.
    pub status: u16,
    /// The reason phrase, which may be empty.
    pub reason: Span,
    /// The headers, in their order, without those that were dropped.
    pub fields: Vec<Field>,
    /// The lines that are no headers, which were dropped.
    pub dropped: Vec<Span>,
    /// Whether the server keeps the connection.
    pub keeps_alive: bool,
    /// Whether there is a `Date`.
    pub has_date: bool,
    pub(crate) names_others: bool,
    length: Option<u64>,
    /// Whether Content-Length came several times, or as a list.
    pub(crate) repeats_length: bool,
    is_chunked: bool,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self {
            version: Version::Http11,
            status: 0,
            reason: Span::default(),
            fields: Vec::new(),
            dropped: Vec::new(),
            keeps_alive: true,
            has_date: false,
            names_others: false,
            length: None,
            repeats_length: false,
            is_chunked: false,
        }
    }
}

impl ResponseHead {
    /// Reads a whole head, of which [`crate::find_response_end`] found the end. A folded line becomes one line in place.
    ///
    /// # Errors
    /// What keeps it from being passed on.
    pub fn read(&mut self, bytes: &mut [u8], max_fields: usize) -> Result<(), BadResponse> {
        let (mut fields, mut dropped) = (
            std::mem::take(&mut self.fields),
            std::mem::take(&mut self.dropped),
        );
        fields.clear();
        dropped.clear();
        *self = Self {
            fields,
            dropped,
            ..Self::default()
        };
        let mut at = memchr(b'\n', bytes).ok_or(BadResponse::StatusLine)? + 1;
        unfold(bytes, at);
        let bytes = &*bytes;
        self.read_line(bytes, &bytes[..at])?;
        let (mut closes, mut keeps_alive, mut has_encoding) = (false, false, false);
        while at < bytes.len() {
            let end = memchr(b'\n', &bytes[at..]).map_or(bytes.len(), |feed| at + feed + 1);
            let line = &bytes[at..end];
            at = end;
            let text = without_end(line);
            if text.is_empty() {
                break;
            }
            let Some(field) = read_field(bytes, line, text) else {
                self.dropped.push(Span::within(bytes, line));
                continue;
            };
            if self.fields.len() == max_fields {
                return Err(BadResponse::TooManyFields);
            }
            self.fields.push(field);
            let value = field.value.of(bytes);
            match field.known {
                Name::ContentLength => {
                    // `5, 5` and twice `5` are 5 (RFC 9110, 8.6).
                    for element in value.split(|byte| *byte == b',') {
                        let length = decimal(trimmed(element));
                        let length = length.filter(|length| i64::try_from(*length).is_ok());
                        let length = length.ok_or(BadResponse::ContentLength)?;
                        if self.length.is_some_and(|earlier| earlier != length) {
                            return Err(BadResponse::ContentLength);
                        }
                        self.repeats_length |= self.length.is_some();
                        self.length = Some(length);
                    }
                }
                Name::TransferEncoding => {
                    let is_chunked = value.eq_ignore_ascii_case(CHUNKED);
                    let is_known = is_chunked || value.eq_ignore_ascii_case(b"identity");
                    if !is_known || has_encoding {
                        return Err(BadResponse::TransferEncoding);
                    }
                    has_encoding = true;
                    self.is_chunked = is_chunked;
                }
                Name::Connection => {
                    for option in elements(value) {
                        if option.eq_ignore_ascii_case(b"close") {
                            closes = true;
                        } else if option.eq_ignore_ascii_case(b"keep-alive") {
                            keeps_alive = true;
                        } else if !option.eq_ignore_ascii_case(b"upgrade") {
                            self.names_others = true;
                        }
                    }
                }
                Name::Date => self.has_date = true,
                _ => {}
            }
        }
        // Chunks in HTTP/1.0 are a fault, behind which nothing is read (RFC 9112, 6.1).
        let keeps_alive = keeps_alive && !self.is_chunked;
        self.keeps_alive = !closes && (self.version == Version::Http11 || keeps_alive);
        Ok(())
    }

    fn read_line(&mut self, bytes: &[u8], line: &[u8]) -> Result<(), BadResponse> {
        let line = without_end(line);
        let (version, rest) = line.split_at_checked(9).ok_or(BadResponse::StatusLine)?;
        self.version = match version {
            b"HTTP/1.1 " => Version::Http11,
            b"HTTP/1.0 " => Version::Http10,
            _ => return Err(BadResponse::StatusLine),
        };
        let (digits, reason) = rest.split_at_checked(3).ok_or(BadResponse::StatusLine)?;
        let status = decimal(digits).and_then(|status| u16::try_from(status).ok());
        self.status = status
            .filter(|status| (100..=999).contains(status))
            .ok_or(BadResponse::StatusLine)?;
        let reason = match reason {
            [] => reason,
            [b' ', reason @ ..] => reason,
            _ => return Err(BadResponse::StatusLine),
        };
        // It is for people only: one that cannot be passed on is left out.
        self.reason = if is_value(reason) {
            Span::within(bytes, reason)
        } else {
            Span::default()
        };
        Ok(())
    }

    /// How far its body reaches, where the request's method was `HEAD` or not. Of both lengths, Transfer-Encoding is the one that counts
    /// (RFC 9112, 6.3).
    pub fn framing(&self, of_head: bool) -> Framing {
        if of_head || matches!(self.status, 100..200 | 204 | 304) {
            return Framing::Empty;
        }
        match self.length {
            _ if self.is_chunked => Framing::Chunked,
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    }

    /// The length that Content-Length says, whether it counts or not.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether Content-Length goes: there is another framing, or there can be no body.
    pub(crate) fn drops_length(&self) -> bool {
        self.is_chunked || self.status == 204 || self.status < 200
    }

    /// The first value of a header that is this.
    pub fn value<'a>(&self, name: Name, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let field = self.fields.iter().find(|field| field.known == name)?;
        Some(field.value.of(bytes))
    }
}

/// Makes one line of each that goes on in the next (RFC 9112, 5.2): the end of the line becomes spaces.
fn unfold(bytes: &mut [u8], from: usize) {
    let mut at = from;
    while let Some(feed) = memchr(b'\n', &bytes[at..]).map(|feed| at + feed) {
        if matches!(bytes.get(feed + 1), Some(b' ' | b'\t')) {
            bytes[feed] = b' ';
            if feed > from && bytes[feed - 1] == b'\r' {
                bytes[feed - 1] = b' ';
            }
        }
        at = feed + 1;
    }
}

fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A header; `None`: the line is none.
fn read_field(bytes: &[u8], line: &[u8], text: &[u8]) -> Option<Field> {
    let colon = memchr(b':', text)?;
    let (written, value) = (&text[..colon], &text[colon + 1..]);
    // Spaces before the colon go (RFC 9112, 5.1); those within a name make it none.
    let name = trimmed(written);
    if name.first() != written.first() || !is_token(name) || !is_value(value) {
        return None;
    }
    let field = Field {
        line: Span::within(bytes, line),
        name: Span::within(bytes, name),
        value: Span::within(bytes, trimmed(value)),
        known: Name::of(name),
        is_clean: name.len() == written.len() && line.ends_with(b"\r\n"),
    };
    Some(field.normalized(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn read(head: &str) -> Result<ResponseHead, BadResponse> {
        let mut response = ResponseHead::default();
        let read = response.read(&mut head.as_bytes().to_vec(), 64);
        read.map(|()| response)
    }

    #[test]
    fn a_server_says_one_coding_once() {
        let with = |lines: &str| read(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n"));
        let (chunked, identity) = (
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
        );
        let framing = |lines: &str| with(lines).map(|head| head.framing(false));
        assert_eq!(framing(chunked), Ok(Framing::Chunked));
        assert_eq!(framing(identity), Ok(Framing::UntilClose));
        for lines in [
            [chunked, chunked].concat(),
            [chunked, identity].concat(),
            [identity, chunked].concat(),
            [identity, identity].concat(),
        ] {
            assert_eq!(framing(&lines), Err(BadResponse::TransferEncoding));
        }
    }

    #[test]
    fn nothing_is_read_behind_chunks_of_http_1_0() {
        let keeps = |version: &str, line: &str| {
            let head = format!("{version} 200 OK\r\nConnection: keep-alive\r\n{line}\r\n\r\n");
            read(&head).unwrap().keeps_alive
        };
        assert!(keeps("HTTP/1.1", "Transfer-Encoding: chunked"));
        assert!(keeps("HTTP/1.0", "Content-Length: 1"));
        assert!(!keeps("HTTP/1.0", "Transfer-Encoding: chunked"));
    }
}

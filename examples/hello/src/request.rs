//! As much of HTTP/1.1 as this app needs: the head of a GET or HEAD request.

use std::io::{self, BufRead};

/// Longest request head, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// A request without its body; a body is not read, so the connection ends after it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    /// Whether the connection can serve another request after this one.
    pub(crate) keep_alive: bool,
    /// Who asked, by the proxy's word; empty without a proxy.
    pub(crate) forwarded_for: String,
}

/// What came instead of a request.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The client went away, or was silent for too long.
    Gone,
    /// Not a request; the status to answer with.
    Bad(u16),
}

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Reads one request head.
pub(crate) fn read(reader: &mut impl BufRead) -> Result<Request, Refused> {
    let mut left = MAX_HEAD_BYTES;
    let mut line = || -> Result<String, Refused> {
        let mut bytes = Vec::new();
        let mut limited = io::Read::take(&mut *reader, left as u64);
        limited.read_until(b'\n', &mut bytes)?;
        if bytes.last() != Some(&b'\n') {
            return Err(if bytes.len() == left {
                Refused::Bad(431)
            } else {
                Refused::Gone
            });
        }
        left -= bytes.len();
        let text = String::from_utf8(bytes).map_err(|_| Refused::Bad(400))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    };
    let start = line()?;
    let mut words = start.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refused::Bad(400));
    };
    if !target.starts_with('/') || !version.starts_with("HTTP/1.") {
        return Err(Refused::Bad(400));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        keep_alive: version != "HTTP/1.0",
        forwarded_for: String::new(),
    };
    loop {
        let line = line()?;
        if line.is_empty() {
            return Ok(request);
        }
        let (name, value) = line.split_once(':').ok_or(Refused::Bad(400))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "connection" => request.keep_alive = !value.eq_ignore_ascii_case("close"),
            "content-length" if value == "0" => {}
            "content-length" | "transfer-encoding" => request.keep_alive = false,
            "x-forwarded-for" => value.clone_into(&mut request.forwarded_for),
            _ => {}
        }
    }
}

impl Request {
    /// A number from the query: `bytes` of `bytes=5&rate=7`. Absent: not given; an error: not a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let values = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        match values.into_iter().find(|(key, _)| *key == name) {
            None => Ok(None),
            Some((_, value)) => match value.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("`{name}` must be a number\n")),
            },
        }
    }
}

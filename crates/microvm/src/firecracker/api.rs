//! Firecracker's API: HTTP over a Unix socket, one short connection for each call.
//!
//! As much of HTTP as its server speaks: a status line, `Content-Length`, a JSON body. The answer is bounded, in
//! size and in time: the socket is in a directory of the VM's user, so whoever broke out of a
//! guest could answer here.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{StatusError, run_dir};

/// Longest wait for an answer: `InstanceStart` makes the guest's memory and loads its kernel.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// One call; gives the body of the answer, null when there is none.
///
/// # Errors
/// No answer in time, or a refusal: then with its text.
pub(crate) async fn call(
    run_dir: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, StatusError> {
    tokio::time::timeout(ANSWER_TIMEOUT, call_patiently(run_dir, method, path, body))
        .await
        .map_err(|_| StatusError::Timeout {
            limit: ANSWER_TIMEOUT,
        })?
}

async fn call_patiently(
    run_dir: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, StatusError> {
    let dir = run_dir::vsock_dir(run_dir);
    let wrong = |source| StatusError::Connection {
        path: dir.join(run_dir::API_SOCKET),
        source,
    };
    let stream = run_dir::connect(&dir, run_dir::API_SOCKET).await;
    let mut stream = stream.map_err(wrong)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(wrong)?;
    let mut received = Vec::new();
    loop {
        if let Some(answer) = parse(&received)? {
            return answer;
        }
        if received.len() > MAX_ANSWER_BYTES {
            return Err(StatusError::Answer("more than an answer has".to_owned()));
        }
        if stream.read_buf(&mut received).await.map_err(wrong)? == 0 {
            return Err(StatusError::Answer("end of file".to_owned()));
        }
    }
}

/// The answer, once it is whole.
fn parse(received: &[u8]) -> Result<Option<Result<Value, StatusError>>, StatusError> {
    let odd = |what: &str| StatusError::Answer(what.to_owned());
    let Some(head_end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&received[..head_end]).map_err(|_| odd("no text"))?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .ok_or_else(|| odd(head))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())
        .map_err(|_| odd(head))?;
    let body = &received[head_end + 4..];
    if body.len() < length {
        return Ok(None);
    }
    let value = match &body[..length] {
        [] => Value::Null,
        text => serde_json::from_slice(text).map_err(|error| odd(&error.to_string()))?,
    };
    Ok(Some(if (200..300).contains(&status) {
        Ok(value)
    } else {
        let told = value.get("fault_message").and_then(Value::as_str);
        Err(StatusError::Answer(
            told.map_or_else(|| format!("status {status}"), str::to_owned),
        ))
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn text(received: &str) -> String {
        match parse(received.as_bytes()) {
            Ok(None) => "more".to_owned(),
            Ok(Some(Ok(value))) => value.to_string(),
            Ok(Some(Err(error))) => format!("no: {error}"),
            Err(error) => format!("odd: {error}"),
        }
    }

    #[test]
    fn an_answer_of_the_api_is_read_in_pieces() {
        let yes = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(text(yes), "null");
        let info = "HTTP/1.1 200 \r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}";
        assert_eq!(text(info), r#"{"state":"Running"}"#);
        for cut in 0..info.len() {
            assert_eq!(text(&info[..cut]), "more");
        }
        let no = "HTTP/1.1 400 \r\ncontent-length: 22\r\n\r\n{\"fault_message\":\"no\"}";
        assert!(text(no).ends_with(": no"), "{}", text(no));
    }

    #[test]
    fn bytes_that_are_no_answer_are_an_error() {
        for received in [
            "220 smtp ready\r\n\r\n",
            "HTTP/1.1 yes\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n{{{",
        ] {
            assert!(text(received).starts_with("odd"), "{received}");
        }
        parse(b"\xff\xff\r\n\r\n").unwrap_err();
    }
}

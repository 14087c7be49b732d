//! How an agent talks to a process of its own: one line of JSON a request, one line an answer, over a Unix socket that only root may open.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest request, in bytes: the peers of a hub of thousands of members, the names of some 50,000 instances.
pub const MAX_REQUEST_BYTES: usize = 16 << 20;
/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 8;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a kind of process is asked.
pub trait Request: Serialize + DeserializeOwned {
    /// How the process is: the answer to every request.
    type Status: Serialize + DeserializeOwned;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer<S> {
    /// How it is, after what was asked.
    Status(Box<S>),
    /// Why it was not done.
    Refused(String),
}

/// Why a process did not do what it was asked. Who reports it says which process.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is not there.
    #[error("its process does not answer")]
    Io(#[from] io::Error),
    /// It speaks another language.
    #[error("its process answers with something else")]
    Format(#[from] serde_json::Error),
    /// It says why.
    #[error("its process refuses: {0}")]
    Refused(String),
}

/// An agent's end.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to the process at this path. Blocks.
    ///
    /// # Errors
    /// It is not there.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer: how the process is after it. Blocks, 10 s at most.
    ///
    /// # Errors
    /// It is not there any more, or refuses.
    pub fn ask<R: Request>(&mut self, request: &R) -> Result<R::Status, ControlError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&answer)? {
            Answer::Status(status) => Ok(*status),
            Answer::Refused(why) => Err(ControlError::Refused(why)),
        }
    }
}

/// The process's end: the line that answers a request's line, after `obey` did what is asked or said why it does not.
///
/// # Errors
/// The answer cannot be JSON.
pub fn answer<R: Request>(
    line: &[u8],
    obey: impl FnOnce(R) -> Result<R::Status, String>,
) -> io::Result<Vec<u8>> {
    let answer = match serde_json::from_slice(line) {
        Ok(request) => {
            obey(request).map_or_else(Answer::Refused, |status| Answer::Status(Box::new(status)))
        }
        Err(error) => Answer::Refused(format!("this is no request: {error}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::os::unix::net::UnixListener;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Sum {
        Add(u32),
    }

    impl Request for Sum {
        type Status = u32;
    }

    #[test]
    fn a_request_is_answered_refused_or_not_understood_and_a_lost_process_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let process = std::thread::spawn(move || {
            let mut lines = BufReader::new(listener.accept().unwrap().0);
            let mut sum = 0;
            for _ in 0..3 {
                let mut line = Vec::new();
                lines.read_until(b'\n', &mut line).unwrap();
                let answer = answer(&line, |Sum::Add(number)| match number {
                    0 => Err("nothing is added".to_owned()),
                    _ => {
                        sum += number;
                        Ok(sum)
                    }
                });
                lines.get_mut().write_all(&answer.unwrap()).unwrap();
            }
        });
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.ask(&Sum::Add(3)).unwrap(), 3);
        let refused = client.ask(&Sum::Add(0)).unwrap_err().to_string();
        assert_eq!(refused, "its process refuses: nothing is added");
        assert_eq!(client.ask(&Sum::Add(4)).unwrap(), 7);
        process.join().unwrap();
        let lost = client.ask(&Sum::Add(4)).unwrap_err();
        assert!(matches!(lost, ControlError::Io(_)), "{lost}");
        let line = answer::<Sum>(b"{\"subtract\":1}", |_| Ok(0)).unwrap();
        assert!(line.starts_with(b"{\"refused\":\"this is no request: "));
    }
}

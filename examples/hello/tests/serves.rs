//! The program itself, over real sockets and signals.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running `hello`, killed if a test leaves it.
struct Hello {
    child: Child,
    log: BufReader<ChildStdout>,
    port: u16,
    _state: tempfile::TempDir,
}

impl Drop for Hello {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hello {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_hello"))
            .env("HELLO_CONFIG", state.path().join("none"))
            .env("HELLO_STATE_DIR", state.path())
            .env("HELLO_GREETING", "Good <day>")
            .env("TMPDIR", state.path())
            .env("PLATFORM_INSTANCE", "0000002a")
            .env("PORT", "0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        Self {
            child,
            log,
            port,
            _state: state,
        }
    }

    fn request(&self, host: &str, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect((host, self.port)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    fn get(&self, host: &str, path: &str) -> String {
        let text = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        self.request(host, &text)
            .read_to_string(&mut answer)
            .unwrap();
        answer
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.log.read_line(&mut line).unwrap();
        line
    }
}

#[test]
fn the_page_counts_hits_and_is_logged() {
    let mut hello = Hello::start();
    let first = hello.get("::1", "/");
    assert!(first.contains("<h1>Good &lt;day&gt;</h1>"), "{first}");
    assert!(
        first.contains("instance  0000002a") && first.contains("hits      1\n"),
        "{first}"
    );
    assert!(hello.get("127.0.0.1", "/").contains("hits      2\n"));
    assert!(hello.get("::1", "/healthz").ends_with("\r\n\r\nok\n"));
    assert!(hello.get("::1", "/nothing").starts_with("HTTP/1.1 404 "));
    assert!(
        hello
            .get("::1", "/download?bytes=x")
            .starts_with("HTTP/1.1 400 ")
    );
    let line = hello.line();
    assert!(
        line.starts_with("web: GET / 200 ") && line.ends_with("from ::1\n"),
        "{line}"
    );
}

#[test]
fn one_connection_serves_several_requests_and_nonsense_is_refused() {
    let hello = Hello::start();
    let twice = "GET /healthz HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    hello
        .request("::1", twice)
        .read_to_string(&mut answer)
        .unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    for (text, status) in [
        ("nonsense\r\n\r\n".to_owned(), "400"),
        (format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000)), "431"),
        (
            "POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "405",
        ),
    ] {
        let mut answer = Vec::new();
        // A reset after the answer is fine: not all of the request was read.
        let _ = hello.request("::1", &text).read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[test]
fn sigterm_lets_a_download_end() {
    let mut hello = Hello::start();
    let text = "GET /download?bytes=100000&rate=200000 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stream = hello.request("::1", text);
    let mut head = [0; 512];
    assert!(stream.read(&mut head).unwrap() > 0);
    hello.terminate();
    assert!(hello.line().contains("asked to stop"));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(
        rest.ends_with(b"....") && rest.len() > 99_000,
        "{}",
        rest.len()
    );
    assert!(hello.child.wait().unwrap().success());
    let mut log = String::new();
    hello.log.read_to_string(&mut log).unwrap();
    assert!(log.contains("GET /download 200 100000 bytes"), "{log}");
    assert!(log.ends_with("stopped, 0 requests cut off\n"), "{log}");
}

#[test]
fn the_worker_ticks_and_stops() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hello"))
        .arg("worker")
        .env("HELLO_CONFIG", "/nonexistent")
        .env("HELLO_TICK_SECONDS", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let mut lines = String::new();
    log.read_line(&mut lines).unwrap();
    log.read_line(&mut lines).unwrap();
    assert!(lines.contains("worker: tick 1\n"), "{lines}");
    let pid = child.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

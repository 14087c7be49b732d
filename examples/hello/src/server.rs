//! The web server: a thread for each connection, and an orderly end.
//!
//! On SIGTERM it takes no new connection, answers the requests it has begun (their answers say
//! `Connection: close`), and ends when the last one is out.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufReader, Read as _, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::log::log;
use crate::request::{self, Refused, Request};
use crate::signals::signals;

/// A connection that is silent for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// A client that takes nothing for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for requests in flight after SIGTERM; the platform's own patience is the manifest's
/// `stop.timeout`.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(5);
/// Largest download, in bytes.
const MAX_DOWNLOAD_BYTES: u64 = 16 << 30;
/// A slow download sends a piece so often.
const DOWNLOAD_BEAT: Duration = Duration::from_millis(50);

struct App {
    greeting: String,
    hits: Hits,
    started: Instant,
    stopping: AtomicBool,
    /// Requests whose answer is not out yet.
    in_flight: Mutex<usize>,
    idle: Condvar,
}

pub(crate) fn run(config: &Config) -> Result<(), String> {
    let mut signals = signals()?;
    let app = Arc::new(App {
        greeting: config.greeting.clone(),
        hits: Hits::open(&config.state_dir)?,
        started: Instant::now(),
        stopping: AtomicBool::new(false),
        in_flight: Mutex::new(0),
        idle: Condvar::new(),
    });
    let listener = listen(config.port)?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("cannot listen: {error}"))?;
    // A file in /tmp, as many programs leave one: for the curious.
    let note = std::env::temp_dir().join("hello.address");
    fs::write(&note, format!("{address}\n"))
        .map_err(|error| format!("cannot write {}: {error}", note.display()))?;
    log(&format!("web: listening on {address}"));

    let accepting = {
        let app = Arc::clone(&app);
        thread::spawn(move || accept(&listener, &app))
    };
    signals
        .read_exact(&mut [0])
        .map_err(|error| format!("cannot wait for signals: {error}"))?;
    app.stopping.store(true, Ordering::SeqCst);
    log("web: asked to stop; finishing what has begun");
    // One connection of our own makes accept() return and see the flag.
    let own = match address.ip() {
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
    };
    if TcpStream::connect_timeout(&own, Duration::from_secs(1)).is_ok() {
        let _ = accepting.join();
    }
    let in_flight = app.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
    let (left, _) = app
        .idle
        .wait_timeout_while(in_flight, DRAIN_TIMEOUT, |count| *count > 0)
        .unwrap_or_else(PoisonError::into_inner);
    log(&format!("web: stopped, {} requests cut off", *left));
    Ok(())
}

/// Both kinds of addresses by one socket; where there is no IPv6, the old kind.
fn listen(port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        })
        .map_err(|error| format!("cannot listen on port {port}: {error}"))
}

fn accept(listener: &TcpListener, app: &Arc<App>) {
    loop {
        let connection = listener.accept();
        if app.stopping.load(Ordering::SeqCst) {
            return;
        }
        match connection {
            Ok((stream, peer)) => {
                let app = Arc::clone(app);
                thread::spawn(move || app.converse(&stream, peer));
            }
            Err(error) => {
                // Out of file descriptors, most likely; some connection will end.
                log(&format!("web: cannot accept: {error}"));
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Counts a request as in flight for as long as it lives.
struct InFlight<'a>(&'a App);

impl<'a> InFlight<'a> {
    fn begin(app: &'a App) -> Self {
        *app.in_flight.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(app)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        *self
            .0
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.idle.notify_all();
    }
}

impl App {
    /// Serves one connection to its end.
    fn converse(&self, stream: &TcpStream, peer: SocketAddr) {
        let _ = stream.set_read_timeout(Some(IDLE_TIMEOUT));
        let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let _ = stream.set_nodelay(true);
        let mut reader = BufReader::new(stream);
        loop {
            let request = request::read(&mut reader);
            let _in_flight = InFlight::begin(self);
            let begun = Instant::now();
            match request {
                Err(Refused::Gone) => return,
                Err(Refused::Bad(status)) => {
                    let _ = respond(stream, status, "text/plain", "", false, true);
                    return;
                }
                Ok(request) => {
                    let keep = request.keep_alive && !self.stopping.load(Ordering::SeqCst);
                    let outcome = self.answer(&request, stream, keep);
                    log_request(&request, peer, &outcome, begun.elapsed());
                    if outcome.is_err() || !keep {
                        let _ = stream.shutdown(Shutdown::Write);
                        return;
                    }
                }
            }
        }
    }

    /// Answers, and says with which status and how many bytes.
    fn answer(
        &self,
        request: &Request,
        stream: &TcpStream,
        keep: bool,
    ) -> Result<(u16, u64), io::Error> {
        let body = request.method != "HEAD";
        let text = |status, text: &str| respond(stream, status, "text/plain", text, keep, body);
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return text(405, "only GET and HEAD\n");
        }
        match request.path.as_str() {
            "/" => match self.hits.add() {
                Ok(hits) => respond(stream, 200, "text/html", &self.page(hits), keep, body),
                Err(error) => text(500, &format!("cannot count this hit: {error}\n")),
            },
            "/healthz" => text(200, "ok\n"),
            "/download" => {
                let numbers = request
                    .number("bytes")
                    .and_then(|bytes| Ok((bytes, request.number("rate")?)));
                match numbers {
                    Ok((bytes, _)) if bytes.unwrap_or(0) > MAX_DOWNLOAD_BYTES => {
                        text(400, "`bytes` is too large\n")
                    }
                    Ok((bytes, rate)) => {
                        download(stream, bytes.unwrap_or(1 << 20), rate, keep, body)
                    }
                    Err(reason) => text(400, &reason),
                }
            }
            _ => text(404, "nothing here\n"),
        }
    }

    fn page(&self, hits: u64) -> String {
        let variable = |name: &str| escape(&std::env::var(name).unwrap_or_else(|_| "-".to_owned()));
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<title>hello</title>\n<h1>{}</h1>\n<pre>\n",
            escape(&self.greeting)
        );
        for (label, value) in [
            ("app", variable("PLATFORM_APP")),
            ("env", variable("PLATFORM_ENV")),
            ("process", variable("PLATFORM_PROCESS")),
            ("release", variable("PLATFORM_RELEASE")),
            ("instance", variable("PLATFORM_INSTANCE")),
            ("node", variable("PLATFORM_NODE")),
            ("region", variable("PLATFORM_REGION")),
            ("address", variable("PLATFORM_IPV6")),
            ("hits", hits.to_string()),
            ("up", format!("{} s", self.started.elapsed().as_secs())),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(page, "{label:<9} {value}");
        }
        page.push_str("</pre>\n</html>\n");
        page
    }
}

/// How often the page was served by this instance, kept in a file.
struct Hits {
    path: PathBuf,
    count: AtomicU64,
    writing: Mutex<()>,
}

impl Hits {
    fn open(dir: &Path) -> Result<Self, String> {
        let path = dir.join("hits");
        let count = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        Ok(Self {
            path,
            count: AtomicU64::new(count),
            writing: Mutex::new(()),
        })
    }

    /// One more; the file has it before the page is sent.
    fn add(&self) -> Result<u64, io::Error> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.count.load(Ordering::SeqCst) + 1;
        let new = self.path.with_extension("new");
        fs::write(&new, format!("{count}\n"))?;
        fs::rename(&new, &self.path)?;
        self.count.store(count, Ordering::SeqCst);
        Ok(count)
    }
}

fn log_request(
    request: &Request,
    peer: SocketAddr,
    outcome: &Result<(u16, u64), io::Error>,
    took: Duration,
) {
    // A probe every few seconds would drown the rest.
    if request.path == "/healthz" {
        return;
    }
    let client = match request.forwarded_for.as_str() {
        "" => peer.ip().to_canonical().to_string(),
        forwarded => forwarded.to_owned(),
    };
    let outcome = match outcome {
        Ok((status, bytes)) => format!("{status} {bytes} bytes"),
        Err(error) => format!("cut off: {error}"),
    };
    log(&format!(
        "web: {} {} {outcome} {:.1} ms from {client}",
        request.method,
        request.path,
        took.as_secs_f64() * 1000.0
    ));
}

fn head(status: u16, kind: &str, length: u64, keep: bool) -> String {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Internal Server Error",
    };
    let connection = if keep { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    )
}

fn respond(
    mut stream: &TcpStream,
    status: u16,
    kind: &str,
    text: &str,
    keep: bool,
    body: bool,
) -> Result<(u16, u64), io::Error> {
    let length = text.len() as u64;
    let mut answer = head(status, kind, length, keep);
    if body {
        answer.push_str(text);
    }
    stream.write_all(answer.as_bytes())?;
    Ok((status, if body { length } else { 0 }))
}

/// Sends `bytes` bytes, `rate` of them each second if that is given: for trying what happens to a
/// long answer.
fn download(
    mut stream: &TcpStream,
    bytes: u64,
    rate: Option<u64>,
    keep: bool,
    body: bool,
) -> Result<(u16, u64), io::Error> {
    stream.write_all(head(200, "text/plain", bytes, keep).as_bytes())?;
    if !body {
        return Ok((200, 0));
    }
    let piece = vec![b'.'; 64 << 10];
    let begun = Instant::now();
    let mut sent = 0_u64;
    while sent < bytes {
        let due = match rate {
            None => bytes,
            Some(rate) => {
                let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                rate.max(1).saturating_mul(millis) / 1000
            }
        };
        let count = due.min(bytes).saturating_sub(sent).min(piece.len() as u64);
        if count == 0 {
            thread::sleep(DOWNLOAD_BEAT);
            continue;
        }
        stream.write_all(&piece[..usize::try_from(count).unwrap_or(0)])?;
        sent += count;
    }
    Ok((200, bytes))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

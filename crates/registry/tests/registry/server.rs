//! A small HTTP server whose answers a test makes up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// From a `Range: bytes=N-`; 0 without one.
    pub(crate) from: usize,
    /// How many requests for this path there were before.
    pub(crate) earlier: usize,
}

/// What is answered.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// The body is sent in chunks, so its length is not said before.
    pub(crate) chunked: bool,
    /// The connection is cut after so many bytes of the body.
    pub(crate) cut_after: Option<usize>,
    /// Nothing more is sent after so many bytes of the body, and the connection stays.
    pub(crate) stall_after: Option<usize>,
    /// The body is repeated for ever; implies `chunked`.
    pub(crate) endless: bool,
    /// The body is sent one byte at a time, with a pause.
    pub(crate) drip: bool,
}

impl Answer {
    pub(crate) fn ok(body: &[u8]) -> Self {
        Self {
            status: 200,
            body: body.to_vec(),
            ..Self::default()
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// The rest of `body`, as an honest server answers a Range.
    pub(crate) fn range(body: &[u8], from: usize) -> Self {
        if from == 0 {
            return Self::ok(body);
        }
        let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
        Self {
            status: 206,
            ..Self::ok(&body[from..])
        }
        .header("Content-Range", &range)
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

/// Runs until dropped.
pub(crate) struct Server {
    /// `127.0.0.1:PORT`, as a registry.
    pub(crate) host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let accepting = {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (asked, script) = (Arc::clone(&asked), Arc::clone(&script));
                    tokio::spawn(async move { serve(stream, &asked, &*script).await });
                }
            })
        };
        Self {
            host,
            asked,
            accepting,
        }
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests had this in their path.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.asked()
            .iter()
            .filter(|asked| asked.path.contains(part))
            .count()
    }
}

/// One request a connection is enough here.
async fn serve(mut stream: TcpStream, asked: &Mutex<Vec<Asked>>, script: &Script) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(found.1.to_owned())
    };
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let from = header("range")
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    let request = {
        let mut asked = asked.lock().unwrap();
        let request = Asked {
            earlier: asked.iter().filter(|a| a.path == path).count(),
            authorization: header("authorization"),
            path,
            from,
        };
        asked.push(request.clone());
        request
    };
    // A client that hangs up is no error of the server.
    let _ = answer(stream, script(&request)).await;
}

async fn answer(mut stream: TcpStream, answer: Answer) -> std::io::Result<()> {
    let chunked = answer.chunked || answer.endless;
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head = format!("{head}{name}: {value}\r\n");
    }
    if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    } else {
        head = format!("{head}Content-Length: {}\r\n\r\n", answer.body.len());
    }
    stream.write_all(head.as_bytes()).await?;
    let stop = answer
        .cut_after
        .or(answer.stall_after)
        .unwrap_or(answer.body.len());
    let body = &answer.body[..stop];
    loop {
        if chunked {
            stream
                .write_all(format!("{:x}\r\n", body.len()).as_bytes())
                .await?;
        }
        if answer.drip {
            for byte in body {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        } else {
            stream.write_all(body).await?;
        }
        if chunked {
            stream.write_all(b"\r\n").await?;
        }
        if !answer.endless {
            break;
        }
    }
    if answer.stall_after.is_some() {
        // Until the client has had enough.
        let _ = stream.read_u8().await;
    }
    if chunked && answer.cut_after.is_none() {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    stream.shutdown().await
}

/// A script that serves one image correctly, except where `answer` returns another answer.
pub(crate) fn serving(
    image: &super::support::Image,
    answer: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    let image = image.clone();
    let blobs = image.blobs();
    move |asked| {
        if let Some(answer) = answer(asked) {
            return answer;
        }
        let name = asked.path.rsplit('/').next().unwrap();
        if asked.path.contains("/manifests/") {
            if name == "latest" || name == image.digest().as_str() {
                return Answer::ok(&image.manifest)
                    .header("Content-Type", super::support::OCI_MANIFEST);
            }
        } else if let Some(blob) = blobs.get(name) {
            return Answer::range(blob, asked.from);
        }
        Answer::status(404)
    }
}

/// Counts calls, for scripts that change their mind.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<AtomicUsize>);

impl Calls {
    /// The number of calls before this one.
    pub(crate) fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

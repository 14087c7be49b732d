//! The node's side of the guest protocol, as small as a measurement needs it.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest_protocol::{
    BootConfig, Channel, Frame as _, FrameBuffer, GATEWAY, GuestFrame, GuestNetwork, HOST_PORT,
    HostFrame, Phase, Stream,
};
use microvm::listen_for_guest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// Longest that anything awaited may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a guest has said so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) hello: bool,
    pub(crate) started: bool,
    pub(crate) failure: Option<String>,
    pub(crate) exited: bool,
    /// Resident memory of its init, in bytes, once it was asked for its stats.
    pub(crate) init_memory_bytes: u64,
    /// Bytes of output, newlines not counted, and lines that were dropped.
    pub(crate) bytes: usize,
    pub(crate) dropped: u32,
    /// The first lines of output.
    pub(crate) lines: Vec<String>,
}

/// Lines that are kept.
const MAX_LINES: usize = 100;

/// A node that gives one guest its config.
pub(crate) struct Node {
    seen: watch::Receiver<Seen>,
    say: mpsc::UnboundedSender<HostFrame>,
}

type Said = Arc<Mutex<mpsc::UnboundedReceiver<HostFrame>>>;

impl Node {
    /// Listens for the guest of this run directory.
    pub(crate) fn listen(run_dir: &Path, config: BootConfig) -> Self {
        let listener = listen_for_guest(run_dir, HOST_PORT).unwrap();
        let (tell, seen) = watch::channel(Seen::default());
        let (say, said) = mpsc::unbounded_channel();
        let (tell, said) = (Arc::new(tell), Arc::new(Mutex::new(said)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, config.clone(), tell.clone(), said.clone()));
            }
        });
        Self { seen, say }
    }

    /// Waits until the guest has said something; an error when it says that it cannot, or nothing.
    pub(crate) async fn until(&mut self, done: impl Fn(&Seen) -> bool) -> Result<Seen, String> {
        let wait = self
            .seen
            .wait_for(|seen| done(seen) || seen.failure.is_some());
        let seen = match tokio::time::timeout(PATIENCE, wait).await {
            Ok(seen) => seen.unwrap().clone(),
            Err(late) => return Err(late.to_string()),
        };
        match &seen.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(seen),
        }
    }

    /// Says something on the control channel.
    pub(crate) fn send(&self, frame: HostFrame) {
        self.say.send(frame).unwrap();
    }
}

async fn serve(
    mut stream: UnixStream,
    config: BootConfig,
    tell: Arc<watch::Sender<Seen>>,
    said: Said,
) {
    let mut frames = FrameBuffer::default();
    let mut bytes = vec![0; 256 * 1024];
    let mut control = false;
    loop {
        let next = async {
            // Only the control connection says what the test wants said.
            if control {
                std::future::poll_fn(|cx| said.lock().unwrap().poll_recv(cx)).await
            } else {
                std::future::pending().await
            }
        };
        let count = tokio::select! {
            frame = next => {
                let Some(frame) = frame else { return };
                stream.write_all(&frame.encode()).await.unwrap();
                continue;
            }
            count = stream.read(&mut bytes) => count.unwrap_or(0),
        };
        if count == 0 {
            return;
        }
        frames.push(&bytes[..count]);
        let mut answer = Vec::new();
        let mut last = None;
        let mut news = Vec::new();
        while let Some(frame) = frames.next::<GuestFrame>().unwrap() {
            match &frame {
                GuestFrame::Hello(hello) => {
                    control |= hello.channel == Channel::Control;
                    if control && hello.phase == Phase::Waiting {
                        answer.extend(HostFrame::Boot(Box::new(config.clone())).encode());
                    }
                }
                GuestFrame::Log(record) => last = Some(record.seq),
                GuestFrame::Exited(_) | GuestFrame::BootFailed(_) => {
                    answer.extend(HostFrame::ExitAck.encode());
                }
                _ => {}
            }
            news.push(frame);
        }
        answer.extend(
            last.into_iter()
                .flat_map(|seq| HostFrame::LogAck { seq }.encode()),
        );
        tell.send_modify(|seen| news.into_iter().for_each(|frame| take(seen, frame)));
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn take(seen: &mut Seen, frame: GuestFrame) {
    match frame {
        GuestFrame::Hello(_) => seen.hello = true,
        GuestFrame::Started => seen.started = true,
        GuestFrame::BootFailed(failure) => {
            seen.failure = Some(format!("{}: {}", failure.step, failure.reason));
        }
        GuestFrame::Exited(_) => seen.exited = true,
        GuestFrame::Stats(stats) => seen.init_memory_bytes = stats.init_memory_bytes,
        GuestFrame::Log(record) => {
            seen.dropped += record.dropped;
            if record.stream != Stream::Platform {
                seen.bytes += record.line.len();
                if seen.lines.len() < MAX_LINES {
                    let line = String::from_utf8_lossy(&record.line);
                    seen.lines.push(line.into_owned());
                }
            }
        }
        _ => {}
    }
}

/// What a guest runs: this command, as root, on a disk of [`make_disk`].
pub(crate) fn config(argv: &[&str]) -> BootConfig {
    BootConfig {
        hostname: "bench".to_owned(),
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        environment: vec![("PATH".to_owned(), "/bin".to_owned())],
        working_dir: "/".to_owned(),
        user: String::new(),
        stop_signal: "SIGTERM".to_owned(),
        init: model::instance::Init::Platform,
        network: GuestNetwork {
            address: "fd12:3456:789a:3:0:7:c000:2".parse().unwrap(),
            ipv4: "100.64.0.2".parse().unwrap(),
            gateway: GATEWAY,
            mtu: 1420,
            resolvers: Vec::new(),
            search: Vec::new(),
        },
        root_device: "/dev/vda".to_owned(),
        scratch_device: "/dev/vdb".to_owned(),
        volumes: Vec::new(),
        image_volumes: Vec::new(),
        secrets: Vec::new(),
        proxy: Vec::new(),
        ports: Vec::new(),
        attached: false,
        secret_modes: std::collections::BTreeMap::new(),
    }
}

/// An ext4 file system of this size, of a tree or empty.
pub(crate) fn make_disk(path: &Path, mebibytes: u32, tree: Option<&Path>) {
    let mut command = Command::new("/usr/sbin/mke2fs");
    command.args(["-q", "-t", "ext4", "-F"]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    command.arg(path).arg(format!("{mebibytes}M"));
    assert!(command.status().unwrap().success());
}

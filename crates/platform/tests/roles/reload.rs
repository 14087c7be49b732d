//! An edge that runs hands over to the next one (SIGUSR2): no client is refused, and what is open goes on.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::{Machine, PATIENCE, done, free_address, receive, run, wait_for, with};

const HOST: &str = "shop.test";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

/// A member of a cluster whose server is away, with routes that lead to an app on this machine.
struct Edge {
    machine: Machine,
    server: String,
    http: SocketAddr,
    /// The port of a TCP route.
    tcp: SocketAddr,
    metrics: SocketAddr,
    /// What the edge tells systemd.
    notified: UnixDatagram,
    /// Its program, which is replaced.
    program: PathBuf,
    app: Arc<App>,
}

/// An app that answers by what is asked for.
#[derive(Default)]
struct App {
    /// Whether slow answers go on.
    goes_on: Mutex<bool>,
    went_on: Condvar,
}

impl App {
    fn start() -> (Arc<Self>, SocketAddr, SocketAddr) {
        let app = Arc::new(Self::default());
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (http, echo) = (listen(), listen());
        let addresses = [&http, &echo].map(|listener| listener.local_addr().unwrap());
        let served = Arc::clone(&app);
        thread::spawn(move || {
            for stream in http.incoming() {
                let app = Arc::clone(&served);
                thread::spawn(move || app.answer_all(stream.unwrap()));
            }
        });
        thread::spawn(move || {
            for stream in echo.incoming() {
                thread::spawn(move || echo_all(stream.unwrap()));
            }
        });
        (app, addresses[0], addresses[1])
    }

    fn go_on(&self) {
        *self.goes_on.lock().unwrap() = true;
        self.went_on.notify_all();
    }

    fn answer_all(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let head = head(&mut reader);
            if head.starts_with("GET /slow") {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
                    .unwrap();
                let goes_on = self.goes_on.lock().unwrap();
                drop(
                    self.went_on
                        .wait_while(goes_on, |goes_on| !*goes_on)
                        .unwrap(),
                );
                let _ = stream.write_all(b"later");
            } else if head.starts_with("POST ") {
                let mut body = [0; 10];
                if reader.read_exact(&mut body).is_ok() {
                    stream
                        .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
                        .unwrap();
                }
            } else if head.contains("pgrade: websocket") {
                let accepted = format!("HTTP/1.1 101 Switching Protocols\r\n{UPGRADE}\r\n");
                stream.write_all(accepted.as_bytes()).unwrap();
                return echo_all(stream);
            } else if head.is_empty() {
                return;
            } else {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .unwrap();
            }
        }
    }
}

fn echo_all(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

/// A head, to its empty line; empty where there is none any more.
fn head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return String::new();
        }
    }
    head
}

/// A connection that sent this, and waits for the answer.
fn ask(address: SocketAddr, request: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    BufReader::new(stream)
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n")
}

fn echoes(stream: &mut BufReader<TcpStream>) -> bool {
    let mut byte = [0];
    stream.get_mut().write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

impl Drop for Edge {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

impl Edge {
    fn joined() -> Self {
        let mut machine = Machine::new();
        let server = free_address();
        done(with(
            machine.role(&["server", "init"]),
            &["--listen", &server],
        ));
        machine.start("server");
        wait_for("the server", || run(machine.command(&["nodes"])).0 == 0);
        let (token, _) = done(machine.command(&["tokens", "create", "--role", "edge"]));
        let [http, tcp, metrics] = [(); 3].map(|()| free_address().parse::<SocketAddr>().unwrap());
        let edge = Self {
            notified: UnixDatagram::bind(machine.dir.path().join("notify")).unwrap(),
            program: machine.dir.path().join("platform"),
            app: Arc::default(),
            server: format!("https://{server}"),
            machine,
            http,
            tcp,
            metrics,
        };
        edge.notified.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut join = edge
            .machine
            .role(&["edge", "join", "--server", &edge.server]);
        join.args(["--listen", &http.to_string()]);
        join.args(["--metrics-listen", &metrics.to_string()]);
        join.args(["--tcp-ports", &tcp.port().to_string()]);
        join.env("PLATFORM_TOKEN", token.trim());
        done(join);
        edge
    }

    /// Starts it, with routes to an app, while the server is away.
    fn start(&mut self) -> i32 {
        let mut server = self.machine.roles.pop().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        let (app, http, tcp) = App::start();
        self.app = app;
        let route = |address: SocketAddr| {
            serde_json::json!({
                "env": { "app": "shop", "env": "prod" },
                "process": "web",
                "proxy_protocol": null,
                "backends": [{"instance": format!("{:08x}", address.port()), "address": address}],
            })
        };
        let table = serde_json::json!({
            "incarnation": "0000000000000001",
            "generation": 1,
            "routes": { HOST: route(http), format!("tcp:{}", self.tcp.port()): route(tcp) },
        });
        let file = self.machine.folder("edge").join("routes.json");
        std::fs::write(file, table.to_string()).unwrap();
        // Reached by a link, as where versions have folders of their own.
        let first = self.machine.dir.path().join("platform-1");
        std::fs::copy(env!("CARGO_BIN_EXE_platform"), &first).unwrap();
        std::os::unix::fs::symlink(&first, &self.program).unwrap();
        let mut command = self.machine.role(&["edge"]);
        let mut own = std::process::Command::new(&self.program);
        own.args(command.get_args());
        for (name, value) in command.get_envs() {
            own.env(name, value.unwrap_or_default());
        }
        command = own;
        let log = std::fs::File::create(self.log_file()).unwrap();
        command.env("NOTIFY_SOCKET", self.machine.dir.path().join("notify"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.machine.roles.push(command.spawn().unwrap());
        let edge = self.machine.roles.last().unwrap();
        let pid = i32::try_from(edge.id()).unwrap();
        assert_eq!(self.next_message(), "READY=1");
        wait_for("the port of the TCP route", || {
            TcpStream::connect(self.tcp).is_ok()
        });
        pid
    }

    fn log_file(&self) -> PathBuf {
        self.machine.dir.path().join("edge.log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap()
    }

    /// What systemd hears next, but for the sockets that it is to keep.
    fn next_message(&self) -> String {
        loop {
            let (message, _) = receive(&self.notified);
            if !message.starts_with("FDSTORE") {
                return message;
            }
        }
    }

    /// Whether systemd has heard of nothing else since.
    fn heard_nothing(&self) -> bool {
        self.notified.set_nonblocking(true).unwrap();
        let mut bytes = [0; 256];
        let mut is_of_sockets = true;
        while let Ok(length) = self.notified.recv(&mut bytes) {
            is_of_sockets &= bytes[..length].starts_with(b"FDSTORE");
        }
        self.notified.set_nonblocking(false).unwrap();
        is_of_sockets
    }

    fn answers(&self) -> bool {
        let mut stream = ask(self.http, &get("/", "Connection: close\r\n"));
        let mut text = String::new();
        stream.read_to_string(&mut text).is_ok() && text.ends_with("ok")
    }

    /// Whether it knows that the server has no routes.
    fn answers_unrouted(&self) -> bool {
        let request = get("/", "Connection: close\r\n");
        head(&mut ask(self.http, &request)).starts_with("HTTP/1.1 404 ")
    }

    /// Whether who watches is told that it is ready.
    fn is_ready(&self) -> bool {
        let mut stream = ask(self.metrics, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
        head(&mut stream).starts_with("HTTP/1.1 200 ")
    }

    /// The edges of this machine that run.
    fn running(&self) -> Vec<i32> {
        self.machine.edges()
    }

    /// Has a failed start of the next edge in its log so often.
    fn has_gone_on(&self, times: usize) -> bool {
        let line = "no other process has taken the place of this one";
        self.log().matches(line).count() == times
    }
}

/// Clients that connect, one after the other, and one that keeps its connection as long as it may.
struct Clients {
    stops: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Clients {
    fn start(address: SocketAddr) -> Self {
        let (stops, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = [false, true].map(|keeps| {
            let (stops, answers) = (Arc::clone(&stops), Arc::clone(&answers));
            thread::spawn(move || {
                let mut kept: Option<BufReader<TcpStream>> = None;
                while !stops.load(Ordering::Relaxed) {
                    let request = get("/", "");
                    let mut stream = match kept.take() {
                        Some(mut stream) => {
                            stream.get_mut().write_all(request.as_bytes()).unwrap();
                            stream
                        }
                        None => ask(address, &request),
                    };
                    let head = head(&mut stream);
                    assert!(head.starts_with("HTTP/1.1 200 "), "{head:?}");
                    let mut body = [0; 2];
                    stream.read_exact(&mut body).unwrap();
                    answers.fetch_add(1, Ordering::Relaxed);
                    let is_kept = !head.to_ascii_lowercase().contains("connection: close");
                    kept = (keeps && is_kept).then_some(stream);
                }
            })
        });
        Self {
            stops,
            answers,
            threads: threads.into(),
        }
    }

    /// So many more are answered.
    fn go_on(&self, more: usize) {
        let answers = || self.answers.load(Ordering::Relaxed);
        let before = answers();
        wait_for("answers", || {
            let failed = self.threads.iter().any(thread::JoinHandle::is_finished);
            assert!(!failed, "a client was refused");
            answers() >= before + more
        });
    }

    fn end(self) {
        self.stops.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn an_edge_hands_over_to_the_next_and_refuses_and_cuts_off_nobody() {
    let mut edge = Edge::joined();
    let old = edge.start();
    let clients = Clients::start(edge.http);
    clients.go_on(100);
    let mut download = ask(edge.http, &get("/slow", ""));
    assert!(head(&mut download).starts_with("HTTP/1.1 200 "));
    let upload = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\nfirst");
    let mut upload = ask(edge.http, &upload);
    let mut websocket = ask(edge.http, &get("/", UPGRADE));
    assert!(head(&mut websocket).starts_with("HTTP/1.1 101 "));
    let mut tcp = ask(edge.tcp, "");
    assert!(echoes(&mut websocket) && echoes(&mut tcp));

    // The link leads to another file now, as after an upgrade.
    let newer = edge.machine.dir.path().join("platform-2");
    std::fs::copy(&edge.program, &newer).unwrap();
    std::fs::remove_file(&edge.program).unwrap();
    std::os::unix::fs::symlink(&newer, &edge.program).unwrap();
    signal(old, Signal::USR2);
    signal(old, Signal::USR2);
    let message = edge.next_message();
    let new = message.strip_prefix("MAINPID=").unwrap_or(&message);
    let new: i32 = new.parse().unwrap();
    assert_eq!(edge.next_message(), "READY=1");
    assert_eq!(edge.running().len(), 2);
    let status = std::fs::read_to_string(format!("/proc/{new}/status")).unwrap();
    assert!(
        !status.contains(&format!("PPid:\t{old}\n")),
        "it is no child of the old one"
    );
    let program = std::fs::read_link(format!("/proc/{new}/exe")).unwrap();
    assert_eq!(program, edge.program.canonicalize().unwrap());
    clients.go_on(100);

    // Who answers is the new one. What began before goes on by the old one.
    signal(old, Signal::STOP);
    assert!(edge.answers() && edge.is_ready());
    assert!(echoes(&mut ask(edge.tcp, "")));
    signal(old, Signal::CONT);
    assert!(echoes(&mut websocket) && echoes(&mut tcp));
    edge.app.go_on();
    let mut body = [0; 10];
    download.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"firstlater");
    upload.get_mut().write_all(b"later").unwrap();
    assert!(head(&mut upload).starts_with("HTTP/1.1 201 "));
    assert!(edge.heard_nothing(), "{}", edge.log());

    // Again, with a file in the place of that, and then the last one stops, with those before it.
    let newest = edge.machine.dir.path().join("platform-3");
    std::fs::copy(&edge.program, &newest).unwrap();
    std::fs::rename(&newest, &edge.program).unwrap();
    signal(new, Signal::USR2);
    let message = edge.next_message();
    let last = message.strip_prefix("MAINPID=").unwrap_or(&message);
    let last: i32 = last.parse().unwrap();
    assert_eq!(edge.next_message(), "READY=1");
    let program = std::fs::read_link(format!("/proc/{last}/exe")).unwrap();
    assert_eq!(program, edge.program.canonicalize().unwrap());
    clients.go_on(100);
    assert!(echoes(&mut websocket) && echoes(&mut tcp));
    clients.end();
    signal(last, Signal::TERM);
    wait_for("the end of all", || {
        edge.machine.roles[0].try_wait().unwrap().is_some() && edge.running().is_empty()
    });
    assert!(edge.machine.roles.pop().unwrap().wait().unwrap().success());
    assert!(!echoes(&mut websocket) && !echoes(&mut tcp));
}

#[test]
fn an_edge_goes_on_where_the_next_does_not_start() {
    let mut edge = Edge::joined();
    let pid = edge.start();
    let goes_on = |edge: &Edge, times: usize| {
        wait_for("that it goes on", || edge.has_gone_on(times));
        assert!(edge.answers() && edge.is_ready());
        assert!(echoes(&mut ask(edge.tcp, "")));
        assert_eq!(edge.running(), [pid]);
        assert!(edge.heard_nothing(), "{}", edge.log());
    };

    // A kept option that cannot be read any more.
    let options = edge.machine.folder("edge").join("options.json");
    let kept = std::fs::read(&options).unwrap();
    std::fs::write(&options, "{").unwrap();
    signal(pid, Signal::USR2);
    goes_on(&edge, 1);
    assert!(edge.log().contains("options.json"), "{}", edge.log());
    std::fs::write(&options, &kept).unwrap();
    // Who it is.
    let member = edge.machine.folder("edge").join("member.json");
    let known = std::fs::read(&member).unwrap();
    std::fs::write(&member, "{").unwrap();
    signal(pid, Signal::USR2);
    goes_on(&edge, 2);
    assert!(edge.log().contains("member.json"), "{}", edge.log());
    std::fs::write(&member, &known).unwrap();
    // A program that ends, and none.
    let program = edge.machine.dir.path().join("program");
    std::fs::rename(&edge.program, &program).unwrap();
    std::os::unix::fs::symlink("/bin/false", &edge.program).unwrap();
    signal(pid, Signal::USR2);
    goes_on(&edge, 3);
    std::fs::remove_file(&edge.program).unwrap();
    signal(pid, Signal::USR2);
    goes_on(&edge, 4);

    // It has the folder still, and follows the server.
    let (status, _, stderr) = run(edge.machine.role(&["edge", "down"]));
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("another edge runs on "), "{stderr}");
    edge.machine.start("server");
    wait_for("the server's routes", || edge.answers_unrouted());
    // With the program back the next one starts, and listens where the options say by now. A connection without a request keeps the old one for a while, as long as the next one is there.
    std::fs::rename(&program, &edge.program).unwrap();
    let address = free_address();
    let mut kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    kept["listen"] = address.clone().into();
    std::fs::write(&options, kept.to_string()).unwrap();
    let idle = ask(edge.http, "");
    assert!(edge.answers_unrouted());
    signal(pid, Signal::USR2);
    let message = edge.next_message();
    let next: i32 = message.strip_prefix("MAINPID=").unwrap().parse().unwrap();
    let kept = [(); 2].map(|()| receive(&edge.notified).0);
    let other = ["FDSTOREREMOVE=1", "FDSTORE=1"].map(|verb| format!("{verb}\nFDNAME=listener"));
    assert_eq!(kept, other);
    assert_eq!(edge.next_message(), "READY=1");
    assert!(edge.machine.roles[0].try_wait().unwrap().is_none());
    wait_for("the end of the old port", || {
        TcpStream::connect(edge.http).is_err()
    });
    edge.http = address.parse().unwrap();
    assert!(edge.answers_unrouted() && edge.is_ready());
    // Where the next one is killed, nobody would tell the old one of a stop: it stops by itself.
    assert!(edge.machine.roles[0].try_wait().unwrap().is_none());
    signal(next, Signal::KILL);
    wait_for("the end of the old one", || {
        edge.machine.roles[0].try_wait().unwrap().is_some()
    });
    drop(idle);
}

#[test]
fn a_next_edge_that_hangs_is_ended_and_so_is_one_whose_old_one_is_stopped() {
    let mut edge = Edge::joined();
    let pid = edge.start();
    let options = edge.machine.folder("edge").join("options.json");
    let hang = || {
        std::fs::remove_file(&options).unwrap();
        make_fifo(&options);
        signal(pid, Signal::USR2);
    };
    let kept = std::fs::read(&options).unwrap();
    hang();
    wait_for("the next one", || edge.running().len() == 2);
    assert!(edge.answers());
    wait_for("that it goes on", || edge.has_gone_on(1));
    assert!(
        edge.log().contains("it was not ready within 30 s"),
        "{}",
        edge.log()
    );
    wait_for("the end of the next one", || edge.running() == [pid]);
    assert!(edge.answers());

    std::fs::remove_file(&options).unwrap();
    std::fs::write(&options, &kept).unwrap();
    hang();
    wait_for("the next one", || edge.running().len() == 2);
    signal(pid, Signal::TERM);
    assert!(edge.machine.roles.pop().unwrap().wait().unwrap().success());
    wait_for("the end of the next one", || edge.running().is_empty());
    assert!(edge.heard_nothing(), "{}", edge.log());
}

#[test]
fn a_program_that_is_no_edge_keeps_none_of_the_sockets() {
    let mut edge = Edge::joined();
    let pid = edge.start();
    let child = edge.machine.dir.path().join("child");
    std::fs::remove_file(&edge.program).unwrap();
    // It leaves a process that has its standard input.
    let script = format!(
        "#!/bin/sh\nexec 3<&0\nsleep 1000 <&3 >/dev/null 2>&1 &\necho $! >'{0}.new'\nmv '{0}.new' '{0}'\n",
        child.display()
    );
    std::fs::write(&edge.program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&edge.program, mode).unwrap();
    signal(pid, Signal::USR2);
    wait_for("the program", || child.exists());
    assert!(edge.answers());
    signal(pid, Signal::TERM);
    assert!(edge.machine.roles.pop().unwrap().wait().unwrap().success());
    // Those that systemd is to keep are not waiting for it either.
    assert!(edge.heard_nothing());
    for address in [edge.http, edge.tcp] {
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let child = std::fs::read_to_string(child).unwrap();
    signal(child.trim().parse().unwrap(), Signal::KILL);
}

#[test]
fn an_edge_hands_over_where_nobody_reads_what_systemd_is_told() {
    let mut edge = Edge::joined();
    let pid = edge.start();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    let notified = edge.machine.dir.path().join("notify");
    while filler.send_to(b"WATCHDOG=1", &notified).is_ok() {}
    signal(pid, Signal::USR2);
    wait_for("the next one alone", || {
        assert!(edge.answers() && echoes(&mut ask(edge.tcp, "")));
        edge.running().iter().all(|running| *running != pid)
    });
    assert!(edge.answers() && edge.is_ready());
    let line = "cannot tell systemd";
    assert!(edge.log().contains(line), "{}", edge.log());
    assert!(edge.machine.roles.pop().unwrap().wait().unwrap().success());
    let [next] = edge.running()[..] else {
        panic!("{}", edge.log());
    };
    signal(next, Signal::TERM);
    wait_for("its end", || edge.running().is_empty());
}

fn make_fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

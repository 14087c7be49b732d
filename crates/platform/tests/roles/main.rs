//! A machine is set up by one command, and its role then starts without flags: `server init`, `edge join`, and what they keep.
//! (`node join` needs what guests boot: the tests of the cluster go through it.)
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rejoin;
mod reload;

use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A machine: a folder for each role, and the roles that run, ended with it.
struct Machine {
    dir: tempfile::TempDir,
    roles: Vec<Child>,
    /// The UDP port of its WireGuard: tests run side by side.
    overlay_port: String,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for role in &mut self.roles {
            let _ = role.kill();
            let _ = role.wait();
        }
        for edge in self.edges() {
            let edge = rustix::process::Pid::from_raw(edge).unwrap();
            let _ = rustix::process::kill_process(edge, rustix::process::Signal::KILL);
        }
        // Its link to the instances of other machines.
        let mut down = self.command(&["edge", "down", "--data-dir"]);
        let _ = down.arg(self.folder("edge")).status();
    }
}

impl Machine {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            roles: Vec::new(),
            overlay_port: {
                let free = UdpSocket::bind("[::]:0").unwrap();
                free.local_addr().unwrap().port().to_string()
            },
        }
    }

    fn folder(&self, role: &str) -> PathBuf {
        self.dir.path().join(role)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_platform"));
        command
            .args(words)
            .env("PLATFORM_CONFIG", self.folder("server/client.json"))
            .env_remove("PLATFORM_TOKEN")
            .stdin(Stdio::null());
        command
    }

    /// A command of a role with its data folder.
    fn role(&self, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.arg("--data-dir").arg(self.folder(words[0]));
        if words.get(1) == Some(&"join") {
            command.args(["--overlay-port", &self.overlay_port]);
        }
        command
    }

    /// Starts a role without any flag but its data folder.
    fn start(&mut self, role: &str) {
        let log = std::fs::File::create(self.dir.path().join(format!("{role}.log"))).unwrap();
        let mut command = self.role(&[role]);
        command.stderr(log).stdout(Stdio::null());
        self.roles.push(command.spawn().unwrap());
    }

    /// The edges on its folder that run, whoever started them.
    fn edges(&self) -> Vec<i32> {
        let folder = self.folder("edge");
        let is_one = |pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = words.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&&b"edge"[..])
                && words.contains(&folder.as_os_str().as_encoded_bytes())
        };
        let processes = std::fs::read_dir("/proc").unwrap();
        let pids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.filter(is_one).collect()
    }

    fn options(&self, role: &str) -> Value {
        let text = std::fs::read(self.folder(role).join("options.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

/// Exit status, standard output, standard error.
fn run(mut command: Command) -> (i32, String, String) {
    ended(command.output().unwrap())
}

fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn done(command: Command) -> (String, String) {
    let (status, stdout, stderr) = run(command);
    assert_eq!(status, 0, "{stdout}{stderr}");
    (stdout, stderr)
}

fn with(mut command: Command, words: &[&str]) -> Command {
    command.args(words);
    command
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            Instant::now() < end,
            "{what} did not come within {PATIENCE:?}"
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_machine_becomes_a_server_and_an_edge_by_one_command_each() {
    let mut machine = Machine::new();
    let (server, edge) = (free_address(), free_address());
    let url = format!("https://{server}");

    let init = |more: &[&str]| with(machine.role(&["server", "init"]), more);
    let (stdout, stderr) = done(init(&["--listen", &server, "--name", "cp.example.com"]));
    assert!(stdout.contains("cluster "), "{stdout}");
    assert!(stdout.contains("sha256:"), "{stdout}");
    assert!(stdout.contains(&url), "{stdout}");
    assert!(stderr.contains("platform server --data-dir"), "{stderr}");
    assert!(TcpStream::connect(&server).is_err(), "init listens nowhere");
    let kept = machine.options("server");
    assert_eq!(kept["listen"], server);
    assert_eq!(kept["names"], serde_json::json!(["cp.example.com"]));
    for file in ["options.json", "client.json", "key-encryption-key.json"] {
        assert_eq!(mode(&machine.folder("server").join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(&machine.folder("server")), 0o700);

    // Another init is refused; with options it keeps them, and the cluster is the same.
    let (status, _, stderr) = run(init(&[]));
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("has a server already"), "{stderr}");
    let (_, stderr) = done(init(&["--name", "cp2.example.com"]));
    assert!(stderr.contains("are kept"), "{stderr}");
    assert_eq!(
        machine.options("server")["names"],
        serde_json::json!(["cp2.example.com"])
    );
    assert_eq!(machine.options("server")["listen"], server);
    for wrong in [
        ["--advertise", "http://cp.example.com:7400"],
        ["--advertise", "https://"],
        ["--name", "https://cp.example.com"],
        ["--name", ""],
    ] {
        let (status, _, stderr) = run(init(&wrong));
        assert_eq!(status, 2, "{wrong:?}: {stderr}");
    }
    assert!(machine.options("server").get("advertise").is_none());

    machine.start("server");
    wait_for("the server", || run(machine.command(&["nodes"])).0 == 0);

    // A token by standard input; then the edge listens where `join` said, without a flag.
    let (token, hint) = done(machine.command(&["tokens", "create", "--role", "edge"]));
    assert!(hint.contains("platform edge join"), "{hint}");
    let join = |more: &[&str]| {
        with(
            machine.role(&["edge", "join", "--server", &url, "--listen", &edge]),
            more,
        )
    };
    let mut child = join(&["--token-file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", child.id())).unwrap();
    assert!(!cmdline.contains(token.trim()), "{cmdline}");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(token.as_bytes())
        .unwrap();
    let (status, stdout, stderr) = ended(child.wait_with_output().unwrap());
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.starts_with("joined as e1 ("), "{stdout}");
    assert_eq!(mode(&machine.folder("edge")), 0o700);
    let listener: SocketAddr = edge.parse().unwrap();
    machine.start("edge");
    wait_for("the edge", || TcpStream::connect(listener).is_ok());

    // Asked again, it is the same edge, whatever the token, and other options are kept.
    let other = free_address();
    let mut again = machine.role(&["edge", "join", "--listen", &other, "--region", "elsewhere"]);
    again.env("PLATFORM_TOKEN", "nonsense");
    let (_, stderr) = done(again);
    assert!(stderr.contains("is e1 ("), "{stderr}");
    assert!(
        stderr.contains("warning: --region elsewhere is not used"),
        "{stderr}"
    );
    assert_eq!(machine.options("edge")["listen"], other);

    // Another on the same folder is refused; nor is it taken down, or joins anew, while it runs.
    let (new, _) = done(machine.command(&["tokens", "create", "--role", "edge"]));
    for words in [
        &["edge"][..],
        &["edge", "down"],
        &["edge", "join", "--again"],
    ] {
        let mut command = machine.role(words);
        command.env("PLATFORM_TOKEN", new.trim());
        let (status, _, stderr) = run(command);
        assert_eq!(status, 1, "{words:?}: {stderr}");
        assert!(stderr.contains("another edge runs on "), "{stderr}");
        assert!(stderr.contains("systemctl stop platform-edge"), "{stderr}");
    }
    assert!(TcpStream::connect(listener).is_ok());

    // Garbage in its files: which one, and what to do.
    let mut running = machine.roles.pop().unwrap();
    running.kill().unwrap();
    running.wait().unwrap();
    let file = machine.folder("edge").join("member.json");
    let member = std::fs::read(&file).unwrap();
    std::fs::write(&file, "\0garbage").unwrap();
    for words in [&["edge"][..], &["edge", "join"]] {
        let (status, _, stderr) = run(machine.role(words));
        assert_eq!(status, 1, "{words:?}: {stderr}");
        assert!(stderr.contains(file.to_str().unwrap()), "{stderr}");
        assert!(stderr.contains("edge join --again"), "{stderr}");
    }
    std::fs::write(&file, member).unwrap();
}

#[test]
fn an_edge_that_joins_anew_keeps_its_options_and_is_who_it_was_where_it_is_refused() {
    let mut machine = Machine::new();
    let (server, edge) = (free_address(), free_address());
    done(with(
        machine.role(&["server", "init"]),
        &["--listen", &server],
    ));
    machine.start("server");
    wait_for("the server", || run(machine.command(&["nodes"])).0 == 0);
    let token = |more: &[&str]| {
        let create = machine.command(&["tokens", "create"]);
        done(with(create, more)).0.trim().to_owned()
    };
    let join = |words: &[&str], token: &str| {
        let mut join = with(machine.role(&["edge", "join"]), words);
        join.env("PLATFORM_TOKEN", token);
        join
    };
    // Named like an edge that comes later.
    let (stdout, _) = done(join(
        &["--listen", &edge, "--name", "e2"],
        &token(&["--role", "edge"]),
    ));
    assert_eq!(stdout, "joined as e1 (e2-2)\n");
    let member = || std::fs::read_to_string(machine.folder("edge/member.json")).unwrap();
    let before = member();

    // A file that is not there, a token that is none, and one that lets nobody in.
    let missing = with(
        machine.role(&["edge", "join", "--again"]),
        &["--token-file", "/nonexistent"],
    );
    let (status, _, stderr) = run(missing);
    assert_eq!(status, 1, "{stderr}");
    assert_eq!(member(), before);
    for token in ["nonsense", &token(&["--role", "node"])] {
        let (status, _, stderr) = run(join(&["--again"], token));
        assert_eq!(status, 1, "{stderr}");
        assert_eq!(member(), before, "{stderr}");
    }

    let (stdout, _) = done(join(
        &["--again"],
        &token(&["--role", "edge", "--replaces", "e1"]),
    ));
    assert_eq!(stdout, "joined as e1 (e2-2)\n");
    assert_ne!(member(), before);
    assert_eq!(machine.options("edge")["listen"], edge);

    // Revoked and removed by name.
    done(machine.command(&["edges", "revoke", "e2-2", "--no-wait"]));
    let (_, stderr) = done(machine.command(&["edges", "remove", "e2-2"]));
    assert!(stderr.contains("e2-2 (e1) is removed"), "{stderr}");
}

/// As systemd does with the store of descriptors of a unit.
#[test]
fn an_edge_that_starts_again_refuses_no_client() {
    let mut machine = Machine::new();
    let (server, edge) = (free_address(), free_address());
    done(with(
        machine.role(&["server", "init"]),
        &["--listen", &server],
    ));
    machine.start("server");
    wait_for("the server", || run(machine.command(&["nodes"])).0 == 0);
    let (token, _) = done(machine.command(&["tokens", "create", "--role", "edge"]));
    let url = format!("https://{server}");
    let mut join = machine.role(&["edge", "join", "--server", &url, "--listen", &edge]);
    join.env("PLATFORM_TOKEN", token.trim());
    done(join);

    let name = machine.dir.path().join("notify");
    let notified = UnixDatagram::bind(&name).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = machine.role(&["edge"]);
    command.env("NOTIFY_SOCKET", &name).stderr(Stdio::null());
    machine.roles.push(command.spawn().unwrap());
    let (message, kept) = receive(&notified);
    assert_eq!(message, "FDSTORE=1\nFDNAME=listener");
    let kept = kept.unwrap();
    assert_eq!(receive(&notified).0, "READY=1");
    let get = || {
        let mut stream = TcpStream::connect(&edge).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        stream
    };
    let answered = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(answered(get()).starts_with("HTTP/1."));

    let mut first = machine.roles.pop().unwrap();
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(first.wait().unwrap().success());
    // Nobody accepts, and nobody is refused.
    let waits = get();
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_PID=$$ exec \"$@\" 3<&0", "sh"]);
    let again = machine.role(&["edge"]);
    command.arg(again.get_program()).args(again.get_args());
    command.env("LISTEN_FDS", "1").env("NOTIFY_SOCKET", &name);
    command.stdin(kept).stderr(Stdio::null());
    machine.roles.push(command.spawn().unwrap());
    assert_eq!(receive(&notified).0, "READY=1", "nothing new is kept");
    assert!(answered(waits).starts_with("HTTP/1."));
    // What it starts has not the socket: the process of WireGuard would listen when this one does no more.
    let edge = machine.roles.last().unwrap().id();
    let of_socket = std::fs::read_to_string(format!("/proc/{edge}/fdinfo/3")).unwrap();
    let flags = of_socket
        .lines()
        .find_map(|line| line.strip_prefix("flags:"));
    let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    let closed_on_exec = rustix::fs::OFlags::CLOEXEC.bits();
    assert_eq!(flags & closed_on_exec, closed_on_exec, "{of_socket}");
}

/// A message to systemd, and the socket that came with it.
fn receive(notified: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut text = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut text)];
    let received = recvmsg(notified, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let socket = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let message = String::from_utf8(text[..received.bytes].to_vec()).unwrap();
    (message, socket)
}

/// A full disk under the log, a program behind a pipe that has ended: what is not written is lost, and the role goes on.
#[test]
fn a_log_that_cannot_be_written_ends_no_role() {
    let mut machine = Machine::new();
    let server = free_address();
    done(with(
        machine.role(&["server", "init"]),
        &["--listen", &server],
    ));
    let (reader, log) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = machine.role(&["server"]);
    command.stderr(log).stdout(Stdio::null());
    machine.roles.push(command.spawn().unwrap());
    wait_for("the server", || run(machine.command(&["nodes"])).0 == 0);
    let mut role = machine.roles.pop().unwrap();
    assert_eq!(role.try_wait().unwrap(), None);
    let pid = i32::try_from(role.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(role.wait().unwrap().success());
}

#[test]
fn a_join_without_a_token_says_where_one_comes_from() {
    let machine = Machine::new();
    let join = |more: &[&str]| {
        let url = format!("https://{}", free_address());
        with(machine.role(&["edge", "join", "--server", &url]), more)
    };
    let (status, _, stderr) = run(join(&[]));
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("no token was given"), "{stderr}");
    assert!(stderr.contains("--token-file"), "{stderr}");

    let (status, _, stderr) = run(join(&["--token-file", "/nonexistent/token"]));
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("/nonexistent/token"), "{stderr}");

    // Standard input is empty.
    let (status, _, stderr) = run(join(&["--token-file", "-"]));
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("standard input has no token"), "{stderr}");

    // A token on the command line is refused before anything is done.
    let (status, _, stderr) = run(join(&["--token", "pt1_abc"]));
    assert_eq!(status, 2, "{stderr}");
    assert!(!machine.folder("edge").join("member.json").exists());
}

#[test]
fn a_role_with_options_of_a_newer_version_does_not_start_without_them() {
    let machine = Machine::new();
    std::fs::create_dir(machine.folder("server")).unwrap();
    let newer = r#"{"version": 99, "listen": "127.0.0.1:1"}"#;
    std::fs::write(machine.folder("server").join("options.json"), newer).unwrap();
    let (status, _, stderr) = run(machine.role(&["server"]));
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("version 99"), "{stderr}");
    let (status, _, _) = run(with(
        machine.role(&["server", "init"]),
        &["--listen", "127.0.0.1:0"],
    ));
    assert_eq!(status, 1);
    let kept = std::fs::read_to_string(machine.folder("server").join("options.json")).unwrap();
    assert_eq!(kept, newer);
}

#[test]
fn doctor_names_what_is_missing_for_people_and_programs() {
    let machine = Machine::new();
    let (status, stdout, stderr) = run(machine.command(&["doctor", "--role", "server"]));
    let (json_status, json, _) =
        run(machine.command(&["doctor", "--role", "server", "--format", "json"]));
    let findings: Vec<Value> = serde_json::from_str(&json).unwrap();
    let missing = findings
        .iter()
        .any(|finding| finding["severity"] == "missing");
    for (status, told) in [(status, &stderr), (json_status, &json)] {
        assert_eq!(status, i32::from(missing), "{told}");
    }
    for finding in &findings {
        let check = finding["check"].as_str().unwrap();
        assert!(stdout.contains(check), "{check}: {stdout}");
        let is_ok = finding["severity"] == "ok";
        assert_eq!(finding["mend"].is_null(), is_ok, "{finding}");
    }
    for check in ["memory", "disk", "clock", "server's port"] {
        assert!(
            findings.iter().any(|finding| finding["check"] == check),
            "{json}"
        );
    }
}

#[test]
fn every_command_has_a_man_page_and_a_completion() {
    let machine = Machine::new();
    done(machine.command(&["manual", machine.dir.path().to_str().unwrap()]));
    for page in [
        "platform.1",
        "platform-node-join.1",
        "platform-server-init.1",
        "platform-doctor.1",
    ] {
        let text = std::fs::read_to_string(machine.dir.path().join(page)).unwrap();
        assert!(text.contains(".SH NAME"), "{page}: {text}");
    }
    assert!(!machine.dir.path().join("platform-manual.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let (script, _) = done(machine.command(&["completions", shell]));
        assert!(script.contains("doctor"), "{shell}");
    }
}

//! A whole cluster for one test: a real registry, a server, a node, an edge, on free ports of the
//! loopback. Ended by pid, however the test ends.
//!
//! Everything lies where a newcomer's clone may lie: in a folder that others may not enter, with a blank in its
//! path, made under umask 077. The programs and the guest are copied there, in the layout of `target`, and the
//! roles find them by themselves.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The one switch that leaves these tests out, on a machine where they cannot run.
const SKIP: &str = "PLATFORM_SKIP_PRIVILEGED_TESTS";
/// Longest wait for a condition: three microVMs boot under TCG on two busy cores.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pause between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) const HOST: &str = "hello.localhost";
/// The programs, relative to the cluster's folder.
const PLATFORM: &str = "target/release/platform";
pub(crate) const VSOCK_DEVICE: &str = "target/release/vhost-device-vsock";

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The manifest of the example app, with lines replaced.
pub(crate) fn manifest(changes: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(top().join("examples/hello/platform.toml")).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the example's manifest has no {from}");
        text = text.replace(from, to);
    }
    text
}

/// The exit status and output of a command.
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    server: SocketAddr,
    edge: SocketAddr,
    /// Where the edge answers by HTTPS.
    edge_tls: SocketAddr,
    registry: SocketAddr,
    /// Where each role tells its metrics.
    metrics: [(&'static str, SocketAddr); 3],
    children: Vec<(&'static str, Child)>,
    vms: BTreeSet<String>,
    /// File systems that were mounted for it.
    mounts: Vec<PathBuf>,
    node_arguments: Vec<String>,
    /// The example's image, `registry/repository@digest`.
    pub(crate) image: String,
}

impl Cluster {
    /// Starts everything but an app. Nothing when these tests are switched off.
    pub(crate) fn start() -> Option<Self> {
        Self::start_prepared(&[], |_| {})
    }

    /// The same, on a machine that is prepared first: the folders of the roles are not there yet.
    pub(crate) fn start_on(prepare: impl FnOnce(&mut Self)) -> Option<Self> {
        Self::start_prepared(&[], prepare)
    }

    /// [`Self::start`], with further arguments for the node.
    pub(crate) fn start_with(node_arguments: &[&str]) -> Option<Self> {
        Self::start_prepared(node_arguments, |_| {})
    }

    fn start_prepared(node_arguments: &[&str], prepare: impl FnOnce(&mut Self)) -> Option<Self> {
        if std::env::var_os(SKIP).is_some() {
            eprintln!("SKIPPED: {SKIP} is set");
            return None;
        }
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root; {SKIP}=1 leaves this test out"
        );
        let [
            server,
            edge,
            edge_tls,
            registry,
            of_server,
            of_node,
            of_edge,
        ] = free_ports();
        let mut cluster = Self {
            dir: tempfile::Builder::new()
                .prefix("a clone ")
                .tempdir_in("/tmp")
                .unwrap(),
            server,
            edge,
            edge_tls,
            registry,
            metrics: [("server", of_server), ("node", of_node), ("edge", of_edge)],
            children: Vec::new(),
            vms: BTreeSet::new(),
            mounts: Vec::new(),
            node_arguments: node_arguments.iter().map(|&word| word.to_owned()).collect(),
            image: String::new(),
        };
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        prepare(&mut cluster);
        cluster.copy_programs();
        cluster.start_registry();
        cluster.image = cluster.push("hello");
        cluster.start_role("server");
        wait_for("the server", || cluster.cli(&["nodes"]).status == 0);
        for role in ["node", "edge"] {
            cluster.join(role);
        }
        wait_for("the node", || {
            let nodes = cluster.json(&["nodes"]);
            nodes
                .as_array()
                .unwrap()
                .iter()
                .any(|node| node["online"] == true)
        });
        wait_for("the edge", || TcpStream::connect(cluster.edge).is_ok());
        Some(cluster)
    }

    /// A file of the cluster's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives a role's data folder an ext4 of its own, of so many MiB.
    pub(crate) fn mount_small_disk(&mut self, role: &str, mebibytes: u64) {
        let (file, folder) = (self.path("small.img"), self.path(role));
        std::fs::File::create(&file)
            .unwrap()
            .set_len(mebibytes << 20)
            .unwrap();
        std::fs::create_dir(&folder).unwrap();
        let run = |command: &mut Command| {
            command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
            let output = command.output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {stderr}");
        };
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&file)
            .arg(&folder));
        self.mounts.push(folder);
    }

    /// Copies the programs and the guest, in the layout of `target`.
    fn copy_programs(&self) {
        std::fs::create_dir_all(self.path("target/release")).unwrap();
        std::fs::create_dir_all(self.path("target/guest")).unwrap();
        let program = |from: &Path, to: PathBuf| {
            std::fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
        };
        program(
            Path::new(env!("CARGO_BIN_EXE_platform")),
            self.path(PLATFORM),
        );
        // `make install` puts the vsock device there.
        let device = top().join("target/tools/bin/vhost-device-vsock");
        program(&device, self.path(VSOCK_DEVICE));
        for file in [
            "vmlinuz",
            "initramfs.cpio",
            "vmlinux",
            "initramfs-builtin.cpio",
        ] {
            let from = top().join("target/guest").join(file);
            if from.exists() {
                std::fs::copy(from, self.path("target/guest").join(file)).unwrap();
            }
        }
    }

    /// The program, with an environment of its own.
    fn platform(&self) -> Command {
        let mut command = Command::new(self.path(PLATFORM));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command.env_remove("PLATFORM_TOKEN");
        command
    }

    fn start_registry(&mut self) {
        let config = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {} }}\n",
            self.path("registry").display(),
            self.registry,
        );
        let file = self.path("registry.yml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        self.spawn("registry", command);
        wait_for("the registry", || TcpStream::connect(self.registry).is_ok());
    }

    /// Makes one of the example images, if it is not made yet, and pushes it.
    pub(crate) fn push(&self, name: &str) -> String {
        let script = top().join("examples/images.sh");
        let output = Command::new(script)
            .arg(name)
            .arg(self.registry.to_string())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "examples/images.sh {name}: {stderr}"
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Pushes one of the example images with other files and another config.
    pub(crate) fn push_changed(
        &self,
        name: &str,
        files: &dyn Fn(&Path),
        config: &[&str],
    ) -> String {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program}: {stderr}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let script = top().join("examples/images.sh").display().to_string();
        let original = run(&script, &[name]);
        let (layout, tag) = original.rsplit_once(':').unwrap();
        let [changed, bundle, digest] =
            ["changed", "bundle", "digest"].map(|name| self.path(name).display().to_string());
        run("cp", &["-rT", layout, &changed]);
        let image = format!("{changed}:{tag}");
        run("umoci", &["unpack", "--image", &image, &bundle]);
        files(&Path::new(&bundle).join("rootfs"));
        run("umoci", &["repack", "--image", &image, &bundle]);
        run(
            "umoci",
            &[&["config", "--image", image.as_str()][..], config].concat(),
        );
        let reference = format!("{}/changed", self.registry);
        let from = format!("oci:{image}");
        let to = format!("docker://{reference}:{tag}");
        run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--digestfile",
                &digest,
                &from,
                &to,
            ],
        );
        let digest = std::fs::read_to_string(digest).unwrap();
        for folder in [changed, bundle] {
            std::fs::remove_dir_all(folder).unwrap();
        }
        format!("{reference}@{}", digest.trim())
    }

    fn join(&mut self, role: &'static str) {
        let said = self.cli(&["tokens", "create", "--role", role]);
        assert_eq!(said.status, 0, "{}", said.stderr);
        let mut command = self.role(role);
        if role == "node" {
            // As a machine with the package does: `node join` once, then a start without flags.
            self.join_node(said.stdout.trim());
            command = self.platform();
            command.arg("node").arg("--data-dir").arg(self.path("node"));
            command.arg("--run-dir").arg(self.path("run"));
        } else {
            command.env("PLATFORM_TOKEN", said.stdout.trim());
        }
        self.spawn(role, command);
    }

    fn join_node(&self, token: &str) {
        let file = self.path("token");
        std::fs::write(&file, token).unwrap();
        let mut command = self.role_by(&["node", "join", "--token-file"], &[file.as_path()]);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "node join: {stderr}");
        assert_eq!(output.stdout, b"joined as n1 (test)\n");
        std::fs::remove_file(file).unwrap();
    }

    fn role(&self, role: &str) -> Command {
        self.role_by(&[role], &[])
    }

    /// A command of a role, with its options behind it.
    fn role_by(&self, words: &[&str], paths: &[&Path]) -> Command {
        let server = format!("https://{}", self.server);
        let mut command = self.platform();
        command.args(words).args(paths);
        command.arg("--data-dir").arg(self.path(words[0]));
        match words[0] {
            "server" => command.args(["--listen", &self.server.to_string()]),
            "node" => command
                .args(["--server", &server, "--name", "test", "--run-dir"])
                .arg(self.path("run"))
                .args(&self.node_arguments),
            _ => command
                .args(["--server", &server, "--listen", &self.edge.to_string()])
                .args(["--listen-tls", &self.edge_tls.to_string()]),
        };
        let metrics = self.metrics(words[0]).to_string();
        command.args(["--metrics-listen", &metrics]);
        // Other clusters run on this machine at the same time.
        match words[0] {
            "node" => command.args(["--overlay-port", &self.server.port().to_string()]),
            "edge" => command.args(["--overlay-port", &self.edge.port().to_string()]),
            _ => &mut command,
        };
        command
    }

    /// Starts a role that joined before (or the server).
    pub(crate) fn start_role(&mut self, role: &'static str) {
        let command = self.role(role);
        self.spawn(role, command);
    }

    fn spawn(&mut self, name: &'static str, mut command: Command) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.log")))
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start the {name}: {error}"));
        self.children.push((name, child));
    }

    /// kill -9 of a role.
    pub(crate) fn kill_role(&mut self, role: &str) {
        let at = self
            .children
            .iter()
            .position(|(name, _)| *name == role)
            .unwrap();
        let (_, mut child) = self.children.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The command line, to be run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.platform();
        command
            .args(arguments)
            .env("PLATFORM_CONFIG", self.path("server/client.json"))
            .current_dir(self.dir.path());
        command
    }

    /// Starts the command line; it is killed when what is returned is dropped, however the test ends. Its standard error
    /// goes to a file: whoever reads the test's own output waits for all that have it open.
    pub(crate) fn start_cli(&self, arguments: &[&str], stdout: impl Into<Stdio>) -> Running {
        let errors = std::fs::File::create(self.path("started.stderr")).unwrap();
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(stdout).stderr(errors);
        Running(command.spawn().unwrap())
    }

    /// Runs the command line.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Said {
        Self::run_command(self.command(arguments))
    }

    /// Runs the command line with the colours that a terminal gets.
    pub(crate) fn cli_on_a_terminal(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(arguments);
        command.env("CLICOLOR_FORCE", "1");
        Self::run_command(command)
    }

    fn run_command(mut command: Command) -> Said {
        let output = command.output().unwrap();
        Said {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The pid of a role.
    pub(crate) fn pid(&self, role: &str) -> u32 {
        let child = self.children.iter().find(|(name, _)| *name == role);
        child.unwrap().1.id()
    }

    /// Runs the command line, which must succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let said = self.cli(arguments);
        assert_eq!(
            said.status, 0,
            "platform {arguments:?}: {}\n{}",
            said.stdout, said.stderr
        );
        said.stdout
    }

    /// The JSON that a command prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--format", "json"]);
        serde_json::from_str(&self.ok(&arguments)).unwrap()
    }

    /// Deploys a manifest with an image.
    pub(crate) fn deploy(&self, manifest: &str, image: &str) -> Said {
        let file = self.path("manifest.toml");
        std::fs::write(&file, manifest).unwrap();
        self.cli(&["deploy", file.to_str().unwrap(), "--image", image])
    }

    /// The instances that are not terminating, by `ps`.
    pub(crate) fn instances(&self) -> Vec<Value> {
        let all = self.json(&["ps"]);
        let here = |row: &&Value| row["terminating"] == false;
        all.as_array()
            .unwrap()
            .iter()
            .filter(here)
            .cloned()
            .collect()
    }

    /// Ids of the ready instances of a process.
    pub(crate) fn ready(&self, process: &str) -> Vec<String> {
        let ready = |row: &Value| row["process"] == process && row["report"]["ready"] == true;
        let id = |row: &Value| row["id"].as_str().unwrap().to_owned();
        self.instances()
            .iter()
            .filter(|row| ready(row))
            .map(id)
            .collect()
    }

    /// GET from the edge: status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let (status, body) = get(self.edge, HOST, path);
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// Waits until the edge serves the example app: it hears of a route shortly after the deploy is done.
    pub(crate) fn wait_until_served(&self) {
        wait_for("the edge to serve the app", || {
            self.get("/healthz").0 == 200
        });
    }

    /// Where a role tells its metrics.
    pub(crate) fn metrics(&self, role: &str) -> SocketAddr {
        let of_role = self.metrics.iter().find(|(name, _)| *name == role);
        of_role.unwrap().1
    }

    pub(crate) fn edge(&self) -> SocketAddr {
        self.edge
    }

    /// Notes every instance that has a folder in the run folder.
    fn note_vms(&mut self) {
        let Ok(entries) = std::fs::read_dir(self.path("run")) else {
            return;
        };
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        self.vms.extend(names);
    }

    /// Traces of this cluster on the machine: processes, links, namespaces, mounts.
    fn traces(&self) -> Vec<String> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let vms = self.vms.iter().map(|id| format!("instance-{id}"));
        let mut traces: Vec<_> = vms
            .chain([dir.clone()])
            .flat_map(|name| processes(&name))
            .map(|(pid, line)| format!("process {pid}: {line}"))
            .collect();
        let member = std::fs::read_to_string(self.path("node/member.json")).unwrap_or_default();
        let member: Value = serde_json::from_str(&member).unwrap_or_default();
        let prefix = member["cluster_prefix"]
            .as_str()
            .unwrap_or("none")
            .trim_end_matches("::");
        for arguments in [&["-6", "-o", "addr"][..], &["-6", "route"]] {
            let said = Command::new("ip").args(arguments).output().unwrap().stdout;
            let lines = String::from_utf8_lossy(&said).into_owned();
            traces.extend(
                lines
                    .lines()
                    .filter(|line| line.contains(prefix))
                    .map(str::to_owned),
            );
        }
        let said = Command::new("ip")
            .args(["netns", "list"])
            .output()
            .unwrap()
            .stdout;
        // The namespace is named after the cluster's last 24 bits: `fd12:3456:789a` -> `56789a`.
        let groups: Vec<_> = prefix
            .split(':')
            .map(|group| format!("{group:0>4}"))
            .collect();
        let bits = groups.concat();
        let name = format!("platform-{}", &bits[bits.len().saturating_sub(6)..]);
        let namespaces = String::from_utf8_lossy(&said).into_owned();
        traces.extend(
            namespaces
                .lines()
                .filter(|line| line.starts_with(&name))
                .map(str::to_owned),
        );
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        // A blank is written in octal there (proc(5)).
        let dir = dir.replace(' ', "\\040");
        traces.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&dir))
                .map(str::to_owned),
        );
        traces
    }

    /// Whether a text lies in a file of the server or the node, disks and logs of guests left out.
    pub(crate) fn is_on_disk(&self, text: &str) -> bool {
        let files = Command::new("grep")
            .args(["-rlaF", "--exclude=*.ext4", "--exclude-dir=log", text])
            .args([self.path("server"), self.path("node"), self.path("run")])
            .output()
            .unwrap();
        files.status.success()
    }

    /// The log of a role.
    pub(crate) fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{role}.log"))).unwrap()
    }

    /// Ends the cluster as an operator does; nothing of it may be left.
    pub(crate) fn down(mut self) {
        self.note_vms();
        assert!(
            !self.traces().is_empty(),
            "traces are found while the cluster is up"
        );
        self.end();
        let left = self.traces();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    fn end(&mut self) {
        for (_, mut child) in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let down = self
            .platform()
            .args(["edge", "down", "--data-dir"])
            .arg(self.path("edge"))
            .output()
            .unwrap();
        if !down.status.success() {
            eprintln!("edge down: {}", String::from_utf8_lossy(&down.stderr));
        }
        let down = self
            .platform()
            .args(["node", "down", "--data-dir"])
            .arg(self.path("node"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .output()
            .unwrap();
        if !down.status.success() {
            eprintln!("node down: {}", String::from_utf8_lossy(&down.stderr));
        }
        for folder in self.mounts.drain(..) {
            let unmounted = Command::new("umount").arg(&folder).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("{} is still mounted", folder.display());
            }
        }
    }
}

/// A command that runs beside the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for role in ["server", "node", "edge"] {
                let log = std::fs::read_to_string(self.path(&format!("{role}.log")));
                eprintln!("--- {role}\n{}", log.unwrap_or_default());
            }
        }
        self.end();
    }
}

/// The pid of an instance's VMM.
pub(crate) fn vmm(id: &str) -> i32 {
    vmm_of(id).unwrap_or_else(|| panic!("no VMM of {id}"))
}

/// The pid of an instance's VMM, if it has one now.
pub(crate) fn vmm_of(id: &str) -> Option<i32> {
    let vmms = processes(&format!("instance-{id}"));
    vmms.first().map(|(pid, _)| *pid)
}

fn free_ports<const N: usize>() -> [SocketAddr; N] {
    // All at once, so that they differ.
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    std::array::from_fn(|at| listeners[at].local_addr().unwrap())
}

/// Processes whose command line names this.
fn processes(named: &str) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(named) {
            found.push((pid, line));
        }
    }
    found
}

/// Waits until the condition holds.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// One GET; the whole body.
pub(crate) fn get(address: SocketAddr, host: &str, path: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head_end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a whole head");
    let head = String::from_utf8_lossy(&answer[..head_end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_off(head_end + 4))
}

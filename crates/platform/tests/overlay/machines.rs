//! Machines for one test: network namespaces on a switch, with the real server, nodes and edge on them. Everything is in namespaces of the test's own, and ends
//! with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that the test takes.
const LIMIT: Duration = Duration::from_mins(60);
/// Longest wait for a condition: microVMs boot under TCG on two busy cores.
const PATIENCE: Duration = Duration::from_secs(240);
/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const SERVER: &str = "198.18.7.1:7400";
/// Another address of the server's machine.
pub(crate) const ALSO_SERVER: &str = "198.18.7.101";
const REGISTRY: &str = "198.18.7.1:5000";
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Runs the test `name` again, in namespaces of its own. True in those.
pub(crate) fn isolated(name: &str) -> bool {
    if !test_namespaces::is_inside() && !test_namespaces::is_skipped() {
        // Where there is still a network for its packages.
        let made = Command::new(top().join("examples/images.sh"))
            .arg("hello")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "examples/images.sh: {errors}");
    }
    test_namespaces::isolated_after(name, ":", LIMIT)
}

pub(crate) struct Machines {
    dir: tempfile::TempDir,
    children: BTreeMap<String, Child>,
    pub(crate) image: String,
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.children.keys() {
                eprintln!("--- {name}\n{}", self.log(name));
            }
        }
    }
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(line: &str) {
    run("ip", &line.split(' ').collect::<Vec<_>>());
}

/// Waits for a condition, and says what of.
pub(crate) fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

impl Machines {
    /// A server with a registry, so many nodes, and an edge.
    pub(crate) fn start(nodes: u32) -> Self {
        Self::start_with(nodes, None)
    }

    /// The same, with one node behind a NAT that forwards nothing to it.
    pub(crate) fn start_with(nodes: u32, behind_nat: Option<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["target/release", "guest"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let mut machines = Self {
            dir,
            children: BTreeMap::new(),
            image: String::new(),
        };
        run("ip", &["netns", "add", "switch"]);
        ip("-n switch link add switch type bridge");
        ip("-n switch link set switch up");
        Self::make_machine("server", 1);
        ip(&format!("-n server addr add {ALSO_SERVER}/24 dev eth0"));
        Self::make_machine("edge", 2);
        for node in 1..=nodes {
            let (name, number) = (format!("n{node}"), 10 + node);
            if behind_nat == Some(node) {
                Self::make_machine_behind_nat(&name, number);
            } else {
                Self::make_machine(&name, number);
            }
        }
        machines.start_server();
        for node in 1..=nodes {
            machines.join("node", &format!("n{node}"));
            // One after the other: names are then as numbers are.
            wait_for("a node that joined", || {
                machines.json(&["nodes"]).as_array().unwrap().len() == node as usize
            });
        }
        machines.join("edge", "edge");
        wait_for("every node", || {
            let all = machines.json(&["nodes"]);
            let all = all.as_array().unwrap();
            all.iter().filter(|node| node["online"] == true).count() == nodes as usize
        });
        machines
    }

    pub(crate) fn make_machine(name: &str, number: u32) {
        run("ip", &["netns", "add", name]);
        ip(&format!(
            "link add p{number} netns switch type veth peer name eth0 netns {name}"
        ));
        ip(&format!("-n switch link set p{number} master switch up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} addr add 198.18.7.{number}/24 dev eth0"));
    }

    /// A machine whose address nobody sees: a NAT has the one on the switch.
    fn make_machine_behind_nat(name: &str, number: u32) {
        Self::make_machine("nat", number);
        run("ip", &["netns", "add", name]);
        ip(&format!(
            "link add inner netns nat type veth peer name eth0 netns {name}"
        ));
        ip("-n nat addr add 192.168.77.1/24 dev inner");
        ip("-n nat link set inner up");
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} addr add 192.168.77.2/24 dev eth0"));
        ip(&format!("-n {name} route add default via 192.168.77.1"));
        let rules = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname eth0 masquerade random; }; }";
        run(
            "nsenter",
            &[
                "--net=/run/netns/nat",
                "sysctl",
                "-qw",
                "net.ipv4.ip_forward=1",
            ],
        );
        run("nsenter", &["--net=/run/netns/nat", "nft", rules]);
    }

    /// Cuts a machine off from all others, or ends that.
    pub(crate) fn cut(name: &str, off: bool) {
        let number = match name {
            "server" => 1,
            "edge" => 2,
            node => 10 + node.trim_start_matches('n').parse::<u32>().unwrap(),
        };
        let state = if off { "down" } else { "up" };
        ip(&format!("-n switch link set p{number} {state}"));
    }

    /// The name of the network namespace in which a node has its instances.
    pub(crate) fn namespace_of(node: &str) -> String {
        let links = run("ip", &["-n", node, "-brief", "link"]);
        let mut words = links.split_whitespace();
        let link = words.find(|word| word.starts_with("plat-")).unwrap();
        let suffix = link.split('@').next().unwrap().trim_start_matches("plat-");
        format!("platform-{suffix}")
    }

    /// Pings an address from the worker of an env until it is stopped.
    pub(crate) fn ping(&self, env: &str, address: &str) -> Pings {
        Pings::start(self.exec(env, "worker", &format!("ping -i 0.1 {address}")))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command on a machine. The mounts are the test's own: names of a node's namespace are found by its next agent.
    pub(crate) fn on(machine: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{machine}"))
            .arg("--")
            .arg(program);
        command.env(
            "PATH",
            format!("{}:{PATH}", top().join("target/tools/bin").display()),
        );
        command.env_remove("PLATFORM_TOKEN");
        command
    }

    fn spawn(&mut self, name: &str, mut command: Command) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.log")))
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children.insert(name.to_owned(), child);
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    fn start_server(&mut self) {
        let registry = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {REGISTRY} }}\n",
            self.path("registry").display(),
        );
        let file = self.path("registry.yml");
        fs::write(&file, registry).unwrap();
        let mut command = Self::on("server", "docker-registry");
        command.arg("serve").arg(file);
        self.spawn("registry", command);
        let mut command = Self::on("server", env!("CARGO_BIN_EXE_platform"));
        command.args([
            "server",
            // At all addresses of its machine, of which its URL names one.
            "--listen",
            "0.0.0.0:7400",
            "--advertise",
            &format!("https://{SERVER}"),
            "--insecure-registry",
            REGISTRY,
        ]);
        command.arg("--data-dir").arg(self.path("server"));
        self.spawn("server", command);
        wait_for("the server", || self.cli(&["nodes"]).0);
        let script = top().join("examples/images.sh");
        let output = Self::on("server", script.to_str().unwrap())
            .args(["hello", REGISTRY])
            .env(
                "PATH",
                std::env::var("PATH").unwrap_or_default() + ":" + PATH,
            )
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "examples/images.sh: {errors}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .clone_into(&mut self.image);
    }

    fn join(&mut self, role: &str, name: &str) {
        let token = self.ok(&["tokens", "create", "--role", role]);
        let mut command = self.role(role, name);
        command.env("PLATFORM_TOKEN", token.trim());
        self.spawn(name, command);
    }

    fn role(&self, role: &str, name: &str) -> Command {
        let mut command = Self::on(name, env!("CARGO_BIN_EXE_platform"));
        command.args([
            role,
            "--server",
            &format!("https://{SERVER}"),
            "--name",
            name,
        ]);
        command.arg("--data-dir").arg(self.path(name));
        if role == "node" {
            command
                .arg("--run-dir")
                .arg(self.path(&format!("{name}.run")));
            command.args(["--insecure-registry", REGISTRY, "--guest"]);
            command.arg(top().join("target/guest"));
        } else {
            command.args(["--listen", "198.18.7.2:80"]);
        }
        command
    }

    /// kill -9 of a role's own process. What it started goes on.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self.children.remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self, role: &str, name: &str) {
        let command = self.role(role, name);
        self.spawn(name, command);
    }

    /// The command line, to be run on the server's machine.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Self::on("server", env!("CARGO_BIN_EXE_platform"));
        command
            .args(arguments)
            .env("PLATFORM_CONFIG", self.path("server/client.json"))
            .stdin(Stdio::null())
            .current_dir(self.dir.path());
        command
    }

    /// Whether it succeeded, and all that it wrote.
    pub(crate) fn cli(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// The standard output of a command that succeeds.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "platform {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--format", "json"]);
        serde_json::from_str(&self.ok(&arguments)).unwrap()
    }

    pub(crate) fn deploy(&self, env: &str, manifest: &str) {
        let file = self.path(&format!("{env}.toml"));
        fs::write(&file, manifest).unwrap();
        let image = self.image.clone();
        self.ok(&[
            "deploy",
            file.to_str().unwrap(),
            "--env",
            env,
            "--image",
            &image,
        ]);
    }

    /// The command that runs a script in the instance of a process type.
    pub(crate) fn exec(&self, env: &str, process: &str, script: &str) -> Command {
        self.command(&[
            "exec",
            "--app",
            "hello",
            "--env",
            env,
            "--process",
            process,
            "--",
            "sh",
            "-c",
            script,
        ])
    }

    /// What a script in the worker writes, whether or not it succeeds.
    pub(crate) fn in_worker(&self, env: &str, script: &str) -> String {
        let output = self.exec(env, "worker", script).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// The addresses that a name has in the worker of an env.
    pub(crate) fn addresses(&self, env: &str, name: &str) -> Vec<String> {
        let text = self.in_worker(env, &format!("nslookup {name}"));
        let addresses = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Address: "));
        let addresses = addresses.filter(|address| address.starts_with("fd"));
        let mut addresses: Vec<_> = addresses.map(str::to_owned).collect();
        addresses.sort();
        addresses
    }

    /// The instances of an env: process type, the name of the node, address.
    pub(crate) fn instances(&self, env: &str) -> Vec<(String, String, String)> {
        let all = self.json(&["ps", "--app", "hello", "--env", env]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = all.as_array().cloned().unwrap_or_default();
        let row = |one: &Value| {
            (
                text(&one["process"]),
                text(&one["node_name"]),
                text(&one["address"]),
            )
        };
        all.iter().map(row).collect()
    }

    /// The name of the node on which the instance of this address is.
    pub(crate) fn node_of(&self, env: &str, address: &str) -> String {
        let mut instances = self.instances(env).into_iter();
        instances.find(|(.., at)| at == address).unwrap().1
    }
}

/// Answers to pings, and when each came.
pub(crate) struct Pings {
    child: Child,
    came: std::sync::Arc<std::sync::Mutex<Vec<Instant>>>,
}

impl Pings {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let came = std::sync::Arc::<std::sync::Mutex<Vec<Instant>>>::default();
        let seen = std::sync::Arc::clone(&came);
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(output).map_while(Result::ok) {
                if line.contains("seq=") {
                    seen.lock().unwrap().push(Instant::now());
                }
            }
        });
        let pings = Self { child, came };
        wait_for("answers to pings", || pings.count() > 5);
        pings
    }

    pub(crate) fn count(&self) -> usize {
        self.came.lock().unwrap().len()
    }

    /// Waits until more answers have come than now.
    pub(crate) fn wait_for_more(&self, what: &str) {
        let before = self.count();
        wait_for(what, || self.count() > before + 5);
    }

    /// Waits until no answer has come for so long.
    pub(crate) fn wait_for_silence(&self, how_long: Duration) {
        wait_for("silence", || {
            self.came.lock().unwrap().last().unwrap().elapsed() > how_long
        });
    }

    /// The longest time without an answer, from an instant on.
    pub(crate) fn longest_gap(&self, from: Instant) -> Duration {
        let came = self.came.lock().unwrap();
        let at = came.partition_point(|at| *at < from).saturating_sub(1);
        let gaps = came[at..].windows(2).map(|two| two[1] - two[0]);
        gaps.max().unwrap_or_default()
    }

    pub(crate) fn stop(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

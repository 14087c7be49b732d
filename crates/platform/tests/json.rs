//! What commands that change something print with `--format json`, by the command line: the thing as its list has it, or what is gone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use api::enrollment::{EnrollRole, Hardware};
use membership::{Applicant, Membership, UnderlayOptions};
use serde_json::{Value, json};

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A machine with a folder for each role, and its server, ended with it.
struct Machine {
    dir: tempfile::TempDir,
    server: Option<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Machine {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            server: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_platform"));
        command
            .args(words)
            .env("PLATFORM_CONFIG", self.path("server/client.json"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("PLATFORM_CONTEXT")
            .env_remove("PLATFORM_TOKEN")
            .stdin(Stdio::null());
        command
    }

    fn start_server(&mut self) {
        let data_dir = self.file("server");
        let mut command = self.command(&["server", "--data-dir", &data_dir]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(command.spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        while !self.command(&["nodes"]).output().unwrap().status.success() {
            assert!(Instant::now() < end, "the server does not answer");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The whole standard output of a command, which is one value of JSON of the shape that `platform schema` says. `words`: of the command;
    /// `more`: what else it is given.
    #[track_caller]
    fn json(&self, words: &[&str], more: &[&str]) -> Value {
        self.json_of(self.command(words), words, more)
    }

    #[track_caller]
    fn json_of(&self, mut command: Command, words: &[&str], more: &[&str]) -> Value {
        command.args(more).args(["--format", "json"]);
        let value = parsed(&command.output().unwrap(), words);
        let schema = self.command(&["schema"]).args(words).output().unwrap();
        has_shape(&parsed(&schema, words), &value, words);
        value
    }

    #[track_caller]
    fn row(&self, list: &[&str], key: &str, is: &str) -> Value {
        let rows = self.json(list, &[]);
        let mut rows = rows.as_array().unwrap().iter();
        rows.find(|row| row[key] == is).unwrap().clone()
    }

    fn token(&self, role: &str) -> String {
        let output = (self.command(&["tokens", "create", "--role", role]).output()).unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

#[track_caller]
fn parsed(output: &Output, words: &[&str]) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {stderr}");
    let read = serde_json::from_slice(&output.stdout);
    read.unwrap_or_else(|error| panic!("{words:?}: {error}: {output:?}"))
}

/// The fields of an object are those of its schema.
#[track_caller]
fn has_shape(schema: &Value, value: &Value, words: &[&str]) {
    let Some(fields) = value.as_object() else {
        return;
    };
    let shape = &schema["allOf"][0];
    let name = (shape["$ref"].as_str()).or_else(|| shape["anyOf"][0]["$ref"].as_str());
    let name = name.unwrap().trim_start_matches("#/$defs/");
    let of = &schema["$defs"][name];
    for field in fields.keys() {
        assert!(!of["properties"][field].is_null(), "{words:?}: {field}");
    }
    for field in of["required"].as_array().unwrap() {
        let field = field.as_str().unwrap();
        assert!(fields.contains_key(field), "{words:?}: {field}");
    }
}

/// Tests run side by side, and each member on a machine needs a port of its own.
fn free_udp_port() -> String {
    let free = UdpSocket::bind("[::]:0").unwrap();
    free.local_addr().unwrap().port().to_string()
}

fn gone(kind: &str, name: &str) -> Value {
    json!({ "removed": { "kind": kind, "name": name } })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_printed_as_its_list_has_it_and_what_is_gone_by_its_name() {
    let mut machine = Machine::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (server_dir, edge_dir) = (machine.file("server"), machine.file("edge"));

    // A machine is set up.
    let init = ["server", "init"];
    let made = machine.json(&init, &["--listen", &address, "--data-dir", &server_dir]);
    assert_eq!(made["cluster"]["is_new"], true);
    assert_eq!(made["cluster"]["server"], format!("https://{address}"));
    let start = format!("platform server --data-dir {server_dir}");
    assert_eq!(made["start"], json!({ "started": false, "command": start }));
    let more = ["--name", "cp.example.com", "--data-dir", &server_dir];
    let changed = machine.json(&init, &more);
    assert_eq!(changed["cluster"], Value::Null);
    assert_eq!(changed["options_changed"], true);
    assert_eq!(machine.json(&init, &more)["options_changed"], false);
    machine.start_server();

    // An edge joins, and is asked again.
    let join = ["edge", "join"];
    let mut command = machine.command(&join);
    command.env("PLATFORM_TOKEN", machine.token("edge"));
    let port = free_udp_port();
    let more = ["--name", "in-1", "--data-dir", &edge_dir];
    let joined = machine.json_of(
        command,
        &join,
        &[&more[..], &["--overlay-port", &port]].concat(),
    );
    assert_eq!(
        (&joined["role"], &joined["id"]),
        (&json!("edge"), &json!("e1"))
    );
    assert_eq!(
        (&joined["name"], joined["is_new"] == true),
        (&json!("in-1"), true)
    );
    let again = machine.json(&join, &["--data-dir", &edge_dir]);
    assert_eq!(
        (&again["id"], again["is_new"] == true),
        (&joined["id"], false)
    );
    let down = machine.json(&["edge", "down"], &["--data-dir", &edge_dir]);
    assert_eq!(down, json!({ "role": "edge", "data_dir": edge_dir }));
    for words in ["approve", "rotate-keys", "revoke"] {
        let command = machine.command(&["edges", words, "in-1"]);
        let row = machine.json_of(command, &["edges", words], &[]);
        assert_eq!(row, machine.row(&["edges"], "id", "e1"), "{words}");
    }
    let removed = json!({ "removed": { "kind": "edge", "name": "in-1", "id": "e1" } });
    assert_eq!(machine.json(&["edges", "remove"], &["in-1"]), removed);

    // A node.
    let applicant = Applicant {
        role: EnrollRole::Node,
        server: None,
        token: Some(machine.token("node")),
        name: "web-1".to_owned(),
        region: "local".to_owned(),
        hardware: Hardware {
            arch: "amd64".to_owned(),
            cpus: 2,
            memory_bytes: 4 << 30,
            ..Hardware::default()
        },
        underlay: UnderlayOptions {
            port: free_udp_port().parse().unwrap(),
            ..UnderlayOptions::default()
        },
    };
    Membership::load_or_join(&machine.path("node"), &applicant)
        .await
        .unwrap();
    machine.json(&["orgs", "create"], &["shop"]);
    for (words, more) in [
        ("cordon", &[][..]),
        ("uncordon", &[]),
        ("drain", &[]),
        ("label", &["disk=nvme"]),
        ("set-org", &["shop"]),
        ("stop-unknown", &[]),
        ("approve", &[]),
        ("rotate-keys", &[]),
        ("revoke", &["--no-wait"]),
    ] {
        let mut command = machine.command(&["nodes", words, "web-1"]);
        command.args(more);
        let row = machine.json_of(command, &["nodes", words], &[]);
        assert_eq!(row, machine.row(&["nodes"], "name", "web-1"), "{words}");
    }
    let node = machine.row(&["nodes"], "name", "web-1");
    assert_eq!(
        (&node["labels"]["disk"], &node["org"]),
        (&json!("nvme"), &json!("shop"))
    );
    let removed = json!({ "removed": { "kind": "node", "name": "web-1", "id": node["id"] } });
    assert_eq!(
        machine.json(&["nodes", "remove"], &["web-1", "--yes"]),
        removed
    );

    let node_dir = machine.file("node");
    let more = ["--data-dir", &node_dir, "--run-dir", &machine.file("run")];
    let down = machine.json(&["node", "down"], &more);
    assert_eq!(down, json!({ "role": "node", "data_dir": node_dir }));

    // Users and their tokens.
    let ann = machine.json(
        &["users", "grant"],
        &["ann", "--role", "admin", "--org", "shop"],
    );
    assert_eq!(ann, machine.row(&["users"], "name", "ann"));
    machine.json(&["users", "grant"], &["ann", "--role", "viewer"]);
    let token = machine.json(&["users", "tokens", "create"], &["--user", "ann"]);
    std::fs::write(machine.path("token"), token["token"].as_str().unwrap()).unwrap();
    let login = machine.json(
        &["login"],
        &["work", "--token-file", &machine.file("token")],
    );
    assert_eq!(login["user"], "ann");
    assert_eq!(login["context"], machine.row(&["contexts"], "name", "work"));
    assert_eq!(
        machine.json(&["contexts", "use"], &["work"]),
        login["context"]
    );
    let removed = machine.json(&["contexts", "remove"], &["work"]);
    assert_eq!(removed, gone("context", "work"));
    let id = token["id"].as_str().unwrap();
    let removed = machine.json(&["users", "tokens", "revoke"], &[id]);
    assert_eq!(removed, gone("user-token", id));
    let left = machine.json(&["users", "revoke"], &["ann"]);
    assert_eq!(left, machine.row(&["users"], "name", "ann"));
    let left = machine.json(&["users", "revoke"], &["ann", "--org", "shop"]);
    assert_eq!(left, Value::Null);
    machine.json(&["users", "grant"], &["bob", "--role", "viewer"]);
    assert_eq!(
        machine.json(&["users", "remove"], &["bob"]),
        gone("user", "bob")
    );
    let token = machine.json(&["tokens", "create"], &[]);
    let id = token["id"].as_str().unwrap();
    let removed = machine.json(&["tokens", "revoke"], &[id]);
    assert_eq!(removed, gone("enrollment-token", id));

    // Apps, orgs and secrets.
    let of = ["--app", "web", "--env", "prod"];
    let set = ["database", "PASSWORD=x", "--org", "shop"];
    machine.json(&["secrets", "set"], &[&set[..], &of].concat());
    machine.json(&["orgs", "create"], &["bank"]);
    let moved = machine.json(&["apps", "move"], &["web", "--org", "bank"]);
    assert_eq!(moved, machine.row(&["apps"], "name", "web"));
    assert_eq!(moved["org"], "bank");
    let removed = machine.json(&["secrets", "delete"], &[&["database"][..], &of].concat());
    let env = json!({ "app": "web", "env": "prod" });
    let bundle = json!({ "removed": { "kind": "secret-bundle", "name": "database", "env": env } });
    assert_eq!(removed, bundle);
    assert_eq!(
        machine.json(&["apps", "remove"], &["web"]),
        gone("app", "web")
    );
    assert_eq!(
        machine.json(&["orgs", "remove"], &["bank"]),
        gone("org", "bank")
    );

    // The cluster.
    let network = machine.json(&["network", "set"], &["--mtu", "1400"]);
    assert_eq!(network["mtu"], 1400);
    let acme = machine.json(&["certificates", "acme", "off"], &[]);
    assert_eq!(acme, machine.json(&["certificates", "acme"], &[]));
    let ca = machine.json(&["server", "rotate-ca"], &["--status"]);
    assert!(ca["ca"]["fingerprint"].is_string());
    let file = machine.file("backup.db");
    let backup = machine.json(&["server", "backup"], &[&file, "--data-dir", &server_dir]);
    assert_eq!(backup["file"], file);
    assert!(backup["size_bytes"].as_u64().unwrap() > 0);
    let more = [&file, "--rehearse", "--data-dir", &server_dir];
    let restored = machine.json(&["server", "restore"], &more);
    assert_eq!(restored["rehearsed"], true);

    // A failure has no result.
    let output = (machine
        .command(&["orgs", "remove", "none", "--format", "json"])
        .output())
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}

//! `platform run` and `platform forward`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::harness::{Cluster, manifest, wait_for};

/// Ended with the test.
struct Forwarding {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Forwarding {
    fn start(cluster: &Cluster, words: &[&str]) -> Self {
        let mut child = cluster
            .command(&[&["forward"], words].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The local port of the next line.
    fn port(&mut self) -> u16 {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let local = line.split(' ').nth(1).unwrap();
        let port = local.rsplit(':').next().unwrap();
        port.parse().unwrap_or_else(|_| panic!("{line}"))
    }
}

/// What the port answers to these bytes, once they have ended.
fn asked(port: u16, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

#[test]
fn commands_run_in_microvms_of_their_own_and_ports_are_forwarded() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    // On loopback only, at a port that the manifest does not name; and one that answers when its client has ended.
    let serve = "mkdir -p /tmp/www && echo private >/tmp/www/page && busybox httpd -p 127.0.0.1:7070 -h /tmp/www; busybox nc -ll -p 7071 -e busybox wc -c & exec /usr/bin/hello web";
    let command = format!("command = [\"/bin/sh\", \"-c\", \"{serve}\"]");
    let manifest = manifest(&[
        ("command = [\"/usr/bin/hello\", \"web\"]", &command),
        ("min = 2", "min = 1"),
    ]);
    let deployed = cluster.deploy(&manifest, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    cluster.wait_until_served();

    let words = [
        "--app", "hello", "-p", "web", ":8080", ":7070", ":7071", ":9",
    ];
    let mut forwarding = Forwarding::start(&cluster, &words);
    let errors = forwarding.child.stderr.take().unwrap();
    // Each on IPv4 and IPv6, at the same port.
    let ports: Vec<u16> = (0..8).map(|_| forwarding.port()).collect();
    let pairs: Vec<_> = ports.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    assert!(pairs.iter().all(|(ipv4, ipv6)| ipv4 == ipv6), "{pairs:?}");
    let page = asked(ports[0], b"GET / HTTP/1.0\r\nHost: hello.localhost\r\n\r\n").unwrap();
    assert!(page.starts_with(b"HTTP/1.0 200") || page.starts_with(b"HTTP/1.1 200"));
    let page = asked(ports[2], b"GET /page HTTP/1.0\r\n\r\n").unwrap();
    assert!(
        page.ends_with(b"private\n"),
        "{}",
        String::from_utf8_lossy(&page)
    );
    let bytes = vec![b'x'; 300_000];
    assert_eq!(asked(ports[4], &bytes).unwrap(), b"300000\n");
    // Nothing listens on port 9 of the instance.
    assert!(asked(ports[6], b"x").is_err());
    let mut line = String::new();
    BufReader::new(errors).read_line(&mut line).unwrap();
    assert!(line.contains("port 9 of instance"), "{line}");
    assert!(line.contains("nothing listens there"), "{line}");
    drop(forwarding);

    let run = |words: &[&str]| cluster.cli(&[&["run", "--app", "hello"], words].concat());
    let script = "echo one; echo two >&2; echo three; id -un; echo $PLATFORM_PROCESS; exit 3";
    let migrated = run(&["--", "/bin/sh", "-c", script]);
    assert_eq!(migrated.status, 3, "{}", migrated.stderr);
    assert_eq!(migrated.stdout, "one\nthree\nhello\nweb\n");
    assert!(migrated.stderr.contains("two\n"), "{}", migrated.stderr);
    // Its input, and its end.
    let mut child = cluster
        .command(&[
            "run",
            "--app",
            "hello",
            "-q",
            "-p",
            "worker",
            "--",
            "/bin/sh",
            "-c",
            "wc -c; echo done",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "300000\ndone\n");

    // One that is left alone says what it says to its log, and leaves.
    let detached = run(&["--detach", "--", "/bin/sh", "-c", "echo alone; exit 4"]);
    assert_eq!(detached.status, 0, "{}", detached.stderr);
    let id = detached.stdout.trim().to_owned();
    wait_for("its end", || {
        let rows = cluster.json(&["ps", "--app", "hello", "--ended"]);
        let rows = rows.as_array().unwrap();
        rows.iter()
            .any(|row| row["id"] == id.as_str() && row["last_exit"]["exit_code"] == 4)
    });
    let log = cluster.ok(&["logs", "--app", "hello", "--instance", &id]);
    assert!(log.contains("alone"), "{log}");
    // All have left, and the app is as it was.
    wait_for("the commands to be gone", || {
        cluster.instances().iter().all(|row| row["runs"].is_null())
    });
    let missing = run(&["-q", "--", "no-such"]);
    assert_eq!(missing.status, 127, "{}", missing.stderr);
    cluster.down();
}

/// What psql prints of a statement, through a local port.
fn psql(port: u16, statement: &str) -> Result<String, String> {
    let output = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()])
        .args(["-c", statement])
        .env("PGPASSWORD", PASSWORD)
        .env("PGCONNECT_TIMEOUT", "60")
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

const PASSWORD: &str = "open sesame";

/// Debian's PostgreSQL in a microVM, its data on a volume, and Debian's psql on this machine.
#[test]
fn psql_speaks_through_forward_to_a_database_on_a_volume() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let image = cluster.push("postgres");
    let password = format!("PASSWORD={PASSWORD}");
    cluster.ok(&["secrets", "set", "postgres", &password, "--app", "postgres"]);
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let manifest = top.join("examples/postgres/platform.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let deployed = cluster.deploy(&manifest, &image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);

    let words = ["--app", "postgres", "-p", "db", ":5432"];
    let mut forwarding = Forwarding::start(&cluster, &words);
    let port = forwarding.port();
    let made = psql(
        port,
        "CREATE TABLE items AS SELECT n, repeat('x', 100) AS text FROM generate_series(1, 20000) AS n",
    );
    assert_eq!(made, Ok(String::new()));
    let sums = "SELECT sum(n), sum(length(text)) FROM items";
    assert_eq!(psql(port, sums).unwrap(), "200010000|2000000\n");
    // Two megabytes in one answer.
    let all = psql(port, "SELECT text FROM items").unwrap();
    assert_eq!(all.lines().filter(|line| line.len() == 100).count(), 20_000);
    // What the server in the guest refuses comes back as its own error.
    let refused = psql(port, "SELECT nothing").unwrap_err();
    assert!(
        refused.contains("column \"nothing\" does not exist"),
        "{refused}"
    );

    // The database is killed and starts again on the same volume; the same local port leads to it.
    let database = cluster.ready("db").remove(0);
    cluster.ok(&["signal", &database, "KILL"]);
    wait_for("the database to have recovered", || {
        let restarted = |row: &serde_json::Value| row["report"]["restarts"] == 1;
        cluster.instances().iter().any(restarted)
            && psql(port, sums).as_deref() == Ok("200010000|2000000\n")
    });
    drop(forwarding);
    cluster.down();
}

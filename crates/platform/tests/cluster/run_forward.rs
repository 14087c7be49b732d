//! `platform run` and `platform forward`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, ChildStdout, Stdio};

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
        "forward", "--app", "hello", "-p", "web", ":8080", ":7070", ":7071", ":9",
    ];
    let mut child = cluster
        .command(&words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let errors = child.stderr.take().unwrap();
    let mut forwarding = Forwarding { child, output };
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

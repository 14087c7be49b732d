//! Certificates by ACME over whole roles: a server, two edges, Debian's `pebble` as the authority, and curl. No instance runs: what is seen is who answers, and by
//! which certificate.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The addresses of the two edges: the same ports at both.
const EDGES: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

/// A cluster in a folder, and the programs that run for it, ended with it.
struct Cluster {
    dir: tempfile::TempDir,
    running: Vec<(String, Child)>,
    server: String,
    http_port: u16,
    https_port: u16,
    /// The directory of the authority.
    directory: String,
    /// Where its root is told.
    management: String,
    /// Where names are set for it.
    dns: String,
    /// What the server is started with.
    server_flags: Vec<String>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        for number in 0..EDGES.len() {
            let mut down = self.command(&["edge", "down", "--data-dir"]);
            let _ = down.arg(self.path(&format!("edge{number}"))).status();
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What a command prints, once it succeeds.
#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap() + &stderr
}

fn manifest(hosts: &[&str]) -> String {
    let mut text = "app = \"shop\"\n[processes.web]\n[[processes.web.ports]]\nport = 8080\nprotocol = \"http\"\n[routes]\n".to_owned();
    for host in hosts {
        text.push_str(&format!(
            "\"{host}\" = {{ process = \"web\", port = 8080 }}\n"
        ));
    }
    text
}

impl Cluster {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_platform"));
        command
            .args(words)
            .env("PLATFORM_CONFIG", self.path("server/client.json"))
            .env_remove("PLATFORM_TOKEN")
            .stdin(Stdio::null());
        command
    }

    fn start(&mut self, name: &str, command: &mut Command) {
        let log = std::fs::File::options();
        let log = log
            .clone()
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.log")));
        let log = log.unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.running.push((name.to_owned(), child.spawn().unwrap()));
    }

    /// Kills what was started last under this name.
    fn kill(&mut self, name: &str) {
        let found = self.running.iter().rposition(|(known, _)| known == name);
        let (_, mut child) = self.running.remove(found.unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            if Instant::now() >= end {
                let kept =
                    std::env::temp_dir().join(format!("acme-test-logs-{}", std::process::id()));
                std::fs::create_dir_all(&kept).unwrap();
                for name in ["server", "edge0", "edge1", "pebble"] {
                    let _ = std::fs::write(kept.join(name), self.log(name));
                }
                panic!(
                    "{what} did not come within {PATIENCE:?}; the logs: {}",
                    kept.display()
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Everything but the settings. `pebble`: more of its configuration, JSON.
    fn up(
        pebble: &str,
        hosts: &[&str],
        server_flags: impl FnOnce(&Path, &str) -> Vec<String>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dns = format!("127.0.0.1:{}", free_port());
        let mut cluster = Self {
            server: format!("127.0.0.1:{}", free_port()),
            http_port: free_port(),
            https_port: free_port(),
            directory: format!("https://127.0.0.1:{}/dir", free_port()),
            management: format!("https://127.0.0.1:{}", free_port()),
            server_flags: server_flags(dir.path(), &dns),
            dns,
            dir,
            running: Vec::new(),
        };
        cluster.start_authority(pebble);
        cluster.start_server();
        for (number, address) in EDGES.iter().enumerate() {
            cluster.start_edge(number, address);
        }
        cluster.deploy(hosts);
        cluster
    }

    fn start_server(&mut self) {
        let (server, flags) = (self.server.clone(), self.server_flags.clone());
        let mut command = self.command(&["server", "--listen", &server, "--data-dir"]);
        command.arg(self.path("server")).args(flags);
        self.start("server", &mut command);
        self.wait_for("the server", || {
            let output = self.command(&["nodes"]).output().unwrap();
            output.status.success()
        });
    }

    /// `pebble`, by a certificate of a CA of our own, and its names.
    fn start_authority(&mut self, more: &str) {
        for program in ["/usr/bin/pebble", "/usr/bin/pebble-challtestsrv"] {
            let is_there = Path::new(program).exists();
            assert!(is_there, "this test needs: apt-get install pebble");
        }
        let (ca, cert, key) = (
            self.path("ca.pem"),
            self.path("leaf.pem"),
            self.path("key.pem"),
        );
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=a CA",
        ]);
        done(
            openssl
                .arg("-keyout")
                .arg(self.path("ca.key"))
                .arg("-out")
                .arg(&ca),
        );
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=pebble",
        ]);
        openssl.args([
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]);
        openssl
            .arg("-CA")
            .arg(&ca)
            .arg("-CAkey")
            .arg(self.path("ca.key"));
        done(openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert));
        let address = |url: &str| {
            url.trim_start_matches("https://")
                .trim_end_matches("/dir")
                .to_owned()
        };
        let config = format!(
            r#"{{"pebble": {{"listenAddress": "{}", "managementListenAddress": "{}", "certificate": "{}", "privateKey": "{}", "httpPort": {}, "tlsPort": {}, "ocspResponderURL": ""{more}}}}}"#,
            address(&self.directory),
            address(&self.management),
            cert.display(),
            key.display(),
            self.http_port,
            self.https_port,
        );
        let file = self.path("pebble.json");
        std::fs::write(&file, config).unwrap();
        let dns_port = free_port();
        let mut names = Command::new("/usr/bin/pebble-challtestsrv");
        names.args([
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-defaultIPv6",
            "",
        ]);
        names.args(["-defaultIPv4", EDGES[0], "-management", &self.dns]);
        names.args(["-dns01", &format!("127.0.0.1:{dns_port}")]);
        self.start("names", &mut names);
        self.wait_for("the names", || {
            self.set_name("clear-txt", r#"{"host": "x."}"#)
        });
        let mut pebble = Command::new("/usr/bin/pebble");
        pebble.arg("-config").arg(&file);
        pebble.args(["-dnsserver", &format!("127.0.0.1:{dns_port}")]);
        self.start("pebble", pebble.env("PEBBLE_VA_NOSLEEP", "1"));
        self.wait_for("the authority", || {
            let mut curl = Command::new("curl");
            curl.args(["-fsk", "--noproxy", "*", &self.directory]);
            curl.output().unwrap().status.success()
        });
        // What clients trust: its root, another one at each start.
        let mut curl = Command::new("curl");
        curl.args([
            "-fsSk",
            "--noproxy",
            "*",
            &format!("{}/roots/0", self.management),
        ]);
        std::fs::write(self.path("root.pem"), done(&mut curl)).unwrap();
    }

    fn set_name(&self, call: &str, json: &str) -> bool {
        let mut curl = Command::new("curl");
        curl.args(["-fsS", "--noproxy", "*", "-d", json]);
        curl.arg(format!("http://{}/{call}", self.dns));
        curl.output().unwrap().status.success()
    }

    fn points_to(&self, host: &str, address: &str) {
        let json = format!(r#"{{"host": "{host}.", "addresses": ["{address}"]}}"#);
        // Addresses are added to those there are.
        let host = format!(r#"{{"host": "{host}."}}"#);
        assert!(self.set_name("clear-a", &host));
        assert!(self.set_name("add-a", &json));
    }

    fn start_edge(&mut self, number: usize, address: &str) {
        let token = done(&mut self.command(&["tokens", "create", "--role", "edge"]));
        let token = token.lines().next().unwrap().to_owned();
        let free = UdpSocket::bind("[::]:0").unwrap();
        let overlay_port = free.local_addr().unwrap().port().to_string();
        drop(free);
        let url = format!("https://{}", self.server);
        let (http, https) = (
            format!("{address}:{}", self.http_port),
            format!("{address}:{}", self.https_port),
        );
        let name = format!("edge{number}");
        let mut command = self.command(&["edge", "--server", &url, "--listen", &http]);
        command.args(["--listen-tls", &https, "--overlay-port", &overlay_port]);
        command.args(["--tcp-ports", "none", "--name", &name, "--data-dir"]);
        command.arg(self.path(&name)).env("PLATFORM_TOKEN", token);
        self.start(&name, &mut command);
    }

    /// An image without anything in it, in a registry of its own, on these hosts.
    fn deploy(&mut self, hosts: &[&str]) {
        let image = self.push_image();
        let file = self.path("platform.toml");
        std::fs::write(&file, manifest(hosts)).unwrap();
        let mut deploy = self.command(&["deploy", "--no-wait", "--image", &image]);
        done(deploy.arg(file));
        for address in EDGES {
            self.wait_for("the edge", || {
                self.plain(hosts[0], address).starts_with("503")
            });
        }
    }

    fn push_image(&mut self) -> String {
        let registry = format!("127.0.0.1:{}", free_port());
        let config = self.path("registry.yml");
        let data = self.path("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{registry}'}}\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut program = Command::new("/usr/bin/docker-registry");
        self.start("registry", program.arg("serve").arg(config));
        let url = format!("http://{registry}/v2/");
        self.wait_for("the registry", || {
            let mut curl = Command::new("curl");
            curl.args(["-fs", "--noproxy", "*", &url]);
            curl.output().unwrap().status.success()
        });
        let layer = self.push_blob(&registry, &[0; 1024]);
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/hello"]}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        );
        let digest = self.push_blob(&registry, config.as_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer}","size":1024}}]}}"#,
            config.len()
        );
        let (file, digest) = self.blob(manifest.as_bytes());
        let mut curl = Command::new("curl");
        curl.args([
            "-fsS",
            "--noproxy",
            "*",
            "-X",
            "PUT",
            "-H",
            &format!("Content-Type: {kind}"),
        ]);
        curl.arg("--data-binary")
            .arg(format!("@{}", file.display()));
        done(curl.arg(format!("{url}shop/manifests/latest")));
        format!("{registry}/shop@{digest}")
    }

    /// A file with these bytes, and their digest.
    fn blob(&self, bytes: &[u8]) -> (PathBuf, String) {
        let file = self.path("blob");
        std::fs::write(&file, bytes).unwrap();
        let sum = done(Command::new("sha256sum").arg(&file));
        (file, format!("sha256:{}", sum.split(' ').next().unwrap()))
    }

    fn push_blob(&self, registry: &str, bytes: &[u8]) -> String {
        let (file, digest) = self.blob(bytes);
        let mut curl = Command::new("curl");
        curl.args([
            "-fsS",
            "--noproxy",
            "*",
            "-X",
            "POST",
            "-o",
            "/dev/null",
            "-D",
            "-",
        ]);
        let head = done(curl.arg(format!("http://{registry}/v2/shop/blobs/uploads/")));
        let location = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("location")
                .then(|| value.trim().to_owned())
        });
        let location = location.unwrap();
        let join = if location.contains('?') { '&' } else { '?' };
        let mut curl = Command::new("curl");
        curl.args([
            "-fsS",
            "--noproxy",
            "*",
            "-X",
            "PUT",
            "-H",
            "Content-Type: application/octet-stream",
        ]);
        curl.arg("--data-binary")
            .arg(format!("@{}", file.display()));
        done(curl.arg(format!("{location}{join}digest={digest}")));
        digest
    }

    /// Turns ACME on.
    fn on(&self, more: &[&str]) -> Command {
        let mut on = self.command(&["certificates", "acme", "on", "--directory", &self.directory]);
        on.arg("--ca-file").arg(self.path("ca.pem")).args(more);
        on
    }

    /// The status of plain HTTP at an edge, and where it leads.
    fn plain(&self, host: &str, address: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args([
            "-s",
            "--noproxy",
            "*",
            "--max-time",
            "20",
            "-o",
            "/dev/null",
        ]);
        curl.args(["-w", "%{http_code} %{redirect_url}", "--resolve"]);
        curl.arg(format!("{host}:{}:{address}", self.http_port));
        curl.arg(format!("http://{host}:{}/a?b=c", self.http_port));
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    }

    /// The status over HTTPS at an edge, by a certificate of the authority; 000: there is none.
    fn secure(&self, host: &str, address: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args([
            "-s",
            "--noproxy",
            "*",
            "--max-time",
            "20",
            "-o",
            "/dev/null",
        ]);
        curl.args(["-w", "%{http_code}", "--resolve"]);
        curl.arg(format!("{host}:{}:{address}", self.https_port));
        curl.arg("--cacert").arg(self.path("root.pem"));
        curl.arg(format!("https://{host}:{}/", self.https_port));
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    }

    /// The serial number of the certificate that an edge shows for a host.
    fn serial(&self, host: &str, address: &str) -> String {
        let script = format!(
            "openssl s_client -connect {address}:{} -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -serial",
            self.https_port
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn wait_for_certificate(&self, host: &str) {
        for address in EDGES {
            self.wait_for(&format!("a certificate for {host} at {address}"), || {
                self.secure(host, address) == "503"
            });
        }
    }

    fn events(&self) -> String {
        done(&mut self.command(&["events", "--all", "--kind", "certificate"]))
    }

    fn certificates(&self) -> Vec<serde_json::Value> {
        let text = done(&mut self.command(&["certificates", "--format", "json"]));
        serde_json::from_str(&text).unwrap()
    }

    /// The sources of the certificates that are for a host.
    fn sources(&self, host: &str) -> Vec<String> {
        let rows = self.certificates().into_iter();
        let rows = rows.filter(|row| {
            row["hosts"]
                .as_array()
                .unwrap()
                .iter()
                .any(|known| known == host)
        });
        rows.map(|row| row["source"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

#[test]
fn two_hosts_get_certificates_through_two_edges_and_an_operators_wins() {
    let cluster = Cluster::up(
        "",
        &["a.example.com", "b.example.com", "hello.localhost"],
        |_, _| Vec::new(),
    );
    // Each name leads to one edge only, and every edge answers for it.
    cluster.points_to("a.example.com", EDGES[0]);
    cluster.points_to("b.example.com", EDGES[1]);
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(
        shown.contains("off: `platform certificates acme on"),
        "{shown}"
    );
    let refused = cluster.on(&["--challenge", "http-01"]).output().unwrap();
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.contains("terms of service") && refused.contains("--agree-tos"),
        "{refused}"
    );
    let shown = done(&mut cluster.on(&[
        "--agree-tos",
        "--challenge",
        "http-01",
        "--email",
        "ops@example.org",
    ]));
    assert!(shown.contains("/my-account/"), "{shown}");
    for host in ["a.example.com", "b.example.com"] {
        cluster.wait_for_certificate(host);
        assert_eq!(cluster.sources(host), ["acme"]);
        for address in EDGES {
            let at = format!("301 https://{host}:{}/a?b=c", cluster.https_port);
            assert_eq!(cluster.plain(host, address), at);
        }
    }
    // No authority knows this name, and so the app answers in plain HTTP.
    assert!(
        cluster
            .plain("hello.localhost", EDGES[0])
            .starts_with("503")
    );
    let pebble = cluster.log("pebble");
    assert!(pebble.contains("/.well-known/acme-challenge/"), "{pebble}");
    let events = cluster.events();
    for host in ["a.example.com", "b.example.com"] {
        assert!(events.contains(&format!("{host}: issued by")), "{events}");
    }
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(shown.contains("2, of which 0 have none yet"), "{shown}");

    // By a certificate at the other port, once more.
    done(&mut cluster.on(&["--agree-tos", "--challenge", "tls-alpn-01"]));
    let before = cluster.serial("b.example.com", EDGES[0]);
    done(&mut cluster.command(&["certificates", "remove", "b.example.com"]));
    cluster.wait_for("another certificate by TLS-ALPN-01", || {
        let serial = cluster.serial("b.example.com", EDGES[0]);
        serial.starts_with("serial=")
            && serial != before
            && cluster.sources("b.example.com") == ["acme"]
    });
    cluster.wait_for_certificate("b.example.com");
    let asked = "an authority of ACME asked whether the host leads here";
    let edge = cluster.log("edge1");
    assert!(count(&edge, asked) >= 2, "{edge}");

    // Keys are sealed in the store, and the edge's own on its disk.
    for entry in std::fs::read_dir(cluster.path("server")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("BEGIN PRIVATE KEY") && !text.contains("key_pkcs8"));
    }
    let kept = cluster.path("edge0/certificates/a.example.com.json");
    let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // An operator's takes its place, and goes again.
    let (cert, key) = (cluster.path("own.pem"), cluster.path("own.key"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=own",
    ]);
    openssl.args(["-addext", "subjectAltName=DNS:*.example.com"]);
    done(openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert));
    let mut add = cluster.command(&["certificates", "add", "--name", "own", "--cert"]);
    done(add.arg(&cert).arg("--key").arg(&key));
    cluster.wait_for("an operator's certificate wins", || {
        cluster.certificates().len() == 1 && cluster.secure("a.example.com", EDGES[0]) == "000"
    });
    done(&mut cluster.command(&["certificates", "remove", "own"]));
    cluster.wait_for_certificate("a.example.com");

    // Off: what there is goes on, and nothing is ordered.
    done(&mut cluster.command(&["certificates", "acme", "off"]));
    assert_eq!(cluster.secure("a.example.com", EDGES[1]), "503");
    // An edge that is revoked has none of it.
    done(&mut cluster.command(&["edges", "revoke", "edge0", "--no-wait"]));
    let folder = cluster.path("edge0/certificates");
    cluster.wait_for("the revoked edge has no key", || {
        std::fs::read_dir(&folder).map_or(true, |mut files| files.next().is_none())
    });
}

/// Asks once, waits until it is told to, and asks again on the same connection.
const CLIENT: &str = r#"
import os, socket, ssl, sys, time
address, port, host, ca, talk = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
stream = context.wrap_socket(socket.create_connection((address, int(port))), server_hostname=host)
def ask(word):
    stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = stream.recv(65536)
        assert part, "the connection was closed"
        answer += part
    print(word, answer.split(b" ")[1].decode(), flush=True)
ask("first")
while not os.path.exists(talk):
    time.sleep(0.1)
    stream.settimeout(20)
    # An idle connection is closed after a while: it is used.
ask("second")
"#;

#[test]
fn a_certificate_is_renewed_in_time_and_who_is_connected_stays() {
    // It lives for half a minute, and is renewed after twenty seconds.
    let life = r#", "certificateValidityPeriod": 30"#;
    let mut cluster = Cluster::up(life, &["d.example.com"], |_, _| Vec::new());
    done(&mut cluster.on(&["--agree-tos"]));
    cluster.wait_for_certificate("d.example.com");
    let talk = cluster.path("talk");
    let mut client = Command::new("python3");
    let port = cluster.https_port.to_string();
    client.args(["-c", CLIENT, EDGES[0], &port, "d.example.com"]);
    client.arg(cluster.path("root.pem")).arg(&talk);
    cluster.start("client", &mut client);
    cluster.wait_for("the first answer", || {
        cluster.log("client").contains("first 503")
    });
    let first = cluster.serial("d.example.com", EDGES[0]);
    let next = |before: &str| {
        cluster.wait_for("the next certificate", || {
            let serial = cluster.serial("d.example.com", EDGES[0]);
            serial.starts_with("serial=") && serial != before
        });
        // The one before has not ended meanwhile.
        assert_eq!(cluster.secure("d.example.com", EDGES[0]), "503");
        cluster.serial("d.example.com", EDGES[0])
    };
    let second = next(&first);
    std::fs::write(&talk, "").unwrap();
    cluster.wait_for("the second answer", || {
        cluster.log("client").contains("second 503")
    });
    next(&second);
    let events = cluster.events();
    assert!(count(&events, "d.example.com: renewed by") >= 2, "{events}");
    assert!(!events.contains("certificate-failed"), "{events}");
}

/// A hook that sets records of the authority's names; before, it waits as long as a file is there.
fn hook(folder: &Path, dns: &str) -> PathBuf {
    let file = folder.join("hook");
    let script = format!(
        "#!/bin/sh\necho \"$1 $2\" >>{folder}/hook.calls\nwhile [ \"$1\" = present ] && [ -e {folder}/hook.waits ]; do sleep 0.1; done\n\
         [ -e {folder}/hook.fails ] && {{ echo 'no such zone here' >&2; exit 3; }}\n\
         case $1 in\n\
         present) exec curl -fsS --noproxy '*' -d \"{{\\\"host\\\": \\\"$2\\\", \\\"value\\\": \\\"$3\\\"}}\" http://{dns}/set-txt;;\n\
         cleanup) exec curl -fsS --noproxy '*' -d \"{{\\\"host\\\": \\\"$2\\\"}}\" http://{dns}/clear-txt;;\n\
         esac\n",
        folder = folder.display()
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn a_wildcard_comes_by_the_hook_and_an_order_goes_on_after_its_leader_was_killed() {
    let mut cluster = Cluster::up("", &["x.example.org", "y.example.org"], |folder, dns| {
        vec![
            "--acme-dns-hook".to_owned(),
            hook(folder, dns).display().to_string(),
        ]
    });
    let (fails, waits) = (cluster.path("hook.fails"), cluster.path("hook.waits"));
    std::fs::write(&fails, "").unwrap();
    done(&mut cluster.on(&["--agree-tos", "--wildcard", "*.example.org"]));
    cluster.wait_for("the hook's failure", || {
        let events = cluster.events();
        events.contains("*.example.org: the hook for DNS-01 ended with")
            && events.contains("no such zone here")
    });
    // Once, and no more before its time has come.
    let file = cluster.path("hook.calls");
    let calls = || std::fs::read_to_string(&file).unwrap();
    assert_eq!(count(&calls(), "present _acme-challenge.example.org."), 1);
    assert_eq!(count(&calls(), "cleanup"), 1);

    std::fs::remove_file(&fails).unwrap();
    std::fs::write(&waits, "").unwrap();
    let orders = count(
        &cluster.log("pebble"),
        "POST /order-plz -> calling handler()",
    );
    done(&mut cluster.command(&["certificates", "acme", "retry", "*.example.org"]));
    cluster.wait_for("the hook is called again", || {
        count(&calls(), "present") == 2
    });
    // In the midst of the order.
    cluster.kill("server");
    std::fs::remove_file(&waits).unwrap();
    cluster.start_server();
    for host in ["x.example.org", "y.example.org"] {
        cluster.wait_for_certificate(host);
    }
    let rows = cluster.certificates();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["name"], "*.example.org");
    let log = cluster.log("pebble");
    // The order of the leader that was killed was gone on with, and nothing was issued twice. (A nonce that is refused makes a call be made again.)
    let again = count(&log, "POST /order-plz -> calling handler()") - orders;
    assert!((1..=3).contains(&again), "{again} orders");
    assert_eq!(count(&log, "Issued certificate serial"), 1, "{log}");
    cluster.wait_for("the record is removed", || count(&calls(), "cleanup") >= 2);
}

#[test]
fn a_name_that_leads_elsewhere_fails_slowly_and_says_why() {
    let more = r#", "externalAccountBindingRequired": true, "externalAccountMACKeys": {"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}, "domainBlocklist": ["blocked.example.com"]"#;
    let mut cluster = Cluster::up(more, &["c.example.com", "blocked.example.com"], |_, _| {
        Vec::new()
    });
    // Nobody listens there.
    cluster.points_to("c.example.com", "127.0.0.77");
    let key = cluster.path("eab.key");
    std::fs::write(
        &key,
        "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n",
    )
    .unwrap();
    let key = key.to_str().unwrap();
    let said = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = said(&mut cluster.on(&["--agree-tos"]));
    assert!(error.contains("--eab-key-id"), "{error}");
    let error = said(&mut cluster.on(&[
        "--agree-tos",
        "--eab-key-id",
        "kid-2",
        "--eab-key-file",
        key,
    ]));
    assert!(error.contains("refuses the account"), "{error}");
    let error = said(&mut cluster.on(&["--agree-tos", "--wildcard", "*.example.com"]));
    assert!(error.contains("--acme-dns-hook"), "{error}");
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(shown.contains("off"), "{shown}");
    done(&mut cluster.on(&[
        "--agree-tos",
        "--eab-key-id",
        "kid-1",
        "--eab-key-file",
        key,
    ]));
    cluster.wait_for("both failures", || {
        let events = cluster.events();
        events.contains("c.example.com:") && events.contains("blocked.example.com:")
    });
    let events = cluster.events();
    assert!(events.contains("onnection refused"), "{events}");
    let why = done(&mut cluster.command(&["why", "shop/prod/web"]));
    assert!(
        why.contains("c.example.com has no certificate by ACME") && why.contains("acme retry"),
        "{why}"
    );
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(
        shown.contains("failed") && shown.contains("1 times"),
        "{shown}"
    );
    // Another leader waits as long, and orders what it is told to.
    cluster.kill("server");
    cluster.start_server();
    done(&mut cluster.command(&["certificates", "acme", "retry", "blocked.example.com"]));
    let failures = |name: &str| {
        let mut show = cluster.command(&["certificates", "acme", "--format", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&done(&mut show)).unwrap();
        let rows = shown["names"].as_array().unwrap().iter();
        let mut rows = rows.filter(|row| row["name"] == name);
        rows.next()
            .map_or(0, |row| row["failures"].as_u64().unwrap())
    };
    cluster.wait_for("the second failure", || {
        failures("blocked.example.com") == 2
    });
    assert_eq!(failures("c.example.com"), 1);
    // When the name leads here, it may be tried now.
    cluster.points_to("c.example.com", EDGES[1]);
    done(&mut cluster.command(&["certificates", "acme", "retry", "c.example.com"]));
    cluster.wait_for_certificate("c.example.com");
    let error = said(&mut cluster.command(&["certificates", "acme", "retry", "c.example.com"]));
    assert!(
        error.contains("no order of `c.example.com` failed"),
        "{error}"
    );
}

//! A cluster of a server and two edges, and `pebble` as the authority that they ask.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The addresses of the two edges: the same ports at both.
pub(crate) const EDGES: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

/// A cluster in a folder, and the programs that run for it, ended with it.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) running: Vec<(String, Child)>,
    pub(crate) server: String,
    pub(crate) http_port: u16,
    pub(crate) https_port: u16,
    /// The directory of the authority.
    pub(crate) directory: String,
    /// Where its root is told.
    pub(crate) management: String,
    /// Where names are set for it.
    pub(crate) dns: String,
    /// What the server is started with.
    pub(crate) server_flags: Vec<String>,
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
pub(crate) fn done(command: &mut Command) -> String {
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
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_platform"));
        command
            .args(words)
            .env("PLATFORM_CONFIG", self.path("server/client.json"))
            .env_remove("PLATFORM_TOKEN")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn start(&mut self, name: &str, command: &mut Command) {
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
    pub(crate) fn kill(&mut self, name: &str) {
        let found = self.running.iter().rposition(|(known, _)| known == name);
        let (_, mut child) = self.running.remove(found.unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
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
    pub(crate) fn up(
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

    pub(crate) fn start_server(&mut self) {
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
    pub(crate) fn start_authority(&mut self, more: &str) {
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
        std::fs::write(self.path("dnsserver"), format!("127.0.0.1:{dns_port}")).unwrap();
        self.start_pebble();
    }

    /// The authority as it was set up; it knows nothing of before.
    pub(crate) fn start_pebble(&mut self) {
        let mut pebble = Command::new("/usr/bin/pebble");
        pebble.arg("-config").arg(self.path("pebble.json"));
        let names = std::fs::read_to_string(self.path("dnsserver")).unwrap();
        pebble.args(["-dnsserver", &names]);
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

    pub(crate) fn set_name(&self, call: &str, json: &str) -> bool {
        let mut curl = Command::new("curl");
        curl.args(["-fsS", "--noproxy", "*", "-d", json]);
        curl.arg(format!("http://{}/{call}", self.dns));
        curl.output().unwrap().status.success()
    }

    pub(crate) fn points_to(&self, host: &str, address: &str) {
        let json = format!(r#"{{"host": "{host}.", "addresses": ["{address}"]}}"#);
        // Addresses are added to those there are.
        let host = format!(r#"{{"host": "{host}."}}"#);
        assert!(self.set_name("clear-a", &host));
        assert!(self.set_name("add-a", &json));
    }

    pub(crate) fn start_edge(&mut self, number: usize, address: &str) {
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
    pub(crate) fn deploy(&mut self, hosts: &[&str]) {
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

    pub(crate) fn push_image(&mut self) -> String {
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
    pub(crate) fn blob(&self, bytes: &[u8]) -> (PathBuf, String) {
        let file = self.path("blob");
        std::fs::write(&file, bytes).unwrap();
        let sum = done(Command::new("sha256sum").arg(&file));
        (file, format!("sha256:{}", sum.split(' ').next().unwrap()))
    }

    pub(crate) fn push_blob(&self, registry: &str, bytes: &[u8]) -> String {
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
    pub(crate) fn on(&self, more: &[&str]) -> Command {
        let mut on = self.command(&["certificates", "acme", "on", "--directory", &self.directory]);
        on.arg("--ca-file").arg(self.path("ca.pem")).args(more);
        on
    }

    /// The status of plain HTTP at an edge, and where it leads.
    pub(crate) fn plain(&self, host: &str, address: &str) -> String {
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
    pub(crate) fn secure(&self, host: &str, address: &str) -> String {
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
    pub(crate) fn serial(&self, host: &str, address: &str) -> String {
        let script = format!(
            "openssl s_client -connect {address}:{} -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -serial",
            self.https_port
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for_certificate(&self, host: &str) {
        for address in EDGES {
            self.wait_for(&format!("a certificate for {host} at {address}"), || {
                self.secure(host, address) == "503"
            });
        }
    }

    pub(crate) fn events(&self) -> String {
        done(&mut self.command(&["events", "--all", "--kind", "certificate"]))
    }

    pub(crate) fn certificates(&self) -> Vec<serde_json::Value> {
        let text = done(&mut self.command(&["certificates", "--format", "json"]));
        serde_json::from_str(&text).unwrap()
    }

    /// The sources of the certificates that are for a host.
    pub(crate) fn sources(&self, host: &str) -> Vec<String> {
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

//! HTTPS over whole roles: a server, an edge, and curl. No instance runs: what is seen is who answers, and by which certificate.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

const MANIFEST: &str = r#"
app = "shop"
[processes.web]
[[processes.web.ports]]
port = 8080
protocol = "http"
[routes]
"shop.localhost" = { process = "web", port = 8080 }
"own.example.com" = { process = "web", port = 8080 }
"#;

/// A cluster in a folder, and the programs that run for it, ended with it.
struct Cluster {
    dir: tempfile::TempDir,
    running: Vec<Child>,
    https: String,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Its link to the instances of other machines.
        let mut down = self.command(&["edge", "down", "--data-dir"]);
        let _ = down.arg(self.path("edge")).status();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// What a command prints, once it succeeds.
#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap() + &stderr
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
        let log = std::fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.running.push(child.spawn().unwrap());
    }

    /// A server and an edge with a port for HTTPS, and an env whose hosts are routed.
    fn up() -> Self {
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            running: Vec::new(),
            https: free_address(),
        };
        let (server, http) = (free_address(), free_address());
        let mut command = cluster.command(&["server", "--listen", &server, "--data-dir"]);
        let folder = cluster.path("server");
        cluster.start("server", command.arg(folder));
        wait_for("the server", || {
            cluster
                .command(&["nodes"])
                .output()
                .unwrap()
                .status
                .success()
        });
        let token = done(&mut cluster.command(&["tokens", "create", "--role", "edge"]));
        let token = token.lines().next().unwrap().to_owned();
        let free = UdpSocket::bind("[::]:0").unwrap();
        let port = free.local_addr().unwrap().port().to_string();
        drop(free);
        let url = format!("https://{server}");
        let https = cluster.https.clone();
        let mut command = cluster.command(&["edge", "--server", &url, "--listen", &http]);
        command.args([
            "--listen-tls",
            &https,
            "--overlay-port",
            &port,
            "--data-dir",
        ]);
        let folder = cluster.path("edge");
        cluster.start("edge", command.arg(folder).env("PLATFORM_TOKEN", token));
        let image = cluster.push_image();
        let manifest = cluster.path("platform.toml");
        std::fs::write(&manifest, MANIFEST).unwrap();
        let mut deploy = cluster.command(&["deploy", "--no-wait", "--image", &image]);
        done(deploy.arg(manifest));
        wait_for("the edge", || curl("http://", &http, &[]).0 == "503");
        cluster
    }

    /// An image without anything in it, in a registry of its own.
    fn push_image(&mut self) -> String {
        let registry = free_address();
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
        wait_for("the registry", || {
            let mut curl = Command::new("curl");
            curl.args(["-fs", "--noproxy", "*", &url])
                .output()
                .unwrap()
                .status
                .success()
        });
        let layer = self.push_blob(&registry, &[0; 1024]);
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/hello"]}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        );
        let digest = self.push_blob(&registry, config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer}","size":1024}}]}}"#,
            config.len()
        );
        let (file, digest) = self.blob(manifest.as_bytes());
        let mut curl = Command::new("curl");
        curl.args(["-fsS", "--noproxy", "*", "-X", "PUT", "--data-binary"]);
        curl.arg(format!("@{}", file.display()));
        curl.args([
            "-H",
            "Content-Type: application/vnd.oci.image.manifest.v1+json",
        ]);
        done(curl.arg(format!("{url}shop/manifests/latest")));
        format!("{registry}/shop@{digest}")
    }

    /// A file with these bytes, and their digest.
    fn blob(&self, bytes: &[u8]) -> (PathBuf, String) {
        let file = self.path("blob");
        std::fs::write(&file, bytes).unwrap();
        let sum = done(Command::new("sha256sum").arg(&file));
        let sum = sum.split(' ').next().unwrap();
        (file, format!("sha256:{sum}"))
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
        curl.args(["-fsS", "--noproxy", "*", "-X", "PUT", "--data-binary"]);
        curl.arg(format!("@{}", file.display()));
        // Not a form: the registry would take the body for its fields.
        curl.args(["-H", "Content-Type: application/octet-stream"]);
        done(curl.arg(format!("{location}{join}digest={digest}")));
        digest
    }

    /// A CA, and a certificate of it for these names, by openssl.
    fn certificate(&self, name: &str, names: &str) -> (PathBuf, PathBuf) {
        let file = |ending: &str| self.path(&format!("{name}.{ending}"));
        let (cert, key) = (file("pem"), file("key"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
        ]);
        openssl.args([
            "-subj",
            "/CN=a test",
            "-addext",
            &format!("subjectAltName={names}"),
        ]);
        done(openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert));
        (cert, key)
    }

    fn add(&self, (cert, key): &(PathBuf, PathBuf)) -> Command {
        let mut add = self.command(&["certificates", "add", "--cert"]);
        add.arg(cert).arg("--key").arg(key);
        add
    }
}

/// The status that `shop.localhost` answers, and what curl says.
fn curl(scheme: &str, address: &str, arguments: &[&str]) -> (String, String) {
    curl_host("shop.localhost", scheme, address, arguments)
}

/// The same of another host.
fn curl_host(host: &str, scheme: &str, address: &str, arguments: &[&str]) -> (String, String) {
    let port = address.rsplit_once(':').unwrap().1;
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "--noproxy",
        "*",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    ]);
    curl.args(["--max-time", "20", "--resolve"]);
    curl.arg(format!("{host}:{port}:127.0.0.1"));
    let url = format!("{scheme}{host}:{port}/");
    let output = curl.args(arguments).arg(url).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn https_works_at_once_by_the_ingress_ca_and_by_a_certificate_that_is_added_until_the_edge_is_revoked()
 {
    let cluster = Cluster::up();
    let https = cluster.https.as_str();
    let ca = cluster.path("ingress-ca.pem");
    std::fs::write(&ca, done(&mut cluster.command(&["certificates", "ca"]))).unwrap();
    let trust = ["--cacert", ca.to_str().unwrap()];
    for version in ["--tlsv1.3", "--tls-max=1.2"] {
        let version: Vec<_> = version.split('=').collect();
        let arguments = [&trust[..], &version].concat();
        let (status, error) = curl("https://", https, &arguments);
        assert_eq!(status, "503", "{version:?}: {error}");
    }
    // No browser trusts it by itself, and it is not the CA of members.
    let (status, error) = curl("https://", https, &[]);
    assert_eq!(status, "000", "{error}");
    let config = std::fs::read(cluster.path("server/client.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let members = cluster.path("ca.pem");
    std::fs::write(&members, config["ca_pem"].as_str().unwrap()).unwrap();
    let of_members = ["--cacert", members.to_str().unwrap()];
    assert_eq!(curl("https://", https, &of_members).0, "000");
    // A host that nobody routes has none.
    let (_, error) = curl_host("other.localhost", "https://", https, &trust);
    assert!(error.contains("unrecognized name"), "{error}");

    // A certificate of an operator.
    let own = cluster.certificate("own", "DNS:own.example.com,DNS:*.example.org");
    let added = done(&mut cluster.add(&own));
    assert!(
        added.contains("certificate own.example.com is added, for own.example.com, *.example.org"),
        "{added}"
    );
    let trust_own = ["--cacert", own.0.to_str().unwrap()];
    wait_for("the edge has it", || {
        curl_host("own.example.com", "https://", https, &trust_own).0 == "503"
    });
    let (status, error) = curl_host("any.example.org", "https://", https, &trust_own);
    assert_eq!(status, "404", "{error}");
    let listed = done(&mut cluster.command(&["certificates"]));
    assert!(
        listed.contains("own.example.com") && listed.contains("a test"),
        "{listed}"
    );
    // Another key is refused, with what to do.
    let other = cluster.certificate("other", "DNS:own.example.com");
    let output = cluster.add(&(own.0.clone(), other.1)).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        error.contains("the private key does not belong to the first certificate"),
        "{error}"
    );

    // What is on the disk of the edge is its own.
    for (folder, file) in [
        ("certificates", "own.example.com.json"),
        ("host-certificates", "shop.localhost.json"),
    ] {
        let path = cluster.path("edge").join(folder).join(file);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    done(&mut cluster.command(&["certificates", "remove", "own.example.com"]));
    wait_for("the edge has it no more", || {
        curl_host("any.example.org", "https://", https, &trust_own).0 == "000"
    });
    assert!(files(&cluster.path("edge/certificates")).is_empty());

    done(&mut cluster.command(&["edges", "revoke", "e1", "--no-wait"]));
    wait_for("the revoked edge has no key", || {
        files(&cluster.path("edge/host-certificates")).is_empty()
    });
    assert_eq!(curl("https://", https, &trust).0, "000");
}

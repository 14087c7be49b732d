//! A real registry on a free loopback port (Debian's `docker-registry`), and a tiny image in it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use model::Digest;
use reqwest::{Client, Method, RequestBuilder};
use sha2::{Digest as _, Sha256};

use super::eventually;

const PROGRAM: &str = "/usr/bin/docker-registry";

pub(crate) struct Registry {
    child: Child,
    _folder: tempfile::TempDir,
    http: Client,
    user: bool,
    pub(crate) host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::start_for(false).await
    }

    /// With `user`, only `ann` with the password `secret` may come in.
    pub(crate) async fn start_for(user: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let htpasswd = folder.path().join("htpasswd");
        let hash = "ann:$2y$05$Ff4JtMgE.c9jhcQOAERigeEvqsdkzVnjJJ6LLq01I3U.nQKfy5Xm6\n";
        std::fs::write(&htpasswd, hash).unwrap();
        let auth = if user {
            format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                htpasswd.display()
            )
        } else {
            String::new()
        };
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\n\
             log: {{level: error}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n{auth}",
            folder.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{PROGRAM}: {e}; install Debian's docker-registry"));
        let registry = Self {
            child,
            _folder: folder,
            http: Client::builder().no_proxy().build().unwrap(),
            user,
            host: format!("127.0.0.1:{port}"),
        };
        let url = registry.url("");
        eventually("the registry answers", async || {
            registry.http.get(&url).send().await.ok()
        })
        .await;
        registry
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.host)
    }

    fn request(&self, method: Method, url: String) -> RequestBuilder {
        let request = self.http.request(method, url);
        if self.user {
            request.basic_auth("ann", Some("secret"))
        } else {
            request
        }
    }

    /// Pushes an image that has one empty layer, for this architecture; `label` makes its digest.
    pub(crate) async fn push(&self, repository: &str, arch: &str, label: &str) -> Digest {
        let run = format!(r#""Cmd":["/hello"],"Labels":{{"label":"{label}"}}"#);
        self.push_config(repository, arch, &run).await
    }

    /// The same, with this run config: the fields of a JSON object.
    pub(crate) async fn push_config(&self, repository: &str, arch: &str, run: &str) -> Digest {
        let layer = [0u8; 1024]; // An empty tar: two blocks of zeros.
        let config = format!(
            r#"{{"architecture":"{arch}","os":"linux","config":{{{run}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            digest(&layer)
        );
        self.push_blob(repository, &layer).await;
        self.push_blob(repository, config.as_bytes()).await;
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
            digest(config.as_bytes()),
            config.len(),
            digest(&layer),
            layer.len()
        );
        self.request(
            Method::PUT,
            self.url(&format!("{repository}/manifests/latest")),
        )
        .header("content-type", "application/vnd.oci.image.manifest.v1+json")
        .body(manifest.clone())
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
        digest(manifest.as_bytes())
    }

    async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let begun = self
            .request(
                Method::POST,
                self.url(&format!("{repository}/blobs/uploads/")),
            )
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        let location = begun.headers()["location"].to_str().unwrap();
        let url = reqwest::Url::parse(&self.url("")).unwrap();
        let mut url = url.join(location).unwrap();
        url.query_pairs_mut()
            .append_pair("digest", &digest(blob).to_string());
        self.request(Method::PUT, url.to_string())
            .body(blob.to_vec())
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
    }
}

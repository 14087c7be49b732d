//! Against Debian's `docker-registry`, with the images pushed as any client pushes them.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::Digest;
use oci::{ImageError, Platform, Reference};
use registry::{Credential, Credentials, DockerConfig, Problem};

use crate::support::{
    Cache, Image, OCI_INDEX, OCI_MANIFEST, chain, client, descriptor, digest, fetch, noise, pinned,
    quick,
};

/// A registry of its own for each test, ended by its process id.
struct RealRegistry {
    host: String,
    child: Child,
    _dir: tempfile::TempDir,
    http: reqwest::Client,
    user: bool,
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RealRegistry {
    /// With `user`, only `ann` with the password `secret` may come in.
    async fn start(user: bool) -> Self {
        let program = Path::new("/usr/bin/docker-registry");
        assert!(
            program.exists(),
            "this test needs: apt-get install docker-registry"
        );
        let dir = tempfile::tempdir().unwrap();
        // The port is free now; should someone take it meanwhile, the registry ends and we see it.
        let unused = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = unused.local_addr().unwrap().to_string();
        drop(unused);
        let htpasswd = dir.path().join("htpasswd");
        let hash = "ann:$2y$05$Ff4JtMgE.c9jhcQOAERigeEvqsdkzVnjJJ6LLq01I3U.nQKfy5Xm6\n";
        std::fs::write(&htpasswd, hash).unwrap();
        let auth = if user {
            format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}
",
                htpasswd.display()
            )
        } else {
            String::new()
        };
        let config = dir.path().join("config.yml");
        let mut file = std::fs::File::create(&config).unwrap();
        writeln!(
            file,
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"{host}\"}}\n{auth}",
            dir.path().join("data").display()
        )
        .unwrap();
        let mut child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let begun = Instant::now();
        while http.get(format!("http://{host}/v2/")).send().await.is_err() {
            assert!(child.try_wait().unwrap().is_none(), "docker-registry ended");
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "docker-registry does not answer"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self {
            host,
            child,
            _dir: dir,
            http,
            user,
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let request = if self.user {
            request.basic_auth("ann", Some("secret"))
        } else {
            request
        };
        let response = request.send().await.unwrap();
        let status = response.status();
        assert!(status.is_success(), "{status}");
        response
    }

    /// Pushes the blobs, and the manifest by its digest and perhaps a tag.
    async fn push(&self, image: &Image, kind: &str, tag: Option<&str>) -> Digest {
        for (digest, blob) in image.blobs() {
            let uploads = format!("http://{}/v2/test/app/blobs/uploads/", self.host);
            let begun = self.send(self.http.post(uploads)).await;
            let location = begun.headers()["location"].to_str().unwrap().to_owned();
            let url = format!("{location}&digest={digest}");
            let upload = self
                .http
                .put(url)
                .header("Content-Type", "application/octet-stream");
            self.send(upload.body(blob)).await;
        }
        self.push_manifest(&image.manifest, kind, tag).await
    }

    async fn push_manifest(&self, bytes: &[u8], kind: &str, tag: Option<&str>) -> Digest {
        let digest = digest(bytes);
        let name = tag.unwrap_or(digest.as_str());
        let url = format!("http://{}/v2/test/app/manifests/{name}", self.host);
        let request = self
            .http
            .put(url)
            .header("Content-Type", kind)
            .body(bytes.to_vec());
        self.send(request).await;
        digest
    }

    fn reference(&self, end: &str) -> Reference {
        format!("{}/test/app{end}", self.host).parse().unwrap()
    }
}

#[tokio::test]
async fn an_image_is_resolved_by_tag_and_fetched_by_digest() {
    let real = RealRegistry::start(false).await;
    let image = Image::new("amd64", &[noise(1, 3_000_000), noise(2, 10), noise(3, 0)]);
    let pushed = real.push(&image, OCI_MANIFEST, Some("v1")).await;
    let registry = client(quick(), Credentials::Anonymous);
    let amd64 = [Platform::of("amd64")];

    let by_tag = registry
        .resolve(&real.reference(":v1"), &amd64)
        .await
        .unwrap();
    assert_eq!(by_tag.ref_digest, pushed);
    assert_eq!(by_tag.pinned_tag.as_deref(), Some("v1"));
    assert!(!by_tag.is_index);
    assert_eq!(by_tag.by_arch["amd64"], pushed);
    assert_eq!(by_tag.images["amd64"].size_bytes, 3_000_010);
    let by_digest = real.reference(&format!(":moved@{pushed}"));
    let by_digest = registry.resolve(&by_digest, &amd64).await.unwrap();
    assert_eq!(
        (by_digest.pinned_tag, by_digest.ref_digest),
        (None, pushed.clone())
    );

    let cache = Cache::new();
    let (result, reported) = fetch(&registry, &pinned(&real.host, &pushed), &cache).await;
    let fetched = result.unwrap();
    assert_eq!(fetched.digest, pushed);
    for (layer, bytes) in fetched.layers.iter().zip(&image.layers) {
        assert_eq!(std::fs::read(&layer.path).unwrap(), *bytes);
        assert_eq!(layer.size, bytes.len() as u64);
    }
    assert!(
        reported.len() >= 4 && reported.is_sorted_by_key(|p| p.done_bytes),
        "{reported:?}"
    );
    assert_eq!(reported.last().unwrap().done_bytes, 3_000_010);

    let arm = registry
        .resolve(&real.reference(":v1"), &[Platform::of("arm64")])
        .await;
    let error = arm.unwrap_err();
    assert_eq!(
        chain(&error, &real.host),
        "cannot resolve HOST/test/app:v1: the image is not made for linux/arm64; it has: linux/amd64"
    );
    for missing in [":v2".to_owned(), format!("@{}", digest(b"other"))] {
        let error = registry
            .resolve(&real.reference(&missing), &amd64)
            .await
            .unwrap_err();
        assert!(
            matches!(error.problem, Problem::NotFound { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn an_index_is_resolved_for_each_architecture() {
    let real = RealRegistry::start(false).await;
    let mut entries = Vec::new();
    let mut digests = Vec::new();
    for (seed, architecture, variant) in [
        (1, "amd64", ""),
        (2, "arm64", "v8"),
        (3, "arm", "v6"),
        (4, "arm", "v7"),
    ] {
        let image = Image::new(architecture, &[noise(seed, 100)]);
        digests.push(real.push(&image, OCI_MANIFEST, None).await);
        let variant = match variant {
            "" => String::new(),
            variant => format!(r#","variant":"{variant}""#),
        };
        let platform =
            format!(r#","platform":{{"os":"linux","architecture":"{architecture}"{variant}}}"#);
        entries.push(descriptor(OCI_MANIFEST, &image.manifest, &platform));
    }
    // What buildkit puts beside the images.
    let attestation = Image::new("unknown", &[b"{}".to_vec()]);
    real.push(&attestation, OCI_MANIFEST, None).await;
    let unknown = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"},"platform":{"os":"unknown","architecture":"unknown"}"#;
    entries.push(descriptor(OCI_MANIFEST, &attestation.manifest, unknown));
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
        entries.join(",")
    );
    let pushed = real
        .push_manifest(index.as_bytes(), OCI_INDEX, Some("all"))
        .await;

    let registry = client(quick(), Credentials::Anonymous);
    let wanted = [
        "linux/amd64",
        "linux/arm64",
        "linux/arm/v7",
        "linux/riscv64",
    ];
    let wanted = wanted.map(|text| text.parse::<Platform>().unwrap());
    let resolved = registry
        .resolve(&real.reference(":all"), &wanted)
        .await
        .unwrap();
    assert!(resolved.is_index);
    assert_eq!(resolved.ref_digest, pushed);
    let chosen: Vec<_> = resolved
        .by_arch
        .iter()
        .map(|(key, digest)| (key.as_str(), digest))
        .collect();
    let expected = [
        ("amd64", &digests[0]),
        ("arm/v7", &digests[3]),
        ("arm64", &digests[1]),
    ];
    assert_eq!(chosen, expected);
    assert_eq!(resolved.offered.len(), 4);

    let all = registry
        .resolve(&real.reference(":all"), &[])
        .await
        .unwrap();
    let keys: Vec<_> = all.by_arch.keys().map(String::as_str).collect();
    assert_eq!(keys, ["amd64", "arm/v6", "arm/v7", "arm64/v8"]);

    let error = registry
        .resolve(&real.reference(":all"), &wanted[3..])
        .await
        .unwrap_err();
    assert!(
        matches!(
            error.problem,
            Problem::Image(ImageError::NoSuchPlatform { .. })
        ),
        "{error:?}"
    );

    // A node fetches images only; an index is none.
    let (result, _) = fetch(&registry, &pinned(&real.host, &pushed), &Cache::new()).await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::Image(ImageError::NotAManifest { .. })
    ));
}

#[tokio::test]
async fn docker_media_types_are_accepted() {
    let real = RealRegistry::start(false).await;
    let mut image = Image::new("amd64", &[noise(1, 100)]);
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let text = String::from_utf8(image.manifest).unwrap();
    image.manifest = text
        .replace(OCI_MANIFEST, kind)
        .replace(
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        )
        .replace(
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
        .into_bytes();
    let pushed = real.push(&image, kind, Some("docker")).await;
    let registry = client(quick(), Credentials::Anonymous);
    let resolved = registry
        .resolve(&real.reference(":docker"), &[])
        .await
        .unwrap();
    assert_eq!(resolved.by_arch["amd64"], pushed);
    let (result, _) = fetch(&registry, &pinned(&real.host, &pushed), &Cache::new()).await;
    assert_eq!(
        result.unwrap().layers[0].compression,
        oci::Compression::Gzip
    );
}

#[tokio::test]
async fn a_password_from_the_docker_config_is_accepted() {
    let real = RealRegistry::start(true).await;
    let image = Image::new("amd64", &[noise(1, 100)]);
    real.push(&image, OCI_MANIFEST, Some("v1")).await;
    let resolve = async |credentials| {
        client(quick(), credentials)
            .resolve(&real.reference(":v1"), &[])
            .await
    };
    let error = resolve(Credentials::Anonymous).await.unwrap_err();
    assert!(matches!(error.problem, Problem::Denied { .. }), "{error:?}");
    assert_eq!(
        error.problem.hint().unwrap(),
        format!("log in first: docker login {}", real.host)
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let with_password = |encoded: &str| {
        let text = format!(r#"{{"auths":{{"{}":{{"auth":"{encoded}"}}}}}}"#, real.host);
        std::fs::write(&path, text).unwrap();
        Credentials::Docker(DockerConfig::read(&path).unwrap())
    };
    resolve(with_password("YW5uOnNlY3JldA==")).await.unwrap();

    let registry = client(quick(), Credentials::Anonymous);
    for (password, right) in [("secret", true), ("wrong", false)] {
        let credential = Credential::Basic {
            user: "ann".to_owned(),
            password: password.to_owned(),
        };
        let result = registry.log_in(&real.host, &credential).await;
        match result {
            Ok(()) => assert!(right),
            Err(error) => assert!(!right && matches!(error.problem, Problem::Denied { .. })),
        }
    }
    let error = resolve(with_password("YW5uOndyb25n")).await.unwrap_err();
    assert!(matches!(error.problem, Problem::Denied { .. }), "{error:?}");
}

//! Images made on the spot, and looks into a cache directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::Digest;
use model::instance::PinnedImage;
use oci::{LocalImage, Reference};
use registry::{
    BlobCache, Credentials, FetchEvent, FetchProgress, Limits, Registry, RegistryError,
    RegistryOptions,
};
use sha2::Digest as _;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

/// Bytes that do not repeat, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// An image in memory: its manifest, and the blobs it names.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Image {
    /// An image for this architecture of these layers, which nothing here unpacks.
    pub(crate) fn new(architecture: &str, layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<_> = layers
            .iter()
            .map(|layer| format!("\"{}\"", digest(layer)))
            .collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"{architecture}","config":{{"Cmd":["/bin/true"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                let kind = "application/vnd.oci.image.layer.v1.tar";
                descriptor(kind, layer, "")
            })
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(
                "application/vnd.oci.image.config.v1+json",
                config.as_bytes(),
                ""
            ),
            descriptors.join(",")
        );
        Self {
            manifest: manifest.into_bytes(),
            config: config.into_bytes(),
            layers: layers.to_vec(),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        digest(&self.manifest)
    }

    /// Its blobs by digest, the manifest not among them.
    pub(crate) fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let blobs = self.layers.iter().chain([&self.config]);
        blobs
            .map(|blob| (digest(blob).to_string(), blob.clone()))
            .collect()
    }
}

/// A descriptor as JSON; `more` is further fields with a leading comma.
pub(crate) fn descriptor(kind: &str, bytes: &[u8], more: &str) -> String {
    format!(
        r#"{{"mediaType":"{kind}","digest":"{}","size":{}{more}}}"#,
        digest(bytes),
        bytes.len()
    )
}

/// Times for a test: nothing here is far away.
pub(crate) fn quick() -> Limits {
    Limits {
        attempts: 3,
        backoff: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        retry_after_max: Duration::from_millis(50),
        connect: Duration::from_secs(2),
        stall: Duration::from_millis(400),
        blob_grace: Duration::from_secs(5),
        ..Limits::default()
    }
}

pub(crate) fn client(limits: Limits, credentials: Credentials) -> Registry {
    Registry::new(RegistryOptions {
        limits,
        credentials,
        ..RegistryOptions::default()
    })
    .unwrap()
}

pub(crate) fn pinned(registry: &str, digest: &Digest) -> PinnedImage {
    PinnedImage {
        registry: registry.to_owned(),
        repository: "test/app".to_owned(),
        digest: digest.clone(),
    }
}

/// A cache in a directory of its own.
pub(crate) struct Cache {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cache: BlobCache,
}

impl Cache {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path()).unwrap();
        Self { dir, cache }
    }

    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        self.cache.lookup(&digest(bytes)).unwrap().is_some()
    }

    /// Everything in it has the digest it is called by, and nothing half done is left but what a later fetch goes on with.
    pub(crate) fn assert_sound(&self) {
        for blob in self.cache.list().unwrap() {
            let digest = blob.digest;
            assert!(self.cache.verify(&digest).unwrap(), "{digest} is corrupt");
        }
        let names = |dir: &Path| {
            let names = std::fs::read_dir(dir).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name());
            let partial =
                |name: &std::ffi::OsString| name.to_string_lossy().starts_with("partial-");
            names.filter(|name| !partial(name)).count()
        };
        // A thread that was given up removes its file when it gets to it.
        let begun = std::time::Instant::now();
        while names(&self.dir.path().join("tmp")) > 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "a temporary file is left"
            );
            std::thread::yield_now();
        }
        assert_eq!(names(self.dir.path()), 2);
    }
}

/// Fetches, and gathers what progress was reported.
pub(crate) async fn fetch(
    registry: &Registry,
    image: &PinnedImage,
    cache: &Cache,
) -> (Result<LocalImage, RegistryError>, Vec<FetchProgress>) {
    let reported = Arc::new(Mutex::new(Vec::new()));
    let result = {
        let reported = Arc::clone(&reported);
        registry
            .fetch_image(image, &cache.cache, &move |event| {
                if let FetchEvent::Progress(progress) = event {
                    reported.lock().unwrap().push(progress);
                }
            })
            .await
    };
    cache.assert_sound();
    let reported = reported.lock().unwrap().clone();
    (result, reported)
}

/// An error and its causes in one line, with addresses that differ from run to run replaced.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static), host: &str) -> String {
    display::chain(error).replace(host, "HOST")
}

/// Node agents spawn fetches, so the future must be `Send`: this must compile.
#[allow(dead_code, reason = "it is enough that it compiles")]
fn a_fetch_may_be_spawned(registry: Registry, cache: BlobCache, reference: Reference) {
    tokio::spawn(async move {
        let image = pinned("localhost", &digest(b""));
        let text = String::new();
        let _ = registry
            .fetch_image(&image, &cache, &|_| assert!(text.is_empty()))
            .await;
        let _ = registry.resolve(&reference, &[]).await;
    });
}

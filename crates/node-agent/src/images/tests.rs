#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Condvar;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use registry::RegistryOptions;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::metrics::NodeMetrics;

/// A registry of a few images in memory, on a loopback port, for as long as the process lives.
pub(crate) struct Served {
    host: String,
    held: Arc<Withheld>,
    asked: Arc<AtomicUsize>,
    pub(crate) images: Vec<PinnedImage>,
}

/// What the registry does not send yet, by digest.
#[derive(Default)]
struct Withheld {
    digests: Mutex<BTreeMap<String, bool>>,
    changed: Condvar,
}

impl Withheld {
    /// Waits while `path` is held, and notes that it was asked for.
    fn pass(&self, path: &str) {
        let mut digests = self.digests.lock().unwrap();
        while let Some(asked) = digests.get_mut(path.rsplit('/').next().unwrap_or_default()) {
            *asked = true;
            self.changed.notify_all();
            digests = self.changed.wait(digests).unwrap();
        }
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// A tar with one file of so many bytes that gzip would not shrink.
fn layer(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let content: Vec<u8> = (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(length as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", &content[..]).unwrap();
    tar.into_inner().unwrap()
}

impl Served {
    /// Images of one layer each, of so many bytes.
    pub(crate) fn start(count: u8, layer_bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let mut content = HashMap::new();
        let mut images = Vec::new();
        for seed in 0..count {
            let layer = layer(seed, layer_bytes);
            let config = format!(
                r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["/{seed}"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                digest(&layer)
            );
            let described = |kind: &str, bytes: &[u8]| {
                let (digest, size) = (digest(bytes), bytes.len());
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#
                )
            };
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
                described("config.v1+json", config.as_bytes()),
                described("layer.v1.tar", &layer)
            );
            images.push(PinnedImage {
                registry: host.clone(),
                repository: "test/app".to_owned(),
                digest: digest(manifest.as_bytes()),
            });
            for bytes in [layer, config.into_bytes(), manifest.into_bytes()] {
                content.insert(digest(&bytes).to_string(), bytes);
            }
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let held = Arc::<Withheld>::default();
        let (content, holds) = (Arc::new(content), held.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                let (content, holds) = (content.clone(), holds.clone());
                // A client that hangs up (its disk is full) is no error of the server.
                std::thread::spawn(move || drop(answer(stream.unwrap(), &content, &holds)));
            }
        });
        Self {
            host,
            held,
            asked,
            images,
        }
    }

    /// Sends the layer of an image of `start` no more.
    fn hold_layer(&self, seed: u8, layer_bytes: usize) -> String {
        let layer = digest(&layer(seed, layer_bytes)).to_string();
        let mut digests = self.held.digests.lock().unwrap();
        digests.insert(layer.clone(), false);
        layer
    }

    /// Waits until what is held was asked for. Blocks.
    fn wait_until_asked(held: &Withheld, digest: &str) {
        let mut digests = held.digests.lock().unwrap();
        while !digests[digest] {
            digests = held.changed.wait(digests).unwrap();
        }
    }

    /// Sends it after all.
    fn release(&self, digest: &str) {
        self.held.digests.lock().unwrap().remove(digest);
        self.held.changed.notify_all();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self, dir: &Path, budget_bytes: u64) -> ImageCache {
        assert!(self.host.starts_with("127.0.0.1:"));
        let registry = Registry::new(RegistryOptions::default()).unwrap();
        ImageCache::open(dir, registry, budget_bytes, NodeMetrics::default()).unwrap()
    }
}

fn answer(
    mut stream: std::net::TcpStream,
    content: &HashMap<String, Vec<u8>>,
    held: &Withheld,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    held.pass(&path);
    let Some(bytes) = content.get(path.rsplit('/').next().unwrap_or_default()) else {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#;
        let length = body.len();
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    )?;
    stream.write_all(bytes)
}

async fn prepare(images: &ImageCache, image: &PinnedImage) -> Result<PreparedImage, PrepareError> {
    images.prepare(image, &|_| ()).await
}

/// The listed images by their place in `served`, those last used first.
fn listed(images: &ImageCache, served: &Served) -> Vec<usize> {
    let place = |image| served.images.iter().position(|i| *i == image).unwrap();
    let listed = images.listed().into_iter();
    listed.map(|cached| place(cached.image)).collect()
}

/// As if everything in the cache had last been used so long ago.
fn age(dir: &Path, minutes: u64) {
    let then = SystemTime::now() - Duration::from_mins(minutes);
    for folder in ["blobs/blobs/sha256", "disks"] {
        for entry in std::fs::read_dir(dir.join(folder)).unwrap() {
            let file = std::fs::File::options()
                .append(true)
                .open(entry.unwrap().path());
            file.unwrap().set_modified(then).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_keeps_what_runs_and_the_last_releases() {
    const MB: u64 = 1_000_000;
    let served = Served::start(4, 1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let images = served.open(dir.path(), 3 * MB);
    for (number, image) in served.images.iter().enumerate() {
        prepare(&images, image).await.unwrap();
        age(dir.path(), 60 - number as u64);
    }
    let running = images.used_by_instance(&served.images[0].digest);
    images.set_pinned([served.images[1].digest.clone()]);
    images.look_again().await;
    assert_eq!(listed(&images, &served).len(), 4);

    // 8 MB of layers and disks: the layers and the disk that nobody needs and was used longest ago go.
    images.tidy().await;
    assert_eq!(listed(&images, &served).len(), 2, "{:?}", images.listed());
    let mut stay = listed(&images, &served);
    stay.sort_unstable();
    assert_eq!(stay, [0, 1]);
    let row = |digest: &Digest| {
        let mut rows = images.listed().into_iter();
        rows.find(|row| row.image.digest == *digest).unwrap()
    };
    let (first, second) = (row(&served.images[0].digest), row(&served.images[1].digest));
    assert_eq!((first.instances, first.pinned), (1, false));
    assert_eq!((second.instances, second.pinned), (0, true));

    // What is cached needs no registry, also for the next agent on this folder.
    let before = served.asked();
    prepare(&images, &served.images[0]).await.unwrap();
    drop(images);
    let images = served.open(dir.path(), MB);
    let again = prepare(&images, &served.images[1]).await.unwrap();
    assert_eq!(again.config.cmd, ["/1"]);
    assert_eq!(served.asked(), before);

    // It knows of no instance and of no release yet, so nothing is kept for them.
    drop(running);
    images.remove_over(0).await;
    assert_eq!(listed(&images, &served), [0; 0]);
    prepare(&images, &served.images[0]).await.unwrap();
}

/// A small file system of its own, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting a small disk needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        Some(Self(dir))
    }

    /// Nothing half done anywhere.
    fn assert_sound(&self) {
        let names = |folder: &str| -> Vec<String> {
            let entries = std::fs::read_dir(self.0.path().join(folder)).unwrap();
            let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
            entries
                .map(|entry| name(entry).into_string().unwrap())
                .collect()
        };
        let disks = names("disks");
        for name in &disks {
            let (hex, end) = name.split_once('.').unwrap();
            let other = if end == "json" { "ext4" } else { "json" };
            assert!(disks.contains(&format!("{hex}.{other}")), "{disks:?}");
        }
        // A thread that was given up removes its file when it gets to it.
        let begun = std::time::Instant::now();
        while !names("blobs/tmp").is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_room_or_says_so_and_recovers() {
    let Some(small) = SmallDisk::mount(14) else {
        return;
    };
    let served = Served::start(5, 3_000_000);
    let images = served.open(small.0.path(), u64::MAX);
    // Each takes 3 MB as a layer and 3 MB as a disk: the third finds no room, and the unused ones go.
    for image in &served.images[..3] {
        prepare(&images, image).await.unwrap();
        small.assert_sound();
    }
    assert_eq!(listed(&images, &served), [2]);

    // Instances need all that is there: the failure is reported as transient.
    let used: Vec<_> = served.images[1..4]
        .iter()
        .map(|image| images.used_by_instance(&image.digest))
        .collect();
    prepare(&images, &served.images[1]).await.unwrap();
    prepare(&images, &served.images[3]).await.unwrap();
    let full = prepare(&images, &served.images[4]).await;
    let error = full.unwrap_err();
    assert!(error.is_storage_full() && error.is_transient(), "{error:?}");
    small.assert_sound();
    let mut stay = listed(&images, &served);
    stay.sort_unstable();
    assert_eq!(stay, [1, 2, 3], "what instances use");

    drop(used);
    prepare(&images, &served.images[4]).await.unwrap();
    small.assert_sound();
}

/// A registry that hangs in the middle of an image, and a full disk meanwhile: whoever needs another image does not wait.
#[tokio::test(flavor = "multi_thread")]
async fn case_a_slow_registry_and_an_eviction_hold_up_no_other_image() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let served = Served::start(3, 100_000);
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(served.open(dir.path(), u64::MAX));
    let _used = images.used_by_instance(&served.images[0].digest);
    prepare(&images, &served.images[0]).await.unwrap();
    let layer = served.hold_layer(1, 100_000);
    let slow = {
        let (images, image) = (images.clone(), served.images[1].clone());
        tokio::spawn(async move { prepare(&images, &image).await })
    };
    let (held, asked) = (served.held.clone(), layer.clone());
    blocking(move || Served::wait_until_asked(&held, &asked)).await;

    // Two evictions: one runs, one waits for its turn.
    let evicting = async { tokio::join!(images.remove_over(0), images.remove_over(0)) };
    let meanwhile = async {
        prepare(&images, &served.images[0]).await.unwrap();
        prepare(&images, &served.images[2]).await.unwrap();
    };
    let both = tokio::time::timeout(PATIENCE, async { tokio::join!(evicting, meanwhile) });
    both.await.expect("somebody waits for the registry");

    // What the slow one had fetched so far was not evicted under it.
    let blobs = std::fs::read_dir(dir.path().join("blobs/blobs/sha256")).unwrap();
    assert!(blobs.count() >= 2, "its manifest and its config");
    served.release(&layer);
    let prepared = tokio::time::timeout(PATIENCE, slow).await;
    assert_eq!(prepared.unwrap().unwrap().unwrap().config.cmd, ["/1"]);
}

#[tokio::test]
async fn an_unfinished_download_counts_towards_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Served::start(1, 1000).open(dir.path(), 1500);
    let partial = |seed: u8| {
        let name = format!("partial-{}", digest(&[seed]).hex());
        let path = dir.path().join("blobs/tmp").join(name);
        std::fs::write(&path, [seed; 1000]).unwrap();
        path
    };
    let (one, two) = (partial(1), partial(2));
    cache.tidy().await;
    assert_eq!(usize::from(one.exists()) + usize::from(two.exists()), 1);
    cache.remove_over(0).await;
    assert!(!one.exists() && !two.exists());
}

#[test]
fn case_a_denied_pull_names_the_command_that_helps_and_the_image_once() {
    let image = PinnedImage {
        registry: "ghcr.io".to_owned(),
        repository: "team/shop".to_owned(),
        digest: digest(b"shop"),
    };
    let denied = |login| {
        PrepareError::Fetch(Box::new(RegistryError {
            operation: "fetch",
            image: image.to_string(),
            problem: Problem::Denied {
                host: "ghcr.io".to_owned(),
                login,
                reason: "token expired".to_owned(),
            },
        }))
    };
    let expired = denied(LoginState::Expired);
    assert!(!expired.is_transient());
    assert_eq!(
        expired.hint().unwrap(),
        "log in again: `platform registries login ghcr.io`"
    );
    let text = display::chain(&expired);
    assert_eq!(
        text,
        format!(
            "cannot fetch {image}: ghcr.io denies access, the login is wrong or has expired: token expired"
        )
    );
    assert_eq!(text.matches(image.digest.hex()).count(), 1);
    assert_eq!(
        denied(LoginState::Unknown).hint().unwrap(),
        "`platform registries login ghcr.io` lets the cluster in"
    );
}

#[test]
fn a_pause_that_a_registry_asks_for_is_shown() {
    let waiting = FetchEvent::Waiting {
        reason: "docker.io answers 429: slow down".to_owned(),
        pause: Duration::from_millis(89_500),
    };
    assert_eq!(
        describe(&waiting),
        "docker.io answers 429: slow down; asking again in 90 s"
    );
}

#[test]
fn image_record_of_each_version_is_read_with_and_without_added_fields() {
    state_file::fixtures::check::<ImageRecord>(&[include_str!(
        "../fixtures/image-record/version-1.json"
    )]);
}

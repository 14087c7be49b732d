//! Images in files, and what callers may do with the futures.

use std::fs;
use std::path::Path;

use registry::{BlobCache, Compression, Credentials, Platform, Problem, Registry, Source};

use crate::support::{
    Cache, Image, OCI_MANIFEST, chain, client, descriptor, digest, noise, pinned, quick,
};

/// Agents spawn fetches; that must compile.
#[allow(dead_code, reason = "it is enough that it compiles")]
fn a_fetch_may_be_spawned(registry: Registry, cache: BlobCache, source: Source) {
    tokio::spawn(async move {
        let image = pinned("localhost", &digest(b""));
        let told = String::new();
        let _ = registry
            .fetch_image(&image, &cache, &|_| assert!(told.is_empty()))
            .await;
        let host = Platform::host();
        let _ = registry.fetch_source(&source, &host, &cache, &|_| ()).await;
        let _ = registry.resolve_source(&source, &[host]).await;
    });
}

fn write_layout(dir: &Path, images: &[(&Image, &str)]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut entries = Vec::new();
    for (image, tag) in images {
        for (name, bytes) in image.blobs() {
            fs::write(blobs.join(name.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        }
        fs::write(blobs.join(image.digest().hex()), &image.manifest).unwrap();
        let name = format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#);
        entries.push(descriptor(OCI_MANIFEST, &image.manifest, &name));
    }
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    );
    fs::write(dir.join("index.json"), index).unwrap();
}

#[tokio::test]
async fn an_oci_layout_is_read_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let first = Image::new("amd64", &[noise(1, 5000), noise(2, 6000)]);
    let second = Image::new("arm64", &[noise(3, 10)]);
    write_layout(dir.path(), &[(&first, "one"), (&second, "two")]);
    let registry = client(quick(), Credentials::Anonymous);
    let cache = Cache::new();
    let source = |end: &str| {
        format!("oci:{}{end}", dir.path().display())
            .parse::<Source>()
            .unwrap()
    };
    let amd64 = Platform::of("amd64");

    for end in [":one".to_owned(), format!("@{}", first.digest())] {
        let source = source(&end);
        let fetched = registry
            .fetch_source(&source, &amd64, &cache.cache, &|_| ())
            .await
            .unwrap();
        assert_eq!(fetched.ref_digest, first.digest());
        assert_eq!(fetched.image.layers.len(), 2);
        assert!(fetched.image.layers[1].path.starts_with(dir.path()));
        assert_eq!(
            fs::read(&fetched.image.layers[1].path).unwrap(),
            first.layers[1]
        );
    }
    assert!(cache.cache.list().unwrap().is_empty());
    let resolved = registry.resolve_source(&source(":two"), &[]).await.unwrap();
    assert_eq!(resolved.by_arch["arm64"], second.digest());

    let place = dir.path().display().to_string();
    for (end, reason) in [
        (
            "",
            "the index.json is malformed: it has several images, choose one: one, two",
        ),
        (":three", "DIR has no image `three`"),
        (
            ":two",
            "the image is not made for linux/amd64; it has: linux/arm64",
        ),
    ] {
        let error = registry
            .fetch_source(&source(end), &amd64, &cache.cache, &|_| ())
            .await
            .unwrap_err();
        let shown = chain(&error, "HOST").replace(&place, "DIR");
        assert_eq!(shown, format!("cannot fetch oci:DIR{end}: {reason}"));
    }
    // A layer of another size is noticed here, other bytes when it is unpacked.
    let layer = dir
        .path()
        .join("blobs/sha256")
        .join(digest(&first.layers[0]).hex());
    fs::write(layer, b"short").unwrap();
    let fetched = registry
        .fetch_source(&source(":one"), &amd64, &cache.cache, &|_| ())
        .await;
    assert!(matches!(
        fetched.unwrap_err().problem,
        Problem::WrongSize { .. }
    ));
    let manifest = dir.path().join("blobs/sha256").join(first.digest().hex());
    fs::write(manifest, b"{}").unwrap();
    let fetched = registry
        .fetch_source(&source(":one"), &amd64, &cache.cache, &|_| ())
        .await;
    assert!(matches!(
        fetched.unwrap_err().problem,
        Problem::WrongDigest { .. }
    ));
}

/// What `docker save` writes, with the layers under these names and perhaps a link.
fn docker_archive(file: &Path, image: &Image, layers: &[Vec<u8>]) {
    let mut tar = tar::Builder::new(fs::File::create(file).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let mut names = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        add(&format!("{index}/layer.tar"), layer);
        names.push(format!("\"{index}/layer.tar\""));
    }
    add("config.json", &image.config);
    let manifest = format!(
        r#"[{{"Config":"config.json","RepoTags":["app:v1"],"Layers":[{}]}}]"#,
        names.join(",")
    );
    add("manifest.json", manifest.as_bytes());
    tar.finish().unwrap();
}

#[tokio::test]
async fn a_docker_archive_goes_into_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.tar");
    let image = Image::new("amd64", &[noise(1, 600_000), noise(2, 10)]);
    docker_archive(&file, &image, &image.layers);
    let registry = client(quick(), Credentials::Anonymous);
    let cache = Cache::new();
    let amd64 = Platform::of("amd64");
    let fetch = async |end: &str| {
        let source = format!("docker-archive:{}{end}", file.display())
            .parse::<Source>()
            .unwrap();
        let fetched = registry
            .fetch_source(&source, &amd64, &cache.cache, &|_| ())
            .await;
        cache.assert_sound();
        fetched
    };
    for end in ["", ":app:v1", ":docker.io/library/app:v1"] {
        let fetched = fetch(end).await.unwrap();
        assert_eq!(fetched.ref_digest, digest(&image.config));
        assert_eq!(fetched.image.layers[0].compression, Compression::None);
        assert_eq!(
            fs::read(&fetched.image.layers[0].path).unwrap(),
            image.layers[0]
        );
    }
    assert!(matches!(
        fetch(":app:v2").await.unwrap_err().problem,
        Problem::NotFound { .. }
    ));

    // A layer that is not the config's.
    docker_archive(&file, &image, &[noise(1, 600_000), noise(3, 10)]);
    assert!(matches!(
        fetch("").await.unwrap_err().problem,
        Problem::WrongDigest { .. }
    ));
    // Cut off in the middle of the first layer, and somewhere in a header.
    docker_archive(&file, &image, &image.layers);
    let bytes = fs::read(&file).unwrap();
    for length in [300_000, 600_000 + 700, 100, 0] {
        fs::write(&file, &bytes[..length]).unwrap();
        let error = fetch("").await.unwrap_err();
        assert!(
            matches!(
                error.problem,
                Problem::Malformed { .. } | Problem::File { .. }
            ),
            "{length}: {error:?}"
        );
    }
    fs::write(&file, [0x1f, 0x8b, 8, 0]).unwrap();
    assert!(chain(&fetch("").await.unwrap_err(), "HOST").ends_with("unpack it first (gunzip)"));
}

//! OCI layouts and docker archives, sound and damaged.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use display::chain;
use image_source::{ImageSource, OpenedImage, SourceError, SourceProblem, open, resolve};
use model::Digest;
use oci::{Compression, ImageError, ImageLimits, LayerFile, OCI_MANIFEST, Platform, digest_of};

/// Bytes that do not repeat, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
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

/// A descriptor as JSON; `more` is further fields with a leading comma.
fn descriptor(kind: &str, bytes: &[u8], more: &str) -> String {
    let (digest, size) = (digest_of(bytes), bytes.len());
    format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}{more}}}"#)
}

/// An image in memory, of uncompressed layers that nothing here unpacks.
struct Image {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

impl Image {
    fn new(architecture: &str, layers: &[Vec<u8>]) -> Self {
        let diff_ids = layers
            .iter()
            .map(|layer| format!("\"{}\"", digest_of(layer)));
        let config = format!(
            r#"{{"os":"linux","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.collect::<Vec<_>>().join(",")
        );
        let descriptors = layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer, ""));
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(
                "application/vnd.oci.image.config.v1+json",
                config.as_bytes(),
                ""
            ),
            descriptors.collect::<Vec<_>>().join(",")
        );
        Self {
            manifest: manifest.into_bytes(),
            config: config.into_bytes(),
            layers: layers.to_vec(),
        }
    }

    fn digest(&self) -> Digest {
        digest_of(&self.manifest)
    }
}

fn source(text: &str) -> ImageSource {
    ImageSource::parse(text).unwrap().unwrap()
}

fn open_for(architecture: &str, text: &str) -> Result<OpenedImage, SourceError> {
    open(
        &source(text),
        &Platform::of(architecture),
        &ImageLimits::default(),
    )
}

fn bytes_of(layer: &LayerFile) -> Vec<u8> {
    let offset = usize::try_from(layer.offset).unwrap();
    let size = usize::try_from(layer.size).unwrap();
    fs::read(&layer.path).unwrap()[offset..offset + size].to_vec()
}

fn write_layout(dir: &Path, images: &[(&Image, &str)]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut entries = Vec::new();
    for (image, tag) in images {
        for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
            fs::write(blobs.join(digest_of(blob).hex()), blob).unwrap();
        }
        let name = format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#);
        entries.push(descriptor(OCI_MANIFEST, &image.manifest, &name));
    }
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    );
    fs::write(dir.join("index.json"), index).unwrap();
}

#[test]
fn an_oci_layout_is_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let first = Image::new("amd64", &[noise(1, 5000), noise(2, 6000)]);
    let second = Image::new("arm64", &[noise(3, 10)]);
    write_layout(dir.path(), &[(&first, "one"), (&second, "two")]);
    let layout = dir.path().display().to_string();
    let open_end = |end: &str| open_for("amd64", &format!("oci:{layout}{end}"));

    for end in [":one".to_owned(), format!("@{}", first.digest())] {
        let opened = open_end(&end).unwrap();
        assert_eq!(opened.ref_digest, first.digest());
        let layers: Vec<_> = opened.image.layers.iter().map(bytes_of).collect();
        assert_eq!(layers, first.layers);
        assert!(opened.image.layers[1].path.starts_with(dir.path()));
    }
    let two = source(&format!("oci:{layout}:two"));
    let resolved = resolve(&two, &[], &ImageLimits::default()).unwrap();
    assert_eq!(resolved.by_arch["arm64"], second.digest());
    assert_eq!(resolved.pinned_tag.as_deref(), Some("two"));

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
        let shown = chain(&open_end(end).unwrap_err()).replace(&layout, "DIR");
        assert_eq!(shown, format!("cannot open oci:DIR{end}: {reason}"));
    }
}

#[test]
fn a_damaged_oci_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new("amd64", &[noise(1, 5000)]);
    write_layout(dir.path(), &[(&image, "one")]);
    let blob = |digest: &Digest| dir.path().join("blobs/sha256").join(digest.hex());
    let open = || open_for("amd64", &format!("oci:{}", dir.path().display()));
    open().unwrap();

    // The size of a layer is checked here, its bytes by the reader of the layer.
    fs::write(blob(&digest_of(&image.layers[0])), b"short").unwrap();
    assert!(matches!(
        open().unwrap_err().problem,
        SourceProblem::Image(ImageError::WrongSize { actual: 5, .. })
    ));
    fs::write(blob(&image.digest()), b"{}").unwrap();
    assert!(matches!(
        open().unwrap_err().problem,
        SourceProblem::Image(ImageError::WrongDigest { .. })
    ));
    fs::remove_file(blob(&image.digest())).unwrap();
    assert!(matches!(
        open().unwrap_err().problem,
        SourceProblem::File { .. }
    ));
}

#[test]
fn an_index_in_an_oci_layout_is_resolved_for_each_platform() {
    let dir = tempfile::tempdir().unwrap();
    let amd64 = Image::new("amd64", &[noise(1, 50)]);
    let arm64 = Image::new("arm64", &[noise(2, 50)]);
    write_layout(dir.path(), &[(&amd64, "a"), (&arm64, "b")]);
    let platform = |architecture: &str| {
        format!(r#","platform":{{"os":"linux","architecture":"{architecture}"}}"#)
    };
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#,
        descriptor(OCI_MANIFEST, &amd64.manifest, &platform("amd64")),
        descriptor(OCI_MANIFEST, &arm64.manifest, &platform("arm64"))
    );
    let digest = digest_of(index.as_bytes());
    fs::write(dir.path().join("blobs/sha256").join(digest.hex()), &index).unwrap();
    let text = format!("oci:{}@{digest}", dir.path().display());

    let opened = open_for("arm64", &text).unwrap();
    assert_eq!(opened.ref_digest, digest);
    assert_eq!(opened.image.digest, arm64.digest());
    let all = resolve(&source(&text), &[], &ImageLimits::default()).unwrap();
    assert!(all.is_index);
    assert_eq!(all.by_arch.keys().collect::<Vec<_>>(), ["amd64", "arm64"]);
    assert!(matches!(
        open_for("riscv64", &text).unwrap_err().problem,
        SourceProblem::Image(ImageError::NoSuchPlatform { .. })
    ));
}

#[test]
fn case_an_index_within_an_index_of_an_oci_layout_is_resolved() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new("amd64", &[noise(1, 50)]);
    write_layout(dir.path(), &[(&image, "a")]);
    let platform = r#","platform":{"os":"linux","architecture":"amd64"}"#;
    let mut entry = descriptor(OCI_MANIFEST, &image.manifest, platform);
    let mut text = String::new();
    // The image, an index of it, an index of that.
    for _ in 0..3 {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        let digest = digest_of(index.as_bytes());
        fs::write(dir.path().join("blobs/sha256").join(digest.hex()), &index).unwrap();
        let kind = "application/vnd.oci.image.index.v1+json";
        entry = descriptor(kind, index.as_bytes(), platform);
        text = format!("oci:{}@{digest}", dir.path().display());
    }
    let opened = open_for("amd64", &text).unwrap();
    assert_eq!(opened.image.digest, image.digest());
}

/// An archive as `docker save` writes it, with these layers.
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

#[test]
fn the_layers_of_a_docker_archive_are_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.tar");
    let image = Image::new("amd64", &[noise(1, 600_000), noise(2, 10)]);
    docker_archive(&file, &image, &image.layers);
    let open_end =
        |end: &str| open_for("amd64", &format!("docker-archive:{}{end}", file.display()));
    for end in ["", ":app:v1", ":docker.io/library/app:v1"] {
        let opened = open_end(end).unwrap();
        assert_eq!(opened.ref_digest, digest_of(&image.config));
        let layers = &opened.image.layers;
        assert_eq!(layers[0].compression, Compression::None);
        assert_eq!(
            layers.iter().map(bytes_of).collect::<Vec<_>>(),
            image.layers
        );
        assert_eq!(layers[1].digest, digest_of(&image.layers[1]));
    }
    assert!(matches!(
        open_end(":app:v2").unwrap_err().problem,
        SourceProblem::NotFound { .. }
    ));
}

#[test]
fn a_damaged_docker_archive_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.tar");
    let image = Image::new("amd64", &[noise(1, 600_000), noise(2, 10)]);
    let open = || open_for("amd64", &format!("docker-archive:{}", file.display()));

    // A layer that is not the config's.
    docker_archive(&file, &image, &[noise(1, 600_000), noise(3, 10)]);
    assert!(matches!(
        open().unwrap_err().problem,
        SourceProblem::Image(ImageError::WrongDigest { .. })
    ));
    // Cut off in the first layer, and in a header.
    docker_archive(&file, &image, &image.layers);
    let bytes = fs::read(&file).unwrap();
    for length in [300_000, 600_000 + 700, 100, 0] {
        fs::write(&file, &bytes[..length]).unwrap();
        let error = open().unwrap_err();
        assert!(
            matches!(
                error.problem,
                SourceProblem::Image(ImageError::Malformed { .. }) | SourceProblem::File { .. }
            ),
            "{length}: {error:?}"
        );
    }
    fs::write(&file, [0x1f, 0x8b, 8, 0]).unwrap();
    assert!(chain(&open().unwrap_err()).ends_with("unpack it first (gunzip)"));
}

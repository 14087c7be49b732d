//! OCI layouts on this machine, read and made with `umoci`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use model::Digest;
use oci::{Compression, LayerFile};

use serde_json::Value;

/// The layers of an image `DIRECTORY:TAG`, the base first.
pub(crate) fn layers(image: &str) -> Vec<LayerFile> {
    let (layout, tag) = image.rsplit_once(':').expect("DIRECTORY:TAG");
    let layout = Path::new(layout);
    let index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    let tagged = manifests
        .iter()
        .find(|manifest| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag)
        .unwrap_or_else(|| panic!("no `{tag}` in {}", layout.display()));
    let manifest = document(layout, tagged);
    let config = document(layout, &manifest["config"]);
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), diff_ids.len());
    layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| LayerFile {
            path: blob(layout, layer),
            offset: 0,
            size: layer["size"].as_u64().unwrap(),
            digest: digest(&layer["digest"]),
            diff_id: digest(diff_id),
            compression: match layer["mediaType"].as_str().unwrap().rsplit('.').next() {
                Some("tar+gzip" | "gzip") => Compression::Gzip,
                Some("tar+zstd") => Compression::Zstd,
                _ => Compression::None,
            },
        })
        .collect()
}

fn digest(value: &Value) -> Digest {
    value.as_str().unwrap().parse().unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = digest(&descriptor["digest"]);
    layout.join("blobs/sha256").join(digest.hex())
}

fn document(layout: &Path, descriptor: &Value) -> Value {
    serde_json::from_slice(&fs::read(blob(layout, descriptor)).unwrap()).unwrap()
}

/// Makes an image `DIRECTORY:TAG` of one layer, this archive, in a new layout in `dir`.
pub(crate) fn image_of(archive: &Path, dir: &Path) -> String {
    let layout = dir.join("layout");
    let image = format!("{}:hard", layout.display());
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    umoci(&["new", "--image", &image]);
    umoci(&[
        "raw",
        "add-layer",
        "--image",
        &image,
        archive.to_str().unwrap(),
    ]);
    image
}

/// Unpacks an image into a new directory in `dir`; the image's root there.
pub(crate) fn unpack(image: &str, dir: &Path) -> PathBuf {
    let bundle = dir.join("bundle");
    umoci(&["unpack", "--image", image, bundle.to_str().unwrap()]);
    bundle.join("rootfs")
}

fn umoci(arguments: &[&str]) {
    let output = Command::new("umoci")
        .args(arguments)
        .output()
        .expect("Debian's umoci");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "umoci {arguments:?}: {text}");
}

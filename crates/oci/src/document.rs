//! Manifests, indexes and configs: from untrusted JSON to values, or an [`ImageError`].
//!
//! The OCI's media types and those of docker's schema 2 are read; they differ only in names. Unknown fields are
//! ignored, as the image spec asks of readers.

use std::collections::BTreeMap;

use model::Digest;
use model::image::ImageConfig;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::compression::Compression;
use crate::error::{ImageError, excerpt};
use crate::limits::{ImageLimits, MAX_INDEX_ENTRIES};
use crate::platform::Platform;

/// Media type of the OCI's image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the OCI's index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of docker's image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of docker's index, the manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Digest and size of a blob, as a manifest or index names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// SHA-256 digest.
    pub digest: Digest,
    /// Length, in bytes.
    pub size: u64,
}

/// An image manifest that passed every check that needs no config.
#[derive(Debug)]
pub struct ImageManifest {
    /// The config's blob.
    pub config: Descriptor,
    /// The layers' blobs, the base first; at least one.
    pub layers: Vec<(Descriptor, Compression)>,
}

/// One entry of an index.
#[derive(Debug)]
pub struct IndexEntry {
    /// The manifest or index of the entry.
    pub descriptor: Descriptor,
    /// `None`: the index does not name a platform.
    pub platform: Option<EntryPlatform>,
    /// Whether the entry is an index itself.
    pub is_index: bool,
}

/// The platform that an index names for an entry.
#[derive(Debug)]
pub struct EntryPlatform {
    /// Operating system: `linux`, `windows`, `unknown`.
    pub os: String,
    /// Architecture: `amd64`.
    pub architecture: String,
    /// Variant: `v7`.
    pub variant: Option<String>,
}

impl EntryPlatform {
    /// The platform, if its operating system is Linux.
    pub fn linux(&self) -> Option<Platform> {
        (self.os == "linux").then(|| Platform {
            architecture: self.architecture.clone(),
            variant: self.variant.clone().filter(|v| !v.is_empty()),
        })
    }
}

/// The document behind a reference.
#[derive(Debug)]
pub enum Document {
    /// An image manifest.
    Image(ImageManifest),
    /// An index, with the entries that may be container images.
    Index(Vec<IndexEntry>),
}

impl Document {
    /// The manifest of an image, where an index is refused. `digest` is this document's.
    ///
    /// # Errors
    /// [`ImageError::NestedIndex`] if it is an index.
    pub fn image(self, digest: &Digest) -> Result<ImageManifest, ImageError> {
        match self {
            Self::Image(manifest) => Ok(manifest),
            Self::Index(_) => Err(ImageError::NestedIndex {
                digest: digest.clone(),
            }),
        }
    }
}

/// A config of a Linux image.
#[derive(Debug)]
pub struct Config {
    /// The part that the platform honours.
    pub image: ImageConfig,
    /// The architecture's variant, where it is named.
    pub variant: Option<String>,
    /// Digests of the uncompressed layers, the base first; as many as the manifest has layers.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    config: Option<RawRunConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawRunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<Keys>,
    exposed_ports: Option<Keys>,
    labels: Option<BTreeMap<String, String>>,
}

/// Go writes a set as an object with empty objects in it.
type Keys = BTreeMap<String, serde_json::Value>;

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    diff_ids: Vec<String>,
}

fn malformed(document: &'static str, reason: impl AsRef<str>) -> ImageError {
    ImageError::malformed(document, reason.as_ref())
}

/// Reads a manifest or an index. `digest` and `origin` name the document and its source in errors. `content_type` is
/// the registry's; `None` for a document from a file.
///
/// # Errors
/// It is malformed, over a limit, or of something else than a container image.
pub fn read_document(
    bytes: &[u8],
    digest: &Digest,
    origin: &str,
    content_type: Option<&str>,
    limits: &ImageLimits,
) -> Result<Document, ImageError> {
    let wrong_type = |content_type: &str, reason: &str| ImageError::WrongContentType {
        origin: origin.to_owned(),
        content_type: excerpt(content_type),
        reason: reason.to_owned(),
    };
    let known = |media_type: &str| match media_type {
        OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
        OCI_INDEX | DOCKER_LIST => Some(true),
        _ => None,
    };
    // The parameters of a content type have no meaning for JSON.
    let content_type = content_type.map(|t| t.split(';').next().unwrap_or(t).trim());
    if let Some(content_type) = content_type
        && known(content_type).is_none()
    {
        let reason = if content_type.contains("manifest.v1") && content_type.contains("docker") {
            "docker's schema 1 is not supported; push the image again with a current tool"
        } else {
            "it is not a manifest's"
        };
        return Err(wrong_type(content_type, reason));
    }
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|e| malformed("manifest", e.to_string()))?;
    if raw.fs_layers.is_some() || raw.schema_version != Some(2) {
        return Err(malformed("manifest", "its schemaVersion is not 2"));
    }
    if let (Some(content_type), Some(media_type)) = (content_type, &raw.media_type)
        && content_type != media_type
    {
        return Err(wrong_type(
            content_type,
            &format!("the document calls itself `{}`", excerpt(media_type)),
        ));
    }
    let has_layers = raw.layers.is_some() || raw.config.is_some();
    let is_index = match content_type.or(raw.media_type.as_deref()) {
        Some(media_type) => known(media_type).ok_or_else(|| ImageError::NotAnImage {
            digest: digest.clone(),
            kind: excerpt(media_type),
        })?,
        None => raw.manifests.is_some(),
    };
    // CVE-2021-41190: a document that is both would be read differently by different tools.
    if has_layers && raw.manifests.is_some() {
        return Err(malformed(
            "manifest",
            "it is an image and an index at the same time",
        ));
    }
    if is_index {
        let entries = raw
            .manifests
            .ok_or_else(|| malformed("index", "it has no `manifests`"))?;
        read_index(entries).map(Document::Index)
    } else {
        read_manifest(raw, digest, limits).map(Document::Image)
    }
}

fn read_index(entries: Vec<RawDescriptor>) -> Result<Vec<IndexEntry>, ImageError> {
    if entries.len() > MAX_INDEX_ENTRIES {
        return Err(ImageError::OverLimit {
            what: "the index".to_owned(),
            actual: entries.len() as u64,
            limit: MAX_INDEX_ENTRIES as u64,
            unit: "entries",
        });
    }
    let mut images = Vec::new();
    for entry in entries {
        let is_index = match entry.media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            OCI_INDEX | DOCKER_LIST => true,
            _ => continue,
        };
        // An artifact beside the images: a signature, an SBOM.
        if entry
            .artifact_type
            .as_deref()
            .is_some_and(|kind| !is_image_config(kind))
        {
            continue;
        }
        let platform = entry.platform.as_ref().map(|platform| EntryPlatform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
        });
        images.push(IndexEntry {
            descriptor: read_descriptor("index", &entry)?,
            platform,
            is_index,
        });
    }
    Ok(images)
}

fn read_manifest(
    raw: RawDocument,
    digest: &Digest,
    limits: &ImageLimits,
) -> Result<ImageManifest, ImageError> {
    let config = raw
        .config
        .ok_or_else(|| malformed("manifest", "it has no `config`"))?;
    if !is_image_config(&config.media_type) {
        let kind = match raw.artifact_type {
            Some(kind) if config.media_type == OCI_EMPTY => kind,
            _ => config.media_type,
        };
        return Err(ImageError::NotAnImage {
            digest: digest.clone(),
            kind: excerpt(&kind),
        });
    }
    let over = |what: String, actual: u64, limit: u64, unit: &'static str| ImageError::OverLimit {
        what,
        actual,
        limit,
        unit,
    };
    let config = read_descriptor("manifest", &config)?;
    if config.size > limits.config_bytes {
        let what = "the image config".to_owned();
        return Err(over(what, config.size, limits.config_bytes, "bytes"));
    }
    let raw_layers = raw
        .layers
        .ok_or_else(|| malformed("manifest", "it has no `layers`"))?;
    if raw_layers.is_empty() {
        return Err(malformed("manifest", "it has zero layers"));
    }
    if raw_layers.len() > limits.layers {
        let what = "the image".to_owned();
        return Err(over(
            what,
            raw_layers.len() as u64,
            limits.layers as u64,
            "layers",
        ));
    }
    let mut layers = Vec::with_capacity(raw_layers.len());
    let mut total = 0_u64;
    for raw in &raw_layers {
        let layer = read_descriptor("manifest", raw)?;
        let compression = layer_compression(&raw.media_type, &layer.digest, digest)?;
        if layer.size > limits.layer_bytes {
            let what = format!("layer {}", layer.digest);
            return Err(over(what, layer.size, limits.layer_bytes, "bytes"));
        }
        total = total.saturating_add(layer.size);
        layers.push((layer, compression));
    }
    if total > limits.image_bytes {
        return Err(over(
            "the image".to_owned(),
            total,
            limits.image_bytes,
            "bytes",
        ));
    }
    Ok(ImageManifest { config, layers })
}

fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

fn layer_compression(
    media_type: &str,
    layer: &Digest,
    manifest: &Digest,
) -> Result<Compression, ImageError> {
    Ok(match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
        foreign if foreign.contains(".foreign.") || foreign.contains(".nondistributable.") => {
            return Err(ImageError::ForeignLayer {
                digest: layer.clone(),
                media_type: excerpt(foreign),
            });
        }
        unknown if unknown.contains(".layer.") || unknown.contains(".rootfs.") => {
            return Err(ImageError::UnknownLayer {
                digest: layer.clone(),
                media_type: excerpt(unknown),
            });
        }
        // buildkit's attestations have an image's config and layers of in-toto statements.
        artifact => {
            return Err(ImageError::NotAnImage {
                digest: manifest.clone(),
                kind: excerpt(artifact),
            });
        }
    })
}

fn read_descriptor(document: &'static str, raw: &RawDescriptor) -> Result<Descriptor, ImageError> {
    let digest = raw.digest.parse().map_err(|_| {
        malformed(
            document,
            format!("`{}` is not a sha256 digest", excerpt(&raw.digest)),
        )
    })?;
    Ok(Descriptor {
        digest,
        size: raw.size,
    })
}

/// Reads a config of a Linux image with `layers` layers.
///
/// # Errors
/// It is malformed, is for another operating system, or does not fit an image of so many layers.
pub fn read_config(bytes: &[u8], layers: usize) -> Result<Config, ImageError> {
    let wrong = |reason: String| malformed("image config", reason);
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    if raw.os.is_empty() || raw.architecture.is_empty() {
        return Err(wrong("it names no os or no architecture".to_owned()));
    }
    if raw.os != "linux" {
        return Err(wrong(format!(
            "it is for `{}`; only Linux images run here",
            raw.os
        )));
    }
    let rootfs = raw
        .rootfs
        .filter(|rootfs| rootfs.kind == "layers")
        .ok_or_else(|| wrong("its rootfs is not of type `layers`".to_owned()))?;
    if rootfs.diff_ids.len() != layers {
        return Err(wrong(format!(
            "it has {} diff_ids, the manifest {layers} layers",
            rootfs.diff_ids.len()
        )));
    }
    let diff_ids = rootfs
        .diff_ids
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|_| wrong(format!("`{}` is not a sha256 digest", excerpt(text))))
        })
        .collect::<Result<Vec<Digest>, _>>()?;
    let run = raw.config.unwrap_or_default();
    let image = ImageConfig {
        os: raw.os,
        architecture: raw.architecture,
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        // No program can read a variable without `=`.
        env: run
            .env
            .unwrap_or_default()
            .into_iter()
            .filter(|v| v.contains('='))
            .collect(),
        working_dir: run.working_dir.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        stop_signal: run.stop_signal.unwrap_or_default(),
        volumes: run.volumes.unwrap_or_default().into_keys().collect(),
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
        labels: run.labels.unwrap_or_default(),
    };
    check_user(&image.user).map_err(wrong)?;
    let texts = [&image.working_dir, &image.stop_signal]
        .into_iter()
        .chain(&image.entrypoint)
        .chain(&image.cmd)
        .chain(&image.env);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(wrong(
            "it has a NUL in a command, a variable or a path".to_owned(),
        ));
    }
    Ok(Config {
        image,
        variant: raw.variant.filter(|v| !v.is_empty()),
        diff_ids,
    })
}

/// `user[:group]`, each a name or a number in Linux's range.
fn check_user(text: &str) -> Result<(), String> {
    let mut parts = 0;
    for part in text.split(':') {
        parts += 1;
        let number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        // 2^32 - 1 means "no change" to the kernel.
        if number && part.parse::<u32>().is_ok_and(|id| id != u32::MAX) {
            continue;
        }
        if number || part.chars().any(|c| c.is_control() || c == '/') {
            return Err(format!("its User `{}` is not USER[:GROUP]", excerpt(text)));
        }
    }
    if parts > 2 {
        return Err(format!("its User `{}` is not USER[:GROUP]", excerpt(text)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

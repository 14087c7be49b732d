//! Manifests, indexes and configs: from untrusted JSON to values, or an [`ImageError`].
//!
//! The OCI's media types and those of docker's schema 2 are read; they differ only in names. Unknown fields are
//! ignored, as the image spec asks of readers. What docker and containerd take is taken: a registry that serves a
//! manifest under a general content type (`application/json`), the config types of docker before 1.10 (`config`).

use model::Digest;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::compression::Compression;
use crate::config::{is_image_config, may_be_image_config};
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
#[derive(Debug, Clone)]
pub struct IndexEntry {
    /// The manifest or index of the entry.
    pub descriptor: Descriptor,
    /// `None`: the index does not name a platform.
    pub platform: Option<EntryPlatform>,
    /// Whether the entry is labelled as an index. The document that it names decides.
    pub is_index: bool,
}

/// The platform that an index names for an entry.
#[derive(Debug, Clone)]
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
        self.os
            .eq_ignore_ascii_case("linux")
            .then(|| Platform::named(&self.architecture, self.variant.as_deref()))
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
    /// [`ImageError::NotAManifest`] if it is an index.
    pub fn image(self, digest: &Digest) -> Result<ImageManifest, ImageError> {
        match self {
            Self::Image(manifest) => Ok(manifest),
            Self::Index(_) => Err(ImageError::NotAManifest {
                digest: digest.clone(),
            }),
        }
    }
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

fn malformed(document: &'static str, reason: impl AsRef<str>) -> ImageError {
    ImageError::malformed(document, reason.as_ref())
}

/// Reads a manifest or an index. `digest` and `origin` name the document and its source in errors. `content_type` is
/// the registry's; `None` for a document from a file.
///
/// Static files and mirrors have general content types, or none: then the document's own type decides, else its
/// shape. A manifest's content type must not contradict the document.
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
    let (stated, general) = match content_type {
        Some(stated) if known(stated).is_some() => (Some(stated), None),
        Some(stated) if stated.contains("manifest.v1") && stated.contains("docker") => {
            let reason =
                "docker's schema 1 is not supported; push the image again with a current tool";
            return Err(wrong_type(stated, reason));
        }
        // Another kind of document, by someone who knows.
        Some(stated) if stated.starts_with("application/vnd.") => {
            return Err(wrong_type(stated, "it is not a manifest's"));
        }
        general => (None, general.filter(|general| !general.is_empty())),
    };
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| match general {
        // A login page, say: there the content type tells more than the first byte that is no JSON.
        Some(general) if error.is_syntax() => wrong_type(general, "it is not a manifest's"),
        _ => malformed("manifest", error.to_string()),
    })?;
    if raw.fs_layers.is_some() || raw.schema_version != Some(2) {
        return Err(malformed("manifest", "its schemaVersion is not 2"));
    }
    // Two names of one kind, docker's and OCI's: mirrors mix them up, and nothing but the name differs.
    if let (Some(stated), Some(media_type)) = (stated, &raw.media_type)
        && known(stated) != known(media_type)
    {
        return Err(wrong_type(
            stated,
            &format!("the document calls itself `{}`", excerpt(media_type)),
        ));
    }
    let has_layers = raw.layers.is_some() || raw.config.is_some();
    let is_index = match stated.or(raw.media_type.as_deref()) {
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
    if !may_be_image_config(&config.media_type) {
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

/// The compression that the media type of a layer names.
fn layer_compression(
    media_type: &str,
    layer: &Digest,
    manifest: &Digest,
) -> Result<Compression, ImageError> {
    let archive = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        // Layers that only their vendor may distribute: whoever pushed this image has pushed them too, or the registry does not
        // have them. Their `urls` are not followed.
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let ending = archive
        .iter()
        .find_map(|kind| media_type.strip_prefix(kind));
    // Each writes its ending with the other's joint, too.
    Ok(match ending {
        Some("") => Compression::None,
        Some("+gzip" | ".gzip") => Compression::Gzip,
        Some("+zstd" | ".zstd") => Compression::Zstd,
        Some("+bzip2" | ".bzip2") => Compression::Bzip2,
        Some("+xz" | ".xz") => Compression::Xz,
        _ if media_type.contains(".layer.") || media_type.contains(".rootfs.") => {
            return Err(ImageError::UnknownLayer {
                digest: layer.clone(),
                media_type: excerpt(media_type),
            });
        }
        // buildkit's attestations have an image's config and layers of in-toto statements.
        _ => {
            return Err(ImageError::NotAnImage {
                digest: manifest.clone(),
                kind: excerpt(media_type),
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

#[cfg(test)]
mod tests;

//! What commands print with `--format json` where it is no type of the API: the fields and what they mean, as docs/json.md has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use api::user::{DeployResponse, RolloutStatus, SecretRow};
use manifest::Diagnostic;
use model::image::ImageConfig;
use model::{Digest, EnvKey, InstanceId, ReleaseNumber};
use schemars::JsonSchema;
use serde::Serialize;

/// A release and how its rollout ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Deployed {
    /// The release.
    pub(crate) release: DeployResponse,
    /// How its rollout ended, or how far it is where `--timeout` was over first.
    pub(crate) rollout: RolloutStatus,
}

/// A secret bundle that was set.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SecretsSet {
    /// The bundle.
    pub(crate) bundle: SecretRow,
    /// The release that runs with it; null without `--deploy`.
    pub(crate) release: Option<ReleaseNumber>,
}

/// An env that was destroyed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Destroyed {
    /// The env.
    pub(crate) env: EnvKey,
    /// Whether its last instance is gone; false with `--no-wait`.
    pub(crate) gone: bool,
}

/// A mistake in a manifest.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Mistake {
    /// What kind of mistake; docs/manifest.md lists them.
    code: &'static str,
    /// Dotted path of the key or value, such as `processes.web.ports[0].port`. Empty: the whole file, or a place that belongs to no key.
    path: String,
    /// Line, from 1.
    line: usize,
    /// Column in characters, from 1.
    column: usize,
    /// What is wrong.
    message: String,
    /// What to do about it.
    hint: Option<String>,
    /// The file, where several were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl Mistake {
    /// The mistake, of this file where several were named.
    pub(crate) fn new(mistake: &Diagnostic, file: Option<&str>) -> Self {
        Self {
            code: mistake.code.as_str(),
            path: mistake.path.clone(),
            line: mistake.line,
            column: mistake.column,
            message: mistake.message.clone(),
            hint: mistake.hint.clone(),
            file: file.map(str::to_owned),
        }
    }
}

/// A cluster that is known here.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ContextRow {
    /// Its name here.
    pub(crate) name: String,
    /// The URL of its server; null: its file is damaged.
    pub(crate) server: Option<String>,
    /// Whether commands are for it.
    pub(crate) current: bool,
}

/// A local port that leads to a port of an instance.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Forwarding {
    /// Where it listens: `127.0.0.1:5432`, `[::1]:5432`.
    pub(crate) local: SocketAddr,
    /// The port of the instance.
    pub(crate) port: u16,
    /// The instance; with `--process` later connections may go to another one.
    pub(crate) instance: InstanceId,
}

/// This program.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ProgramVersion {
    /// Its version (Semantic Versioning).
    pub(crate) version: &'static str,
}

/// An image, as its registry or a file has it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InspectedImage {
    /// The reference as it was given.
    pub(crate) reference: String,
    /// The digest of the index or manifest that the reference names.
    pub(crate) digest: Digest,
    /// Whether that is an index, for several platforms.
    pub(crate) is_index: bool,
    /// Every Linux image of the reference, in the index's order.
    pub(crate) platforms: Vec<OfferedImage>,
    /// The requested images, by architecture and variant.
    pub(crate) images: BTreeMap<String, DescribedImage>,
}

/// An image of an index.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct OfferedImage {
    /// Its platform: `linux/amd64`.
    pub(crate) platform: String,
    /// The digest of its manifest.
    pub(crate) digest: Digest,
}

/// An image for one platform.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DescribedImage {
    /// The digest of its manifest.
    pub(crate) digest: Digest,
    /// The size of its layers as stored, in bytes.
    pub(crate) size_bytes: u64,
    /// What it says of how it is run.
    pub(crate) config: ImageConfig,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<ImageLayer>,
}

/// A layer of an image.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ImageLayer {
    /// Its digest as stored.
    pub(crate) digest: Digest,
    /// Its size as stored, in bytes.
    pub(crate) size_bytes: u64,
    /// How it is compressed.
    pub(crate) compression: String,
    /// Its digest once it is unpacked.
    pub(crate) diff_id: Digest,
}

/// A root disk that was built.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RootDiskReport {
    /// The reference as it was given.
    pub(crate) reference: String,
    /// The digest of the index or manifest that the reference names.
    pub(crate) image_digest: Digest,
    /// The digest of the manifest of the image that was built.
    pub(crate) resolved_digest: Digest,
    /// Its platform: `linux/amd64`.
    pub(crate) platform: String,
    /// The file of the disk.
    pub(crate) output: PathBuf,
    /// The size of the disk with its holes, in bytes.
    pub(crate) size_bytes: u64,
    /// The checksum of the disk.
    pub(crate) sha256: Digest,
    /// The time of the whole command.
    pub(crate) seconds: f64,
    /// The time until the image was here.
    pub(crate) fetch_seconds: f64,
    /// The time of the build.
    pub(crate) build_seconds: f64,
}

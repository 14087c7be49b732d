//! Image configs: from untrusted JSON to what the platform honours of it.
//!
//! They are read as docker and containerd read them, whose JSON reader takes keys in any case.

use std::collections::BTreeMap;

use model::Digest;
use model::image::ImageConfig;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{ImageError, excerpt};
use crate::platform::Platform;

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Whether this is the media type of an image's config.
pub(crate) fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether a manifest whose config has this media type may be an image's. Docker before 1.10 and the registries of
/// its time wrote the general types, and docker takes them to this day (moby, `distribution/registry.go`, `ImageTypes`).
pub(crate) fn may_be_image_config(media_type: &str) -> bool {
    is_image_config(media_type)
        || matches!(
            media_type,
            "" | "application/octet-stream" | "application/json" | "text/html"
        )
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
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    config: Option<AnyCase<RawRunConfig>>,
    rootfs: Option<AnyCase<RawRootfs>>,
}

/// The names are those of Go's fields in lower case ([`AnyCase`]).
#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRunConfig {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    workingdir: Option<String>,
    user: Option<String>,
    stopsignal: Option<String>,
    volumes: Option<Keys>,
    exposedports: Option<Keys>,
    labels: Option<BTreeMap<String, String>>,
}

/// Go writes a set as an object with empty objects in it.
type Keys = BTreeMap<String, Value>;

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<String>>,
}

/// A command. Docker takes a single text for a list of one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a command is a list of texts, or one text")]
enum Words {
    List(Vec<String>),
    One(String),
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Self::List(words) => words,
            Self::One(word) => vec![word],
        }
    }
}

/// An object whose keys are read in any case. It is refused where two keys that differ in case only have different
/// values: two readers would read it in two ways.
struct AnyCase<T>(T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for AnyCase<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut lower = serde_json::Map::new();
        for (key, value) in serde_json::Map::deserialize(from)? {
            let key = key.to_ascii_lowercase();
            if lower.get(&key).is_some_and(|known| *known != value) {
                let reason = format!("it has `{}` twice, in different case", excerpt(&key));
                return Err(D::Error::custom(reason));
            }
            lower.insert(key, value);
        }
        serde_json::from_value(Value::Object(lower))
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// Reads a config of a Linux image with `layers` layers.
///
/// # Errors
/// It is malformed, is for another operating system, or does not fit an image of so many layers.
pub fn read_config(bytes: &[u8], layers: usize) -> Result<Config, ImageError> {
    let wrong = |reason: String| ImageError::malformed("image config", &reason);
    let AnyCase::<RawConfig>(raw) =
        serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    let architecture = raw.architecture.unwrap_or_default();
    if architecture.is_empty() {
        return Err(wrong("it names no architecture".to_owned()));
    }
    // Docker takes an absent one for its own.
    let os = raw.os.unwrap_or_default();
    if !os.is_empty() && !os.eq_ignore_ascii_case("linux") {
        let os = excerpt(&os);
        return Err(wrong(format!(
            "it is for `{os}`; only Linux images run here"
        )));
    }
    let rootfs = raw
        .rootfs
        .map(|AnyCase(rootfs)| rootfs)
        .filter(|rootfs| rootfs.kind.as_deref() == Some("layers"))
        .ok_or_else(|| wrong("its rootfs is not of type `layers`".to_owned()))?;
    let diff_ids = rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers {
        return Err(wrong(format!(
            "it has {} diff_ids, the manifest {layers} layers",
            diff_ids.len()
        )));
    }
    let diff_ids = diff_ids
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|_| wrong(format!("`{}` is not a sha256 digest", excerpt(text))))
        })
        .collect::<Result<Vec<Digest>, _>>()?;
    let platform = Platform::named(&architecture, raw.variant.as_deref());
    let run = raw.config.map(|AnyCase(run)| run).unwrap_or_default();
    let image = ImageConfig {
        os: "linux".to_owned(),
        architecture: platform.architecture,
        entrypoint: run.entrypoint.map(Words::list).unwrap_or_default(),
        cmd: run.cmd.map(Words::list).unwrap_or_default(),
        // No program can read a variable without `=`.
        env: run
            .env
            .unwrap_or_default()
            .into_iter()
            .filter(|v| v.contains('='))
            .collect(),
        working_dir: run.workingdir.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        stop_signal: run.stopsignal.unwrap_or_default(),
        volumes: run.volumes.unwrap_or_default().into_keys().collect(),
        exposed_ports: run.exposedports.unwrap_or_default().into_keys().collect(),
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
        variant: platform.variant,
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

//! Images from files, named as skopeo names them: for building a root disk by hand, without a registry.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use model::Digest;
use serde::Deserialize;

use crate::archive;
use crate::cache::BlobCache;
use crate::error::Problem;
use crate::fetch;
use crate::image::{FetchProgress, FetchedImage, Resolved};
use crate::limits::Limits;
use crate::origin::{Origin, read_limited};
use crate::platform::Platform;
use crate::reference::{Reference, ReferenceError};
use crate::resolve::{self, none_is_an_error, take_single};

/// The annotation that names an entry of a layout's index (OCI image layout spec).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `[docker://]REFERENCE`.
    Registry(Reference),
    /// `oci:DIR[:TAG|@DIGEST]`: an OCI image layout. Without a tag or digest it must have one image.
    OciLayout {
        /// The directory with `index.json`.
        dir: PathBuf,
        /// The entry's name.
        tag: Option<String>,
        /// The entry's digest.
        digest: Option<Digest>,
    },
    /// `docker-archive:FILE[:NAME]`: what `docker save` writes. Without a name it must have one image.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// The image's name with its tag, as in `RepoTags`.
        name: Option<String>,
    },
}

/// Why a text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// `oci:` or `docker-archive:` without a path, or with a digest that is none.
    #[error("`{0}` is not an image: write `oci:DIR[:TAG|@DIGEST]` or `docker-archive:FILE[:NAME]`")]
    File(String),
}

/// An image that was fetched from a [`Source`].
#[derive(Debug, Clone)]
pub struct SourceImage {
    /// The digest of what the source names: an index or a manifest. For a docker archive, which has neither,
    /// the config's digest, that is docker's image id.
    pub ref_digest: Digest,
    /// The tag that was resolved, if one was.
    pub pinned_tag: Option<String>,
    /// The image.
    pub image: FetchedImage,
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let wrong = || SourceError::File(text.to_owned());
        let path = |path: &str| match path {
            "" => Err(wrong()),
            path => Ok(PathBuf::from(path)),
        };
        // The last colon after the last slash begins the tag, so directories may have colons.
        let split = |rest: &str| -> Result<(PathBuf, Option<String>), SourceError> {
            let name_at = rest.rfind('/').map_or(0, |slash| slash + 1);
            match rest[name_at..].split_once(':') {
                Some((name, tag)) if !tag.is_empty() => {
                    Ok((path(&rest[..name_at + name.len()])?, Some(tag.to_owned())))
                }
                Some(_) => Err(wrong()),
                None => Ok((path(rest)?, None)),
            }
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            if let Some((dir, digest)) = rest.split_once("@sha256:") {
                let digest = format!("sha256:{digest}").parse().map_err(|_| wrong())?;
                return Ok(Self::OciLayout {
                    dir: path(dir)?,
                    tag: None,
                    digest: Some(digest),
                });
            }
            let (dir, tag) = split(rest)?;
            return Ok(Self::OciLayout {
                dir,
                tag,
                digest: None,
            });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            // A name has slashes and a tag of its own: it begins at the first colon.
            let (file, name) = match rest.split_once(':') {
                Some((file, name)) if !name.is_empty() => (file, Some(name.to_owned())),
                Some(_) => return Err(wrong()),
                None => (rest, None),
            };
            return Ok(Self::DockerArchive {
                file: path(file)?,
                name,
            });
        }
        Ok(Self::Registry(text.parse()?))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::OciLayout { dir, tag, digest } => {
                write!(f, "oci:{}", dir.display())?;
                match (tag, digest) {
                    (Some(tag), _) => write!(f, ":{tag}"),
                    (None, Some(digest)) => write!(f, "@{digest}"),
                    (None, None) => Ok(()),
                }
            }
            Self::DockerArchive { file, name } => {
                write!(f, "docker-archive:{}", file.display())?;
                match name {
                    Some(name) => write!(f, ":{name}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Resolves an image in files.
pub(crate) async fn resolve(
    source: &Source,
    platforms: &[Platform],
    limits: &Limits,
) -> Result<Resolved, Problem> {
    match source {
        Source::Registry(_) => Err(not_files()),
        Source::OciLayout { dir, tag, digest } => {
            let chosen = choose_entry(dir, tag.as_deref(), digest.as_ref(), limits)?;
            let origin = Origin::Layout(dir, limits);
            let mut resolved = resolve::resolve(&origin, None, Some(&chosen), platforms).await?;
            resolved.pinned_tag.clone_from(tag);
            Ok(resolved)
        }
        Source::DockerArchive { file, name } => {
            let image = read_archive(file, name.as_deref(), None, limits).await?;
            let mut resolved = Resolved {
                ref_digest: image.description.digest.clone(),
                pinned_tag: name.clone(),
                by_arch: BTreeMap::new(),
                is_index: false,
                images: BTreeMap::new(),
                offered: Vec::new(),
            };
            take_single(&mut resolved, image.description, platforms);
            none_is_an_error(resolved, platforms)
        }
    }
}

/// Fetches an image from files.
pub(crate) async fn fetch(
    source: &Source,
    platform: &Platform,
    cache: &BlobCache,
    limits: &Limits,
    progress: &fetch::OnProgress<'_>,
) -> Result<SourceImage, Problem> {
    let platforms = std::slice::from_ref(platform);
    let resolved = resolve(source, platforms, limits).await?;
    let image = match source {
        Source::Registry(_) => return Err(not_files()),
        Source::OciLayout { dir, .. } => {
            let digest = &resolved.by_arch[&platform.key()];
            fetch::from_layout(dir, limits, digest, progress).await?
        }
        Source::DockerArchive { file, name } => {
            let image = read_archive(file, name.as_deref(), Some(cache), limits).await?;
            let bytes = image.description.size_bytes;
            let layers = image.layers.len();
            progress(FetchProgress {
                done_bytes: bytes,
                total_bytes: bytes,
                done_layers: layers,
                total_layers: layers,
            });
            FetchedImage {
                digest: image.description.digest,
                config: image.description.config,
                layers: image.layers,
            }
        }
    };
    Ok(SourceImage {
        ref_digest: resolved.ref_digest,
        pinned_tag: resolved.pinned_tag,
        image,
    })
}

fn not_files() -> Problem {
    Problem::Malformed {
        document: "reference",
        reason: "it does not name files".to_owned(),
    }
}

async fn read_archive(
    file: &Path,
    name: Option<&str>,
    cache: Option<&BlobCache>,
    limits: &Limits,
) -> Result<archive::ArchivedImage, Problem> {
    let (path, name) = (file.to_owned(), name.map(str::to_owned));
    let (cache, limits) = (cache.cloned(), limits.clone());
    let work = move || archive::read(&path, name.as_deref(), cache.as_ref(), &limits);
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(ended) => Err(Problem::File {
            path: file.to_owned(),
            source: std::io::Error::other(ended),
        }),
    }
}

#[derive(Deserialize)]
struct LayoutIndex {
    manifests: Vec<LayoutEntry>,
}

#[derive(Deserialize)]
struct LayoutEntry {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The digest of the layout's entry with this tag, or of its only one. A digest that was given need
/// not be an entry: any manifest among the blobs will do.
fn choose_entry(
    dir: &Path,
    tag: Option<&str>,
    digest: Option<&Digest>,
    limits: &Limits,
) -> Result<Digest, Problem> {
    if let Some(digest) = digest {
        return Ok(digest.clone());
    }
    let bytes = read_limited(&dir.join("index.json"), limits.manifest_bytes, "index.json")?;
    let malformed = |reason: String| Problem::Malformed {
        document: "index.json",
        reason,
    };
    let index: LayoutIndex =
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    let name_of = |entry: &LayoutEntry| entry.annotations.get(REF_NAME).cloned();
    let matching: Vec<&LayoutEntry> = index
        .manifests
        .iter()
        .filter(|entry| tag.is_none() || name_of(entry).as_deref() == tag)
        .collect();
    match matching[..] {
        [entry] => entry
            .digest
            .parse()
            .map_err(|_| malformed("an entry's digest is not sha256".to_owned())),
        [] => Err(Problem::NotFound {
            host: dir.display().to_string(),
            what: tag.map_or("image".to_owned(), |tag| format!("image `{tag}`")),
        }),
        _ => {
            let names: Vec<_> = index.manifests.iter().filter_map(name_of).collect();
            let names = crate::document::printable(&names.join(", "));
            Err(malformed(format!(
                "it has several images, choose one: {names}"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn sources_are_written_as_skopeo_writes_them() {
        let layout = |dir: &str, tag: Option<&str>| Source::OciLayout {
            dir: dir.into(),
            tag: tag.map(str::to_owned),
            digest: None,
        };
        let archive = |file: &str, name: Option<&str>| Source::DockerArchive {
            file: file.into(),
            name: name.map(str::to_owned),
        };
        let hex = "0".repeat(64);
        let by_digest = format!("oci:dir@sha256:{hex}");
        for (text, expected) in [
            ("oci:dir", layout("dir", None)),
            ("oci:/a:b/dir:v1", layout("/a:b/dir", Some("v1"))),
            ("docker-archive:x.tar", archive("x.tar", None)),
            (
                "docker-archive:x.tar:a/b:v1",
                archive("x.tar", Some("a/b:v1")),
            ),
            (
                by_digest.as_str(),
                Source::OciLayout {
                    dir: "dir".into(),
                    tag: None,
                    digest: Some(format!("sha256:{hex}").parse().unwrap()),
                },
            ),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source, expected);
            assert_eq!(source.to_string(), text);
        }
        let reference: Source = "docker://localhost:5000/a:v1".parse().unwrap();
        assert_eq!(reference.to_string(), "localhost:5000/a:v1");
        for bad in [
            "oci:",
            "oci:dir:",
            "oci:dir@sha256:xyz",
            "docker-archive:",
            "docker-archive:x:",
            "A",
        ] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }
}

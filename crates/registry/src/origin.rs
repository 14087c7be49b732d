//! Where the documents of an image come from: a registry, or an OCI layout in a directory.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::Digest;

use crate::cache::{CachedBlob, digest_of};
use crate::document::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, OCI_INDEX, OCI_MANIFEST, read_document,
};
use crate::error::Problem;
use crate::limits::Limits;
use crate::transport::{Asked, Place, Transport, asks_on};

/// Something that has manifests and blobs.
pub(crate) enum Origin<'a> {
    /// A repository in a registry.
    Registry(&'a Arc<Transport>, Place),
    /// A directory with `blobs/sha256/` (OCI image layout spec).
    Layout(&'a Path, &'a Limits),
}

/// The bytes of a manifest or index.
pub(crate) struct RawDocument {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
    pub(crate) digest: Digest,
}

impl Origin<'_> {
    /// What it is called in errors.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Registry(_, place) => place.registry.clone(),
            Self::Layout(dir, _) => dir.display().to_string(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        match self {
            Self::Registry(transport, _) => &transport.limits,
            Self::Layout(_, limits) => limits,
        }
    }

    /// A manifest or index by tag or digest, checked against the digest and size where they are known.
    pub(crate) async fn document(
        &self,
        name: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<(Document, Digest), Problem> {
        let raw = self.raw_document(name, digest, size).await?;
        let content_type = raw.content_type.as_deref();
        let document = read_document(
            &raw.bytes,
            &raw.digest,
            &self.name(),
            content_type,
            self.limits(),
        )?;
        Ok((document, raw.digest))
    }

    /// The same, not yet read.
    pub(crate) async fn raw_document(
        &self,
        name: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<RawDocument, Problem> {
        let limit = self.limits().manifest_bytes;
        let what = "the manifest";
        match self {
            Self::Registry(transport, place) => {
                let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
                let path = format!("manifests/{name}");
                let at = async |asked: &Asked| {
                    let answer = transport
                        .document(asked, &path, &accept, what, limit)
                        .await?;
                    let stated = answer.digest.and_then(|text| text.parse().ok());
                    let host = &asked.place.registry;
                    Ok(RawDocument {
                        digest: checked(host, &answer.bytes, digest.or(stated.as_ref()), size)?,
                        bytes: answer.bytes,
                        content_type: answer.content_type,
                    })
                };
                if digest.is_some() {
                    for mirror in transport.mirrors(place) {
                        match at(&mirror).await {
                            Err(problem) if asks_on(&mirror, &problem) => {}
                            result => return result,
                        }
                    }
                }
                at(&transport.itself(place)).await
            }
            Self::Layout(dir, _) => {
                let digest = digest.ok_or_else(|| Problem::NotFound {
                    host: self.name(),
                    what: name.to_owned(),
                })?;
                let bytes = read_limited(&blob_path(dir, digest), limit, what)?;
                Ok(RawDocument {
                    digest: checked(&self.name(), &bytes, Some(digest), size)?,
                    bytes,
                    content_type: None,
                })
            }
        }
    }

    /// A small blob, checked.
    pub(crate) async fn small_blob(
        &self,
        wanted: &Descriptor,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, Problem> {
        let check = |host: &str, bytes: &[u8]| {
            checked(host, bytes, Some(&wanted.digest), Some(wanted.size)).map(drop)
        };
        match self {
            Self::Registry(transport, place) => {
                let path = format!("blobs/{}", wanted.digest);
                let at = async |asked: &Asked| {
                    let answer = transport.document(asked, &path, "*/*", what, limit).await?;
                    check(&asked.place.registry, &answer.bytes)?;
                    Ok(answer.bytes)
                };
                for mirror in transport.mirrors(place) {
                    match at(&mirror).await {
                        Err(problem) if asks_on(&mirror, &problem) => {}
                        result => return result,
                    }
                }
                at(&transport.itself(place)).await
            }
            Self::Layout(dir, _) => {
                let bytes = read_limited(&blob_path(dir, &wanted.digest), limit, what)?;
                check(&self.name(), &bytes)?;
                Ok(bytes)
            }
        }
    }
}

/// The digest of what came, if it is what was wanted.
fn checked(
    host: &str,
    bytes: &[u8],
    wanted: Option<&Digest>,
    size: Option<u64>,
) -> Result<Digest, Problem> {
    let actual = digest_of(bytes);
    let length = bytes.len() as u64;
    if let Some(expected) = size.filter(|size| *size != length) {
        return Err(Problem::WrongSize {
            host: host.to_owned(),
            digest: wanted.cloned().unwrap_or(actual),
            expected,
            actual: length,
        });
    }
    match wanted {
        Some(wanted) if *wanted != actual => Err(Problem::WrongDigest {
            host: host.to_owned(),
            digest: wanted.clone(),
            actual,
        }),
        _ => Ok(actual),
    }
}

/// A blob of a layout that stays where it is: its size is checked here, its digest by whoever reads it.
pub(crate) fn layout_blob(dir: &Path, wanted: &Descriptor) -> Result<CachedBlob, Problem> {
    let path = blob_path(dir, &wanted.digest);
    let metadata = path.metadata().map_err(unreadable(&path))?;
    if !metadata.is_file() || metadata.len() != wanted.size {
        return Err(Problem::WrongSize {
            host: dir.display().to_string(),
            digest: wanted.digest.clone(),
            expected: wanted.size,
            actual: metadata.len(),
        });
    }
    Ok(CachedBlob {
        path,
        size: wanted.size,
    })
}

fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

/// A whole file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>, Problem> {
    let file = File::open(path).map_err(unreadable(path))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(unreadable(path))?;
    if bytes.len() as u64 > limit {
        return Err(Problem::OverLimit {
            what: what.to_owned(),
            actual: bytes.len() as u64,
            limit,
            unit: "bytes",
        });
    }
    Ok(bytes)
}

pub(crate) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Problem {
    let path = path.to_owned();
    move |source| Problem::File { path, source }
}

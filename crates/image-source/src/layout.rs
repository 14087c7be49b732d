//! OCI image layouts (OCI image layout spec): a directory with `index.json` and `blobs/sha256/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::Digest;
use oci::{
    Config, Descriptor, Document, ImageDescription, ImageError, ImageLimits, ImageManifest,
    LayerDescription, LayerFile, Platform, Resolution, Resolved, read_config, read_document,
    verify,
};
use serde::Deserialize;

use crate::error::SourceProblem;
use crate::file::{read_limited, unreadable};

/// The annotation with the name of an index's entry (OCI image layout spec).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout in a directory.
pub(crate) struct Layout<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) limits: &'a ImageLimits,
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

impl Layout<'_> {
    /// Resolves the entry with this digest or tag; without either, the only entry.
    pub(crate) fn resolve(
        &self,
        tag: Option<&str>,
        digest: Option<&Digest>,
        platforms: &[Platform],
    ) -> Result<Resolved, SourceProblem> {
        let ref_digest = self.entry(tag, digest)?;
        let pinned_tag = tag.map(str::to_owned);
        let entries = match self.document(&ref_digest, None)? {
            Document::Image(manifest) => {
                let image = self.describe(&ref_digest, &manifest)?;
                return Ok(Resolved::single(image, pinned_tag, platforms)?);
            }
            Document::Index(entries) => entries,
        };
        let mut resolution = Resolution::new(ref_digest, pinned_tag, entries, platforms);
        while let Some(entry) = resolution.next().cloned() {
            let digest = &entry.digest;
            let described = match self.document(digest, Some(entry.size)) {
                Ok(Document::Index(entries)) => {
                    resolution.nested(digest, &entries)?;
                    continue;
                }
                Ok(Document::Image(manifest)) => self.describe(digest, &manifest),
                Err(problem) => Err(problem),
            };
            match described {
                Ok(image) => resolution.described(image),
                Err(SourceProblem::Image(error)) => resolution.refused(&entry.digest, error)?,
                Err(problem) => return Err(problem),
            }
        }
        Ok(resolution.finish()?)
    }

    /// The layers of an image, where they are. Their sizes are checked.
    pub(crate) fn layers(
        &self,
        layers: Vec<LayerDescription>,
    ) -> Result<Vec<LayerFile>, SourceProblem> {
        let layers = layers.into_iter();
        let layers = layers.map(|layer| {
            let path = self.blob_path(&layer.digest);
            let metadata = path.metadata().map_err(unreadable(&path))?;
            if !metadata.is_file() || metadata.len() != layer.size {
                return Err(ImageError::WrongSize {
                    origin: self.origin(),
                    digest: layer.digest,
                    expected: layer.size,
                    actual: metadata.len(),
                }
                .into());
            }
            Ok(LayerFile::new(layer, path, 0))
        });
        layers.collect()
    }

    /// The digest of the entry with this tag, or of the only entry. A given digest need
    /// not be an entry: any manifest among the blobs will do.
    fn entry(&self, tag: Option<&str>, digest: Option<&Digest>) -> Result<Digest, SourceProblem> {
        if let Some(digest) = digest {
            return Ok(digest.clone());
        }
        let path = self.dir.join("index.json");
        let bytes = read_limited(&path, self.limits.manifest_bytes, "index.json")?;
        let malformed = |reason: String| ImageError::malformed("index.json", &reason);
        let index: LayoutIndex =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let name_of = |entry: &LayoutEntry| entry.annotations.get(REF_NAME).cloned();
        let matching: Vec<&LayoutEntry> = index
            .manifests
            .iter()
            .filter(|entry| tag.is_none() || name_of(entry).as_deref() == tag)
            .collect();
        match matching[..] {
            [entry] => Ok(entry
                .digest
                .parse()
                .map_err(|_| malformed("the digest of an entry is not sha256".to_owned()))?),
            [] => Err(SourceProblem::NotFound {
                path: self.dir.to_owned(),
                what: tag.map_or("image".to_owned(), |tag| format!("image `{tag}`")),
            }),
            _ => {
                let names: Vec<_> = index.manifests.iter().filter_map(name_of).collect();
                let reason = format!("it has several images, choose one: {}", names.join(", "));
                Err(malformed(reason).into())
            }
        }
    }

    fn describe(
        &self,
        digest: &Digest,
        manifest: &ImageManifest,
    ) -> Result<ImageDescription, SourceProblem> {
        let config = self.config(manifest)?;
        Ok(ImageDescription::new(digest, manifest, config))
    }

    /// A manifest or index, checked.
    fn document(&self, digest: &Digest, size: Option<u64>) -> Result<Document, SourceProblem> {
        let limit = self.limits.manifest_bytes;
        let bytes = self.blob(digest, size, limit, "the manifest")?;
        Ok(read_document(
            &bytes,
            digest,
            &self.origin(),
            None,
            self.limits,
        )?)
    }

    /// The config of an image, checked.
    fn config(&self, manifest: &ImageManifest) -> Result<Config, SourceProblem> {
        let Descriptor { digest, size } = &manifest.config;
        let limit = self.limits.config_bytes;
        let bytes = self.blob(digest, Some(*size), limit, "the image config")?;
        Ok(read_config(&bytes, manifest.layers.len())?)
    }

    fn blob(
        &self,
        digest: &Digest,
        size: Option<u64>,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, SourceProblem> {
        let bytes = read_limited(&self.blob_path(digest), limit, what)?;
        verify(&self.origin(), &bytes, Some(digest), size)?;
        Ok(bytes)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// The layout's name in errors.
    fn origin(&self) -> String {
        self.dir.display().to_string()
    }
}

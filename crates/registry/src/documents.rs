//! Manifests, indexes and configs from a repository, checked. Mirrors are asked first for what is known by digest.

use std::sync::Arc;

use model::Digest;
use oci::{
    Config, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, ImageManifest, OCI_INDEX,
    OCI_MANIFEST, read_config, read_document, verify,
};

use crate::error::Problem;
use crate::http::Repository;
use crate::progress::OnEvent;
use crate::transport::{Endpoint, Transport, asks_on};

/// A repository and the way to it.
pub(crate) struct Documents<'a> {
    pub(crate) transport: &'a Arc<Transport>,
    pub(crate) repository: &'a Repository,
    pub(crate) on_event: &'a OnEvent<'a>,
}

/// The bytes of a manifest or index; they have the digest.
pub(crate) struct RawDocument {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
    pub(crate) digest: Digest,
}

impl Documents<'_> {
    /// A manifest or index with its digest. `name` is a tag or the text of `digest`.
    pub(crate) async fn document(
        &self,
        name: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<(Document, Digest), Problem> {
        let raw = self.raw_document(name, digest, size).await?;
        let document = self.read(&raw.bytes, &raw.digest, raw.content_type.as_deref())?;
        Ok((document, raw.digest))
    }

    /// Reads a manifest or index of this repository.
    pub(crate) fn read(
        &self,
        bytes: &[u8],
        digest: &Digest,
        content_type: Option<&str>,
    ) -> Result<Document, Problem> {
        let limits = &self.transport.limits().image;
        let origin = &self.repository.registry;
        Ok(read_document(bytes, digest, origin, content_type, limits)?)
    }

    /// A manifest or index that is not read yet.
    pub(crate) async fn raw_document(
        &self,
        name: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<RawDocument, Problem> {
        let limit = self.transport.limits().image.manifest_bytes;
        let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let path = format!("manifests/{name}");
        let get = async |endpoint: &Endpoint| {
            let answer = self
                .transport
                .document(
                    endpoint,
                    &path,
                    &accept,
                    "the manifest",
                    limit,
                    self.on_event,
                )
                .await?;
            let stated = answer.digest.and_then(|text| text.parse().ok());
            let origin = &endpoint.repository.registry;
            Ok(RawDocument {
                digest: verify(origin, &answer.bytes, digest.or(stated.as_ref()), size)?,
                bytes: answer.bytes,
                content_type: answer.content_type,
            })
        };
        if digest.is_some() {
            for mirror in self.transport.mirrors(self.repository) {
                match get(&mirror).await {
                    Err(problem) if asks_on(&mirror, &problem) => {}
                    result => return result,
                }
            }
        }
        get(&self.transport.registry(self.repository)).await
    }

    /// The config of an image.
    pub(crate) async fn config(&self, manifest: &ImageManifest) -> Result<Config, Problem> {
        let bytes = self.config_bytes(&manifest.config).await?;
        Ok(read_config(&bytes, manifest.layers.len())?)
    }

    /// The bytes of a config; they have the digest.
    pub(crate) async fn config_bytes(&self, config: &Descriptor) -> Result<Vec<u8>, Problem> {
        let limit = self.transport.limits().image.config_bytes;
        let path = format!("blobs/{}", config.digest);
        let get = async |endpoint: &Endpoint| {
            let answer = self
                .transport
                .document(
                    endpoint,
                    &path,
                    "*/*",
                    "the image config",
                    limit,
                    self.on_event,
                )
                .await?;
            let origin = &endpoint.repository.registry;
            verify(
                origin,
                &answer.bytes,
                Some(&config.digest),
                Some(config.size),
            )?;
            Ok(answer.bytes)
        };
        for mirror in self.transport.mirrors(self.repository) {
            match get(&mirror).await {
                Err(problem) if asks_on(&mirror, &problem) => {}
                result => return result,
            }
        }
        get(&self.transport.registry(self.repository)).await
    }
}

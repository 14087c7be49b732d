//! The operations: resolve a reference, fetch an image, try a credential.

use std::fmt;
use std::sync::Arc;

use model::instance::PinnedImage;
use oci::{LocalImage, Platform, Reference, Resolved};

use crate::cache::BlobCache;
use crate::credentials::Credential;
use crate::documents::Documents;
use crate::error::{Problem, RegistryError};
use crate::http::Repository;
use crate::options::RegistryOptions;
use crate::progress::FetchEvent;
use crate::transport::Transport;
use crate::{fetch, resolve};

/// A client for any number of registries. Clones share its connections and tokens.
#[derive(Clone)]
pub struct Registry {
    transport: Arc<Transport>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// A registry client could not be created: TLS or this machine's trust store does not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the registry client")]
pub struct SetupError(#[source] reqwest::Error);

impl Registry {
    /// A client. It connects when it is used.
    ///
    /// # Errors
    /// TLS or this machine's trust store does not work.
    pub fn new(options: RegistryOptions) -> Result<Self, SetupError> {
        let transport = Transport::new(options).map_err(SetupError)?;
        Ok(Self {
            transport: Arc::new(transport),
        })
    }

    /// Resolves a reference to its digest and to the image for each of `platforms`; with no
    /// platforms, to all images that it has. The manifests and configs are fetched and checked, so that an image that
    /// cannot run is refused here and not on a node.
    ///
    /// # Errors
    /// See [`Problem`]. It is an error if there is an image for none of the platforms; the caller decides whether it
    /// needs all of them.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platforms: &[Platform],
    ) -> Result<Resolved, RegistryError> {
        let documents = Documents {
            transport: &self.transport,
            repository: &repository(reference.registry(), reference.repository()),
            on_event: &|_| (),
        };
        resolve::resolve(&documents, reference.tag(), reference.digest(), platforms)
            .await
            .map_err(failed("resolve", reference))
    }

    /// Fetches an image into the cache. Cached blobs are not fetched again, and if all are cached
    /// the registry is not asked. `on_event` is called about once per MiB, and before longer pauses, from any thread.
    ///
    /// A layer that a fetch before this one left unfinished goes on where that one ended.
    ///
    /// Every blob had the right digest and size when it was cached. Of a cached layer only the size is checked again:
    /// its reader checks the bytes ([`oci::LayerFile`]).
    ///
    /// # Errors
    /// See [`Problem`]. Blobs that arrived stay in the cache.
    pub async fn fetch_image(
        &self,
        image: &PinnedImage,
        cache: &BlobCache,
        on_event: &(dyn Fn(FetchEvent) + Send + Sync),
    ) -> Result<LocalImage, RegistryError> {
        let repository = repository(&image.registry, &image.repository);
        fetch::image(&self.transport, &repository, &image.digest, cache, on_event)
            .await
            .map_err(failed("fetch", image))
    }

    /// Asks a registry whether it accepts this credential, as `docker login` does. A registry without authentication
    /// accepts any.
    ///
    /// # Errors
    /// It does not accept it, or does not answer.
    pub async fn log_in(
        &self,
        registry: &str,
        credential: &Credential,
    ) -> Result<(), RegistryError> {
        let attempts = self.transport.limits().attempts;
        self.transport
            .http
            .retry(registry, attempts, &|_| (), || {
                self.transport.log_in(registry, credential)
            })
            .await
            .map_err(failed("log in to", &registry))
    }

    /// Discards the authorizations for a registry: its credential was changed or removed.
    pub fn discard_login(&self, registry: &str) {
        self.transport.discard_authorization(registry);
    }
}

fn failed(
    operation: &'static str,
    image: &impl fmt::Display,
) -> impl FnOnce(Problem) -> RegistryError {
    let image = image.to_string();
    move |problem| RegistryError {
        operation,
        image,
        problem,
    }
}

fn repository(registry: &str, name: &str) -> Repository {
    Repository {
        registry: registry.to_owned(),
        name: name.to_owned(),
    }
}

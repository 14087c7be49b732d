//! Registry logins: sealed in the store, open only while they are used.

use std::fmt;
use std::sync::Arc;

use api::node::PullSecret;
use api::user::RegistryRow;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use identity::{OpenError, SealKey};
use model::Term;
use registry::{Credential, CredentialSource, CredentialsError};
use store::{Store, StoreError};

use crate::sealed::{self, ContentError};

/// The logins of a store, and the key that opens them.
#[derive(Clone)]
pub(crate) struct Logins {
    store: Store,
    seal: Arc<SealKey>,
    /// The term in which they are kept.
    term: Term,
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logins(..)")
    }
}

/// Why a login cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store was restored without its key, or changed by hand.
    #[error("the login to {registry} cannot be opened; log in again")]
    Open {
        registry: String,
        #[source]
        source: OpenError,
    },
    /// It opened, and is not what this version writes.
    #[error("the login to {registry} cannot be read; log in again")]
    Content {
        registry: String,
        #[source]
        source: ContentError,
    },
    #[error(transparent)]
    Key(#[from] identity::KeyError),
}

impl Logins {
    pub(crate) fn new(store: Store, seal: Arc<SealKey>, term: Term) -> Self {
        Self { store, seal, term }
    }

    /// Keeps a login, sealed.
    pub(crate) async fn keep(
        &self,
        login: &RegistryRow,
        secret: &PullSecret,
    ) -> Result<(), LoginError> {
        let text = sealed::encode(secret).map_err(|source| LoginError::Content {
            registry: login.registry.clone(),
            source,
        })?;
        let sealed = self.seal.seal(&text, &context(&login.registry))?;
        let kept = self.store.set_registry_login(self.term, login, &sealed);
        Ok(kept.await?)
    }

    /// The secret of the login to a registry, if there is one.
    pub(crate) async fn open(&self, registry: &str) -> Result<Option<PullSecret>, LoginError> {
        let Some(sealed) = self.store.sealed_registry_login(registry).await? else {
            return Ok(None);
        };
        let text = self
            .seal
            .open(&sealed, &context(registry))
            .map_err(|source| LoginError::Open {
                registry: registry.to_owned(),
                source,
            })?;
        let secret = sealed::decode(&text).map_err(|source| LoginError::Content {
            registry: registry.to_owned(),
            source,
        })?;
        Ok(Some(secret))
    }

    /// Says in the log which logins cannot be opened any more.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        for login in self.store.registry_logins().await? {
            if let Err(error) = self.open(&login.registry).await {
                tracing::warn!(cause = display::chain(&error), "a registry login is lost");
            }
        }
        Ok(())
    }
}

impl CredentialSource for Logins {
    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        async move {
            match self.open(registry).await {
                Ok(secret) => Ok(secret.map(credential)),
                Err(error) => Err(CredentialsError::Source(Box::new(error))),
            }
        }
        .boxed()
    }
}

fn context(registry: &str) -> String {
    format!("registry login {registry}")
}

/// The secret as the registry client takes it.
pub(crate) fn credential(secret: PullSecret) -> Credential {
    match secret {
        PullSecret::Basic { user, password } => Credential::Basic { user, password },
        PullSecret::IdentityToken { token } => Credential::IdentityToken(token),
    }
}

//! Registry logins: asked of the server at the moment a registry wants one, and kept in memory only.
//!
//! Nothing of a login is in the desired state, so nothing of it is on this node's disk. An agent that was
//! restarted asks again when it has to pull again; what runs or is cached needs no login.

use api::node::PullSecret;
use api_client::ApiClient;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use registry::{Credential, CredentialSource, CredentialsError};

/// The server, as someone who knows logins.
#[derive(Clone)]
pub(crate) struct ServerLogins(pub(crate) ApiClient);

impl std::fmt::Debug for ServerLogins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerLogins(..)")
    }
}

impl CredentialSource for ServerLogins {
    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        async move {
            let secret = self.0.pull_secret(registry).await;
            let secret = secret.map_err(|error| CredentialsError::Source(Box::new(error)))?;
            Ok(secret.map(|secret| match secret {
                PullSecret::Basic { user, password } => Credential::Basic { user, password },
                PullSecret::IdentityToken { token } => Credential::IdentityToken(token),
            }))
        }
        .boxed()
    }
}

//! What the first start makes: the cluster's settings, and the first admin.

use std::net::Ipv6Addr;
use std::path::Path;

use api_client::ClientConfig;
use blocking_work::blocking;
use identity::UserToken;
use model::{Incarnation, UserName};
use scheduler::cluster_state::ClusterSettings;
use store::Store;

use crate::clock::now;
use crate::limits::DEFAULT_MTU;
use crate::options::ServerError;

/// A new life of the store.
pub(crate) fn new_incarnation() -> Result<Incarnation, ServerError> {
    let random: [u8; 8] = identity::random("the store's incarnation")?;
    // 0 is nobody's.
    Ok(Incarnation(u64::from_le_bytes(random).max(1)))
}

/// A random id, and a random ULA /48 (RFC 4193: fd, then 40 random bits).
pub(crate) fn new_settings() -> Result<ClusterSettings, ServerError> {
    let id = u64::from_le_bytes(identity::random("the cluster's id")?);
    let [a, b, c, d, e] = identity::random("the cluster's address range")?;
    let mut prefix = [0; 16];
    prefix[..6].copy_from_slice(&[0xfd, a, b, c, d, e]);
    Ok(ClusterSettings {
        mode: overlay::topology::Mode::default(),
        private_networks: overlay::private_networks::PrivateNetworks::default(),
        id: format!("{id:016x}"),
        prefix: Ipv6Addr::from(prefix),
        mtu: DEFAULT_MTU,
    })
}

async fn save(config: ClientConfig, path: &Path) -> Result<(), ServerError> {
    let path = path.to_owned();
    Ok(blocking(move || config.save(&path)).await?)
}

/// Sees to it that `client.json` lets its reader in here: the token, the CA and the URL are right.
/// Where they are not (the first start, another store, a lost file), a new admin token is made: the user that starts a
/// server owns its store anyway.
pub(crate) async fn write_client_config(
    path: &Path,
    store: &Store,
    ca_pem: &str,
    server: &str,
) -> Result<(), ServerError> {
    let file = path.to_owned();
    let known = match blocking(move || ClientConfig::load(&file)).await {
        Ok(config) => config
            .token
            .parse::<UserToken>()
            .ok()
            .map(|token| (config, token)),
        Err(_) => None,
    };
    if let Some((config, token)) = known
        && store.user_token(&token.secret_hash()).await?.is_some()
    {
        if config.server != server || config.ca_pem != ca_pem {
            let config = ClientConfig {
                server: server.to_owned(),
                ca_pem: ca_pem.to_owned(),
                ..config
            };
            save(config, path).await?;
        }
        return Ok(());
    }
    let token = UserToken::generate()?;
    store
        .add_admin_token(&token.secret_hash(), &UserName::admin(), now())
        .await?;
    let config = ClientConfig {
        server: server.to_owned(),
        token: token.to_string(),
        ca_pem: ca_pem.to_owned(),
    };
    save(config, path).await?;
    tracing::info!(path = %path.display(), "wrote an admin's client configuration");
    Ok(())
}

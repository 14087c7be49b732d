//! Makes the cluster of a server without starting it.

use blocking_work::blocking;
use store::Store;

use crate::bootstrap;
use crate::keys::{self, ClusterKeys};
use crate::options::{ServerError, ServerOptions, reachable, store_url};
use crate::serve::{make_data_folder, no_older_server};

/// The cluster of a server that was set up.
#[derive(Debug, Clone)]
pub struct Initialized {
    /// The cluster's random id.
    pub cluster: String,
    /// SHA-256 of its CA's certificate (DER): what enrollment tokens carry.
    pub ca_fingerprint: [u8; 32],
    /// The server's URL, as in `client.json`.
    pub url: String,
    /// The first admin's configuration.
    pub client_config: std::path::PathBuf,
    /// Whether the cluster was made just now.
    pub is_new: bool,
}

/// Makes the cluster's CA, keys, address range and first admin where there is none, and listens nowhere. A port of 0 is
/// written to `client.json` as it is.
///
/// # Errors
/// As of [`crate::run`], whose store must not be in use.
pub async fn init(options: &ServerOptions) -> Result<Initialized, ServerError> {
    let data_dir = options.data_dir.clone();
    blocking(move || {
        make_data_folder(&data_dir)?;
        no_older_server(&data_dir)
    })
    .await?;
    let store = Store::open(&store_url(options.store.as_deref(), &options.data_dir)).await?;
    if store.is_shared() && options.listen.ip().is_unspecified() && options.advertise.is_none() {
        return Err(ServerError::NotAdvertised);
    }
    let ClusterKeys {
        record,
        authority,
        is_new,
        ..
    } = keys::load_or_create(&store, &options.data_dir).await?;
    let url = match &options.advertise {
        Some(url) => url.clone(),
        None => format!("https://{}", reachable(options.listen)),
    };
    let client_config = options.data_dir.join("client.json");
    let trusted_pem = authority.trusted_pem();
    bootstrap::write_client_config(&client_config, &store, &trusted_pem, &url).await?;
    store.close().await;
    Ok(Initialized {
        cluster: record.settings.id,
        ca_fingerprint: authority.current.fingerprint(),
        url,
        client_config,
        is_new,
    })
}

//! The first start creates the cluster: its CA, its address range, the key that seals secrets, the first admin.

use std::net::Ipv6Addr;
use std::path::Path;

use api_client::ClientConfig;
use blocking_work::blocking;
use identity::{ClusterCa, SealKey, UserToken};
use model::Incarnation;
use scheduler::cluster_state::ClusterSettings;
use serde::{Deserialize, Serialize};
use store::{ClusterRecord, Store};

use crate::clock::now;
use crate::limits::DEFAULT_MTU;
use crate::options::ServerError;

/// The name of the first admin's token.
const FIRST_ADMIN: &str = "admin";

/// The cluster of this store, made now where there is none. True when it was.
pub(crate) async fn load_or_create(store: &Store) -> Result<(ClusterRecord, bool), ServerError> {
    if let Some(record) = store.cluster().await? {
        return Ok((record, false));
    }
    let settings = new_settings()?;
    let ca = ClusterCa::generate(&settings.id, now())?;
    let record = ClusterRecord {
        settings,
        ca_cert_pem: ca.certificate_pem().to_owned(),
        ca_key_pem: ca.key_pem().to_owned(),
    };
    store
        .create_cluster(&record, new_incarnation()?, now())
        .await?;
    tracing::info!(cluster = %record.settings.id, prefix = %record.settings.prefix, "made a new cluster");
    Ok((record, true))
}

/// A new life of the store.
fn new_incarnation() -> Result<Incarnation, ServerError> {
    let random: [u8; 8] = identity::random("the store's incarnation")?;
    // 0 is nobody's.
    Ok(Incarnation(u64::from_le_bytes(random).max(1)))
}

/// A random id, and a random ULA /48 (RFC 4193: fd, then 40 random bits).
fn new_settings() -> Result<ClusterSettings, ServerError> {
    let id = u64::from_le_bytes(identity::random("the cluster's id")?);
    let [a, b, c, d, e] = identity::random("the cluster's address range")?;
    let mut prefix = [0; 16];
    prefix[..6].copy_from_slice(&[0xfd, a, b, c, d, e]);
    Ok(ClusterSettings {
        id: format!("{id:016x}"),
        prefix: Ipv6Addr::from(prefix),
        mtu: DEFAULT_MTU,
    })
}

/// `seal-key.json`: apart from the store, so that a copy of the store alone opens no secret.
#[derive(Serialize, Deserialize)]
struct SealKeyFile {
    /// [`SealKey::text`].
    key: String,
}

impl state_file::StateFormat for SealKeyFile {
    const VERSION: u32 = 1;
}

/// The key that seals secrets, made now where there is none. Whoever restores a store restores this file
/// beside it; without it what was sealed has to be given again. Blocks.
pub(crate) fn seal_key(path: &Path) -> Result<SealKey, ServerError> {
    if let Some(file) = state_file::read::<SealKeyFile>(path)? {
        return Ok(SealKey::load(&file.key)?);
    }
    let key = SealKey::generate()?;
    state_file::write(path, &SealKeyFile { key: key.text() })?;
    tracing::info!(path = %path.display(), "made the key that seals secrets; back it up beside the store");
    Ok(key)
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
        Ok(config) if config.ca_pem == ca_pem => config
            .token
            .parse::<UserToken>()
            .ok()
            .map(|token| (config, token)),
        Ok(_) | Err(_) => None,
    };
    if let Some((config, token)) = known
        && store.user_of_token(&token.secret_hash()).await?.is_some()
    {
        if config.server != server {
            let config = ClientConfig {
                server: server.to_owned(),
                ..config
            };
            save(config, path).await?;
        }
        return Ok(());
    }
    let token = UserToken::generate()?;
    store
        .add_user_token(&token.secret_hash(), FIRST_ADMIN, now())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use state_file::StateFormat as _;

    use super::*;

    /// The file of each version, oldest first.
    const FIXTURES: [&str; SealKeyFile::VERSION as usize] =
        [include_str!("fixtures/seal-key/version-1.json")];

    #[test]
    fn seal_key_json_of_each_version_is_read_with_and_without_added_fields() {
        let newest = FIXTURES[FIXTURES.len() - 1];
        let newest: serde_json::Value = serde_json::from_str(newest).unwrap();
        for text in FIXTURES {
            let mut json: serde_json::Value = serde_json::from_str(text).unwrap();
            json["added_later"] = true.into();
            for text in [text.to_owned(), json.to_string()] {
                let read: SealKeyFile = state_file::decode(text.as_bytes()).unwrap();
                let written = state_file::encode(&read).unwrap();
                let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
                assert_eq!(written, newest);
            }
        }
    }

    #[test]
    fn a_seal_key_of_a_newer_version_is_kept_and_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal-key.json");
        std::fs::write(&path, FIXTURES[0]).unwrap();
        let key = seal_key(&path).unwrap();
        assert_eq!(key.text(), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        let newer = FIXTURES[0].replace("\"version\": 1", "\"version\": 99");
        std::fs::write(&path, &newer).unwrap();
        assert!(seal_key(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    }
}

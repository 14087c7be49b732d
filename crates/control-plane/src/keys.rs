//! The keys of the cluster: its CA's, and the one that seals secrets. The store has them wrapped by the key-encryption key,
//! which lies in a file of its own: a copy of the store alone opens nothing.
//!
//! A key that is missing or wrong keeps the server from starting, and none is made anew: what was sealed under the old one
//! would be lost, and every member would have to enroll again.
//!
//! ```text
//!   store      key file    start
//!   cluster    right       keys are unwrapped
//!   cluster    missing     refused: put the file back
//!   cluster    wrong       refused: it is another cluster's
//!   empty      missing     a new cluster, a new key
//!   empty      there       refused: the store was lost, restore a backup
//! ```

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blocking_work::blocking;
use identity::{ClusterCa, KeyEncryptionKey, OpenError, SealKey};
use model::Term;
use serde::{Deserialize, Serialize};
use state_file::StateFormat;
use store::{ClusterRecord, Store, StoreError, StoredKeys};

use crate::authority::Authority;
use crate::bootstrap::{new_incarnation, new_settings};
use crate::clock::now;
use crate::options::ServerError;

/// The file with the key-encryption key, in the server's data folder.
pub const KEY_FILE: &str = "key-encryption-key.json";
/// The same before the cluster that it is of was created: a start that was interrupted there is made again.
const NEW_KEY_FILE: &str = "key-encryption-key.json.new";
/// Where servers before this one kept the key that seals secrets.
const SEAL_KEY_FILE: &str = "seal-key.json";

/// `key-encryption-key.json`.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    /// [`SealKey::text`].
    key: String,
}

impl StateFormat for KeyFile {
    const VERSION: u32 = 1;
}

/// `seal-key.json`, as servers before this one wrote it.
#[derive(Serialize, Deserialize)]
struct SealKeyFile {
    /// [`SealKey::text`].
    key: String,
}

impl StateFormat for SealKeyFile {
    const VERSION: u32 = 1;
}

/// The cluster of a store, and its keys.
#[derive(Debug)]
pub(crate) struct ClusterKeys {
    pub(crate) record: ClusterRecord,
    pub(crate) authority: Authority,
    /// What seals secrets.
    pub(crate) seal: SealKey,
    /// Whether the cluster was made just now.
    pub(crate) is_new: bool,
}

fn ca_context(cluster: &str) -> String {
    format!("the CA's key of cluster {cluster}")
}

fn seal_context(cluster: &str) -> String {
    format!("the key that seals secrets of cluster {cluster}")
}

/// The cluster of this store with its keys; made now where the store is empty.
pub(crate) async fn load_or_create(
    store: &Store,
    data_dir: &Path,
) -> Result<ClusterKeys, ServerError> {
    let path = data_dir.join(KEY_FILE);
    let Some(record) = store.cluster().await? else {
        if read::<KeyFile>(&path).await?.is_some() {
            return Err(ServerError::StoreLost { key: path });
        }
        return create(store, data_dir).await;
    };
    let new = data_dir.join(NEW_KEY_FILE);
    if read::<KeyFile>(&path).await?.is_none() && read::<KeyFile>(&new).await?.is_some() {
        // The start that created the cluster ended before it could rename the file.
        rename(new, path.clone()).await?;
    }
    match &record.keys {
        StoredKeys::Wrapped { .. } => {
            let key = read_key(&path).await?;
            let keys = unwrap(record, &key, path)?;
            remove_wrapped_seal_key(&keys.seal, data_dir).await?;
            Ok(keys)
        }
        StoredKeys::Clear { .. } => wrap_clear_keys(store, record, data_dir).await,
    }
}

/// Unwraps the keys of a record with the key of this file.
pub(crate) fn unwrap(
    record: ClusterRecord,
    key: &dyn KeyEncryptionKey,
    path: PathBuf,
) -> Result<ClusterKeys, ServerError> {
    let wrong = |source: OpenError| ServerError::WrongKey {
        path: path.clone(),
        source,
    };
    let StoredKeys::Wrapped { ca_key, seal_key } = &record.keys else {
        // A backup is of a server that has started, and that wraps them.
        return Err(ServerError::Store(StoreError::NoCluster));
    };
    let cluster = &record.settings.id;
    let ca_key = key.unwrap(ca_key, &ca_context(cluster)).map_err(wrong)?;
    let seal_key = key
        .unwrap(seal_key, &seal_context(cluster))
        .map_err(wrong)?;
    let ca = ClusterCa::load(&record.ca_cert_pem, &String::from_utf8_lossy(&ca_key))?;
    let seal = SealKey::load(&String::from_utf8_lossy(&seal_key))?;
    Ok(ClusterKeys {
        authority: Authority {
            before_pem: record.ca_before_pem.clone(),
            cross_pem: record.ca_cross_pem.clone(),
            current: Arc::new(ca),
        },
        record,
        seal,
        is_new: false,
    })
}

/// The CAs of a store, where they are others than those that are known.
pub(crate) async fn stored_authority(
    store: &Store,
    data_dir: &Path,
    known: &Authority,
) -> Result<Option<Authority>, ServerError> {
    let record = store.cluster().await?.ok_or(StoreError::NoCluster)?;
    let is_known = record.ca_cert_pem == known.current.certificate_pem()
        && record.ca_before_pem == known.before_pem
        && record.ca_cross_pem == known.cross_pem;
    if is_known {
        return Ok(None);
    }
    let path = data_dir.join(KEY_FILE);
    let key = read_key(&path).await?;
    Ok(Some(unwrap(record, &key, path)?.authority))
}

/// Has a new CA sign from now on, in this term. The one before is trusted too.
pub(crate) async fn replace_ca(
    store: &Store,
    term: Term,
    data_dir: &Path,
    before: &Authority,
) -> Result<(), ServerError> {
    let mut record = store.cluster().await?.ok_or(StoreError::NoCluster)?;
    let key = read_key(&data_dir.join(KEY_FILE)).await?;
    let (next, cross_pem) = before.current.successor(now())?;
    let StoredKeys::Wrapped { ca_key, .. } = &mut record.keys else {
        // Not of a server that runs: it has wrapped them.
        return Err(ServerError::Store(StoreError::NoCluster));
    };
    let context = ca_context(&record.settings.id);
    *ca_key = key.wrap(next.key_pem().as_bytes(), &context)?;
    record.ca_cert_pem = next.certificate_pem().to_owned();
    record.ca_before_pem = before.trusted_pem();
    record.ca_cross_pem = format!("{cross_pem}{}", before.cross_pem);
    Ok(store.set_ca(term, &record).await?)
}

/// Trusts no CA but the one that signs, in this term. Whoever knows only one before it follows to it still.
pub(crate) async fn drop_ca_before(store: &Store, term: Term) -> Result<(), ServerError> {
    let mut record = store.cluster().await?.ok_or(StoreError::NoCluster)?;
    record.ca_before_pem = String::new();
    Ok(store.set_ca(term, &record).await?)
}

/// The key-encryption key of this file.
pub(crate) async fn read_key(path: &Path) -> Result<SealKey, ServerError> {
    if let Ok(file) = tokio::fs::metadata(path).await {
        let mode = file.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(ServerError::KeyOpen {
                path: path.to_owned(),
                mode,
            });
        }
    }
    match read::<KeyFile>(path).await? {
        Some(file) => Ok(SealKey::load(&file.key)?),
        None => Err(ServerError::KeyMissing {
            path: path.to_owned(),
        }),
    }
}

/// A new cluster. Its key-encryption key has its final name once the store has the cluster: before that, another start begins
/// anew.
async fn create(store: &Store, data_dir: &Path) -> Result<ClusterKeys, ServerError> {
    let settings = new_settings()?;
    let ca = ClusterCa::generate(&settings.id, now())?;
    let (key, seal) = (SealKey::generate()?, SealKey::generate()?);
    let record = ClusterRecord {
        keys: wrapped(&key, &settings.id, &ca, &seal)?,
        settings,
        ca_cert_pem: ca.certificate_pem().to_owned(),
        ca_before_pem: String::new(),
        ca_cross_pem: String::new(),
    };
    let new = data_dir.join(NEW_KEY_FILE);
    write_key(&new, &key).await?;
    store
        .create_cluster(&record, new_incarnation()?, now())
        .await?;
    let path = data_dir.join(KEY_FILE);
    if store.cluster().await?.as_ref() != Some(&record) {
        // Another server on the same database was first.
        remove(new).await?;
        return Err(ServerError::KeyMissing { path });
    }
    rename(new, path.clone()).await?;
    tracing::info!(cluster = %record.settings.id, prefix = %record.settings.prefix, "made a new cluster");
    tracing::info!(
        path = %path.display(),
        "made the key-encryption key; keep a copy apart from the backups: without it they open nothing"
    );
    Ok(ClusterKeys {
        record,
        authority: Authority::first(ca),
        seal,
        is_new: true,
    })
}

/// Takes the keys of a server before this one, which are in clear, under a key-encryption key.
async fn wrap_clear_keys(
    store: &Store,
    mut record: ClusterRecord,
    data_dir: &Path,
) -> Result<ClusterKeys, ServerError> {
    let StoredKeys::Clear { ca_key_pem } = &record.keys else {
        return Err(ServerError::KeyMissing {
            path: data_dir.join(KEY_FILE),
        });
    };
    let ca = ClusterCa::load(&record.ca_cert_pem, ca_key_pem)?;
    let seal_file = data_dir.join(SEAL_KEY_FILE);
    let seal = match read::<SealKeyFile>(&seal_file).await? {
        Some(file) => SealKey::load(&file.key)?,
        None if store.has_sealed().await? => {
            return Err(ServerError::KeyMissing { path: seal_file });
        }
        None => SealKey::generate()?,
    };
    let path = data_dir.join(KEY_FILE);
    let key = match read::<KeyFile>(&path).await? {
        // A start before this one ended half-way.
        Some(file) => SealKey::load(&file.key)?,
        None => {
            let key = SealKey::generate()?;
            write_key(&path, &key).await?;
            key
        }
    };
    record.keys = wrapped(&key, &record.settings.id, &ca, &seal)?;
    store.wrap_keys(&record.keys).await?;
    remove(seal_file).await?;
    tracing::info!(
        path = %path.display(),
        "the CA's key and the key that seals secrets are now in the store, wrapped by the key-encryption key; keep a copy \
         of it apart from the backups"
    );
    Ok(ClusterKeys {
        record,
        authority: Authority::first(ca),
        seal,
        is_new: false,
    })
}

/// Removes the file of the key that seals, where a start that took it into the store ended before it could. Another key's file
/// is left alone.
async fn remove_wrapped_seal_key(seal: &SealKey, data_dir: &Path) -> Result<(), ServerError> {
    let file = data_dir.join(SEAL_KEY_FILE);
    match read::<SealKeyFile>(&file).await? {
        Some(key) if key.key.trim() == seal.text() => remove(file).await,
        _ => Ok(()),
    }
}

fn wrapped(
    key: &dyn KeyEncryptionKey,
    cluster: &str,
    ca: &ClusterCa,
    seal: &SealKey,
) -> Result<StoredKeys, ServerError> {
    Ok(StoredKeys::Wrapped {
        ca_key: key.wrap(ca.key_pem().as_bytes(), &ca_context(cluster))?,
        seal_key: key.wrap(seal.text().as_bytes(), &seal_context(cluster))?,
    })
}

async fn read<T: StateFormat + Send + 'static>(path: &Path) -> Result<Option<T>, ServerError> {
    let path = path.to_owned();
    Ok(blocking(move || state_file::read::<T>(&path)).await?)
}

async fn write_key(path: &Path, key: &SealKey) -> Result<(), ServerError> {
    let (path, file) = (path.to_owned(), KeyFile { key: key.text() });
    Ok(blocking(move || state_file::write(&path, &file)).await?)
}

async fn rename(from: PathBuf, to: PathBuf) -> Result<(), ServerError> {
    let renamed = blocking({
        let to = to.clone();
        move || rename_durably(&from, &to)
    });
    renamed
        .await
        .map_err(|source| ServerError::DataFolder { path: to, source })
}

/// Blocks.
fn rename_durably(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)?;
    match to.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

async fn remove(path: PathBuf) -> Result<(), ServerError> {
    let removed = blocking({
        let path = path.clone();
        move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    });
    removed
        .await
        .map_err(|source| ServerError::DataFolder { path, source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// The files of each version, oldest first.
    const SEAL_KEYS: [&str; SealKeyFile::VERSION as usize] =
        [include_str!("fixtures/seal-key/version-1.json")];
    const KEYS: [&str; KeyFile::VERSION as usize] =
        [include_str!("fixtures/key-encryption-key/version-1.json")];

    fn reads_and_writes<T: StateFormat>(fixtures: &[&str]) {
        let newest: serde_json::Value = serde_json::from_str(fixtures[fixtures.len() - 1]).unwrap();
        for text in fixtures {
            let mut json: serde_json::Value = serde_json::from_str(text).unwrap();
            json["added_later"] = true.into();
            for text in [(*text).to_owned(), json.to_string()] {
                let read: T = state_file::decode(text.as_bytes()).unwrap();
                let written = state_file::encode(&read).unwrap();
                let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
                assert_eq!(written, newest);
            }
        }
    }

    #[test]
    fn key_files_of_each_version_are_read_with_and_without_added_fields() {
        reads_and_writes::<SealKeyFile>(&SEAL_KEYS);
        reads_and_writes::<KeyFile>(&KEYS);
    }

    #[tokio::test]
    async fn a_key_of_a_newer_version_is_kept_and_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        std::fs::write(&path, KEYS[0]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        read_key(&path).await.unwrap();
        let newer = KEYS[0].replace("\"version\": 1", "\"version\": 99");
        std::fs::write(&path, &newer).unwrap();
        assert!(read_key(&path).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    }
}

//! Backup and restore of the store.
//!
//! A backup is one file, a database of SQLite and a checksum: the store as it was at one moment, wherever it is, with every secret sealed and every key
//! wrapped. It is restored to a file or into PostgreSQL. The
//! key-encryption key is not in it, and has to be kept apart. A restored store begins another incarnation, so that nodes and
//! edges apply its state at once, and an instance that it does not know is left running.

use std::path::{Path, PathBuf};

use blocking_work::blocking;
use model::Term;
use scheduler::cluster_state::ClusterState;
use store::{Store, StoreError};

use crate::backup_file::{add_checksum, take_out};
use crate::bootstrap::new_incarnation;
use crate::keys::{self, KEY_FILE};
use crate::logins::Logins;
use crate::options::{ServerError, store_url};
use crate::secrets::Secrets;
use crate::serve::make_data_folder;

/// What a restore is made of.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The backup.
    pub file: PathBuf,
    /// The data folder of the server, with the key-encryption key in it.
    pub data_dir: PathBuf,
    /// The store, as in [`crate::ServerOptions::store`].
    pub store: Option<String>,
    /// Prove that the backup can be restored, and change nothing.
    pub rehearse: bool,
}

/// What is in a backup that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The id of its cluster.
    pub cluster: String,
    /// How many nodes it knows.
    pub nodes: usize,
    /// How many envs.
    pub envs: usize,
    /// How many instances.
    pub instances: usize,
    /// How many volumes. Their contents are on the nodes.
    pub volumes: usize,
    /// How many secret bundles and registry logins were opened.
    pub secrets: usize,
    /// What in it cannot be read, for people. It is kept as it is.
    pub unreadable: Vec<String>,
    /// Where the store that was there is kept, if one was.
    pub replaced: Option<PathBuf>,
}

/// Copies the store to a file that is not there yet. A server may run meanwhile. Half a backup is never there under this name.
///
/// # Errors
/// There is no store, or the file cannot be written.
pub async fn backup(data_dir: &Path, store: Option<&str>, to: &Path) -> Result<(), ServerError> {
    let failed = |source| ServerError::Backup {
        path: to.to_owned(),
        source,
    };
    if tokio::fs::try_exists(to).await.map_err(failed)? {
        return Err(failed(std::io::ErrorKind::AlreadyExists.into()));
    }
    let part = beside(to, ".part");
    remove_database(&part).await?;
    let written = async {
        Store::backup(&store_url(store, data_dir), &part).await?;
        let (part, to) = (part.clone(), to.to_owned());
        let named = blocking(move || {
            add_checksum(&part)?;
            // A link takes the place of nothing. Some disks and shares have no links.
            match std::fs::hard_link(&part, &to) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(error);
                }
                Err(_) => std::fs::rename(&part, &to)?,
                Ok(()) => {}
            }
            let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
            std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        });
        named.await.map_err(failed)
    };
    let written = written.await;
    remove_database(&part).await?;
    written
}

/// Puts a backup in the place of the store, which is kept beside it. No server may run, but for a rehearsal.
///
/// # Errors
/// The backup cannot be read, its keys do not open, or a server runs. The store is as it was then.
pub async fn restore(options: &RestoreOptions) -> Result<Restored, ServerError> {
    let data_dir = options.data_dir.clone();
    blocking(move || make_data_folder(&data_dir)).await?;
    if options.rehearse {
        // Beside a running server: nothing of the store is touched.
        let copy = options.data_dir.join("rehearsal.db");
        remove_database(&copy).await?;
        let restored = open_copy(options, &copy).await;
        remove_database(&copy).await?;
        return restored;
    }
    let url = store_url(options.store.as_deref(), &options.data_dir);
    if Store::is_postgres(&url) {
        return Box::pin(restore_into_postgres(options, &url)).await;
    }
    let place = Store::lock(&url).await?;
    let copy = beside(place.path(), ".restoring");
    remove_database(&copy).await?;
    let restored = open_copy(options, &copy).await;
    let restored = match restored {
        Ok(mut restored) => {
            let to = place.path().to_owned();
            let replaced = blocking({
                let (copy, to) = (copy.clone(), to.clone());
                move || replace(&copy, &to)
            });
            let replaced = replaced.await;
            replaced
                .map(|replaced| {
                    restored.replaced = replaced;
                    restored
                })
                .map_err(|source| ServerError::DataFolder { path: to, source })
        }
        other => other,
    };
    remove_database(&copy).await?;
    restored
}

/// The same in PostgreSQL. What was there is kept as a backup in the data folder.
async fn restore_into_postgres(
    options: &RestoreOptions,
    url: &str,
) -> Result<Restored, ServerError> {
    let copy = options.data_dir.join("restoring.db");
    remove_database(&copy).await?;
    let restored = async {
        let mut restored = open_copy(options, &copy).await?;
        let backup = Store::open(&format!("sqlite:{}", copy.display())).await?;
        let replaced = Box::pin(backup.restore_into_postgres(url, &options.data_dir)).await;
        backup.close().await;
        restored.replaced = replaced?;
        Ok(restored)
    };
    let restored = restored.await;
    remove_database(&copy).await?;
    restored
}

/// Copies the backup, opens it as a server does, and begins another incarnation in it.
async fn open_copy(options: &RestoreOptions, copy: &Path) -> Result<Restored, ServerError> {
    let database = beside(copy, ".backup");
    remove_database(&database).await?;
    let opened = Box::pin(open_database(options, &database, copy)).await;
    remove_database(&database).await?;
    opened
}

async fn open_database(
    options: &RestoreOptions,
    database: &Path,
    copy: &Path,
) -> Result<Restored, ServerError> {
    let file = options.file.clone();
    let is_whole = blocking({
        let (file, to) = (file.clone(), database.to_owned());
        move || take_out(&file, &to)
    });
    let is_whole = is_whole.await.map_err(|source| ServerError::Backup {
        path: file.clone(),
        source,
    })?;
    if !is_whole {
        return Err(ServerError::BackupDamaged { path: file });
    }
    let of_backup = |source| ServerError::NoBackup {
        path: options.file.clone(),
        source,
    };
    let from = format!("sqlite:{}", database.display());
    Store::backup(&from, copy).await.map_err(of_backup)?;
    let store = Store::open(&format!("sqlite:{}", copy.display())).await?;
    let restored = match prove(options, &store).await {
        Err(ServerError::Store(error @ StoreError::NoCluster)) => Err(of_backup(error)),
        restored => restored,
    };
    let begun = match &restored {
        Ok(_) => store.begin_incarnation(new_incarnation()?).await,
        Err(_) => Ok(()),
    };
    store.close().await;
    begun?;
    restored
}

async fn prove(options: &RestoreOptions, store: &Store) -> Result<Restored, ServerError> {
    let record = store.cluster().await?.ok_or(StoreError::NoCluster)?;
    let path = options.data_dir.join(KEY_FILE);
    let key = keys::read_key(&path).await?;
    let keys = keys::unwrap(record, &key, path)?;
    let cluster = store.load().await?;
    let seal = std::sync::Arc::new(keys.seal);
    let secrets = Secrets::new(store.clone(), std::sync::Arc::clone(&seal));
    let mut unreadable: Vec<String> = cluster.unreadable.iter().map(described).collect();
    let mut opened = 0;
    for env in cluster.secrets.keys() {
        match secrets.newest(env, None).await {
            Ok(bundles) => opened += bundles.len(),
            Err(failure) => unreadable.push(failure.message()),
        }
    }
    let logins = Logins::new(store.clone(), seal, Term::default());
    for login in store.registry_logins().await? {
        match logins.open(&login.registry).await {
            Ok(_) => opened += 1,
            Err(error) => unreadable.push(display::chain(&error)),
        }
    }
    Ok(counted(&cluster, opened, unreadable))
}

fn counted(cluster: &ClusterState, secrets: usize, unreadable: Vec<String>) -> Restored {
    Restored {
        cluster: cluster.settings.id.clone(),
        nodes: cluster.nodes.len(),
        envs: cluster.envs.len(),
        instances: cluster.instances.len(),
        volumes: cluster.volumes.len(),
        secrets,
        unreadable,
        replaced: None,
    }
}

fn described(record: &scheduler::cluster_state::UnreadableRecord) -> String {
    format!("{}: {}", record.subject, record.cause)
}

/// `PATH` with something added to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The files of a database: itself, and those that SQLite and [`Store::open`] keep beside it.
const BESIDE: [&str; 4] = ["", "-wal", "-shm", ".lock"];

async fn remove_database(path: &Path) -> Result<(), ServerError> {
    for suffix in BESIDE {
        let file = beside(path, suffix);
        match tokio::fs::remove_file(&file).await {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(ServerError::DataFolder { path: file, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Stores of before restores that are kept at most.
const MAX_REPLACED: u32 = 1_000;

/// Puts a closed database in the place of another, which is kept. Gives where. Blocks.
fn replace(copy: &Path, place: &Path) -> std::io::Result<Option<PathBuf>> {
    let mut kept = None;
    if place.try_exists()? {
        let names = (1..=MAX_REPLACED).map(|n| beside(place, &format!(".before-restore-{n}")));
        let free = names.into_iter().find(|path| !path.exists());
        let to = free.ok_or(std::io::ErrorKind::AlreadyExists)?;
        // The log first: a database without its log is a database; a log without its database is nothing.
        for suffix in ["-shm", "-wal", ""] {
            match std::fs::rename(beside(place, suffix), beside(&to, suffix)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        kept = Some(to);
    }
    std::fs::rename(copy, place)?;
    if let Some(folder) = place.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(kept)
}

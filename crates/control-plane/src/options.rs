//! How a server is started, and why it could not be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use store::StoreError;

use tokio::sync::oneshot;

/// How a server is started.
#[derive(Debug)]
pub struct ServerOptions {
    /// Where to listen. Port 0: any free one.
    pub listen: SocketAddr,
    /// The store: `sqlite:PATH`, or `postgres://USER@HOST/DATABASE`, which several servers may share. Absent:
    /// `<data_dir>/platform.db`.
    pub store: Option<String>,
    /// Where the store and the first admin's `client.json` are kept.
    pub data_dir: PathBuf,
    /// More names and addresses that the server is reached by; its certificate names them beside
    /// the listen address, the loopback and the host name.
    pub names: Vec<String>,
    /// The URL that is written to `client.json`, and at which other servers on the same store reach this one. Absent: made of
    /// the listen address.
    pub advertise: Option<String>,
    /// Registries, `host[:port]`, that may be spoken to without TLS. The loopback always may.
    pub insecure_registries: BTreeSet<String>,
    /// Mirrors by the registry they stand in for ([`registry::RegistryOptions::mirrors`]).
    pub registry_mirrors: BTreeMap<String, Vec<String>>,
    /// Where it tells metrics and readiness; nowhere by default.
    pub metrics_listen: Option<SocketAddr>,
    /// The program that sets and removes records in the DNS for ACME's DNS-01 (docs/tls.md); none by default.
    pub acme_dns_hook: Option<PathBuf>,
    /// Told when the server answers.
    pub ready: Option<oneshot::Sender<Ready>>,
}

/// A server that answers.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its URL, as in `client.json`.
    pub url: String,
    /// The first admin's configuration.
    pub client_config: PathBuf,
    /// Whether the cluster was made just now.
    pub first_start: bool,
}

/// The store's URL.
pub(crate) fn store_url(store: Option<&str>, data_dir: &Path) -> String {
    match store {
        Some(url) => url.to_owned(),
        None => format!("sqlite:{}", data_dir.join("platform.db").display()),
    }
}

/// The address under which a listener of `address` is reached from its own machine.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Why a server could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data folder cannot be made or used.
    #[error("could not use the data folder {}", path.display())]
    DataFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address of its metrics is taken, or not this machine's.
    #[error(transparent)]
    Metrics(#[from] ::metrics::CannotListen),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The CA or a certificate could not be made.
    #[error(transparent)]
    Ca(#[from] identity::CaError),
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] identity::KeyError),
    /// A file with a key cannot be read or written.
    #[error("could not use the file with the key")]
    KeyFile(#[from] state_file::StateFileError),
    /// The store has a cluster, and its key is not there.
    #[error("the store has a cluster, and the file with its key is not there: {}", path.display())]
    KeyMissing {
        /// The file.
        path: PathBuf,
    },
    /// Others of the machine can read the key.
    #[error("{} is open to others: its mode is {mode:04o}", path.display())]
    KeyOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The key does not open the store.
    #[error("the key in {} does not open the keys of this store", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: identity::OpenError,
    },
    /// The file of a backup cannot be read or written.
    #[error("could not use the backup {}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file of a backup is not as it was written.
    #[error("{} is no whole backup: it does not end with the checksum of what is before it", path.display())]
    BackupDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The file is no backup, or a damaged one.
    #[error("{} is no backup that can be restored", path.display())]
    NoBackup {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The key of a cluster is there, and the store is empty.
    #[error("the store has no cluster, and the key of one is there: {}", key.display())]
    StoreLost {
        /// The file with the key.
        key: PathBuf,
    },
    /// The first admin's configuration cannot be written.
    #[error(transparent)]
    ClientConfig(#[from] api_client::ConfigError),
    /// TLS cannot be set up.
    #[error("could not set up TLS: {0}")]
    Tls(String),
    /// The registry client cannot be made.
    #[error(transparent)]
    Registry(#[from] registry::SetupError),
    /// The address cannot be listened on.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Other servers have no address of this one.
    #[error(
        "this server listens on every address of its machine, and other servers on the store need one of them"
    )]
    NotAdvertised,
    /// The cluster state in the store could not be planned.
    #[error("could not settle the cluster state in the store: {0}")]
    Settle(String),
}

impl ServerError {
    /// What to do about it, where we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotAdvertised => Some(
                "name it: `--advertise https://NAME:PORT`, where the other servers reach this one"
                    .to_owned(),
            ),
            Self::Store(StoreError::InUse { .. }) => Some(
                "stop the other `platform server`; a server of another cluster has a store and a `--data-dir` of its own"
                    .to_owned(),
            ),
            Self::Store(error) => error.hint().map(str::to_owned),
            Self::KeyMissing { path } => Some(format!(
                "put {} back from where its copy is kept, or copy it from the data folder of another server of this cluster; without it the keys and secrets in the store cannot be opened, \
                 and no key is made in its place",
                path.display()
            )),
            Self::KeyOpen { path, .. } => Some(format!(
                "it opens every secret of the cluster: `chmod 600 {}`, and find out who read it",
                path.display()
            )),
            Self::WrongKey { path, .. } => Some(format!(
                "{} is another cluster's: put that of this store there",
                path.display()
            )),
            Self::BackupDamaged { .. } | Self::NoBackup { .. } => Some(
                "restore another copy of it, or the backup before; `platform server restore FILE --rehearse` says whether \
                 one can be, and changes nothing. A copy of a store is no backup: it belongs into the data folder of a server that is stopped"
                    .to_owned(),
            ),
            Self::Backup { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => {
                Some("choose another name: no backup is overwritten".to_owned())
            }
            Self::Backup { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("make the folder first, or name a file that is there".to_owned())
            }
            Self::StoreLost { key } => Some(format!(
                "restore a backup with `platform server restore`; for a new cluster, remove {} and the rest of the data \
                 folder",
                key.display()
            )),
            Self::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Some("choose another address with `--listen`".to_owned())
            }
            _ => None,
        }
    }
}

//! The ingress proxy: HTTP/1.1 and HTTP/2 from clients, over TLS too, to ready instances, by host name.
//!
//! An edge enrolls once with a one-time token and its own key, then fetches the route table by
//! long poll and keeps it on disk: it goes on serving while the server is out of reach, and after its own
//! restart. A client's connection is one task (`connection`), which has its connection to a backend too; what becomes of a request is in
//! `forward`, how heads are read and written in the crate `http1`; every limit has its name in `limits`. A stream of HTTP/2 is a connection of HTTP/1.1 to all
//! of it (`http2`).
//!
//! Certificates come from the server as routes do, and are kept as they are (`tls`); so does what authorities of ACME ask for (`challenges`). Who comes in plain HTTP is
//! led to HTTPS (`https_policy`).
//!
//! Deliberately absent: caching, rewriting, access rules. The edge
//! decides nothing about routes: the control plane does.

mod access_log;
mod answer;
mod backend;
mod balance;
mod body;
mod buffer;
mod certificates;
mod challenges;
mod client;
mod connection;
mod date;
mod error_pages;
mod exchange;
mod follow;
mod follow_certificates;
mod follow_challenges;
mod following;
mod forward;
mod host_certificates;
mod http2;
mod https_policy;
#[cfg(test)]
mod https_policy_tests;
mod kept_certificates;
mod kept_routes;
mod limits;
mod listener;
mod metrics;
mod overlay_link;
mod pace;
mod port_ranges;
mod proxy_header;
mod rates;
mod routes;
mod session;
mod shares;
mod socket;
mod sticky;
mod succession;
mod tcp;
#[cfg(test)]
mod tests;
mod tickets;
mod timer;
mod tls;
#[cfg(test)]
mod tls_tests;
mod trusted;
mod tunnel;
mod upload;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::metrics::Readiness;
use api_client::ClientError;
use blocking_work::blocking;
use membership::{JoinError, Membership};
use model::Generation;
use state_file::StateFileError;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
pub use crate::access_log::AccessLogTarget;
use crate::following::Following;
use crate::https_policy::Https;
use crate::kept_certificates::CertificateFiles;
use crate::limits::MAX_POLL_RETRY;
pub use crate::port_ranges::{PortRanges, PortRangesError};
use crate::succession::Alone;
pub use crate::succession::Succession;
pub use crate::tcp::{KeepPorts, KeptPorts};
pub use crate::tls::TlsError;
use crate::tls::{OpenError, Tls};
use crate::trusted::TrustedProxies;
pub use crate::trusted::{ProxyNetwork, ProxyNetworkError};

/// How an edge runs.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// Where identity and the last route table are kept.
    pub data_dir: PathBuf,
    /// Where clients connect, in plain HTTP.
    pub listen: SocketAddr,
    /// At which ports TCP routes may have it listen, at the address of `listen`.
    pub tcp_ports: PortRanges,
    /// Where clients connect by HTTPS; nowhere where it is absent, and then the edge has no certificate.
    pub listen_tls: Option<SocketAddr>,
    /// The port at which clients reach `listen_tls`, for redirects to it. Absent: its own port, and 443 for those of a trusted proxy.
    pub https_port: Option<u16>,
    /// The server's URL; needed to enroll, remembered afterwards.
    pub server: Option<String>,
    /// The one-time enrollment token; needed once.
    pub token: Option<String>,
    /// Wanted name, the host name.
    pub name: String,
    /// Region the machine is in.
    pub region: String,
    /// Where it tells metrics and readiness; nowhere by default.
    pub metrics_listen: Option<SocketAddr>,
    /// How its peers reach it, as far as its operator says.
    pub underlay: membership::UnderlayOptions,
    /// Proxies in front of it that are believed what they say of clients.
    pub trusted_proxies: Vec<ProxyNetwork>,
    /// Where a line for each request goes; nowhere by default.
    pub access_log: Option<AccessLogTarget>,
    /// The folder of pages for the edge's own answers: `404.html`, or `4xx.html` for all of a kind. Its own short texts by default.
    pub error_pages: Option<PathBuf>,
}

/// Why an edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The address of its metrics is taken, or not this machine's.
    #[error(transparent)]
    Metrics(#[from] ::metrics::CannotListen),
    /// The file of its access log cannot be opened.
    #[error("cannot open the access log {}", path.display())]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder of its error pages cannot be read.
    #[error("cannot read the error pages in {}", path.display())]
    ErrorPages {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another edge runs on the same data folder, or is about to join there.
    #[error("another edge runs on {}", .0.display())]
    Busy(PathBuf),
    /// Its data folder cannot be made, or locked.
    #[error("cannot use the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The process before this one keeps its place.
    #[error("cannot take the place of the process before this one")]
    TakeOver(#[source] io::Error),
    /// Its files cannot be used.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// It is no member of a cluster, and could not become one.
    #[error("this edge cannot join the cluster")]
    Join(#[from] JoinError),
    /// The link to the instances of other machines cannot be removed.
    #[error("cannot remove the interface of the overlay")]
    Overlay(#[source] wireguard::interface::InterfaceError),
    /// The rules of that link cannot be removed.
    #[error("cannot remove the rules of the overlay's interface")]
    Network(#[source] node_network::NetworkError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What it knows of the server makes no client.
    #[error("cannot use the credentials in member.json of the data folder")]
    Client(#[source] ClientError),
}

impl EdgeError {
    /// What to do about it, where we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("choose another address with --listen, or --listen-tls".to_owned())
            }
            Self::Busy(_) => Some("stop it first: systemctl stop platform-edge".to_owned()),
            Self::Join(JoinError::Enroll(error)) => error.hint(),
            Self::Join(JoinError::PortTaken { .. }) => Some(membership::PORT_HINT.to_owned()),
            Self::Client(error) => Some(error.hint().unwrap_or_else(|| {
                "`platform edge join --again`, with a new token, makes others".to_owned()
            })),
            Self::Join(JoinError::State(_) | JoinError::KeysDamaged { .. })
            | Self::Listen { .. }
            | Self::Metrics(_)
            | Self::AccessLog { .. }
            | Self::ErrorPages { .. }
            | Self::Folder { .. }
            | Self::TakeOver(_)
            | Self::State(_)
            | Self::Tls(_)
            | Self::Overlay(_)
            | Self::Network(_) => None,
            Self::Join(_) => Some(
                "give --server, and by --token-file or PLATFORM_TOKEN a token that `platform tokens create --role edge` made"
                    .to_owned(),
            ),
        }
    }
}

impl From<OpenError> for EdgeError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Tls(error) => Self::Tls(error),
            OpenError::Files(error) => Self::State(error),
        }
    }
}

/// Joins the cluster and keeps what proves it, for [`run`]. A machine that has joined before is left as it is, and no token is
/// looked at.
///
/// # Errors
/// Why the server refused, or cannot be reached. No token is spent unless the server accepted it.
pub async fn join(options: &EdgeOptions) -> Result<Membership, EdgeError> {
    let data_dir = options.data_dir.clone();
    // An edge that runs is a member.
    if let Some(known) = blocking(move || Membership::load(&data_dir)).await? {
        return Ok(known);
    }
    let _lock = lock(&options.data_dir).await?;
    overlay_link::end_former(&options.data_dir).await;
    let applicant = follow::applicant(options);
    Ok(Membership::load_or_join(&options.data_dir, &applicant).await?)
}

/// Removes the edge's link, and sets aside who this machine was, so that it can join anew ([`membership::leave`]).
///
/// # Errors
/// An edge runs here still, or the files cannot be changed.
pub async fn leave(data_dir: &Path) -> Result<(), EdgeError> {
    let _lock = lock(data_dir).await?;
    // The next member's has another name, and the same port.
    overlay_link::end_former(data_dir).await;
    Ok(membership::leave(data_dir).await?)
}

/// One edge per data folder. The lock is the file's that is returned.
async fn lock(data_dir: &Path) -> Result<File, EdgeError> {
    let folder = data_dir.to_owned();
    blocking(move || {
        let failed = |source| EdgeError::Folder {
            path: folder.clone(),
            source,
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let file = File::create(folder.join("edge.lock")).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => Err(EdgeError::Busy(folder.clone())),
            Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    })
    .await
}

/// Removes what an edge that was stopped left on its machine for the next: its link to the instances of other machines.
///
/// # Errors
/// An edge runs here still, or what could not be removed.
pub async fn down(data_dir: &Path) -> Result<(), EdgeError> {
    if !blocking({
        let folder = data_dir.to_owned();
        move || folder.exists()
    })
    .await
    {
        return Ok(());
    }
    let _lock = lock(data_dir).await?;
    overlay_link::down(data_dir).await
}

async fn open_access_log(target: Option<AccessLogTarget>) -> Result<Option<AccessLog>, EdgeError> {
    let Some(target) = target else {
        return Ok(None);
    };
    let opened = blocking({
        let target = target.clone();
        move || AccessLog::open(&target)
    });
    let log = opened.await.map_err(|source| EdgeError::AccessLog {
        path: match target {
            AccessLogTarget::Stdout => PathBuf::from("-"),
            AccessLogTarget::File(path) => path,
        },
        source,
    })?;
    Ok(Some(log))
}

async fn read_error_pages(path: &Path) -> Result<error_pages::Folder, EdgeError> {
    let folder = path.to_owned();
    let read = blocking(move || error_pages::read(&folder)).await;
    read.map_err(|source| EdgeError::ErrorPages {
        path: path.to_owned(),
        source,
    })
}

/// Runs the edge until `shutdown`, then finishes the requests in flight, within bounds.
///
/// # Errors
/// What kept it from starting. Once it is a member, it serves whatever happens to the server.
pub async fn run(options: EdgeOptions, shutdown: CancellationToken) -> Result<(), EdgeError> {
    let listeners = Listeners {
        http: listen(options.listen).await?,
        https: match options.listen_tls {
            Some(address) => Some(listen(address).await?),
            None => None,
        },
        metrics: match options.metrics_listen {
            Some(address) => Some(listen_for_watchers(address).await?),
            None => None,
        },
        tcp: KeptPorts::default(),
    };
    Box::pin(serve(options, listeners, &Alone, shutdown)).await
}

/// Listens for clients. Those that connect wait until [`serve`] accepts them.
///
/// # Errors
/// The address is taken, or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, EdgeError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| EdgeError::Listen {
        listen: address,
        source,
    })
}

/// Listens for those who watch, as [`listen`] does for clients.
///
/// # Errors
/// The address is taken, or not this machine's.
pub async fn listen_for_watchers(address: SocketAddr) -> Result<TcpListener, EdgeError> {
    Ok(::metrics::listen(address).await?)
}

/// Where clients connect.
#[derive(Debug)]
pub struct Listeners {
    /// In plain HTTP: `listen` of the options is its address.
    pub http: TcpListener,
    /// By HTTPS: `listen_tls` is its address.
    pub https: Option<TcpListener>,
    /// For those who watch: `metrics_listen` is its address.
    pub metrics: Option<TcpListener>,
    /// Of TCP routes, from the process before this one.
    pub tcp: KeptPorts,
}

/// [`run`], on listeners that are there, between the processes before and after this one. When another one has taken its place, it finishes what is open,
/// within wider bounds.
///
/// # Errors
/// As of [`run`], and that the process before this one keeps its place.
pub async fn serve(
    options: EdgeOptions,
    listeners: Listeners,
    succession: &dyn Succession,
    shutdown: CancellationToken,
) -> Result<(), EdgeError> {
    let lock = match succession.lock() {
        Some(lock) => lock,
        None => lock(&options.data_dir).await?,
    };
    let edge = Arc::new(forward::Edge {
        trusted_proxies: TrustedProxies::new(options.trusted_proxies.clone()),
        access_log: open_access_log(options.access_log.clone()).await?,
        ..forward::Edge::default()
    });
    let error_pages = match &options.error_pages {
        Some(path) => {
            let folder = read_error_pages(path).await?;
            edge.error_pages.set(&folder);
            Some((path.clone(), folder))
        }
        None => None,
    };
    let (serving_soon, data_dir) = (Arc::clone(&edge), options.data_dir.clone());
    let kept = blocking(move || follow::take_kept(&serving_soon, &data_dir)).await?;
    let readiness = Readiness::default();
    let mut registry = ::metrics::registry("edge", env!("CARGO_PKG_VERSION"));
    edge.metrics.register(&mut registry);
    let tls = match listeners.https {
        Some(listener) => {
            let tls = Tls::open(Arc::clone(&edge), &options.data_dir).await;
            let tls = Arc::new(tls?);
            tls.register(&mut registry);
            let port = options.listen_tls.map_or(0, |address| address.port());
            // Nobody has set it before.
            let _ = edge.https.set(Https {
                certificates: Arc::clone(&tls.certificates),
                port: listener.local_addr().map_or(port, |address| address.port()),
                public_port: options.https_port,
            });
            Some((tls, listener))
        }
        None => {
            let files = CertificateFiles::new(&options.data_dir);
            blocking(move || files.remove_all()).await?;
            None
        }
    };
    // One that is damaged is found before the clients are this process's.
    if let Some(membership) = load_membership(&options.data_dir).await? {
        membership.client().map_err(EdgeError::Client)?;
    }
    let no_routes = || edge.routes.generation() == Generation::default();
    let waits_for_routes = || no_routes().then(|| readiness.waits_for("the first route table"));
    let mut first_routes = waits_for_routes();
    succession.take_over().await.map_err(EdgeError::TakeOver)?;
    let told = ::metrics::start_on(listeners.metrics, registry, readiness.clone());
    tracing::info!(listen = %options.listen, tls = ?options.listen_tls, "serving");

    // What ends all that is open, and what ends the accepting of more.
    let stop = shutdown.child_token();
    let serving = stop.child_token();
    let tcp = tcp::serve(
        Arc::clone(&edge),
        tls.as_ref().map(|(tls, _)| Arc::clone(tls)),
        options.listen.ip(),
        options.tcp_ports.clone(),
        listeners.tcp,
        serving.clone(),
    );
    let following = Following {
        options,
        edge: Arc::clone(&edge),
        tls: tls.as_ref().map(|(tls, _)| Arc::clone(tls)),
        kept: Arc::new(Mutex::new(kept)),
        error_pages,
    };
    // Until this is no member, or another process has taken its place.
    let leading = async {
        let mut goes_on = false;
        loop {
            let followed = async {
                loop {
                    let first_routes = first_routes.take().or_else(waits_for_routes);
                    match Box::pin(following.run(first_routes)).await {
                        // It was a member: it serves as one whose server is out of reach.
                        Err(error) if goes_on => {
                            let error = display::chain(&error);
                            tracing::error!(%error, "cannot follow the server; trying again");
                            tokio::time::sleep(MAX_POLL_RETRY).await;
                        }
                        ended => return ended,
                    }
                }
            };
            tokio::select! {
                ended = followed => return ended,
                () = succession.asked() => {}
            }
            if let Ok(None) = load_membership(&following.options.data_dir).await {
                tracing::error!(
                    "no other process takes the place of this one before it has joined"
                );
                continue;
            }
            match hand_over(&following, succession, &lock, &shutdown).await {
                Ok(()) => break,
                Err(error) => tracing::error!(
                    error = %display::chain(&error),
                    "no other process has taken the place of this one, which goes on"
                ),
            }
            goes_on = true;
        }
        // Nobody has set it before.
        let _ = edge.handed_over.set(stop.clone());
        tracing::info!(
            "another process has taken the place of this one, which finishes what is open"
        );
        drop(told);
        drop(lock);
        Ok(())
    };
    // Ends when asked to, or when it cannot become a member.
    let mut served = std::pin::pin!(async {
        let ending = async {
            serving.cancelled().await;
            readiness.ends();
        };
        let over_tls = async {
            if let Some((tls, listener)) = tls {
                tls::serve(tls, listener, serving.clone()).await;
            }
        };
        let plain = listener::serve(Arc::clone(&edge), listeners.http, serving.clone());
        tokio::join!(plain, over_tls, tcp, ending);
    });
    let result = tokio::select! {
        () = &mut served => return Ok(()),
        result = leading => result,
    };
    serving.cancel();
    served.await;
    result
}

/// Gives the place of this process to another one. Nothing is followed meanwhile, and nothing written.
async fn hand_over(
    following: &Following,
    succession: &dyn Succession,
    lock: &File,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    // What was being written when the following ended is written.
    let mut kept = Arc::clone(&following.kept).lock_owned().await;
    // The next one begins with what is on disk: where that is not what is served, it would serve what was.
    let edge = Arc::clone(&following.edge);
    let files = following.tls.as_ref().map(|tls| tls.files.clone());
    let _kept = blocking(move || {
        kept.catch_up(&edge.routes).map_err(io::Error::other)?;
        if let Some(files) = files {
            files.catch_up().map_err(io::Error::other)?;
        }
        io::Result::Ok(kept)
    })
    .await?;
    tokio::select! {
        biased;
        // Then it stops, and there is to be no other.
        () = shutdown.cancelled() => std::future::pending().await,
        handed_over = succession.hand_over(lock) => handed_over,
    }
}

async fn load_membership(data_dir: &Path) -> Result<Option<Membership>, JoinError> {
    let folder = data_dir.to_owned();
    Ok(blocking(move || Membership::load(&folder)).await?)
}

//! The server from its start to its end: its store, its keys, its listener. TLS has optional client certificates.

use std::fs::{File, TryLockError};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ::metrics::Readiness;
use blocking_work::blocking;
use store::{Holder, Store, StoreError};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::dispatch::{Dispatch, Door};
use crate::election::Election;
use crate::enrollment_rate::EnrollmentRate;
use crate::keys::{self, ClusterKeys};
use crate::limits::{ACCEPT_PAUSE, BACKLOG, SHUTDOWN_GRACE, TURNED_AWAY_INTERVAL};
use crate::listens_at::listens_at;
use crate::metrics::ServerMetrics;
use crate::options::{Ready, ServerError, ServerOptions, reachable, store_url};
use crate::shares::{Shares, TurnedAway};
use crate::term::Foundation;
use crate::tls::{ReachedBy, Tls, Watcher};
use crate::users::Users;
use crate::{bootstrap, connection, open_files};

/// Runs a server until `shutdown`. Instances, nodes and edges go on without it.
///
/// # Errors
/// What kept it from starting.
pub async fn run(options: ServerOptions, shutdown: CancellationToken) -> Result<(), ServerError> {
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
        seal,
        is_new: first_start,
    } = keys::load_or_create(&store, &options.data_dir).await?;

    let listening = |source| ServerError::Listen {
        address: options.listen,
        source,
    };
    let listener = TcpListener::bind(options.listen).await.map_err(listening)?;
    // Again, for its backlog: after a start, every member of the cluster connects at once.
    rustix::net::listen(&listener, BACKLOG).map_err(|error| listening(error.into()))?;
    let address = listener.local_addr().map_err(listening)?;
    let server_url = match &options.advertise {
        Some(url) => url.clone(),
        None => format!("https://{}", reachable(address)),
    };
    // Other servers check the certificate by the address that they are told.
    let advertised = server_url.parse::<http::Uri>().ok();
    let advertised = advertised.and_then(|url| url.host().map(str::to_owned));
    let mut names = options.names.clone();
    names.extend(advertised.map(|host| host.trim_matches(['[', ']']).to_owned()));
    let (names, ips) = reached_by(address.ip(), &names);
    let reached_by = ReachedBy { names, ips };
    let tls = watch::Sender::new(Arc::new(Tls::new(&authority, &reached_by)?));
    let client_config = options.data_dir.join("client.json");
    let trusted_pem = authority.trusted_pem();
    bootstrap::write_client_config(&client_config, &store, &trusted_pem, &server_url).await?;
    let authority = watch::Sender::new(Arc::new(authority));
    let ca_changed = Arc::new(Notify::new());

    let (metrics, readiness) = (Arc::new(ServerMetrics::default()), Readiness::default());
    let shares = Shares::new(open_files::raise());
    let mut told = ::metrics::registry("server", env!("CARGO_PKG_VERSION"));
    metrics.register(&mut told, shares.clone());
    let starting = readiness.waits_for("its start");
    let _told = ::metrics::start(options.metrics_listen, told, readiness.clone()).await?;

    let foundation = Arc::new(Foundation {
        metrics: Arc::clone(&metrics),
        users: Users::new(store.clone()),
        shares,
        url: server_url.clone(),
        listens_at: listens_at(address),
        store,
        authority: authority.subscribe(),
        ca_changed: Arc::clone(&ca_changed),
        data_dir: options.data_dir.clone(),
        seal: Arc::new(seal),
        settings: record.settings,
        acme_dns_hook: options.acme_dns_hook,
        insecure_registries: options.insecure_registries,
        registry_mirrors: options.registry_mirrors,
        shutdown: shutdown.clone(),
    });
    let me = Holder {
        id: server_id()?,
        address: server_url.clone(),
    };
    let (election, role) = Election::start(Arc::clone(&foundation), me).await?;
    let door = Door {
        users: foundation.users.clone(),
        shares: foundation.shares.clone(),
        enrollments: EnrollmentRate::new(Instant::now()),
    };
    let following = role.clone().report(metrics, readiness.clone());
    let following = AbortOnDropHandle::new(tokio::spawn(following));
    let dispatch = Dispatch::new(role, door, tls.subscribe(), shutdown.clone());
    let accepting = tls.subscribe();
    let watcher = Watcher {
        store: foundation.store.clone(),
        data_dir: options.data_dir.clone(),
        reached_by,
        authority,
        tls,
        changed: ca_changed,
    };
    let watcher = tokio::spawn(watcher.run(shutdown.clone()));
    let election = tokio::spawn(election.run());

    tracing::info!(%address, cluster = %foundation.settings.id, "the server answers");
    if let Some(ready) = options.ready {
        // Nobody waiting is fine.
        let _ = ready.send(Ready {
            address,
            url: server_url,
            client_config,
            first_start,
        });
    }
    starting.over();
    let ending = async {
        shutdown.cancelled().await;
        readiness.ends();
    };
    tokio::join!(accept(&listener, &accepting, &dispatch, &shutdown), ending);
    drop(following);
    if let Err(error) = watcher.await {
        tracing::error!(%error, "the task that looks after the CAs panicked");
    }
    if let Err(error) = election.await {
        tracing::error!(%error, "the election's task panicked");
    }
    foundation.store.close().await;
    tracing::info!("the server has stopped");
    Ok(())
}

/// A random id of this start of the server.
fn server_id() -> Result<String, ServerError> {
    let id = u64::from_le_bytes(identity::random("the server's id")?);
    Ok(format!("{id:016x}"))
}

/// Makes the folder. Blocks.
pub(crate) fn make_data_folder(path: &Path) -> Result<(), ServerError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| ServerError::DataFolder {
            path: path.to_owned(),
            source,
        })
}

/// A server of before locked its data folder and not its store. One that runs still would write beside this one. Blocks.
pub(crate) fn no_older_server(data_dir: &Path) -> Result<(), ServerError> {
    let Ok(lock) = File::open(data_dir.join("server.lock")) else {
        return Ok(());
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(ServerError::Store(StoreError::InUse {
            store: data_dir.join("platform.db").display().to_string(),
        })),
        // Unlocked when it is closed.
        _ => Ok(()),
    }
}

/// The names and addresses in the server's certificate.
fn reached_by(listen: IpAddr, more: &[String]) -> (Vec<String>, Vec<IpAddr>) {
    let mut names = vec!["localhost".to_owned()];
    let mut ips = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    if !listen.is_unspecified() {
        ips.push(listen);
    }
    // blocks: a read of one small file of /proc, which is in memory
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    for name in std::iter::once(host.trim()).chain(more.iter().map(String::as_str)) {
        match name.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) if name.is_empty() || !name.is_ascii() => {}
            Err(_) => names.push(name.to_owned()),
        }
    }
    names.sort();
    names.dedup();
    ips.sort();
    ips.dedup();
    (names, ips)
}

/// Serves connections until `shutdown`, then lets the requests under way end.
async fn accept(
    listener: &TcpListener,
    tls: &watch::Receiver<Arc<Tls>>,
    dispatch: &Dispatch,
    shutdown: &CancellationToken,
) {
    let shares = dispatch.shares().clone();
    let connections = TaskTracker::new();
    let mut said = TurnedAwayLog::default();
    let mut timer = tokio::time::interval(TURNED_AWAY_INTERVAL);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            _ = timer.tick() => {
                said.report(shares.turned_away());
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                connections.spawn(connection::serve(
                    stream,
                    from,
                    Arc::clone(&tls.borrow()),
                    dispatch.clone(),
                    shares.clone(),
                    shutdown.clone(),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    said.report(shares.turned_away());
    connections.close();
    if tokio::time::timeout(SHUTDOWN_GRACE, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("some requests did not end within {SHUTDOWN_GRACE:?} and were cut");
    }
}

/// What was logged of the connections that were turned away.
#[derive(Debug, Default)]
struct TurnedAwayLog(TurnedAway);

impl TurnedAwayLog {
    /// Logs how many were turned away since the last time.
    fn report(&mut self, now: TurnedAway) {
        let before = std::mem::replace(&mut self.0, now);
        if now != before {
            tracing::warn!(
                strangers = now.strangers - before.strangers,
                users = now.users - before.users,
                members = now.members - before.members,
                servers = now.servers - before.servers,
                "connections were turned away, or closed for others, in the last {} s",
                TURNED_AWAY_INTERVAL.as_secs()
            );
        }
    }
}

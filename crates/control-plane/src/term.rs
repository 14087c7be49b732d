//! A term: what a server has while it leads. It begins with the cluster state of the store, loaded once, and ends when the server
//! does, or when another server leads (ADR 0001). Nothing of a term outlives it but what is in the store: the next one loads that
//! anew, and hears of its nodes anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use identity::SealKey;
use model::{LeaderSession, Term};
use registry::{Credentials, Registry, RegistryOptions};
use scheduler::cluster_state::ClusterSettings;
use scheduler::directory::DirectoryIndex;
use scheduler::leader::Leader;
use scheduler::peers::PeerIndex;
use scheduler::placement::PromisedIndex;
use scheduler::table::Table;
use store::Store;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::acme::Acme;
use crate::authority::Authority;
use crate::bootstrap::new_incarnation;
use crate::certificates::Certificates;
use crate::clock::{follow_the_wall_clock, now};
use crate::doctor::Doctor;
use crate::leader_handle::LeaderHandle;
use crate::limits::{MAX_EXECS, MAX_FORWARDS, MAX_LOG_READERS, MAX_PLANS, REGISTRY_PAUSE};
use crate::logins::Logins;
use crate::members::Members;
use crate::metrics::ServerMetrics;
use crate::not_committed::NotCommitted;
use crate::options::ServerError;
use crate::overlay::{Overlay, watch_hubs};
use crate::presence::Presence;
use crate::refused_enrollments::RefusedEnrollments;
use crate::reporting::Reporting;
use crate::secrets::Secrets;
use crate::shares::Shares;
use crate::signing_rate::SigningRate;
use crate::slots::Slots;
use crate::state::{Published, Shared};
use crate::streams::Streams;
use crate::topics::Topics;
use crate::users::Users;
use crate::{acme_loop, api, certificate_loop, commit_loop, planner_loop};

/// What a server has whether it leads or not.
pub(crate) struct Foundation {
    pub(crate) store: Store,
    /// What this server counts.
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) users: Users,
    pub(crate) shares: Shares,
    /// Where this server is reached.
    pub(crate) url: String,
    /// Every address at which it listens.
    pub(crate) listens_at: BTreeSet<SocketAddr>,
    /// The CAs; others where they were replaced.
    pub(crate) authority: watch::Receiver<Arc<Authority>>,
    /// Notified when this server has replaced the CA.
    pub(crate) ca_changed: Arc<Notify>,
    /// Where the key-encryption key is.
    pub(crate) data_dir: PathBuf,
    /// What seals secrets.
    pub(crate) seal: Arc<SealKey>,
    pub(crate) settings: ClusterSettings,
    /// The program for DNS-01.
    pub(crate) acme_dns_hook: Option<PathBuf>,
    pub(crate) insecure_registries: BTreeSet<String>,
    pub(crate) registry_mirrors: BTreeMap<String, Vec<String>>,
    /// The server ends.
    pub(crate) shutdown: CancellationToken,
}

/// A term in which this server leads.
pub(crate) struct LedTerm {
    pub(crate) term: Term,
    /// What answers its callers.
    pub(crate) router: Router,
    /// The store refused a write of the term: it is over.
    pub(crate) lost: CancellationToken,
    metrics: Arc<ServerMetrics>,
    /// Ends what was begun in it.
    end: CancellationToken,
    tasks: [(JoinHandle<()>, &'static str); 5],
}

impl LedTerm {
    /// Loads the cluster state and begins to decide and plan. What edges are told first is the whole cluster state, planned.
    pub(crate) async fn begin(foundation: &Foundation, term: Term) -> Result<Self, ServerError> {
        let store = foundation.store.clone();
        let end = foundation.shutdown.child_token();
        let lost = CancellationToken::new();
        let logins = Logins::new(store.clone(), Arc::clone(&foundation.seal), term);
        logins.check().await?;
        let registry = Registry::new(RegistryOptions {
            insecure: foundation.insecure_registries.clone(),
            mirrors: foundation.registry_mirrors.clone(),
            credentials: Credentials::Source(Arc::new(logins.clone())),
            // Whoever may deploy names the registry.
            addresses: registry::Addresses::Checked,
            limits: registry::Limits {
                retry_after_max: REGISTRY_PAUSE,
                longer_wait: registry::LongerWait::Return,
                ..registry::Limits::default()
            },
        })?;
        let mended = store.mend_route_counter(term, new_incarnation()?).await?;
        if let Some(counter) = mended {
            tracing::error!(
                counter,
                "the route table's counter in the store was out of range: another incarnation begins, in which it counts anew"
            );
        }
        let certificates = Certificates::load(
            store.clone(),
            Arc::clone(&foundation.seal),
            term,
            &foundation.settings.id,
        )
        .await?;
        let acme = Acme::load(
            store.clone(),
            Arc::clone(&foundation.seal),
            term,
            foundation.acme_dns_hook.clone(),
        )
        .await?;
        let mut cluster = store.load().await?;
        let presence = Presence::starting(cluster.nodes.keys().copied());
        // A server that followed has not looked at its machine's clock since it started, which may be months ago.
        follow_the_wall_clock();
        cluster.counting_since = now();
        let routes = store.routes().await?;
        let nothing_published = Published {
            cluster: cluster.clone(),
            routes: routes.clone(),
            findings: Table::new(),
            promised: PromisedIndex::default(),
            peers: PeerIndex::new(&cluster),
            directory: DirectoryIndex::default(),
        };
        let (leader_handle, requests) = LeaderHandle::new();
        let shared = Arc::new(Shared {
            term,
            session: LeaderSession(new_incarnation()?.0),
            secrets: Secrets::new(store.clone(), Arc::clone(&foundation.seal)),
            store,
            metrics: Arc::clone(&foundation.metrics),
            users: foundation.users.clone(),
            authority: foundation.authority.clone(),
            ca_changed: Arc::clone(&foundation.ca_changed),
            rotating: tokio::sync::Mutex::new(()),
            data_dir: foundation.data_dir.clone(),
            logins,
            certificates,
            acme,
            signing_rate: SigningRate::default(),
            settings: foundation.settings.clone(),
            registry,
            presence: Arc::new(presence),
            streams: Streams::default(),
            members: Members::default(),
            overlay: Overlay::new()?,
            doctor: Doctor::default(),
            shares: foundation.shares.clone(),
            url: foundation.url.clone(),
            listens_at: foundation.listens_at.clone(),
            wake: Notify::new(),
            leader: leader_handle,
            published: watch::Sender::new(Arc::new(nothing_published)),
            topics: Topics::default(),
            log_readers: Slots::new(MAX_LOG_READERS),
            execs: Slots::new(MAX_EXECS),
            plans: Arc::new(Semaphore::new(MAX_PLANS)),
            forwards: Slots::new(MAX_FORWARDS),
            reporting: Reporting::default(),
            refused: Mutex::default(),
            refused_enrollments: RefusedEnrollments::default(),
            unreadable: Mutex::default(),
            unknown_states: Mutex::default(),
            lost: lost.clone(),
            shutdown: end.clone(),
        });
        let instances = cluster.instances.iter();
        (foundation.metrics).begin_term(instances.map(|(_, instance)| instance));
        let leader = Leader::new(cluster, routes);
        let committer = tokio::spawn(commit_loop::run(Arc::clone(&shared), leader, requests));
        if let Err(error) = planner_loop::plan_all(&shared).await {
            end.cancel();
            return Err(ServerError::Settle(display::chain(&error)));
        }
        // A store that takes no writes keeps nobody from leading.
        let told = shared.leader.submit(move |leader| {
            leader.begins_term(term, now());
            Ok::<_, NotCommitted>(())
        });
        if let Err(error) = told.await {
            tracing::warn!(error = %display::chain(&error), "that this server leads is no event");
        }
        let planner = tokio::spawn(planner_loop::run(Arc::clone(&shared)));
        let hubs = tokio::spawn(watch_hubs(Arc::clone(&shared)));
        let certificates = tokio::spawn(certificate_loop::keep_current(Arc::clone(&shared)));
        let acme = tokio::spawn(acme_loop::run(Arc::clone(&shared)));
        Ok(Self {
            term,
            metrics: Arc::clone(&foundation.metrics),
            router: api::router(shared),
            lost,
            end,
            tasks: [
                (planner, "planner"),
                (hubs, "hubs"),
                (certificates, "certificates"),
                (acme, "ACME"),
                (committer, "committer"),
            ],
        })
    }

    /// Ends it: long polls and streams are answered, and nothing more is decided.
    pub(crate) fn stop(&self) {
        self.end.cancel();
    }

    /// Waits until its tasks have ended.
    pub(crate) async fn ended(self) {
        self.stop();
        self.metrics.end_term();
        for (task, name) in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "the {name} task panicked");
            }
        }
    }
}

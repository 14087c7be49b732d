//! What the parts of a running server share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use api::edge::RouteTable;
use api::enrollment::Member;
use api::node::CachedImage;
use identity::ClusterCa;
use model::{InstanceId, NodeId};
use registry::Registry;
use scheduler::apply::{Command, Refused, apply};
use scheduler::changes::Changes;
use scheduler::cluster_state::{ClusterSettings, ClusterState};
use scheduler::planner::Finding;
use scheduler::reports::Unknown;
use store::{Store, StoreError};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::failure::ApiFailure;
use crate::logins::Logins;
use crate::presence::Presence;
use crate::refused_enrollments::RefusedEnrollments;
use crate::secrets::Secrets;
use crate::streams::Streams;

/// The cluster state as the planner last left it, for the callers that wait for a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) cluster: ClusterState,
    pub(crate) routes: RouteTable,
    /// Why the store's route table cannot be read: it is of a newer server. The routes are then the last ones.
    pub(crate) routes_unreadable: Option<String>,
    /// What waits, and why.
    pub(crate) findings: Vec<Finding>,
}

/// What the parts of a running server share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) ca: ClusterCa,
    pub(crate) secrets: Secrets,
    pub(crate) logins: Logins,
    pub(crate) settings: ClusterSettings,
    pub(crate) registry: Registry,
    pub(crate) presence: Presence,
    pub(crate) streams: Streams,
    /// Wakes the planner.
    pub(crate) wake: Notify,
    pub(crate) published: watch::Sender<Arc<Published>>,
    pub(crate) log_readers: Arc<Semaphore>,
    pub(crate) execs: Arc<Semaphore>,
    /// What each node last reported that the store does not know, so that it is logged once.
    pub(crate) unknown: Mutex<BTreeMap<NodeId, Unknown>>,
    /// What each node last said is in its image cache.
    pub(crate) caches: Mutex<BTreeMap<NodeId, Vec<CachedImage>>>,
    /// Members that were refused for their protocol version, so that each is logged once.
    pub(crate) refused: Mutex<BTreeSet<Member>>,
    /// The refused enrollments that were logged lately.
    pub(crate) refused_enrollments: RefusedEnrollments,
    /// Why the last message of a member that was refused could not be read, so that each reason is logged once.
    pub(crate) unreadable: Mutex<BTreeMap<Member, String>>,
    /// What each node last reported in a state that this server does not know, so that it is logged once.
    pub(crate) unknown_states: Mutex<BTreeMap<NodeId, Vec<InstanceId>>>,
    pub(crate) shutdown: CancellationToken,
}

/// The state of the router.
pub(crate) type App = Arc<Shared>;

impl Shared {
    pub(crate) fn online(&self) -> BTreeSet<NodeId> {
        self.presence.online(Instant::now())
    }

    /// The cluster state as it is now: it has every write that was acknowledged before.
    pub(crate) async fn cluster(&self) -> Result<ClusterState, StoreError> {
        let mut cluster = self.store.load().await?;
        cluster.set_online(&self.online());
        Ok(cluster)
    }

    /// Looks at the cluster state, decides, applies the commands and writes what they change, all in one transaction.
    /// When `decide` returns no command or refuses, nothing is written.
    pub(crate) async fn change<T, E: From<StoreError> + From<Refused>>(
        &self,
        decide: impl FnOnce(&ClusterState) -> Result<(Vec<Command>, T), E>,
    ) -> Result<T, E> {
        // A caller who left while the request was on its way is noticed when its connection is read again, and then
        // nothing is decided.
        tokio::task::yield_now().await;
        let online = self.online();
        let deciding = self.store.update(|cluster| {
            cluster.set_online(&online);
            let (commands, result) = decide(cluster)?;
            let mut changes = Changes::default();
            for command in &commands {
                changes.then(apply(cluster, command)?);
            }
            Ok((changes, result))
        });
        deciding.await
    }

    /// Waits until `look` finds something in what is published, for as long as `wait`.
    pub(crate) async fn wait_for<T>(
        &self,
        wait: std::time::Duration,
        mut look: impl FnMut(&Published) -> Option<T>,
    ) -> Result<Option<T>, ApiFailure> {
        let mut published = self.published.subscribe();
        let searching = async {
            loop {
                let current = Arc::clone(&published.borrow_and_update());
                if let Some(found) = look(&current) {
                    return Some(found);
                }
                if published.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::select! {
            biased;
            found = searching => Ok(found),
            () = self.shutdown.cancelled() => Err(ApiFailure::stopping()),
            () = tokio::time::sleep(wait) => Ok(None),
        }
    }
}

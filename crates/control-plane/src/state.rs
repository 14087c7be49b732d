//! What the parts of a running server share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use api::enrollment::Member;
use api::event::Actor;
use model::{EnvKey, InstanceId, LeaderSession, NodeId, Term};
use registry::Registry;
use scheduler::access::AccessCommand;
use scheduler::apply::{Command, Refused};
use scheduler::cluster_state::{ClusterSettings, ClusterState, Node, TokenHash};
use scheduler::directory::DirectoryIndex;
use scheduler::leader::Leader;
use scheduler::peers::PeerIndex;
use scheduler::placement::PromisedIndex;
use scheduler::planner::Finding;
use scheduler::routes::RouteIndex;
use scheduler::table::Table;
use store::Store;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::acme::Acme;
use crate::authority::Authority;
use crate::certificates::Certificates;
use crate::doctor::Doctor;
use crate::failure::ApiFailure;
use crate::leader_handle::LeaderHandle;
use crate::logins::Logins;
use crate::members::Members;
use crate::metrics::ServerMetrics;
use crate::not_committed::NotCommitted;
use crate::overlay::Overlay;
use crate::presence::Presence;
use crate::refused_enrollments::RefusedEnrollments;
use crate::reporting::Reporting;
use crate::secrets::Secrets;
use crate::shares::Shares;
use crate::signing_rate::SigningRate;
use crate::slots::Slots;
use crate::streams::Streams;
pub(crate) use crate::topics::Topic;
use crate::topics::Topics;
use crate::users::Users;

/// The cluster state that the store has, for whoever reads it.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) cluster: ClusterState,
    pub(crate) routes: RouteIndex,
    /// What waits in each env, and why.
    pub(crate) findings: Table<EnvKey, Vec<Finding>>,
    /// What is promised on each node.
    pub(crate) promised: PromisedIndex,
    /// What each member is told of its peers.
    pub(crate) peers: PeerIndex,
    /// What each node knows of the envs that it runs.
    pub(crate) directory: DirectoryIndex,
}

/// What the parts of a server that leads share.
pub(crate) struct Shared {
    /// The term in which it leads.
    pub(crate) term: Term,
    /// Drawn when this server began to lead.
    pub(crate) session: LeaderSession,
    pub(crate) store: Store,
    /// What this server counts.
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) users: Users,
    /// The CAs; others where they were replaced.
    pub(crate) authority: watch::Receiver<Arc<Authority>>,
    /// Notified when this server has replaced the CA.
    pub(crate) ca_changed: Arc<Notify>,
    /// CountedAs while the CA is replaced.
    pub(crate) rotating: tokio::sync::Mutex<()>,
    /// Where the key-encryption key is.
    pub(crate) data_dir: PathBuf,
    pub(crate) secrets: Secrets,
    pub(crate) logins: Logins,
    /// The certificates of hosts.
    pub(crate) certificates: Certificates,
    /// Those that are ordered.
    pub(crate) acme: Acme,
    /// How many the ingress CA signs.
    pub(crate) signing_rate: SigningRate,
    pub(crate) settings: ClusterSettings,
    pub(crate) registry: Registry,
    pub(crate) presence: Arc<Presence>,
    pub(crate) streams: Streams,
    /// What is known of the members that call.
    pub(crate) members: Members,
    /// What is known of their links.
    pub(crate) overlay: Overlay,
    /// What members are to measure just now.
    pub(crate) doctor: Doctor,
    /// The connections of this server.
    pub(crate) shares: Shares,
    /// Where this server is reached, for the tokens that it makes.
    pub(crate) url: String,
    /// Every address at which it listens, which members keep their instances from.
    pub(crate) listens_at: BTreeSet<SocketAddr>,
    /// Wakes the planner.
    pub(crate) wake: Notify,
    /// The cluster state in memory, and its one writer.
    pub(crate) leader: LeaderHandle,
    pub(crate) published: watch::Sender<Arc<Published>>,
    pub(crate) topics: Topics,
    pub(crate) log_readers: Slots,
    pub(crate) execs: Slots,
    /// Plans that are worked out at a time.
    pub(crate) plans: Arc<Semaphore>,
    /// Connections that may be forwarded.
    pub(crate) forwards: Slots,
    /// What is known of each node's reports.
    pub(crate) reporting: Reporting,
    /// Members that were refused for their protocol version, so that each is logged once.
    pub(crate) refused: Mutex<BTreeSet<Member>>,
    /// The refused enrollments that were logged lately.
    pub(crate) refused_enrollments: RefusedEnrollments,
    /// Why the last message of a member that was refused could not be read, so that each reason is logged once.
    pub(crate) unreadable: Mutex<BTreeMap<Member, String>>,
    /// What each node last reported in a state that this server does not know, so that it is logged once.
    pub(crate) unknown_states: Mutex<BTreeMap<NodeId, Vec<InstanceId>>>,
    /// Cancelled when the store refuses a write of this term: it is over.
    pub(crate) lost: CancellationToken,
    /// The server ends, or leads no longer.
    pub(crate) shutdown: CancellationToken,
}

/// The state of the router.
pub(crate) type App = Arc<Shared>;

impl Shared {
    /// The CAs as they are now.
    pub(crate) fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority.borrow())
    }

    /// The cluster state as it is now: it has every write that was acknowledged before.
    pub(crate) fn cluster(&self) -> ClusterState {
        self.published.borrow().cluster.clone()
    }

    /// Takes a token into the cluster state that is in the store only: a server that did not lead made it for its own machine. Whether there is one.
    pub(crate) async fn adopt_token(&self, hash: &TokenHash) -> Result<bool, ApiFailure> {
        let Some((token, Some(user))) = self.users.stored(hash).await? else {
            return Ok(false);
        };
        let hash = *hash;
        let command = Command::Access(AccessCommand::Adopt { hash, token, user });
        self.change(move |_| Ok::<_, ApiFailure>((vec![command], ())))
            .await?;
        Ok(true)
    }

    /// Whether a node reported lately.
    pub(crate) fn is_online(&self, node: NodeId) -> bool {
        let published = self.published.borrow();
        let node = published.cluster.nodes.get(&node);
        node.is_some_and(Node::is_online)
    }

    /// Looks at the cluster state, decides, and carries the commands out, all or none. Returns once the store has them. It is the server's
    /// own change: what a user or a member wants is for [`Self::change_by`].
    pub(crate) async fn change<T, E>(
        &self,
        decide: impl FnOnce(&ClusterState) -> Result<(Vec<Command>, T), E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NotCommitted> + From<Refused> + Send + 'static,
    {
        self.change_by(Actor::Server, decide).await
    }

    /// As [`Self::change`], of somebody, whom the events name.
    pub(crate) async fn change_by<T, E>(
        &self,
        by: impl Into<Actor>,
        decide: impl FnOnce(&ClusterState) -> Result<(Vec<Command>, T), E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NotCommitted> + From<Refused> + Send + 'static,
    {
        let by = by.into();
        // A caller who left while the request was on its way is noticed when its connection is read again, and then
        // nothing is decided.
        tokio::task::yield_now().await;
        self.leader.change(by, decide).await
    }

    /// Has the leader decide something that is no command of the cluster state. Returns once the store has it.
    pub(crate) async fn decide<T, E>(
        &self,
        decide: impl FnOnce(&mut Leader) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NotCommitted> + Send + 'static,
    {
        // As in `change`.
        tokio::task::yield_now().await;
        self.leader.submit(decide).await
    }

    /// Waits until `look` finds something in what is published, for as long as `wait`. It looks again when the topic
    /// changes.
    pub(crate) async fn wait_for<T>(
        &self,
        topic: Topic,
        wait: std::time::Duration,
        mut look: impl FnMut(&Published) -> Option<T>,
    ) -> Result<Option<T>, ApiFailure> {
        let topic = self.topics.subscribe(topic);
        let searching = async {
            loop {
                let changed = topic.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let current = Arc::clone(&self.published.borrow());
                if let Some(found) = look(&current) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::select! {
            biased;
            found = searching => Ok(Some(found)),
            () = self.shutdown.cancelled() => Err(ApiFailure::stopping()),
            () = tokio::time::sleep(wait) => Ok(None),
        }
    }
}

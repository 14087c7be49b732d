//! What a leader knows of the members that call it, beside the cluster state: what they have applied, when they were seen, and what ends when
//! one is revoked.

// ring: the shared state holds what is known of members, and asks here who calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::enrollment::Member;
use api::error_code;
use api::member::Approval;
use http::StatusCode;
use model::{Generation, PublicKey, Timestamp};
use scheduler::apply::{Command, KeyChange};
use scheduler::cluster_state::ClusterState;
use tokio_util::sync::CancellationToken;

use crate::callers::ShownCertificate;
use crate::failure::ApiFailure;
use crate::state::Shared;

/// What is known of the members in this term, in memory only.
#[derive(Debug, Default)]
pub(crate) struct Members(Mutex<BTreeMap<Member, Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The generation of the membership that it has applied.
    applied: Option<Generation>,
    /// Up to which change of this term's overlay it has applied what it was told; absent: it has not said, or is of before the overlay.
    seen: Option<u64>,
    /// Whether it measures its links when it is asked to.
    measures: bool,
    /// When it last called, by the wall clock.
    seen_at: Option<Timestamp>,
    /// Cancelled when it is revoked or removed: ends what it has under way.
    tie: CancellationToken,
}

impl Members {
    /// A member that follows the membership has applied this of it.
    pub(crate) fn applied(
        &self,
        member: Member,
        generation: Generation,
        seen: Option<u64>,
        now: Timestamp,
    ) {
        let mut known = self.lock();
        let known = known.entry(member).or_default();
        known.applied = Some(generation);
        known.seen = seen;
        known.seen_at = Some(now);
    }

    /// Whether a member says that it measures its links when it is asked to.
    pub(crate) fn measures(&self, member: Member, measures: bool) {
        self.lock().entry(member).or_default().measures = measures;
    }

    /// Whether a member said that it measures its links.
    pub(crate) fn does_measure(&self, member: Member) -> bool {
        (self.lock().get(&member)).is_some_and(|known| known.measures)
    }

    /// When a member that measures its links last called; absent: it never did in this term, or does not measure.
    pub(crate) fn measuring_since(&self, member: Member) -> Option<Timestamp> {
        let known = self.lock();
        let known = known.get(&member)?;
        known.seen_at.filter(|_| known.measures)
    }

    /// The generation that a member has applied, and up to which change of the overlay; absent: it has not said in this term.
    fn applied_by(&self, member: Member) -> Option<(Generation, Option<u64>)> {
        let known = self.lock();
        let known = known.get(&member)?;
        Some((known.applied?, known.seen))
    }

    /// The member called just now.
    pub(crate) fn seen(&self, member: Member, now: Timestamp) {
        self.lock().entry(member).or_default().seen_at = Some(now);
    }

    /// When a member was last seen in this term.
    pub(crate) fn seen_at(&self, member: Member) -> Option<Timestamp> {
        self.lock().get(&member)?.seen_at
    }

    /// Cancelled when the member may do nothing any more.
    pub(crate) fn tie(&self, member: Member) -> CancellationToken {
        self.lock().entry(member).or_default().tie.clone()
    }

    /// The member may do nothing any more: ends what it has under way, and what it is about to begin.
    fn cut(&self, member: Member) {
        self.lock().entry(member).or_default().tie.cancel();
    }

    /// Another machine has this number from now on.
    fn begin(&self, member: Member) {
        self.lock().insert(member, Known::default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Member, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The member that has this key.
    pub(crate) fn member_of(&self, key: &PublicKey) -> Option<Member> {
        self.published.borrow().cluster.member_keys.member_of(key)
    }

    /// A key that no member has, with a certificate of this cluster. It is that of a member that joined at a server which recorded no keys; or
    /// of one that joined after the backup was made that this store was restored from, and is none any more.
    pub(crate) async fn first_seen(&self, shown: &ShownCertificate) -> Result<Member, ApiFailure> {
        if !shown.is_signed {
            return Err(ApiFailure::new(
                StatusCode::FORBIDDEN,
                error_code::NOT_A_MEMBER,
                "this machine is not a member of this cluster: none has its key, and its certificate is another cluster's",
            ));
        }
        let member = shown.issued_to;
        let cluster = self.published.borrow().cluster.clone();
        if has_no_key(&cluster, member) {
            let change = KeyChange::Record(shown.key.clone());
            let key = shown.key.clone();
            self.change_by(member, move |cluster| {
                // Of several connections of it that come at once, one records the key.
                let is_known = cluster.member_keys.member_of(&key) == Some(member);
                let command = (!is_known).then_some(Command::SetKeys { member, change });
                Ok::<_, ApiFailure>((command.into_iter().collect(), ()))
            })
            .await?;
            tracing::info!(%member, "recorded the key of a member that joined at a server of before");
            return Ok(member);
        }
        let (node, edge) = match member {
            Member::Node(id) => (id.0, 0),
            Member::Edge(id) => (0, id.0),
        };
        if node > cluster.last_node || edge > cluster.last_edge {
            // Our CA says that the number was given out: no other machine is to get it.
            let skip = Command::SkipNumbers { node, edge };
            self.change(move |_| Ok::<_, ApiFailure>((vec![skip], ())))
                .await?;
            tracing::warn!(
                %member,
                "a machine that this store does not know was given this number before: it is not given again; was the store restored?"
            );
        }
        Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            error_code::NOT_A_MEMBER,
            format!("this machine, which was {member} once, is not a member of this cluster: none has its key"),
        )
        .hint("was it removed, or the store restored from before it joined? `platform node join --again`, of an edge `platform edge join --again`, with a new token lets it in again"))
    }

    /// A member came by the key that it was about to have.
    pub(crate) async fn complete_key(
        &self,
        member: Member,
        key: PublicKey,
    ) -> Result<(), ApiFailure> {
        self.change_by(member, move |cluster| {
            let identity = cluster.identity(member);
            let is_next = identity.is_some_and(|known| known.next_key.as_ref() == Some(&key));
            let change = KeyChange::Complete(key);
            let command = is_next.then_some(Command::SetKeys { member, change });
            Ok::<_, ApiFailure>((command.into_iter().collect(), ()))
        })
        .await?;
        tracing::info!(%member, "a member has another key from now on");
        Ok(())
    }

    /// A member may do nothing any more: what it has under way ends, and its connections are closed. `before`: the cluster state in which it
    /// had its keys.
    pub(crate) fn cut(&self, before: &ClusterState, member: Member) {
        self.members.cut(member);
        let identity = before.identity(member);
        let keys = identity
            .into_iter()
            .flat_map(|known| known.key.iter().chain(&known.next_key));
        for key in keys {
            self.shares.close(key);
        }
    }

    /// A machine joined as this member. `before`: the cluster state before that, in which another one may have had its place.
    pub(crate) fn joined(&self, before: &ClusterState, member: Member) {
        let replaced = before.identity(member);
        let now = self.published.borrow().cluster.identity(member).cloned();
        if replaced.is_some() && replaced != now.as_ref() {
            self.cut(before, member);
            if let Member::Node(node) = member {
                self.reporting.remove(node);
            }
        }
        if self.members.tie(member).is_cancelled() {
            self.members.begin(member);
        }
        if let Member::Node(node) = member {
            self.presence.expect(node);
        }
        self.wake.notify_one();
    }

    /// Whether a member is not known to have applied the last change of the overlay that concerns it.
    pub(crate) fn is_behind(&self, member: Member) -> bool {
        let concerned_at = self.published.borrow().peers.concerned_at(member);
        let seen = self.members.applied_by(member).and_then(|(_, seen)| seen);
        concerned_at > 0 && seen.is_none_or(|seen| seen < concerned_at)
    }

    /// Which members have applied the membership of this generation or of a later one.
    pub(crate) fn acknowledged(&self, member: Member, counter: u64) -> (bool, bool) {
        let published = Arc::clone(&self.published.borrow());
        let incarnation = published.cluster.incarnation;
        match self.members.applied_by(member) {
            Some((applied, seen)) => {
                let has = applied.incarnation == incarnation && applied.counter >= counter;
                // What does not concern it, it is not told.
                let is_told = seen.is_some_and(|seen| seen >= published.peers.concerned_at(member));
                (has || is_told, true)
            }
            None => (false, false),
        }
    }
}

/// Whether a member is there without a key, and may get one.
fn has_no_key(cluster: &ClusterState, member: Member) -> bool {
    let identity = cluster.identity(member);
    identity.is_some_and(|known| {
        known.key.is_none() && !matches!(known.approval, Approval::Revoked { .. })
    })
}

/// Ends a request of a member when the member is revoked.
pub(crate) async fn until_cut<T>(
    app: &Arc<Shared>,
    member: Member,
    work: impl Future<Output = T>,
) -> Option<T> {
    let tie = app.members.tie(member);
    tokio::select! {
        biased;
        () = tie.cancelled() => None,
        done = work => Some(done),
    }
}

//! The reports of the nodes: which is applied, how fast, and what of them is in no store (`scheduler::report_receiver`).
//!
//! A node's reports are taken one after the other. A node that reports changes faster than [`REPORTS_PER_SECOND`] waits for its answers:
//! its agent gathers what changes meanwhile, and one node takes no more of the leader's time than others.

// ring: the shared state holds what is known of reports, and a report changes the shared state.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::node::{CachedImage, ReportAnswer, ReportDelta};
use model::NodeId;
use scheduler::apply::Command;
use scheduler::cluster_state::{ClusterState, Presence};
use scheduler::report_receiver::{ReportReceiver, Verdict, is_plausible};
use scheduler::reports::Unknown;
use tokio::time::Instant;

use crate::clock::now;
use crate::copies::Copies;
use crate::failure::{ApiFailure, UNREADABLE_HINT};
use crate::limits::{REPORT_BURST, REPORTS_PER_SECOND};
use crate::state::Shared;

/// What the server knows of the reports of each node in this term.
#[derive(Debug, Default)]
pub(crate) struct Reporting {
    nodes: Mutex<BTreeMap<NodeId, Arc<Reporter>>>,
    /// What of a node's reports is over its bounds. Usually none.
    exceeded: Mutex<BTreeMap<NodeId, Vec<String>>>,
}

/// One node that reports.
#[derive(Debug)]
struct Reporter {
    /// Whose turn it is: the node's reports are taken one after the other, at its pace.
    turn: tokio::sync::Mutex<Pace>,
    known: Mutex<Known>,
    copies: Mutex<Copies>,
}

/// What a node reported, for whoever asks.
#[derive(Debug, Default)]
struct Known {
    receiver: ReportReceiver,
    /// What it has that the store does not know, as last logged.
    unknown: Unknown,
}

/// How many more reports with changes a node may send now.
#[derive(Debug)]
struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            left: REPORT_BURST,
            at: now,
        }
    }

    /// Takes one; gives how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        let left = self.left + passed.as_secs_f64() * REPORTS_PER_SECOND;
        self.left = left.min(REPORT_BURST) - 1.0;
        Duration::from_secs_f64((-self.left / REPORTS_PER_SECOND).max(0.0))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reporting {
    fn of(&self, node: NodeId) -> Arc<Reporter> {
        let mut nodes = lock(&self.nodes);
        let reporter = nodes.entry(node).or_insert_with(|| {
            Arc::new(Reporter {
                turn: tokio::sync::Mutex::new(Pace::new(Instant::now())),
                known: Mutex::default(),
                copies: Mutex::default(),
            })
        });
        Arc::clone(reporter)
    }

    /// A node is a member no longer.
    pub(crate) fn remove(&self, node: NodeId) {
        lock(&self.nodes).remove(&node);
        lock(&self.exceeded).remove(&node);
    }

    /// The root disks in the cache of each node that reported, those last used first.
    pub(crate) fn images(&self) -> Vec<(NodeId, Vec<CachedImage>)> {
        let nodes: Vec<_> = (lock(&self.nodes).iter())
            .map(|(id, reporter)| (*id, Arc::clone(reporter)))
            .collect();
        (nodes.iter())
            .map(|(id, reporter)| (*id, lock(&reporter.known).receiver.images()))
            .collect()
    }

    /// What of a node's reports is over its bounds, for people.
    pub(crate) fn exceeded(&self, node: NodeId) -> Vec<String> {
        lock(&self.exceeded).get(&node).cloned().unwrap_or_default()
    }

    /// What is wrong with who reports as this node, for people.
    pub(crate) fn warnings(&self, node: NodeId) -> Vec<String> {
        let reporter = lock(&self.nodes).get(&node).cloned();
        let warning = reporter.and_then(|reporter| lock(&reporter.copies).warning(Instant::now()));
        warning.into_iter().collect()
    }

    fn note_exceeded(&self, node: NodeId, exceeded: Vec<String>) {
        let mut known = lock(&self.exceeded);
        let before = known.get(&node).map_or(&[][..], Vec::as_slice);
        if before == exceeded {
            return;
        }
        if exceeded.is_empty() {
            known.remove(&node);
            return;
        }
        tracing::warn!(%node, exceeded = exceeded.join("; "), "the node's report is over its bounds");
        known.insert(node, exceeded);
    }
}

impl Shared {
    /// Takes a report of a node that speaks this version of the protocol. Returns once the store has what it changed. `from`: where it came from.
    pub(crate) async fn receive(
        &self,
        (node, protocol): (NodeId, u32),
        from: Option<IpAddr>,
        heartbeat_interval: Duration,
        mut delta: ReportDelta,
    ) -> Result<ReportAnswer, ApiFailure> {
        let reporter = self.reporting.of(node);
        let mut pace = reporter.turn.lock().await;
        // Nobody else changes what is known while it is this report's turn.
        if !is_plausible(delta.session, now()) {
            let what = format!("session {} is no number of a start", delta.session);
            self.reporting.note_exceeded(node, vec![what.clone()]);
            return Err(ApiFailure::bad_request(what)
                .hint("a start is numbered by the clock of its machine: set that"));
        }
        let is_older = lock(&reporter.known).receiver.is_of_older_start(&delta);
        {
            let (mut copies, now) = (lock(&reporter.copies), Instant::now());
            copies.note(is_older, from, now);
            if let Some(warning) = copies.news(now) {
                tracing::warn!(%node, "{warning}");
            }
        }
        let exceeded = delta.bound();
        let verdict = lock(&reporter.known).receiver.check(&delta);
        if verdict == Verdict::Apply {
            if !delta.is_empty() {
                let wait = pace.take(Instant::now());
                tokio::time::sleep(wait).await;
            }
            let cluster = self.cluster();
            let command = lock(&reporter.known)
                .receiver
                .command(&cluster, node, &delta, now());
            self.apply(&cluster, (node, protocol), command).await?;
            let cluster = self.cluster();
            let mut known = lock(&reporter.known);
            known.receiver.received(&cluster, node, &delta, exceeded);
            self.reporting
                .note_exceeded(node, known.receiver.exceeded());
            known.log_unknown(&cluster, node);
        } else {
            self.apply(&self.cluster(), (node, protocol), None).await?;
        }
        Ok(lock(&reporter.known)
            .receiver
            .answer(verdict, heartbeat_interval))
    }

    /// Carries out what a report means. One that says nothing new costs the leader and its store nothing.
    async fn apply(
        &self,
        cluster: &ClusterState,
        (node, protocol): (NodeId, u32),
        command: Option<Command>,
    ) -> Result<(), ApiFailure> {
        let Some(known) = cluster.nodes.get(&node) else {
            let record = cluster.unreadable_node(node);
            let what =
                record.map_or_else(|| format!("there is no node {node}"), ToString::to_string);
            return Err(ApiFailure::not_found("node_unreadable", what).hint(UNREADABLE_HINT));
        };
        let is_heard_so = matches!(
            known.presence,
            Presence::Heard { protocol: known, .. } if known == protocol
        );
        let command = command.filter(|command| changes_anything(cluster, command));
        if is_heard_so && command.is_none() {
            return Ok(());
        }
        let presence = Arc::clone(&self.presence);
        let is_heard = move || presence.is_heard(node);
        self.leader
            .report::<ApiFailure>((node, protocol), command, is_heard, now())
            .await?;
        self.wake.notify_one();
        Ok(())
    }
}

/// Whether a command changes anything of the cluster state.
fn changes_anything(cluster: &ClusterState, command: &Command) -> bool {
    // A copy costs nothing, and what is changed of it costs what is changed.
    let mut after = cluster.clone();
    let changes = scheduler::apply::apply(&mut after, command);
    changes.is_ok_and(|changes| !changes.is_empty())
}

impl Known {
    /// Logs once which instances and volumes a node has that this store does not know there: it was restored from an older
    /// backup.
    fn log_unknown(&mut self, cluster: &ClusterState, node: NodeId) {
        let unknown = self.receiver.unknown(cluster, node);
        let before = &self.unknown;
        if before.instances != unknown.instances && !unknown.instances.is_empty() {
            tracing::warn!(
                %node,
                instances = %listed(&unknown.instances),
                "the node runs instances that this store does not know; they are left running"
            );
        }
        if before.volumes != unknown.volumes && !unknown.volumes.is_empty() {
            tracing::warn!(
                %node,
                volumes = %listed(&unknown.volumes),
                "the node has volumes that this store does not know; their disks are kept"
            );
        }
        self.unknown = unknown;
    }
}

/// Ids for a line of the log.
pub(crate) fn listed(ids: &[impl ToString]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<_> = ids.iter().take(SHOWN).map(ToString::to_string).collect();
    let shown = shown.join(" ");
    match ids.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_floods_waits_and_one_that_does_not_never_does() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut waited = Duration::ZERO;
        for _ in 0..1000 {
            waited = waited.max(pace.take(start));
        }
        let owed = (1000.0 - REPORT_BURST) / REPORTS_PER_SECOND;
        assert!(waited.as_secs_f64() > owed * 0.99, "{waited:?}");
        let mut pace = Pace::new(start);
        let step = Duration::from_secs_f64(1.0 / REPORTS_PER_SECOND);
        for n in 0..1000 {
            assert_eq!(pace.take(start + step * n), Duration::ZERO);
        }
    }
}

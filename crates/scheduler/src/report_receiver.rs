//! The server's end of a node's reports: which one is applied, and what of them is in no cluster state.
//!
//! ```text
//!                     whole, of a newer session or a later number
//!   nothing known ---------------------------------------------------> last = (session, sequence)
//!        ^                                                               |  the next number: applied
//!        +--- another term, or its state was lost                        |  up to the last number, or of an older session: known
//!                                                                        v  a gap, or another session that is not whole: whole wanted
//! ```
//!
//! A receiver lives as long as the term: a leader that begins knows no report, and asks each node for a whole one. Its caller tells it of a
//! report when the store has it ([`ReportReceiver::received`]); what was not committed is sent again. What a node sends under one session
//! and number never differs ([`ReportDelta`]), so a report that is applied twice does no harm, and the state here is at each time what the
//! node had at the last number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::node::{
    AgentSession, CachedImage, DriverChoice, Exceeded, InstanceReport, MAX_REPORTED_IMAGES,
    MAX_REPORTED_INSTANCES, MAX_REPORTED_VOLUMES, NodeReport, ReportAnswer, ReportDelta,
};
use model::{Digest, Generation, NodeId, Timestamp, VolumeId};

use crate::apply::Command;
use crate::cluster_state::ClusterState;
use crate::reports::{Unknown, is_unknown_instance, is_unknown_volume};

/// How far the number of an agent's start may be ahead of the server's clock, in milliseconds: ten years. Starts are numbered by the
/// clock of their machine. Were every number taken, one near the last there is would keep all later starts from reporting.
const SESSION_AHEAD_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1000;

/// Whether a start of an agent may have this number.
pub fn is_plausible(session: AgentSession, now: Timestamp) -> bool {
    session.0 <= now.0.saturating_add(SESSION_AHEAD_MS)
}

/// Fields over their bounds that are shown of one node.
pub const MAX_EXCEEDED: usize = 16;

/// What becomes of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next one.
    Apply,
    /// It was applied, or one after it was. It changes nothing.
    Known,
    /// What it is a difference of is not known here. It changes nothing, and the node is to send all that it has.
    WholeWanted,
}

/// What a server knows of the reports of one node.
#[derive(Debug, Clone, Default)]
pub struct ReportReceiver {
    /// Session and number of the last report that was applied.
    last: Option<(AgentSession, u64)>,
    /// The generation that the node has applied.
    observed: Generation,
    /// Every volume that the node has.
    volumes: BTreeSet<VolumeId>,
    images: BTreeMap<Digest, CachedImage>,
    /// By field.
    exceeded: BTreeMap<String, String>,
}

impl ReportReceiver {
    /// Whether a report is the next one.
    pub fn check(&self, report: &ReportDelta) -> Verdict {
        let Some((session, sequence)) = self.last else {
            return if report.whole {
                Verdict::Apply
            } else {
                Verdict::WholeWanted
            };
        };
        if (report.session, report.sequence) <= (session, sequence) {
            Verdict::Known
        } else if report.whole
            || (report.session == session && report.sequence == sequence.saturating_add(1))
        {
            Verdict::Apply
        } else {
            Verdict::WholeWanted
        }
    }

    /// Whether it is a report of a start of the agent before another that has reported.
    pub fn is_of_older_start(&self, report: &ReportDelta) -> bool {
        (self.last).is_some_and(|(session, _)| report.session < session)
    }

    /// What the node is answered, which is to report that often where nothing changes.
    pub fn answer(&self, verdict: Verdict, heartbeat_interval: Duration) -> ReportAnswer {
        let (session, sequence) = self.last.unwrap_or_default();
        ReportAnswer {
            session,
            sequence,
            whole: verdict == Verdict::WholeWanted,
            heartbeat_interval_ms: u32::try_from(heartbeat_interval.as_millis()).ok(),
        }
    }

    /// What a report that is to be applied means for the cluster state; `None` where it is not about that.
    pub fn command(
        &self,
        cluster: &ClusterState,
        node: NodeId,
        report: &ReportDelta,
        now: Timestamp,
    ) -> Option<Command> {
        if report.whole {
            let known = cluster.nodes.get(&node);
            let driver = report.driver.clone();
            let driver = driver.or_else(|| known?.driver.clone());
            let hardware = report.hardware.clone();
            let hardware = hardware.or_else(|| Some(known?.hardware.clone()));
            let report = Box::new(NodeReport {
                generation: report.generation.unwrap_or_default(),
                driver: driver.unwrap_or_else(|| DriverChoice {
                    name: "unknown".to_owned(),
                    reason: "the node did not say".to_owned(),
                }),
                egress: report.egress.clone(),
                hardware: hardware.unwrap_or_default(),
                instances: report.instances.clone(),
                volumes: report.volumes.clone(),
                highest_network: report.highest_network.unwrap_or_default(),
                images: Vec::new(),
            });
            return Some(Command::Report { node, report, now });
        }
        let of_images = ReportDelta {
            session: report.session,
            sequence: report.sequence,
            images: report.images.clone(),
            gone_images: report.gone_images.clone(),
            ..ReportDelta::default()
        };
        if *report == of_images {
            return None;
        }
        let mut volumes = self.volumes.clone();
        volumes.extend(&report.volumes);
        for id in &report.gone_volumes {
            volumes.remove(id);
        }
        Some(Command::ReportChanges {
            node,
            changes: Box::new(ReportDelta {
                images: Vec::new(),
                gone_images: Vec::new(),
                ..report.clone()
            }),
            observed: report.generation.unwrap_or(self.observed),
            volumes: report.generation.map(|_| volumes),
            now,
        })
    }

    /// The report was applied, and the store has what it changed. `exceeded`: what of it was over its bounds.
    pub fn received(
        &mut self,
        cluster: &ClusterState,
        node: NodeId,
        report: &ReportDelta,
        exceeded: Vec<Exceeded>,
    ) {
        if report.whole {
            *self = Self::default();
        }
        self.last = Some((report.session, report.sequence));
        self.observed = report.generation.unwrap_or(self.observed);
        self.note_bounds(report, exceeded);
        let unknown = cluster.nodes.get(&node).map(|node| &node.unknown);
        let is_left_out = |said: &InstanceReport| {
            is_unknown_instance(cluster, node, said)
                && unknown.is_some_and(|unknown| {
                    unknown.len() >= MAX_REPORTED_INSTANCES && !unknown.contains_key(&said.id)
                })
        };
        if report.instances.iter().any(is_left_out) {
            let what =
                format!("are more than {MAX_REPORTED_INSTANCES} that the server does not know");
            self.exceed("instances", what);
        }
        for id in &report.volumes {
            if self.volumes.len() < MAX_REPORTED_VOLUMES || !is_unknown_volume(cluster, node, *id) {
                self.volumes.insert(*id);
            } else {
                let what = format!("are more than {MAX_REPORTED_VOLUMES}");
                self.exceed("volumes", what);
            }
        }
        for id in &report.gone_volumes {
            self.volumes.remove(id);
        }
        for digest in &report.gone_images {
            self.images.remove(digest);
        }
        for cached in &report.images {
            if self.images.len() < MAX_REPORTED_IMAGES
                || self.images.contains_key(&cached.image.digest)
            {
                let digest = cached.image.digest.clone();
                self.images.insert(digest, cached.clone());
            }
        }
    }

    /// The generation of the desired state that the node has applied.
    pub fn observed(&self) -> Generation {
        self.observed
    }

    /// What the node has and the cluster state does not know there.
    pub fn unknown(&self, cluster: &ClusterState, node: NodeId) -> Unknown {
        let volumes = self.volumes.iter().copied();
        Unknown {
            instances: (cluster.nodes.get(&node).into_iter())
                .flat_map(|node| node.unknown.keys().copied())
                .collect(),
            volumes: volumes
                .filter(|id| is_unknown_volume(cluster, node, *id))
                .collect(),
        }
    }

    /// The root disks in the node's cache, those last used first.
    pub fn images(&self) -> Vec<CachedImage> {
        let mut images: Vec<_> = self.images.values().cloned().collect();
        images.sort_by(|a, b| (b.last_used, &a.image.digest).cmp(&(a.last_used, &b.image.digest)));
        images
    }

    /// What of the node's reports was over its bounds, for people; at most [`MAX_EXCEEDED`].
    pub fn exceeded(&self) -> Vec<String> {
        let exceeded = self.exceeded.iter();
        exceeded
            .map(|(field, what)| format!("{field} {what}"))
            .collect()
    }

    fn exceed(&mut self, field: &str, what: String) {
        if self.exceeded.len() < MAX_EXCEEDED || self.exceeded.contains_key(field) {
            self.exceeded.insert(field.to_owned(), what);
        }
    }

    /// What is reported again within its bounds is over them no longer.
    fn note_bounds(&mut self, report: &ReportDelta, exceeded: Vec<Exceeded>) {
        let said: BTreeSet<String> = (report.instances.iter().map(|said| said.id))
            .chain(report.gone_instances.iter().copied())
            .map(|id| format!("instances[{id}]"))
            .collect();
        self.exceeded.retain(|field, _| {
            let part = field
                .split_once('.')
                .map_or(field.as_str(), |(part, _)| part);
            let is_reported_again = match part {
                "driver" => report.driver.is_some(),
                "egress" => report.egress.is_some(),
                "hardware" => report.hardware.is_some(),
                instance if instance.starts_with("instances[") => said.contains(instance),
                _ => false,
            };
            !is_reported_again
        });
        for Exceeded { field, what } in exceeded {
            self.exceed(&field, what);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::apply::apply;
    use crate::fixtures::{READY, cluster, report};
    use model::InstanceId;

    const NODE: NodeId = NodeId(1);

    fn numbered(session: u64, sequence: u64, whole: bool) -> ReportDelta {
        ReportDelta {
            session: AgentSession(session),
            sequence,
            whole,
            ..ReportDelta::default()
        }
    }

    fn take(receiver: &mut ReportReceiver, report: &ReportDelta) -> Verdict {
        let verdict = receiver.check(report);
        if verdict == Verdict::Apply {
            receiver.received(&cluster(1), NODE, report, Vec::new());
        }
        verdict
    }

    #[test]
    fn exactly_the_next_report_is_applied() {
        let mut receiver = ReportReceiver::default();
        // First contact: all that there is, and not a difference.
        let difference = numbered(5, 3, false);
        assert_eq!(take(&mut receiver, &difference), Verdict::WholeWanted);
        assert!(
            receiver
                .answer(Verdict::WholeWanted, Duration::from_secs(3))
                .whole
        );
        assert_eq!(take(&mut receiver, &numbered(5, 4, true)), Verdict::Apply);
        assert_eq!(take(&mut receiver, &numbered(5, 5, false)), Verdict::Apply);
        // Again, late, and of the agent before.
        for known in [
            numbered(5, 5, false),
            numbered(5, 4, true),
            numbered(5, 1, false),
            numbered(4, 900, true),
        ] {
            assert_eq!(take(&mut receiver, &known), Verdict::Known, "{known:?}");
        }
        // A gap.
        assert_eq!(
            take(&mut receiver, &numbered(5, 7, false)),
            Verdict::WholeWanted
        );
        assert_eq!(take(&mut receiver, &numbered(5, 8, true)), Verdict::Apply);
        // Another start of the agent begins with all that it has.
        assert_eq!(
            take(&mut receiver, &numbered(6, 1, false)),
            Verdict::WholeWanted
        );
        assert_eq!(take(&mut receiver, &numbered(6, 2, true)), Verdict::Apply);
        let answer = receiver.answer(Verdict::Apply, Duration::from_secs(3));
        assert_eq!((answer.session, answer.sequence), (AgentSession(6), 2));
        // The last number there is stays the last.
        let last = numbered(6, u64::MAX, true);
        assert_eq!(take(&mut receiver, &last), Verdict::Apply);
        assert_eq!(take(&mut receiver, &last), Verdict::Known);
    }

    #[test]
    fn a_sign_of_life_is_no_command() {
        let mut receiver = ReportReceiver::default();
        take(&mut receiver, &numbered(1, 1, true));
        let command = |said: &ReportDelta| receiver.command(&cluster(1), NODE, said, Timestamp(1));
        let sign_of_life = numbered(1, 2, false);
        assert!(sign_of_life.is_empty());
        assert_eq!(command(&sign_of_life), None);
        let json = serde_json::to_string(&sign_of_life).unwrap();
        assert!(json.len() < 64, "{json}");
        // Nor is what the node has cached.
        let evicted = ReportDelta {
            gone_images: vec![Digest::from_sha256(&[7; 32])],
            ..numbered(1, 2, false)
        };
        assert_eq!(command(&evicted), None);
    }

    #[test]
    fn a_node_that_says_too_much_is_remembered_up_to_a_bound_and_said() {
        let mut receiver = ReportReceiver::default();
        let mut cluster = cluster(1);
        for sequence in 1..=3 {
            let ids = sequence * 10_000..sequence * 10_000 + 4000;
            let mut said = ReportDelta {
                instances: ids
                    .clone()
                    .map(|id| report(InstanceId(id), READY))
                    .collect(),
                volumes: ids.map(VolumeId).collect(),
                ..numbered(1, u64::from(sequence), sequence == 1)
            };
            let exceeded = said.bound();
            let command = receiver.command(&cluster, NODE, &said, Timestamp(1));
            apply(&mut cluster, &command.unwrap()).unwrap();
            receiver.received(&cluster, NODE, &said, exceeded);
        }
        let unknown = receiver.unknown(&cluster, NODE);
        assert_eq!(unknown.instances.len(), MAX_REPORTED_INSTANCES);
        assert_eq!(unknown.volumes.len(), MAX_REPORTED_VOLUMES);
        let exceeded = receiver.exceeded();
        assert!(exceeded[0].starts_with("instances are more than"));
        // It says so until it says all again, within its bounds.
        let whole = numbered(1, 4, true);
        let command = receiver.command(&cluster, NODE, &whole, Timestamp(2));
        apply(&mut cluster, &command.unwrap()).unwrap();
        receiver.received(&cluster, NODE, &whole, Vec::new());
        assert!(receiver.exceeded().is_empty());
        // Of one instance until that is reported again.
        let mut long = report(InstanceId(1), READY);
        long.detail = "x".repeat(100_000);
        let mut said = ReportDelta {
            instances: vec![long],
            ..numbered(1, 5, false)
        };
        let exceeded = said.bound();
        let command = receiver.command(&cluster, NODE, &said, Timestamp(3));
        apply(&mut cluster, &command.unwrap()).unwrap();
        receiver.received(&cluster, NODE, &said, exceeded);
        assert_eq!(receiver.exceeded().len(), 1);
        said.sequence += 1;
        receiver.received(&cluster, NODE, &said, Vec::new());
        assert!(receiver.exceeded().is_empty());
    }

    #[test]
    fn hardware_that_is_not_believed_leaves_what_was_known() {
        let mut cluster = cluster(1);
        let before = cluster.nodes[&NODE].hardware.clone();
        let mut said = numbered(1, 1, true);
        said.hardware = Some(api::enrollment::Hardware {
            memory_bytes: u64::MAX,
            ..before.clone()
        });
        let exceeded = said.bound();
        assert_eq!(exceeded.len(), 1);
        let receiver = ReportReceiver::default();
        let command = receiver.command(&cluster, NODE, &said, Timestamp(1));
        apply(&mut cluster, &command.unwrap()).unwrap();
        assert_eq!(cluster.nodes[&NODE].hardware, before);
    }
}

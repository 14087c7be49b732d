//! Reports as they travel: what changed since the report before, and the answer.
//!
//! An agent counts its reports. The server applies exactly the one that follows the last; any other changes nothing, and is answered
//! with what the server has or with the wish for a whole one. What is sent under one (session, sequence) never differs.

use std::collections::{BTreeMap, BTreeSet};

use model::{Digest, EnvNetwork, Generation, InstanceId, VolumeId};
use serde::{Deserialize, Serialize};

use super::{
    CachedImage, DriverChoice, EgressState, InstanceReport, NodeReport, readable,
    reported_instances,
};
use crate::enrollment::Hardware;

/// One start of a node's agent. A later start has a larger number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentSession(pub u64);

impl std::fmt::Display for AgentSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What changed on a node since the report with the sequence number before; or all, where it is whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportDelta {
    /// The start of the agent that says it.
    pub session: AgentSession,
    /// Counts the reports of the session, from 1.
    pub sequence: u64,
    /// True where this is all that the node has: what was reported before and is not in it is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// [`NodeReport::generation`]; absent: as before. So are the next three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// [`NodeReport::driver`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverChoice>,
    /// [`NodeReport::egress`]; a whole report without it is of a node that has not looked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressState>,
    /// [`NodeReport::hardware`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// [`NodeReport::highest_network`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_network: Option<EnvNetwork>,
    /// The instances that are new or in another state. What cannot be read of a newer node's report is an instance
    /// in [`InstanceState::Unknown`](model::instance::InstanceState::Unknown): it is never taken for absent.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "reported_instances"
    )]
    pub instances: Vec<InstanceReport>,
    /// The instances that the node has no longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_instances: Vec<InstanceId>,
    /// The volumes whose disks are new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeId>,
    /// The volumes whose disks are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_volumes: Vec<VolumeId>,
    /// The cached root disks that are new or changed. One that a newer node describes in another way is left out.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "readable"
    )]
    pub images: Vec<CachedImage>,
    /// The images whose root disks were evicted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_images: Vec<Digest>,
}

impl ReportDelta {
    /// All that a node has, as one report.
    pub fn whole(session: AgentSession, sequence: u64, report: NodeReport) -> Self {
        Self {
            session,
            sequence,
            whole: true,
            generation: Some(report.generation),
            driver: Some(report.driver),
            egress: report.egress,
            hardware: Some(report.hardware),
            highest_network: Some(report.highest_network).filter(|highest| highest.0 > 0),
            instances: report.instances,
            volumes: report.volumes,
            images: report.images,
            ..Self::default()
        }
    }

    /// What leads from one report to a later one of the same session; `None` where only a whole one says it.
    pub fn between(
        session: AgentSession,
        sequence: u64,
        before: &NodeReport,
        after: &NodeReport,
    ) -> Option<Self> {
        fn other<T: PartialEq + Clone>(before: &T, after: &T) -> Option<T> {
            (before != after).then(|| after.clone())
        }
        if after.egress.is_none() && before.egress.is_some() {
            return None;
        }
        let (instances, gone_instances) =
            changed(&before.instances, &after.instances, |report| report.id);
        let (images, gone_images) = changed(&before.images, &after.images, |cached| {
            cached.image.digest.clone()
        });
        let (volumes, gone_volumes) = changed(&before.volumes, &after.volumes, |id| *id);
        Some(Self {
            session,
            sequence,
            whole: false,
            generation: other(&before.generation, &after.generation),
            driver: other(&before.driver, &after.driver),
            egress: other(&before.egress, &after.egress).flatten(),
            hardware: other(&before.hardware, &after.hardware),
            highest_network: other(&before.highest_network, &after.highest_network),
            instances,
            gone_instances,
            volumes,
            gone_volumes,
            images,
            gone_images,
        })
    }

    /// Whether it says that nothing changed: a sign of life.
    pub fn is_empty(&self) -> bool {
        let Self {
            session: _,
            sequence: _,
            whole,
            generation,
            driver,
            egress,
            hardware,
            highest_network,
            instances,
            gone_instances,
            volumes,
            gone_volumes,
            images,
            gone_images,
        } = self;
        !whole
            && generation.is_none()
            && driver.is_none()
            && egress.is_none()
            && hardware.is_none()
            && highest_network.is_none()
            && instances.is_empty()
            && gone_instances.is_empty()
            && volumes.is_empty()
            && gone_volumes.is_empty()
            && images.is_empty()
            && gone_images.is_empty()
    }
}

/// What is new or another than before, and the keys of what is gone.
fn changed<T: PartialEq + Clone, K: Ord>(
    before: &[T],
    after: &[T],
    key: impl Fn(&T) -> K,
) -> (Vec<T>, Vec<K>) {
    let known: BTreeMap<K, &T> = before.iter().map(|item| (key(item), item)).collect();
    let news = (after.iter()).filter(|item| known.get(&key(item)) != Some(item));
    let news = news.cloned().collect();
    let there: BTreeSet<K> = after.iter().map(&key).collect();
    let gone = known.into_keys().filter(|key| !there.contains(key));
    (news, gone.collect())
}

/// What the server has of a node's reports: the answer to each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// The session of the last report that it applied; 0 where there was none.
    pub session: AgentSession,
    /// And its sequence number.
    pub sequence: u64,
    /// Whether the next report is to be whole: what was reported before is not known to it.
    pub whole: bool,
    /// How long after this answer the next report may come at the latest, in milliseconds: a server of many nodes asks each
    /// of them less often. Absent: 3 s, as servers before this field expect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_ms: Option<u32>,
}

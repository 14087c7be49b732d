//! What a deploy would do (`platform plan`).

use std::collections::BTreeMap;

use model::{Digest, InstanceId, NodeId, ProcessName, ReleaseNumber};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RolloutPhase;
use crate::ApiError;

/// What a deploy would do now. Nothing of it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanResponse {
    /// The release whose instances are wanted now; absent: there is none.
    pub current: Option<ReleaseNumber>,
    /// Whether the release would be another than the current one, in manifest, image or secrets.
    pub changes: bool,
    /// The digest of the image that was named.
    pub image_ref_digest: Option<Digest>,
    /// That of the current release, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_image_ref_digest: Option<Digest>,
    /// What is another in the canonical manifest (`platform normalize`), by path.
    pub manifest: Vec<ManifestChange>,
    /// The versions of secret bundles that are others, by bundle: that of the current release, and that of the new one.
    pub secrets: BTreeMap<String, (Option<u32>, Option<u32>)>,
    /// Why a deploy would be refused. Then nothing else is known of what it would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<ApiError>,
    /// What becomes of each process type, of the current release and of the new one.
    pub processes: Vec<PlannedProcess>,
    /// What cannot be done, and why: what the rollout would wait for.
    pub blocked: Vec<String>,
    /// How the rollout would end if every new instance became ready: `done`, or `reverted` or `failed` for what is in `blocked`. Absent: it is not
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RolloutPhase>,
    /// What a deploy would warn of.
    pub warnings: Vec<String>,
}

/// One value of a manifest that is another than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManifestChange {
    /// Where: `processes.web.scaling.min`.
    pub path: String,
    /// Before; absent: it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// After; absent: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What becomes of a process type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedProcess {
    /// The process type.
    pub process: ProcessName,
    /// The instances of now that stay.
    pub stays: Vec<InstanceId>,
    /// The instances of now that end.
    pub ends: Vec<InstanceId>,
    /// Where new ones would go, by the nodes of now.
    pub places: Vec<PlannedPlace>,
    /// What is another for it: `image`, `secrets.database`, or a path of the manifest.
    pub because: Vec<String>,
}

/// A node that a new instance would go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedPlace {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
}

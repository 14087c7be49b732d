//! The releases of an env.

use std::collections::BTreeMap;

use model::{Digest, ReleaseNumber, Timestamp, UserName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RolloutPhase;

/// A release, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseRow {
    /// Its number.
    pub number: ReleaseNumber,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it; absent: a server of before did not write it down.
    pub by: Option<UserName>,
    /// The image reference as the user gave it; absent: a server of before did not write it down.
    pub image: Option<String>,
    /// The digest that the reference named, or led to.
    pub image_ref_digest: Digest,
    /// The version of each secret bundle that it has.
    pub secrets: BTreeMap<String, u32>,
    /// The release that it is the same as, because a user went back to it.
    pub rollback_to: Option<ReleaseNumber>,
    /// How far its rollout is, or how that ended; absent: a server of before did not write it down.
    pub phase: Option<RolloutPhase>,
    /// Whether its instances are wanted.
    pub serving: bool,
    /// Why its rollout waits, failed or was reverted, where it is the last one.
    pub reason: Option<String>,
}

/// A release with what was deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseDetails {
    /// The release.
    pub release: ReleaseRow,
    /// Its manifest as canonical JSON, with every default filled in: what `platform normalize` prints of it.
    pub manifest: Value,
}

/// Asks for a release that is the same as an older one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The older one. Absent: the newest before the one that is wanted, among those that were rolled out wholly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
}

//! Queries of URLs that have a few parameters only.

use model::{AppName, EnvName, OrgName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The query of POST [`crate::paths::ENV`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployQuery {
    /// The org that owns the app from its first env on; of an app that is there, its owner. Absent: the only one in which the caller may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// The newest release that the caller knows, 0 for none: another one is refused with 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_release: Option<u32>,
}

/// The query of [`crate::paths::REDEPLOY`] and [`crate::paths::ROLLBACK`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewestReleaseQuery {
    /// The newest release that the caller knows, 0 for none: another one is refused with 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_release: Option<u32>,
}

/// The query of [`crate::paths::PLAN`] and of POST [`crate::paths::SECRET`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrgQuery {
    /// The org that owns the app from its first env on; of an app that is there, its owner. Absent: the only one in which the caller may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
}

/// The query of [`crate::paths::ROLLOUT`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutQuery {
    /// Of this release. Absent: of the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
    /// The revision that the caller has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// With `after`: how long to wait for another revision, in milliseconds; at most [`crate::MAX_WAIT_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// The query of [`crate::paths::MEMBERS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcknowledgementsQuery {
    /// The counter of the membership.
    pub counter: u64,
}

/// The query of DELETE [`crate::paths::REGISTRIES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryQuery {
    /// The registry, as in image references.
    pub registry: String,
}

/// The query of [`crate::paths::STATS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatsQuery {
    /// Of this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Of envs of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
}

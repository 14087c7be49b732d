//! Which lines of logs a user wants.

use model::{InstanceId, ProcessName, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The query of [`paths::LOGS`](crate::paths::LOGS): which of the env's lines are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Only of this process type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
    /// Only of this instance, which may have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// At most this many lines of the past, for each instance. Absent: [`DEFAULT_TAIL`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Only lines at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only lines before this time. Not with `follow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Only lines with this text in them, 1 to [`MAX_LOG_TEXT_BYTES`]; large and small letters differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub text: Option<String>,
    /// Whether to go on with new lines until the reader leaves.
    #[serde(default)]
    pub follow: bool,
    /// Of the past, only what each instance said before it was last started again; of an instance that has ended, what
    /// it said since it was last started.
    #[serde(default)]
    pub previous: bool,
}

/// Longest text that lines are searched for, in bytes.
pub const MAX_LOG_TEXT_BYTES: usize = 256;
/// Lines of the past for each instance, where [`LogsQuery::tail`] does not say.
pub const DEFAULT_TAIL: u32 = 100;

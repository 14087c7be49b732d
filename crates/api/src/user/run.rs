//! Commands that a user runs in an instance of their own (`platform run`).

use model::{InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long a command may run where its user names no time, in milliseconds: a day.
pub const DEFAULT_COMMAND_LIFETIME_MS: u64 = 24 * 60 * 60 * 1000;
/// How long a command may run, in milliseconds: a week.
pub const MAX_COMMAND_LIFETIME_MS: u64 = 7 * DEFAULT_COMMAND_LIFETIME_MS;

/// Asks for a command in an instance of its own, of the release that is wanted in its env.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Of which process type it has image, variables, secrets, user and resources. Absent: `web`, else the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
    /// What takes the place of the process type's command; the image's Entrypoint stays before it. At least one word, and at most
    /// [`MAX_EXEC_COMMAND_BYTES`](super::MAX_EXEC_COMMAND_BYTES).
    pub command: Vec<String>,
    /// Whether the user will be at its streams ([`paths::ATTACH`](crate::paths::ATTACH)): it begins then, and ends when they leave. Else it
    /// begins at once, and its output is in the instance's log.
    pub attached: bool,
    /// It is ended after so long, from 1 to [`MAX_COMMAND_LIFETIME_MS`]. Absent: [`DEFAULT_COMMAND_LIFETIME_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COMMAND_LIFETIME_MS))]
    pub lifetime_ms: Option<u64>,
}

/// The instance that was made for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunResponse {
    /// The instance.
    pub instance: InstanceId,
    /// The release that it runs.
    pub release: ReleaseNumber,
    /// The process type.
    pub process: ProcessName,
    /// Its node.
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    /// When it is ended, should it still run then.
    pub ends_at: Timestamp,
}

/// The query of [`paths::ATTACH`](crate::paths::ATTACH).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachQuery {
    /// Rows of the user's terminal; with `columns`, or neither: then it runs on pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Columns of the user's terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// Type of the user's terminal: see [`is_terminal_type`](super::is_terminal_type).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_type: Option<String>,
}

//! What a node says about one instance, and its JSON.

use model::instance::{ExitEvent, InstanceState};
use model::{InstanceId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lines in [`InstanceReport::log_tail`].
pub const MAX_LOG_TAIL: usize = 20;

/// What a node says about one instance.
///
/// In JSON the state is three fields: `state`, its word; `ready`, which is true of a running instance at most; and
/// `started_at`, which a running instance has. Members of protocol version 2 wrote and read them so before the state
/// was one value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "InstanceReportJson", into = "InstanceReportJson")]
pub struct InstanceReport {
    /// The instance.
    pub id: InstanceId,
    /// Where it is in its life, and whether it is ready.
    pub state: InstanceState,
    /// Times it was started again.
    pub restarts: u32,
    /// For people: what it does or waits for (`fetching 3 of 5 layers`, `next start in 4 s`).
    pub detail: String,
    /// How it last ended.
    pub last_exit: Option<ExitEvent>,
    /// Why it failed, where it did: the operation, its subject, its cause.
    pub failure: Option<String>,
    /// The last lines it logged before its last end; at most [`MAX_LOG_TAIL`].
    pub log_tail: Vec<String>,
    /// How long its preparation took before its app first ran, in milliseconds: its image was fetched and its disks were
    /// made. What is under way is not counted.
    pub preparing_ms: u64,
    /// Why it is dead although its app runs, by its liveness check; absent: it is not.
    pub liveness_failure: Option<String>,
    /// What it holds of its node. Only for an instance that the node's desired state names nowhere: whoever placed the others knows.
    pub holds: Option<InstanceHolds>,
}

/// What an instance holds of its node, by its spec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceHolds {
    /// CPU, in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Scratch disk and volumes, in bytes.
    pub disk_bytes: u64,
}

impl InstanceReport {
    /// A report that says nothing but the state.
    pub fn new(id: InstanceId, state: InstanceState) -> Self {
        Self {
            id,
            state,
            restarts: 0,
            detail: String::new(),
            last_exit: None,
            failure: None,
            log_tail: Vec::new(),
            preparing_ms: 0,
            liveness_failure: None,
            holds: None,
        }
    }
}

/// A report as it travels, as the store keeps it and as users read it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct InstanceReportJson {
    id: InstanceId,
    state: StateWord,
    ready: bool,
    restarts: u32,
    detail: String,
    last_exit: Option<ExitEvent>,
    failure: Option<String>,
    log_tail: Vec<String>,
    started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "is_zero")]
    preparing_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    liveness_failure: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holds: Option<InstanceHolds>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The word of a state.
#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum StateWord {
    Created,
    Preparing,
    Booting,
    Running,
    Stopping,
    Stopped,
    Backoff,
    Failed,
    /// Also every word that this program does not know.
    #[serde(other)]
    Unknown,
}

impl From<InstanceReportJson> for InstanceReport {
    fn from(json: InstanceReportJson) -> Self {
        let state = match json.state {
            StateWord::Created => InstanceState::Created,
            StateWord::Preparing => InstanceState::Preparing,
            StateWord::Booting => InstanceState::Booting,
            StateWord::Running => InstanceState::Running {
                ready: json.ready,
                started_at: json.started_at,
            },
            StateWord::Stopping => InstanceState::Stopping,
            StateWord::Stopped => InstanceState::Stopped,
            StateWord::Backoff => InstanceState::Backoff,
            StateWord::Failed => InstanceState::Failed,
            StateWord::Unknown => InstanceState::Unknown,
        };
        Self {
            id: json.id,
            state,
            restarts: json.restarts,
            detail: json.detail,
            last_exit: json.last_exit,
            failure: json.failure,
            log_tail: json.log_tail,
            preparing_ms: json.preparing_ms,
            liveness_failure: json.liveness_failure,
            holds: json.holds,
        }
    }
}

impl From<InstanceReport> for InstanceReportJson {
    fn from(report: InstanceReport) -> Self {
        let (state, ready, started_at) = match report.state {
            InstanceState::Running { ready, started_at } => (StateWord::Running, ready, started_at),
            InstanceState::Created => (StateWord::Created, false, None),
            InstanceState::Preparing => (StateWord::Preparing, false, None),
            InstanceState::Booting => (StateWord::Booting, false, None),
            InstanceState::Stopping => (StateWord::Stopping, false, None),
            InstanceState::Stopped => (StateWord::Stopped, false, None),
            InstanceState::Backoff => (StateWord::Backoff, false, None),
            InstanceState::Failed => (StateWord::Failed, false, None),
            InstanceState::Unknown => (StateWord::Unknown, false, None),
        };
        Self {
            id: report.id,
            state,
            ready,
            restarts: report.restarts,
            detail: report.detail,
            last_exit: report.last_exit,
            failure: report.failure,
            log_tail: report.log_tail,
            started_at,
            preparing_ms: report.preparing_ms,
            liveness_failure: report.liveness_failure,
            holds: report.holds,
        }
    }
}

//! What `platform network doctor` measures and finds, to people and their programs (ADR 0004).

use std::collections::{BTreeMap, BTreeSet};

use model::NodeId;
use overlay::topology::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::enrollment::Member;
use crate::member::{Carrier, Echoes, LinkMeasurement};

/// Most members that a [`DoctorRequest`] names.
pub const MAX_DOCTOR_MEMBERS: usize = 1024;

/// The body of POST [`paths::NETWORK_DOCTOR`](crate::paths::NETWORK_DOCTOR).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DoctorRequest {
    /// The members whose links are measured, from both ends: ids or names. Empty: all. At most [`MAX_DOCTOR_MEMBERS`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub members: BTreeSet<String>,
}

/// What was measured, and what is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkDiagnosis {
    /// How members reach one another.
    pub mode: Mode,
    /// MTU of the overlay, in bytes.
    pub mtu: u32,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Every member that was to measure, in order.
    pub members: Vec<DiagnosedMember>,
    /// What is not as it should be, the worst first.
    pub findings: Vec<NetworkFinding>,
}

impl NetworkDiagnosis {
    /// Whether something does not work.
    pub fn has_errors(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.severity == FindingSeverity::Error)
    }
}

/// One member, and what it measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiagnosedMember {
    /// The member.
    pub member: Member,
    /// Its name.
    pub name: String,
    /// Its number in the overlay. Absent: it has no place there.
    pub number: Option<NodeId>,
    /// Whether it measured.
    pub state: MeasurementState,
    /// Why it measured nothing, or not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// By how many milliseconds its clock is ahead of the server's at least; negative: behind. Absent: it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// The release of its kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// Who carries its packets. Absent: it has no interface, or did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// What it measured of its peers, by their numbers.
    #[serde(default)]
    pub links: BTreeMap<NodeId, LinkMeasurement>,
    /// Echoes of members that it reaches by way of hubs, by their numbers: a sample.
    #[serde(default)]
    pub relayed: BTreeMap<NodeId, Echoes>,
}

/// Whether a member measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MeasurementState {
    /// It did.
    Measured,
    /// It could not, or not all of it: a finding says why.
    Failed,
    /// It was asked and did not answer in time.
    NoAnswer,
    /// It was not asked, because it does not call the server.
    NotAsked,
    /// It was not asked, because it calls the server and does not say that it measures: its version is older.
    TooOld,
}

/// How much a finding matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum FindingSeverity {
    /// Packets are lost, or members do not reach each other.
    Error,
    /// It works, and is slower or less safe than it need be.
    Warning,
    /// Nothing is wrong. It says what is not known.
    Note,
}

/// What is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkFinding {
    /// Stable, for programs: `no_answer`, `mtu_too_large`.
    pub code: String,
    /// How much it matters.
    pub severity: FindingSeverity,
    /// The members that it is about. Of many links the one that they have in common comes first.
    pub members: Vec<Member>,
    /// What was found, and where.
    pub found: String,
    /// Why that is so, or may be.
    pub why: String,
    /// What to do.
    pub mend: String,
}

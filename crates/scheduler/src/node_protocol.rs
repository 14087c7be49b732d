//! What an instance may ask of its node that nodes of an older protocol version do not do.
//!
//! An agent ignores what it does not know of an instance's spec: one that knew no `egress` would run an env of `egress = "none"` with all of it. So such an
//! instance goes only to a node whose agent speaks a version that does it. What an instance is to be kept from, or must have, is named here when it is
//! added to the spec, and so is what an older agent cannot read, with the version of [`api::protocol`] that it came with; placement and the planner ask here and nowhere else.
//!
//! An instance on a node that is too old for it, because its agent was put back to an older version, goes to another node, as from one that is drained.
//! One with volumes stays with them.

use model::instance::{EgressPolicy, InstanceSpec, Runs};

/// The version of the protocol from which on agents obey `egress`.
const EGRESS_SINCE: u32 = 4;

/// The version of the protocol from which on agents can read the spec of a command of a user. An older one would keep it as it is and never start it.
const COMMANDS_SINCE: u32 = 4;

/// What is asked of a node's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededProtocol {
    /// The version of the protocol from which on agents do it.
    pub version: u32,
    /// What it is, as users call it.
    pub what: &'static str,
}

impl NeededProtocol {
    /// What an instance of this egress that runs this needs; absent: what every node that is served does.
    pub fn of(egress: EgressPolicy, runs: Runs) -> Option<Self> {
        if runs.is_command() {
            return Some(Self {
                version: COMMANDS_SINCE,
                what: "commands of `platform run`",
            });
        }
        let what = match egress {
            EgressPolicy::All => return None,
            EgressPolicy::Internet => "egress = \"internet\"",
            EgressPolicy::None => "egress = \"none\"",
        };
        Some(Self {
            version: EGRESS_SINCE,
            what,
        })
    }

    /// What a placed instance needs.
    pub fn of_spec(spec: &InstanceSpec) -> Option<Self> {
        Self::of(spec.egress, spec.runs)
    }

    /// Whether a node of this version does it.
    pub fn is_met_by(self, protocol: u32) -> bool {
        protocol >= self.version
    }
}

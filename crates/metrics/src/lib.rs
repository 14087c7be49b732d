//! What a role tells who watches it, on an HTTP port of its own: `/metrics` (Prometheus' text format 0.0.4), `/healthz` and
//! `/readyz` (as Kubernetes' components have them).
//!
//! A role registers its metrics once and changes them as things happen, so a scrape costs what is told and not what there is.
//! Every name begins with `platform_` and the role; docs/metrics.md has them all, and a test holds it against what roles tell.
//!
//! Deliberately absent: TLS and tokens. The port tells nothing secret, and belongs on loopback or a private network.

mod endpoint;
mod process;
mod readiness;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use crate::endpoint::{CannotListen, listen, start, start_on};
pub use crate::readiness::{Readiness, Waits};

/// Upper bounds of the buckets of what takes from a millisecond to half a minute, in seconds.
pub const SECONDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0,
];

/// Upper bounds of the buckets of what takes from a tenth of a second to ten minutes (boots, pulls), in seconds.
pub const LONG_SECONDS: [f64; 10] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0];

/// A registry with what every role tells: its version, and `process_*` of the program.
///
/// The caller registers its own below [`of_role`].
pub fn registry(role: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(process::Process::default()));
    let labels = vec![("role", role), ("version", version)];
    let build = Info::new(labels);
    let text = "The role that this process has and its version";
    registry.register("platform_build", text, build);
    registry
}

/// Where a role registers its metrics: their names begin with `platform_ROLE_`.
pub fn of_role<'r>(registry: &'r mut Registry, role: &str) -> &'r mut Registry {
    registry
        .sub_registry_with_prefix("platform")
        .sub_registry_with_prefix(role)
}

/// How something ended: the label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// As it should: `success`.
    Success,
    /// Not: `failure`.
    Failure,
}

impl<T, E> From<&Result<T, E>> for Outcome {
    fn from(result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Success,
            Err(_) => Self::Failure,
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Success => "success",
            Self::Failure => "failure",
        };
        word.encode(encoder)
    }
}

/// The labels of what is told by its outcome alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// How it ended.
    pub outcome: Outcome,
}

/// The labels of what is told by a state alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByState {
    /// In the words of the command line.
    pub state: &'static str,
}

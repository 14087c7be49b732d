//! What a node tells of its work (`platform_node_*`, docs/metrics.md). Nothing names an instance: the instances of a node come and go, and
//! who asks for one asks the server.

use std::time::Duration;

use api::enrollment::NodeDisk;
use api::node::InstanceReport;
use metrics::{ByOutcome, ByState, LONG_SECONDS, Outcome};
use model::Timestamp;
use model::instance::InstanceState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Which check of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// `healthcheck`: takes it traffic?
    Health,
    /// `liveness`: is it to be started again?
    Liveness,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProbe {
    check: &'static str,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfShare {
    share: &'static str,
}

/// The states that are told apart: of `running`, those that are ready are told by themselves.
const STATES: [&str; 9] = [
    "created",
    "preparing",
    "booting",
    "running",
    "ready",
    "stopping",
    "stopped",
    "backoff",
    "failed",
];

/// All that a node counts. Cloned handles count the same.
#[derive(Debug, Clone)]
pub struct NodeMetrics {
    instances: Family<ByState, Gauge>,
    boots: Family<ByOutcome, Counter>,
    boot_duration: Histogram,
    restarts: Counter,
    pulls: Family<ByOutcome, Counter>,
    pull_duration: Histogram,
    pulled: Counter,
    probes: Family<OfProbe, Counter>,
    reports: Family<ByOutcome, Counter>,
    last_report: Gauge,
    disk: Family<OfShare, Gauge>,
    memory: Gauge,
}

impl Default for NodeMetrics {
    fn default() -> Self {
        Self {
            instances: Family::default(),
            boots: Family::default(),
            boot_duration: Histogram::new(LONG_SECONDS),
            restarts: Counter::default(),
            pulls: Family::default(),
            pull_duration: Histogram::new(LONG_SECONDS),
            pulled: Counter::default(),
            probes: Family::default(),
            reports: Family::default(),
            last_report: Gauge::default(),
            disk: Family::default(),
            memory: Gauge::default(),
        }
    }
}

impl NodeMetrics {
    /// Tells them by this registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let node = metrics::of_role(registry, "node");
        // From 0 on: the first one is an increase, too.
        for outcome in [Outcome::Success, Outcome::Failure] {
            for family in [&self.boots, &self.pulls, &self.reports] {
                family.get_or_create(&ByOutcome { outcome }).inc_by(0);
            }
            for check in ["health", "liveness"] {
                self.probes
                    .get_or_create(&OfProbe { check, outcome })
                    .inc_by(0);
            }
        }
        let text = "Instances by state; those that are ready are not among the running";
        node.register("instances", text, self.instances.clone());
        let text = "Boots that ended: the app runs, or the VM has failed before it did";
        node.register("boots", text, self.boots.clone());
        let text = "From the start of a VMM until the app runs";
        node.register_with_unit(
            "boot_duration",
            text,
            Unit::Seconds,
            self.boot_duration.clone(),
        );
        let text = "Times that an instance ended and waits for its restart";
        node.register("restarts", text, self.restarts.clone());
        let text = "Images fetched from a registry";
        node.register("image_pulls", text, self.pulls.clone());
        let text = "How long a fetch of an image took";
        node.register_with_unit(
            "image_pull_duration",
            text,
            Unit::Seconds,
            self.pull_duration.clone(),
        );
        let text = "Bytes of layers that arrived";
        node.register_with_unit("image_pulled", text, Unit::Bytes, self.pulled.clone());
        let text = "Probes of apps";
        node.register("probes", text, self.probes.clone());
        let text = "Reports to the server, signs of life among them";
        node.register("reports", text, self.reports.clone());
        let text = "Unix time of the last report that the server took; 0: none yet";
        node.register_with_unit(
            "last_report_timestamp",
            text,
            Unit::Seconds,
            self.last_report.clone(),
        );
        let text =
            "The disk of the data folder: all of it, and the shares that instances cannot have";
        node.register_with_unit("disk", text, Unit::Bytes, self.disk.clone());
        let text = "Memory that instances may use";
        node.register_with_unit("memory", text, Unit::Bytes, self.memory.clone());
    }

    /// The instances of this node as they are now.
    pub(crate) fn set_instances<'r>(&self, reports: impl Iterator<Item = &'r InstanceReport>) {
        let mut counts = [0_i64; STATES.len()];
        for report in reports {
            if let Some(count) = index_of(report.state).and_then(|index| counts.get_mut(index)) {
                *count += 1;
            }
        }
        for (state, count) in STATES.into_iter().zip(counts) {
            let labels = ByState { state };
            self.instances.get_or_create(&labels).set(count);
        }
    }

    /// A boot has ended after this time.
    pub(crate) fn booted(&self, outcome: Outcome, took: Option<Duration>) {
        self.boots.get_or_create(&ByOutcome { outcome }).inc();
        if let (Outcome::Success, Some(took)) = (outcome, took) {
            self.boot_duration.observe(took.as_secs_f64());
        }
    }

    /// An instance ended, and is started again later.
    pub(crate) fn restarts(&self) {
        self.restarts.inc();
    }

    /// A fetch of an image has ended; so many bytes of its layers arrived.
    pub(crate) fn pulled(&self, outcome: Outcome, took: Duration, bytes: u64) {
        self.pulls.get_or_create(&ByOutcome { outcome }).inc();
        self.pull_duration.observe(took.as_secs_f64());
        self.pulled.inc_by(bytes);
    }

    /// An app was probed.
    pub(crate) fn probed(&self, check: Check, outcome: Outcome) {
        let check = match check {
            Check::Health => "health",
            Check::Liveness => "liveness",
        };
        self.probes.get_or_create(&OfProbe { check, outcome }).inc();
    }

    /// The server was sent a report at this time.
    pub(crate) fn reported(&self, outcome: Outcome, now: Timestamp) {
        self.reports.get_or_create(&ByOutcome { outcome }).inc();
        if outcome == Outcome::Success {
            let seconds = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
            self.last_report.set(seconds);
        }
    }

    /// The disk as it was measured.
    pub(crate) fn set_disk(&self, disk: &NodeDisk) {
        let shares = [
            ("total", disk.total_bytes),
            ("reserved", disk.reserved_bytes),
            ("images", disk.images_bytes),
            ("others", disk.others_bytes),
        ];
        for (share, bytes) in shares {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.disk.get_or_create(&OfShare { share }).set(bytes);
        }
    }

    /// The memory that instances may use, in bytes.
    pub(crate) fn set_memory(&self, bytes: u64) {
        self.memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// Which of [`STATES`]; none of a state that a node reports of nothing.
fn index_of(state: InstanceState) -> Option<usize> {
    Some(match state {
        InstanceState::Created => 0,
        InstanceState::Preparing => 1,
        InstanceState::Booting => 2,
        InstanceState::Running { ready: false, .. } => 3,
        InstanceState::Running { ready: true, .. } => 4,
        InstanceState::Stopping => 5,
        InstanceState::Stopped => 6,
        InstanceState::Backoff => 7,
        InstanceState::Failed => 8,
        InstanceState::Unknown => return None,
    })
}

//! What a server tells of its work (`platform_server_*`, docs/metrics.md). Gauges of the cluster are those of the server that leads; the others
//! tell 0.

use std::time::Duration;

use metrics::{ByOutcome, ByState, Outcome, SECONDS};
use model::Term;
use model::instance::InstanceState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use scheduler::action::Action;
use scheduler::instances::Instance;

use crate::shares::Shares;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    method: &'static str,
    path: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPath {
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAction {
    action: &'static str,
}

/// All that a server counts.
#[derive(Debug)]
pub(crate) struct ServerMetrics {
    requests: Family<OfRequest, Counter>,
    request_duration: Family<OfPath, Histogram, fn() -> Histogram>,
    leading: Gauge,
    term: Gauge,
    commits: Family<ByOutcome, Counter>,
    commit_duration: Histogram,
    committed_requests: Counter,
    planned_envs: Counter,
    planning_duration: Histogram,
    actions: Family<OfAction, Counter>,
    nodes: Family<ByState, Gauge>,
    instances: Family<ByState, Gauge>,
    unreadable: Gauge,
    certificates: Gauge,
    certificates_expiring: Gauge,
    acme_orders: Family<ByOutcome, Counter>,
    acme_names: Family<ByState, Gauge>,
}

impl Default for ServerMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            leading: Gauge::default(),
            term: Gauge::default(),
            commits: Family::default(),
            commit_duration: Histogram::new(SECONDS),
            committed_requests: Counter::default(),
            planned_envs: Counter::default(),
            planning_duration: Histogram::new(SECONDS),
            actions: Family::default(),
            nodes: Family::default(),
            instances: Family::default(),
            unreadable: Gauge::default(),
            certificates: Gauge::default(),
            certificates_expiring: Gauge::default(),
            acme_orders: Family::default(),
            acme_names: Family::default(),
        }
    }
}

impl ServerMetrics {
    /// Tells them by this registry, and the connections of these shares.
    pub(crate) fn register(&self, registry: &mut Registry, shares: Shares) {
        let server = metrics::of_role(registry, "server");
        // From 0 on: the first one is an increase, too.
        for outcome in [Outcome::Success, Outcome::Failure] {
            self.commits.get_or_create(&ByOutcome { outcome }).inc_by(0);
            let acme_orders = self.acme_orders.get_or_create(&ByOutcome { outcome });
            acme_orders.inc_by(0);
        }
        self.set_acme_names([0; 3]);
        let text = "Requests that this server answered while it led, by the path's template";
        server.register("requests", text, self.requests.clone());
        let text = "How long such a request took; long polls wait for news";
        server.register_with_unit(
            "request_duration",
            text,
            Unit::Seconds,
            self.request_duration.clone(),
        );
        let text = "1: this server leads";
        server.register("leading", text, self.leading.clone());
        let text = "The term of the leader that this server knows";
        server.register("term", text, self.term.clone());
        let text = "Transactions of the store; one has the changes of all who asked meanwhile";
        server.register("commits", text, self.commits.clone());
        let text = "How long such a transaction took, with what was decided in it";
        server.register_with_unit(
            "commit_duration",
            text,
            Unit::Seconds,
            self.commit_duration.clone(),
        );
        let text = "Requests for a change that transactions had";
        server.register("committed_requests", text, self.committed_requests.clone());
        let text = "Envs that the planner looked at";
        server.register("planned_envs", text, self.planned_envs.clone());
        let text = "How long the planner took for some envs that share a transaction";
        server.register_with_unit(
            "planning_duration",
            text,
            Unit::Seconds,
            self.planning_duration.clone(),
        );
        let text = "What the planner decided";
        server.register("planned_actions", text, self.actions.clone());
        let text = "Nodes by state";
        server.register("nodes", text, self.nodes.clone());
        let text =
            "Instances by what their nodes say; those that are ready are not among the running";
        server.register("instances", text, self.instances.clone());
        let text = "Records of the store that cannot be read, whose envs are frozen";
        server.register("unreadable_records", text, self.unreadable.clone());
        let text = "Orders of certificates by ACME that ended";
        server.register("acme_orders", text, self.acme_orders.clone());
        let text = "Names that are to have a certificate by ACME; of those, names that have none, and names whose last order failed";
        server.register("acme_names", text, self.acme_names.clone());
        let text = "Certificates of hosts that users added, or that came by ACME";
        server.register("certificates", text, self.certificates.clone());
        let text =
            "Those of them that end within 14 days, or have ended; by ACME, whose renewal is late";
        server.register(
            "certificates_expiring",
            text,
            self.certificates_expiring.clone(),
        );
        server.register_collector(Box::new(Connections(shares)));
    }

    /// A request under this template of a path was answered.
    pub(crate) fn answered(&self, method: &'static str, path: &str, status: u16, took: Duration) {
        let of_path = OfPath {
            path: path.to_owned(),
        };
        let duration = self.request_duration.get_or_create_owned(&of_path);
        duration.observe(took.as_secs_f64());
        let labels = OfRequest {
            method,
            path: path.to_owned(),
            status,
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// This server leads, or not, and knows the leader of this term.
    pub(crate) fn set_role(&self, leads: bool, term: Option<Term>) {
        self.leading.set(leads.into());
        if let Some(term) = term {
            self.term.set(i64::try_from(term.0).unwrap_or(i64::MAX));
        }
    }

    /// The store has written what so many requests asked for, or has not.
    pub(crate) fn committed(&self, outcome: Outcome, requests: usize, took: Duration) {
        self.commits.get_or_create(&ByOutcome { outcome }).inc();
        self.commit_duration.observe(took.as_secs_f64());
        self.committed_requests.inc_by(requests as u64);
    }

    /// So many envs were planned.
    pub(crate) fn planned(&self, envs: u64, took: Duration) {
        self.planned_envs.inc_by(envs);
        self.planning_duration.observe(took.as_secs_f64());
    }

    /// The planner decided this, and the store has it.
    pub(crate) fn acted(&self, action: &Action) {
        let action = match action {
            Action::MakeVolume(_) => "make_volume",
            Action::DeleteVolume { .. } => "delete_volume",
            Action::Create(_) => "create_instance",
            Action::Terminate { .. } => "terminate_instance",
            Action::Delete { .. } => "delete_instance",
            Action::PruneEnded { .. } => "prune_ended",
            Action::SetRollout { .. } => "set_rollout",
            Action::RemoveEnv { .. } => "remove_env",
        };
        self.actions.get_or_create(&OfAction { action }).inc();
    }

    /// The nodes of the cluster, and how many of them are online.
    pub(crate) fn set_nodes(&self, all: usize, online: usize) {
        let offline = all.saturating_sub(online);
        for (state, count) in [("online", all - offline), ("offline", offline)] {
            self.nodes
                .get_or_create(&ByState { state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// How many records cannot be read.
    pub(crate) fn set_unreadable(&self, records: usize) {
        self.unreadable
            .set(i64::try_from(records).unwrap_or(i64::MAX));
    }

    /// How many certificates there are, and how many of them end soon.
    pub(crate) fn set_certificates(&self, all: usize, expiring: usize) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.certificates.set(number(all));
        self.certificates_expiring.set(number(expiring));
    }

    /// An order of a certificate by ACME ended.
    pub(crate) fn acme_ordered(&self, outcome: Outcome) {
        self.acme_orders.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// How many names are to have a certificate by ACME, have none, and failed last time.
    pub(crate) fn set_acme_names(&self, [wanted, missing, failing]: [usize; 3]) {
        for (state, count) in [
            ("wanted", wanted),
            ("missing", missing),
            ("failing", failing),
        ] {
            let gauge = self.acme_names.get_or_create(&ByState { state });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A term begins: these are the instances.
    pub(crate) fn begin_term<'i>(&self, instances: impl Iterator<Item = &'i Instance>) {
        self.end_term();
        for instance in instances {
            self.instance_changed(None, Some(instance));
        }
    }

    /// The term is over: this server knows nothing of the cluster any more.
    pub(crate) fn end_term(&self) {
        self.instances.clear();
        self.nodes.clear();
        self.unreadable.set(0);
        self.set_certificates(0, 0);
    }

    /// An instance came, went, or is another than before.
    pub(crate) fn instance_changed(&self, before: Option<&Instance>, after: Option<&Instance>) {
        let (before, after) = (before.map(state_of), after.map(state_of));
        if before == after {
            return;
        }
        if let Some(state) = before {
            self.instances.get_or_create(&ByState { state }).dec();
        }
        if let Some(state) = after {
            self.instances.get_or_create(&ByState { state }).inc();
        }
    }
}

/// In the words of `platform ps`, and `unreported` where the node has said nothing yet.
fn state_of(instance: &Instance) -> &'static str {
    match instance.report.as_ref().map(|report| report.state) {
        None => "unreported",
        Some(InstanceState::Created) => "created",
        Some(InstanceState::Preparing) => "preparing",
        Some(InstanceState::Booting) => "booting",
        Some(InstanceState::Running { ready: true, .. }) => "ready",
        Some(InstanceState::Running { ready: false, .. }) => "running",
        Some(InstanceState::Stopping) => "stopping",
        Some(InstanceState::Stopped) => "stopped",
        Some(InstanceState::Backoff) => "backoff",
        Some(InstanceState::Failed) => "failed",
        Some(InstanceState::Unknown) => "unknown",
    }
}

/// The connections of a server, counted at each scrape.
#[derive(Debug)]
struct Connections(Shares);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPeer {
    peer: &'static str,
}

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let open = self.0.open();
        let text = "Connections that are open, by whose they are";
        let mut family = encoder.encode_descriptor(
            "connections",
            text,
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (peer, count) in [
            ("stranger", open.strangers),
            ("user", open.users),
            ("member", open.members),
            ("server", open.servers),
        ] {
            let gauge = ConstGauge::new(count);
            gauge.encode(family.encode_family(&OfPeer { peer })?)?;
        }
        Ok(())
    }
}

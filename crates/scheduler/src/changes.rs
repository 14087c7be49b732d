//! What a command changed, record by record: what the store writes.
//!
//! Each entry is a whole record as it is from now on, or `None` where the record is deleted. A later change of a record
//! replaces an earlier one, so that a batch of commands writes each record once. Nodes and instances are shared with the cluster state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::event::Event;
use api::user::RolloutPhase;
use model::{
    EdgeId, EnvKey, EnvNetwork, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp, VolumeId,
};

use crate::access::AccessChanges;
use crate::cluster_state::{
    ClusterSettings, ClusterState, Edge, EndedInstance, Env, Instance, Node, Release, Rollout,
    TokenHash, TokenRecord, Volume,
};
use crate::event_log::{PrunedEvents, replace};
use crate::keyed_runs::KeyedRuns;
use crate::routes::StoredRoute;
use crate::table::Table;

/// The difference between a cluster state and an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The cluster's settings, where they changed.
    pub settings: Option<ClusterSettings>,
    /// Nodes written, or removed.
    pub nodes: BTreeMap<NodeId, Option<Arc<Node>>>,
    /// Edges written, or removed.
    pub edges: BTreeMap<EdgeId, Option<Edge>>,
    /// Counters that grew other than by the records above.
    pub counters: Counters,
    /// Enrollment tokens written or deleted.
    pub tokens: BTreeMap<TokenHash, Option<TokenRecord>>,
    /// Orgs, apps, users and their tokens written or deleted.
    pub access: AccessChanges,
    /// Envs deleted, with their releases and secret bundles, before anything is written.
    pub deleted_envs: BTreeSet<EnvKey>,
    /// Envs written.
    pub envs: BTreeMap<EnvKey, EnvRecord>,
    /// Releases added. A release never changes.
    pub releases: BTreeMap<(EnvKey, ReleaseNumber), Release>,
    /// Releases that are kept no longer.
    pub deleted_releases: BTreeSet<(EnvKey, ReleaseNumber)>,
    /// Instances written or deleted.
    pub instances: BTreeMap<InstanceId, Option<Arc<Instance>>>,
    /// Records of ended instances written or deleted.
    pub ended: BTreeMap<InstanceId, Option<EndedInstance>>,
    /// Volumes written or deleted.
    pub volumes: BTreeMap<VolumeId, Option<Volume>>,
    /// Secret bundles deleted, with every version, before anything is written.
    pub deleted_secrets: BTreeSet<(EnvKey, String)>,
    /// Versions of secret bundles that are kept no longer.
    pub deleted_secret_versions: BTreeSet<(EnvKey, String, u32)>,
    /// Versions of secret bundles added. A version never changes.
    pub secrets: BTreeMap<(EnvKey, String, u32), SealedVersion>,
    /// Hosts that lead elsewhere, or nowhere.
    pub routes: BTreeMap<String, Option<StoredRoute>>,
    /// What happened, in its order ([`crate::events`]).
    pub events: Vec<Event>,
    /// Earlier events that one of these is in the place of.
    pub replaced_events: BTreeSet<u64>,
    /// Which events are kept no longer, where some are added.
    pub pruned_events: Option<PrunedEvents>,
}

/// Counters of the cluster that grew, as they are from now on; 0: not grown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// [`ClusterState::last_node`].
    pub node: u16,
    /// [`ClusterState::last_edge`].
    pub edge: u16,
    /// [`ClusterState::last_network`].
    pub network: EnvNetwork,
    /// [`ClusterState::last_membership`].
    pub membership: u64,
    /// The same, where every member is concerned whoever it is. Not stored.
    pub everybody: u64,
}

impl Counters {
    /// The larger of each.
    fn then(self, later: Self) -> Self {
        Self {
            node: self.node.max(later.node),
            edge: self.edge.max(later.edge),
            network: self.network.max(later.network),
            membership: self.membership.max(later.membership),
            everybody: self.everybody.max(later.everybody),
        }
    }
}

/// One version of a secret bundle, as it is stored. What is in it was sealed before it came here.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedVersion {
    /// Its content, sealed.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl std::fmt::Debug for SealedVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedVersion")
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

/// What is stored of an env beside its releases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvRecord {
    /// [`Env::network`].
    pub network: EnvNetwork,
    /// [`Env::rollout`].
    pub rollout: Rollout,
    /// [`Env::scale`].
    pub scale: BTreeMap<ProcessName, u32>,
    /// [`Env::destroying`].
    pub destroying: bool,
    /// [`Env::outcomes`].
    pub outcomes: BTreeMap<ReleaseNumber, RolloutPhase>,
    /// [`Env::runs`].
    pub runs: KeyedRuns,
}

impl EnvRecord {
    /// The env without its releases.
    pub fn of(env: &Env) -> Self {
        Self {
            network: env.network,
            rollout: env.rollout.clone(),
            scale: env.scale.clone(),
            destroying: env.destroying,
            outcomes: env.outcomes.clone(),
            runs: env.runs.clone(),
        }
    }

    /// The env with these releases.
    pub fn with(self, releases: Table<ReleaseNumber, Release>) -> Env {
        Env {
            network: self.network,
            releases,
            rollout: self.rollout,
            scale: self.scale,
            destroying: self.destroying,
            outcomes: self.outcomes,
            runs: self.runs,
        }
    }
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        let Self {
            settings,
            nodes,
            edges,
            counters,
            tokens,
            access,
            deleted_envs,
            envs,
            releases,
            deleted_releases,
            instances,
            ended,
            volumes,
            deleted_secrets,
            deleted_secret_versions,
            secrets,
            routes,
            events,
            replaced_events,
            // Nothing is pruned where nothing is added.
            pruned_events: _,
        } = self;
        settings.is_none()
            && events.is_empty()
            && replaced_events.is_empty()
            && nodes.is_empty()
            && edges.is_empty()
            && *counters == Counters::default()
            && tokens.is_empty()
            && access.is_empty()
            && secrets.is_empty()
            && routes.is_empty()
            && deleted_envs.is_empty()
            && envs.is_empty()
            && releases.is_empty()
            && deleted_releases.is_empty()
            && instances.is_empty()
            && ended.is_empty()
            && volumes.is_empty()
            && deleted_secrets.is_empty()
            && deleted_secret_versions.is_empty()
    }

    /// Adds what changed after this.
    pub fn then(&mut self, later: Self) {
        if self.is_empty() {
            *self = later;
            return;
        }
        // An env that is deleted takes what was written of it before along.
        for key in &later.deleted_envs {
            self.envs.remove(key);
            self.releases.retain(|(of, _), _| of != key);
            self.deleted_releases.retain(|(of, _)| of != key);
            self.deleted_secrets.retain(|(of, _)| of != key);
            self.deleted_secret_versions.retain(|(of, ..)| of != key);
            self.secrets.retain(|(of, ..), _| of != key);
        }
        for (key, bundle) in &later.deleted_secrets {
            (self.secrets).retain(|(of, name, _), _| (of, name) != (key, bundle));
        }
        for version in &later.deleted_secret_versions {
            self.secrets.remove(version);
        }
        for release in &later.deleted_releases {
            self.releases.remove(release);
        }
        self.deleted_releases.extend(later.deleted_releases);
        self.deleted_envs.extend(later.deleted_envs);
        self.settings = later.settings.or(self.settings.take());
        self.nodes.extend(later.nodes);
        self.edges.extend(later.edges);
        self.counters = self.counters.then(later.counters);
        self.tokens.extend(later.tokens);
        self.access.then(later.access);
        self.secrets.extend(later.secrets);
        self.envs.extend(later.envs);
        self.releases.extend(later.releases);
        self.instances.extend(later.instances);
        self.ended.extend(later.ended);
        self.volumes.extend(later.volumes);
        self.deleted_secrets.extend(later.deleted_secrets);
        (self.deleted_secret_versions).extend(later.deleted_secret_versions);
        self.routes.extend(later.routes);
        for number in later.replaced_events {
            replace(&mut self.events, &mut self.replaced_events, number);
        }
        self.events.extend(later.events);
        self.pruned_events = later.pruned_events.or(self.pruned_events);
    }

    /// Makes a copy of the earlier cluster state equal to the later one, as the store does with its tables.
    pub fn patch(&self, cluster: &mut ClusterState) {
        for key in &self.deleted_envs {
            cluster.envs.remove(key);
            cluster.secrets.remove(key);
        }
        for (key, bundle) in &self.deleted_secrets {
            if let Some(bundles) = cluster.secrets.get_mut(key) {
                bundles.remove(bundle);
                if bundles.is_empty() {
                    cluster.secrets.remove(key);
                }
            }
        }
        for (key, bundle, version) in self.secrets.keys() {
            cluster.add_secret_version(key, bundle, *version);
        }
        for id in self.nodes.keys() {
            cluster.last_node = cluster.last_node.max(id.0);
        }
        for (id, edge) in &self.edges {
            cluster.last_edge = cluster.last_edge.max(id.0);
            if let Some(number) = edge.as_ref().and_then(|edge| edge.number) {
                cluster.last_node = cluster.last_node.max(number.0);
            }
        }
        for (id, node) in &self.nodes {
            match node {
                Some(node) => cluster.nodes.insert(*id, node.clone()),
                None => drop(cluster.nodes.remove(id)),
            }
        }
        for (id, edge) in &self.edges {
            match edge {
                Some(edge) => cluster.edges.insert(*id, edge.clone()),
                None => drop(cluster.edges.remove(id)),
            }
        }
        let Counters {
            node,
            edge,
            network,
            membership,
            everybody: _,
        } = self.counters;
        cluster.last_node = cluster.last_node.max(node);
        cluster.last_edge = cluster.last_edge.max(edge);
        cluster.last_network = cluster.last_network.max(network);
        cluster.last_membership = cluster.last_membership.max(membership);
        if let Some(settings) = &self.settings {
            cluster.settings = settings.clone();
        }
        cluster.index_keys(self);
        cluster.access.patch(&self.access);
        for (hash, token) in &self.tokens {
            match token {
                Some(token) => cluster.tokens.insert(*hash, token.clone()),
                None => drop(cluster.tokens.remove(hash)),
            }
        }
        for (key, record) in &self.envs {
            let before = cluster.envs.get(key);
            let releases = before.map(|env| env.releases.clone()).unwrap_or_default();
            let env = record.clone().with(releases);
            cluster.last_network = cluster.last_network.max(env.network);
            cluster.envs.insert(key.clone(), env);
        }
        for ((key, number), release) in &self.releases {
            if let Some(env) = cluster.envs.get_mut(key) {
                env.releases.insert(*number, release.clone());
            }
        }
        for (key, number) in &self.deleted_releases {
            if let Some(env) = cluster.envs.get_mut(key) {
                env.releases.remove(number);
            }
        }
        for key in self.envs.keys().chain(&self.deleted_envs) {
            cluster.host_claims.update(key, cluster.envs.get(key));
        }
        for (id, instance) in &self.instances {
            match instance {
                Some(instance) => cluster.instances.insert(*id, instance.clone()),
                None => drop(cluster.instances.remove(id)),
            }
        }
        for (id, ended) in &self.ended {
            match ended {
                Some(ended) => cluster.ended.insert(*id, ended.clone()),
                None => drop(cluster.ended.remove(id)),
            }
        }
        for event in &self.events {
            cluster.event_log.note(event);
        }
        for (id, volume) in &self.volumes {
            match volume {
                Some(volume) => cluster.volumes.insert(*id, volume.clone()),
                None => drop(cluster.volumes.remove(id)),
            }
        }
    }
}

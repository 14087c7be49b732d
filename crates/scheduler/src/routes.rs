//! Routes: host name to ready instances.
//!
//! An instance serves the hosts that the manifest of its release gives to its process, on the port
//! given there, so old and new instances serve side by side while a release rolls out. Its release is
//! the newest that has it as it is: often not the one that made it. The hosts
//! are those of the wanted release, and for as long as an older one's instances serve, that one's
//! too: a release that cannot become healthy takes no host away.
//!
//! Backends are ready and not terminating: a terminating instance loses its traffic first, and its node lets it drain
//! before it stops. Where no backend of a host is on an online node, the instances that were last reported ready are
//! named instead: a restarted server has no reports yet, and an edge does better to try them than to answer 503.
//!
//! An env that is frozen, because a record of it cannot be read, keeps the routes it had ([`RouteIndex::update`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use api::edge::{AppProtocol, Backend, HasRoutes, Route, RouteTable};
use api::user::RolloutPhase;
use manifest::{Manifest, RouteTarget, Strategy};
use model::instance::{Protocol, ProxyProtocol};
use model::{
    EnvKey, EnvNetwork, Generation, Incarnation, LeaderSession, ProcessName, ReleaseNumber,
    RouteSettings, TlsMode, route_name,
};

use crate::cluster_state::{ClusterState, Env, Instance, Node, Release};
use crate::release::may_stay;
use crate::rollout;
use crate::table::Table;
use overlay::ingress::edge_port;

/// What the backends of one route have in common.
type Manner = (ProcessName, Option<ProxyProtocol>, AppProtocol);

/// The backends of one host with one process type, PROXY protocol, and protocol of the app.
#[derive(Default)]
struct Group {
    newest: Option<ReleaseNumber>,
    reporting: Vec<Backend>,
    last_known: Vec<Backend>,
}

/// The whole route table: host name to the ready instances behind it. A host that two envs claim
/// is the older env's.
pub fn routes(cluster: &ClusterState) -> BTreeMap<String, Route> {
    let mut index = RouteIndex::default();
    index.update(cluster, cluster.envs.keys());
    let hosts = index.hosts.iter();
    hosts
        .map(|(host, stored)| (host.clone(), stored.route.clone()))
        .collect()
}

/// A host's record in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRoute {
    /// Where it leads.
    pub route: Route,
    /// The counter of the route table in which it led there first.
    pub changed: u64,
}

/// The route table, kept up to date env by env. A clone costs nothing, and a change costs what it changes.
#[derive(Debug, Clone, Default)]
pub struct RouteIndex {
    of_env: Table<EnvKey, BTreeMap<String, Route>>,
    /// The envs that claim a host, the oldest first; those that are frozen before all others.
    claims: Table<String, BTreeSet<(EnvNetwork, EnvKey)>>,
    hosts: Table<String, StoredRoute>,
    /// The hosts by when they changed, those that were removed too.
    log: Table<(u64, String), ()>,
    /// Counts the tables: grows with every one that is another than before.
    counter: u64,
    /// What changed after this counter is in the log.
    log_begin: u64,
}

/// The network of a frozen env, whose own may not be known: it comes before all others, and keeps its hosts.
const FROZEN: EnvNetwork = EnvNetwork(0);

/// Changes of hosts that are kept for edges which ask for differences. An edge that is further behind gets the whole table.
const MAX_LOG: usize = 100_000;

impl RouteIndex {
    /// The routes that a server had before this one, of which this was the counter. Each is the env's that it leads to, until
    /// that is updated.
    pub fn new(before: impl IntoIterator<Item = (String, StoredRoute)>, counter: u64) -> Self {
        let mut index = Self {
            counter,
            log_begin: counter,
            ..Self::default()
        };
        for (host, stored) in before {
            let env = stored.route.env.clone();
            let mut of_env = index.of_env.get(&env).cloned().unwrap_or_default();
            of_env.insert(host.clone(), stored.route.clone());
            index.of_env.insert(env.clone(), of_env);
            index
                .claims
                .insert(host.clone(), BTreeSet::from([(FROZEN, env)]));
            index.hosts.insert(host, stored);
        }
        index
    }

    /// Counts the tables: it grows with every one that is another than before.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// How many hosts lead anywhere.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether no host leads anywhere.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Whether edges serve this host, and have a certificate for it: a route leads from it, or a TCP route whose TLS ends at the edge.
    pub fn is_served(&self, host: &str) -> bool {
        if self.hosts.contains_key(host) {
            return route_name::is_host(host);
        }
        let prefix = route_name::tls_prefix(host);
        let of_host = self.hosts.range(prefix.clone()..);
        of_host
            .take_while(|(name, _)| name.starts_with(&prefix))
            .any(|(_, stored)| stored.route.settings.tls == Some(TlsMode::Terminate))
    }

    /// Where a host leads.
    pub fn route(&self, host: &str) -> Option<&Route> {
        self.hosts.get(host).map(|stored| &stored.route)
    }

    /// The envs that have a host.
    pub fn envs(&self) -> impl Iterator<Item = &EnvKey> {
        self.of_env.keys()
    }

    /// The hosts of an env.
    pub fn hosts_of(&self, env: &EnvKey) -> impl Iterator<Item = &String> {
        self.of_env.get(env).into_iter().flat_map(BTreeMap::keys)
    }

    /// Every host, and where it leads.
    pub fn whole(&self, incarnation: Incarnation) -> RouteTable {
        let hosts = self.hosts.iter();
        RouteTable {
            generation: self.generation(incarnation),
            routes: hosts
                .map(|(h, stored)| (h.clone(), stored.route.clone()))
                .collect(),
            ..RouteTable::default()
        }
    }

    /// What changed since the table of this counter; `None` when that is not known any more.
    pub fn since(&self, incarnation: Incarnation, counter: u64) -> Option<RouteTable> {
        if counter < self.log_begin || counter > self.counter {
            return None;
        }
        let mut table = RouteTable {
            generation: self.generation(incarnation),
            since: Some(counter),
            ..RouteTable::default()
        };
        for ((_, host), ()) in self.log.range((counter + 1, String::new())..) {
            match self.hosts.get(host) {
                Some(stored) => drop(table.routes.insert(host.clone(), stored.route.clone())),
                None => drop(table.removed.insert(host.clone())),
            }
        }
        Some(table)
    }

    /// What an edge is to be told: what changed, where it has a table of this session and that is known; else all. `None`: it has this table. An edge of before
    /// sessions is told by its counter alone.
    pub fn news(
        &self,
        incarnation: Incarnation,
        session: LeaderSession,
        has: HasRoutes,
    ) -> Option<RouteTable> {
        let newest = self.generation(incarnation);
        let its = has.generation.within(incarnation);
        let is_comparable = has.session == session || has.session.is_none();
        if is_comparable && !newest.supersedes(its) {
            return None;
        }
        let difference = (is_comparable && has.generation.incarnation == incarnation)
            .then(|| self.since(incarnation, has.generation.counter));
        let mut table = difference
            .flatten()
            .unwrap_or_else(|| self.whole(incarnation));
        table.session = session;
        Some(table)
    }

    fn generation(&self, incarnation: Incarnation) -> Generation {
        Generation {
            incarnation,
            counter: self.counter,
        }
    }

    /// Takes notice of envs as they are now, those that are gone too; gives the hosts that lead elsewhere than before, or
    /// nowhere. A frozen env keeps the routes it had: what a record that cannot be read says of them is not known. Backends
    /// of its readable instances are current all the same, where the host is still known from a readable release.
    pub fn update<'e>(
        &mut self,
        cluster: &ClusterState,
        envs: impl IntoIterator<Item = &'e EnvKey>,
    ) -> BTreeMap<String, Option<StoredRoute>> {
        let mut touched = BTreeSet::new();
        for key in envs {
            touched.extend(self.update_env(cluster, key));
        }
        let next = self.counter + 1;
        let settled = touched
            .into_iter()
            .filter_map(|host| self.settle(host, next));
        let changes: BTreeMap<_, _> = settled.collect();
        if !changes.is_empty() {
            self.counter = next;
        }
        changes
    }

    /// Makes an env's hosts and claims those that it has now; gives every host that it has or had.
    fn update_env(&mut self, cluster: &ClusterState, key: &EnvKey) -> BTreeSet<String> {
        let env = cluster.envs.get(key).filter(|env| !env.destroying);
        let mut routes = env.map_or_else(BTreeMap::new, |env| {
            let instances = cluster.instances.of_env(key);
            let serving = instances.map(|(_, i)| i).filter(|i| serves(i));
            env_routes(cluster, key, env, &serving.collect::<Vec<_>>())
        });
        let before = self.of_env.remove(key);
        let before = before.as_deref().cloned().unwrap_or_default();
        let is_frozen = cluster.frozen_by(key).is_some();
        if is_frozen {
            let unreadable: BTreeSet<_> =
                cluster.unreadable_instances().map(|(id, _)| id).collect();
            for (host, route) in &before {
                match routes.get_mut(host) {
                    Some(current) => {
                        let backends = route.backends.iter();
                        let kept =
                            backends.filter(|backend| unreadable.contains(&backend.instance));
                        current.backends.extend(kept.cloned());
                    }
                    None => drop(routes.insert(host.clone(), route.clone())),
                }
            }
        }
        for host in before.keys() {
            if let Some(claims) = self.claims.get_mut(host) {
                claims.retain(|(_, env)| env != key);
            }
        }
        let network = env.map_or(FROZEN, |env| env.network);
        for host in routes.keys() {
            let had = is_frozen && before.contains_key(host);
            let claim = (if had { FROZEN } else { network }, key.clone());
            match self.claims.get_mut(host) {
                Some(claims) => drop(claims.insert(claim)),
                None => self.claims.insert(host.clone(), BTreeSet::from([claim])),
            }
        }
        let hosts = before.into_keys().chain(routes.keys().cloned()).collect();
        if !routes.is_empty() {
            self.of_env.insert(key.clone(), routes);
        }
        hosts
    }

    /// Gives a host to the first env that claims it. Gives its record when that is another than before.
    fn settle(&mut self, host: String, next: u64) -> Option<(String, Option<StoredRoute>)> {
        let first = self.claims.get(&host).and_then(BTreeSet::first);
        let route = first
            .and_then(|(_, env)| self.of_env.get(env)?.get(&host))
            .cloned();
        let before = self.hosts.get(&host);
        if before.map(|stored| &stored.route) == route.as_ref() {
            return None;
        }
        if let Some(at) = before.map(|stored| stored.changed) {
            self.log.remove(&(at, host.clone()));
        }
        let stored = route.map(|route| StoredRoute {
            route,
            changed: next,
        });
        match &stored {
            Some(stored) => self.hosts.insert(host.clone(), stored.clone()),
            None => {
                self.claims.remove(&host);
                self.hosts.remove(&host);
            }
        }
        self.log.insert((next, host.clone()), ());
        if self.log.len() > MAX_LOG {
            let oldest = self.log.keys().next().cloned();
            if let Some(oldest) = oldest {
                self.log_begin = oldest.0;
                self.log.remove(&oldest);
            }
        }
        Some((host, stored))
    }
}

/// The hosts and ports of edges of a manifest that lead to another env already, by the names of its routes. To be asked before a release is made.
pub fn taken_hosts(
    cluster: &ClusterState,
    env: &EnvKey,
    manifest: &Manifest,
) -> BTreeMap<String, EnvKey> {
    let mut taken = BTreeMap::new();
    for name in manifest.routes.keys() {
        let claims = &cluster.host_claims;
        let mut others = claims.in_the_way_of(name).filter(|other| *other != env);
        if let Some(other) = others.next() {
            taken.insert(name.clone(), other.clone());
        }
    }
    taken
}

pub(crate) fn serves(instance: &Instance) -> bool {
    let report = instance.report.as_ref();
    !instance.is_terminating()
        && instance.spec.runs.is_app()
        && report.is_some_and(|r| r.state.is_ready())
}

/// The release whose hosts are routed even when they have no backend (the edge then answers 503).
fn announced(env: &Env) -> Option<ReleaseNumber> {
    let rollout = &env.rollout;
    match rollout.phase {
        RolloutPhase::Failed => rollout::serving_before(env, rollout),
        // Nothing of it is there before its release commands are done.
        RolloutPhase::Rolling
            if rollout::next_release_command(env, rollout).is_some()
                && rollout::serving_before(env, rollout).is_some() =>
        {
            rollout::serving_before(env, rollout)
        }
        RolloutPhase::Rolling
        | RolloutPhase::Done
        | RolloutPhase::Reverted
        | RolloutPhase::Superseded => Some(rollout.wanted),
    }
}

/// The process types whose new instances get no traffic yet, because the old serve until all the new count.
pub(crate) fn blue_green<'i>(
    cluster: &ClusterState,
    env: &Env,
    serving: &[&'i Instance],
) -> BTreeSet<&'i ProcessName> {
    let rollout = &env.rollout;
    let release = env.releases.get(&rollout.release);
    let Some(release) = release.filter(|_| rollout.phase == RolloutPhase::Rolling) else {
        return BTreeSet::new();
    };
    let is_blue_green = |process: &ProcessName| {
        let process = release.manifest.processes.get(process);
        process.is_some_and(|process| process.deploy.strategy == Strategy::BlueGreen)
    };
    let old = serving.iter().filter(|instance| {
        let node = cluster.nodes.get(&instance.node);
        is_blue_green(&instance.spec.process)
            && !may_stay(env, instance, node, rollout.release, release)
    });
    old.map(|instance| &instance.spec.process).collect()
}

fn env_routes(
    cluster: &ClusterState,
    key: &EnvKey,
    env: &Env,
    serving: &[&Instance],
) -> BTreeMap<String, Route> {
    let mut hosts: BTreeMap<&str, BTreeMap<Manner, Group>> = BTreeMap::new();
    let announced = announced(env);
    if let Some(release) = announced.and_then(|number| env.releases.get(&number)) {
        for (host, target) in &release.manifest.routes {
            let groups = hosts.entry(host).or_default();
            groups.entry(manner(release, host, target)).or_default();
        }
    }
    let held_back = blue_green(cluster, env, serving);
    for instance in serving {
        let is_new = instance.spec.release == env.rollout.release;
        if is_new && held_back.contains(&instance.spec.process) {
            continue;
        }
        // Of the announced release where that has not touched the instance. While that rolls out, the instances which it replaces serve what the release
        // before has them serve, and not what the one did that made them.
        let node = cluster.nodes.get(&instance.node);
        let before = rollout::serving_before(env, &env.rollout);
        let mut serving_for = announced.into_iter().chain(before);
        let untouched = serving_for.find(|number| {
            let release = env.releases.get(number);
            release.is_some_and(|release| may_stay(env, instance, node, *number, release))
        });
        let number = untouched.unwrap_or(instance.spec.release);
        let Some(release) = env.releases.get(&number) else {
            continue;
        };
        // A server that has just begun to lead hears its nodes one after the other: the first gets no more traffic for that.
        let lapsed = cluster
            .nodes
            .get(&instance.node)
            .is_none_or(Node::has_lapsed);
        let targets = release.manifest.routes.iter();
        for (host, target) in targets.filter(|(_, t)| t.process == instance.spec.process) {
            let groups = hosts.entry(host).or_default();
            let group = groups.entry(manner(release, host, target)).or_default();
            group.newest = group.newest.max(Some(number));
            let backends = if lapsed {
                &mut group.last_known
            } else {
                &mut group.reporting
            };
            backends.push(Backend {
                instance: instance.spec.id,
                address: SocketAddr::new(
                    instance.spec.address.into(),
                    edge_port(&instance.spec.ports, target.port),
                ),
            });
        }
    }
    let chosen = hosts.into_iter().filter_map(|(host, groups)| {
        // All backends of a route have the same process type and speak the same: those of the announced release where
        // any of its instances serve, else those of the newest release that serves.
        let (manner, group) = groups.into_iter().max_by_key(|(_, group)| {
            let reports = !group.reporting.is_empty();
            let wanted = group.newest.is_some() && group.newest == announced;
            (reports, wanted, group.newest)
        })?;
        let backends = if group.reporting.is_empty() {
            group.last_known
        } else {
            group.reporting
        };
        let (process, proxy_protocol, protocol) = manner;
        let release = group.newest.or(announced);
        let release = release.and_then(|number| env.releases.get(&number));
        let target = release.and_then(|release| release.manifest.routes.get(host));
        let settings = target.map_or_else(RouteSettings::default, |target| target.settings.clone());
        let route = Route {
            env: key.clone(),
            process,
            proxy_protocol,
            protocol,
            settings,
            backends,
        };
        Some((host.to_owned(), route))
    });
    chosen.collect()
}

fn manner(release: &Release, name: &str, target: &RouteTarget) -> Manner {
    let process = release.manifest.processes.get(&target.process);
    let ports = process.map_or(&[][..], |process| process.ports.as_slice());
    let port = ports.iter().find(|port| port.port == target.port);
    // What is spoken on a TCP route is its clients' business.
    let speaks_h2c =
        route_name::is_host(name) && port.is_some_and(|port| port.protocol == Protocol::H2c);
    (
        target.process.clone(),
        port.and_then(|port| port.proxy_protocol),
        if speaks_h2c {
            AppProtocol::H2c
        } else {
            AppProtocol::Http1
        },
    )
}

#[cfg(test)]
mod tests;

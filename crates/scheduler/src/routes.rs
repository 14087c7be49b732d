//! Routes: host name to ready instances.
//!
//! An instance serves the hosts that its own release's manifest gives to its process, on the port
//! given there, so old and new instances serve side by side while a release rolls out. The hosts
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

use api::edge::{Backend, Route, RouteTable};
use api::user::RolloutPhase;
use manifest::{Manifest, RouteTarget, Strategy};
use model::instance::ProxyProtocol;
use model::{EnvKey, EnvNetwork, Generation, Incarnation, ProcessName, ReleaseNumber};

use crate::cluster_state::{ClusterState, Env, Instance, Node, Release};
use crate::release::is_as_in;
use crate::rollout;
use crate::table::Table;
use overlay::ingress::edge_port;

/// What the backends of one route have in common.
type Manner = (ProcessName, Option<ProxyProtocol>);

/// The backends of one host with one process type and PROXY protocol.
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

    /// The envs that have a host.
    pub fn envs(&self) -> impl Iterator<Item = &EnvKey> {
        self.of_env.keys()
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

/// The hosts of a manifest that lead to another env already. To be asked before a release is made.
pub fn taken_hosts(
    cluster: &ClusterState,
    env: &EnvKey,
    manifest: &Manifest,
) -> BTreeMap<String, EnvKey> {
    let mut taken = BTreeMap::new();
    for host in manifest.routes.keys() {
        let mut claiming = cluster.host_claims.claiming(host);
        if let Some(other) = claiming.find(|other| *other != env) {
            taken.insert(host.clone(), other.clone());
        }
    }
    taken
}

fn serves(instance: &Instance) -> bool {
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
fn blue_green<'i>(
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
        let arch = node.map_or("", |node| node.hardware.arch.as_str());
        is_blue_green(&instance.spec.process)
            && !is_as_in(&instance.spec, rollout.release, release, arch)
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
            groups.entry(manner(release, target)).or_default();
        }
    }
    let held_back = blue_green(cluster, env, serving);
    for instance in serving {
        let is_new = instance.spec.release == env.rollout.release;
        if is_new && held_back.contains(&instance.spec.process) {
            continue;
        }
        // Of the announced release where that has not touched the instance.
        let node = cluster.nodes.get(&instance.node);
        let arch = node.map_or("", |node| node.hardware.arch.as_str());
        let untouched = announced.filter(|number| {
            let release = env.releases.get(number);
            release.is_some_and(|release| is_as_in(&instance.spec, *number, release, arch))
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
            let group = groups.entry(manner(release, target)).or_default();
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
        // All backends of a route have the same process type and PROXY protocol: those of the announced release where
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
        let (process, proxy_protocol) = manner;
        let route = Route {
            env: key.clone(),
            process,
            proxy_protocol,
            backends,
        };
        Some((host.to_owned(), route))
    });
    chosen.collect()
}

fn manner(release: &Release, target: &RouteTarget) -> Manner {
    let process = release.manifest.processes.get(&target.process);
    let ports = process.map_or(&[][..], |process| process.ports.as_slice());
    let port = ports.iter().find(|port| port.port == target.port);
    (
        target.process.clone(),
        port.and_then(|port| port.proxy_protocol),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::apply::{Command, apply};
    use crate::cluster_state::{Subject, UnreadableRecord};
    use crate::fixtures::{InstanceFixture, cluster, deploy, key, lapse, manifest, process};
    use expect_test::{Expect, expect};
    use model::{InstanceId, NodeId, Timestamp};

    fn check(cluster: &ClusterState, expected: Expect) {
        let lines = routes(cluster).into_iter().map(|(host, route)| {
            let backends = route.backends.iter();
            let backends: Vec<_> = backends.map(|b| format!(" {}", b.address)).collect();
            let proxy = route
                .proxy_protocol
                .map_or(String::new(), |p| format!(" {p:?}"));
            let (env, process) = (route.env, route.process);
            format!("{host} -> {env} {process}{proxy}:{}\n", backends.concat())
        });
        expected.assert_eq(&lines.collect::<String>());
    }

    /// v1 on port 8080 with two ready, v2 on port 9090 with one ready and one not.
    fn rolling() -> ClusterState {
        let mut cluster = cluster(2);
        deploy(
            &mut cluster,
            "shop/prod",
            manifest(&[("web", process(2))]),
            Timestamp(0),
        );
        let mut second = process(2);
        second.ports[0].port = 9090;
        deploy(
            &mut cluster,
            "shop/prod",
            manifest(&[("web", second)]),
            Timestamp(0),
        );
        for (id, release, node) in [(1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 2)] {
            let (env, process) = ("shop/prod", "web");
            let put = InstanceFixture {
                id,
                env,
                process,
                release,
                node,
            };
            let instance = put.into_cluster(&mut cluster);
            if id != 4 {
                instance.make_ready();
            }
        }
        cluster
    }

    #[test]
    fn each_release_serves_on_its_own_port() {
        check(
            &rolling(),
            expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
        "#]],
        );
    }

    #[test]
    fn a_terminating_instance_gets_no_traffic() {
        let mut cluster = rolling();
        for id in [1, 3] {
            cluster
                .instances
                .get_mut(&InstanceId(id))
                .unwrap()
                .terminate();
        }
        check(
            &cluster,
            expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:2:0:1:0:2]:8080
        "#]],
        );
    }

    #[test]
    fn instances_last_reported_ready_are_backends_while_no_node_reports() {
        let mut cluster = rolling();
        lapse(&mut cluster, 2, Timestamp(0));
        check(
            &cluster,
            expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
        "#]],
        );
        lapse(&mut cluster, 1, Timestamp(0));
        check(
            &cluster,
            expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
        "#]],
        );
    }

    #[test]
    fn backends_of_one_host_share_the_proxy_protocol() {
        let mut cluster = rolling();
        let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
        let second = env.releases.get_mut(&ReleaseNumber(2)).unwrap();
        let web = second.manifest.processes.values_mut().next().unwrap();
        web.ports[0].proxy_protocol = Some(ProxyProtocol::V2);
        second.manifest.routes.values_mut().next().unwrap().port = 9090;
        let ports = web.ports.clone();
        let third = cluster.instances.get_mut(&InstanceId(3)).unwrap();
        std::sync::Arc::make_mut(&mut third.spec).ports = ports;
        check(
            &cluster,
            expect![[r#"
            web.example.com -> shop/prod web V2: [fd00:1111:2222:1:0:1:0:3]:61001
        "#]],
        );
        cluster.instances.get_mut(&InstanceId(3)).unwrap().report = None;
        check(
            &cluster,
            expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080
        "#]],
        );
    }

    #[test]
    fn a_host_without_backends_stays_and_the_host_of_a_failed_release_goes() {
        let mut cluster = rolling();
        cluster.instances.clear();
        check(
            &cluster,
            expect![[r#"
            web.example.com -> shop/prod web:
        "#]],
        );
        let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
        env.rollout.phase = RolloutPhase::Failed;
        env.rollout.previous = None;
        check(&cluster, expect![""]);
        let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
        (env.rollout.phase, env.destroying) = (RolloutPhase::Done, true);
        check(&cluster, expect![""]);
    }

    #[test]
    fn a_frozen_env_keeps_its_routes() {
        let mut cluster = rolling();
        let before = routes(&cluster);
        let frozen = |cluster: &ClusterState| {
            let stored = before.clone().into_iter().map(|(host, route)| {
                let stored = StoredRoute { route, changed: 1 };
                (host, stored)
            });
            let mut index = RouteIndex::new(stored, 1);
            let had: Vec<_> = index.envs().cloned().collect();
            // Twice: it stays as it is.
            index.update(cluster, had.iter().chain(cluster.envs.keys()).chain(&had));
            index.whole(Incarnation(1)).routes
        };
        let unreadable = |subject| UnreadableRecord {
            subject,
            env: Some(key("shop/prod")),
            node: Some(NodeId(1)),
            cause: "a test".to_owned(),
        };
        // One instance cannot be read: it stays a backend, and a readable one that is no longer ready does not.
        cluster.instances.remove(&InstanceId(1));
        cluster.instances.get_mut(&InstanceId(2)).unwrap().report = None;
        cluster.unreadable = vec![unreadable(Subject::Instance(InstanceId(1)))];
        let table = frozen(&cluster);
        let backends = &table["web.example.com"].backends;
        let ids: Vec<_> = backends.iter().map(|b| b.instance.0).collect();
        assert_eq!(ids, [3, 1]);
        // The env cannot be read: its hosts stay, also against another env that claims them.
        let env = cluster.envs.remove(&key("shop/prod")).unwrap();
        cluster.unreadable = vec![unreadable(Subject::Env(key("shop/prod")))];
        assert_eq!(frozen(&cluster), before);
        cluster.envs.insert(key("shop/other"), (*env).clone());
        assert_eq!(frozen(&cluster), before);
        cluster.unreadable.clear();
        assert_ne!(frozen(&cluster), before);
    }

    #[test]
    fn case_a_host_that_a_release_adds_leads_to_instances_that_it_does_not_touch() {
        let mut cluster = rolling();
        let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
        // As v2 but for a host.
        let mut third = env.releases.get(&ReleaseNumber(2)).unwrap().clone();
        let target = third.manifest.routes.values().next().unwrap().clone();
        (third.manifest.routes).insert("zoo.example.com".to_owned(), target);
        env.releases.insert(ReleaseNumber(3), third);
        (env.rollout.release, env.rollout.wanted) = (ReleaseNumber(3), ReleaseNumber(3));
        check(
            &cluster,
            expect![[r#"
                web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
                zoo.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:3]:9090
            "#]],
        );
    }

    #[test]
    fn an_edge_that_takes_the_differences_has_the_whole_table() {
        let mut cluster = rolling();
        let one = Incarnation(1);
        let mut index = RouteIndex::default();
        index.update(&cluster, cluster.envs.keys());
        let first = index.whole(one);
        assert_eq!((first.generation.counter, index.len()), (1, 1));
        // Nothing new: the same table.
        let env = key("shop/prod");
        assert!(index.update(&cluster, [&env]).is_empty());
        assert_eq!(index.since(one, 1).unwrap().routes.len(), 0);
        deploy(
            &mut cluster,
            "blog/prod",
            manifest(&[("web", process(1))]),
            Timestamp(0),
        );
        let release = cluster.envs.get_mut(&key("blog/prod")).unwrap();
        let release = release.releases.get_mut(&ReleaseNumber(1)).unwrap();
        let target = release.manifest.routes.pop_first().unwrap().1;
        release
            .manifest
            .routes
            .insert("blog.example.com".to_owned(), target);
        let changed = index.update(&cluster, [&key("blog/prod")]);
        assert_eq!(changed.keys().collect::<Vec<_>>(), ["blog.example.com"]);
        cluster.envs.remove(&env);
        cluster.instances.clear();
        index.update(&cluster, [&env]);
        let both = index.since(one, 1).unwrap();
        assert_eq!(both.removed, BTreeSet::from(["web.example.com".to_owned()]));
        assert_eq!(both.routes, index.whole(one).routes);
        let last = index.since(one, 2).unwrap();
        assert_eq!((last.routes.len(), last.removed.len()), (0, 1));
        // What this server never knew, and what it does not know yet.
        assert!(RouteIndex::new([], 7).since(one, 6).is_none());
        assert!(index.since(one, 4).is_none());
    }

    #[test]
    fn a_host_belongs_to_one_env() {
        let mut cluster = rolling();
        let manifest = manifest(&[("web", process(1))]);
        let taken = taken_hosts(&cluster, &key("shop/test"), &manifest);
        let expected = BTreeMap::from([("web.example.com".to_owned(), key("shop/prod"))]);
        assert_eq!(taken, expected);
        assert!(taken_hosts(&cluster, &key("shop/prod"), &manifest).is_empty());
        let mut going = cluster.clone();
        let destroy = Command::DestroyEnv {
            env: key("shop/prod"),
        };
        apply(&mut going, &destroy).unwrap();
        assert!(taken_hosts(&going, &key("shop/test"), &manifest).is_empty());
        // Where it came to be claimed twice nevertheless, the older env keeps it.
        deploy(&mut cluster, "shop/a", manifest, Timestamp(0));
        let owner = &routes(&cluster)["web.example.com"].env;
        assert_eq!(*owner, key("shop/prod"));
    }
}

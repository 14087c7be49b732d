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

use api::edge::{Backend, Route};
use api::user::RolloutPhase;
use manifest::{Manifest, RouteTarget};
use model::instance::{InstanceState, ProxyProtocol};
use model::{EnvKey, EnvNetwork, ProcessName, ReleaseNumber};

use crate::cluster_state::{ClusterState, Env, Instance, Release};
use crate::rollout;
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
    let mut index = RouteIndex::new(&BTreeMap::new());
    for key in cluster.envs.keys() {
        index.update(cluster, key);
    }
    index.table
}

/// The route table, kept up to date env by env.
#[derive(Debug, Clone, Default)]
pub struct RouteIndex {
    of_env: BTreeMap<EnvKey, BTreeMap<String, Route>>,
    /// The envs that claim a host, the oldest first; those that are frozen before all others.
    claims: BTreeMap<String, BTreeSet<(EnvNetwork, EnvKey)>>,
    table: BTreeMap<String, Route>,
}

/// The network of a frozen env, whose own may not be known: it comes before all others, and keeps its hosts.
const FROZEN: EnvNetwork = EnvNetwork(0);

impl RouteIndex {
    /// The routes that a server had before this one. Each is the env's that it leads to, until that is updated.
    pub fn new(before: &BTreeMap<String, Route>) -> Self {
        let mut index = Self {
            table: before.clone(),
            ..Self::default()
        };
        for (host, route) in before {
            let of_env = index.of_env.entry(route.env.clone()).or_default();
            of_env.insert(host.clone(), route.clone());
            let claims = index.claims.entry(host.clone()).or_default();
            claims.insert((FROZEN, route.env.clone()));
        }
        index
    }

    /// Every host, and where it leads.
    pub fn table(&self) -> &BTreeMap<String, Route> {
        &self.table
    }

    /// The envs that have a host.
    pub fn envs(&self) -> impl Iterator<Item = &EnvKey> {
        self.of_env.keys()
    }

    /// Takes notice of an env as it is now, one that is gone too. A frozen env keeps the routes it had: what a record that
    /// cannot be read says of them is not known. Backends of its readable instances are current all the same, where the
    /// host is still known from a readable release.
    pub fn update(&mut self, cluster: &ClusterState, key: &EnvKey) {
        let env = cluster.envs.get(key).filter(|env| !env.destroying);
        let mut routes = env.map_or_else(BTreeMap::new, |env| {
            let instances = cluster.instances.of_env(key);
            let serving = instances.map(|(_, i)| i).filter(|i| serves(i));
            env_routes(cluster, key, env, &serving.collect::<Vec<_>>())
        });
        let before = self.of_env.remove(key).unwrap_or_default();
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
            let network = if had { FROZEN } else { network };
            let claims = self.claims.entry(host.clone()).or_default();
            claims.insert((network, key.clone()));
        }
        let hosts: BTreeSet<String> = before.into_keys().chain(routes.keys().cloned()).collect();
        if !routes.is_empty() {
            self.of_env.insert(key.clone(), routes);
        }
        for host in hosts {
            self.settle(host);
        }
    }

    /// Gives a host to the first env that claims it.
    fn settle(&mut self, host: String) {
        let first = self.claims.get(&host).and_then(BTreeSet::first);
        let route = first.and_then(|(_, env)| self.of_env.get(env)?.get(&host));
        match route {
            Some(route) => drop(self.table.insert(host, route.clone())),
            None => {
                self.claims.remove(&host);
                self.table.remove(&host);
            }
        }
    }
}

/// The hosts of a manifest that lead to another env already. To be asked before a release is made.
pub fn taken_hosts(
    cluster: &ClusterState,
    env: &EnvKey,
    manifest: &Manifest,
) -> BTreeMap<String, EnvKey> {
    let mut taken = BTreeMap::new();
    let others = cluster
        .envs
        .iter()
        .filter(|(key, other)| *key != env && !other.destroying);
    for (key, other) in others {
        let rollout = &other.rollout;
        let releases = [
            Some(rollout.release),
            Some(rollout.wanted),
            rollout.previous,
        ];
        for release in releases.into_iter().flatten() {
            let hosts = other.releases.get(&release).map(|r| &r.manifest.routes);
            for host in hosts.into_iter().flat_map(BTreeMap::keys) {
                if manifest.routes.contains_key(host) {
                    taken.insert(host.clone(), key.clone());
                }
            }
        }
    }
    taken
}

fn serves(instance: &Instance) -> bool {
    let report = instance.report.as_ref();
    !instance.is_terminating()
        && report.is_some_and(|r| r.ready && r.state == InstanceState::Running)
}

/// The release whose hosts are routed even when they have no backend (the edge then answers 503).
fn announced(env: &Env) -> Option<ReleaseNumber> {
    let rollout = &env.rollout;
    match rollout.phase {
        RolloutPhase::Failed => rollout::serving_before(env, rollout),
        RolloutPhase::Rolling
        | RolloutPhase::Done
        | RolloutPhase::Reverted
        | RolloutPhase::Superseded => Some(rollout.wanted),
    }
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
    for instance in serving {
        let number = instance.spec.release;
        let Some(release) = env.releases.get(&number) else {
            continue;
        };
        let online = cluster.nodes.get(&instance.node).is_some_and(|n| n.online);
        let targets = release.manifest.routes.iter();
        for (host, target) in targets.filter(|(_, t)| t.process == instance.spec.process) {
            let groups = hosts.entry(host).or_default();
            let group = groups.entry(manner(release, target)).or_default();
            group.newest = group.newest.max(Some(number));
            let backends = if online {
                &mut group.reporting
            } else {
                &mut group.last_known
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
    use crate::cluster_state::{Subject, UnreadableRecord};
    use crate::fixtures::{InstanceFixture, cluster, deploy, key, manifest, process};
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
        cluster.nodes.get_mut(&NodeId(2)).unwrap().online = false;
        check(
            &cluster,
            expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
        "#]],
        );
        cluster.nodes.get_mut(&NodeId(1)).unwrap().online = false;
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
        third.spec.ports = ports;
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
            let mut index = RouteIndex::new(&before);
            let had: Vec<_> = index.envs().cloned().collect();
            // Twice: it stays as it is.
            for key in had.iter().chain(cluster.envs.keys()).chain(&had) {
                index.update(cluster, key);
            }
            index.table
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
    fn a_host_belongs_to_one_env() {
        let mut cluster = rolling();
        let manifest = manifest(&[("web", process(1))]);
        let taken = taken_hosts(&cluster, &key("shop/test"), &manifest);
        let expected = BTreeMap::from([("web.example.com".to_owned(), key("shop/prod"))]);
        assert_eq!(taken, expected);
        assert!(taken_hosts(&cluster, &key("shop/prod"), &manifest).is_empty());
        let mut going = cluster.clone();
        going.envs.get_mut(&key("shop/prod")).unwrap().destroying = true;
        assert!(taken_hosts(&going, &key("shop/test"), &manifest).is_empty());
        // Where it came to be claimed twice nevertheless, the older env keeps it.
        deploy(&mut cluster, "shop/a", manifest, Timestamp(0));
        let owner = &routes(&cluster)["web.example.com"].env;
        assert_eq!(*owner, key("shop/prod"));
    }
}

//! Where hosts lead.
//!
//! An instance serves the hosts that its own release's manifest gives to its process, on the port
//! given there, so old and new instances serve side by side while a release rolls out. The hosts
//! are those of the wanted release, and for as long as an older one's instances serve, that one's
//! too: a release that cannot become healthy takes no host away.
//!
//! Backends are ready and not leaving: an instance on its way out loses its traffic first, and its
//! node lets it drain before it stops. Where nobody behind a host is on a node that reports, those
//! last known to be ready are named instead: a server that was restarted has heard of nobody yet,
//! and an edge does better to try them than to turn everyone away.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use contract::api::{Backend, RolloutPhase, Route};
use contract::instance::{InstanceState, ProxyProtocol};
use contract::{EnvKey, ProcessName, ReleaseNumber};
use manifest::{Manifest, RouteTarget};

use crate::rollout;
use crate::world::{Env, Instance, Release, World};

/// What instances must have in common to be behind one route.
type Manner = (ProcessName, Option<ProxyProtocol>);

/// Backends of one host that are spoken to in one manner.
#[derive(Default)]
struct Group {
    newest: Option<ReleaseNumber>,
    reporting: Vec<Backend>,
    last_known: Vec<Backend>,
}

/// The whole route table: host name to the ready instances behind it. A host that two envs claim
/// is the older env's.
pub fn routes(world: &World) -> BTreeMap<String, Route> {
    let mut by_env: BTreeMap<EnvKey, Vec<&Instance>> = BTreeMap::new();
    for instance in world.instances.values().filter(|i| serves(i)) {
        let key = instance.spec.env_key();
        by_env.entry(key).or_default().push(instance);
    }
    let mut envs: Vec<_> = world.envs.iter().filter(|(_, e)| !e.destroying).collect();
    envs.sort_by_key(|(_, env)| env.network);
    let mut table = BTreeMap::new();
    for (key, env) in envs {
        let serving = by_env.get(key).map_or(&[][..], Vec::as_slice);
        for (host, route) in env_routes(world, key, env, serving) {
            table.entry(host).or_insert(route);
        }
    }
    table
}

/// The hosts of a manifest that lead to another env already. To be asked before a release is made.
pub fn taken_hosts(world: &World, env: &EnvKey, manifest: &Manifest) -> BTreeMap<String, EnvKey> {
    let mut taken = BTreeMap::new();
    let others = world.envs.iter().filter(|(key, _)| *key != env);
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
    !instance.leaving && report.is_some_and(|r| r.ready && r.state == InstanceState::Running)
}

/// The release whose hosts are there even when nobody serves them (the edge then answers 503).
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
    world: &World,
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
        let online = world.nodes.get(&instance.node).is_some_and(|n| n.online);
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
                address: SocketAddr::new(instance.spec.address.into(), target.port),
            });
        }
    }
    let chosen = hosts.into_iter().filter_map(|(host, groups)| {
        // One route is spoken in one manner: that of the announced release where any of its
        // instances serve, else the newest that does.
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

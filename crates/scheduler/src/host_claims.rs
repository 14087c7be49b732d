//! Which envs claim a host, or a port of edges, by a release that they want, or may go back to: asked at each deploy, so it is an index.
//!
//! A host is one env's, whether requests come for it or connections of TCP routes name it: who has a certificate for it at any port can be taken for it at all of
//! them, cookies and all. A port of edges is one env's where it is for whoever connects, and any number of envs' where clients name hosts.

// ring: the cluster state keeps the index of what its envs claim.

use std::collections::BTreeSet;

use api::user::RolloutPhase;
use model::{EnvKey, route_name};

use crate::cluster_state::Env;
use crate::rollout::serving_before;
use crate::table::Table;

/// The hosts that envs claim. It follows from the envs, so two cluster states with the same envs have the same; what a frozen env
/// claims follows from the routes, once there is a leader.
#[derive(Debug, Clone, Default)]
pub struct HostClaims {
    of_env: Table<EnvKey, BTreeSet<String>>,
    by_host: Table<String, BTreeSet<EnvKey>>,
}

impl HostClaims {
    /// What these envs claim.
    pub fn of<'e>(envs: impl Iterator<Item = (&'e EnvKey, &'e Env)>) -> Self {
        let mut claims = Self::default();
        for (key, env) in envs {
            claims.update(key, Some(env));
        }
        claims
    }

    /// The envs whose claims leave no place for a route of this name in another env.
    pub fn in_the_way_of(&self, name: &str) -> impl Iterator<Item = &EnvKey> {
        let claims = match (route_name::tls(name), route_name::tcp_port(name)) {
            (Some((host, listen)), _) => [host.to_owned(), route_name::of_tcp(listen)],
            (None, Some(listen)) => [name.to_owned(), shared_port(listen)],
            (None, None) => [name.to_owned(), String::new()],
        };
        let envs = claims.map(|claim| self.by_host.get(&claim));
        envs.into_iter().flatten().flatten()
    }

    /// Takes notice of an env as it is now; `None`: it is gone.
    pub(crate) fn update(&mut self, key: &EnvKey, env: Option<&Env>) {
        self.set(key, env.map(hosts_of).unwrap_or_default());
    }

    /// A frozen env claims the hosts that lead to it, beside those of its readable releases: what it asks for is not known.
    pub(crate) fn keep(&mut self, key: &EnvKey, hosts: impl Iterator<Item = String>) {
        let mut kept = self.of_env.get(key).cloned().unwrap_or_default();
        kept.extend(hosts);
        self.set(key, kept);
    }

    /// What an env claims are the names of its routes, and what those of one host claim besides.
    fn set(&mut self, key: &EnvKey, mut after: BTreeSet<String>) {
        let besides = after.iter().filter_map(|name| route_name::tls(name));
        let besides = besides.flat_map(|(host, listen)| [host.to_owned(), shared_port(listen)]);
        let besides: Vec<_> = besides.collect();
        after.extend(besides);
        let before = self.of_env.get(key).cloned().unwrap_or_default();
        if before == after {
            return;
        }
        for host in before.difference(&after) {
            let mut claiming = self.by_host.get(host).cloned().unwrap_or_default();
            claiming.remove(key);
            if claiming.is_empty() {
                self.by_host.remove(host);
            } else {
                self.by_host.insert(host.clone(), claiming);
            }
        }
        for host in after.difference(&before) {
            let mut claiming = self.by_host.get(host).cloned().unwrap_or_default();
            claiming.insert(key.clone());
            self.by_host.insert(host.clone(), claiming);
        }
        if after.is_empty() {
            self.of_env.remove(key);
        } else {
            self.of_env.insert(key.clone(), after);
        }
    }
}

/// The claim to a port of edges, for some hosts: no name of a route is like it.
fn shared_port(listen: u16) -> String {
    format!("tls:{listen}")
}

impl PartialEq for HostClaims {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for HostClaims {}

/// The hosts of the releases that an env wants, keeps or may go back to. Of a release that is done, or given up, and gone, the
/// hosts are free.
fn hosts_of(env: &Env) -> BTreeSet<String> {
    if env.destroying {
        return BTreeSet::new();
    }
    let rollout = &env.rollout;
    let (release, wanted) = (Some(rollout.release), Some(rollout.wanted));
    let releases = match rollout.phase {
        RolloutPhase::Done => [release, wanted, None],
        RolloutPhase::Reverted => [None, wanted, None],
        RolloutPhase::Failed if serving_before(env, rollout).is_none() => [None; 3],
        RolloutPhase::Failed | RolloutPhase::Rolling | RolloutPhase::Superseded => {
            [release, wanted, rollout.previous]
        }
    };
    let releases = releases.into_iter().flatten();
    let releases = releases.filter_map(|number| env.releases.get(&number));
    releases
        .flat_map(|release| release.manifest.routes.keys().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{cluster, deploy, key, manifest, process};
    use model::{ReleaseNumber, Timestamp};

    #[test]
    fn a_release_that_was_given_up_keeps_no_host() {
        let mut cluster = cluster(1);
        for (number, host) in [(1, "a.test"), (2, "b.test")] {
            let mut release = manifest(&[("web", process(1))]);
            let target = release.routes.values().next().unwrap().clone();
            release.routes = [(host.to_owned(), target)].into();
            deploy(&mut cluster, "shop/prod", release, Timestamp(number));
        }
        let mut env = cluster.envs[&key("shop/prod")].clone();
        let mut hosts = |phase, wanted, previous: Option<u32>| {
            env.rollout.phase = phase;
            env.rollout.wanted = ReleaseNumber(wanted);
            env.rollout.previous = previous.map(ReleaseNumber);
            hosts_of(&env).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(
            hosts(RolloutPhase::Rolling, 2, Some(1)),
            ["a.test", "b.test"]
        );
        assert_eq!(hosts(RolloutPhase::Done, 2, Some(1)), ["b.test"]);
        assert_eq!(hosts(RolloutPhase::Reverted, 1, Some(1)), ["a.test"]);
        // Its instances are kept, to be looked at.
        assert_eq!(
            hosts(RolloutPhase::Failed, 2, Some(1)),
            ["a.test", "b.test"]
        );
        assert!(hosts(RolloutPhase::Failed, 2, None).is_empty());
    }
}

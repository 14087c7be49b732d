//! How much of the cluster state one app may take, whoever asks: what every env and every bundle costs, the whole cluster pays.

use std::collections::BTreeSet;

use model::EnvKey;

use crate::apply::{MAX_BUNDLES_OF_AN_ENV, MAX_ENVS_OF_AN_APP, Refused};
use crate::cluster_state::ClusterState;

/// The env is there, or its app may have one more.
///
/// # Errors
/// [`Refused::TooManyEnvs`].
pub fn check_room_for_env(cluster: &ClusterState, key: &EnvKey) -> Result<(), Refused> {
    if cluster.envs.contains_key(key) || cluster.secrets.contains_key(key) {
        return Ok(());
    }
    let first = EnvKey::before_all_of(&key.app);
    let of_app = |other: &&EnvKey| other.app == key.app;
    let envs = cluster.envs.range(&first..).map(|(key, _)| key);
    let with_secrets = cluster.secrets.range(&first..).map(|(key, _)| key);
    let mut seen: BTreeSet<_> = (envs.take_while(of_app)).take(MAX_ENVS_OF_AN_APP).collect();
    seen.extend((with_secrets.take_while(of_app)).take(MAX_ENVS_OF_AN_APP));
    if seen.len() < MAX_ENVS_OF_AN_APP {
        return Ok(());
    }
    Err(Refused::TooManyEnvs(key.app.clone()))
}

/// The env may have one bundle more.
///
/// # Errors
/// [`Refused::TooManyBundles`], or as of [`check_room_for_env`] where it is the first one of a new env.
pub fn check_room_for_bundle(cluster: &ClusterState, env: &EnvKey) -> Result<(), Refused> {
    check_room_for_env(cluster, env)?;
    match cluster.secrets.get(env) {
        Some(bundles) if bundles.len() >= MAX_BUNDLES_OF_AN_ENV => {
            Err(Refused::TooManyBundles(env.clone()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use model::Timestamp;

    use super::*;
    use crate::apply::{Command, apply};
    use crate::changes::SealedVersion;
    use crate::fixtures::{cluster, deployment, key, manifest, process, release};

    fn set(cluster: &mut ClusterState, env: &EnvKey, bundle: &str) -> Result<(), Refused> {
        let command = Command::AddSecretVersion {
            env: env.clone(),
            bundle: bundle.to_owned(),
            version: cluster.next_secret_version(env, bundle).unwrap(),
            content: SealedVersion {
                sealed: Vec::new(),
                created_at: Timestamp(0),
            },
        };
        apply(cluster, &command).map(drop)
    }

    #[test]
    fn an_app_has_so_many_envs_and_no_more_with_secrets_alone_too() {
        let mut cluster = cluster(1);
        let deploy = |cluster: &mut ClusterState, env: &str| {
            let made = release(manifest(&[("web", process(1))]));
            let deployed = deployment(cluster, env, made, Timestamp(0));
            apply(cluster, &deployed).map(drop)
        };
        // Half of them have a release, and some of these secrets too.
        for number in 0..MAX_ENVS_OF_AN_APP {
            let env = format!("shop/e{number}");
            if number % 2 == 0 {
                deploy(&mut cluster, &env).unwrap();
            }
            if number % 2 == 1 || number % 4 == 0 {
                set(&mut cluster, &key(&env), "s").unwrap();
            }
        }
        let full = Refused::TooManyEnvs(key("shop/x").app);
        assert_eq!(deploy(&mut cluster, "shop/x"), Err(full.clone()));
        assert_eq!(set(&mut cluster, &key("shop/x"), "s"), Err(full));
        // What it has goes on, and another app has room of its own.
        set(&mut cluster, &key("shop/e0"), "s").unwrap();
        set(&mut cluster, &key("shop/e2"), "s").unwrap();
        deploy(&mut cluster, "shop/e1").unwrap();
        deploy(&mut cluster, "shoq/x").unwrap();
        set(&mut cluster, &key("shoo/x"), "s").unwrap();
        // One that goes makes room.
        let gone = Command::DeleteSecrets {
            env: key("shop/e3"),
            bundle: "s".to_owned(),
        };
        apply(&mut cluster, &gone).unwrap();
        deploy(&mut cluster, "shop/x").unwrap();
    }

    #[test]
    fn an_env_has_so_many_bundles_and_no_more() {
        let mut cluster = cluster(1);
        let env = key("shop/prod");
        for number in 0..MAX_BUNDLES_OF_AN_ENV {
            set(&mut cluster, &env, &format!("s{number}")).unwrap();
        }
        let refused = set(&mut cluster, &env, "one-more");
        assert_eq!(refused, Err(Refused::TooManyBundles(env.clone())));
        set(&mut cluster, &env, "s0").unwrap();
    }
}

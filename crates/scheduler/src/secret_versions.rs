//! Versions of secret bundles: how one is added, and which are kept: the newest of each, and those of the releases that are kept.

use std::collections::{BTreeMap, BTreeSet};

use model::EnvKey;

use crate::apply::Refused;
use crate::changes::{Changes, SealedVersion};
use crate::cluster_state::{ClusterState, Release};
use crate::quota;

/// Adds the next version of a bundle, the first one of a new bundle too.
pub(crate) fn add(
    cluster: &mut ClusterState,
    env: &EnvKey,
    bundle: &str,
    version: u32,
    content: &SealedVersion,
) -> Result<Changes, Refused> {
    if cluster.next_secret_version(env, bundle) != Some(version) {
        return Err(Refused::SecretVersion {
            env: env.clone(),
            bundle: bundle.to_owned(),
            version,
        });
    }
    let before = cluster.secret_version(env, bundle);
    if before == 0 {
        quota::check_room_for_bundle(cluster, env)?;
    }
    cluster.add_secret_version(env, bundle, version);
    let key = (env.clone(), bundle.to_owned(), version);
    let replaced = (before > 0).then(|| (bundle.to_owned(), before));
    Ok(Changes {
        secrets: BTreeMap::from([(key, content.clone())]),
        deleted_secret_versions: kept_no_longer(cluster, env, replaced.into_iter().collect()),
        ..Changes::default()
    })
}

/// Every version of a bundle that a release has.
pub(crate) fn of_release(release: &Release) -> BTreeSet<(String, u32)> {
    let kept = release.kept.values().flat_map(|kept| &kept.secrets);
    let all = release.secrets.iter().chain(kept);
    all.map(|(bundle, version)| (bundle.clone(), *version))
        .collect()
}

/// Those of some versions of an env's bundles that nothing can ask for any more.
pub(crate) fn kept_no_longer(
    cluster: &ClusterState,
    env: &EnvKey,
    versions: BTreeSet<(String, u32)>,
) -> BTreeSet<(EnvKey, String, u32)> {
    let releases = cluster.envs.get(env).into_iter();
    let releases = releases.flat_map(|env| env.releases.values());
    let needed: BTreeSet<_> = releases.flat_map(of_release).collect();
    let gone = versions.into_iter().filter(|version| {
        !needed.contains(version) && cluster.secret_version(env, &version.0) != version.1
    });
    gone.map(|(bundle, version)| (env.clone(), bundle, version))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::apply::{Command, apply};
    use crate::changes::SealedVersion;
    use crate::fixtures::{cluster, deployment, key, manifest, process, release};
    use model::Timestamp;

    #[test]
    fn case_a_bundle_made_anew_has_no_number_that_a_release_has() {
        let mut cluster = cluster(1);
        let env = key("shop/prod");
        let set = |cluster: &mut ClusterState| {
            let version = cluster.next_secret_version(&env, "database").unwrap();
            let set = Command::AddSecretVersion {
                env: env.clone(),
                bundle: "database".to_owned(),
                version,
                content: SealedVersion {
                    sealed: Vec::new(),
                    created_at: Timestamp(0),
                },
            };
            apply(cluster, &set).unwrap();
            version
        };
        assert_eq!((set(&mut cluster), set(&mut cluster)), (1, 2));
        let mut made = release(manifest(&[("web", process(1))]));
        made.secrets = [("database".to_owned(), 2)].into();
        let deployed = deployment(&cluster, "shop/prod", made, Timestamp(0));
        apply(&mut cluster, &deployed).unwrap();
        let delete = Command::DeleteSecrets {
            env: env.clone(),
            bundle: "database".to_owned(),
        };
        apply(&mut cluster, &delete).unwrap();
        assert_eq!(set(&mut cluster), 3);
    }

    #[test]
    fn the_newest_version_is_kept_and_those_of_releases_that_are() {
        let mut cluster = cluster(1);
        let env = key("shop/prod");
        let mut deleted = BTreeSet::new();
        for version in 1..=130 {
            let set = Command::AddSecretVersion {
                env: env.clone(),
                bundle: "database".to_owned(),
                version,
                content: SealedVersion {
                    sealed: Vec::new(),
                    created_at: Timestamp(0),
                },
            };
            let changes = apply(&mut cluster, &set).unwrap();
            deleted.extend(changes.deleted_secret_versions);
            // Every second one is of a release.
            if version % 2 == 0 {
                let mut made = release(manifest(&[("web", process(1))]));
                made.secrets = [("database".to_owned(), version)].into();
                let deployed = deployment(&cluster, "shop/prod", made, Timestamp(0));
                let changes = apply(&mut cluster, &deployed).unwrap();
                deleted.extend(changes.deleted_secret_versions);
            }
        }
        let kept: Vec<u32> = (1..=130)
            .filter(|version| !deleted.contains(&(env.clone(), "database".to_owned(), *version)))
            .collect();
        let expected: Vec<u32> = (32..=130).step_by(2).collect();
        assert_eq!(kept, expected);
    }
}

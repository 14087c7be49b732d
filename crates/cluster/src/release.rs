//! A process of a release as the complete description of one instance.

use contract::instance::InstanceSpec;
use contract::{EnvKey, InstanceId, ProcessName, ReleaseNumber};
use std::net::Ipv6Addr;

use manifest::Manifest;

use crate::world::Release;

/// Why a release cannot become an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The manifest has no such process type.
    #[error("release {release} has no process type {process}")]
    NoProcess {
        /// The release.
        release: ReleaseNumber,
        /// The process type asked for.
        process: ProcessName,
    },
    /// The image has no manifest for this architecture (ADR 0002).
    #[error("the image of release {release} has nothing for {arch}, it has {has}")]
    NoImageFor {
        /// The release.
        release: ReleaseNumber,
        /// The node's architecture.
        arch: String,
        /// The architectures it has.
        has: String,
    },
    /// The manifest names a secret bundle, and there are none.
    #[error(
        "process {process} wants the secret bundle `{bundle}`, and this cluster has no bundle of \
         that name"
    )]
    NoSecretBundle {
        /// The process type.
        process: ProcessName,
        /// The bundle.
        bundle: String,
    },
}

/// Whether everything that the manifest refers to exists. To be asked before a release is made.
pub fn check(manifest: &Manifest) -> Result<(), ReleaseError> {
    for (name, process) in &manifest.processes {
        if let Some(bundle) = process.secrets.first() {
            return Err(ReleaseError::NoSecretBundle {
                process: name.clone(),
                bundle: bundle.clone(),
            });
        }
    }
    Ok(())
}

/// Who and where an instance is to be: what does not come from the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The instance's id.
    pub id: InstanceId,
    /// Its env.
    pub env: &'a EnvKey,
    /// Its process type.
    pub process: &'a ProcessName,
    /// The number of the release.
    pub release: ReleaseNumber,
    /// Its address, on its node and in its env's network.
    pub address: Ipv6Addr,
    /// The architecture of its node, in the OCI's words.
    pub arch: &'a str,
}

/// The complete description of one instance of a release.
pub fn instance_spec(who: &Identity<'_>, release: &Release) -> Result<InstanceSpec, ReleaseError> {
    let manifest = &release.manifest;
    let process = manifest
        .processes
        .get(who.process)
        .ok_or_else(|| ReleaseError::NoProcess {
            release: who.release,
            process: who.process.clone(),
        })?;
    let image = release
        .resolved
        .get(who.arch)
        .ok_or_else(|| ReleaseError::NoImageFor {
            release: who.release,
            arch: who.arch.to_owned(),
            has: release
                .resolved
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    if let Some(bundle) = process.secrets.first() {
        return Err(ReleaseError::NoSecretBundle {
            process: who.process.clone(),
            bundle: bundle.clone(),
        });
    }
    let mut variables = manifest.env.clone();
    variables.extend(process.env.clone());
    Ok(InstanceSpec {
        id: who.id,
        app: who.env.app.clone(),
        env: who.env.env.clone(),
        process: who.process.clone(),
        release: who.release,
        image: image.clone(),
        command: process.command.clone(),
        user: process.user.clone(),
        variables,
        ports: process.ports.clone(),
        healthcheck: process.healthcheck.clone(),
        stop: process.stop.clone(),
        restart: process.restart.clone(),
        cpu_millis: process.resources.cpu_millis,
        memory_bytes: process.resources.memory_bytes,
        scratch_bytes: process.resources.scratch_bytes,
        address: who.address,
        secrets: Vec::new(),
        volumes: process.volumes.clone(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{key, manifest, name, process, release, spec};

    #[test]
    fn the_processes_variables_win() {
        let mut web = process(1);
        web.env.insert("LEVEL".to_owned(), "debug".to_owned());
        web.env.insert("ROLE".to_owned(), "web".to_owned());
        let spec = spec(web);
        let variables: Vec<_> = spec
            .variables
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        assert_eq!(variables, ["LEVEL=debug", "ROLE=web"]);
        assert_eq!(spec.env_key(), key("shop/prod"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (env, web, ghost) = (key("shop/prod"), name("web"), name("ghost"));
        let error = |process, arch, manifest| {
            let who = Identity {
                id: InstanceId(1),
                env: &env,
                process,
                release: ReleaseNumber(4),
                address: Ipv6Addr::LOCALHOST,
                arch,
            };
            instance_spec(&who, &release(manifest))
                .unwrap_err()
                .to_string()
        };
        let plain = manifest(&[("web", process(1))]);
        assert_eq!(
            error(&ghost, "amd64", plain.clone()),
            "release v4 has no process type ghost"
        );
        assert_eq!(
            error(&web, "riscv64", plain.clone()),
            "the image of release v4 has nothing for riscv64, it has amd64"
        );
        assert_eq!(check(&plain), Ok(()));
        let mut secret = process(1);
        secret.secrets = vec!["database".to_owned()];
        let secret = manifest(&[("web", secret)]);
        let refused = check(&secret).unwrap_err().to_string();
        assert_eq!(error(&web, "amd64", secret), refused);
    }
}

//! Access to registries: flags that several commands have, and the credentials of docker.

use std::collections::{BTreeMap, BTreeSet};

use api::node::PullSecret;
use clap::Args;
use oci::parse_registry;
use registry::{
    Addresses, Credential, Credentials, DockerConfig, Limits, Registry, RegistryOptions,
};

use crate::failure::Failure;
use crate::role_options::KeptRegistries;

/// Flags for access to registries.
#[derive(Debug, Args)]
pub(crate) struct RegistryArguments {
    /// A registry, or the storage that one redirects to (`host:port`), to reach over plain HTTP; repeatable. Loopback
    /// registries always are
    #[arg(long = "insecure-registry", value_name = "HOST", value_parser = host)]
    insecure: Vec<String>,
    /// A mirror that serves a registry's images by digest, such as `docker.io=mirror.example.com`;
    /// repeatable
    #[arg(long = "registry-mirror", value_name = "REGISTRY=MIRROR", value_parser = parse_mirror)]
    mirrors: Vec<(String, String)>,
}

impl RegistryArguments {
    /// What a role keeps of them.
    pub(crate) fn kept(&self) -> KeptRegistries {
        KeptRegistries {
            insecure: self.insecure(),
            mirrors: self.mirrors(),
        }
    }

    pub(crate) fn insecure(&self) -> BTreeSet<String> {
        self.insecure.iter().cloned().collect()
    }

    /// The mirrors by the registry that they mirror, in the order of the flags.
    pub(crate) fn mirrors(&self) -> BTreeMap<String, Vec<String>> {
        let mut mirrors: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (registry, mirror) in &self.mirrors {
            mirrors
                .entry(registry.clone())
                .or_default()
                .push(mirror.clone());
        }
        mirrors
    }

    /// A client with the credentials of `docker login` (or `podman login`) of this user.
    pub(crate) fn client(&self) -> Result<Registry, Failure> {
        let credentials = match DockerConfig::find_user()? {
            Some(config) => Credentials::Docker(config),
            None => Credentials::Anonymous,
        };
        Ok(Registry::new(RegistryOptions {
            insecure: self.insecure(),
            mirrors: self.mirrors(),
            credentials,
            // Who runs the command names the registry.
            addresses: Addresses::Any,
            limits: Limits::default(),
        })?)
    }
}

fn host(text: &str) -> Result<String, String> {
    parse_registry(text).map_err(|error| error.reason.to_owned())
}

fn parse_mirror(text: &str) -> Result<(String, String), String> {
    let (registry, mirror) = text
        .split_once('=')
        .ok_or_else(|| "write REGISTRY=MIRROR: `docker.io=mirror.example.com`".to_owned())?;
    Ok((host(registry)?, host(mirror)?))
}

/// The credential of `docker login` (or `podman login`) of this user for a registry.
pub(crate) async fn docker_login(registry: &str) -> Result<PullSecret, Failure> {
    let found = match DockerConfig::find_user()? {
        Some(config) => config.find(registry).await?,
        None => None,
    };
    match found {
        Some(Credential::Basic { user, password }) => Ok(PullSecret::Basic { user, password }),
        Some(Credential::IdentityToken(token)) => Ok(PullSecret::IdentityToken { token }),
        None => Err(Failure::new(format!(
            "docker is not logged in to {registry} on this machine"
        ))
        .hint(format!(
            "run `docker login {registry}` first, or `platform registries login {registry} \
                 --username USER --password-stdin`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_name_registries_and_mirrors_as_references_do() {
        assert_eq!(
            host("https://index.docker.io/v1/"),
            Ok("docker.io".to_owned())
        );
        assert_eq!(host("[::1]:5000"), Ok("[::1]:5000".to_owned()));
        assert!(host("ghcr.io/team").is_err());
        let pair = ("docker.io".to_owned(), "10.0.0.1:5000".to_owned());
        assert_eq!(parse_mirror("docker.io=10.0.0.1:5000"), Ok(pair));
        assert!(parse_mirror("docker.io").is_err());
    }
}

//! A process of a release as the complete description of one instance.

use model::instance::{
    AttachedVolume, HealthCheck, InstanceSpec, Port, Probe, Protocol, RestartPolicy, RestartWhen,
    Runs, SecretVersion, Volume,
};
use model::{EnvKey, InstanceId, ProcessName, ReleaseNumber, route_name};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use manifest::{Manifest, Process};

pub use manifest::MAX_INSTANCES;

use crate::cluster_state::{ClusterState, Env, Instance, KeptProcess, Node, Release, VolumeKey};

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
    /// The manifest names a secret bundle that the env does not have.
    #[error(
        "process {process} wants the secret bundle `{bundle}`, and its env has no bundle of that \
         name"
    )]
    NoSecretBundle {
        /// The process type.
        process: ProcessName,
        /// The bundle.
        bundle: String,
    },
}

/// A volume that a manifest asks for with another size than it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the volume {key} has {volume_mib} MiB, and the manifest asks for {wanted_mib} MiB: a volume \
     keeps its size"
)]
pub struct OtherSize {
    /// The volume.
    pub key: VolumeKey,
    /// What it has, in MiB; manifests name whole ones.
    pub volume_mib: u64,
    /// What the manifest says, in MiB.
    pub wanted_mib: u64,
}

/// Whether the volumes there are have the sizes that the manifest asks for. To be asked before a
/// release is made.
pub fn check_volumes(
    cluster: &ClusterState,
    env: &EnvKey,
    manifest: &Manifest,
) -> Result<(), OtherSize> {
    const MIB: u64 = 1 << 20;
    for (_, volume) in cluster.volumes.of_env(env) {
        let process = manifest.processes.get(&volume.key.process);
        let wanted = process.and_then(|process| {
            let mut volumes = process.volumes.iter();
            volumes.find(|wanted| wanted.name == volume.key.name)
        });
        if let Some(wanted) = wanted
            && wanted.size_bytes != volume.size_bytes
        {
            return Err(OtherSize {
                key: volume.key.clone(),
                volume_mib: volume.size_bytes / MIB,
                wanted_mib: wanted.size_bytes / MIB,
            });
        }
    }
    Ok(())
}

/// The versions of the secret bundles that a release of this manifest has, given the newest of each
/// of the env's bundles. To be asked before a release is made.
pub fn secret_versions(
    manifest: &Manifest,
    newest: &BTreeMap<String, u32>,
) -> Result<BTreeMap<String, u32>, ReleaseError> {
    let mut versions = BTreeMap::new();
    for (name, process) in &manifest.processes {
        for bundle in &process.secrets {
            let version = newest
                .get(bundle)
                .ok_or_else(|| ReleaseError::NoSecretBundle {
                    process: name.clone(),
                    bundle: bundle.clone(),
                })?;
            versions.insert(bundle.clone(), *version);
        }
    }
    Ok(versions)
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
    /// What of the process type it runs.
    pub runs: Runs,
    /// The command of a user that it runs ([`Runs::Command`]).
    pub command: Option<&'a [String]>,
    /// Its address, on its node and in its env's network.
    pub address: Ipv6Addr,
    /// The architecture of its node, in the OCI's words.
    pub arch: &'a str,
    /// Its volumes: one for each that the process type asks for.
    pub volumes: &'a [AttachedVolume],
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
    let images = release.images_of(who.process);
    let image = images
        .get(who.arch)
        .ok_or_else(|| ReleaseError::NoImageFor {
            release: who.release,
            arch: who.arch.to_owned(),
            has: images
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    let versions = release.secrets_of(who.process);
    let version_of = |bundle: &String| match versions.get(bundle) {
        Some(version) => Ok(SecretVersion {
            name: bundle.clone(),
            version: *version,
            mode: process.secret_modes.get(bundle).copied(),
        }),
        None => Err(ReleaseError::NoSecretBundle {
            process: who.process.clone(),
            bundle: bundle.clone(),
        }),
    };
    let secrets = process
        .secrets
        .iter()
        .map(version_of)
        .collect::<Result<_, _>>()?;
    let mut variables = release.variables_of(who.process).clone();
    variables.extend(process.env.clone());
    let spec = InstanceSpec {
        id: who.id,
        app: who.env.app.clone(),
        env: who.env.env.clone(),
        process: who.process.clone(),
        release: who.release,
        runs: who.runs,
        image: image.clone(),
        command: process.command.clone(),
        user: process.user.clone(),
        init: process.init,
        variables,
        ports: process.ports.iter().map(for_node).collect(),
        healthcheck: (process.healthcheck.clone())
            .map(|check| with_host(check, manifest, who.process))
            .or_else(|| accepts(manifest, who.process)),
        liveness: (process.liveness.clone()).map(|check| with_host(check, manifest, who.process)),
        stop: process.stop.clone(),
        restart: process.restart.clone(),
        cpu_millis: process.resources.cpu_millis,
        memory_bytes: process.resources.memory_bytes,
        scratch_bytes: process.resources.scratch_bytes,
        address: who.address,
        egress: process.egress,
        secrets,
        volumes: who.volumes.to_vec(),
    };
    let command = match who.runs {
        Runs::App => return Ok(spec),
        Runs::ReleaseCommand => process.deploy.release_command.clone(),
        Runs::Command { .. } => who.command.map(<[String]>::to_vec),
    };
    Ok(InstanceSpec {
        command,
        ports: Vec::new(),
        healthcheck: None,
        liveness: None,
        restart: RestartPolicy {
            when: RestartWhen::Never,
            max_retries: 0,
        },
        volumes: Vec::new(),
        ..spec
    })
}

/// A port as nodes know it: what edges speak to it is not their concern, and agents of before need not know the word.
fn for_node(port: &Port) -> Port {
    let protocol = match port.protocol {
        Protocol::H2c => Protocol::Http,
        other => other,
    };
    Port {
        protocol,
        ..port.clone()
    }
}

/// Whether an instance may stay when a release is rolled out: it is as the release would have it, and where. What a node is labelled
/// later moves nothing: who asks for the same labels as the instance's own release is not asked again.
pub fn may_stay(
    env: &Env,
    instance: &Instance,
    node: Option<&Node>,
    number: ReleaseNumber,
    release: &Release,
) -> bool {
    let spec = &instance.spec;
    if spec.release == number {
        return true;
    }
    let asked = release.manifest.processes.get(&spec.process);
    let own = env.releases.get(&spec.release);
    let own = own.and_then(|release| release.manifest.processes.get(&spec.process));
    let is_there = asked.is_none_or(|asked| {
        own.is_some_and(|own| (&own.region, &own.labels) == (&asked.region, &asked.labels))
            || node.is_some_and(|node| has_what_is_asked(node, asked))
    });
    let arch = node.map_or("", |node| node.hardware.arch.as_str());
    is_there && is_as_in(spec, number, release, arch)
}

fn has_what_is_asked(node: &Node, asked: &Process) -> bool {
    let has = |(key, value): (&String, &String)| {
        let mut labels = node.labels.iter();
        labels.any(|(has, is)| (has.as_str(), is.as_str()) == (key, value))
    };
    asked
        .region
        .as_ref()
        .is_none_or(|region| *region == node.region)
        && asked.labels.iter().all(has)
}

/// Whether an instance is as a release would have it: nothing of its description is another, but the number of the release.
/// Such an instance stays when the release is rolled out. `arch` is its node's.
pub fn is_as_in(spec: &InstanceSpec, number: ReleaseNumber, release: &Release, arch: &str) -> bool {
    if spec.release == number {
        return true;
    }
    let env = spec.env_key();
    let who = Identity {
        id: spec.id,
        env: &env,
        process: &spec.process,
        release: spec.release,
        runs: spec.runs,
        command: spec.command.as_deref(),
        address: spec.address,
        arch,
        volumes: &spec.volumes,
    };
    // A volume that the release adds or drops is no part of the description of an instance that is there.
    let asks = release.manifest.processes.get(&spec.process);
    let asks = asks.map_or(&[][..], |process| process.volumes.as_slice());
    let has = |asked: &Volume| {
        let mut attached = spec.volumes.iter();
        attached.any(|has| {
            (&has.name, &has.path, &has.owner) == (&asked.name, &asked.path, &asked.owner)
        })
    };
    let has_volumes =
        spec.runs.is_app() && asks.len() == spec.volumes.len() && asks.iter().all(has);
    has_volumes && instance_spec(&who, release).is_ok_and(|made| made == *spec)
}

/// A release of some process types only: the others are as in the release before, down to their image, variables and secrets. A
/// process type that is in neither is not there.
pub fn keep_others(release: Release, before: &Release, only: &BTreeSet<ProcessName>) -> Release {
    let (new, old) = (release.manifest, &before.manifest);
    let mut manifest = Manifest {
        processes: BTreeMap::new(),
        routes: BTreeMap::new(),
        ..new
    };
    let mut kept = BTreeMap::new();
    for (name, process) in &old.processes {
        if !only.contains(name) {
            manifest.processes.insert(name.clone(), process.clone());
            let part = before.kept.get(name).cloned();
            kept.insert(
                name.clone(),
                part.unwrap_or_else(|| KeptProcess {
                    env: old.env.clone(),
                    resolved: before.resolved.clone(),
                    secrets: before.secrets.clone(),
                }),
            );
        }
    }
    let others = old.routes.iter();
    let others = others.filter(|(_, target)| !only.contains(&target.process));
    manifest
        .routes
        .extend(others.map(|(host, target)| (host.clone(), target.clone())));
    let is_of_these = |process: &ProcessName| only.contains(process);
    manifest.processes.extend(
        new.processes
            .into_iter()
            .filter(|(name, _)| is_of_these(name)),
    );
    let routes = new.routes.into_iter();
    manifest
        .routes
        .extend(routes.filter(|(_, target)| is_of_these(&target.process)));
    Release {
        manifest,
        kept,
        ..release
    }
}

/// The check of a process that has a route and no check of its own: it is ready when the port of the route accepts connections.
fn accepts(manifest: &Manifest, name: &ProcessName) -> Option<HealthCheck> {
    let mut routes = manifest.routes.values();
    let target = routes.find(|target| target.process == *name)?;
    Some(HealthCheck {
        probe: Probe::Tcp { port: target.port },
        interval_ms: 5_000,
        timeout_ms: 2_000,
        grace_ms: 15_000,
        healthy: 1,
        unhealthy: 3,
    })
}

/// A check of a process: an HTTP probe without a host asks for the first of the process's routes, those to its
/// port first. Many apps answer only for host names that they know, and none can know its address beforehand.
fn with_host(mut check: HealthCheck, manifest: &Manifest, name: &ProcessName) -> HealthCheck {
    if let Probe::Http {
        port,
        host: host @ None,
        ..
    } = &mut check.probe
    {
        let routes = manifest.routes.iter();
        let mine =
            routes.filter(|(route, target)| target.process == *name && route_name::is_host(route));
        let first = mine.min_by_key(|(_, target)| target.port != *port);
        *host = first.map(|(host, _)| host.clone());
    }
    check
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{
        InstanceFixture, MIB, attach, cluster, database, deploy, key, manifest, name, process,
        release, spec,
    };
    use model::Timestamp;

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
    fn case_a_health_check_asks_for_the_first_route_of_its_process() {
        let host = |routes: &[(&str, &str, u16)], own: Option<&str>| {
            let mut web = process(1);
            if let Some(HealthCheck {
                probe: Probe::Http { host, .. },
                ..
            }) = &mut web.healthcheck
            {
                *host = own.map(str::to_owned);
            }
            let mut manifest = manifest(&[("web", web.clone())]);
            manifest.routes = routes
                .iter()
                .map(|(host, process, port)| {
                    let process = name(process);
                    let port = *port;
                    let target = manifest::RouteTarget {
                        process,
                        port,
                        settings: model::RouteSettings::default(),
                    };
                    ((*host).to_owned(), target)
                })
                .collect();
            match with_host(web.healthcheck.clone().unwrap(), &manifest, &name("web")).probe {
                Probe::Http { host, .. } => host,
                probe => panic!("{probe:?}"),
            }
        };
        let routes = [
            ("admin.example.com", "admin", 8080),
            ("b.example.com", "web", 9000),
            ("c.example.com", "web", 8080),
            ("d.example.com", "web", 8080),
        ];
        assert_eq!(host(&routes, None).as_deref(), Some("c.example.com"));
        assert_eq!(host(&routes[..2], None).as_deref(), Some("b.example.com"));
        assert_eq!(host(&routes[..1], None), None);
        let own = host(&routes, Some("own.example.com"));
        assert_eq!(own.as_deref(), Some("own.example.com"));
    }

    #[test]
    fn a_release_error_names_what_the_release_lacks() {
        let (env, web, ghost) = (key("shop/prod"), name("web"), name("ghost"));
        let error = |process, arch, manifest| {
            let who = Identity {
                id: InstanceId(1),
                env: &env,
                process,
                release: ReleaseNumber(4),
                runs: Runs::App,
                command: None,
                address: Ipv6Addr::LOCALHOST,
                arch,
                volumes: &[],
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
        let mut secret = process(1);
        secret.secrets = vec!["database".to_owned()];
        let secret = manifest(&[("web", secret)]);
        let newest = BTreeMap::from([("other".to_owned(), 2)]);
        let refused = secret_versions(&secret, &newest).unwrap_err().to_string();
        assert_eq!(error(&web, "amd64", secret), refused);
        assert_eq!(secret_versions(&plain, &newest), Ok(BTreeMap::new()));
    }

    #[test]
    fn a_release_has_the_versions_of_its_day() {
        let mut web = process(1);
        web.secrets = vec!["database".to_owned()];
        let manifest = manifest(&[("web", web)]);
        let newest = BTreeMap::from([("database".to_owned(), 3), ("other".to_owned(), 2)]);
        let mut release = release(manifest);
        release.secrets = secret_versions(&release.manifest, &newest).unwrap();
        assert_eq!(
            release.secrets,
            BTreeMap::from([("database".to_owned(), 3)])
        );
        let who = Identity {
            id: InstanceId(1),
            env: &key("shop/prod"),
            process: &name("web"),
            release: ReleaseNumber(1),
            runs: Runs::App,
            command: None,
            address: Ipv6Addr::LOCALHOST,
            arch: "amd64",
            volumes: &[],
        };
        let spec = instance_spec(&who, &release).unwrap();
        assert_eq!(
            (spec.secrets[0].name.as_str(), spec.secrets[0].version),
            ("database", 3)
        );
    }

    #[test]
    fn a_volume_keeps_its_size() {
        let mut cluster = cluster(1);
        let mut web = database(1);
        let text = |cluster: &ClusterState, web: &manifest::Process| {
            let manifest = manifest(&[("web", web.clone())]);
            let checked = check_volumes(cluster, &key("shop/prod"), &manifest);
            checked.map_err(|refused| refused.to_string())
        };
        assert_eq!(text(&cluster, &web), Ok(()));
        deploy(
            &mut cluster,
            "shop/prod",
            manifest(&[("web", web.clone())]),
            Timestamp(0),
        );
        let put = InstanceFixture {
            id: 1,
            env: "shop/prod",
            process: "web",
            release: 1,
            node: 1,
        };
        put.into_cluster(&mut cluster);
        attach(&mut cluster, 1, 0);
        assert_eq!(text(&cluster, &web), Ok(()));
        web.volumes[0].size_bytes += MIB;
        assert_eq!(
            text(&cluster, &web).unwrap_err(),
            "the volume data 0 of shop/prod web has 1024 MiB, and the manifest asks for 1025 MiB: a \
             volume keeps its size"
        );
    }
}

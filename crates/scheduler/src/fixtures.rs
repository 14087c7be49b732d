//! Cluster states for tests.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a test fails by panicking; its fixtures are named after what they are"
)]

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use api::enrollment::{Hardware, InstanceOverhead};
use api::node::InstanceReport;
use api::protocol::PROTOCOL_VERSION;
use api::user::RolloutPhase;
use manifest::{Deploy, Manifest, Process, Resources, RouteTarget, Scaling, Strategy};
use model::instance::{
    AttachedVolume, ExitEvent, HealthCheck, InstanceSpec, InstanceState, PinnedImage, Port, Probe,
    Protocol, RestartPolicy, RestartWhen, StopPolicy,
};
use model::{
    Digest, EnvKey, EnvNetwork, Incarnation, InstanceId, NodeId, ProcessName, ReleaseNumber,
    Timestamp, VolumeId,
};

use crate::access::Access;
use crate::apply::{Command, apply};
use crate::cluster_state::{
    ClusterSettings, ClusterState, Env, Instance, InstancePhase, MemberIdentity, MemberKeys, Node,
    Presence, Release, Scheduling, Volume, VolumeKey, VolumePhase,
};
use crate::host_claims::HostClaims;
use crate::instances::{Instances, Volumes};
use crate::keyed_runs::KeyedRuns;
use crate::numbers::FreedNumbers;
use crate::release::{Identity, instance_spec};
use crate::rollout;
use crate::table::Table;
use crate::underlay::RecordedUnderlay;

pub const MIB: u64 = 1 << 20;

pub fn prefix() -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x1111, 0x2222, 0, 0, 0, 0, 0)
}

pub fn key(text: &str) -> EnvKey {
    let (app, env) = text.split_once('/').unwrap();
    EnvKey {
        app: app.parse().unwrap(),
        env: env.parse().unwrap(),
    }
}

pub fn name(text: &str) -> ProcessName {
    text.parse().unwrap()
}

pub fn digest(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

pub fn node(number: u16, memory_mib: u64) -> (NodeId, Node) {
    let hardware = Hardware {
        arch: "amd64".to_owned(),
        cpus: 4,
        memory_bytes: memory_mib * MIB,
        disk: None,
        overhead: Some(InstanceOverhead::default()),
    };
    let node = Node {
        labels: BTreeMap::new(),
        org: None,
        identity: MemberIdentity::default(),
        approved: hardware.clone(),
        unknown: BTreeMap::new(),
        claimed: None,
        name: format!("node-{number}"),
        region: "local".to_owned(),
        wireguard_key: Some(format!("wg{number}")),
        underlay: Some(RecordedUnderlay {
            endpoint: Some(SocketAddr::from(([10, 0, 0, 1], 40_000 + number))),
            ..RecordedUnderlay::default()
        }),
        driver: None,
        egress: None,
        seen_at: None,
        enrolled_at: Timestamp(0),
        hardware,
        presence: Presence::Heard {
            since: Timestamp(0),
            protocol: PROTOCOL_VERSION,
        },
        scheduling: Scheduling::Schedulable,
        generation: 0,
    };
    (NodeId(number), node)
}

/// A cluster of `nodes` nodes of 4 GiB, and nothing on them.
pub fn cluster(nodes: u16) -> ClusterState {
    ClusterState {
        settings: ClusterSettings {
            id: "cluster-1".to_owned(),
            prefix: prefix(),
            mtu: 1420,
            mode: overlay::topology::Mode::default(),
            private_networks: overlay::private_networks::PrivateNetworks::default(),
        },
        nodes: (1..=nodes).map(|number| node(number, 4096)).collect(),
        edges: Table::new(),
        tokens: Table::new(),
        access: Access::default(),
        last_node: nodes,
        last_edge: 0,
        freed: FreedNumbers::default(),
        envs: Table::new(),
        host_claims: HostClaims::default(),
        instances: Instances::default(),
        volumes: Volumes::default(),
        secrets: Table::new(),
        ended: Table::new(),
        incarnation: Incarnation(1),
        counting_since: Timestamp(0),
        last_network: EnvNetwork(0),
        last_membership: 0,
        event_log: crate::event_log::EventLog::default(),
        member_keys: MemberKeys::default(),
        unreadable: Vec::new(),
    }
}

/// A user, at the beginning of time.
pub fn origin() -> crate::events::Origin {
    crate::events::Origin {
        by: api::event::Actor::User("ann".parse().unwrap()),
        at: Timestamp(0),
    }
}

/// A node that is not heard any more.
pub fn lapse(cluster: &mut ClusterState, node: u16, since: Timestamp) {
    let node = cluster.nodes.get_mut(&NodeId(node)).unwrap();
    node.presence = Presence::Lapsed { since };
}

/// A process of `min` instances of 256 MiB, with an HTTP port and a health check.
pub fn process(min: u32) -> Process {
    Process {
        command: None,
        user: None,
        init: None,
        env: BTreeMap::new(),
        secrets: Vec::new(),
        secret_modes: BTreeMap::new(),
        egress: model::instance::EgressPolicy::All,
        stop: StopPolicy {
            signal: None,
            timeout_ms: 10_000,
        },
        restart: RestartPolicy {
            when: RestartWhen::Always,
            max_retries: 10,
        },
        ports: vec![Port {
            port: 8080,
            protocol: Protocol::Http,
            proxy_protocol: None,
        }],
        healthcheck: Some(HealthCheck {
            probe: Probe::Http {
                port: 8080,
                path: "/".to_owned(),
                host: None,
                headers: BTreeMap::new(),
            },
            interval_ms: 1000,
            timeout_ms: 1000,
            grace_ms: 5000,
            healthy: 2,
            unhealthy: 3,
        }),
        liveness: None,
        region: None,
        labels: BTreeMap::new(),
        resources: Resources {
            cpu_millis: 100,
            memory_bytes: 256 * MIB,
            scratch_bytes: 64 * MIB,
        },
        scaling: Scaling { min, max: 20 },
        volumes: Vec::new(),
        deploy: Deploy {
            strategy: Strategy::Rolling,
            max_unavailable: 0,
            max_surge: 1,
            auto_revert: true,
            min_healthy_ms: 0,
            deadline_ms: None,
            release_command: None,
        },
    }
}

/// A process of `min` instances, each with a volume `data` of 1 GiB.
pub fn database(min: u32) -> Process {
    Process {
        volumes: vec![model::instance::Volume {
            path: None,
            owner: None,
            name: "data".to_owned(),
            size_bytes: 1024 * MIB,
        }],
        ..process(min)
    }
}

/// A process of `min` instances that listens nowhere and has no health check.
pub fn worker(min: u32) -> Process {
    Process {
        ports: Vec::new(),
        healthcheck: None,
        ..process(min)
    }
}

pub fn manifest(processes: &[(&str, Process)]) -> Manifest {
    Manifest {
        app: "shop".parse().unwrap(),
        image: None,
        env: BTreeMap::from([("LEVEL".to_owned(), "info".to_owned())]),
        processes: processes
            .iter()
            .map(|(text, process)| (name(text), process.clone()))
            .collect(),
        routes: processes
            .iter()
            .filter(|(_, process)| !process.ports.is_empty())
            .map(|(text, process)| {
                let target = RouteTarget {
                    process: name(text),
                    port: process.ports[0].port,
                    settings: model::RouteSettings::default(),
                };
                (format!("{text}.example.com"), target)
            })
            .collect(),
    }
}

pub fn release(manifest: Manifest) -> Release {
    let image = PinnedImage {
        registry: "127.0.0.1:5000".to_owned(),
        repository: "shop".to_owned(),
        digest: digest(7),
    };
    Release {
        manifest,
        image_ref_digest: digest(7),
        resolved: BTreeMap::from([("amd64".to_owned(), image)]),
        secrets: BTreeMap::new(),
        kept: BTreeMap::new(),
        created_at: Timestamp(0),
        by: None,
        image: None,
        rollback_to: None,
        idempotency_key: None,
        idempotency_call: None,
    }
}

/// Deploys the next release, as the control plane does.
pub fn deploy(cluster: &mut ClusterState, env: &str, manifest: Manifest, now: Timestamp) {
    let command = deployment(cluster, env, release(manifest), now);
    apply(cluster, &command).unwrap();
}

/// The number of the next release.
pub fn next_release(cluster: &ClusterState, env: &str) -> ReleaseNumber {
    let known = cluster.envs.get(&key(env));
    let last = known.and_then(|env| env.releases.keys().next_back());
    ReleaseNumber(last.map_or(1, |last| last.0 + 1))
}

/// The command that deploys a release.
pub fn deployment(cluster: &ClusterState, env: &str, release: Release, now: Timestamp) -> Command {
    let known = cluster.envs.get(&key(env));
    let number = next_release(cluster, env);
    let begun = rollout::begin(known.map(|e| &e.rollout), number, now);
    let mut release = release;
    // Each release is another one for each process.
    if known.is_some() {
        (release.manifest.env).insert("RELEASE".to_owned(), number.to_string());
    }
    match known {
        Some(_) => Command::AddRelease {
            env: key(env),
            number,
            release: Box::new(release),
            rollout: begun,
        },
        None => Command::CreateEnv {
            key: key(env),
            env: Box::new(Env {
                network: EnvNetwork(cluster.last_network.0 + 1),
                releases: Table::from([(number, release)]),
                rollout: begun,
                scale: BTreeMap::new(),
                destroying: false,
                outcomes: BTreeMap::new(),
                runs: KeyedRuns::default(),
            }),
        },
    }
}

/// An instance that a test puts into a cluster.
pub struct InstanceFixture {
    pub id: u32,
    pub env: &'static str,
    pub process: &'static str,
    pub release: u32,
    pub node: u16,
}

impl InstanceFixture {
    pub fn into_cluster(self, cluster: &mut ClusterState) -> &mut Instance {
        let env_key = key(self.env);
        let env = &cluster.envs[&env_key];
        let (id, node) = (InstanceId(self.id), NodeId(self.node));
        let who = Identity {
            runs: model::instance::Runs::App,
            command: None,
            id,
            env: &env_key,
            process: &name(self.process),
            release: ReleaseNumber(self.release),
            address: overlay::address_plan::instance_address(prefix(), node, env.network, id),
            arch: "amd64",
            volumes: &[],
        };
        let spec = instance_spec(&who, &env.releases[&ReleaseNumber(self.release)]).unwrap();
        let instance = Instance::new(spec, node, Timestamp(0));
        cluster.instances.insert(id, instance);
        cluster.instances.get_mut(&id).unwrap()
    }
}

/// Gives an instance of [`database`] the volume of this ordinal; made now when there is none.
pub fn attach(cluster: &mut ClusterState, instance: u32, ordinal: u32) {
    let taken = cluster.instances.remove(&InstanceId(instance)).unwrap();
    let mut instance = (*taken).clone();
    let key = VolumeKey {
        env: instance.spec.env_key(),
        process: instance.spec.process.clone(),
        name: "data".to_owned(),
        ordinal,
    };
    let known = cluster.volumes.iter().find(|(_, volume)| volume.key == key);
    let id = known.map_or(VolumeId(0xd0 + ordinal), |(id, _)| *id);
    if !cluster.volumes.contains_key(&id) {
        let volume = Volume {
            key,
            node: instance.node,
            size_bytes: 1024 * MIB,
            created_at: Timestamp(0),
            phase: VolumePhase::Made,
        };
        cluster.volumes.insert(id, volume);
    }
    let volume = &cluster.volumes[&id];
    instance.node = volume.node;
    std::sync::Arc::make_mut(&mut instance.spec).volumes = vec![AttachedVolume {
        path: None,
        owner: None,
        id,
        name: "data".to_owned(),
        ordinal,
        size_bytes: volume.size_bytes,
        made: volume.is_made(),
    }];
    cluster.instances.insert(instance.spec.id, instance);
}

impl Instance {
    /// As if its node had reported it ready.
    pub fn make_ready(&mut self) -> &mut Self {
        self.phase = InstancePhase::Established;
        self.report = Some(report(self.spec.id, READY));
        self
    }
}

impl Instance {
    /// As if the planner had terminated it.
    pub fn terminate(&mut self) -> &mut Self {
        self.phase = InstancePhase::Terminating {
            was_ready: self.was_ready(),
            reason: "a test".to_owned(),
        };
        self
    }
}

/// A running instance that is not ready.
pub const RUNNING: InstanceState = InstanceState::Running {
    ready: false,
    started_at: None,
};

/// A running instance that is ready.
pub const READY: InstanceState = InstanceState::Running {
    ready: true,
    started_at: None,
};

pub fn report(id: InstanceId, state: InstanceState) -> InstanceReport {
    InstanceReport::new(id, state)
}

pub fn exit(code: u8) -> ExitEvent {
    ExitEvent {
        exit_code: code,
        signal: None,
        oom_killed: false,
        requested_stop: false,
        at: Timestamp(0),
    }
}

/// A spec for what needs no cluster state.
pub fn spec(process: Process) -> InstanceSpec {
    let mut cluster = cluster(1);
    deploy(
        &mut cluster,
        "shop/prod",
        manifest(&[("web", process)]),
        Timestamp(0),
    );
    let put = InstanceFixture {
        id: 0x1f2e_3d4c,
        env: "shop/prod",
        process: "web",
        release: 1,
        node: 1,
    };
    put.into_cluster(&mut cluster).spec.as_ref().clone()
}

/// A cluster as text, for people: rollouts and instances.
pub fn show(cluster: &ClusterState) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (key, env) in &cluster.envs {
        let r = &env.rollout;
        let phase = match r.phase {
            RolloutPhase::Rolling => "rolling",
            RolloutPhase::Done => "done",
            RolloutPhase::Failed => "failed",
            RolloutPhase::Reverted => "reverted",
            RolloutPhase::Superseded => "superseded",
        };
        let _ = writeln!(text, "{key} {} {phase}, wants {}", r.release, r.wanted);
        for line in r.reason.lines() {
            let _ = writeln!(text, "  | {line}");
        }
    }
    let mut lines: Vec<String> = Vec::new();
    for instance in cluster.instances.values() {
        let spec = &instance.spec;
        let state = match &instance.report {
            None => "new".to_owned(),
            Some(r) if r.state.is_ready() => "ready".to_owned(),
            Some(r) => r.state.to_string(),
        };
        let terminating = if instance.is_terminating() {
            " terminating"
        } else {
            ""
        };
        let (env, process, release) = (spec.env_key(), &spec.process, spec.release);
        lines.push(format!(
            "{env} {process} {release} {} {state}{terminating}",
            instance.node
        ));
    }
    lines.sort();
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    text
}

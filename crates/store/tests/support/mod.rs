//! A store with a cluster in it, and things to put into it.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::Path;

use api::enrollment::{EnrollRequest, EnrollRole, Hardware, Member};
use api::node::{DriverChoice, EgressState, InstanceReport, NodeReport};
use manifest::Manifest;
use model::instance::{InstanceState, PinnedImage};
use model::{Digest, EnvKey, EnvNetwork, Generation, InstanceId, NodeId, ReleaseNumber, Timestamp};
use overlay::address_plan::instance_address;
use scheduler::action::{Action, PlacedInstance};
use scheduler::apply::{Command, apply};
use scheduler::changes::Changes;
use scheduler::cluster_state::{ClusterSettings, Env, Release};
use scheduler::release::{Identity, instance_spec};
use scheduler::rollout::begin;
use store::{ClusterRecord, Store, StoreError};

pub(crate) const NOW: Timestamp = Timestamp(1_700_000_000_000);
pub(crate) const ONE: ReleaseNumber = ReleaseNumber(1);

pub(crate) fn settings() -> ClusterSettings {
    ClusterSettings {
        id: "c1".to_owned(),
        prefix: "fd12:3456:789a::".parse().unwrap(),
        mtu: 1420,
    }
}

pub(crate) async fn open(folder: &Path) -> Store {
    let url = format!("sqlite:{}", folder.join("platform.db").display());
    let store = Store::open(&url).await.unwrap();
    let record = ClusterRecord {
        settings: settings(),
        ca_cert_pem: "certificate".to_owned(),
        ca_key_pem: "key".to_owned(),
    };
    store.create_cluster(&record, NOW).await.unwrap();
    store
}

pub(crate) fn hardware() -> Hardware {
    Hardware {
        arch: "amd64".to_owned(),
        cpus: 4,
        memory_bytes: 8 << 30,
        ..Hardware::default()
    }
}

pub(crate) fn request(name: &str) -> EnrollRequest {
    EnrollRequest {
        role: None,
        token: "the store sees its hash".to_owned(),
        name: name.to_owned(),
        region: "home".to_owned(),
        csr_pem: String::new(),
        wireguard_public_key: Some("key".to_owned()),
        hardware: hardware(),
    }
}

pub(crate) async fn add_node(store: &Store, name: &str) -> NodeId {
    let mut hash = [0; 32];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    let later = Timestamp(NOW.0 + 1000);
    store
        .add_enrollment_token(&hash, EnrollRole::Node, later, NOW)
        .await
        .unwrap();
    match store
        .enroll(&hash, &request(name), NOW)
        .await
        .unwrap()
        .member
    {
        Member::Node(id) => id,
        Member::Edge(id) => panic!("a node became {id}"),
    }
}

pub(crate) fn env_key(app: &str) -> EnvKey {
    EnvKey {
        app: app.parse().unwrap(),
        env: "prod".parse().unwrap(),
    }
}

pub(crate) fn release(app: &str) -> Release {
    let text = format!("app = \"{app}\"\n[processes.web]\n");
    let image = PinnedImage {
        registry: "127.0.0.1:5000".to_owned(),
        repository: app.to_owned(),
        digest: Digest::from_sha256(&[1; 32]),
    };
    Release {
        manifest: Manifest::from_toml("platform.toml", &text)
            .unwrap()
            .manifest,
        image_ref_digest: image.digest.clone(),
        resolved: BTreeMap::from([("amd64".to_owned(), image)]),
        secrets: BTreeMap::new(),
        created_at: NOW,
    }
}

pub(crate) fn env(app: &str, network: u32) -> Env {
    Env {
        network: EnvNetwork(network),
        releases: BTreeMap::from([(ONE, release(app))]),
        rollout: begin(None, ONE, NOW),
        scale: BTreeMap::new(),
        destroying: false,
    }
}

pub(crate) fn placed(app: &str, network: u32, id: InstanceId, node: NodeId) -> Command {
    let key = env_key(app);
    let process = "web".parse().unwrap();
    let who = Identity {
        id,
        env: &key,
        process: &process,
        release: ONE,
        address: instance_address(settings().prefix, node, EnvNetwork(network), id),
        arch: "amd64",
        volumes: &[],
    };
    Command::Plan(Action::Create(Box::new(PlacedInstance {
        spec: instance_spec(&who, &release(app)).unwrap(),
        node,
        created_at: NOW,
    })))
}

/// Applies these commands and writes what they change.
pub(crate) async fn write(store: &Store, commands: Vec<Command>) {
    update(store, commands).await.unwrap();
}

pub(crate) async fn update(store: &Store, commands: Vec<Command>) -> Result<(), StoreError> {
    let applied = store.update(|cluster| {
        let mut changes = Changes::default();
        for command in &commands {
            changes.then(apply(cluster, command)?);
        }
        Ok::<_, StoreError>((changes, ()))
    });
    applied.await
}

/// An env that is created.
pub(crate) fn created(app: &str, network: u32) -> Command {
    Command::CreateEnv {
        key: env_key(app),
        env: Box::new(env(app, network)),
    }
}

pub(crate) fn report(generation: Generation, instances: Vec<InstanceReport>) -> NodeReport {
    NodeReport {
        generation,
        egress: Some(EgressState {
            on: false,
            reason: "no uplink".to_owned(),
        }),
        driver: DriverChoice {
            name: "qemu-tcg".to_owned(),
            reason: "no KVM".to_owned(),
        },
        hardware: hardware(),
        instances,
        volumes: Vec::new(),
        images: Vec::new(),
    }
}

pub(crate) fn running(id: InstanceId) -> InstanceReport {
    InstanceReport {
        id,
        state: InstanceState::Running,
        ready: true,
        restarts: 0,
        detail: String::new(),
        last_exit: None,
        failure: None,
        log_tail: Vec::new(),
        started_at: Some(NOW),
        preparing_ms: 0,
    }
}

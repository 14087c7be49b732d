//! A store with a cluster in it, and things to put into it.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod postgres;

use model::Incarnation;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use api::enrollment::{EnrollRequest, EnrollRole, Hardware, Member};
use api::node::{DriverChoice, EgressState, InstanceReport, NodeReport};
use manifest::Manifest;
use model::instance::{InstanceState, PinnedImage};
use model::{
    Digest, EnvKey, EnvNetwork, Generation, InstanceId, NodeId, PublicKey, ReleaseNumber, Term,
    Timestamp,
};
use overlay::address_plan::instance_address;
use scheduler::action::{Action, PlacedInstance};
use scheduler::apply::{Command, Refused, apply};
use scheduler::changes::Changes;
use scheduler::cluster_state::TokenRecord;
use scheduler::cluster_state::{ClusterSettings, Env, Release, TokenHash};
use scheduler::enrollment::enroll;
use scheduler::release::{Identity, instance_spec};
use scheduler::rollout::begin;
use scheduler::table::Table;
use store::{ClusterRecord, Holder, Store};

pub(crate) const NOW: Timestamp = Timestamp(1_700_000_000_000);
pub(crate) const ONE: ReleaseNumber = ReleaseNumber(1);

pub(crate) fn settings() -> ClusterSettings {
    ClusterSettings {
        id: "c1".to_owned(),
        prefix: "fd12:3456:789a::".parse().unwrap(),
        mtu: 1420,
        mode: overlay::topology::Mode::default(),
        private_networks: overlay::private_networks::PrivateNetworks::default(),
    }
}

/// Where a test has its store.
pub(crate) enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub(crate) async fn postgres() -> Self {
        Self::Postgres(postgres::database().await)
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => sqlite_url(folder.path()),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// The store of a server that starts: it leads.
    pub(crate) async fn open(&self) -> LedStore {
        open_at(&self.url()).await
    }
}

/// A store and the term in which it is written.
pub(crate) struct LedStore {
    store: Store,
    pub(crate) term: Term,
}

impl std::ops::Deref for LedStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// Runs each of these tests on both stores.
#[allow(unused_macros, reason = "each test file uses a part")]
macro_rules! on_both_stores {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(super::support::Place::sqlite()).await;
                }
            )*
        }
        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(super::support::Place::postgres().await).await;
                }
            )*
        }
    };
}
#[allow(unused_imports, reason = "each test file uses a part")]
pub(crate) use on_both_stores;

pub(crate) fn sqlite_url(folder: &Path) -> String {
    format!("sqlite:{}", folder.join("platform.db").display())
}

pub(crate) async fn open(folder: &Path) -> LedStore {
    open_at(&sqlite_url(folder)).await
}

pub(crate) async fn open_at(url: &str) -> LedStore {
    let store = Store::open(url).await.unwrap();
    let record = ClusterRecord {
        settings: settings(),
        ca_cert_pem: "certificate".to_owned(),
        ca_before_pem: String::new(),
        ca_cross_pem: String::new(),
        keys: store::StoredKeys::Wrapped {
            ca_key: b"key".to_vec(),
            seal_key: b"seal".to_vec(),
        },
    };
    store
        .create_cluster(&record, Incarnation(1), NOW)
        .await
        .unwrap();
    let term = lead(&store).await;
    LedStore { store, term }
}

/// Takes the lease, whether it has expired or not: whoever had it is gone.
pub(crate) async fn lead(store: &Store) -> Term {
    if !store.is_shared() {
        return Term::default();
    }
    let (seen, _) = store.lease().await.unwrap();
    let holder = Holder {
        id: "a test".to_owned(),
        address: "https://127.0.0.1:1".to_owned(),
    };
    let taken = store.acquire_lease(seen, &holder, Duration::from_secs(600));
    taken.await.unwrap().unwrap()
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
        wireguard_public_key: Some(format!("key of {name}")),
        hardware: hardware(),
        sent_at: None,
        underlay: None,
    }
}

pub(crate) async fn add_node(store: &LedStore, name: &str) -> NodeId {
    let mut hash = [0; 32];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    match add_member(store, hash, EnrollRole::Node, name).await {
        Member::Node(id) => id,
        Member::Edge(id) => panic!("a node became {id}"),
    }
}

/// Makes a token and lets a machine in by it.
pub(crate) async fn add_member(
    store: &LedStore,
    hash: TokenHash,
    role: EnrollRole,
    name: &str,
) -> Member {
    let token = TokenRecord::new(role, Timestamp(NOW.0 + 1000));
    let add = Command::AddToken {
        hash,
        token,
        now: NOW,
    };
    write(store, vec![add]).await;
    let cluster = store.load().await.unwrap();
    let key = PublicKey::of_der(&hash).unwrap();
    let request = EnrollRequest {
        wireguard_public_key: Some(format!("of {key}")),
        ..request(name)
    };
    let (join, enrolled) = enroll(&cluster, hash, &key, &request, None, NOW).unwrap();
    write(store, vec![join.unwrap()]).await;
    enrolled.member
}

/// Takes a node's report. True when it changed anything.
pub(crate) async fn reported(
    store: &LedStore,
    node: NodeId,
    report: &NodeReport,
    now: Timestamp,
) -> Result<bool, Refused> {
    let mut cluster = store.load().await.unwrap();
    let command = Command::Report {
        node,
        report: Box::new(report.clone()),
        now,
    };
    let changes = apply(&mut cluster, &command)?;
    store.write(store.term, &changes).await.unwrap();
    Ok(!changes.is_empty())
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
        kept: BTreeMap::new(),
        created_at: NOW,
        by: None,
        image: None,
        rollback_to: None,
        idempotency_key: None,
        idempotency_call: None,
    }
}

pub(crate) fn env(app: &str, network: u32) -> Env {
    Env {
        network: EnvNetwork(network),
        releases: Table::from([(ONE, release(app))]),
        rollout: begin(None, ONE, NOW),
        scale: BTreeMap::new(),
        destroying: false,
        outcomes: BTreeMap::new(),
        runs: scheduler::keyed_runs::KeyedRuns::default(),
    }
}

pub(crate) fn placed(app: &str, network: u32, id: InstanceId, node: NodeId) -> Command {
    let key = env_key(app);
    let process = "web".parse().unwrap();
    let who = Identity {
        runs: model::instance::Runs::App,
        command: None,
        id,
        env: &key,
        process: &process,
        release: ONE,
        address: instance_address(settings().prefix, node, EnvNetwork(network), id),
        arch: "amd64",
        volumes: &[],
    };
    Command::Plan(Action::Create(Box::new(PlacedInstance {
        spec: std::sync::Arc::new(instance_spec(&who, &release(app)).unwrap()),
        node,
        created_at: NOW,
    })))
}

/// Applies these commands and writes what they change.
pub(crate) async fn write(store: &LedStore, commands: Vec<Command>) {
    update(store, commands).await.unwrap();
}

pub(crate) async fn update(store: &LedStore, commands: Vec<Command>) -> Result<(), Refused> {
    let mut cluster = store.load().await.unwrap();
    let mut changes = Changes::default();
    for command in &commands {
        changes.then(apply(&mut cluster, command)?);
    }
    store.write(store.term, &changes).await.unwrap();
    // What is applied is what is written.
    let stored = store.load().await.unwrap();
    assert_eq!(stored, cluster);
    Ok(())
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
        highest_network: EnvNetwork::default(),
        images: Vec::new(),
    }
}

pub(crate) fn running(id: InstanceId) -> InstanceReport {
    let state = InstanceState::Running {
        ready: true,
        started_at: Some(NOW),
    };
    InstanceReport::new(id, state)
}

//! Reading the cluster state.

use std::collections::{BTreeMap, BTreeSet};

use api::node::{DriverChoice, EgressState};
use model::{EnvKey, EnvNetwork, Generation, InstanceId, NodeId, ReleaseNumber, Timestamp};
use scheduler::cluster_state::{ClusterState, Env, Instance, Node};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use crate::rows::{env_key, from_json, number};
use crate::secrets::newest_versions;
use crate::volumes::load_volumes;
use crate::{Store, StoreError};

/// The cluster state at one moment, with what is not the planner's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What the planner looks at.
    pub cluster: ClusterState,
    /// More about each node.
    pub nodes: BTreeMap<NodeId, NodeDetail>,
    /// The newest version of each secret bundle of each env, those of envs that are not there yet too.
    pub secrets: BTreeMap<EnvKey, BTreeMap<String, u32>>,
    /// The highest env network that was ever given out; 0 before the first.
    pub last_network: EnvNetwork,
}

/// What the planner does not look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDetail {
    /// The VMM driver it uses; absent until it reported.
    pub driver: Option<DriverChoice>,
    /// Whether its instances reach networks outside of the cluster; absent until it reported.
    pub egress: Option<EgressState>,
    /// When it last reported, to within [`crate::SEEN_GRANULARITY_MS`].
    pub seen_at: Option<Timestamp>,
}

impl Store {
    /// The cluster state as it is now. `online` are the nodes that reported lately, which only their
    /// listener knows.
    pub async fn snapshot(&self, online: &BTreeSet<NodeId>) -> Result<Snapshot, StoreError> {
        let mut transaction = self
            .reader
            .begin()
            .await
            .map_err(StoreError::query("begin to read"))?;
        let snapshot = load(&mut transaction, online).await?;
        transaction
            .rollback()
            .await
            .map_err(StoreError::query("end reading"))?;
        Ok(snapshot)
    }
}

/// Reads everything inside the caller's transaction.
pub(crate) async fn load(
    db: &mut SqliteConnection,
    online: &BTreeSet<NodeId>,
) -> Result<Snapshot, StoreError> {
    let row = sqlx::query("SELECT settings_json, last_network FROM cluster")
        .fetch_optional(&mut *db)
        .await
        .map_err(StoreError::query("read the cluster's settings"))?
        .ok_or(StoreError::NoCluster)?;
    let (cluster_nodes, nodes) = load_nodes(&mut *db, online).await?;
    let cluster = ClusterState {
        settings: from_json("the cluster's settings", row.get(0))?,
        nodes: cluster_nodes,
        envs: load_envs(&mut *db).await?,
        instances: load_instances(&mut *db).await?,
        volumes: load_volumes(&mut *db).await?,
    };
    Ok(Snapshot {
        cluster,
        nodes,
        secrets: newest_versions(&mut *db).await?,
        last_network: EnvNetwork(number("an env's network", row.get(1))?),
    })
}

type Nodes = (BTreeMap<NodeId, Node>, BTreeMap<NodeId, NodeDetail>);

async fn load_nodes(
    db: &mut SqliteConnection,
    online: &BTreeSet<NodeId>,
) -> Result<Nodes, StoreError> {
    let rows = sqlx::query(
        "SELECT id, name, region, hardware_json, driver_json, seen_at, generation, egress_json FROM nodes",
    )
    .fetch_all(db)
    .await
    .map_err(StoreError::query("read the nodes"))?;
    let mut nodes = BTreeMap::new();
    let mut details = BTreeMap::new();
    for row in rows {
        let id = NodeId(number("a node's number", row.get(0))?);
        nodes.insert(
            id,
            Node {
                name: row.get(1),
                region: row.get(2),
                hardware: from_json("a node's hardware", row.get(3))?,
                online: online.contains(&id),
                generation: Generation(number("a generation", row.get(6))?),
            },
        );
        let driver = row
            .get::<Option<&str>, _>(4)
            .map(|text| from_json("a node's driver", text))
            .transpose()?;
        let seen_at = row
            .get::<Option<i64>, _>(5)
            .map(|at| number("a time", at).map(Timestamp))
            .transpose()?;
        let egress = row
            .get::<Option<&str>, _>(7)
            .map(|text| from_json("a node's egress", text))
            .transpose()?;
        let detail = NodeDetail {
            driver,
            egress,
            seen_at,
        };
        details.insert(id, detail);
    }
    Ok((nodes, details))
}

async fn load_envs(db: &mut SqliteConnection) -> Result<BTreeMap<EnvKey, Env>, StoreError> {
    let rows =
        sqlx::query("SELECT app, env, network, rollout_json, scale_json, destroying FROM envs")
            .fetch_all(&mut *db)
            .await
            .map_err(StoreError::query("read the envs"))?;
    let mut envs = BTreeMap::new();
    for row in rows {
        let key = env_key(row.get(0), row.get(1))?;
        let env = Env {
            network: EnvNetwork(number("an env's network", row.get(2))?),
            releases: BTreeMap::new(),
            rollout: from_json("a rollout", row.get(3))?,
            scale: from_json("a scale", row.get(4))?,
            destroying: row.get(5),
        };
        envs.insert(key, env);
    }
    let rows = sqlx::query("SELECT app, env, number, release_json FROM releases")
        .fetch_all(db)
        .await
        .map_err(StoreError::query("read the releases"))?;
    for row in rows {
        let key = env_key(row.get(0), row.get(1))?;
        let release = ReleaseNumber(number("a release's number", row.get(2))?);
        if let Some(env) = envs.get_mut(&key) {
            env.releases
                .insert(release, from_json("a release", row.get(3))?);
        }
    }
    Ok(envs)
}

const INSTANCES: &str = "SELECT id, node, spec_json, terminating, created_at, report_json, \
     was_ready, stop_acknowledged FROM instances";
const INSTANCES_OF_NODE: &str = "SELECT id, node, spec_json, terminating, created_at, report_json, \
     was_ready, stop_acknowledged FROM instances WHERE node = ?";

async fn load_instances(
    db: &mut SqliteConnection,
) -> Result<BTreeMap<InstanceId, Instance>, StoreError> {
    let rows = sqlx::query(INSTANCES).fetch_all(db).await;
    instances(&rows.map_err(StoreError::query("read the instances"))?)
}

/// The instances of one node.
pub(crate) async fn load_instances_of(
    db: &mut SqliteConnection,
    node: NodeId,
) -> Result<BTreeMap<InstanceId, Instance>, StoreError> {
    let rows = sqlx::query(INSTANCES_OF_NODE)
        .bind(node.0)
        .fetch_all(db)
        .await;
    instances(&rows.map_err(StoreError::query("read a node's instances"))?)
}

fn instances(rows: &[SqliteRow]) -> Result<BTreeMap<InstanceId, Instance>, StoreError> {
    rows.iter()
        .map(|row| {
            let report = row
                .get::<Option<&str>, _>(5)
                .map(|text| from_json("an instance's report", text))
                .transpose()?;
            let instance = Instance {
                node: NodeId(number("a node's number", row.get(1))?),
                spec: from_json("an instance's spec", row.get(2))?,
                terminating: row.get(3),
                created_at: Timestamp(number("a time", row.get(4))?),
                report,
                was_ready: row.get(6),
                stop_acknowledged: row.get(7),
            };
            let id = InstanceId(number("an instance's id", row.get(0))?);
            Ok((id, instance))
        })
        .collect()
}

//! Reading the cluster state.
//!
//! A row that cannot be read is kept, and named in [`ClusterState::unreadable`]: it never means that its subject is
//! absent, and never that nothing can be read. Only the settings of the cluster have to be readable.

#![allow(
    clippy::result_large_err,
    reason = "an unreadable record is rare, is kept whole, and goes into the cluster state as it is"
)]

use std::collections::BTreeMap;

use api::enrollment::{EnrollRole, Hardware, Member};
use api::member::Approval;
use api::node::MAX_MACHINE_BYTES;
use model::instance::InstanceSpec;
use model::{
    EdgeId, EnvKey, EnvNetwork, InstanceId, NodeId, OrgName, ProcessName, PublicKey, ReleaseNumber,
    Timestamp, VolumeId,
};
use scheduler::access::Access;
use scheduler::changes::EnvRecord;
use scheduler::cluster_state::TokenRecord;
use scheduler::cluster_state::{
    ClusterState, CountedAs, Edge, EndedInstance, Env, Instance, InstancePhase, MAX_GENERATION,
    MemberIdentity, MemberKeys, Node, Presence, Release, Scheduling, Subject, TokenHash,
    UnreadableRecord, Volume, VolumeKey, VolumePhase,
};
use scheduler::event_log::EventLog;
use scheduler::host_claims::HostClaims;
use scheduler::instances::{Instances, Volumes};
use scheduler::numbers::FreedNumbers;
use scheduler::release::MAX_INSTANCES;
use scheduler::table::Table;
use scheduler::underlay::RecordedUnderlay;

use crate::database::{Row, Transaction};
use crate::record::{JSON_VERSION, Record, from_json};
use crate::rows::{env_key, in_range, number};
use crate::secrets::newest_versions;
use crate::{Store, StoreError, access, events};

impl Store {
    /// The cluster state as it is now, with no node heard yet: only the listener of the nodes knows better.
    pub async fn load(&self) -> Result<ClusterState, StoreError> {
        let begun = self.database.read().await;
        let mut transaction = begun.map_err(StoreError::query("begin to read"))?;
        let cluster = load(&mut *transaction).await?;
        let ended = transaction.roll_back().await;
        ended.map_err(StoreError::query("end reading"))?;
        Ok(cluster)
    }
}

/// Reads everything inside the caller's transaction.
pub(crate) async fn load(db: &mut dyn Transaction) -> Result<ClusterState, StoreError> {
    let mut unreadable = Vec::new();
    let mut cluster = empty(&mut *db).await?;
    cluster.nodes = load_nodes(&mut *db, &mut unreadable, &mut cluster.member_keys).await?;
    let rows = db
        .fetch(
            "SELECT id, name, region, enrolled_at, public_key, next_key, approval, revoked_at, rotate_since, \
             number, wireguard_key, endpoint, advertised, behind_nat, underlay_mtu FROM edges",
            Vec::new(),
        )
        .await
        .map_err(StoreError::query("read the edges"))?;
    cluster.edges = readable(&rows, edge, &mut unreadable);
    for (id, edge) in &cluster.edges {
        let member = Member::Edge(*id);
        let key = edge.wireguard_key.as_ref();
        (cluster.member_keys).update(member, Some(&edge.identity), key);
    }
    let rows = db
        .fetch(
            "SELECT hash, role, expires_at, used_at, used_by, region, approve, replaces, made_by, org FROM enrollment_tokens",
            Vec::new(),
        )
        .await
        .map_err(StoreError::query("read the enrollment tokens"))?;
    cluster.tokens = readable(&rows, token, &mut unreadable);
    cluster.access = access::load(&mut *db, &mut unreadable).await?;
    cluster.envs = load_envs(&mut *db, cluster.last_network, &mut unreadable).await?;
    cluster.host_claims = HostClaims::of(cluster.envs.iter());
    let rows = db.fetch(INSTANCES, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the instances"))?;
    cluster.instances = readable(&rows, instance, &mut unreadable);
    let rows = db.fetch(VOLUMES, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the volumes"))?;
    cluster.volumes = readable(&rows, volume, &mut unreadable);
    let rows = db.fetch(ENDED, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the ended instances"))?;
    cluster.ended = readable(&rows, ended, &mut unreadable);
    cluster.secrets = newest_versions(&mut *db).await?;
    cluster.event_log = EventLog::after(events::last(db).await?);
    cluster.unreadable = unreadable;
    Ok(cluster)
}

/// The cluster before anything joined it.
async fn empty(db: &mut dyn Transaction) -> Result<ClusterState, StoreError> {
    let sql = "SELECT settings_json, last_network, json_version, last_node, last_edge, incarnation, last_membership FROM cluster";
    let rows = db.fetch(sql, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the cluster's settings"))?;
    let row = rows.first().ok_or(StoreError::NoCluster)?;
    let settings = from_json(row.get(2), row.get(0));
    let incarnation: &str = row.get(5);
    Ok(ClusterState {
        counting_since: Timestamp(0),
        incarnation: incarnation
            .parse()
            .map_err(|error| StoreError::Unreadable {
                cause: format!("incarnation {incarnation:?}: {error}"),
            })?,
        settings: settings.map_err(|cause| StoreError::Unreadable { cause })?,
        nodes: Table::new(),
        edges: Table::new(),
        tokens: Table::new(),
        access: Access::default(),
        last_node: number("a node's number", row.get(3))?,
        last_edge: number("an edge's number", row.get(4))?,
        freed: FreedNumbers::default(),
        envs: Table::new(),
        host_claims: HostClaims::default(),
        instances: Instances::default(),
        volumes: Volumes::default(),
        secrets: Table::new(),
        ended: Table::new(),
        last_network: EnvNetwork(number("an env's network", row.get(1))?),
        last_membership: number("a counter", row.get(6))?,
        event_log: EventLog::default(),
        member_keys: MemberKeys::default(),
        unreadable: Vec::new(),
    })
}

/// The rows that can be read, by key; the others are added to `unreadable`.
fn readable<K, V, C: FromIterator<(K, V)>>(
    rows: &[Row],
    read: impl Fn(&Row) -> Result<(K, V), UnreadableRecord>,
    unreadable: &mut Vec<UnreadableRecord>,
) -> C {
    let readable = rows.iter().filter_map(|row| match read(row) {
        Ok(entry) => Some(entry),
        Err(record) => {
            unreadable.push(record);
            None
        }
    });
    readable.collect()
}

/// JSON that may be absent.
fn optional<T: Record>(version: i64, text: Option<&str>) -> Result<Option<T>, String> {
    text.map(|text| from_json(version, text)).transpose()
}

const NODES: &str = "SELECT id, name, region, generation, wireguard_key, enrolled_at, seen_at, \
     json_version, hardware_json, driver_json, egress_json, scheduling, labels_json, \
     public_key, next_key, approval, revoked_at, rotate_since, approved_json, claimed_json, unknown_json, \
     endpoint, advertised, behind_nat, underlay_mtu, org FROM nodes";

async fn load_nodes(
    db: &mut dyn Transaction,
    unreadable: &mut Vec<UnreadableRecord>,
    keys: &mut MemberKeys,
) -> Result<Table<NodeId, Node>, StoreError> {
    let rows = db.fetch(NODES, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the nodes"))?;
    let mut nodes: Table<NodeId, Node> = readable(&rows, node, unreadable);
    // What is damaged of a node is what its report says anew: until then it is as if it had not reported yet. The row of
    // a newer server is left to that.
    for row in &rows {
        let id = in_range("a node's number", row.get(0)).map(NodeId);
        if let (Ok(id), Ok(node)) = (id, node_columns(row))
            && row.get::<i64>(7) <= JSON_VERSION
            && !nodes.contains_key(&id)
        {
            nodes.insert(id, node);
        }
    }
    for row in &rows {
        // Who a node is stays known, whatever else of its row cannot be read.
        if let Ok(id) = in_range("a node's number", row.get(0))
            && let Ok(identity) = identity(row, 13)
        {
            let key: Option<String> = row.get(4);
            keys.update(Member::Node(NodeId(id)), Some(&identity), key.as_ref());
        }
    }
    Ok(nodes)
}

fn edge(row: &Row) -> Result<(EdgeId, Edge), UnreadableRecord> {
    let read = || {
        let edge = Edge {
            name: row.get(1),
            region: row.get(2),
            identity: identity(row, 4)?,
            number: row
                .get::<Option<i64>>(9)
                .map(|number| in_range("a number", number).map(NodeId))
                .transpose()?,
            wireguard_key: row.get(10),
            underlay: underlay(row, 11),
            enrolled_at: Timestamp(in_range("a time", row.get(3))?),
        };
        Ok((EdgeId(in_range("an edge's number", row.get(0))?), edge))
    };
    read().map_err(|cause| unreadable_row(other_row("edges", row), cause))
}

fn token(row: &Row) -> Result<(TokenHash, TokenRecord), UnreadableRecord> {
    let read = || {
        let hash = TokenHash::try_from(row.get::<&[u8]>(0)).map_err(|e| e.to_string())?;
        let role = match row.get(1) {
            "node" => EnrollRole::Node,
            "edge" => EnrollRole::Edge,
            other => return Err(format!("the role of a token is `{other}`")),
        };
        let used = match row.get::<Option<i64>>(3) {
            None => None,
            Some(at) => Some((Timestamp(in_range("a time", at)?), member(row.get(4))?)),
        };
        let expires_at = Timestamp(in_range("a time", row.get(2))?);
        let token = TokenRecord {
            role,
            expires_at,
            used,
            region: row.get(5),
            approve: row.get(6),
            replaces: row
                .get::<Option<&str>>(7)
                .map(|of| member(Some(of)))
                .transpose()?,
            by: row.get(8),
            org: org(row, 9)?,
        };
        Ok((hash, token))
    };
    let subject = || Subject::Row("an enrollment token".to_owned());
    read().map_err(|cause| unreadable_row(subject(), cause))
}

fn member(text: Option<&str>) -> Result<Member, String> {
    let text = text.unwrap_or_default();
    text.parse()
        .map_err(|_| format!("`{text}` is not a member"))
}

/// By what a member is known, of the five columns from this one on.
fn identity(row: &Row, first: usize) -> Result<MemberIdentity, String> {
    let key = |column| {
        let bytes: Option<&[u8]> = row.get(column);
        let key = bytes.map(PublicKey::of_der).transpose();
        key.map_err(|error| error.to_string())
    };
    let time = |column| {
        let at: Option<i64> = row.get(column);
        at.map(|at| in_range("a time", at).map(Timestamp))
            .transpose()
    };
    let approval = match row.get(first + 2) {
        "approved" => Approval::Approved,
        "pending" => Approval::Pending,
        "revoked" => Approval::Revoked {
            at: time(first + 3)?.unwrap_or(Timestamp(0)),
        },
        other => return Err(format!("its approval is `{other}`")),
    };
    Ok(MemberIdentity {
        key: key(first)?,
        next_key: key(first + 1)?,
        approval,
        rotate_since: time(first + 4)?,
    })
}

/// How a member is reached, of the four columns from this one on. What cannot be read of it the member says again.
fn underlay(row: &Row, first: usize) -> Option<RecordedUnderlay> {
    let behind_nat: Option<i64> = row.get(first + 2);
    let endpoint: Option<&str> = row.get(first);
    let mtu: Option<i64> = row.get(first + 3);
    Some(RecordedUnderlay {
        is_behind_nat: behind_nat? != 0,
        endpoint: endpoint.and_then(|text| text.parse().ok()),
        is_advertised: row.get(first + 1),
        mtu: mtu.and_then(|mtu| u32::try_from(mtu).ok()),
    })
}

fn unreadable_row(subject: Subject, cause: String) -> UnreadableRecord {
    UnreadableRecord {
        subject,
        env: None,
        node: None,
        holds: None,
        cause,
    }
}

fn node(row: &Row) -> Result<(NodeId, Node), UnreadableRecord> {
    let id = in_range("a node's number", row.get(0)).map(NodeId);
    let read = || {
        let version = row.get(7);
        let hardware: Hardware = from_json(version, row.get(8))?;
        let node = Node {
            approved: optional(version, row.get(18))?.unwrap_or_else(|| hardware.clone()),
            claimed: optional(version, row.get(19))?,
            // What cannot be read of it is reported again.
            unknown: optional(version, row.get(20))
                .ok()
                .flatten()
                .unwrap_or_default(),
            hardware,
            driver: optional(version, row.get(9))?,
            egress: optional(version, row.get(10))?,
            ..node_columns(row)?
        };
        Ok((id.clone()?, node))
    };
    read().map_err(|cause| UnreadableRecord {
        subject: (id.clone()).map_or_else(|_| other_row("nodes", row), Subject::Node),
        env: None,
        node: id.clone().ok(),
        holds: None,
        cause,
    })
}

/// A node without what its reports say.
fn node_columns(row: &Row) -> Result<Node, String> {
    let seen_at = row.get::<Option<i64>>(6);
    let seen_at = seen_at.map(|at| in_range("a time", at)).transpose()?;
    let generation = in_range("a generation", row.get(3))?;
    if generation > MAX_GENERATION {
        return Err(format!("a generation is out of range: {generation}"));
    }
    Ok(Node {
        name: row.get(1),
        region: row.get(2),
        generation,
        wireguard_key: row.get(4),
        underlay: underlay(row, 21),
        enrolled_at: Timestamp(in_range("a time", row.get(5))?),
        seen_at: seen_at.map(Timestamp),
        identity: identity(row, 13)?,
        hardware: Hardware::default(),
        approved: optional(row.get(7), row.get(18))?.unwrap_or_default(),
        claimed: None,
        unknown: BTreeMap::new(),
        driver: None,
        egress: None,
        presence: Presence::NotHeardYet,
        scheduling: match row.get(11) {
            "schedulable" => Scheduling::Schedulable,
            "cordoned" => Scheduling::Cordoned,
            "draining" => Scheduling::Draining {
                with_volumes: false,
            },
            "draining_with_volumes" => Scheduling::Draining { with_volumes: true },
            other => return Err(format!("whether the node takes instances is `{other}`")),
        },
        labels: from_json(row.get(7), row.get(12))?,
        org: org(row, 25)?,
    })
}

/// The org whose apps a node runs, where it is one only.
fn org(row: &Row, column: usize) -> Result<Option<OrgName>, String> {
    let name: Option<&str> = row.get(column);
    let parse = |name: &str| name.parse().map_err(|e| format!("an org is `{name}`: {e}"));
    name.map(parse).transpose()
}

fn other_row(table: &str, row: &Row) -> Subject {
    Subject::Row(format!("row {} of {table}", row.get::<i64>(0)))
}

/// `last_network`: the highest that an env can have.
async fn load_envs(
    db: &mut dyn Transaction,
    last_network: EnvNetwork,
    unreadable: &mut Vec<UnreadableRecord>,
) -> Result<Table<EnvKey, Env>, StoreError> {
    let rows = db.fetch("SELECT app, env, network, rollout_json, scale_json, destroying, json_version, outcomes_json, runs_json FROM envs", Vec::new())
    .await
    .map_err(StoreError::query("read the envs"))?;
    let records: BTreeMap<EnvKey, EnvRecord> =
        readable(&rows, |row| env_record(row, last_network), unreadable);
    let rows = db
        .fetch(
            "SELECT app, env, number, release_json, json_version FROM releases",
            Vec::new(),
        )
        .await
        .map_err(StoreError::query("read the releases"))?;
    let mut releases: BTreeMap<EnvKey, Table<ReleaseNumber, Release>> = BTreeMap::new();
    let readable: Vec<_> = readable(&rows, release, unreadable);
    for ((key, number), release) in readable {
        releases.entry(key).or_default().insert(number, release);
    }
    let with_releases = |(key, record): (EnvKey, EnvRecord)| {
        let releases = releases.remove(&key).unwrap_or_default();
        (key, record.with(releases))
    };
    Ok(records.into_iter().map(with_releases).collect())
}

fn env_record(
    row: &Row,
    last_network: EnvNetwork,
) -> Result<(EnvKey, EnvRecord), UnreadableRecord> {
    let key = env_key(row.get(0), row.get(1));
    let read = || {
        let version = row.get(6);
        let record = EnvRecord {
            network: EnvNetwork(in_range("an env's network", row.get(2))?),
            rollout: from_json(version, row.get(3))?,
            scale: from_json(version, row.get(4))?,
            destroying: row.get(5),
            outcomes: from_json(version, row.get(7))?,
            runs: from_json(version, row.get(8))?,
        };
        // Else the next env would be refused for want of a network.
        if !(EnvNetwork(1)..=last_network).contains(&record.network) {
            let network = record.network.0;
            return Err(format!("an env's network was never given: {network}"));
        }
        check_counts(record.scale.iter().map(|(name, count)| (name, *count)))?;
        Ok((key.clone()?, record))
    };
    read().map_err(|cause| UnreadableRecord {
        subject: key.clone().map_or_else(
            |_| Subject::Row(format!("row {}/{} of envs", text(row, 0), text(row, 1))),
            Subject::Env,
        ),
        env: key.clone().ok(),
        node: None,
        holds: None,
        cause,
    })
}

/// Refuses more instances of a process type than a manifest may ask for: they would fill every node.
fn check_counts<'p>(
    mut counts: impl Iterator<Item = (&'p ProcessName, u32)>,
) -> Result<(), String> {
    match counts.find(|(_, count)| *count > MAX_INSTANCES) {
        Some((process, count)) => Err(format!(
            "the instances of {process} are out of range: {count}"
        )),
        None => Ok(()),
    }
}

fn text(row: &Row, column: usize) -> &str {
    row.get(column)
}

type ReleaseKey = (EnvKey, ReleaseNumber);

fn release(row: &Row) -> Result<(ReleaseKey, Release), UnreadableRecord> {
    let env = env_key(row.get(0), row.get(1));
    let number = in_range("a release's number", row.get(2)).map(ReleaseNumber);
    let read = || {
        let release: Release = from_json(row.get(4), row.get(3))?;
        let processes = release.manifest.processes.iter();
        check_counts(processes.map(|(name, p)| (name, p.scaling.min.max(p.scaling.max))))?;
        Ok(((env.clone()?, number.clone()?), release))
    };
    read().map_err(|cause| UnreadableRecord {
        subject: match (env.clone(), number.clone()) {
            (Ok(env), Ok(number)) => Subject::Release(env, number),
            _ => Subject::Row(format!(
                "row {}/{} {} of releases",
                text(row, 0),
                text(row, 1),
                row.get::<i64>(2)
            )),
        },
        env: env.clone().ok(),
        node: None,
        holds: None,
        cause,
    })
}

const INSTANCES: &str = "SELECT id, node, app, env, spec_json, phase, was_ready, reason, \
     created_at, report_json, json_version FROM instances";

fn instance(row: &Row) -> Result<(InstanceId, Instance), UnreadableRecord> {
    let id = in_range("an instance's id", row.get(0)).map(InstanceId);
    let node = in_range("a node's number", row.get(1)).map(NodeId);
    let env = env_key(row.get(2), row.get(3));
    let read = || {
        let version = row.get(10);
        let phase = match text(row, 5) {
            "new" => InstancePhase::New,
            "established" => InstancePhase::Established,
            "terminating" => InstancePhase::Terminating {
                was_ready: row.get(6),
                reason: row.get::<Option<String>>(7).unwrap_or_default(),
            },
            "gone" => InstancePhase::Gone {
                reason: row.get::<Option<String>>(7).unwrap_or_default(),
            },
            other => return Err(format!("its phase is `{other}`")),
        };
        let spec: InstanceSpec = from_json(version, row.get(4))?;
        let instance_of_row = (id.clone()?, env.clone()?);
        if (spec.id, spec.env_key()) != instance_of_row {
            let (id, env) = (spec.id, spec.env_key());
            return Err(format!("its spec is that of instance {id} of {env}"));
        }
        check_resources(&spec)?;
        // The node says it again within seconds.
        let report = optional(version, row.get(9)).unwrap_or_else(|cause| {
            tracing::warn!(instance = %spec.id, %cause, "waiting for the node's next report");
            None
        });
        let instance = Instance {
            spec: std::sync::Arc::new(spec),
            node: node.clone()?,
            created_at: Timestamp(in_range("a time", row.get(8))?),
            phase,
            report,
            ready_since: None,
        };
        Ok((id.clone()?, instance))
    };
    read().map_err(|cause| UnreadableRecord {
        subject: (id.clone()).map_or_else(|_| other_row("instances", row), Subject::Instance),
        env: env.clone().ok(),
        node: node.clone().ok(),
        holds: Some(held(text(row, 4))),
        cause,
    })
}

/// Refuses what no machine has: it would take its node from all others.
fn check_resources(spec: &InstanceSpec) -> Result<(), String> {
    let bounds = [
        (
            "cpu_millis",
            spec.cpu_millis.into(),
            CountedAs::MAX_CPU_MILLIS,
        ),
        ("memory_bytes", spec.memory_bytes, MAX_MACHINE_BYTES),
        ("scratch_bytes", spec.scratch_bytes, MAX_MACHINE_BYTES),
    ];
    match bounds.iter().find(|(_, number, most)| number > most) {
        Some((name, number, most)) => Err(format!(
            "its {name} is {number}, and no machine has more than {most}"
        )),
        None => Ok(()),
    }
}

/// What an instance is counted as whose record cannot be read: what can be read of its spec, of any version.
fn held(spec_json: &str) -> CountedAs {
    let spec: serde_json::Value = serde_json::from_str(spec_json).unwrap_or_default();
    let number = |name: &str| spec.get(name).and_then(serde_json::Value::as_u64);
    CountedAs::of_instance(
        number("cpu_millis"),
        number("memory_bytes"),
        number("scratch_bytes"),
    )
}

const ENDED: &str = "SELECT id, ended_json, json_version FROM ended_instances";

/// An unreadable record of an ended instance freezes no env: nothing is decided by it.
fn ended(row: &Row) -> Result<(InstanceId, EndedInstance), UnreadableRecord> {
    let id = in_range("an instance's id", row.get(0)).map(InstanceId);
    let read = || Ok((id.clone()?, from_json(row.get(2), row.get(1))?));
    read().map_err(|cause| UnreadableRecord {
        subject: other_row("ended_instances", row),
        env: None,
        node: None,
        holds: None,
        cause,
    })
}

const VOLUMES: &str = "SELECT id, node, app, env, process, name, ordinal, size_bytes, created_at, \
     phase, made FROM volumes";

fn volume(row: &Row) -> Result<(VolumeId, Volume), UnreadableRecord> {
    let id = in_range("a volume's id", row.get(0)).map(VolumeId);
    let node = in_range("a node's number", row.get(1)).map(NodeId);
    let env = env_key(row.get(2), row.get(3));
    let read = || {
        let phase = match text(row, 9) {
            "planned" => VolumePhase::Planned,
            "made" => VolumePhase::Made,
            "deleting" => VolumePhase::Deleting { made: row.get(10) },
            "deleted" => VolumePhase::Deleted,
            other => return Err(format!("its phase is `{other}`")),
        };
        let process = text(row, 4).parse();
        let volume = Volume {
            key: VolumeKey {
                env: env.clone()?,
                process: process.map_err(|e| format!("its process type: {e}"))?,
                name: row.get(5),
                ordinal: in_range("its ordinal", row.get(6))?,
            },
            node: node.clone()?,
            size_bytes: in_range("its size", row.get(7))?,
            created_at: Timestamp(in_range("a time", row.get(8))?),
            phase,
        };
        if volume.size_bytes > MAX_MACHINE_BYTES {
            let size = volume.size_bytes;
            return Err(format!(
                "its size is {size}, and no machine has more than {MAX_MACHINE_BYTES}"
            ));
        }
        Ok((id.clone()?, volume))
    };
    read().map_err(|cause| UnreadableRecord {
        subject: (id.clone()).map_or_else(|_| other_row("volumes", row), Subject::Volume),
        env: env.clone().ok(),
        node: node.clone().ok(),
        holds: Some(CountedAs::of_volume(u64::try_from(row.get::<i64>(7)).ok())),
        cause,
    })
}

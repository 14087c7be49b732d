//! Writing what changed of the cluster state: records, and no commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::member::Approval;
use model::{
    EdgeId, EnvKey, InstanceId, NodeId, OrgName, PublicKey, ReleaseNumber, Term, Timestamp,
    VolumeId,
};
use scheduler::changes::{Changes, Counters, EnvRecord};
use scheduler::cluster_state::TokenRecord;
use scheduler::cluster_state::{
    ClusterSettings, Edge, EndedInstance, Instance, InstancePhase, MemberIdentity, Node, Release,
    Scheduling, TokenHash, Volume, VolumePhase,
};

use scheduler::underlay::RecordedUnderlay;

use crate::database::{Columns, ENV_KEY, Transaction, Value, delete, insert, key_values, put};
use crate::record::{JSON_VERSION, to_json};
use crate::rows::to_i64;
use crate::{Store, StoreError, access, events, routes, secrets};

const TOKENS: &str = "enrollment_tokens";
const RELEASES: &str = "releases";
const ENDED: &str = "ended_instances";

impl Store {
    /// Writes what changed since the cluster state was loaded, all of it or nothing, in this term.
    pub async fn write(&self, term: Term, changes: &Changes) -> Result<(), StoreError> {
        let mut writing = self.begin_write(term).await?;
        writing.write(changes).await?;
        writing.commit().await
    }

    /// Begins a transaction of this term, once nobody else writes. Until it is committed, nothing of it has happened.
    ///
    /// A store that is not shared has one server, and takes any term. In a shared one the term has to be that of its lease
    /// ([`Store::acquire_lease`]), and stays so until the transaction ends.
    pub async fn begin_write(&self, term: Term) -> Result<Writing, StoreError> {
        Ok(Writing {
            db: self.begin(term).await?,
            is_shared: self.is_shared(),
        })
    }
}

/// A transaction that writes. Dropped, it never was.
#[derive(Debug)]
pub struct Writing {
    db: Box<dyn Transaction>,
    is_shared: bool,
}

impl Writing {
    /// Writes what changed since the cluster state was loaded.
    pub async fn write(&mut self, changes: &Changes) -> Result<(), StoreError> {
        write(&mut *self.db, changes).await
    }

    /// Ends it as if it never was, and lets others write.
    pub async fn roll_back(self) -> Result<(), StoreError> {
        let rolled_back = self.db.roll_back().await;
        rolled_back.map_err(StoreError::query("end a transaction"))
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// It is not, but for [`StoreError::Unconfirmed`]: the connection broke while the database was to commit, and it may
    /// have.
    pub async fn commit(self) -> Result<(), StoreError> {
        let operation = "write a change";
        let is_shared = self.is_shared;
        self.db.commit().await.map_err(|source| {
            if is_shared {
                StoreError::Unconfirmed { source }
            } else {
                StoreError::Query { operation, source }
            }
        })
    }
}

/// In an order that the foreign keys allow: rows that refer to others are deleted first and written last. Records of one kind
/// share statements.
pub(crate) async fn write(db: &mut dyn Transaction, changes: &Changes) -> Result<(), StoreError> {
    let Changes {
        settings,
        nodes,
        edges,
        counters,
        tokens,
        access,
        deleted_envs,
        envs,
        releases,
        deleted_releases,
        instances,
        ended,
        volumes,
        deleted_secrets,
        deleted_secret_versions,
        secrets,
        routes,
        events: _,
        replaced_events: _,
        pruned_events: _,
    } = changes;
    delete(
        &mut *db,
        "delete an instance",
        "instances",
        &["id"],
        gone(instances, |id| id.0.into()),
    )
    .await?;
    delete(
        &mut *db,
        "delete a volume",
        "volumes",
        &["id"],
        gone(volumes, |id| id.0.into()),
    )
    .await?;
    secrets::delete(&mut *db, deleted_secrets).await?;
    secrets::delete_versions(&mut *db, deleted_secret_versions).await?;
    let keys = deleted_envs.iter().map(key_values).collect();
    delete(&mut *db, "delete an env", "envs", ENV_KEY, keys).await?;
    secrets::delete_all(&mut *db, deleted_envs).await?;
    put_settings(&mut *db, settings.as_ref()).await?;
    put_nodes(&mut *db, nodes).await?;
    put_edges(&mut *db, edges).await?;
    raise_counters(&mut *db, counters).await?;
    put_tokens(&mut *db, tokens).await?;
    access::write(&mut *db, access).await?;
    put_envs(&mut *db, envs).await?;
    write_releases(&mut *db, releases, deleted_releases).await?;
    secrets::add(&mut *db, secrets).await?;
    let rows = instances.values().flatten().map(|one| instance_row(one));
    put(
        &mut *db,
        "write an instance",
        "instances",
        1,
        rows.collect::<Result<_, _>>()?,
    )
    .await?;
    put_ended(&mut *db, ended).await?;
    let rows = volumes.iter().filter_map(|(id, volume)| {
        let volume = volume.as_ref()?;
        Some(volume_row(*id, volume))
    });
    put(
        &mut *db,
        "write a volume",
        "volumes",
        1,
        rows.collect::<Result<_, _>>()?,
    )
    .await?;
    routes::put(&mut *db, routes).await?;
    events::write(db, changes).await
}

/// The keys of the records that are deleted.
fn gone<K, V>(records: &BTreeMap<K, Option<V>>, key: impl Fn(&K) -> Value) -> Vec<Vec<Value>> {
    let gone = records.iter().filter(|(_, record)| record.is_none());
    gone.map(|(id, _)| vec![key(id)]).collect()
}

/// The records that are written.
fn kept<K, V>(records: &BTreeMap<K, Option<V>>) -> impl Iterator<Item = (&K, &V)> {
    records
        .iter()
        .filter_map(|(key, record)| Some((key, record.as_ref()?)))
}

async fn put_settings(
    db: &mut dyn Transaction,
    settings: Option<&ClusterSettings>,
) -> Result<(), StoreError> {
    let Some(settings) = settings else {
        return Ok(());
    };
    let sql = "UPDATE cluster SET settings_json = $1, json_version = $2";
    let values = vec![to_json(settings)?.into(), JSON_VERSION.into()];
    let written = db.execute(sql, values).await;
    written.map_err(StoreError::query("write the cluster's settings"))?;
    Ok(())
}

/// The columns of how a member is reached.
fn underlay_columns(underlay: Option<&RecordedUnderlay>) -> Columns<'static> {
    let endpoint = underlay.and_then(|underlay| underlay.endpoint);
    let nat = underlay.map(|underlay| i64::from(underlay.is_behind_nat));
    let mtu = underlay.and_then(|underlay| underlay.mtu).map(i64::from);
    vec![
        (
            "endpoint",
            endpoint.map(|endpoint| endpoint.to_string()).into(),
        ),
        (
            "advertised",
            underlay
                .is_some_and(|underlay| underlay.is_advertised)
                .into(),
        ),
        ("behind_nat", nat.into()),
        ("underlay_mtu", mtu.into()),
    ]
}

async fn put_nodes(
    db: &mut dyn Transaction,
    nodes: &BTreeMap<NodeId, Option<Arc<Node>>>,
) -> Result<(), StoreError> {
    // First, because another may have its name.
    let removed = gone(nodes, |id| id.0.into());
    delete(&mut *db, "remove a node", "nodes", &["id"], removed).await?;
    let rows = kept(nodes).map(|(id, node)| node_row(*id, node));
    let rows = rows.collect::<Result<_, _>>()?;
    put(&mut *db, "write a node", "nodes", 1, rows).await?;
    let last = kept(nodes).map(|(id, _)| id.0.into()).max();
    raise(db, "write a node", "last_node", last).await
}

/// An id is given once, also after its record is gone.
async fn raise(
    db: &mut dyn Transaction,
    operation: &'static str,
    counter: &str,
    last: Option<i64>,
) -> Result<(), StoreError> {
    let Some(last) = last else { return Ok(()) };
    let sql = format!("UPDATE cluster SET {counter} = $1 WHERE {counter} < $1");
    let raised = db.execute(&sql, vec![last.into()]).await;
    raised.map_err(StoreError::query(operation))?;
    Ok(())
}

async fn raise_counters(db: &mut dyn Transaction, counters: &Counters) -> Result<(), StoreError> {
    let Counters {
        node,
        edge,
        network,
        membership,
        everybody: _,
    } = *counters;
    let membership = to_i64("a counter", membership)?;
    for (counter, last) in [
        ("last_node", node.into()),
        ("last_edge", edge.into()),
        ("last_network", network.0.into()),
        ("last_membership", membership),
    ] {
        let last = Some(last).filter(|last| *last > 0);
        raise(db, "write a counter", counter, last).await?;
    }
    Ok(())
}

/// The columns of what a member is known by.
fn identity_columns(identity: &MemberIdentity) -> Result<Columns<'static>, StoreError> {
    let time = |at: Option<Timestamp>| at.map(|at| to_i64("a time", at.0)).transpose();
    let (approval, revoked_at) = match identity.approval {
        Approval::Approved => ("approved", None),
        Approval::Pending => ("pending", None),
        Approval::Revoked { at } => ("revoked", Some(at)),
    };
    Ok(vec![
        (
            "public_key",
            identity.key.as_ref().map(PublicKey::der).into(),
        ),
        (
            "next_key",
            identity.next_key.as_ref().map(PublicKey::der).into(),
        ),
        ("approval", approval.into()),
        ("revoked_at", time(revoked_at)?.into()),
        ("rotate_since", time(identity.rotate_since)?.into()),
    ])
}

fn org_column(org: Option<&OrgName>) -> Value {
    org.map(|org| org.as_str().to_owned()).into()
}

fn node_row(id: NodeId, node: &Node) -> Result<Columns<'static>, StoreError> {
    let seen_at = node.seen_at.map(|at| to_i64("a time", at.0)).transpose()?;
    let mut columns = vec![
        ("id", id.0.into()),
        ("name", (&node.name).into()),
        ("region", (&node.region).into()),
        ("hardware_json", to_json(&node.hardware)?.into()),
        ("wireguard_key", (&node.wireguard_key).into()),
        (
            "driver_json",
            node.driver.as_ref().map(to_json).transpose()?.into(),
        ),
        (
            "egress_json",
            node.egress.as_ref().map(to_json).transpose()?.into(),
        ),
        ("seen_at", seen_at.into()),
        (
            "generation",
            to_i64("a generation", node.generation)?.into(),
        ),
        ("enrolled_at", to_i64("a time", node.enrolled_at.0)?.into()),
        ("json_version", JSON_VERSION.into()),
        (
            "scheduling",
            match node.scheduling {
                Scheduling::Schedulable => "schedulable",
                Scheduling::Cordoned => "cordoned",
                Scheduling::Draining {
                    with_volumes: false,
                } => "draining",
                Scheduling::Draining { with_volumes: true } => "draining_with_volumes",
            }
            .into(),
        ),
        ("labels_json", to_json(&node.labels)?.into()),
        ("approved_json", to_json(&node.approved)?.into()),
        (
            "claimed_json",
            node.claimed.as_ref().map(to_json).transpose()?.into(),
        ),
    ];
    let unknown = (!node.unknown.is_empty()).then(|| to_json(&node.unknown));
    columns.push(("unknown_json", unknown.transpose()?.into()));
    columns.push(("org", org_column(node.org.as_ref())));
    columns.extend(underlay_columns(node.underlay.as_ref()));
    columns.extend(identity_columns(&node.identity)?);
    Ok(columns)
}

async fn put_edges(
    db: &mut dyn Transaction,
    edges: &BTreeMap<EdgeId, Option<Edge>>,
) -> Result<(), StoreError> {
    let operation = "write an edge";
    let removed = gone(edges, |id| id.0.into());
    delete(&mut *db, "remove an edge", "edges", &["id"], removed).await?;
    let rows = kept(edges).map(|(id, edge)| {
        let mut columns = vec![
            ("id", id.0.into()),
            ("name", (&edge.name).into()),
            ("region", (&edge.region).into()),
            ("enrolled_at", to_i64("a time", edge.enrolled_at.0)?.into()),
            (
                "number",
                edge.number.map(|number| i64::from(number.0)).into(),
            ),
            ("wireguard_key", (&edge.wireguard_key).into()),
        ];
        columns.extend(underlay_columns(edge.underlay.as_ref()));
        columns.extend(identity_columns(&edge.identity)?);
        Ok(columns)
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    put(&mut *db, operation, "edges", 1, rows).await?;
    let last = kept(edges).map(|(id, _)| id.0.into()).max();
    raise(&mut *db, operation, "last_edge", last).await?;
    let numbers = kept(edges).filter_map(|(_, edge)| edge.number);
    let last = numbers.map(|number| number.0.into()).max();
    raise(db, operation, "last_node", last).await
}

async fn put_tokens(
    db: &mut dyn Transaction,
    tokens: &BTreeMap<TokenHash, Option<TokenRecord>>,
) -> Result<(), StoreError> {
    let operation = "write an enrollment token";
    let used_up = gone(tokens, |hash| hash.as_slice().into());
    delete(&mut *db, operation, TOKENS, &["hash"], used_up).await?;
    let rows = kept(tokens).map(|(hash, token)| {
        let (at, by) = token.used.unzip();
        let used_at = at.map(|at| to_i64("a time", at.0)).transpose()?;
        Ok(vec![
            ("hash", hash.as_slice().into()),
            ("role", token.role.to_string().into()),
            ("expires_at", to_i64("a time", token.expires_at.0)?.into()),
            ("used_at", used_at.into()),
            ("used_by", by.map(|by| by.to_string()).into()),
            ("region", (&token.region).into()),
            ("approve", token.approve.into()),
            ("replaces", token.replaces.map(|of| of.to_string()).into()),
            ("made_by", (&token.by).into()),
            ("org", org_column(token.org.as_ref())),
        ])
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    put(db, operation, TOKENS, 1, rows).await
}

async fn put_envs(
    db: &mut dyn Transaction,
    envs: &BTreeMap<EnvKey, EnvRecord>,
) -> Result<(), StoreError> {
    let operation = "write an env";
    let rows = envs.iter().map(|(key, env)| {
        Ok(vec![
            ("app", key.app.as_str().into()),
            ("env", key.env.as_str().into()),
            ("network", env.network.0.into()),
            ("rollout_json", to_json(&env.rollout)?.into()),
            ("scale_json", to_json(&env.scale)?.into()),
            ("destroying", env.destroying.into()),
            ("outcomes_json", to_json(&env.outcomes)?.into()),
            ("runs_json", to_json(&env.runs)?.into()),
            ("json_version", JSON_VERSION.into()),
        ])
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    put(&mut *db, operation, "envs", 2, rows).await?;
    let last = envs.values().map(|env| env.network.0.into()).max();
    raise(db, operation, "last_network", last).await
}

async fn write_releases(
    db: &mut dyn Transaction,
    releases: &BTreeMap<(EnvKey, ReleaseNumber), Release>,
    deleted: &BTreeSet<(EnvKey, ReleaseNumber)>,
) -> Result<(), StoreError> {
    let rows = releases.iter().map(|((key, number), release)| {
        Ok(vec![
            ("app", key.app.as_str().into()),
            ("env", key.env.as_str().into()),
            ("number", number.0.into()),
            ("release_json", to_json(release)?.into()),
            ("json_version", JSON_VERSION.into()),
        ])
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    insert(&mut *db, "write a release", RELEASES, rows).await?;
    let keys = deleted.iter().map(|(key, number)| {
        let mut values = key_values(key);
        values.push(number.0.into());
        values
    });
    let names = ["app", "env", "number"];
    delete(db, "delete a release", RELEASES, &names, keys.collect()).await
}

fn instance_row(instance: &Instance) -> Result<Columns<'static>, StoreError> {
    let spec = &instance.spec;
    let (phase, reason) = match &instance.phase {
        InstancePhase::New => ("new", None),
        InstancePhase::Established => ("established", None),
        InstancePhase::Terminating { reason, .. } => ("terminating", Some(reason.as_str())),
        InstancePhase::Gone { reason } => ("gone", Some(reason.as_str())),
    };
    Ok(vec![
        ("id", spec.id.0.into()),
        ("app", spec.app.as_str().into()),
        ("env", spec.env.as_str().into()),
        ("node", instance.node.0.into()),
        ("spec_json", to_json(spec.as_ref())?.into()),
        ("phase", phase.into()),
        ("was_ready", instance.was_ready().into()),
        ("reason", reason.into()),
        (
            "created_at",
            to_i64("a time", instance.created_at.0)?.into(),
        ),
        (
            "report_json",
            instance.report.as_ref().map(to_json).transpose()?.into(),
        ),
        ("json_version", JSON_VERSION.into()),
    ])
}

async fn put_ended(
    db: &mut dyn Transaction,
    ended: &BTreeMap<InstanceId, Option<EndedInstance>>,
) -> Result<(), StoreError> {
    let operation = "write an ended instance";
    let pruned = gone(ended, |id| id.0.into());
    delete(&mut *db, operation, ENDED, &["id"], pruned).await?;
    let rows = kept(ended).map(|(id, ended)| {
        Ok(vec![
            ("id", id.0.into()),
            ("ended_json", to_json(ended)?.into()),
            ("json_version", JSON_VERSION.into()),
        ])
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    put(db, operation, ENDED, 1, rows).await
}

fn volume_row(id: VolumeId, volume: &Volume) -> Result<Columns<'static>, StoreError> {
    let key = &volume.key;
    let phase = match volume.phase {
        VolumePhase::Planned => "planned",
        VolumePhase::Made => "made",
        VolumePhase::Deleting { .. } => "deleting",
        VolumePhase::Deleted => "deleted",
    };
    Ok(vec![
        ("id", id.0.into()),
        ("app", key.env.app.as_str().into()),
        ("env", key.env.env.as_str().into()),
        ("process", key.process.as_str().into()),
        ("name", (&key.name).into()),
        ("ordinal", key.ordinal.into()),
        ("node", volume.node.0.into()),
        (
            "size_bytes",
            to_i64("a volume's size", volume.size_bytes)?.into(),
        ),
        ("created_at", to_i64("a time", volume.created_at.0)?.into()),
        ("phase", phase.into()),
        ("made", volume.is_made().into()),
    ])
}

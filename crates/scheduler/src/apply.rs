//! The one place where the cluster state changes.
//!
//! Whoever wants a change (the planner, a user, a node that reports) makes a [`Command`]. [`apply`] carries it out on
//! the cluster state and returns the [`Changes`], which the store writes; or it refuses, and nothing has changed. No
//! command is carried out anywhere else: the store knows records and no commands.
//!
//! A refusal is the last guard, not the message for a user: callers look before they ask.

use api::enrollment::Member;
use api::node::{NodeReport, ReportDelta};
use api::user::RolloutPhase;
use model::{
    EdgeId, EnvKey, Generation, InstanceId, LabelKey, LabelValue, NodeId, OrgName, ProcessName,
    PublicKey, ReleaseNumber, Timestamp, VolumeId,
};
use overlay::private_networks::PrivateNetworks;
use overlay::topology::Mode;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod access;
mod members;
mod refused;

pub use access::{check_app_is_empty, check_org_has_no_nodes};
pub use refused::{MAX_BUNDLES_OF_AN_ENV, MAX_ENVS_OF_AN_APP, MAX_NODE_LABELS, Refused};

use crate::access::AccessCommand;
use crate::action::Action;
use crate::changes::{Changes, EnvRecord, SealedVersion};
use crate::cluster_state::{
    ClusterState, Edge, EndedInstance, Env, Instance, InstancePhase, Node, Release, Rollout,
    Scheduling, TokenHash, TokenRecord, Volume, VolumePhase,
};
use crate::quota;
use crate::reports::{apply_changes, apply_report};
use crate::secret_versions;
use crate::underlay::RecordedUnderlay;

/// One change of the cluster state. Everything in it is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The planner decided it.
    Plan(Action),
    /// A user made an enrollment token.
    AddToken {
        /// The hash of its secret.
        hash: TokenHash,
        /// What it is good for.
        token: TokenRecord,
        /// When.
        now: Timestamp,
    },
    /// A machine joined with a token, which is spent ([`crate::enrollment::enroll`]).
    Enroll {
        /// The hash of the token's secret.
        token: TokenHash,
        /// The machine, under a number that was never given before.
        member: NewMember,
        /// When.
        now: Timestamp,
    },
    /// A user revokes an enrollment token: it lets nobody in any more.
    DeleteToken {
        /// The hash of its secret.
        hash: TokenHash,
    },
    /// A user approves a member: one that waits for that may do what members do, and what hardware a node claims counts.
    Approve {
        /// The member.
        member: Member,
    },
    /// A user revokes a member: it may do nothing any more, and a node's instances are planned elsewhere. Its volumes stay with it.
    Revoke {
        /// The member.
        member: Member,
        /// When.
        now: Timestamp,
    },
    /// A user wants a member to have other keys.
    AskForKeys {
        /// The member.
        member: Member,
        /// When.
        now: Timestamp,
    },
    /// A member changes the keys by which it is known.
    SetKeys {
        /// The member.
        member: Member,
        /// How.
        change: KeyChange,
    },
    /// Members of a cluster state that is lost showed that these numbers were given out. They are not given again.
    SkipNumbers {
        /// The highest number of a node; 0: none.
        node: u16,
        /// The highest number of an edge; 0: none.
        edge: u16,
    },
    /// A user removes an edge that was revoked.
    RemoveEdge {
        /// The edge.
        edge: EdgeId,
    },
    /// What members are told about the cluster changed otherwise: its CAs did.
    RaiseMembership,
    /// A member is reached otherwise than before, or says its WireGuard key, of which none was recorded.
    SetUnderlay {
        /// The member.
        member: Member,
        /// An edge's number in the overlay, where it has none yet: one that was never given.
        number: Option<NodeId>,
        /// Its WireGuard public key, base64; absent: it stays.
        wireguard_key: Option<String>,
        /// How it is reached.
        underlay: RecordedUnderlay,
    },
    /// A user changes settings of the overlay.
    SetNetwork {
        /// How members reach one another; absent: it stays.
        mode: Option<Mode>,
        /// Its MTU, in bytes; absent: it stays.
        mtu: Option<u32>,
        /// Which private networks egress reaches; absent: they stay.
        private_networks: Option<PrivateNetworks>,
    },
    /// Who may do what changes.
    Access(AccessCommand),
    /// A user gave a secret bundle new content.
    AddSecretVersion {
        /// The env.
        env: EnvKey,
        /// The bundle.
        bundle: String,
        /// One more than its newest version.
        version: u32,
        /// The content.
        content: SealedVersion,
    },
    /// A node reported all that it has.
    Report {
        /// The node.
        node: NodeId,
        /// What it said.
        report: Box<NodeReport>,
        /// When.
        now: Timestamp,
    },
    /// A node reported what changed ([`crate::report_receiver`]).
    ReportChanges {
        /// The node.
        node: NodeId,
        /// What changed.
        changes: Box<ReportDelta>,
        /// The generation that it has applied.
        observed: Generation,
        /// Every volume that it has, where that generation is another than before.
        volumes: Option<BTreeSet<VolumeId>>,
        /// When.
        now: Timestamp,
    },
    /// A node was last heard at this time, and is not any more.
    SetSeen {
        /// The node.
        node: NodeId,
        /// When it was last heard.
        at: Timestamp,
    },
    /// A user cordons, drains or uncordons a node.
    SetScheduling {
        /// The node.
        node: NodeId,
        /// Whether it takes instances from now on.
        scheduling: Scheduling,
    },
    /// A user labels a node.
    SetLabels {
        /// The node.
        node: NodeId,
        /// Key to value; absent: the label is removed. Labels that are not named stay.
        labels: BTreeMap<LabelKey, Option<LabelValue>>,
    },
    /// An admin gives a node to an org, or to all.
    SetNodeOrg {
        /// The node.
        node: NodeId,
        /// The org whose apps it runs, and no other's; absent: every org's.
        org: Option<OrgName>,
    },
    /// A user has a node stop instances that it runs and the cluster state does not know.
    StopUnknown {
        /// The node.
        node: NodeId,
        /// The instances. One that the node has not reported, or has no more, is passed over.
        instances: BTreeSet<InstanceId>,
    },
    /// A user removes a node, which is a member no longer.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Whether what it had is given up: its instances are replaced elsewhere, its volumes are deleted, and what was in them is
        /// lost. Without, only a node that has nothing is removed.
        lost: bool,
        /// When.
        now: Timestamp,
    },
    /// A user deployed to an env that is not there yet.
    CreateEnv {
        /// Its key.
        key: EnvKey,
        /// The env, with its first releases.
        env: Box<Env>,
    },
    /// A user deployed to an env that is there.
    AddRelease {
        /// The env.
        env: EnvKey,
        /// The release's number.
        number: ReleaseNumber,
        /// The release.
        release: Box<Release>,
        /// The rollout that begins with it.
        rollout: Rollout,
    },
    /// A user set how many instances of process types are wanted.
    SetScale {
        /// The env.
        env: EnvKey,
        /// Process type to instances; process types that are not named keep their number.
        scale: BTreeMap<ProcessName, u32>,
    },
    /// A user destroys an env.
    DestroyEnv {
        /// The env.
        env: EnvKey,
    },
    /// A user deletes a volume.
    DeleteVolume {
        /// The volume.
        id: VolumeId,
    },
    /// A user deletes a secret bundle, every version of it.
    DeleteSecrets {
        /// The env.
        env: EnvKey,
        /// The bundle.
        bundle: String,
    },
}

/// A change of the keys by which a member is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChange {
    /// It came by this key, and none was recorded.
    Record(PublicKey),
    /// It is about to have this key, and with it a node's WireGuard key, where that changes too.
    Next {
        /// The key.
        key: PublicKey,
        /// The WireGuard key, base64; absent: it stays.
        wireguard_key: Option<String>,
    },
    /// It came by the key that it was about to have: the one before is its key no longer.
    Complete(PublicKey),
}

/// A machine that joins, under its number: a new one, or that of the member whose place it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewMember {
    /// A node.
    Node(NodeId, Box<Node>),
    /// An edge.
    Edge(EdgeId, Edge),
}

impl From<Action> for Command {
    fn from(action: Action) -> Self {
        Self::Plan(action)
    }
}

/// Carries a command out on the cluster state, and says which records changed. The generation of a node grows with
/// each change of its desired state: an instance created, terminated or deleted, a volume deleted.
///
/// # Errors
/// The command does not fit the cluster state, which has not changed then.
pub fn apply(cluster: &mut ClusterState, command: &Command) -> Result<Changes, Refused> {
    let changes = carry_out(cluster, command)?;
    for key in changes.envs.keys().chain(&changes.deleted_envs) {
        cluster.host_claims.update(key, cluster.envs.get(key));
    }
    cluster.index_keys(&changes);
    Ok(changes)
}

fn carry_out(cluster: &mut ClusterState, command: &Command) -> Result<Changes, Refused> {
    match command {
        Command::Plan(action) => apply_action(cluster, action),
        Command::AddToken { hash, token, now } => {
            access::check_org(cluster, token.org.as_ref())?;
            Ok(members::add_token(cluster, *hash, token, *now))
        }
        Command::Enroll { token, member, now } => members::enroll(cluster, *token, member, *now),
        Command::DeleteToken { hash } => members::delete_token(cluster, *hash),
        Command::Approve { member } => members::approve(cluster, *member),
        Command::Revoke { member, now } => members::revoke(cluster, *member, *now),
        Command::AskForKeys { member, now } => members::ask_for_keys(cluster, *member, *now),
        Command::SetKeys { member, change } => members::set_keys(cluster, *member, change),
        Command::SkipNumbers { node, edge } => Ok(members::skip_numbers(cluster, *node, *edge)),
        Command::RemoveEdge { edge } => members::remove_edge(cluster, *edge),
        Command::RaiseMembership => Ok(members::tell_everybody(cluster)),
        Command::SetUnderlay {
            member,
            number,
            wireguard_key,
            underlay,
        } => members::set_underlay(cluster, *member, *number, wireguard_key.as_ref(), *underlay),
        Command::SetNetwork {
            mode,
            mtu,
            private_networks,
        } => Ok(members::set_network(
            cluster,
            *mode,
            *mtu,
            private_networks.as_ref(),
        )),
        Command::Access(command) => access::apply(cluster, command),
        Command::AddSecretVersion {
            env,
            bundle,
            version,
            content,
        } => {
            not_frozen(cluster, env)?;
            secret_versions::add(cluster, env, bundle, *version, content)
        }
        Command::Report { node, report, now } => {
            if !cluster.nodes.contains_key(node) {
                return Err(Refused::NoNode(*node));
            }
            Ok(apply_report(cluster, *node, report, *now))
        }
        Command::ReportChanges {
            node,
            changes,
            observed,
            volumes,
            now,
        } => {
            if !cluster.nodes.contains_key(node) {
                return Err(Refused::NoNode(*node));
            }
            let volumes = volumes.as_ref();
            let changes = apply_changes(cluster, *node, changes, *observed, volumes, *now);
            Ok(changes)
        }
        Command::SetSeen { node: id, at } => {
            change_node(cluster, *id, |node| node.seen_at = Some(*at))
        }
        Command::SetScheduling {
            node: id,
            scheduling,
        } => change_node(cluster, *id, |node| node.scheduling = *scheduling),
        Command::SetLabels { node: id, labels } => {
            let node = cluster.nodes.get(id).ok_or(Refused::NoNode(*id))?;
            let mut after = node.labels.clone();
            for (key, value) in labels {
                match value {
                    Some(value) => after.insert(key.clone(), value.clone()),
                    None => after.remove(key),
                };
            }
            if after.len() > MAX_NODE_LABELS {
                return Err(Refused::TooManyLabels(*id));
            }
            change_node(cluster, *id, |node| node.labels = after)
        }
        Command::SetNodeOrg { node: id, org } => {
            access::check_org(cluster, org.as_ref())?;
            change_node(cluster, *id, |node| node.org.clone_from(org))
        }
        Command::StopUnknown { node, instances } => stop_unknown(cluster, *node, instances),
        Command::RemoveNode { node, lost, now } => {
            members::remove_node(cluster, *node, *lost, *now)
        }
        Command::CreateEnv { key, env } => create_env(cluster, key, env),
        Command::AddRelease {
            env: key,
            number,
            release,
            rollout,
        } => {
            let env = changeable_mut(cluster, key)?;
            if env.releases.contains_key(number) {
                return Err(Refused::ReleaseExists {
                    env: key.clone(),
                    number: *number,
                });
            }
            env.releases.insert(*number, release.as_ref().clone());
            if env.rollout.phase == RolloutPhase::Rolling {
                (env.outcomes).insert(env.rollout.release, RolloutPhase::Superseded);
            }
            env.rollout = rollout.clone();
            let mut versions = BTreeSet::new();
            let mut deleted = BTreeSet::new();
            for number in kept_no_longer(cluster, key) {
                if let Some(env) = cluster.envs.get_mut(key) {
                    let release = env.releases.remove(&number);
                    versions.extend(release.iter().flat_map(|r| secret_versions::of_release(r)));
                    env.outcomes.remove(&number);
                }
                deleted.insert((key.clone(), number));
            }
            let env = changeable_mut(cluster, key)?;
            let mut changes = written_env(key, env);
            let added = ((key.clone(), *number), release.as_ref().clone());
            changes.releases.extend([added]);
            changes.deleted_releases = deleted;
            changes.deleted_secret_versions =
                secret_versions::kept_no_longer(cluster, key, versions);
            Ok(changes)
        }
        Command::SetScale { env: key, scale } => {
            let env = changeable_mut(cluster, key)?;
            env.scale.extend(scale.clone());
            Ok(written_env(key, env))
        }
        Command::DestroyEnv { env: key } => {
            let env = changeable_mut(cluster, key)?;
            env.destroying = true;
            Ok(written_env(key, env))
        }
        Command::DeleteVolume { id } => delete_volume(cluster, *id),
        Command::DeleteSecrets { env, bundle } => delete_secrets(cluster, env, bundle),
    }
}

fn apply_action(cluster: &mut ClusterState, action: &Action) -> Result<Changes, Refused> {
    match action {
        Action::MakeVolume(planned) => {
            let is_taken = cluster.volumes.contains_key(&planned.id)
                || cluster.volumes.id_of(&planned.key).is_some();
            if is_taken {
                return Err(Refused::VolumeExists(planned.id));
            }
            if !cluster.nodes.contains_key(&planned.node) {
                return Err(Refused::NoNode(planned.node));
            }
            let volume = Volume {
                key: planned.key.clone(),
                node: planned.node,
                size_bytes: planned.size_bytes,
                created_at: planned.created_at,
                phase: VolumePhase::Planned,
            };
            cluster.volumes.insert(planned.id, volume.clone());
            Ok(Changes {
                volumes: BTreeMap::from([(planned.id, Some(volume))]),
                ..Changes::default()
            })
        }
        Action::DeleteVolume { id } => {
            let volume = cluster.volumes.get(id).ok_or(Refused::NoVolume(*id))?;
            let node = volume.node;
            let node_is_gone = !cluster.has_node(node);
            match volume.phase {
                VolumePhase::Deleted => {}
                VolumePhase::Deleting { .. } if node_is_gone => {}
                VolumePhase::Planned | VolumePhase::Made | VolumePhase::Deleting { .. } => {
                    return Err(Refused::VolumeNotDeleted(*id));
                }
            }
            cluster.volumes.remove(id);
            let mut changes = next_generation(cluster, node);
            changes.volumes.insert(*id, None);
            Ok(changes)
        }
        Action::Create(placed) => {
            let id = placed.spec.id;
            let taken = |(other, _)| other == id;
            if cluster.instances.contains_key(&id) || cluster.unreadable_instances().any(taken) {
                return Err(Refused::InstanceExists(id));
            }
            if !cluster.nodes.contains_key(&placed.node) {
                return Err(Refused::NoNode(placed.node));
            }
            changeable(cluster, &placed.spec.env_key())?;
            for volume in &placed.spec.volumes {
                if let Some(user) = cluster.instances.user_of(volume.id) {
                    return Err(Refused::VolumeInUse {
                        volume: volume.id,
                        instance: user.spec.id,
                    });
                }
            }
            let instance = Instance::new(placed.spec.clone(), placed.node, placed.created_at);
            let instance = Arc::new(instance);
            cluster.instances.insert(id, Arc::clone(&instance));
            let mut changes = next_generation(cluster, placed.node);
            changes.instances.insert(id, Some(instance));
            Ok(changes)
        }
        Action::Terminate { id, reason } => {
            let instance = cluster.instances.get(id).ok_or(Refused::NoInstance(*id))?;
            let was_ready = match instance.phase {
                InstancePhase::New => false,
                InstancePhase::Established => true,
                InstancePhase::Terminating { .. } | InstancePhase::Gone { .. } => {
                    return Err(Refused::InstanceTerminating(*id));
                }
            };
            let mut changes = next_generation(cluster, instance.node);
            let instance = cluster.instances.change(id, |instance| {
                instance.phase = InstancePhase::Terminating {
                    was_ready,
                    reason: reason.clone(),
                };
            });
            changes.instances.insert(*id, instance);
            Ok(changes)
        }
        Action::Delete { id, at } => {
            let instance = cluster.instances.get(id).ok_or(Refused::NoInstance(*id))?;
            let node = instance.node;
            let is_gone = matches!(instance.phase, InstancePhase::Gone { .. });
            if !is_gone && cluster.has_node(node) {
                return Err(Refused::InstanceNotGone(*id));
            }
            let ended = ended(instance, "its node was removed", *at);
            cluster.instances.remove(id);
            cluster.ended.insert(*id, ended.clone());
            let mut changes = next_generation(cluster, node);
            changes.instances.insert(*id, None);
            changes.ended.insert(*id, Some(ended));
            Ok(changes)
        }
        Action::PruneEnded { id } => {
            if cluster.ended.remove(id).is_none() {
                return Err(Refused::NoEndedInstance(*id));
            }
            Ok(Changes {
                ended: BTreeMap::from([(*id, None)]),
                ..Changes::default()
            })
        }
        Action::SetRollout { env: key, rollout } => {
            not_frozen(cluster, key)?;
            let env = cluster.envs.get_mut(key);
            let env = env.ok_or_else(|| Refused::NoEnv(key.clone()))?;
            env.rollout = rollout.clone();
            if rollout.phase != RolloutPhase::Rolling {
                env.outcomes.insert(rollout.release, rollout.phase);
            }
            Ok(written_env(key, env))
        }
        Action::RemoveEnv { env: key } => remove_env(cluster, key),
    }
}

/// The record that is kept of an instance that is gone. `given_up`: why, where its node did not say so.
fn ended(instance: &Instance, given_up: &str, at: Timestamp) -> EndedInstance {
    let reason = match &instance.phase {
        InstancePhase::Gone { reason } => reason.clone(),
        InstancePhase::Terminating { reason, .. } => {
            format!("{reason}; {given_up}")
        }
        InstancePhase::New | InstancePhase::Established => given_up.to_owned(),
    };
    let report = instance.report.as_ref();
    EndedInstance {
        env: instance.spec.env_key(),
        process: instance.spec.process.clone(),
        release: instance.spec.release,
        node: instance.node,
        created_at: instance.created_at,
        ended_at: at,
        reason,
        restarts: report.map_or(0, |report| report.restarts),
        last_exit: report.and_then(|report| report.last_exit.clone()),
        failure: report.and_then(|report| report.failure.clone()),
    }
}

fn create_env(cluster: &mut ClusterState, key: &EnvKey, env: &Env) -> Result<Changes, Refused> {
    not_frozen(cluster, key)?;
    if cluster.envs.contains_key(key) {
        return Err(Refused::EnvExists(key.clone()));
    }
    quota::check_room_for_env(cluster, key)?;
    let mut changes = written_env(key, env);
    let releases = env.releases.iter();
    let releases = releases.map(|(number, release)| ((key.clone(), *number), release.clone()));
    changes.releases.extend(releases);
    cluster.last_network = cluster.last_network.max(env.network);
    cluster.envs.insert(key.clone(), env.clone());
    Ok(changes)
}

fn remove_env(cluster: &mut ClusterState, key: &EnvKey) -> Result<Changes, Refused> {
    not_frozen(cluster, key)?;
    let env = cluster.envs.get(key);
    let env = env.ok_or_else(|| Refused::NoEnv(key.clone()))?;
    if !env.destroying {
        return Err(Refused::EnvNotDestroying(key.clone()));
    }
    if let Some((instance, _)) = cluster.instances.of_env(key).next() {
        return Err(Refused::EnvNotEmpty {
            env: key.clone(),
            instance,
        });
    }
    cluster.envs.remove(key);
    cluster.secrets.remove(key);
    let mut changes = Changes::default();
    changes.deleted_envs.insert(key.clone());
    Ok(changes)
}

fn delete_volume(cluster: &mut ClusterState, id: VolumeId) -> Result<Changes, Refused> {
    let volume = cluster.volumes.get(&id).ok_or(Refused::NoVolume(id))?;
    not_frozen(cluster, &volume.key.env)?;
    if let Some(user) = cluster.instances.user_of(id) {
        return Err(Refused::VolumeInUse {
            volume: id,
            instance: user.spec.id,
        });
    }
    let made = match volume.phase {
        VolumePhase::Planned => false,
        VolumePhase::Made => true,
        VolumePhase::Deleting { .. } | VolumePhase::Deleted => {
            return Err(Refused::VolumeDeleting(id));
        }
    };
    let volume = Volume {
        phase: VolumePhase::Deleting { made },
        ..volume.clone()
    };
    cluster.volumes.insert(id, volume.clone());
    let mut changes = next_generation(cluster, volume.node);
    changes.volumes.insert(id, Some(volume));
    Ok(changes)
}

fn delete_secrets(
    cluster: &mut ClusterState,
    env: &EnvKey,
    bundle: &str,
) -> Result<Changes, Refused> {
    not_frozen(cluster, env)?;
    let bundles = cluster.secrets.get_mut(env);
    let removed = bundles.map(|bundles| (bundles.remove(bundle), bundles.is_empty()));
    let Some((Some(_), was_last)) = removed else {
        return Err(Refused::NoSecretBundle {
            env: env.clone(),
            bundle: bundle.to_owned(),
        });
    };
    if was_last {
        cluster.secrets.remove(env);
    }
    let mut changes = Changes::default();
    (changes.deleted_secrets).insert((env.clone(), bundle.to_owned()));
    Ok(changes)
}

/// Whether every record of an env can be read, also of one that is not there.
///
/// # Errors
/// [`Refused::EnvFrozen`], which names the first record that cannot.
pub fn not_frozen(cluster: &ClusterState, env: &EnvKey) -> Result<(), Refused> {
    match cluster.frozen_by(env) {
        None => Ok(()),
        Some(record) => Err(Refused::EnvFrozen {
            env: env.clone(),
            record: record.to_string(),
        }),
    }
}

/// The env is there, and neither frozen nor being destroyed.
fn changeable(cluster: &ClusterState, key: &EnvKey) -> Result<(), Refused> {
    not_frozen(cluster, key)?;
    match cluster.envs.get(key) {
        None => Err(Refused::NoEnv(key.clone())),
        Some(env) if env.destroying => Err(Refused::EnvDestroying(key.clone())),
        Some(_) => Ok(()),
    }
}

/// The env, to be changed, when it is neither frozen nor being destroyed.
fn changeable_mut<'c>(cluster: &'c mut ClusterState, key: &EnvKey) -> Result<&'c mut Env, Refused> {
    changeable(cluster, key)?;
    let env = cluster.envs.get_mut(key);
    env.ok_or_else(|| Refused::NoEnv(key.clone()))
}

/// Releases of an env that are kept at most, beside those that something still refers to.
pub const MAX_RELEASES: usize = 50;

/// The releases of an env that go: all but the last [`MAX_RELEASES`], those that are wanted or gone back to, and those of
/// instances that are there.
fn kept_no_longer(cluster: &ClusterState, key: &EnvKey) -> Vec<ReleaseNumber> {
    let Some(env) = cluster.envs.get(key) else {
        return Vec::new();
    };
    let old = env.releases.len().saturating_sub(MAX_RELEASES);
    if old == 0 {
        return Vec::new();
    }
    let rollout = &env.rollout;
    let named = [
        Some(rollout.release),
        Some(rollout.wanted),
        rollout.previous,
    ];
    let instances = cluster.instances.of_env(key);
    let used: BTreeSet<_> = (named.into_iter().flatten())
        .chain(instances.map(|(_, instance)| instance.spec.release))
        .collect();
    let oldest = env.releases.keys().take(old);
    oldest
        .filter(|number| !used.contains(*number))
        .copied()
        .collect()
}

fn written_env(key: &EnvKey, env: &Env) -> Changes {
    Changes {
        envs: BTreeMap::from([(key.clone(), EnvRecord::of(env))]),
        ..Changes::default()
    }
}

/// The node's desired state changes. A node that was removed has none.
fn next_generation(cluster: &mut ClusterState, id: NodeId) -> Changes {
    let next = |node: &mut Node| node.generation = node.generation.saturating_add(1);
    change_node(cluster, id, next).unwrap_or_default()
}

/// Changes the record of a node.
fn stop_unknown(
    cluster: &mut ClusterState,
    id: NodeId,
    instances: &BTreeSet<InstanceId>,
) -> Result<Changes, Refused> {
    change_node(cluster, id, |node| {
        let running = node.unknown.iter_mut();
        let mut told = false;
        for (_, unknown) in running.filter(|(id, _)| instances.contains(id)) {
            told |= !unknown.stop;
            unknown.stop = true;
        }
        if told {
            node.generation = node.generation.saturating_add(1);
        }
    })
}

fn change_node(
    cluster: &mut ClusterState,
    id: NodeId,
    change: impl FnOnce(&mut Node),
) -> Result<Changes, Refused> {
    let node = cluster.nodes.change(&id, change);
    let node = node.ok_or(Refused::NoNode(id))?;
    Ok(Changes {
        nodes: BTreeMap::from([(id, Some(node))]),
        ..Changes::default()
    })
}

#[cfg(test)]
mod tests;

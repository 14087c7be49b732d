//! Commands of users (`platform run`): each in an instance of its own, which is made when it is asked for, and never again.
//!
//! ```text
//!   asked for --placed--> instance --it ended, its time is over, its node is lost--> terminating --> gone
//!        |
//!        +--no node takes it--> refused, with the reason that a deploy would show
//! ```
//!
//! The record of the instance is all there is of a command: a server that begins to lead finds it there. How it ended is in the
//! record of the ended instance.

// ring: it creates and terminates what the pass holds, and a pass asks it.

use std::collections::BTreeSet;

use model::instance::Runs;
use model::{EnvKey, InstanceId, ProcessName, Timestamp, UserName};

use super::task::Task;
use super::view::{Goal, InstanceView, terminate};
use super::{Pass, Planned, Planner};
use crate::action::Action;
use crate::changes::EnvRecord;
use crate::cluster_state::ClusterState;
use crate::keyed_runs::KeyedRun;
use crate::rollout::InstanceHealth;

/// Commands of users in one env at a time.
pub const MAX_COMMANDS_OF_ENV: usize = 64;

/// A command that a user wants to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCommand {
    /// In which env.
    pub env: EnvKey,
    /// As which process type: its image, variables, secrets, user and resources.
    pub process: ProcessName,
    /// What replaces the process type's command.
    pub command: Vec<String>,
    /// Whether its user is at the other end of its streams.
    pub attached: bool,
    /// When it is ended, should it still run then.
    pub ends_at: Timestamp,
    /// By what it is found when it is asked for again.
    pub call: Option<KeyedCall>,
}

/// What a run is found by ([`crate::keyed_runs`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedCall {
    /// Who asks for it.
    pub by: UserName,
    /// What the caller named the call.
    pub key: String,
    /// A digest of what it says.
    pub digest: String,
}

/// Why a command is not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandRefused {
    /// There is no env, or no release of it.
    #[error("{0} has no release to run a command of")]
    NoRelease(EnvKey),
    /// Its release has no such process type.
    #[error("the release of {env} has no process type {process}; there are: {}", .there.join(", "))]
    NoProcess {
        /// The env.
        env: EnvKey,
        /// As asked for.
        process: ProcessName,
        /// As there are.
        there: Vec<String>,
    },
    /// There are as many as there may be.
    #[error("{MAX_COMMANDS_OF_ENV} commands run in {0} already")]
    TooMany(EnvKey),
    /// A record of the env cannot be read.
    #[error("{env} is left as it is: {why}")]
    Frozen {
        /// The env.
        env: EnvKey,
        /// Which record.
        why: String,
    },
    /// No node takes it, or the release lacks something.
    #[error("no instance can be made for the command: {0}")]
    Blocked(String),
}

impl Planner {
    /// Makes the instance of a command, of the release that is wanted in its env.
    ///
    /// # Errors
    /// It cannot be run now. Nothing has changed.
    pub fn run_command(
        &mut self,
        cluster: &mut ClusterState,
        wanted: &WantedCommand,
        now: Timestamp,
        draw: &mut dyn FnMut() -> u32,
    ) -> Result<(InstanceId, Planned), CommandRefused> {
        let key = &wanted.env;
        let no_release = || CommandRefused::NoRelease(key.clone());
        if let Some(record) = cluster.frozen_by(key) {
            return Err(CommandRefused::Frozen {
                env: key.clone(),
                why: record.to_string(),
            });
        }
        let env = cluster.envs.get_shared(key).ok_or_else(no_release)?;
        if env.destroying {
            return Err(no_release());
        }
        let number = env.rollout.wanted;
        let release = env.releases.get(&number).ok_or_else(no_release)?;
        let processes = &release.manifest.processes;
        if !processes.contains_key(&wanted.process) {
            return Err(CommandRefused::NoProcess {
                env: key.clone(),
                process: wanted.process.clone(),
                there: processes.keys().map(ToString::to_string).collect(),
            });
        }
        let there = cluster.instances.of_env(key);
        let commands = there.filter(|(_, instance)| instance.spec.runs.is_command());
        if commands.count() >= MAX_COMMANDS_OF_ENV {
            return Err(CommandRefused::TooMany(key.clone()));
        }
        let mut pass = Pass {
            working: cluster,
            placement: &mut self.placement,
            now,
            draw,
            last_id: None,
            planned: Planned::default(),
            unplaced: Vec::new(),
            freed: BTreeSet::new(),
        };
        let task = Task {
            key,
            env: env.as_ref(),
            release,
            rollout: &env.rollout,
            goal: Goal {
                make: number,
                halted: None,
            },
            process: &wanted.process,
            wanted: 1,
        };
        let runs = Runs::Command {
            attached: wanted.attached,
            ends_at: wanted.ends_at,
        };
        task.make_one(&mut pass, (runs, Some(&wanted.command)), None)
            .map_err(|why| CommandRefused::Blocked(why.to_string()))?;
        let mut planned = pass.planned;
        planned.env = Some(key.clone());
        let made = planned.actions.iter().find_map(|action| match action {
            Action::Create(placed) => Some((placed.spec.id, placed.node)),
            _ => None,
        });
        let (made, node) = made.ok_or_else(|| {
            CommandRefused::Blocked("the cluster state does not take it".to_owned())
        })?;
        if let (Some(call), Some(env)) = (&wanted.call, cluster.envs.get_mut(key)) {
            env.runs.add(KeyedRun {
                by: call.by.clone(),
                key: call.key.clone(),
                call: call.digest.clone(),
                instance: made,
                release: number,
                process: wanted.process.clone(),
                node,
                ends_at: wanted.ends_at,
            });
            let record = EnvRecord::of(env);
            planned.changes.envs.insert(key.clone(), record);
        }
        // So that its end is looked at when it is due.
        self.queue.insert(key.clone());
        Ok((made, planned))
    }
}

/// Terminates the commands of users that have ended, or are to.
pub(super) fn end(planner: &mut Pass<'_, '_>, views: &[InstanceView]) {
    for view in views.iter().filter(|view| !view.terminating) {
        let Runs::Command { ends_at, .. } = view.runs else {
            continue;
        };
        let reason = match view.health {
            // How is in the record of the ended instance.
            InstanceHealth::Completed | InstanceHealth::Terminated => {
                "its command has ended".to_owned()
            }
            _ if view.lost => format!(
                "{} is offline, and whether the command completed is not known: it is not run again",
                planner.node_name(view.node)
            ),
            _ if ends_at <= planner.now => "its time is over".to_owned(),
            InstanceHealth::Ready
            | InstanceHealth::Pending
            | InstanceHealth::CrashLoop
            | InstanceHealth::Unknown => continue,
        };
        terminate(planner, view, reason);
    }
}

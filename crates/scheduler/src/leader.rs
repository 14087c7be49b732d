//! The one writer of the cluster state, without its store, clock and network.
//!
//! The leader holds the cluster state in memory. A command is decided on the state with all that was decided before it,
//! committed or not, and changes it at once. What changed gathers in a [`Batch`], which its caller writes to the store in
//! one transaction while further commands are decided:
//!
//! ```text
//!   execute, plan_next --> working state --take_batch--> Batch --the store wrote it--> committed state
//!                               ^                          |
//!                               +------- roll_back <-------+ the store refused it
//! ```
//!
//! An answer goes out, and readers see a change, when its batch is committed. A batch that the store refuses takes all
//! that was decided after it along: that was decided on a state which never came to be.

use std::collections::BTreeSet;

use api::event::Event;
use model::{EnvKey, InstanceId, NodeId, Term, Timestamp};

use crate::action::Action;
use crate::apply::{Command, Refused, apply};
use crate::changes::Changes;
use crate::cluster_state::{ClusterState, Presence, Rollout};
use crate::event_log::PrunedEvents;
use crate::events::{self, Origin};
use crate::placement::PromisedIndex;
use crate::planner::{CommandRefused, Finding, Planned, Planner, WantedCommand};
use crate::routes::RouteIndex;
use crate::table::Table;

/// The cluster state in the hands of its one writer.
#[derive(Debug)]
pub struct Leader {
    /// With all that is decided.
    working: ClusterState,
    /// As the last batch was taken: with `pending` on it, this is `working`.
    taken: ClusterState,
    /// With all that the store has.
    committed: ClusterState,
    planner: Planner,
    /// What was decided since the last batch was taken.
    pending: Changes,
    /// The envs that this is about, or whose nodes came or went.
    touched: BTreeSet<EnvKey>,
    /// The routes with all that is in a batch.
    routes: RouteIndex,
    /// The routes that the store has.
    committed_routes: RouteIndex,
}

/// What was decided since the batch before: one transaction.
#[derive(Debug)]
pub struct Batch {
    /// What the store writes.
    pub changes: Changes,
    /// The cluster state once it is written.
    pub after: ClusterState,
    /// The routes once it is written.
    pub routes: RouteIndex,
    /// What waits in each env, and why.
    pub findings: Table<EnvKey, Vec<Finding>>,
    /// What is promised on each node once it is written.
    pub promised: PromisedIndex,
    /// The envs whose instances, release, volumes or nodes are others than before.
    pub touched: BTreeSet<EnvKey>,
}

impl Leader {
    /// A leader of the cluster state and the routes that the store has. Every env is to be planned.
    pub fn new(mut cluster: ClusterState, routes: RouteIndex) -> Self {
        let frozen: BTreeSet<_> = (cluster.unreadable.iter())
            .filter_map(|record| record.env.clone())
            .collect();
        for env in &frozen {
            let hosts = routes.hosts_of(env).cloned();
            cluster.host_claims.keep(env, hosts);
        }
        let planner = Planner::new(&cluster);
        // A frozen env may have routes and no readable record.
        let routed = routes.envs().cloned();
        let touched = cluster.envs.keys().cloned().chain(routed).collect();
        Self {
            working: cluster.clone(),
            taken: cluster.clone(),
            committed: cluster,
            planner,
            pending: Changes::default(),
            touched,
            committed_routes: routes.clone(),
            routes,
        }
    }

    /// The cluster state with all that is decided, committed or not: what the next command is decided on.
    pub fn state(&self) -> &ClusterState {
        &self.working
    }

    /// The cluster state that the store has.
    pub fn committed(&self) -> &ClusterState {
        &self.committed
    }

    /// Carries commands out, all or none. True when they changed anything. What happened is told by events ([`crate::events`]), which are a
    /// part of the changes.
    ///
    /// # Errors
    /// One of them does not fit the cluster state. Nothing has changed.
    pub fn execute(&mut self, origin: &Origin, commands: &[Command]) -> Result<bool, Refused> {
        let before = self.working.clone();
        let mut changes = Changes::default();
        for command in commands {
            match apply(&mut self.working, command) {
                Ok(changed) => changes.then(changed),
                Err(refused) => {
                    self.working = before;
                    return Err(refused);
                }
            }
        }
        if changes.is_empty() {
            return Ok(false);
        }
        self.planner.observe(&self.working, &changes);
        self.touch(&before, &changes);
        let events = events::of_commands(origin, commands, &before, &self.working, &changes);
        self.working.event_log.add(events, &mut changes);
        self.pending.then(changes);
        Ok(true)
    }

    /// Says that a node is heard, and by which version of the protocol, or that it is not. True when that changes anything; it is not stored.
    pub fn set_heard(&mut self, id: NodeId, heard: Option<u32>, now: Timestamp) -> bool {
        let Some(node) = self.working.nodes.get_mut(&id) else {
            return false;
        };
        let is_back = matches!(node.presence, Presence::Lapsed { .. }) && heard.is_some();
        node.presence = match (node.presence, heard) {
            (Presence::Lapsed { .. }, None) => return false,
            (Presence::Heard { protocol, .. }, Some(now)) if protocol == now => return false,
            // Another agent, and no gap.
            (Presence::Heard { since, .. }, Some(protocol)) => Presence::Heard { since, protocol },
            (_, Some(protocol)) => Presence::Heard {
                since: now,
                protocol,
            },
            (_, None) => Presence::Lapsed { since: now },
        };
        if is_back {
            self.record_event(events::online(now, &self.working, id));
        }
        let braked = self.planner.is_braked();
        self.planner.observe_node(&self.working, id);
        let here = self.working.instances.on_node(id);
        self.touched
            .extend(here.map(|(_, instance)| instance.spec.env_key()));
        if braked && !self.planner.is_braked() {
            self.begin_graces_anew(now);
        }
        true
    }

    /// Adds an event that comes without a record of the cluster state that changed.
    pub fn record_event(&mut self, event: Event) {
        let mut changes = Changes::default();
        self.working.event_log.add(vec![event], &mut changes);
        self.pending.then(changes);
    }

    /// The cluster was logged in to a registry, `as ann` or `by a token`, or out of it. The login itself is no part of the cluster state: who keeps it says so here when it is
    /// kept.
    pub fn registry_changed(&mut self, origin: &Origin, registry: &str, login: Option<&str>) {
        self.record_event(events::registry(origin, registry, login));
    }

    /// This leader begins to lead, in this term.
    pub fn begins_term(&mut self, term: Term, now: Timestamp) {
        self.record_event(events::leads(now, term));
    }

    /// What came between many nodes and this server is over: those that are not heard yet have their grace again, because they are
    /// about to be.
    fn begin_graces_anew(&mut self, now: Timestamp) {
        for id in self.planner.lapsed_together().to_vec() {
            if let Some(node) = self.working.nodes.get_mut(&id) {
                node.presence = Presence::Lapsed { since: now };
            }
            self.planner.observe_node(&self.working, id);
        }
    }

    /// The clock that `now` is read from was set: deadlines and graces begin anew, and everything is looked at.
    pub fn clock_was_set(&mut self, now: Timestamp) {
        self.working.counting_since = now;
        for node in self.working.nodes.values_mut() {
            match &mut node.presence {
                Presence::NotHeardYet => {}
                Presence::Heard { since, .. } | Presence::Lapsed { since } => *since = now,
            }
        }
        self.planner.start_over(&self.working);
    }

    /// Plans one env that is to be looked at, and gives what was decided of it. `None`: there is none.
    pub fn plan_next(
        &mut self,
        now: Timestamp,
        draw: &mut dyn FnMut() -> u32,
    ) -> Option<Vec<Action>> {
        let planned = self.planner.plan_next(&mut self.working, now, draw)?;
        Some(self.keep(planned, &Origin::planner(now)))
    }

    /// Makes the instance of a command of a user.
    ///
    /// # Errors
    /// It cannot be run now. Nothing has changed.
    pub fn run_command(
        &mut self,
        origin: &Origin,
        wanted: &WantedCommand,
        draw: &mut dyn FnMut() -> u32,
    ) -> Result<InstanceId, CommandRefused> {
        let now = origin.at;
        let (made, planned) = self
            .planner
            .run_command(&mut self.working, wanted, now, draw)?;
        self.keep(planned, origin);
        Ok(made)
    }

    /// Deletes the records of ended instances that are kept no longer.
    pub fn prune(&mut self, now: Timestamp) -> Vec<Action> {
        let planned = self.planner.prune(&mut self.working, now);
        self.keep(planned, &Origin::planner(now))
    }

    /// The planner: what waits, and when it is to look again.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Keeps the planner from an env that it cannot plan, until `until`; the cause is shown as what it waits for.
    pub fn quarantine(&mut self, env: EnvKey, cause: String, now: Timestamp, until: Timestamp) {
        self.record_event(events::quarantined(now, &self.working, &env, &cause));
        self.touched.insert(env.clone());
        self.planner.quarantine(env, cause, until);
    }

    /// Whether something was decided since the last batch was taken.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The state to go back to with [`Self::restore`] when the next decision panics.
    pub fn checkpoint(&self) -> ClusterState {
        self.working.clone()
    }

    /// A decision panicked half-way: back to the state before it.
    pub fn restore(&mut self, checkpoint: ClusterState) {
        self.working = checkpoint;
        self.planner.start_over(&self.working);
    }

    /// Planning an env panicked half-way: back to the state with all that was decided before. Every env is planned again.
    pub fn abandon_plan(&mut self) {
        self.working = self.decided();
        self.planner.start_over(&self.working);
    }

    /// The working state without what is half decided. It is made from what was decided, so that nobody holds a copy while an env
    /// is planned: what a copy shares is copied when it changes.
    pub(crate) fn decided(&self) -> ClusterState {
        let mut decided = self.taken.clone();
        self.pending.patch(&mut decided);
        decided.hear_as(&self.working);
        decided.unreadable.clone_from(&self.working.unreadable);
        decided
    }

    /// Takes what was decided since the batch before, and what that does to the routes.
    pub fn take_batch(&mut self) -> Batch {
        let touched = std::mem::take(&mut self.touched);
        let mut changes = std::mem::take(&mut self.pending);
        changes.routes = self.routes.update(&self.working, &touched);
        changes.pruned_events = PrunedEvents::after(&changes.events);
        self.taken = self.working.clone();
        Batch {
            changes,
            after: self.working.clone(),
            routes: self.routes.clone(),
            findings: self.planner.findings().clone(),
            promised: self.planner.promised().clone(),
            touched,
        }
    }

    /// The store has written a batch.
    pub fn commit(&mut self, batch: &Batch) {
        self.committed = batch.after.clone();
        self.committed_routes = batch.routes.clone();
    }

    /// The store refused a batch: back to what it has. Which nodes are heard stays known. Every env is planned again.
    pub fn roll_back(&mut self) {
        let before = std::mem::replace(&mut self.working, self.committed.clone());
        self.working.hear_as(&before);
        self.taken = self.working.clone();
        self.routes = self.committed_routes.clone();
        self.pending = Changes::default();
        self.planner.start_over(&self.working);
        self.touched = self.working.envs.keys().cloned().collect();
    }

    /// A plan is about its env and nothing else.
    fn keep(&mut self, mut planned: Planned, origin: &Origin) -> Vec<Action> {
        let told = events::of_plan(
            origin,
            &planned.actions,
            &self.working,
            &planned.changes,
            |env| self.rollout_before(env),
        );
        self.working.event_log.add(told, &mut planned.changes);
        if planned.is_news || !planned.changes.is_empty() {
            self.touched.extend(planned.env);
        }
        self.pending.then(planned.changes);
        planned.actions
    }

    /// How the rollout of an env stood with all that was decided before the plan at hand.
    fn rollout_before(&self, env: &EnvKey) -> Option<Rollout> {
        if let Some(record) = self.pending.envs.get(env) {
            return Some(record.rollout.clone());
        }
        let taken = self.taken.envs.get(env);
        taken.map(|env| env.rollout.clone())
    }

    fn touch(&mut self, before: &ClusterState, changes: &Changes) {
        let after = &self.working;
        for id in changes.instances.keys() {
            for state in [before, after] {
                let instance = state.instances.get(id);
                self.touched.extend(instance.map(|i| i.spec.env_key()));
            }
        }
        self.touched.extend(changes.envs.keys().cloned());
        self.touched.extend(changes.deleted_envs.iter().cloned());
        let releases = changes.releases.keys().map(|(env, _)| env.clone());
        self.touched.extend(releases);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use api::protocol::PROTOCOL_VERSION;

    use super::*;
    use crate::cluster_state::{Subject, UnreadableRecord};
    use crate::fixtures::{cluster, deploy, key, manifest, name, process};
    use crate::host_claims::HostClaims;
    use crate::routes::taken_hosts;
    use std::collections::BTreeMap;

    fn leader() -> Leader {
        let mut cluster = cluster(2);
        let release = manifest(&[("web", process(2))]);
        deploy(&mut cluster, "shop/prod", release, Timestamp(0));
        Leader::new(cluster, RouteIndex::default())
    }

    fn plan(leader: &mut Leader) -> Vec<Action> {
        let mut id = 0x10;
        let mut draw = || {
            id += 1;
            id
        };
        let mut actions = Vec::new();
        while let Some(planned) = leader.plan_next(Timestamp(1), &mut draw) {
            actions.extend(planned);
        }
        actions
    }

    fn scale(count: u32) -> Command {
        Command::SetScale {
            env: key("shop/prod"),
            scale: BTreeMap::from([(name("web"), count)]),
        }
    }

    #[test]
    fn a_batch_holds_what_was_decided_and_the_state_that_it_leads_to() {
        let mut leader = leader();
        assert_eq!(plan(&mut leader).len(), 2);
        assert!(leader.committed().instances.is_empty());
        let batch = leader.take_batch();
        assert_eq!(batch.changes.instances.len(), 2);
        assert_eq!(batch.after.instances.len(), 2);
        assert!(batch.touched.contains(&key("shop/prod")));
        // Further decisions build on it before the store has it.
        assert!(
            leader
                .execute(&crate::fixtures::origin(), &[scale(3)])
                .unwrap()
        );
        assert_eq!(plan(&mut leader).len(), 1);
        let mut patched = leader.committed().clone();
        batch.changes.patch(&mut patched);
        assert_eq!(patched, batch.after);
        leader.commit(&batch);
        assert_eq!(leader.committed().instances.len(), 2);
        assert_eq!(leader.take_batch().changes.instances.len(), 1);
    }

    #[test]
    fn a_frozen_env_claims_the_hosts_that_lead_to_it() {
        let mut cluster = cluster(1);
        let release = manifest(&[("web", process(1))]);
        deploy(&mut cluster, "shop/prod", release.clone(), Timestamp(0));
        let mut routes = RouteIndex::default();
        routes.update(&cluster, cluster.envs.keys());
        cluster.envs.clear();
        cluster.host_claims = HostClaims::default();
        cluster.unreadable = vec![UnreadableRecord {
            subject: Subject::Env(key("shop/prod")),
            env: Some(key("shop/prod")),
            node: None,
            holds: None,
            cause: "a test".to_owned(),
        }];
        let mut leader = Leader::new(cluster, routes);
        let taken = |leader: &Leader| taken_hosts(leader.state(), &key("thief/prod"), &release);
        let hosts: Vec<_> = release.routes.keys().cloned().collect();
        assert!(!hosts.is_empty());
        let claimed: Vec<_> = taken(&leader).into_keys().collect();
        assert_eq!(claimed, hosts);
        // Also after a batch, and one that was refused.
        let batch = leader.take_batch();
        leader.commit(&batch);
        leader.roll_back();
        assert_eq!(taken(&leader).len(), hosts.len());
        // Its own env has them.
        assert!(taken_hosts(leader.state(), &key("shop/prod"), &release).is_empty());
    }

    #[test]
    fn a_refused_batch_takes_all_that_was_decided_after_it_along() {
        let mut leader = leader();
        plan(&mut leader);
        let refused = leader.take_batch();
        leader
            .execute(&crate::fixtures::origin(), &[scale(3)])
            .unwrap();
        assert!(leader.set_heard(NodeId(2), None, Timestamp(1)));
        leader.roll_back();
        assert!(!leader.has_pending());
        assert!(leader.state().instances.is_empty());
        assert!(leader.state().envs[&key("shop/prod")].scale.is_empty());
        assert!(leader.state().nodes[&NodeId(2)].has_lapsed());
        // The envs are planned again, and with the same result.
        assert_eq!(plan(&mut leader).len(), 2);
        assert_eq!(refused.changes.instances.len(), 2);
    }

    #[test]
    fn case_nodes_that_come_back_one_after_the_other_after_a_mass_loss_have_their_grace_again() {
        const LOST_AFTER: u64 = crate::planner::LOST_AFTER_MS;
        let mut cluster = cluster(6);
        let release = manifest(&[("web", process(3))]);
        deploy(&mut cluster, "shop/prod", release, Timestamp(0));
        let mut leader = Leader::new(cluster, RouteIndex::default());
        plan(&mut leader);
        let mut id = 0x100;
        let mut planned_at = |leader: &mut Leader, now| {
            let mut draw = || {
                id += 1;
                id
            };
            let mut created = 0;
            while let Some(actions) = leader.plan_next(Timestamp(now), &mut draw) {
                let creates = |action: &&Action| matches!(action, Action::Create(_));
                created += actions.iter().filter(creates).count();
            }
            created
        };
        for node in 1..=3 {
            leader.set_heard(NodeId(node), None, Timestamp(10));
        }
        // Their graces are long over, but so many do not break at once.
        let healed = 10 * LOST_AFTER;
        assert_eq!(planned_at(&mut leader, healed), 0);
        // The first one is back. The others are about to be.
        leader.set_heard(NodeId(3), Some(PROTOCOL_VERSION), Timestamp(healed));
        assert_eq!(planned_at(&mut leader, healed), 0);
        assert_eq!(planned_at(&mut leader, healed + LOST_AFTER - 1), 0);
        // They are not.
        assert_eq!(planned_at(&mut leader, healed + LOST_AFTER), 2);
    }

    #[test]
    fn commands_are_carried_out_together_or_not_at_all() {
        let mut leader = leader();
        let missing = Command::DestroyEnv {
            env: key("other/prod"),
        };
        let before = leader.state().clone();
        let refused = leader
            .execute(&crate::fixtures::origin(), &[scale(5), missing])
            .unwrap_err();
        assert_eq!(refused, Refused::NoEnv(key("other/prod")));
        assert_eq!(*leader.state(), before);
        assert!(!leader.has_pending());
    }

    #[test]
    fn an_env_in_quarantine_is_left_alone_and_blocks_nobody() {
        let mut leader = leader();
        let release = manifest(&[("web", process(1))]);
        let mut cluster = leader.state().clone();
        let mut other = release.clone();
        other.routes.clear();
        deploy(&mut cluster, "other/prod", other, Timestamp(0));
        leader = Leader::new(cluster, RouteIndex::default());
        leader.quarantine(
            key("shop/prod"),
            "a test".to_owned(),
            Timestamp(1),
            Timestamp(100),
        );
        let actions = plan(&mut leader);
        assert_eq!(actions.len(), 1, "{actions:?}");
        let findings = leader.planner().findings();
        assert!(findings[&key("shop/prod")][0].message.contains("a test"));
        assert_eq!(leader.planner().next_due(), Some(Timestamp(100)));
        let mut id = 0x20;
        let mut draw = || {
            id += 1;
            id
        };
        let planned = leader.plan_next(Timestamp(100), &mut draw);
        // The other env rolls out and is due as well.
        let next = leader.plan_next(Timestamp(100), &mut draw);
        let made = [planned, next].into_iter().flatten();
        assert_eq!(made.map(|actions| actions.len()).sum::<usize>(), 2);
    }
}

//! What operators do and what befalls a cluster in a run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::enrollment::{EnrollRole, Member};
use model::{NodeId, Timestamp};
use scheduler::apply::{Command, NewMember};
use scheduler::cluster_state::{ClusterState, Node, Presence, Scheduling, TokenRecord};
use scheduler::fixtures;
use scheduler::heartbeats::{LEAST_HEARTBEAT_INTERVAL, heard_within};
use tokio::time::sleep;

use crate::computer::Cut;
use crate::link::Faults;
use crate::machine::Machine;
use crate::node::Node as SimulatedNode;
use crate::operation::{BAD_APPS, GOOD_APPS, OPERATIONS, Operation};
use crate::scenario::{FaultLevel, Scenario, disk_bytes, hardware};
use crate::simulator::App;

/// The furthest that a clock is set, in milliseconds.
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Machines that a cluster has at most.
const MAX_NODES: usize = 5;

impl Scenario {
    pub(crate) async fn operate(&mut self) {
        let mut operation = self
            .draw(|rng| rng.pick(&OPERATIONS))
            .unwrap_or(Operation::Heal);
        if self.fault_level == FaultLevel::Restored && self.draw(|rng| rng.percent(25)) {
            operation = if self.draw(|rng| rng.percent(50)) {
                Operation::BackUp
            } else {
                Operation::Restore
            };
        }
        let at = self.draw(|rng| rng.below(self.nodes.len() as u64)) as usize;
        let server = self.draw(|rng| rng.below(self.servers.all.len() as u64)) as usize;
        // What befalls the leader is the most interesting.
        let server = match self.servers.leading().first() {
            Some(leader) if self.draw(|rng| rng.percent(60)) => *leader,
            _ => server,
        };
        let machine = self.nodes[at].machine.clone();
        let running = machine.running();
        let victim = self.draw(|rng| rng.pick(&running));
        self.simulator
            .trace(format!("{operation:?} on {}", machine.node));
        match operation {
            Operation::Deploy => {
                let good = self.draw(|rng| rng.percent(60));
                let apps = if good { &GOOD_APPS[..] } else { &BAD_APPS[..] };
                let app = self.draw(|rng| rng.pick(apps)).unwrap_or(App::Healthy);
                self.deploy(app).await;
            }
            Operation::Scale => {
                self.scale().await;
                // A user who thinks better of it, before the nodes have done what they were told.
                if self.draw(|rng| rng.percent(30)) {
                    let pause = self.draw(|rng| rng.millis(0, 500));
                    sleep(pause).await;
                    self.scale().await;
                }
            }
            Operation::Run => self.run_command().await,
            Operation::KillAgent => self.restart_agent(at).await,
            Operation::Reboot => {
                self.nodes[at].kill().await;
                machine.reboot();
                self.restart_agent(at).await;
            }
            Operation::KillVm => {
                if let Some(id) = victim {
                    machine.end_vm(id, "signal 9");
                }
            }
            Operation::CrashApp => {
                if let Some(id) = victim {
                    machine.crash_app(id);
                }
            }
            Operation::Partition => self.partition(at),
            Operation::MassPartition => self.mass_partition(at).await,
            Operation::ServerDown
            | Operation::PauseServer
            | Operation::CutStore
            | Operation::CutServers
            | Operation::StepServerClock
            | Operation::StepDatabaseClock => self.befall_server(operation, server).await,
            Operation::RemoveNode => self.remove_node(at).await,
            Operation::RevokeNode => self.revoke_node(at).await,
            Operation::AddNode => self.add_node().await,
            Operation::DiskFull => machine.lock().disk_full = true,
            Operation::RegistryDown => machine.lock().registry_down = true,
            Operation::LossyLink => {
                let mut faults = self.nodes[at].link.faults();
                faults.loss_percent = self.simulator.draw(|rng| rng.below(50));
                faults.late_percent = self.simulator.draw(|rng| rng.below(30));
                faults.twice_percent = self.simulator.draw(|rng| rng.below(30));
            }
            Operation::FailingBoots => machine.lock().boot_failures_percent = 50,
            Operation::WrongStates => self.nodes[at].link.faults().wrong_state_percent = 20,
            Operation::DamageRecord => self.damage_record(at).await,
            Operation::UnreadableVm => {
                if let Some(id) = victim {
                    machine.lock().unreadable_vms.insert(id);
                    self.restart_agent(at).await;
                }
            }
            Operation::Schedule => {
                let modes = [
                    Scheduling::Schedulable,
                    Scheduling::Cordoned,
                    Scheduling::Draining {
                        with_volumes: false,
                    },
                    Scheduling::Draining { with_volumes: true },
                ];
                let scheduling = self.draw(|rng| rng.pick(&modes)).unwrap_or_default();
                self.schedule(machine.node, scheduling).await;
            }
            Operation::BackUp => self.servers.store.back_up(),
            Operation::Restore => self.restore(),
            Operation::Heal => self.heal().await,
        }
    }

    /// A user says whether a node takes instances.
    async fn schedule(&self, node: NodeId, scheduling: Scheduling) {
        self.simulator.trace(format!("{node}: {scheduling:?}"));
        let change = move |cluster: &ClusterState, _| {
            let is_there = cluster.nodes.contains_key(&node);
            let change = is_there.then_some(Command::SetScheduling { node, scheduling });
            change.into_iter().collect()
        };
        self.servers.change(change).await;
    }

    /// A node does not reach the servers any more, or one of them, or is not heard by them.
    fn partition(&self, at: usize) {
        let count = self.servers.all.len() as u64;
        let (cut, of) = self.draw(|rng| {
            let cut = rng.pick(&Cut::ALL).unwrap_or(Cut::Both);
            let of = rng.percent(40).then(|| rng.below(count) as usize);
            (cut, of)
        });
        let all = 0..self.servers.all.len();
        let cut_off = all.filter(|server| of.is_none_or(|of| of == *server));
        let mut faults = self.nodes[at].link.faults();
        faults.cut.extend(cut_off.map(|server| (server, cut)));
        drop(faults);
        let node = self.nodes[at].machine.node;
        let from = of.map_or("every server".to_owned(), |of| format!("server {}", of + 1));
        self.simulator
            .trace(format!("{node} is cut off from {from}: {cut:?}"));
        if self.draw(|rng| rng.percent(30)) {
            self.edge.dialer.faults().cut.insert(of.unwrap_or(0), cut);
        }
    }

    /// All nodes but one reach no server, for so long that one of them alone would be given up.
    async fn mass_partition(&self, spared: usize) {
        let others = self.nodes.iter().enumerate();
        for (_, node) in others.filter(|(at, _)| *at != spared) {
            let servers = 0..self.servers.all.len();
            let mut faults = node.link.faults();
            faults.cut.extend(servers.map(|server| (server, Cut::Both)));
        }
        let wait = self.draw(|rng| rng.millis(60_000, 120_000));
        sleep(wait).await;
    }

    /// Something befalls a server, or the database that the servers share.
    async fn befall_server(&mut self, operation: Operation, at: usize) {
        let server = self.servers.all[at].clone();
        let computer = &server.computer;
        let trace = |what: String| self.simulator.trace(format!("{computer:?} {what}"));
        // Where others may take over it takes as long as it takes.
        let stays = self.servers.all.len() > 1 && self.draw(|rng| rng.percent(50));
        let wait = self.draw(|rng| rng.millis(0, 60_000));
        match operation {
            Operation::ServerDown => {
                trace("ends".to_owned());
                server.crash();
                if !stays {
                    sleep(wait).await;
                    trace("starts".to_owned());
                    server.start();
                }
            }
            Operation::PauseServer => {
                let is_suspended = self.draw(|rng| rng.percent(50));
                trace(format!("is stopped, its clock stands: {is_suspended}"));
                if self.draw(|rng| rng.percent(50)) {
                    computer.stop(is_suspended);
                } else {
                    computer.stop_in_write(is_suspended);
                }
                if !stays {
                    sleep(wait / 3).await;
                    trace("goes on".to_owned());
                    computer.resume();
                }
            }
            Operation::CutStore if self.servers.store.is_shared() => {
                let cut = self.draw(|rng| rng.pick(&Cut::ALL)).unwrap_or(Cut::Both);
                trace(format!("is cut off from the store: {cut:?}"));
                computer.cut_from_store(cut);
            }
            Operation::CutServers => {
                let peer = self.draw(|rng| rng.below(self.servers.all.len() as u64)) as usize;
                trace(format!("does not reach server {}", peer + 1));
                computer.cut_from(peer);
            }
            Operation::StepServerClock => {
                let by =
                    self.draw(|rng| rng.below(2 * HOUR_MS)).cast_signed() - HOUR_MS.cast_signed();
                trace(format!("has its clock set by {by} ms"));
                computer.step_clock(by);
            }
            Operation::StepDatabaseClock => {
                let by =
                    self.draw(|rng| rng.below(2 * HOUR_MS)).cast_signed() - HOUR_MS.cast_signed();
                trace(format!(
                    "and others: the database's clock is set by {by} ms"
                ));
                self.was_set_back |= by < 0;
                self.servers.store.step_clock(by);
            }
            _ => {}
        }
    }

    /// The store is put back, while no server runs.
    fn restore(&self) {
        for server in self.servers.all.iter() {
            server.crash();
        }
        if self.servers.store.restore() {
            self.simulator.restored();
            self.simulator
                .trace("the store has the state of its backup");
        }
        for server in self.servers.all.iter() {
            server.start();
        }
    }

    /// A node's machine is lost, and a user removes it. It may come back.
    async fn remove_node(&mut self, at: usize) {
        if self.servers.with(|cluster| cluster.nodes.len()) < 2 {
            return;
        }
        self.nodes[at].kill().await;
        let node = self.nodes[at].machine.node;
        sleep(heard_within(LEAST_HEARTBEAT_INTERVAL) + Duration::from_secs(5)).await;
        self.simulator
            .trace(format!("{node} is given up, if it lapsed"));
        let remove = move |cluster: &ClusterState, now| {
            let known = cluster.nodes.get(&node);
            let lost = known.is_some_and(Node::has_lapsed);
            let remove = Command::RemoveNode { node, lost, now };
            lost.then_some(remove).into_iter().collect()
        };
        self.servers.change(remove).await;
        self.restart_agent(at).await;
    }

    /// A user revokes a node, whose machine goes on; later the node is removed.
    async fn revoke_node(&mut self, at: usize) {
        let approved =
            |cluster: &ClusterState| cluster.nodes.values().filter(|n| n.is_approved()).count();
        if self.servers.with(approved) < 2 {
            return;
        }
        let node = self.nodes[at].machine.node;
        self.simulator.trace(format!("{node} is revoked"));
        let revoke = move |cluster: &ClusterState, now| {
            let known = cluster.nodes.get(&node);
            let member = Member::Node(node);
            let revoke = Command::Revoke { member, now };
            let is_approved = known.is_some_and(Node::is_approved);
            is_approved.then_some(revoke).into_iter().collect()
        };
        self.servers.change(revoke).await;
        let wait = self.draw(|rng| rng.millis(0, 90_000));
        sleep(wait).await;
        self.remove_revoked().await;
    }

    /// A user removes the nodes that were revoked.
    pub(crate) async fn remove_revoked(&self) {
        let remove = |cluster: &ClusterState, now| {
            let revoked = cluster.nodes.iter().filter(|(_, node)| !node.is_approved());
            let remove = |node| Command::RemoveNode {
                node,
                lost: true,
                now,
            };
            revoked.map(|(id, _)| remove(*id)).collect()
        };
        self.servers.change(remove).await;
    }

    /// A machine joins.
    async fn add_node(&mut self) {
        if self.nodes.len() >= MAX_NODES {
            return;
        }
        let added = Arc::new(Mutex::new(None));
        let (id, scarce) = (added.clone(), self.scarce);
        let add = move |cluster: &ClusterState, now| {
            let number = cluster.last_node + 1;
            *id.lock().unwrap_or_else(PoisonError::into_inner) = Some(NodeId(number));
            let hash = [number.to_le_bytes()[0]; 32];
            let token = TokenRecord::new(EnrollRole::Node, Timestamp(u64::MAX));
            let (node, mut joined) = fixtures::node(number, 4096);
            joined.hardware = hardware(scarce);
            joined.approved = hardware(scarce);
            joined.presence = Presence::NotHeardYet;
            joined.enrolled_at = now;
            joined.wireguard_key = Some(format!("key of {number}"));
            let member = NewMember::Node(node, Box::new(joined));
            vec![
                Command::AddToken { hash, token, now },
                Command::Enroll {
                    token: hash,
                    member,
                    now,
                },
            ]
        };
        if !self.servers.change(add).await {
            return;
        }
        let id = *added.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = id else { return };
        self.simulator.trace(format!("{id} joins"));
        let leaves_tap = self.nodes[0].machine.lock().leaves_tap;
        let machine = Machine::of(
            &self.simulator,
            id,
            hardware(scarce),
            disk_bytes(scarce),
            leaves_tap,
        );
        let mut node = SimulatedNode::on(machine, &self.servers);
        node.start();
        self.nodes.push(node);
    }

    async fn restart_agent(&mut self, at: usize) {
        self.nodes[at].kill().await;
        let wait = self.draw(|rng| rng.millis(0, 15_000));
        sleep(wait).await;
        self.nodes[at].start();
    }

    /// Damages the record of an instance while no agent runs.
    async fn damage_record(&mut self, at: usize) {
        self.nodes[at].kill().await;
        let machine = self.nodes[at].machine.clone();
        let paths: Vec<_> = {
            let state = machine.lock();
            let records = state
                .files
                .keys()
                .filter(|path| path.ends_with("instance.json"));
            records.cloned().collect()
        };
        if let Some(path) = self.draw(|rng| rng.pick(&paths)) {
            self.simulator
                .trace(format!("{} is damaged", path.display()));
            let mut state = machine.lock();
            if let Some(content) = state.files.get_mut(&path) {
                let before = std::mem::replace(content, b"{\"spec\": ".to_vec());
                self.damaged.push((at, path, before));
            }
        }
        self.restart_agent(at).await;
    }

    /// Ends every fault.
    pub(crate) async fn heal(&mut self) {
        self.simulator.trace("everything is healed");
        for (at, path, before) in self.damaged.drain(..) {
            let mut state = self.nodes[at].machine.lock();
            if let Some(content) = state.files.get_mut(&path)
                && content.as_slice() == b"{\"spec\": "
            {
                *content = before;
            }
        }
        for node in &mut self.nodes {
            *node.link.faults() = Faults::default();
            let mut state = node.machine.lock();
            state.disk_full = false;
            state.registry_down = false;
            state.boot_failures_percent = 0;
            state.unreadable_vms.clear();
        }
        *self.edge.dialer.faults() = Faults::default();
        self.servers.heal();
        self.servers.elects_one(self.was_set_back).await;
        self.was_set_back = false;
        for at in 0..self.nodes.len() {
            let node = self.nodes[at].machine.node;
            self.schedule(node, Scheduling::Schedulable).await;
        }
    }
}

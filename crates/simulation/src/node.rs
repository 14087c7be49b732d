//! One node of a simulated cluster: the real agent on a simulated machine, which outlives it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::node::DriverChoice;
use node_agent::agent::{self, AgentSettings};
use node_agent::host::Host;
use node_agent::{Clock, Directory, NodeMetrics};
use node_core::boot::NodeFacts;
use node_core::instance::Timing;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::host::SimHost;
use crate::link::Link;
use crate::machine::Machine;
use crate::servers::Servers;

/// Where the agents keep their files.
pub(crate) const DATA_DIR: &str = "/data";
/// How deep the tasks of an agent own one another: a task is dropped after its owner.
const TASK_DEPTH: u32 = 8;
/// Pause before an agent that ended by itself is started again.
const AGENT_RESTART_PAUSE: Duration = Duration::from_secs(2);

/// One node of the cluster.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) link: Link,
    agent: Option<AbortOnDropHandle<()>>,
}

impl Node {
    #[cfg(test)]
    pub(crate) fn new(
        simulator: &crate::simulator::Simulator,
        servers: &Servers,
        id: model::NodeId,
        leaves_tap: bool,
    ) -> Self {
        Self::on(Machine::new(simulator, id, leaves_tap), servers)
    }

    pub(crate) fn on(machine: Machine, servers: &Servers) -> Self {
        Self {
            link: Link::new(servers, machine.node),
            machine,
            agent: None,
        }
    }

    /// Starts the agent, and again whenever it ends by itself.
    pub(crate) fn start(&mut self) {
        let (machine, link) = (self.machine.clone(), self.link.clone());
        machine
            .simulator
            .trace(format!("{} starts its agent", machine.node));
        let agent = async move {
            loop {
                let host = SimHost(machine.clone());
                let host = Host {
                    vmm: Arc::new(host.clone()),
                    network: Arc::new(host.clone()),
                    images: Arc::new(host.clone()),
                    disks: Arc::new(host.clone()),
                    server: Arc::new(link.clone()),
                    files: Arc::new(host.clone()),
                    logs: Arc::new(host),
                };
                let clock = Clock::start_at(machine.simulator.now());
                let settings = settings(&machine);
                let shutdown = CancellationToken::new();
                let ended = agent::run(settings, host, clock, Directory::default(), shutdown).await;
                machine
                    .simulator
                    .trace(format!("{} agent ended: {ended:?}", machine.node));
                sleep(AGENT_RESTART_PAUSE).await;
            }
        };
        self.agent = Some(AbortOnDropHandle::new(tokio::spawn(agent)));
    }

    /// Kills the agent. Its VMs go on.
    pub(crate) async fn kill(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
            // Its tasks end one after the other, and none of them acts after this.
            let _ = agent.await;
            for _ in 0..TASK_DEPTH {
                tokio::task::yield_now().await;
            }
            let machine = &self.machine;
            machine.agent_ended();
            machine
                .simulator
                .trace(format!("{} loses its agent", machine.node));
        }
    }
}

fn settings(machine: &Machine) -> AgentSettings {
    let node = machine.node;
    AgentSettings {
        cluster: "cluster-1".to_owned(),
        node,
        driver: DriverChoice {
            name: "simulated".to_owned(),
            reason: "a simulation".to_owned(),
        },
        hardware: machine.hardware.clone(),
        facts: NodeFacts {
            region: "local".to_owned(),
            node_name: format!("node-{}", node.0),
            mtu: 1420,
            resolvers: Vec::new(),
        },
        mtu: tokio::sync::watch::channel(1420).1,
        timing: Timing::default(),
        data_dir: Path::new(DATA_DIR).to_owned(),
        metrics: NodeMetrics::default(),
        first_report: None,
    }
}

//! All servers of a cluster with their store, and what users ask of them.

use std::sync::Arc;
use std::time::Duration;

use model::Timestamp;
use scheduler::apply::Command;
use scheduler::cluster_state::ClusterState;
use scheduler::lease::{STALE_AFTER_MS, TTL_MS};
use scheduler::planner::WantedCommand;
use tokio::time::{Instant, sleep, timeout};

use crate::computer::Computer;
use crate::server::{Answering, Server};
use crate::simulator::Simulator;
use crate::store::Store;
use crate::term::{CallFailure, LedTerm};

/// Within this time another server leads after the leader's end.
const TAKEOVER: Duration = Duration::from_secs(10);
/// The same after the database's clock was set back: then a lease is known to be over when it has not changed for a while.
const SLOW_TAKEOVER: Duration = Duration::from_millis(STALE_AFTER_MS + TTL_MS);
/// How long a user waits for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A user who got no answer asks again after this time.
const CALL_PAUSE: Duration = Duration::from_millis(500);
/// How long a user tries.
const CALL_PATIENCE: Duration = Duration::from_secs(30);

/// The servers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) simulator: Simulator,
    pub(crate) store: Store,
    pub(crate) all: Arc<Vec<Server>>,
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Servers")
    }
}

impl Servers {
    /// So many servers on one store, which start.
    pub(crate) fn start(simulator: &Simulator, cluster: ClusterState, count: usize) -> Self {
        let store = Store::new(simulator, cluster, count > 1);
        let make = |index| Server::new(Computer::new(simulator, index), store.clone());
        let all: Vec<_> = (0..count).map(make).collect();
        for server in &all {
            server.start();
        }
        Self {
            simulator: simulator.clone(),
            store,
            all: Arc::new(all),
        }
    }

    /// What the leader of the newest term has; where none leads, what the store has.
    fn leader(&self) -> Option<Arc<LedTerm>> {
        let newest = self.store.leader();
        self.all.iter().find_map(|server| {
            let led = server.led()?;
            let is_newest = !self.store.is_shared() || newest == (led.term, Some(led.process));
            is_newest.then_some(led)
        })
    }

    /// Looks at the cluster state.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&ClusterState) -> T) -> T {
        match self.leader() {
            Some(led) => look(&led.published().cluster),
            None => self.store.with(look),
        }
    }

    /// The servers that answer by themselves now.
    pub(crate) fn leading(&self) -> Vec<usize> {
        let leads = |server: &&Server| {
            server.is_up()
                && server.computer.is_running()
                && matches!(server.answering(false), Answering::Me(_))
        };
        let leading = self.all.iter().filter(leads);
        leading.map(|server| server.computer.index).collect()
    }

    /// Carries out what a user wants of the cluster state, who asks again when no answer comes. False: nobody took it in time, or
    /// nobody said so.
    pub(crate) async fn change(
        &self,
        decide: impl Fn(&ClusterState, Timestamp) -> Vec<Command> + Clone + Send + 'static,
    ) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < CALL_PATIENCE {
            for index in self.leading() {
                let Some(led) = self.all[index].led() else {
                    continue;
                };
                let asked = led.change(decide.clone());
                match timeout(CALL_TIMEOUT, asked).await {
                    Ok(Ok(())) => return true,
                    Ok(Err(CallFailure::Refused(refused))) => {
                        let what = format!("a user's command is refused: {refused}");
                        self.simulator.violate(what);
                        return true;
                    }
                    Ok(Err(CallFailure::NoLeader(_) | CallFailure::NotAMember)) | Err(_) => {}
                }
            }
            sleep(CALL_PAUSE).await;
        }
        self.simulator.trace("no server takes what a user wants");
        false
    }

    /// Asks the server that leads, if there is one, once to run a command.
    pub(crate) async fn run_command(
        &self,
        wanted: impl FnOnce(Timestamp) -> WantedCommand + Send + 'static,
    ) {
        let leading = self.leading();
        let led = leading.first().and_then(|index| self.all[*index].led());
        let Some(led) = led else {
            self.simulator.trace("no server takes the command");
            return;
        };
        match timeout(CALL_TIMEOUT, led.run_command(wanted)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => self.simulator.trace(format!("no command: {failure:?}")),
            Err(_) => self.simulator.trace("no server answers in time"),
        }
    }

    /// Every server runs, starts where it is down, and reaches the store and the others.
    pub(crate) fn heal(&self) {
        for server in self.all.iter() {
            server.computer.heal();
            server.start();
        }
    }

    /// Checks that soon exactly one server leads, once everything is healed. `was_set_back`: the database's clock.
    pub(crate) async fn elects_one(&self, was_set_back: bool) {
        let within = if was_set_back {
            SLOW_TAKEOVER
        } else {
            TAKEOVER
        };
        let healed = Instant::now();
        // One that just began has to load the cluster state first, and the server that leads alone to start.
        while self.leading().len() != 1 {
            if healed.elapsed() > within {
                let leading = self.leading();
                let what = format!(
                    "{} servers lead {within:?} after everything was healed: {leading:?}",
                    leading.len()
                );
                self.simulator.violate(what);
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

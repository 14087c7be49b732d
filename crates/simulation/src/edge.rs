//! A simulated edge: it polls any server for routes, and takes them by the rule of `edge_proxy::routes`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::edge::{HasRoutes, RouteTable};
use model::Generation;
use scheduler::cluster_state::ClusterState;
use scheduler::routes::routes;
use tokio::time::sleep;

use crate::link::Dialer;
use crate::servers::Servers;
use crate::term::LedTerm;

/// How long one poll waits.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// How long after that an answer is waited for, and the pause after a poll that failed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// An edge. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Edge {
    pub(crate) dialer: Dialer,
    table: Arc<Mutex<RouteTable>>,
}

impl Edge {
    pub(crate) fn new(servers: &Servers) -> Self {
        Self {
            dialer: Dialer::new(servers),
            table: Arc::default(),
        }
    }

    fn has(&self) -> HasRoutes {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        HasRoutes {
            generation: table.generation,
            session: table.session,
        }
    }

    /// Polls for ever.
    pub(crate) async fn run(self) {
        loop {
            let has = self.has();
            let poll = move |led: Arc<LedTerm>| async move { led.routes(has, POLL_WAIT).await };
            match self.dialer.call(POLL_WAIT + ANSWER_TIMEOUT, poll).await {
                Ok(Some(new)) => self.take(new),
                Ok(None) => {}
                Err(_) => sleep(ANSWER_TIMEOUT).await,
            }
        }
    }

    fn take(&self, new: RouteTable) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let base = new.since.map(|counter| Generation {
            counter,
            ..new.generation
        });
        let is_of_another_session = new.session != table.session;
        if (is_of_another_session && new.since.is_some())
            || (!is_of_another_session && !new.generation.supersedes(table.generation))
            || base.is_some_and(|base| base != table.generation)
        {
            let what = format!(
                "an edge that has {} is given {}",
                table.generation, new.generation
            );
            self.dialer.simulator().violate(what);
            return;
        }
        if base.is_none() {
            table.routes.clear();
        }
        table.routes.retain(|host, _| !new.removed.contains(host));
        table.routes.extend(new.routes);
        (table.generation, table.session) = (new.generation, new.session);
    }

    /// Whether it has the routes of this cluster state.
    pub(crate) fn is_current(&self, cluster: &ClusterState) -> Result<(), String> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.generation.incarnation == cluster.incarnation && table.routes == routes(cluster) {
            Ok(())
        } else {
            Err("the edge has other routes than the cluster state".to_owned())
        }
    }
}

//! Which instances may use the network, and the rules that follow from it.
//!
//! Calls that wait for the rules at the same time share one change of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::InstanceId;
use node_network::Endpoint;

use crate::host::{HostResult, Network};

/// The instances that may use the network.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    wanted: Mutex<Wanted>,
    /// The change that the rules have; absent: the rules are an earlier agent's. Locked while rules are loaded.
    loaded: tokio::sync::Mutex<Option<u64>>,
}

#[derive(Debug, Default)]
struct Wanted {
    instances: BTreeMap<InstanceId, Endpoint>,
    /// Counts the changes of `instances`.
    change: u64,
}

impl Admission {
    /// Admits instances, and waits until the rules have them.
    ///
    /// # Errors
    /// The rules cannot be changed; these instances are then not admitted.
    pub(crate) async fn admit(
        &self,
        network: &dyn Network,
        instances: impl IntoIterator<Item = Endpoint>,
    ) -> HostResult<()> {
        let mut new = Vec::new();
        {
            let mut wanted = self.wanted();
            for endpoint in instances {
                let id = endpoint.instance;
                if wanted.instances.insert(id, endpoint.clone()) != Some(endpoint) {
                    new.push(id);
                }
            }
            if !new.is_empty() {
                wanted.change += 1;
            }
        }
        let loaded = self.load(network).await;
        if loaded.is_err() {
            let mut wanted = self.wanted();
            wanted.instances.retain(|id, _| !new.contains(id));
            wanted.change += 1;
        }
        loaded
    }

    /// Takes an instance out, and waits until the rules lack it.
    ///
    /// # Errors
    /// The rules cannot be changed. The next change takes it out as well.
    pub(crate) async fn remove(&self, network: &dyn Network, id: InstanceId) -> HostResult<()> {
        {
            let mut wanted = self.wanted();
            if wanted.instances.remove(&id).is_none() {
                return Ok(());
            }
            wanted.change += 1;
        }
        self.load(network).await
    }

    /// Makes the rules those of the instances that are wanted now, unless somebody else just did.
    async fn load(&self, network: &dyn Network) -> HostResult<()> {
        let asked = self.wanted().change;
        let mut loaded = self.loaded.lock().await;
        if loaded.is_some_and(|loaded| loaded >= asked) {
            return Ok(());
        }
        let (change, endpoints) = {
            let wanted = self.wanted();
            (wanted.change, wanted.instances.values().cloned().collect())
        };
        network.apply_rules(endpoints).await?;
        *loaded = Some(change);
        Ok(())
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

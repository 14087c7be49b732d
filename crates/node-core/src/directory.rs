//! The directory of a node: the instances of the envs that it runs instances of, wherever they are (ADR 0004).
//!
//! The server sends what changed ([`DirectoryChanges`]); a difference fits only onto what the same session gave before. From the directory
//! follow the names that the node's resolver answers, and which peers may send from which env ([`Directory::neighbours`]). It is kept on the
//! node's disk whole, so that a start needs no server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use api::node::{DirectoryChanges, DirectoryEntry};
use model::{AppName, EnvName, EnvNetwork, Incarnation, InstanceId, NodeId, Term};
use overlay::address_plan::locate;
use serde::{Deserialize, Serialize};

/// What a node knows of the envs that it runs instances of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The life of the store that it is of.
    #[serde(default)]
    pub incarnation: Incarnation,
    /// The term of the leader that said it last.
    #[serde(default)]
    pub term: Term,
    /// The session and the counter up to which it has what the server said: what the next poll names. 0 and 0: nothing.
    #[serde(default)]
    pub position: (u64, u64),
    /// The envs.
    #[serde(default)]
    pub envs: BTreeMap<EnvNetwork, EnvInstances>,
}

/// All instances of one env.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvInstances {
    /// The app.
    pub app: AppName,
    /// The env.
    pub env: EnvName,
    /// Its instances, those that terminate too.
    pub instances: BTreeMap<InstanceId, DirectoryEntry>,
    /// Nodes with instances of it of which no more is known.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub also_on: BTreeSet<NodeId>,
}

/// Why changes were not taken. The directory is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryRefused {
    /// They are of another cluster.
    #[error("the directory is of another cluster, {0}")]
    OtherCluster(String),
    /// They are of a leader that was taken for dead since.
    #[error("the directory is of term {said}, and term {known} has begun")]
    OlderTerm {
        /// The term that it is of.
        said: Term,
        /// The newest term that is known.
        known: Term,
    },
    /// They are the difference to something else than this node has: it asks for the whole.
    #[error("the directory is a difference to what this node does not have")]
    Gap,
}

impl Directory {
    /// Takes what changed. `cluster`: the cluster that this node is of.
    ///
    /// # Errors
    /// They do not fit. After [`DirectoryRefused::Gap`] the next poll asks for the whole.
    pub fn apply(
        &mut self,
        cluster: &str,
        changes: DirectoryChanges,
    ) -> Result<(), DirectoryRefused> {
        if changes.cluster != cluster {
            return Err(DirectoryRefused::OtherCluster(changes.cluster));
        }
        if changes.incarnation == self.incarnation && changes.term < self.term {
            return Err(DirectoryRefused::OlderTerm {
                said: changes.term,
                known: self.term,
            });
        }
        match changes.since {
            None => self.envs.clear(),
            Some(since) if (changes.session, since) == self.position => {}
            Some(_) => {
                self.position = (0, 0);
                return Err(DirectoryRefused::Gap);
            }
        }
        self.incarnation = changes.incarnation;
        self.term = changes.term;
        self.position = (changes.session, changes.counter);
        for gone in &changes.removed {
            self.envs.remove(gone);
        }
        for (network, changed) in changes.envs {
            let known = self.envs.entry(network).or_insert_with(|| EnvInstances {
                app: changed.app.clone(),
                env: changed.env.clone(),
                instances: BTreeMap::new(),
                also_on: BTreeSet::new(),
            });
            if changed.whole {
                known.instances.clear();
            }
            for gone in &changed.removed {
                known.instances.remove(gone);
            }
            known.instances.extend(changed.instances);
            known.also_on = changed.also_on;
        }
        Ok(())
    }

    /// Which nodes run instances of which of these envs, but for this node itself: they may send from it.
    pub fn neighbours(&self, cluster: Ipv6Addr, own: NodeId) -> BTreeSet<(NodeId, EnvNetwork)> {
        let mut neighbours = BTreeSet::new();
        for (network, env) in &self.envs {
            // An address of another env would be a server's mistake: it opens nothing.
            let located = env.instances.values().filter_map(|entry| {
                let at = locate(cluster, entry.address)?;
                (at.network == *network).then_some(at.node)
            });
            let nodes = located.chain(env.also_on.iter().copied());
            neighbours.extend(
                nodes
                    .filter(|node| *node != own)
                    .map(|node| (node, *network)),
            );
        }
        neighbours
    }
}

#[cfg(test)]
mod tests;

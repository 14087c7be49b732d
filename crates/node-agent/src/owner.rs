//! Whose a run folder is: the file `node.json` in it. The processes of VMs are found by the folder, so a node must not take
//! another's for its own.

// ring: the crate's root has the public errors, and claims the run folder through the node that it starts.

use std::io;
use std::path::Path;

use model::NodeId;
use serde::{Deserialize, Serialize};
use state_file::StateFormat;

use crate::NodeError;

/// The file's name.
pub(crate) const OWNER_FILE: &str = "node.json";

/// A node, in all clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The cluster's random id.
    pub(crate) cluster: String,
    pub(crate) node: NodeId,
}

impl StateFormat for Owner {
    const VERSION: u32 = 1;
}

impl Owner {
    /// Makes a run folder this node's, unless it is another's that has VMs in it. Blocks.
    pub(crate) fn claim(
        &self,
        run_dir: &Path,
        has_vms: impl FnOnce(&Path) -> io::Result<bool>,
    ) -> Result<(), NodeError> {
        if let Err(refused) = Self::check(run_dir, Some(self)) {
            let has_vms = has_vms(run_dir).map_err(|source| NodeError::Folder {
                path: run_dir.to_owned(),
                source,
            })?;
            if has_vms || !matches!(refused, NodeError::AnothersRunFolder { .. }) {
                return Err(refused);
            }
            tracing::warn!(run_dir = %run_dir.display(), "took over the run folder of another node, which has no VM");
        }
        state_file::write(&run_dir.join(OWNER_FILE), self).map_err(NodeError::State)
    }

    /// Refuses a run folder of another node. One that says nothing is of an agent before there was such a file. `member`: the node
    /// of the data folder, where there is one. Blocks.
    pub(crate) fn check(run_dir: &Path, member: Option<&Self>) -> Result<(), NodeError> {
        let owner =
            state_file::read::<Self>(&run_dir.join(OWNER_FILE)).map_err(NodeError::State)?;
        match owner {
            Some(owner) if Some(&owner) != member => Err(NodeError::AnothersRunFolder {
                run_dir: run_dir.to_owned(),
                node: owner.node,
                cluster: owner.cluster,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn case_a_run_folder_of_another_node_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let owner = |cluster: &str, node| Owner {
            cluster: cluster.to_owned(),
            node: NodeId(node),
        };
        // An empty one, or one from before, is anybody's.
        Owner::check(dir.path(), None).unwrap();
        let claim = |owner: Owner, has_vms: bool| owner.claim(dir.path(), |_| Ok(has_vms));
        claim(owner("a", 1), false).unwrap();
        claim(owner("a", 1), true).unwrap();
        Owner::check(dir.path(), Some(&owner("a", 1))).unwrap();
        for other in [Some(owner("a", 2)), Some(owner("b", 1)), None] {
            let refused = Owner::check(dir.path(), other.as_ref()).unwrap_err();
            let refused = refused.to_string();
            assert!(
                refused.contains("belongs to node n1 of cluster a"),
                "{refused}"
            );
        }
        assert!(claim(owner("b", 7), true).is_err());
        Owner::check(dir.path(), Some(&owner("a", 1))).unwrap();
        // What a node that is gone for good left behind.
        claim(owner("b", 7), false).unwrap();
        Owner::check(dir.path(), Some(&owner("b", 7))).unwrap();
    }

    #[test]
    fn node_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<Owner>(&[include_str!(
            "fixtures/run-folder-owner/version-1.json"
        )]);
    }
}

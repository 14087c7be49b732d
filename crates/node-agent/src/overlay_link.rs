//! The node's end of the overlay: what its link leads to, and what may pass.

use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use membership::OverlayState;
use model::NodeId;
use node_network::{Network, NetworkError, OVERLAY_LINK, OverlayAccess};
use overlay_member::{Attachment, Place, own_program};
use tokio::sync::watch;

use crate::names::NodeNames;

/// The folder of control sockets of the overlay and the resolver, in the run folder.
const FOLDER: &str = "overlay";

/// The folder of the control sockets of this node's processes that are no VMs.
pub(crate) fn run_dir(run_dir: &Path) -> std::path::PathBuf {
    run_dir.join(FOLDER)
}

/// Where the node's interface is: in the namespace of its instances; its socket is in the machine's.
pub(crate) fn place(namespace: &str, node_run_dir: &Path) -> Place {
    Place {
        link: OVERLAY_LINK.to_owned(),
        namespace: Some(Path::new("/run/netns").join(namespace)),
        program: own_program(),
        run_dir: run_dir(node_run_dir),
        force_userspace: std::env::var_os("PLATFORM_USERSPACE_WIREGUARD").is_some(),
    }
}

/// What the node's link leads to.
pub(crate) struct NodeAttachment {
    pub(crate) network: Arc<Network>,
    pub(crate) names: Arc<NodeNames>,
    pub(crate) node: NodeId,
    pub(crate) directory: tokio::sync::Mutex<watch::Receiver<u64>>,
    /// What guests are told.
    pub(crate) mtu: watch::Sender<u32>,
}

/// Who may send to this node's instances.
pub(crate) fn access(names: &NodeNames, node: NodeId, state: &OverlayState) -> OverlayAccess {
    OverlayAccess {
        neighbours: names.neighbours(node),
        edges: state.edges.clone(),
        is_hub: state.is_hub,
    }
}

impl Attachment for NodeAttachment {
    fn attach<'a>(&'a self, state: &'a OverlayState) -> BoxFuture<'a, Result<(), NetworkError>> {
        async move {
            self.network.set_mtu(state.mtu).await?;
            self.network.attach_overlay().await?;
            self.mtu
                .send_if_modified(|mtu| std::mem::replace(mtu, state.mtu) != state.mtu);
            Ok(())
        }
        .boxed()
    }

    fn is_attached<'a>(&'a self, _: &'a OverlayState) -> BoxFuture<'a, bool> {
        self.network.is_attached().boxed()
    }

    fn admit<'a>(&'a self, state: &'a OverlayState) -> BoxFuture<'a, Result<(), NetworkError>> {
        async move {
            let access = access(&self.names, self.node, state);
            self.network.apply_overlay(&access).await?;
            let private = &state.private_networks;
            self.network.set_private_networks(private).await?;
            self.network.set_told_servers(&state.servers).await
        }
        .boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        async move {
            // Its sender lives as long as the names.
            let _ = self.directory.lock().await.changed().await;
        }
        .boxed()
    }
}

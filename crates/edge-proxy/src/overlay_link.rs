//! The edge's end of the overlay: a link in the machine's own network, by which it reaches the instances of other machines.
//!
//! Instances of a node on the same machine are reached without it, by that node's own link. Without rights to make a link the edge serves those.

// ring: the crate's root has the public errors.

use std::path::Path;

use api::enrollment::Member;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use membership::{Membership, OverlayState};
use node_network::{EdgeLink, NetworkError};
use overlay_member::{Attachment, Place, own_program, suffix};

use crate::EdgeError;

/// The folder of control sockets, in the edge's data folder.
const FOLDER: &str = "run";

/// Where the edge's interface is.
pub(crate) fn place(membership: &Membership, data_dir: &Path) -> Place {
    // By its own number, which it has before it has one in the overlay: the names of nodes' links begin with other letters.
    let number = match membership.member {
        Member::Edge(edge) => model::NodeId(edge.0),
        Member::Node(node) => node,
    };
    Place {
        link: format!("edge-{}", suffix(membership.cluster_prefix, number)),
        namespace: None,
        program: own_program(),
        run_dir: data_dir.join(FOLDER),
        force_userspace: std::env::var_os("PLATFORM_USERSPACE_WIREGUARD").is_some(),
    }
}

/// What the edge's link leads to.
pub(crate) struct EdgeAttachment {
    pub(crate) link: String,
}

impl EdgeAttachment {
    /// Absent: the edge has no number yet.
    fn link_of(&self, state: &OverlayState) -> Option<EdgeLink> {
        Some(EdgeLink {
            link: self.link.clone(),
            cluster_prefix: state.cluster_prefix,
            edge: state.number?,
            mtu: state.mtu,
        })
    }
}

impl Attachment for EdgeAttachment {
    fn attach<'a>(&'a self, state: &'a OverlayState) -> BoxFuture<'a, Result<(), NetworkError>> {
        async move {
            // Without a number there is no interface.
            match self.link_of(state) {
                Some(link) => link.ensure().await,
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn is_attached<'a>(&'a self, state: &'a OverlayState) -> BoxFuture<'a, bool> {
        async move {
            match self.link_of(state) {
                Some(link) => link.is_attached().await,
                None => true,
            }
        }
        .boxed()
    }

    /// Its rules let nothing begin from any member, whoever they are.
    fn admit<'a>(&'a self, _: &'a OverlayState) -> BoxFuture<'a, Result<(), NetworkError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        std::future::pending().boxed()
    }
}

/// Removes the edge's link, its rules and its process from the machine. No error when nothing is there.
pub(crate) async fn down(data_dir: &Path) -> Result<(), EdgeError> {
    let folder = data_dir.to_owned();
    let membership = blocking_work::blocking(move || Membership::load(&folder)).await?;
    let Some(membership) = membership else {
        return Ok(());
    };
    let place = place(&membership, data_dir);
    overlay_member::remove(&place)
        .await
        .map_err(EdgeError::Overlay)?;
    EdgeLink::remove(&place.link)
        .await
        .map_err(EdgeError::Network)
}

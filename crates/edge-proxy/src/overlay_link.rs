//! The edge's end of the overlay: a link in the machine's own network, by which it reaches the instances of other machines.
//!
//! Instances of a node on the same machine are reached without it, by that node's own link. Without rights to make a link the edge serves those.

// ring: the crate's root has the public errors.

use std::path::Path;

use api::enrollment::Member;
use blocking_work::blocking;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use membership::{Membership, OverlayState};
use node_network::{EdgeLink, NetworkError};
use overlay_member::{Attachment, Place, own_program, suffix};

use crate::EdgeError;

/// The folder of control sockets, in the edge's data folder.
const FOLDER: &str = "run";
/// What the names of edges' links begin with.
const PREFIX: &str = "edge-";

/// Where the edge's interface is.
pub(crate) fn place(membership: &Membership, data_dir: &Path) -> Place {
    // By its own number, which it has before it has one in the overlay: the names of nodes' links begin with other letters.
    let number = match membership.member {
        Member::Edge(edge) => model::NodeId(edge.0),
        Member::Node(node) => node,
    };
    let suffix = suffix(membership.cluster_prefix, number);
    place_of(format!("{PREFIX}{suffix}"), data_dir)
}

fn place_of(link: String, data_dir: &Path) -> Place {
    Place {
        link,
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

/// Removes the edge's link, its rules and its process from the machine, and what it had as a former member. No error when nothing is there.
pub(crate) async fn down(data_dir: &Path) -> Result<(), EdgeError> {
    let folder = data_dir.to_owned();
    let membership = blocking(move || Membership::load(&folder)).await?;
    if let Some(membership) = membership {
        remove(&place(&membership, data_dir)).await?;
    }
    down_former(data_dir).await
}

/// Removes every link of this data folder that is there. A link has its name by the cluster and by the member: another one would leave it where it is, with the
/// port that the next one is to have.
async fn down_former(data_dir: &Path) -> Result<(), EdgeError> {
    let folder = data_dir.join(FOLDER);
    let path = folder.clone();
    let links = blocking(move || overlay_member::links_of(&path)).await;
    let links = links.map_err(|source| EdgeError::Folder {
        path: folder,
        source,
    })?;
    for link in links.into_iter().filter(|link| link.starts_with(PREFIX)) {
        let place = place_of(link, data_dir);
        if overlay_member::is_there(&place).await {
            remove(&place).await?;
            tracing::info!(
                link = place.link,
                "removed the link that an edge of before left here"
            );
        }
    }
    Ok(())
}

/// The same before this machine joins. What cannot be removed is named, and keeps its port: then the join says so.
pub(crate) async fn end_former(data_dir: &Path) {
    if let Err(error) = down_former(data_dir).await {
        let error = display::chain(&error);
        tracing::warn!(
            error,
            "cannot remove the link that an edge of before left here"
        );
    }
}

async fn remove(place: &Place) -> Result<(), EdgeError> {
    overlay_member::remove(place)
        .await
        .map_err(EdgeError::Overlay)?;
    EdgeLink::remove(&place.link)
        .await
        .map_err(EdgeError::Network)
}

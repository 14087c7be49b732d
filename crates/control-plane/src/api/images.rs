//! The image caches of the nodes.

use api::user::ImageRow;
use axum::Json;
use axum::extract::State;
use model::NodeId;
use scheduler::cluster_state::Node;

use crate::access::ClusterViewer;
use crate::failure::ApiFailure;
use crate::state::App;

/// Every cached root disk of the nodes that are online, by node, those last used first. A cache is its node's
/// own affair: it is in no store, and is known as far as nodes reported it to this server.
pub(crate) async fn images(
    State(app): State<App>,
    _: ClusterViewer,
) -> Result<Json<Vec<ImageRow>>, ApiFailure> {
    let cluster = app.cluster();
    let caches = app.reporting.images();
    let is_online = |node: &NodeId| cluster.nodes.get(node).is_some_and(Node::is_online);
    let caches = caches.into_iter().filter(|(node, _)| is_online(node));
    let rows = caches.flat_map(|(node, images)| {
        let name = cluster.nodes.get(&node).map(|node| node.name.clone());
        let node_name = name.unwrap_or_else(|| node.to_string());
        images.into_iter().map(move |cached| ImageRow {
            node,
            node_name: node_name.clone(),
            cached,
        })
    });
    Ok(Json(rows.collect()))
}

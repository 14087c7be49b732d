//! The commands about who may do what ([`crate::access`]).

use std::collections::BTreeMap;

use model::{AppName, EnvKey, OrgName};

use super::Refused;
use crate::access::{AccessCommand, AccessRefused};
use crate::changes::Changes;
use crate::cluster_state::ClusterState;

pub(super) fn apply(
    cluster: &mut ClusterState,
    command: &AccessCommand,
) -> Result<Changes, Refused> {
    let mut forgotten = BTreeMap::new();
    if let AccessCommand::RemoveApp { app } = command {
        check_app_is_empty(cluster, app)?;
        // The name may be another org's tomorrow, and what has ended is known by it.
        let of_app = cluster
            .ended
            .iter()
            .filter(|(_, ended)| ended.env.app == *app);
        forgotten = of_app.map(|(id, _)| (*id, None)).collect();
    }
    if let AccessCommand::RemoveOrg { name } = command {
        check_org_has_no_nodes(cluster, name)?;
    }
    let access = cluster.access.apply(command)?;
    for id in forgotten.keys() {
        cluster.ended.remove(id);
    }
    Ok(Changes {
        access,
        ended: forgotten,
        ..Changes::default()
    })
}

/// There is this org, where one is named.
pub(super) fn check_org(
    cluster: &ClusterState,
    org: Option<&OrgName>,
) -> Result<(), AccessRefused> {
    match org {
        Some(org) if !cluster.access.orgs().contains_key(org) => {
            Err(AccessRefused::NoOrg(org.clone()))
        }
        _ => Ok(()),
    }
}

/// No node runs the apps of an org only, and no token lets one in that does.
///
/// # Errors
/// [`AccessRefused::OrgHasNodes`], which names one.
pub fn check_org_has_no_nodes(cluster: &ClusterState, org: &OrgName) -> Result<(), AccessRefused> {
    let has = |what: String| AccessRefused::OrgHasNodes {
        org: org.clone(),
        what,
    };
    let mut nodes = cluster.nodes.iter();
    if let Some((id, node)) = nodes.find(|(_, node)| node.org.as_ref() == Some(org)) {
        return Err(has(format!("node {} ({id})", node.name)));
    }
    let mut tokens = cluster.tokens.values();
    match tokens.find(|token| token.used.is_none() && token.org.as_ref() == Some(org)) {
        Some(_) => Err(has("an enrollment token".to_owned())),
        None => Ok(()),
    }
}

/// Nothing is left of an app: its name may be another's.
///
/// # Errors
/// [`AccessRefused::AppNotEmpty`], which names something that is left.
pub fn check_app_is_empty(cluster: &ClusterState, app: &AppName) -> Result<(), AccessRefused> {
    let left = |what: String| AccessRefused::AppNotEmpty {
        app: app.clone(),
        what,
    };
    let from = EnvKey::before_all_of(app);
    if let Some((key, _)) = cluster.envs.range(from.clone()..).next()
        && key.app == *app
    {
        return Err(left(format!("env {}", key.env)));
    }
    if let Some((key, _)) = cluster.secrets.range(from..).next()
        && key.app == *app
    {
        return Err(left(format!("secret bundles of env {}", key.env)));
    }
    match cluster.volumes.of_app(app).next() {
        Some((_, volume)) => Err(left(format!("volume {}", volume.key))),
        None => Ok(()),
    }
}

//! Lists of what there is, page by page and filtered ([`::api::user::Paged`]). A page costs what it shows and what lies between its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use ::api::paths;
use ::api::user::{
    EndedRow, EnvRow, EnvsQuery, InstanceRow, InstancesQuery, NodeRow, NodesQuery, StatsQuery,
    VolumeRow, VolumesQuery,
};
use axum::extract::State;
use model::{AppName, EnvKey, EnvName, InstanceId, NodeId, ProcessName};
use scheduler::cluster_state::{ClusterState, Instance, Subject};

use super::extract::Params;
use crate::access::{Anyone, ClusterViewer, User};
use crate::failure::ApiFailure;
use crate::page::{InApp, InEnv, Page, Rows};
use crate::rows;
use crate::state::App;

/// The envs that a caller may see and asks for.
struct Scope<'a> {
    cluster: &'a ClusterState,
    user: &'a User,
    app: Option<&'a AppName>,
    env: Option<&'a EnvName>,
}

impl Scope<'_> {
    fn keeps(&self, key: &EnvKey) -> bool {
        self.app.is_none_or(|app| *app == key.app)
            && self.env.is_none_or(|env| *env == key.env)
            && self.user.sees_app(&self.cluster.access, &key.app)
    }

    /// The apps that it may be about, where these are fewer than all.
    fn apps(&self) -> Option<BTreeSet<&AppName>> {
        if let Some(app) = self.app {
            return Some(BTreeSet::from([app]));
        }
        if self.user.grants.cluster.is_some() {
            return None;
        }
        let orgs = self.user.grants.orgs.keys();
        Some(
            orgs.flat_map(|org| self.cluster.access.apps_of(org))
                .collect(),
        )
    }

    /// Those of the ordered envs that `from` gives, `first` and what is behind it.
    fn envs<'e, I: Iterator<Item = &'e EnvKey>>(
        &self,
        first: Option<&EnvKey>,
        from: impl Fn(Bound<EnvKey>) -> I,
    ) -> impl Iterator<Item = &'e EnvKey> {
        let starts: Vec<(Bound<EnvKey>, Option<AppName>)> = match self.apps() {
            None => {
                let first = first.map_or(Bound::Unbounded, |key| Bound::Included(key.clone()));
                vec![(first, None)]
            }
            Some(apps) => (apps.into_iter())
                .filter(|app| first.is_none_or(|first| **app >= first.app))
                .map(|app| {
                    let start = first.filter(|first| first.app == *app).cloned();
                    let start = start.unwrap_or_else(|| EnvKey::before_all_of(app));
                    (Bound::Included(start), Some(app.clone()))
                })
                .collect(),
        };
        starts.into_iter().flat_map(move |(start, app)| {
            from(start).take_while(move |key| app.as_ref().is_none_or(|app| *app == key.app))
        })
    }
}

/// The instances whose stats are asked for and that the user may see, in no order. Those of one env cost no more than they are.
pub(crate) fn instances_of<'c>(
    query: &StatsQuery,
    cluster: &'c ClusterState,
    user: &User,
) -> Vec<(InstanceId, &'c Instance)> {
    let scope = Scope {
        cluster,
        user,
        app: query.app.as_ref(),
        env: query.env.as_ref(),
    };
    let envs = scope.envs(None, |first| cluster.instances.envs_from(first));
    let kept = envs.filter(|key| scope.keeps(key));
    kept.flat_map(|key| cluster.instances.of_env(key)).collect()
}

/// Whether an instance is one that a query is about, wherever it belongs.
fn is_asked_for(query: &InstancesQuery, process: &ProcessName, node: NodeId) -> bool {
    query
        .process
        .as_ref()
        .is_none_or(|wanted| wanted == process)
        && query.node.is_none_or(|wanted| wanted == node)
}

/// Instances, by env and id.
pub(crate) async fn instances(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<InstancesQuery>,
) -> Result<Rows<InstanceRow>, ApiFailure> {
    let cluster = app.cluster();
    let page = Page::<InEnv<InstanceId>>::of(&query)?;
    let scope = Scope {
        cluster: &cluster,
        user: &user,
        app: query.app.as_ref(),
        env: query.env.as_ref(),
    };
    let is_behind = |key: &EnvKey, id: InstanceId| {
        let place = page.after.as_ref();
        place.is_none_or(|place| (&place.env, place.id) < (key, id))
    };
    let keeps = |instance: &Instance| {
        let ready = || {
            instance
                .report
                .as_ref()
                .is_some_and(|report| report.state.is_ready())
        };
        is_asked_for(&query, &instance.spec.process, instance.node)
            && query.ready.is_none_or(|wanted| wanted == ready())
    };
    let place = |(id, instance): &(InstanceId, &Instance)| InEnv {
        env: instance.spec.env_key(),
        id: *id,
    };
    let (found, next) = if let Some(node) = query.node {
        // Those of one node, which are few.
        let here = cluster.instances.on_node(node);
        let here = here.map(|(id, instance)| ((instance.spec.env_key(), id), instance));
        let here: BTreeMap<_, _> = here
            .filter(|((key, id), instance)| {
                scope.keeps(key) && is_behind(key, *id) && keeps(instance)
            })
            .collect();
        page.take(
            here.into_iter().map(|((_, id), instance)| (id, instance)),
            place,
        )
    } else {
        let first = page.after.as_ref().map(|place| &place.env);
        let envs = scope.envs(first, |first| cluster.instances.envs_from(first));
        let found = envs.filter(|key| scope.keeps(key)).flat_map(|key| {
            let here = cluster.instances.of_env(key);
            here.filter(move |(id, instance)| is_behind(key, *id) && keeps(instance))
        });
        page.take(found, place)
    };
    let rows = found.iter();
    let rows = rows.map(|(id, instance)| rows::instance_row(&cluster, *id, instance));
    Rows::new(paths::INSTANCES, &query, rows.collect(), next)
}

/// Ended instances whose records are kept, by id.
pub(crate) async fn ended_instances(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<InstancesQuery>,
) -> Result<Rows<EndedRow>, ApiFailure> {
    if query.ready.is_some() {
        return Err(ApiFailure::bad_request(
            "`ready` is asked of instances that are there: none that has ended is",
        ));
    }
    let cluster = app.cluster();
    let page = Page::<InstanceId>::of(&query)?;
    let scope = Scope {
        cluster: &cluster,
        user: &user,
        app: query.app.as_ref(),
        env: query.env.as_ref(),
    };
    let behind = page.after.map_or(Bound::Unbounded, Bound::Excluded);
    let ended = cluster.ended.range((behind, Bound::Unbounded));
    let kept = ended.filter(|(_, ended)| {
        scope.keeps(&ended.env) && is_asked_for(&query, &ended.process, ended.node)
    });
    let (found, next) = page.take(kept, |(id, _)| **id);
    let rows = found.iter();
    let rows = rows.map(|(id, ended)| rows::ended_row(&cluster, **id, ended));
    Rows::new(paths::ENDED_INSTANCES, &query, rows.collect(), next)
}

/// Envs by name, those being destroyed too, and those that cannot be read.
pub(crate) async fn envs(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<EnvsQuery>,
) -> Result<Rows<EnvRow>, ApiFailure> {
    let published = Arc::clone(&app.published.borrow());
    let cluster = &published.cluster;
    let page = Page::<InApp>::of(&query)?;
    let scope = Scope {
        cluster,
        user: &user,
        app: query.app.as_ref(),
        env: query.env.as_ref(),
    };
    let after = page.after.as_ref().map(|InApp(key)| key);
    let unreadable = cluster.unreadable.iter();
    let unreadable: BTreeSet<_> = unreadable
        .filter_map(|record| record.env.as_ref())
        .collect();
    let is_wanted = |key: &&EnvKey| after.is_none_or(|after| after < *key) && scope.keeps(key);
    let readable = scope.envs(after, |first| {
        let envs = cluster.envs.range((first, Bound::Unbounded));
        envs.map(|(key, _)| key)
    });
    // One more than the page has, so that it is known whether others follow.
    let mut keys: BTreeSet<_> = readable.filter(is_wanted).take(page.limit + 1).collect();
    keys.extend(unreadable.into_iter().filter(is_wanted));
    let (keys, next) = page.take(keys.into_iter(), |key| InApp((*key).clone()));
    let rows = keys
        .into_iter()
        .map(|key| rows::env_row_of(&published, key));
    Rows::new(paths::ENVS, &query, rows.collect(), next)
}

/// Nodes by number, those that cannot be read too.
pub(crate) async fn nodes(
    State(app): State<App>,
    _: ClusterViewer,
    Params(query): Params<NodesQuery>,
) -> Result<Rows<NodeRow>, ApiFailure> {
    let published = Arc::clone(&app.published.borrow());
    let cluster = &published.cluster;
    let page = Page::<NodeId>::of(&query)?;
    let behind = page.after.map_or(Bound::Unbounded, Bound::Excluded);
    let is_wanted = |id: &NodeId| {
        let node = cluster.nodes.get(id);
        let label = query.label.as_ref();
        let value = label.and_then(|label| node?.labels.get(label));
        query
            .region
            .as_ref()
            .is_none_or(|region| node.is_some_and(|node| node.region == *region))
            && query
                .online
                .is_none_or(|online| node.is_some_and(|node| node.is_online() == online))
            && (label.is_none() || value.is_some())
            && (query.value.is_none() || value == query.value.as_ref())
    };
    let readable = cluster.nodes.range((behind, Bound::Unbounded));
    let readable = readable.map(|(id, _)| *id).filter(is_wanted);
    let mut ids: BTreeSet<_> = readable.take(page.limit + 1).collect();
    ids.extend(
        cluster
            .unreadable
            .iter()
            .filter_map(|record| match record.subject {
                Subject::Node(id) if page.after.is_none_or(|after| after < id) => {
                    Some(id).filter(is_wanted)
                }
                _ => None,
            }),
    );
    let (ids, next) = page.take(ids.into_iter(), |id| *id);
    let rows = ids.into_iter().map(|id| NodeRow {
        exceeded: app.reporting.exceeded(id),
        warnings: app.reporting.warnings(id),
        seen_at: {
            let stored = cluster.nodes.get(&id).and_then(|node| node.seen_at);
            stored.max(app.presence.seen_at(id))
        },
        ..rows::node_row(cluster, &published.promised, id)
    });
    Rows::new(paths::NODES, &query, rows.collect(), next)
}

/// Volumes, by env and id.
pub(crate) async fn volumes(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<VolumesQuery>,
) -> Result<Rows<VolumeRow>, ApiFailure> {
    let cluster = app.cluster();
    let page = Page::of(&query)?;
    let scope = Scope {
        cluster: &cluster,
        user: &user,
        app: query.app.as_ref(),
        env: query.env.as_ref(),
    };
    let after: Option<&InEnv<_>> = page.after.as_ref();
    let envs = scope.envs(after.map(|place| &place.env), |first| {
        cluster.volumes.envs_from(first)
    });
    let found = envs.filter(|key| scope.keeps(key)).flat_map(|key| {
        let here = cluster.volumes.of_env(key);
        here.filter(move |(id, volume)| {
            after.is_none_or(|place| (&place.env, place.id) < (key, *id))
                && query.node.is_none_or(|node| node == volume.node)
        })
    });
    let (found, next) = page.take(found, |(id, volume)| InEnv {
        env: volume.key.env.clone(),
        id: *id,
    });
    let rows = found.into_iter();
    let rows = rows.map(|(id, volume)| rows::volume_row(&cluster, id, volume));
    Rows::new(paths::VOLUMES, &query, rows.collect(), next)
}

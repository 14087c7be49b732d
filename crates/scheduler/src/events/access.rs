//! Events of orgs, apps, users and their tokens.

use api::event::{Event, EventKind};
use api::user::Grants;
use model::AppName;

use super::{Origin, whose};
use crate::access::{AccessChanges, UserToken};
use crate::cluster_state::ClusterState;

pub(super) fn record(
    origin: &Origin,
    before: &ClusterState,
    after: &ClusterState,
    changes: &AccessChanges,
    events: &mut Vec<Event>,
) {
    let was = &before.access;
    for (name, org) in &changes.orgs {
        let kind = match (was.orgs().get(name), org) {
            (None, Some(_)) => EventKind::OrgCreated,
            (Some(_), None) => EventKind::OrgRemoved,
            _ => continue,
        };
        events.push(Event {
            org: Some(name.clone()),
            ..origin.event(kind, name.as_str())
        });
    }
    for (app, org) in &changes.apps {
        let owner = was.owner(app);
        if owner == org.as_ref() {
            continue;
        }
        let of_app = |event: Event, org: &model::OrgName| of_app(event, app, org);
        match org {
            Some(org) => {
                let event = origin.event(EventKind::AppMoved, whose(app, org));
                events.push(of_app(event, org));
                // The org that it was of is told, too, and not whose it is now.
                if let Some(owner) = owner {
                    let message = format!("{app} is not of org {owner} any more");
                    let event = origin.event(EventKind::AppMoved, message);
                    events.push(of_app(event, owner));
                }
            }
            None => {
                let event = origin.event(EventKind::AppRemoved, app.as_str());
                events.extend(owner.map(|owner| of_app(event, owner)));
            }
        }
    }
    for (name, user) in &changes.users {
        let of_user = |event: Event| Event {
            user: Some(name.clone()),
            ..event
        };
        let known = was.users().get(name);
        match user {
            Some(user) if known.map(|known| &known.grants) != Some(&user.grants) => {
                let event = origin.event(EventKind::UserGranted, granted(&user.grants));
                events.push(of_user(event));
            }
            Some(_) => {}
            None => events.push(of_user(origin.event(EventKind::UserRemoved, name.as_str()))),
        }
    }
    for (hash, token) in &changes.tokens {
        let of_token = |event: Event, token: &UserToken| Event {
            user: Some(token.user.clone()),
            ..event
        };
        match (was.tokens().get(hash), token) {
            (None, Some(token)) => {
                let event = origin.event(EventKind::UserTokenCreated, opened(token));
                events.push(of_token(event, token));
            }
            // With its user, whose event tells it, or because it expired.
            (Some(token), None)
                if token.is_good(origin.at) && after.access.users().contains_key(&token.user) =>
            {
                let event = origin.event(EventKind::UserTokenRevoked, &token.note);
                events.push(of_token(event, token));
            }
            _ => {}
        }
    }
}

fn of_app(event: Event, app: &AppName, org: &model::OrgName) -> Event {
    Event {
        org: Some(org.clone()),
        app: Some(app.clone()),
        ..event
    }
}

/// Roles, for people: `admin in the cluster, viewer in org blue`.
fn granted(grants: &Grants) -> String {
    let cluster = grants.cluster.map(|role| format!("{role} in the cluster"));
    let orgs = (grants.orgs.iter()).map(|(org, role)| format!("{role} in org {org}"));
    cluster
        .into_iter()
        .chain(orgs)
        .collect::<Vec<_>>()
        .join(", ")
}

fn opened(token: &UserToken) -> String {
    let org = token.org.as_ref().map(|org| format!("in org {org}"));
    let role = token.role.map(|role| format!("as {role}"));
    let note = (!token.note.is_empty()).then(|| token.note.clone());
    let said: Vec<_> = [org, role, note].into_iter().flatten().collect();
    said.join(", ")
}

//! What users may do. A handler names what its call needs by taking it as an argument: [`ClusterViewer`], [`ClusterAdmin`], [`Viewing`],
//! [`Deploying`] and [`Administering`] of an env, or [`Anyone`], who asks [`User`] about each thing.
//!
//! What is an org's that the caller has no role in does not exist for the caller: it is answered as what was never there.

use std::fmt;
use std::time::Duration;

use api::event::Actor;
use api::user::{Grants, Role};
use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use model::{AppName, EnvKey, OrgName, Timestamp, UserName};
use scheduler::access::{Access, AccessCommand, AccessRefused, Caller, NotLetIn};
use scheduler::apply::Command;
use scheduler::cluster_state::{ClusterState, TokenHash};

use crate::api::extract::InEnv;
use crate::callers::{forbidden, peer, token_hash, unauthorized};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::state::{App, Topic};

/// A user with a token, and what both may.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: UserName,
    pub(crate) grants: Grants,
    pub(crate) token: TokenHash,
    /// When the token expires; absent: never.
    pub(crate) expires_at: Option<Timestamp>,
}

impl From<&User> for Actor {
    fn from(user: &User) -> Self {
        Self::User(user.name.clone())
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl User {
    /// The user of a request.
    async fn of(parts: &Parts, app: &App) -> Result<Self, ApiFailure> {
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            return Err(match peer(parts) {
                Some(peer) => {
                    let member = peer.issued_to;
                    forbidden(format!("this call is for users, not for {member}"))
                }
                None => unauthorized("this call needs a user's token")
                    .hint("send `Authorization: Bearer TOKEN`; the first token is in client.json"),
            });
        };
        let unknown = || {
            unauthorized(&NotLetIn::Unknown.to_string())
                .hint("is it a token of this cluster, which nobody revoked? `platform login` takes another")
        };
        let token = token_hash(header).ok_or_else(unknown)?;
        let caller = match app.cluster().access.caller(&token, now()) {
            // Another server of the cluster may have made it when it started.
            Err(NotLetIn::Unknown) if app.adopt_token(&token).await? => {
                app.cluster().access.caller(&token, now())
            }
            answer => answer,
        };
        match caller {
            Ok(Caller {
                user,
                grants,
                expires_at,
            }) => {
                app.users.used(&token, now());
                Ok(Self {
                    name: user,
                    grants,
                    token,
                    expires_at,
                })
            }
            Err(NotLetIn::Unknown) => Err(unknown()),
            Err(expired @ NotLetIn::Expired { .. }) => {
                Err(unauthorized(&expired.to_string())
                    .hint("`platform users tokens create` makes another, where one of yours is good still; else ask an admin"))
            }
        }
    }

    /// Waits until the caller may no longer do in this app what needs a role: the token was revoked or has expired, or grants or the app's owner are others.
    pub(crate) async fn loses(&self, app: &App, of: &AppName, needed: Role) {
        let topic = app.topics.subscribe(Topic::Access);
        loop {
            let changed = topic.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let at = now();
            let Ok(now) = self.again(app) else { return };
            let access = &app.cluster().access;
            let may = now.check_app(access, of, needed, || unauthorized("it is another org's"));
            if may.is_err() {
                return;
            }
            match self.expires_at {
                None => changed.await,
                Some(expires_at) => {
                    let left = Duration::from_millis(expires_at.millis_since(at));
                    // Looked at anew: it expires by the clock, not by what is waited.
                    let _ = tokio::time::timeout(left, changed).await;
                }
            }
        }
    }

    /// The caller as of now: after a wait the token may be none any more, and may open other things.
    pub(crate) fn again(&self, app: &App) -> Result<Self, ApiFailure> {
        let caller = app.cluster().access.caller(&self.token, now());
        let caller = caller.map_err(|error| unauthorized(&error.to_string()))?;
        Ok(Self {
            grants: caller.grants,
            expires_at: caller.expires_at,
            ..self.clone()
        })
    }

    /// Whether the caller may see what this org has.
    pub(crate) fn sees(&self, org: &OrgName) -> bool {
        self.grants.role_in(org).is_some()
    }

    /// Whether the caller may see what this app has. An app that nobody owns is nobody's.
    pub(crate) fn sees_app(&self, access: &Access, app: &AppName) -> bool {
        match access.owner(app) {
            Some(org) => self.sees(org),
            None => self.grants.cluster.is_some(),
        }
    }

    /// The caller may do in this app what needs a role. `absent`: the answer to who may not see it.
    pub(crate) fn check_app(
        &self,
        access: &Access,
        app: &AppName,
        needed: Role,
        absent: impl FnOnce() -> ApiFailure,
    ) -> Result<(), ApiFailure> {
        let Some(org) = access.owner(app) else {
            return match self.grants.cluster {
                Some(role) if role >= needed => Ok(()),
                Some(role) => Err(too_little(role, needed, "the cluster")),
                None => Err(absent()),
            };
        };
        self.check_org(org, needed, absent)
    }

    /// The caller may do in this org what needs a role.
    pub(crate) fn check_org(
        &self,
        org: &OrgName,
        needed: Role,
        absent: impl FnOnce() -> ApiFailure,
    ) -> Result<(), ApiFailure> {
        match self.grants.role_in(org) {
            Some(role) if role >= needed => Ok(()),
            Some(role) => Err(too_little(role, needed, &format!("org {org}"))),
            None => Err(absent()),
        }
    }

    /// The caller may do in the whole cluster what needs a role.
    pub(crate) fn check_cluster(&self, needed: Role) -> Result<(), ApiFailure> {
        match self.grants.cluster {
            Some(role) if role >= needed => Ok(()),
            Some(role) => Err(too_little(role, needed, "the cluster")),
            None => Err(forbidden(format!(
                "this call needs the role {needed} in the cluster, and you have none: your roles are in orgs"
            ))
            .hint("`platform whoami` shows what your token opens; an admin of the cluster can give you more")),
        }
    }

    /// The caller may deploy to this app, which is an org's in which the caller may, or nobody's yet.
    fn check_makes(&self, access: &Access, app: &AppName) -> Result<(), ApiFailure> {
        let most = self.grants.orgs.values().copied().max();
        let may_deploy = most.max(self.grants.cluster) >= Some(Role::Deployer);
        if let Some(owner) = access
            .owner(app)
            .filter(|owner| may_deploy || self.sees(owner))
        {
            return self.check_org(owner, Role::Deployer, || {
                ApiFailure::conflict(
                    "app_name_taken",
                    format!("the name {app} is taken: an app has a name that no other of the cluster has"),
                )
                .hint("choose another name in the manifest")
            });
        }
        // Who may deploy nowhere learns of no name whether it is taken.
        if !may_deploy {
            return Err(too_little(Role::Viewer, Role::Deployer, "an org"));
        }
        Ok(())
    }

    /// What makes an app the caller's org's, where it is nobody's yet. `named`: the org that the caller named.
    pub(crate) fn claim(
        &self,
        cluster: &ClusterState,
        app: &AppName,
        named: Option<&OrgName>,
    ) -> Result<Option<Command>, ApiFailure> {
        self.check_makes(&cluster.access, app)?;
        if let Some(owner) = cluster.access.owner(app) {
            return match named {
                Some(org) if org != owner => Err(ApiFailure::conflict(
                    "app_of_another_org",
                    format!("app {app} is of org {owner}, not of {org}"),
                )
                .hint(format!(
                    "`platform apps move {app} --org {org}` makes it that"
                ))),
                _ => Ok(None),
            };
        }
        let org = match named {
            Some(org) => {
                self.check_org(org, Role::Deployer, || no_such_org(org))?;
                org.clone()
            }
            None => self.org_at_hand()?,
        };
        let room = cluster.access.check_room_for_app(&org);
        room.map_err(|refused| too_many_apps(&refused))?;
        let app = app.clone();
        let command = AccessCommand::SetOwner { app, org };
        Ok(Some(Command::Access(command)))
    }

    /// The org of a new app, where none is named.
    fn org_at_hand(&self) -> Result<OrgName, ApiFailure> {
        if self.grants.cluster >= Some(Role::Deployer) {
            return Ok(OrgName::default());
        }
        let orgs: Vec<_> = (self.grants.orgs.iter())
            .filter(|(_, role)| **role >= Role::Deployer)
            .map(|(org, _)| org)
            .collect();
        match orgs.as_slice() {
            [org] => Ok((*org).clone()),
            [] => Err(too_little(Role::Viewer, Role::Deployer, "an org")),
            several => {
                let names: Vec<_> = several.iter().map(|org| org.as_str()).collect();
                Err(ApiFailure::refused(
                    "org_needed",
                    format!("you may deploy in several orgs: {}", names.join(", ")),
                )
                .hint("name one with --org; it is needed once, for a new app"))
            }
        }
    }
}

fn too_little(has: Role, needed: Role, place: &str) -> ApiFailure {
    forbidden(format!(
        "this call needs the role {needed} in {place}, and you have the role {has} there"
    ))
    .hint("`platform whoami` shows what your token opens; an admin can give you more")
}

/// 422 for an org that has as many apps as it may.
pub(crate) fn too_many_apps(refused: &AccessRefused) -> ApiFailure {
    ApiFailure::refused("too_many_apps", refused.to_string()).hint(
        "`platform apps remove` frees a name that is not needed; another org has room of its own",
    )
}

/// 404 for an org.
pub(crate) fn no_such_org(org: &OrgName) -> ApiFailure {
    ApiFailure::not_found("org_not_found", format!("there is no org {org}"))
        .hint("`platform orgs` lists those there are")
}

/// Any user. What the call is about is for the handler to check.
pub(crate) struct Anyone(pub(crate) User);

impl FromRequestParts<App> for Anyone {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        User::of(parts, app).await.map(Self)
    }
}

/// A user who may see what is the cluster's own: nodes, edges, the network.
pub(crate) struct ClusterViewer;

impl FromRequestParts<App> for ClusterViewer {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        User::of(parts, app).await?.check_cluster(Role::Viewer)?;
        Ok(Self)
    }
}

/// A user who may change what is the cluster's own.
pub(crate) struct ClusterAdmin(pub(crate) User);

impl FromRequestParts<App> for ClusterAdmin {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        let user = User::of(parts, app).await?;
        user.check_cluster(Role::Admin)?;
        Ok(Self(user))
    }
}

/// `{app}` and `{env}` of the path, of a user who may see what is in that env.
pub(crate) struct Viewing {
    pub(crate) user: User,
    pub(crate) key: EnvKey,
}

impl FromRequestParts<App> for Viewing {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        let (user, key) = in_env(parts, app, Role::Viewer).await?;
        Ok(Self { user, key })
    }
}

/// `{app}` and `{env}` of the path, and a user with at least a role there.
async fn in_env(parts: &mut Parts, app: &App, needed: Role) -> Result<(User, EnvKey), ApiFailure> {
    let user = User::of(parts, app).await?;
    let InEnv(key) = InEnv::from_request_parts(parts, app).await?;
    let cluster = app.cluster();
    user.check_app(&cluster.access, &key.app, needed, || no_env_to_see(&key))?;
    Ok((user, key))
}

/// `{app}` and `{env}` of the path, and a user with at least a role there.
macro_rules! in_env {
    ($(#[$doc:meta])* $name:ident, $role:expr) => {
        $(#[$doc])*
        pub(crate) struct $name {
            pub(crate) user: User,
            pub(crate) key: EnvKey,
        }

        impl FromRequestParts<App> for $name {
            type Rejection = ApiFailure;

            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
                let (user, key) = in_env(parts, app, $role).await?;
                Ok(Self { user, key })
            }
        }
    };
}

in_env!(
    /// A user who may deploy to an env that is there, and change what it runs.
    Deploying,
    Role::Deployer
);
in_env!(
    /// A user who may end an env.
    Administering,
    Role::Admin
);

/// `{app}` and `{env}` of the path, and a user who may deploy there, or to a new app: [`User::claim`] has the rest to say.
pub(crate) struct Making {
    pub(crate) user: User,
    pub(crate) key: EnvKey,
}

impl FromRequestParts<App> for Making {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        let user = User::of(parts, app).await?;
        let InEnv(key) = InEnv::from_request_parts(parts, app).await?;
        user.check_makes(&app.cluster().access, &key.app)?;
        Ok(Self { user, key })
    }
}

/// As [`no_such_env`] of one that is not there, whatever is.
fn no_env_to_see(key: &EnvKey) -> ApiFailure {
    ApiFailure::not_found("env_not_found", format!("there is no env {key}"))
        .hint("`platform envs` lists those there are")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::no_such_env;

    /// What is another org's is refused in the words for what is not there.
    #[test]
    fn an_env_that_is_not_seen_is_as_one_that_is_not_there() {
        let key: EnvKey = serde_json::from_str(r#"{"app":"shop","env":"prod"}"#)
            .unwrap_or_else(|error| panic!("{error}"));
        let cluster = scheduler::fixtures::cluster(1);
        let absent = no_such_env(&cluster, &key);
        assert_eq!(format!("{absent:?}"), format!("{:?}", no_env_to_see(&key)));
    }
}

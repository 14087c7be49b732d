//! Orgs, apps, users and their tokens, as users see and change them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use ::api::paths;
use ::api::user::{
    AppRow, AppsQuery, CreateOrgRequest, CreateUserTokenRequest, CreateUserTokenResponse,
    GrantRequest, Grants, MAX_TOKEN_NOTE_BYTES, MAX_USER_TOKEN_SECONDS, MoveAppRequest, OrgRow,
    Role, UserRow, UserTokenRow, UserTokensQuery, UsersQuery, WhoAmI,
};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use identity::UserToken as NewToken;
use model::{AppName, EnvKey, OrgName, Timestamp, UserName};
use scheduler::access::{Access, AccessCommand, AccessRefused, UserToken};
use scheduler::apply::{Command, check_app_is_empty, check_org_has_no_nodes};
use scheduler::cluster_state::{ClusterState, TokenHash};

use super::enrolling::token_id;
use super::extract::{Body, Params, Path};
use crate::access::{Anyone, ClusterAdmin, User, no_such_org, too_many_apps};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::page::{OfUser, Page, Rows};
use crate::state::App;

/// Who the caller is.
pub(crate) async fn whoami(State(app): State<App>, Anyone(user): Anyone) -> Json<WhoAmI> {
    Json(WhoAmI {
        ca_pem: app.authority().trusted_pem(),
        user: user.name,
        grants: user.grants,
        token: token_id(&user.token),
        expires_at: user.expires_at,
    })
}

/// The orgs that the caller has a role in.
pub(crate) async fn orgs(State(app): State<App>, Anyone(user): Anyone) -> Json<Vec<OrgRow>> {
    let cluster = app.cluster();
    let access = &cluster.access;
    let row = |name: &OrgName| {
        let org = access.orgs().get(name)?;
        Some(OrgRow {
            name: name.clone(),
            created_at: org.created_at,
            apps: count(access.apps_of(name)),
        })
    };
    Json(match user.grants.cluster {
        Some(_) => access.orgs().keys().filter_map(row).collect(),
        None => user.grants.orgs.keys().filter_map(row).collect(),
    })
}

fn count<T>(all: impl Iterator<Item = T>) -> u64 {
    u64::try_from(all.count()).unwrap_or(u64::MAX)
}

/// Makes an org.
pub(crate) async fn create_org(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(CreateOrgRequest { name }): Body<CreateOrgRequest>,
) -> Result<(StatusCode, Json<OrgRow>), ApiFailure> {
    let created_at = now();
    let command = AccessCommand::CreateOrg {
        name: name.clone(),
        now: created_at,
    };
    carry_out(&app, &user, move |_| Ok(command)).await?;
    tracing::info!(%user, org = %name, "made an org");
    let row = OrgRow {
        name,
        created_at,
        apps: 0,
    };
    Ok((StatusCode::CREATED, Json(row)))
}

/// Removes an org that has no app.
pub(crate) async fn remove_org(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(name): Path<OrgName>,
) -> Result<StatusCode, ApiFailure> {
    let removed = name.clone();
    carry_out(&app, &user, move |cluster| {
        check_org_has_no_nodes(cluster, &removed).map_err(|refused| failed(&refused))?;
        Ok(AccessCommand::RemoveOrg { name: removed })
    })
    .await?;
    tracing::info!(%user, org = %name, "removed an org");
    Ok(StatusCode::NO_CONTENT)
}

/// The apps of the orgs that the caller has a role in, by name.
pub(crate) async fn apps(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<AppsQuery>,
) -> Result<Rows<AppRow>, ApiFailure> {
    let cluster = app.cluster();
    let access = &cluster.access;
    let page = Page::<AppName>::of(&query)?;
    let behind = page.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let (found, next) = match user.grants.cluster {
        Some(_) => page.take(
            access.apps().range((behind, Bound::Unbounded)),
            |(name, _)| (*name).clone(),
        ),
        None => {
            // Those of a few orgs, which are bounded.
            let orgs = user.grants.orgs.keys();
            let owned = orgs.flat_map(|org| access.apps_of(org).map(move |name| (name, org)));
            let owned: BTreeMap<_, _> = owned
                .filter(|(name, _)| page.after.as_ref().is_none_or(|after| after < *name))
                .collect();
            page.take(owned.into_iter(), |(name, _)| (*name).clone())
        }
    };
    let rows = found.into_iter().map(|(name, org)| AppRow {
        name: name.clone(),
        org: org.clone(),
        envs: count(envs_of(&cluster, name)),
    });
    Rows::new(paths::APPS, &query, rows.collect(), next)
}

fn envs_of<'c>(cluster: &'c ClusterState, app: &'c AppName) -> impl Iterator<Item = &'c EnvKey> {
    let envs = cluster.envs.range(EnvKey::before_all_of(app)..);
    envs.map(|(key, _)| key)
        .take_while(move |key| key.app == *app)
}

fn no_such_app(app: &AppName) -> ApiFailure {
    ApiFailure::not_found("app_not_found", format!("there is no app {app}"))
        .hint("`platform apps` lists those there are")
}

/// Moves an app to another org. Its envs run on.
pub(crate) async fn move_app(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(name): Path<AppName>,
    Body(MoveAppRequest { org }): Body<MoveAppRequest>,
) -> Result<StatusCode, ApiFailure> {
    let (by, moved, to) = (user.clone(), name.clone(), org.clone());
    carry_out(&app, &user, move |cluster| {
        let owner = cluster.access.owner(&moved);
        let owner = owner.ok_or_else(|| no_such_app(&moved))?;
        by.check_org(owner, Role::Admin, || no_such_app(&moved))?;
        by.check_org(&to, Role::Admin, || no_such_org(&to))?;
        Ok(AccessCommand::SetOwner {
            app: moved,
            org: to,
        })
    })
    .await?;
    tracing::info!(%user, app = %name, %org, "moved an app");
    Ok(StatusCode::NO_CONTENT)
}

/// Frees the name of an app that has nothing.
pub(crate) async fn remove_app(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(name): Path<AppName>,
) -> Result<StatusCode, ApiFailure> {
    let (by, removed) = (user.clone(), name.clone());
    carry_out(&app, &user, move |cluster| {
        let owner = cluster.access.owner(&removed);
        let owner = owner.ok_or_else(|| no_such_app(&removed))?;
        by.check_org(owner, Role::Admin, || no_such_app(&removed))?;
        check_app_is_empty(cluster, &removed).map_err(|refused| failed(&refused))?;
        Ok(AccessCommand::RemoveApp { app: removed })
    })
    .await?;
    tracing::info!(%user, app = %name, "removed an app");
    Ok(StatusCode::NO_CONTENT)
}

/// The users that the caller sees, by name: all of them in the whole cluster, else those with a role in the caller's orgs.
pub(crate) async fn users(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<UsersQuery>,
) -> Result<Rows<UserRow>, ApiFailure> {
    let cluster = app.cluster();
    let access = &cluster.access;
    let page = Page::<UserName>::of(&query)?;
    let name_of = |name: &&UserName| (*name).clone();
    let (names, next) = if user.grants.cluster.is_some() {
        let behind = page.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let all = access.users().range((behind, Bound::Unbounded));
        page.take(all.map(|(name, _)| name), name_of)
    } else {
        // Those of a few orgs, which are bounded.
        let orgs = user.grants.orgs.keys();
        let seen = orgs.flat_map(|org| access.users_of(org).map(|(name, _)| name));
        let seen: BTreeSet<_> = seen
            .filter(|name| page.after.as_ref().is_none_or(|after| after < *name))
            .collect();
        page.take(seen.into_iter(), name_of)
    };
    let now = now();
    let row = |name: &UserName| {
        let record = access.users().get(name)?;
        Some(UserRow {
            name: name.clone(),
            grants: shown(&user, &record.grants),
            created_at: record.created_at,
            tokens: count(
                access
                    .tokens_of(name)
                    .filter(|(_, token)| token.is_good(now) && is_shown(access, &user, token)),
            ),
        })
    };
    let rows = names.into_iter().filter_map(row).collect();
    Rows::new(paths::USERS, &query, rows, next)
}

/// What of another's roles a user sees.
fn shown(user: &User, grants: &Grants) -> Grants {
    if user.grants.cluster.is_some() {
        return grants.clone();
    }
    let orgs = grants.orgs.iter().filter(|(org, _)| user.sees(org));
    Grants {
        cluster: None,
        orgs: orgs.map(|(org, role)| (org.clone(), *role)).collect(),
    }
}

/// Whether a user sees that there is a token: it is the user's own, or of an org where the user is an admin.
fn is_shown(access: &Access, user: &User, token: &UserToken) -> bool {
    let of_org = |org: &OrgName| user.grants.role_in(org) >= Some(Role::Admin);
    user.grants.cluster >= Some(Role::Admin)
        || token.org.as_ref().is_some_and(of_org)
        || (token.user == user.name && is_within(access, token.org.as_ref(), user))
}

/// Whether what is in this org, or wherever the user may, is in the reach of the caller's token.
fn is_within(access: &Access, org: Option<&OrgName>, user: &User) -> bool {
    match org {
        Some(org) => user.sees(org),
        // A token of one org does not show what the user has elsewhere.
        None => (access.tokens().get(&user.token)).is_none_or(|own| own.org.is_none()),
    }
}

/// Gives a user a role, or takes it.
pub(crate) async fn grant(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(name): Path<UserName>,
    Body(GrantRequest { org, role }): Body<GrantRequest>,
) -> Result<StatusCode, ApiFailure> {
    match &org {
        None => user.check_cluster(Role::Admin)?,
        Some(org) => user.check_org(org, Role::Admin, || no_such_org(org))?,
    }
    let command = AccessCommand::Grant {
        user: name.clone(),
        org: org.clone(),
        role,
        now: now(),
    };
    // Users are the cluster's: an admin of an org learns of those of others neither that they are there, nor that they are not.
    let unseen = org
        .clone()
        .filter(|_| role.is_none() && user.grants.cluster.is_none());
    let taken_from = name.clone();
    carry_out(&app, &user, move |cluster| {
        let record = cluster.access.users().get(&taken_from);
        let has_role = |org| record.is_some_and(|record| record.grants.orgs.contains_key(&org));
        if unseen.is_none_or(has_role) {
            return Ok(command);
        }
        Err(failed(&AccessRefused::NoUser(taken_from)))
    })
    .await?;
    let org = org.as_ref().map_or("", OrgName::as_str);
    let role = role.map_or("none", Role::as_str);
    tracing::info!(%user, name = %name, org, role, "gave a user a role");
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a user, with all roles and tokens.
pub(crate) async fn remove_user(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(name): Path<UserName>,
) -> Result<StatusCode, ApiFailure> {
    let command = AccessCommand::RemoveUser { user: name.clone() };
    carry_out(&app, &user, move |_| Ok(command)).await?;
    tracing::info!(%user, name = %name, "removed a user");
    Ok(StatusCode::NO_CONTENT)
}

/// The tokens that the caller sees, those that have expired too, by user.
pub(crate) async fn tokens(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<UserTokensQuery>,
) -> Result<Rows<UserTokenRow>, ApiFailure> {
    let cluster = app.cluster();
    let access = &cluster.access;
    let page = Page::<OfUser>::of(&query)?;
    // Of one user: what is before the user is not looked at.
    let place = page.after.as_ref().and_then(OfUser::key);
    let place = place.max(query.user.clone().map(|user| (user, [0; 32])));
    let found = access
        .tokens_behind(place)
        .take_while(|(_, token)| query.user.as_ref().is_none_or(|of| *of == token.user))
        .filter(|(_, token)| is_shown(access, &user, token));
    let (found, next) = page.take(found, |(hash, token)| OfUser {
        user: token.user.clone(),
        id: token_id(hash),
    });
    let rows = found.into_iter().map(|(hash, token)| UserTokenRow {
        id: token_id(hash),
        user: token.user.clone(),
        org: token.org.clone(),
        role: token.role,
        created_at: token.created_at,
        expires_at: token.expires_at,
        by: token.by.clone(),
        note: token.note.clone(),
        used_at: app.users.used_at(hash),
    });
    Rows::new(paths::USER_TOKENS, &query, rows.collect(), next)
}

/// Makes a token. What it opens is no more than the caller may give.
pub(crate) async fn create_token(
    State(app): State<App>,
    Anyone(caller): Anyone,
    Body(request): Body<CreateUserTokenRequest>,
) -> Result<(StatusCode, Json<CreateUserTokenResponse>), ApiFailure> {
    let now = now();
    if request.note.len() > MAX_TOKEN_NOTE_BYTES || request.note.chars().any(char::is_control) {
        return Err(ApiFailure::refused(
            "note_invalid",
            format!("what a token is for has at most {MAX_TOKEN_NOTE_BYTES} bytes on one line"),
        ));
    }
    let user = request.user.clone().unwrap_or_else(|| caller.name.clone());
    let expires_at = expiry(&request, now)?;
    let token = UserToken {
        user: user.clone(),
        org: request.org.clone(),
        role: request.role,
        created_at: now,
        expires_at,
        by: Some(caller.name.clone()),
        note: request.note,
    };
    let new = NewToken::generate()?.at(app.authority().current.fingerprint(), app.url.clone());
    let hash = new.secret_hash();
    let by = caller.clone();
    carry_out(&app, &caller, move |cluster| {
        let token = within_reach(&cluster.access, &by, token)?;
        Ok(AccessCommand::AddToken { hash, token, now })
    })
    .await?;
    let id = token_id(&hash);
    tracing::info!(user = %caller, of = %user, id, "made a token of a user");
    let response = CreateUserTokenResponse {
        token: new.to_string(),
        id,
        user,
        expires_at,
    };
    Ok((StatusCode::CREATED, Json(response)))
}

fn expiry(
    request: &CreateUserTokenRequest,
    now: Timestamp,
) -> Result<Option<Timestamp>, ApiFailure> {
    let Some(seconds) = request.ttl_seconds else {
        return Ok(None);
    };
    if !(1..=MAX_USER_TOKEN_SECONDS).contains(&seconds) {
        return Err(ApiFailure::refused(
            "ttl_out_of_range",
            format!("a user's token works for 1 s to {MAX_USER_TOKEN_SECONDS} s, or for ever"),
        ));
    }
    Ok(Some(Timestamp(
        now.0.saturating_add(seconds.saturating_mul(1000)),
    )))
}

/// The token that a caller may make: one for itself opens no more than the token that it came with, and does not outlive it; one for another user
/// is made by an admin of where it opens.
fn within_reach(access: &Access, by: &User, mut token: UserToken) -> Result<UserToken, ApiFailure> {
    let may_give = match &token.org {
        None => by.grants.cluster >= Some(Role::Admin),
        Some(org) => {
            by.check_org(org, Role::Viewer, || no_such_org(org))?;
            by.grants.role_in(org) >= Some(Role::Admin)
        }
    };
    if token.user != by.name {
        if !may_give {
            return Err(ApiFailure::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "a token of another user is made by an admin of where it opens",
            )
            .hint("name the org with --org, where you are an admin of one"));
        }
        // What is done with it is done in that user's name.
        let record = access.users().get(&token.user);
        let is_of_orgs = record.is_some_and(|record| {
            let has_role =
                (token.org.as_ref()).is_some_and(|org| record.grants.orgs.contains_key(org));
            record.grants.cluster.is_none() && has_role
        });
        if by.grants.cluster < Some(Role::Admin) && !is_of_orgs {
            return Err(ApiFailure::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "an admin of an org makes tokens of users who have a role in that org, and none in the cluster",
            )
            .hint("give the user a role there first: `platform users grant`"));
        }
        return Ok(token);
    }
    let own = access.tokens().get(&by.token);
    if let Some(own) = own.filter(|_| !may_give) {
        if own.org.is_some() && token.org != own.org {
            return Err(ApiFailure::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "the token that you use opens one org, and makes tokens for that one only",
            )
            .hint("name it with --org"));
        }
        token.role = match (token.role, own.role) {
            (Some(wanted), Some(own)) => Some(wanted.min(own)),
            (wanted, own) => wanted.or(own),
        };
    }
    if let Some(until) = by.expires_at
        && token.expires_at.is_none_or(|at| at > until)
    {
        return Err(ApiFailure::refused(
            "ttl_out_of_range",
            "a token does not outlive the one that it is made with",
        )
        .hint("give it a shorter life with --ttl, or ask an admin"));
    }
    Ok(token)
}

/// A token lets nobody in any more.
pub(crate) async fn revoke_token(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiFailure> {
    let absent = {
        let id = id.clone();
        move || {
            ApiFailure::not_found("token_not_found", format!("there is no token {id}"))
                .hint("`platform users tokens` lists those there are")
        }
    };
    let cluster = app.cluster();
    let hash = with_id(&cluster.access, &id).ok_or_else(&absent)?;
    let by = user.clone();
    carry_out(&app, &user, move |cluster| {
        let token = cluster.access.tokens().get(&hash).ok_or_else(&absent)?;
        if !is_shown(&cluster.access, &by, token) {
            return Err(absent());
        }
        Ok(AccessCommand::DeleteToken { hash })
    })
    .await?;
    app.users.remove(&hash);
    tracing::info!(%user, id, "revoked a token of a user");
    Ok(StatusCode::NO_CONTENT)
}

/// The token that is listed by this id. Ids are the first digits of hashes.
fn with_id(access: &Access, id: &str) -> Option<TokenHash> {
    let mut first = [0; 32];
    if id.is_empty() || !id.is_ascii() {
        return None;
    }
    for (byte, at) in first.iter_mut().zip((0..id.len()).step_by(2)) {
        *byte = u8::from_str_radix(id.get(at..at + 2)?, 16).ok()?;
    }
    let mut from = access.tokens().range(first..);
    let (hash, _) = from.next()?;
    (token_id(hash) == id).then_some(*hash)
}

/// Has the leader decide what changes, and carries it out.
async fn carry_out(
    app: &App,
    by: &User,
    decide: impl FnOnce(&ClusterState) -> Result<AccessCommand, ApiFailure> + Send + 'static,
) -> Result<(), ApiFailure> {
    app.change_by(by, move |cluster| {
        let command = decide(cluster)?;
        // It is refused here, in words for the caller.
        let mut access = cluster.access.clone();
        access.apply(&command).map_err(|refused| failed(&refused))?;
        Ok::<_, ApiFailure>((vec![Command::Access(command)], ()))
    })
    .await
}

fn failed(refused: &AccessRefused) -> ApiFailure {
    let text = refused.to_string();
    match refused {
        AccessRefused::OrgExists(_) => ApiFailure::conflict("org_exists", text),
        AccessRefused::NoOrg(org) => no_such_org(org),
        AccessRefused::TooManyOrgs | AccessRefused::TooManyUsers => {
            ApiFailure::refused("too_many", text)
        }
        AccessRefused::TooManyApps(_) => too_many_apps(refused),
        AccessRefused::TooManyUsersOfOrg(_) => ApiFailure::refused("too_many_users", text)
            .hint("`platform users revoke NAME --org ORG` takes a role that is not needed"),
        AccessRefused::DefaultOrg => ApiFailure::conflict("org_is_default", text),
        AccessRefused::OrgHasApps { .. } => ApiFailure::conflict("org_not_empty", text)
            .hint("`platform apps` lists them; `platform apps move` gives them to another org"),
        AccessRefused::OrgHasNodes { .. } => ApiFailure::conflict("org_has_nodes", text).hint(
            "`platform nodes set-org NODE --any` gives them to all; `platform tokens revoke` ends a token",
        ),
        AccessRefused::AppNotEmpty { .. } => ApiFailure::conflict("app_not_empty", text)
            .hint("`platform destroy`, `platform secrets delete` and `platform volumes delete` end what it has"),
        AccessRefused::NoApp(app) => no_such_app(app),
        AccessRefused::NoUser(_) => ApiFailure::not_found("user_not_found", text)
            .hint("`platform users` lists those there are; `platform users grant` makes one"),
        AccessRefused::LastAdmin(_) => ApiFailure::conflict("last_admin", text)
            .hint("make another user an admin of the cluster first"),
        AccessRefused::NoToken | AccessRefused::TokenExists => {
            ApiFailure::conflict("refused", text)
        }
        AccessRefused::TooManyTokens(_) => ApiFailure::refused("too_many_tokens", text)
            .hint("`platform users tokens` lists them, and `platform users tokens revoke` ends one"),
    }
}

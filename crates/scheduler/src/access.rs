//! Who may do what: orgs, the apps that they own, users with roles, and the tokens that let them in.
//!
//! An org owns apps, and an app's name is one in the whole cluster. A user has roles, in the cluster or in orgs. A token is a user's, and opens what
//! the user may, or less. [`Access`] is the part of the cluster state that says so; [`crate::apply`] changes it.
//!
//! Deliberately absent: passwords, and groups of users. A role in an org is the group.

use std::collections::BTreeMap;
use std::ops::Bound;

use api::user::{Grants, MAX_TOKENS_OF_A_USER, Role};
use model::{AppName, OrgName, Timestamp, UserName};

use crate::cluster_state::TokenHash;
use crate::table::Table;

/// Most orgs.
pub const MAX_ORGS: usize = 10_000;
/// Most users.
pub const MAX_USERS: usize = 100_000;
/// Most apps of one org. An app's name is one in the whole cluster, and whoever may deploy in an org takes names: without a bound one loop takes them
/// from all others. It is far above what people keep apart by names; more apps are a second org's.
pub const MAX_APPS_OF_AN_ORG: usize = 2_000;
/// Most users with a role in one org. Users are the cluster's, and an admin of an org makes them: one org takes a fiftieth of [`MAX_USERS`] at most.
pub const MAX_USERS_OF_AN_ORG: usize = 2_000;

/// An org.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Org {
    /// When it was made.
    pub created_at: Timestamp,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// What the user may. Never empty.
    pub grants: Grants,
    /// When the user was made.
    pub created_at: Timestamp,
}

/// A token that lets a user in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserToken {
    /// The user.
    pub user: UserName,
    /// The org in which it lets in; absent: wherever the user may.
    pub org: Option<OrgName>,
    /// What it opens at most; absent: all that the user may.
    pub role: Option<Role>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it expires; absent: never.
    pub expires_at: Option<Timestamp>,
    /// Who made it; absent: a server did, or a version before.
    pub by: Option<UserName>,
    /// What it is for.
    pub note: String,
}

impl UserToken {
    /// Whether it lets in at this time.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}

/// Who is let in by a token, and what both the user and the token may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub user: UserName,
    /// What the caller may.
    pub grants: Grants,
    /// When the token expires; absent: never.
    pub expires_at: Option<Timestamp>,
}

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLetIn {
    /// There is no such token.
    #[error("the user's token is not known to this cluster")]
    Unknown,
    /// It has expired.
    #[error("the user's token has expired")]
    Expired {
        /// When.
        at: Timestamp,
    },
}

/// Orgs, apps, users and tokens, with what is found of them by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    orgs: Table<OrgName, Org>,
    apps: Table<AppName, OrgName>,
    users: Table<UserName, UserRecord>,
    tokens: Table<TokenHash, UserToken>,
    // Absent, which no key has, is before all others.
    apps_of_org: Table<(OrgName, Option<AppName>), ()>,
    users_of_org: Table<(OrgName, Option<UserName>), ()>,
    tokens_of_user: Table<(UserName, TokenHash), ()>,
    /// Users who are admins of the cluster.
    admins: usize,
}

/// What changed: the records as they are from now on, or `None` where one is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessChanges {
    /// Orgs.
    pub orgs: BTreeMap<OrgName, Option<Org>>,
    /// Whose the apps are.
    pub apps: BTreeMap<AppName, Option<OrgName>>,
    /// Users.
    pub users: BTreeMap<UserName, Option<UserRecord>>,
    /// Tokens of users.
    pub tokens: BTreeMap<TokenHash, Option<UserToken>>,
}

impl AccessChanges {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        let Self {
            orgs,
            apps,
            users,
            tokens,
        } = self;
        orgs.is_empty() && apps.is_empty() && users.is_empty() && tokens.is_empty()
    }

    /// Adds what changed after this.
    pub fn then(&mut self, later: Self) {
        self.orgs.extend(later.orgs);
        self.apps.extend(later.apps);
        self.users.extend(later.users);
        self.tokens.extend(later.tokens);
    }
}

/// A change of who may do what. Everything in it is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessCommand {
    /// Makes an org.
    CreateOrg {
        /// Its name.
        name: OrgName,
        /// When.
        now: Timestamp,
    },
    /// Removes an org that has no app: roles in it and tokens for it go along.
    RemoveOrg {
        /// Its name.
        name: OrgName,
    },
    /// An app is an org's from now on.
    SetOwner {
        /// The app.
        app: AppName,
        /// The org.
        org: OrgName,
    },
    /// The app's name is free again.
    RemoveApp {
        /// The app.
        app: AppName,
    },
    /// Gives a user a role, or takes it. A user is made with the first, and gone with the last, tokens too.
    Grant {
        /// The user.
        user: UserName,
        /// Where; absent: in the whole cluster.
        org: Option<OrgName>,
        /// Absent: none any more.
        role: Option<Role>,
        /// When.
        now: Timestamp,
    },
    /// Removes a user, tokens too.
    RemoveUser {
        /// The user.
        user: UserName,
    },
    /// Adds a token of a user.
    AddToken {
        /// The hash of its secret.
        hash: TokenHash,
        /// The token.
        token: UserToken,
        /// When: tokens of the user that have expired by then go.
        now: Timestamp,
    },
    /// A token that the store has, and its user where the user is not known, because a server that did not lead wrote them.
    Adopt {
        /// The hash of its secret.
        hash: TokenHash,
        /// The token.
        token: UserToken,
        /// The user.
        user: UserRecord,
    },
    /// A token lets nobody in any more.
    DeleteToken {
        /// The hash of its secret.
        hash: TokenHash,
    },
}

/// Why such a change was not made. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessRefused {
    /// The name is taken.
    #[error("org {0} is there already")]
    OrgExists(OrgName),
    /// There is no such org.
    #[error("there is no org {0}")]
    NoOrg(OrgName),
    /// There are as many as there may be.
    #[error("there are {MAX_ORGS} orgs, and there may be no more")]
    TooManyOrgs,
    /// There are as many as there may be.
    #[error("there are {MAX_USERS} users, and there may be no more")]
    TooManyUsers,
    /// The org owns as many as it may.
    #[error("org {0} has {MAX_APPS_OF_AN_ORG} apps, and may have no more")]
    TooManyApps(OrgName),
    /// As many users as may have a role in the org.
    #[error("{MAX_USERS_OF_AN_ORG} users have a role in org {0}, and no more may have one")]
    TooManyUsersOfOrg(OrgName),
    /// The org is the one that is always there.
    #[error("org {} is always there", OrgName::default())]
    DefaultOrg,
    /// The org owns apps.
    #[error("org {org} owns {app}, and perhaps other apps")]
    OrgHasApps {
        /// The org.
        org: OrgName,
        /// One of its apps.
        app: AppName,
    },
    /// Nodes run the apps of the org only, or are about to.
    #[error("org {org} has {what}, and perhaps others")]
    OrgHasNodes {
        /// The org.
        org: OrgName,
        /// One of them.
        what: String,
    },
    /// The app has something, and its name was to be free.
    #[error("app {app} still has {what}")]
    AppNotEmpty {
        /// The app.
        app: AppName,
        /// Something that it has.
        what: String,
    },
    /// No app has this name.
    #[error("there is no app {0}")]
    NoApp(AppName),
    /// There is no such user.
    #[error("there is no user {0}")]
    NoUser(UserName),
    /// Nobody would be left who can make admins.
    #[error("{0} is the only admin of the cluster")]
    LastAdmin(UserName),
    /// There is no such token.
    #[error("there is no such token")]
    NoToken,
    /// The token is there already.
    #[error("the token is there already")]
    TokenExists,
    /// The user has as many tokens as there may be.
    #[error("{0} has {MAX_TOKENS_OF_A_USER} tokens, and may have no more")]
    TooManyTokens(UserName),
}

impl Access {
    /// That which is stored.
    pub fn of(records: &AccessChanges) -> Self {
        let mut access = Self::default();
        access.patch(records);
        access
    }

    /// The orgs.
    pub fn orgs(&self) -> &Table<OrgName, Org> {
        &self.orgs
    }

    /// The users.
    pub fn users(&self) -> &Table<UserName, UserRecord> {
        &self.users
    }

    /// The users' tokens.
    pub fn tokens(&self) -> &Table<TokenHash, UserToken> {
        &self.tokens
    }

    /// Whose an app is; absent where no app has this name.
    pub fn owner(&self, app: &AppName) -> Option<&OrgName> {
        self.apps.get(app)
    }

    /// Every app, and whose it is.
    pub fn apps(&self) -> &Table<AppName, OrgName> {
        &self.apps
    }

    /// The apps of an org.
    pub fn apps_of(&self, org: &OrgName) -> impl Iterator<Item = &AppName> {
        let of = org.clone();
        self.apps_of_org
            .range((org.clone(), None)..)
            .map(|(key, ())| key)
            .take_while(move |(org, _)| *org == of)
            .filter_map(|(_, app)| app.as_ref())
    }

    /// The users with a role in an org, those of the whole cluster left out.
    pub fn users_of<'a>(&'a self, org: &'a OrgName) -> impl Iterator<Item = (&'a UserName, Role)> {
        self.users_of_org
            .range((org.clone(), None)..)
            .map(|(key, ())| key)
            .take_while(move |(of, _)| of == org)
            .filter_map(move |(_, user)| {
                let user = user.as_ref()?;
                let record = self.users.get(user)?;
                Some((user, *record.grants.orgs.get(org)?))
            })
    }

    /// The tokens of a user.
    pub fn tokens_of<'a>(
        &'a self,
        user: &'a UserName,
    ) -> impl Iterator<Item = (&'a TokenHash, &'a UserToken)> {
        self.tokens_of_user
            .range((user.clone(), [0; 32])..)
            .map(|(key, ())| key)
            .take_while(move |(of, _)| of == user)
            .filter_map(move |(_, hash)| Some((hash, self.tokens.get(hash)?)))
    }

    /// The tokens behind a place in the order of users and hashes: `None` for the beginning.
    pub fn tokens_behind(
        &self,
        place: Option<(UserName, TokenHash)>,
    ) -> impl Iterator<Item = (&TokenHash, &UserToken)> {
        let behind = place.map_or(Bound::Unbounded, Bound::Excluded);
        self.tokens_of_user
            .range((behind, Bound::Unbounded))
            .filter_map(|((_, hash), ())| Some((hash, self.tokens.get(hash)?)))
    }

    /// Who comes with this token.
    ///
    /// # Errors
    /// It lets nobody in.
    pub fn caller(&self, hash: &TokenHash, now: Timestamp) -> Result<Caller, NotLetIn> {
        let token = self.tokens.get(hash).ok_or(NotLetIn::Unknown)?;
        if let Some(at) = token.expires_at.filter(|_| !token.is_good(now)) {
            return Err(NotLetIn::Expired { at });
        }
        let user = self.users.get(&token.user).ok_or(NotLetIn::Unknown)?;
        Ok(Caller {
            user: token.user.clone(),
            grants: user.grants.limited_to(token.org.as_ref(), token.role),
            expires_at: token.expires_at,
        })
    }

    /// Makes the records what they are from now on.
    pub fn patch(&mut self, changes: &AccessChanges) {
        let AccessChanges {
            orgs,
            apps,
            users,
            tokens,
        } = changes;
        for (name, org) in orgs {
            match org {
                Some(org) => self.orgs.insert(name.clone(), org.clone()),
                None => drop(self.orgs.remove(name)),
            }
        }
        for (app, org) in apps {
            if let Some(before) = self.apps.remove(app) {
                let key = (before.as_ref().clone(), Some(app.clone()));
                self.apps_of_org.remove(&key);
            }
            if let Some(org) = org {
                self.apps.insert(app.clone(), org.clone());
                self.apps_of_org
                    .insert((org.clone(), Some(app.clone())), ());
            }
        }
        for (name, user) in users {
            if let Some(before) = self.users.remove(name) {
                self.admins -= usize::from(before.grants.cluster == Some(Role::Admin));
                for org in before.grants.orgs.keys() {
                    self.users_of_org.remove(&(org.clone(), Some(name.clone())));
                }
            }
            if let Some(user) = user {
                self.admins += usize::from(user.grants.cluster == Some(Role::Admin));
                for org in user.grants.orgs.keys() {
                    let key = (org.clone(), Some(name.clone()));
                    self.users_of_org.insert(key, ());
                }
                self.users.insert(name.clone(), user.clone());
            }
        }
        for (hash, token) in tokens {
            if let Some(before) = self.tokens.remove(hash) {
                self.tokens_of_user.remove(&(before.user.clone(), *hash));
            }
            if let Some(token) = token {
                self.tokens_of_user.insert((token.user.clone(), *hash), ());
                self.tokens.insert(*hash, token.clone());
            }
        }
    }

    /// Carries a command out, and says which records changed.
    ///
    /// # Errors
    /// It does not fit what there is, which has not changed then.
    pub fn apply(&mut self, command: &AccessCommand) -> Result<AccessChanges, AccessRefused> {
        let changes = self.decide(command)?;
        self.patch(&changes);
        Ok(changes)
    }

    fn decide(&self, command: &AccessCommand) -> Result<AccessChanges, AccessRefused> {
        let mut changes = AccessChanges::default();
        match command {
            AccessCommand::CreateOrg { name, now } => {
                if self.orgs.contains_key(name) {
                    return Err(AccessRefused::OrgExists(name.clone()));
                }
                if self.orgs.len() >= MAX_ORGS {
                    return Err(AccessRefused::TooManyOrgs);
                }
                let org = Org { created_at: *now };
                changes.orgs.insert(name.clone(), Some(org));
            }
            AccessCommand::RemoveOrg { name } => return self.without_org(name),
            AccessCommand::SetOwner { app, org } => {
                self.check_org(org)?;
                if self.owner(app) != Some(org) {
                    self.check_room_for_app(org)?;
                }
                changes.apps.insert(app.clone(), Some(org.clone()));
            }
            AccessCommand::RemoveApp { app } => {
                if !self.apps.contains_key(app) {
                    return Err(AccessRefused::NoApp(app.clone()));
                }
                changes.apps.insert(app.clone(), None);
            }
            AccessCommand::Grant {
                user,
                org,
                role,
                now,
            } => return self.granted(user, org.as_ref(), *role, *now),
            AccessCommand::RemoveUser { user } => {
                let record = self.users.get(user);
                let record = record.ok_or_else(|| AccessRefused::NoUser(user.clone()))?;
                self.check_admin_left(user, &record.grants, None)?;
                self.remove_user(user, &mut changes);
            }
            AccessCommand::AddToken { hash, token, now } => {
                return self.with_token(hash, token, *now);
            }
            AccessCommand::Adopt { hash, token, user } => {
                if !self.users.contains_key(&token.user) {
                    changes.users.insert(token.user.clone(), Some(user.clone()));
                }
                changes.tokens.insert(*hash, Some(token.clone()));
            }
            AccessCommand::DeleteToken { hash } => {
                if !self.tokens.contains_key(hash) {
                    return Err(AccessRefused::NoToken);
                }
                changes.tokens.insert(*hash, None);
            }
        }
        Ok(changes)
    }

    fn check_org(&self, org: &OrgName) -> Result<(), AccessRefused> {
        let is_there = self.orgs.contains_key(org);
        is_there
            .then_some(())
            .ok_or_else(|| AccessRefused::NoOrg(org.clone()))
    }

    /// The org may own one more app.
    ///
    /// # Errors
    /// [`AccessRefused::TooManyApps`].
    pub fn check_room_for_app(&self, org: &OrgName) -> Result<(), AccessRefused> {
        match self.apps_of(org).nth(MAX_APPS_OF_AN_ORG - 1) {
            Some(_) => Err(AccessRefused::TooManyApps(org.clone())),
            None => Ok(()),
        }
    }

    /// Another admin of the cluster is left where this user has `after` in the cluster.
    fn check_admin_left(
        &self,
        user: &UserName,
        before: &Grants,
        after: Option<Role>,
    ) -> Result<(), AccessRefused> {
        let is_lost = before.cluster == Some(Role::Admin) && after != Some(Role::Admin);
        if is_lost && self.admins == 1 {
            return Err(AccessRefused::LastAdmin(user.clone()));
        }
        Ok(())
    }

    fn remove_user(&self, user: &UserName, changes: &mut AccessChanges) {
        let tokens = self.tokens_of(user).map(|(hash, _)| (*hash, None));
        changes.tokens.extend(tokens);
        changes.users.insert(user.clone(), None);
    }

    fn granted(
        &self,
        user: &UserName,
        org: Option<&OrgName>,
        role: Option<Role>,
        now: Timestamp,
    ) -> Result<AccessChanges, AccessRefused> {
        let before = self.users.get(user);
        if before.is_none() && role.is_none() {
            return Err(AccessRefused::NoUser(user.clone()));
        }
        if before.is_none() && self.users.len() >= MAX_USERS {
            return Err(AccessRefused::TooManyUsers);
        }
        let mut record = before.cloned().unwrap_or_else(|| UserRecord {
            grants: Grants::default(),
            created_at: now,
        });
        match (org, role) {
            (None, role) => {
                self.check_admin_left(user, &record.grants, role)?;
                record.grants.cluster = role;
            }
            (Some(org), Some(role)) => {
                self.check_org(org)?;
                let is_new = record.grants.orgs.insert(org.clone(), role).is_none();
                if is_new && self.users_of(org).nth(MAX_USERS_OF_AN_ORG - 1).is_some() {
                    return Err(AccessRefused::TooManyUsersOfOrg(org.clone()));
                }
            }
            (Some(org), None) => drop(record.grants.orgs.remove(org)),
        }
        let mut changes = AccessChanges::default();
        if record.grants.is_empty() {
            self.remove_user(user, &mut changes);
        } else {
            changes.users.insert(user.clone(), Some(record));
        }
        Ok(changes)
    }

    fn without_org(&self, name: &OrgName) -> Result<AccessChanges, AccessRefused> {
        self.check_org(name)?;
        if *name == OrgName::default() {
            return Err(AccessRefused::DefaultOrg);
        }
        if let Some(app) = self.apps_of(name).next() {
            return Err(AccessRefused::OrgHasApps {
                org: name.clone(),
                app: app.clone(),
            });
        }
        let mut changes = AccessChanges::default();
        changes.orgs.insert(name.clone(), None);
        for (user, _) in self.users_of(name) {
            let Some(mut record) = self.users.get(user).cloned() else {
                continue;
            };
            record.grants.orgs.remove(name);
            if record.grants.is_empty() {
                self.remove_user(user, &mut changes);
            } else {
                changes.users.insert(user.clone(), Some(record));
            }
        }
        // An org of this name that is made later is another: what was made for this one must not open it.
        let tokens = self.tokens.iter();
        let of_org = tokens.filter(|(_, token)| token.org.as_ref() == Some(name));
        changes.tokens.extend(of_org.map(|(hash, _)| (*hash, None)));
        Ok(changes)
    }

    fn with_token(
        &self,
        hash: &TokenHash,
        token: &UserToken,
        now: Timestamp,
    ) -> Result<AccessChanges, AccessRefused> {
        if !self.users.contains_key(&token.user) {
            return Err(AccessRefused::NoUser(token.user.clone()));
        }
        if let Some(org) = &token.org {
            self.check_org(org)?;
        }
        if self.tokens.contains_key(hash) {
            return Err(AccessRefused::TokenExists);
        }
        let mut changes = AccessChanges::default();
        let (mut good, mut expired) = (0, Vec::new());
        for (hash, token) in self.tokens_of(&token.user) {
            if token.is_good(now) {
                good += 1;
            } else {
                expired.push((*hash, None));
            }
        }
        if good >= MAX_TOKENS_OF_A_USER {
            return Err(AccessRefused::TooManyTokens(token.user.clone()));
        }
        changes.tokens.extend(expired);
        changes.tokens.insert(*hash, Some(token.clone()));
        Ok(changes)
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;

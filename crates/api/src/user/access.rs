//! Orgs, users, their roles and their tokens.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use model::{AppName, OrgName, Timestamp, UserName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a user may do, in the whole cluster or in one org. Each may what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything there is, logs too, and changes nothing.
    Viewer,
    /// Deploys, scales, sets secrets, and runs commands in instances.
    Deployer,
    /// Destroys envs, deletes volumes, and says who may do what. In the whole cluster: nodes, edges, certificates, registries, orgs and the network too.
    Admin,
}

impl Role {
    /// Its name: `deployer`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Deployer => "deployer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role: it is `viewer`, `deployer` or `admin`")]
pub struct NotARole(String);

impl FromStr for Role {
    type Err = NotARole;

    fn from_str(text: &str) -> Result<Self, NotARole> {
        [Self::Viewer, Self::Deployer, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| NotARole(text.to_owned()))
    }
}

/// The roles of a user. A role in the cluster is one in every org too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Grants {
    /// In the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Role>,
    /// In these orgs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub orgs: BTreeMap<OrgName, Role>,
}

impl Grants {
    /// The role in an org.
    pub fn role_in(&self, org: &OrgName) -> Option<Role> {
        self.cluster.max(self.orgs.get(org).copied())
    }

    /// Whether there is no role at all.
    pub fn is_empty(&self) -> bool {
        self.cluster.is_none() && self.orgs.is_empty()
    }

    /// What is left of these in one org only, where one is named, and of no more than a role, where one is named.
    #[must_use]
    pub fn limited_to(&self, org: Option<&OrgName>, role: Option<Role>) -> Self {
        let most = |granted: Role| role.map_or(granted, |role| granted.min(role));
        match org {
            Some(org) => Self {
                cluster: None,
                orgs: (self.role_in(org).into_iter())
                    .map(|granted| (org.clone(), most(granted)))
                    .collect(),
            },
            None => Self {
                cluster: self.cluster.map(most),
                orgs: (self.orgs.iter())
                    .map(|(org, granted)| (org.clone(), most(*granted)))
                    .collect(),
            },
        }
    }
}

/// An org, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrgRow {
    /// Its name.
    pub name: OrgName,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many apps it owns.
    pub apps: u64,
}

/// An app and whose it is, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppRow {
    /// Its name, which no other app of the cluster has.
    pub name: AppName,
    /// The org that owns it.
    pub org: OrgName,
    /// How many envs it has.
    pub envs: u64,
}

/// A user, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserRow {
    /// The name.
    pub name: UserName,
    /// What the user may do. Of a caller who is an org's, what is in that org.
    pub grants: Grants,
    /// When the user was made.
    pub created_at: Timestamp,
    /// How many tokens the user has that let in.
    pub tokens: u64,
}

/// Makes an org.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOrgRequest {
    /// Its name.
    pub name: OrgName,
}

/// Moves an app to another org, with all its envs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveAppRequest {
    /// The org.
    pub org: OrgName,
}

/// Gives a user a role, or takes it. A user that is not there yet is made with the first one, and is gone with the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// Where. Absent: in the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// Absent: none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// Longest text that says what a token is for, in bytes.
pub const MAX_TOKEN_NOTE_BYTES: usize = 128;
/// Most tokens of one user that let in.
pub const MAX_TOKENS_OF_A_USER: usize = 100;
/// Longest life of a token that expires, in seconds: ten years.
pub const MAX_USER_TOKEN_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;

/// Asks for a token that lets a user in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateUserTokenRequest {
    /// The user. Absent: the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// The org in which it lets in, and nowhere else. Absent: wherever the user may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// What it opens at most; what the user may at most counts beside it. Absent: all that the user may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Seconds until it expires, 1 to [`MAX_USER_TOKEN_SECONDS`]. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_USER_TOKEN_SECONDS))]
    pub ttl_seconds: Option<u64>,
    /// What it is for, at most [`MAX_TOKEN_NOTE_BYTES`].
    #[serde(default)]
    pub note: String,
}

/// A user's token; this is the only time it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateUserTokenResponse {
    /// The token.
    pub token: String,
    /// By what it is listed and revoked.
    pub id: String,
    /// The user.
    pub user: UserName,
    /// When it expires; absent: never.
    pub expires_at: Option<Timestamp>,
}

/// A user's token, for people; its secret is never shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserTokenRow {
    /// By what it is revoked.
    pub id: String,
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
    /// When it last let in, since the server began to lead.
    pub used_at: Option<Timestamp>,
}

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhoAmI {
    /// The user.
    pub user: UserName,
    /// What the token opens: what both it and the user may.
    pub grants: Grants,
    /// The token's id.
    pub token: String,
    /// When the token expires; absent: never.
    pub expires_at: Option<Timestamp>,
    /// The certificates of the cluster's CAs, PEM: no other is trusted.
    pub ca_pem: String,
}

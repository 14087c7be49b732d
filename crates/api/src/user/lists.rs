//! Lists: which rows are wanted, page by page.
//!
//! An answer has the rows of one page, in the order of what they are of. Where there are more, its header `Link` names the next page, with
//! `rel="next"` (RFC 8288). Pages are no snapshot: what comes or goes meanwhile may be missed, and nothing is told twice.

use model::{AppName, EnvName, LabelKey, LabelValue, NodeId, ProcessName, UserName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rows of a page, where the caller does not say.
pub const DEFAULT_PAGE: u32 = 1_000;
/// Most rows of a page.
pub const MAX_PAGE: u32 = 10_000;

/// Which part of a list is wanted.
pub trait Paged: Serialize + Clone {
    /// The same list, from behind this place on. A place is for the server that told it: it may have another form in another version.
    #[must_use]
    fn after(&self, place: String) -> Self;
    /// Behind which place, and how many at most; absent: [`DEFAULT_PAGE`].
    fn page(&self) -> (Option<&str>, Option<u32>);
}

macro_rules! paged {
    ($($name:ident),*) => {$(
        impl Paged for $name {
            fn after(&self, place: String) -> Self {
                Self {
                    after: Some(place),
                    ..self.clone()
                }
            }

            fn page(&self) -> (Option<&str>, Option<u32>) {
                (self.after.as_deref(), self.limit)
            }
        }
    )*};
}

paged!(
    InstancesQuery,
    EnvsQuery,
    NodesQuery,
    VolumesQuery,
    AppsQuery,
    UsersQuery,
    UserTokensQuery
);

/// The query of [`crate::paths::INSTANCES`] and [`crate::paths::ENDED_INSTANCES`]; of ended instances, `ready` says nothing. What is absent
/// keeps every row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstancesQuery {
    /// Of this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Of envs of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// Of this process type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
    /// On this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Those that are ready, or those that are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Most rows, from 1 to [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
    /// As the `Link` of the page before says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The query of [`crate::paths::ENVS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvsQuery {
    /// Of this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// Most rows, from 1 to [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
    /// As the `Link` of the page before says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The query of [`crate::paths::NODES`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodesQuery {
    /// In this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// With this label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelKey>,
    /// And this value of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<LabelValue>,
    /// Those that are online, or those that are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// Most rows, from 1 to [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
    /// As the `Link` of the page before says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The query of [`crate::paths::VOLUMES`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumesQuery {
    /// Of this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Of envs of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// On this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Most rows, from 1 to [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
    /// As the `Link` of the page before says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The query of GET [`crate::paths::APPS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AppsQuery {
    /// Most rows, from 1 to [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
    /// As the `Link` of the page before says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The query of GET [`crate::paths::USERS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsersQuery {
    /// Most rows, from 1 to [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
    /// As the `Link` of the page before says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The query of GET [`crate::paths::USER_TOKENS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserTokensQuery {
    /// Only this user's. Absent: all that the caller sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// Most rows, from 1 to [`MAX_PAGE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
    /// As the `Link` of the page before says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

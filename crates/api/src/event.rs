//! What changed in the cluster, as it is stored and as users read it: who, when, what.
//!
//! Events are numbered in the order in which they happened, with gaps. An event is written with the change that it tells of, and never
//! changes. What an instance does over and over is folded: a later event with a [`Event::count`] takes the place of the one before it.

use std::fmt;
use std::str::FromStr;

use model::{
    AppName, EdgeId, EnvName, InstanceId, NodeId, OrgName, ProcessName, ReleaseNumber, Timestamp,
    UserName, VolumeId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::enrollment::Member;

/// Events that are kept: the last so many, by their numbers.
pub const MAX_EVENTS: u64 = 100_000;
/// Age at which an event is deleted, in milliseconds: 30 days.
pub const MAX_EVENT_AGE_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Most events of one answer.
pub const MAX_EVENTS_LISTED: u32 = 1_000;
/// Events of one answer where the caller names no number.
pub const EVENTS_LISTED: u32 = 200;
/// Longest [`Event::message`], in bytes.
pub const MAX_EVENT_MESSAGE_BYTES: usize = 1_024;

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "name", rename_all = "kebab-case")]
pub enum Actor {
    /// A user.
    User(UserName),
    /// The planner: it follows from what users and nodes did before.
    Planner,
    /// A node, which reported it.
    Node(NodeId),
    /// An edge.
    Edge(EdgeId),
    /// The server by itself.
    Server,
}

impl From<Member> for Actor {
    fn from(member: Member) -> Self {
        match member {
            Member::Node(id) => Self::Node(id),
            Member::Edge(id) => Self::Edge(id),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.pad(name.as_str()),
            Self::Planner => f.pad("planner"),
            Self::Node(id) => f.pad(&id.to_string()),
            Self::Edge(id) => f.pad(&id.to_string()),
            Self::Server => f.pad("server"),
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What happened. The first word of its name is what it happened to.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name: `instance-ready`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// The planner placed a new instance on a node.
    InstanceScheduled = "instance-scheduled",
    /// Its app was started.
    InstanceStarted = "instance-started",
    /// It takes traffic.
    InstanceReady = "instance-ready",
    /// It takes no traffic any more, and runs.
    InstanceUnready = "instance-unready",
    /// Its liveness check failed: it is about to be replaced.
    InstanceUnhealthy = "instance-unhealthy",
    /// Its node started it again.
    InstanceRestarted = "instance-restarted",
    /// It ended by itself, and its policy does not start it again.
    InstanceExited = "instance-exited",
    /// Its node gave it up.
    InstanceFailed = "instance-failed",
    /// It is wanted no longer.
    InstanceStopping = "instance-stopping",
    /// It is gone.
    InstanceStopped = "instance-stopped",
    /// A release was made, and its rollout began.
    ReleaseDeployed = "release-deployed",
    /// The release command of a process type completed.
    ReleaseCommandCompleted = "release-command-completed",
    /// Every process type has its instances ready on the release.
    ReleaseRolledOut = "release-rolled-out",
    /// The release could not become healthy; the one before was kept or restored.
    ReleaseReverted = "release-reverted",
    /// The release could not become healthy, and there was nothing to go back to.
    ReleaseFailed = "release-failed",
    /// Other numbers of instances are wanted.
    EnvScaled = "env-scaled",
    /// A user destroys the env.
    EnvDestroying = "env-destroying",
    /// Nothing of the env is left.
    EnvDestroyed = "env-destroyed",
    /// The env cannot be planned, and is left as it is for a while.
    EnvQuarantined = "env-quarantined",
    /// A volume was placed on a node.
    VolumeScheduled = "volume-scheduled",
    /// Its disk was made.
    VolumeMade = "volume-made",
    /// A user deletes the volume.
    VolumeDeleting = "volume-deleting",
    /// The volume is gone.
    VolumeDeleted = "volume-deleted",
    /// A secret bundle has other content. Its values are in no event.
    SecretSet = "secret-set",
    /// A secret bundle was deleted.
    SecretDeleted = "secret-deleted",
    /// An org owns a new app, or another org does.
    AppMoved = "app-moved",
    /// The name of an app is free again.
    AppRemoved = "app-removed",
    /// A node joined.
    NodeJoined = "node-joined",
    /// A user approved a node, or the hardware that it has.
    NodeApproved = "node-approved",
    /// A node reports again.
    NodeOnline = "node-online",
    /// A node does not report any more.
    NodeOffline = "node-offline",
    /// A node takes no new instances.
    NodeCordoned = "node-cordoned",
    /// The instances of a node are replaced on others.
    NodeDrained = "node-drained",
    /// A node takes instances again.
    NodeUncordoned = "node-uncordoned",
    /// A node has other labels.
    NodeLabelled = "node-labelled",
    /// A node takes instances of another org, or of every org.
    NodeOrgChanged = "node-org-changed",
    /// A node says something else of itself: its driver, its egress, its hardware, how it is reached.
    NodeChanged = "node-changed",
    /// A node has other keys, or a user asks for that.
    NodeKeysChanged = "node-keys-changed",
    /// A user revoked a node.
    NodeRevoked = "node-revoked",
    /// A node was removed.
    NodeRemoved = "node-removed",
    /// A node was given up with all that it had.
    NodeLost = "node-lost",
    /// An edge joined.
    EdgeJoined = "edge-joined",
    /// A user approved an edge.
    EdgeApproved = "edge-approved",
    /// An edge is reached otherwise.
    EdgeChanged = "edge-changed",
    /// An edge has other keys, or a user asks for that.
    EdgeKeysChanged = "edge-keys-changed",
    /// A user revoked an edge.
    EdgeRevoked = "edge-revoked",
    /// An edge was removed.
    EdgeRemoved = "edge-removed",
    /// An enrollment token was made.
    TokenCreated = "token-created",
    /// An enrollment token lets nobody in any more.
    TokenRevoked = "token-revoked",
    /// An org was made.
    OrgCreated = "org-created",
    /// An org was removed.
    OrgRemoved = "org-removed",
    /// A user has other roles, perhaps the first.
    UserGranted = "user-granted",
    /// A user was removed.
    UserRemoved = "user-removed",
    /// A user has another token.
    UserTokenCreated = "user-token-created",
    /// A user's token lets nobody in any more.
    UserTokenRevoked = "user-token-revoked",
    /// Settings of the network changed.
    NetworkChanged = "network-changed",
    /// The cluster was logged in to a registry. The secret is in no event.
    RegistryLoggedIn = "registry-logged-in",
    /// The cluster was logged out of a registry.
    RegistryLoggedOut = "registry-logged-out",
    /// Members trust other CAs.
    CaChanged = "ca-changed",
    /// A certificate was added, or another one took its place. Its key is in no event.
    CertificateAdded = "certificate-added",
    /// A certificate was removed.
    CertificateRemoved = "certificate-removed",
    /// A certificate came by ACME, the first or the next one.
    CertificateIssued = "certificate-issued",
    /// A certificate could not be had by ACME. It is tried again.
    CertificateFailed = "certificate-failed",
    /// Certificates are ordered by ACME from now on, otherwise, or no longer.
    CertificateSettings = "certificate-settings-changed",
    /// A certificate ends soon, or has ended.
    CertificateExpiring = "certificate-expiring",
    /// A server began to lead.
    ServerLeads = "server-leads",
}

impl EventKind {
    /// The kinds that a word names: one kind, or all that happen to something (`instance`, `node`).
    ///
    /// # Errors
    /// There is none.
    pub fn named(word: &str) -> Result<Vec<Self>, NotAKind> {
        let is_named = |kind: &&Self| {
            let rest = kind.as_str().strip_prefix(word);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let named: Vec<_> = Self::ALL.iter().filter(is_named).copied().collect();
        if named.is_empty() || word.is_empty() {
            return Err(NotAKind(word.chars().take(64).collect()));
        }
        Ok(named)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text names no kind of events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a kind of events: one is `instance-ready`, or `instance` for all of instances; docs/events.md lists them"
)]
pub struct NotAKind(String);

impl FromStr for EventKind {
    type Err = NotAKind;

    fn from_str(text: &str) -> Result<Self, NotAKind> {
        let found = Self::ALL.iter().find(|kind| kind.as_str() == text);
        found
            .copied()
            .ok_or_else(|| NotAKind(text.chars().take(64).collect()))
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its place in the order of events: larger than that of every earlier one.
    pub number: u64,
    /// When, by the server's clock.
    pub at: Timestamp,
    /// Who did it, or reported it.
    pub by: Actor,
    /// What.
    pub kind: EventKind,
    /// The org that owned the app then. Absent: it is of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// The app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The env of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// The process type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
    /// The release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    /// The instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// The volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// The node that it is about, or on which it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<EdgeId>,
    /// The user that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// What and why, for people; at most [`MAX_EVENT_MESSAGE_BYTES`].
    pub message: String,
    /// How many times the same has happened to the same since [`Self::since`], this time among them.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub count: u32,
    /// When it happened first of these times. Absent: this is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

fn once() -> u32 {
    1
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_once(count: &u32) -> bool {
    *count <= 1
}

impl Event {
    /// An event that has no number yet, and is about nothing but the cluster. Too long a message is cut.
    pub fn new(at: Timestamp, by: Actor, kind: EventKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_EVENT_MESSAGE_BYTES {
            let mut end = MAX_EVENT_MESSAGE_BYTES;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        Self {
            number: 0,
            at,
            by,
            kind,
            org: None,
            app: None,
            env: None,
            process: None,
            release: None,
            instance: None,
            volume: None,
            node: None,
            edge: None,
            user: None,
            message,
            count: 1,
            since: None,
        }
    }
}

/// Some of the events, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventPage {
    /// The events.
    pub events: Vec<Event>,
    /// Ask with `after` this for what comes next.
    pub next: u64,
    /// Whether there is more already.
    pub more: bool,
}

/// Which events a caller wants. All of what is named has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Those after this number, the oldest first. Absent: the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Of an app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Of the envs of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// Of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Of a node, and of what is on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Of a kind, or of what happens to something ([`EventKind::named`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Of this time or later, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// At most so many; no more than [`MAX_EVENTS_LISTED`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_EVENTS_LISTED))]
    pub limit: Option<u32>,
    /// With `after`: how long to wait for the next event, in milliseconds; at most [`crate::MAX_WAIT_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn each_kind_has_a_name_of_its_own_that_is_read_back() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            assert_eq!(
                serde_json::to_value(kind).unwrap(),
                serde_json::Value::from(kind.as_str())
            );
        }
        let names: std::collections::BTreeSet<_> =
            EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), EventKind::ALL.len());
    }

    #[test]
    fn a_word_names_one_kind_or_all_of_a_subject() {
        let one = EventKind::named("node-offline").unwrap();
        assert_eq!(one, [EventKind::NodeOffline]);
        let of_nodes = EventKind::named("node").unwrap();
        assert!(of_nodes.len() > 5);
        assert!(
            of_nodes
                .iter()
                .all(|kind| kind.as_str().starts_with("node-"))
        );
        for wrong in ["", "nod", "Node", "node-", "instance-"] {
            assert!(EventKind::named(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_event_is_short_in_json_and_read_back() {
        let event = Event {
            number: 7,
            node: Some(NodeId(2)),
            ..Event::new(
                Timestamp(5),
                Actor::User("ann".parse().unwrap()),
                EventKind::NodeCordoned,
                "box",
            )
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"number":7,"at":5,"by":{"kind":"user","name":"ann"},"kind":"node-cordoned","node":"n2","message":"box"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        let planner = serde_json::to_string(&Actor::Planner).unwrap();
        assert_eq!(planner, r#"{"kind":"planner"}"#);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let event = Event::new(
            Timestamp(0),
            Actor::Server,
            EventKind::ServerLeads,
            "ä".repeat(MAX_EVENT_MESSAGE_BYTES),
        );
        assert_eq!(event.message.len(), MAX_EVENT_MESSAGE_BYTES);
        let odd = format!("x{}", "ä".repeat(MAX_EVENT_MESSAGE_BYTES));
        let event = Event::new(Timestamp(0), Actor::Server, EventKind::ServerLeads, odd);
        assert_eq!(event.message.len(), MAX_EVENT_MESSAGE_BYTES - 1);
    }
}

//! Why something is as it is: the whole story of an instance, a process type or a node, as `platform why` tells it.

use model::{
    AppName, EnvName, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp, UserName,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::user::RolloutPhase;

/// Most instances that are listed in one answer.
pub const MAX_WHY_INSTANCES: usize = 50;
/// Most events that are told in one answer, the newest.
pub const MAX_WHY_EVENTS: u32 = 50;
/// Longest subject that is looked up, in bytes: an app, an env and a process type.
pub const MAX_WHY_SUBJECT_BYTES: usize = 200;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhyQuery {
    /// An instance (`1f0c2b7a`), a process type (`shop/prod/web`, or `web` of the env that the query names), or a node (`n3`, or its name).
    pub subject: String,
    /// The app of a process type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Its env.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
}

/// The story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// What it is the story of.
    pub subject: WhySubject,
    /// How it is now, in a word or two: `healthy`, `backoff`, `1 of 2 ready`, `offline`, `gone`.
    pub state: String,
    /// Why, the weightiest reason first, for people.
    pub reasons: Vec<String>,
    /// What comes next and when, or what is waited for, for people.
    pub next: Vec<String>,
    /// The release that it runs, or that is rolled out. Absent: of a node, and where its record is kept no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<WhyRelease>,
    /// The node that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<WhyNode>,
    /// The instances of a process type or on a node, at most [`MAX_WHY_INSTANCES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<WhyInstance>,
    /// What happened to it, in order: the last [`MAX_WHY_EVENTS`].
    pub events: Vec<Event>,
}

/// What a story is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum WhySubject {
    /// An instance, which may be gone.
    Instance {
        /// It.
        id: InstanceId,
        /// Its app.
        app: AppName,
        /// Its env.
        env: EnvName,
        /// Its process type.
        process: ProcessName,
    },
    /// A process type of an env.
    Process {
        /// Its app.
        app: AppName,
        /// Its env.
        env: EnvName,
        /// It.
        process: ProcessName,
    },
    /// A node.
    Node {
        /// It.
        id: NodeId,
        /// Its name.
        name: String,
    },
}

/// A release in a story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhyRelease {
    /// Its number.
    pub number: ReleaseNumber,
    /// Who deployed it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<UserName>,
    /// When.
    pub at: Timestamp,
    /// How its rollout goes, or ended. Absent: it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RolloutPhase>,
}

/// A node in a story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhyNode {
    /// It.
    pub id: NodeId,
    /// Its name; its id where it was removed.
    pub name: String,
    /// How it is now: `online`, `offline`, `cordoned`, `removed`.
    pub state: String,
}

/// An instance in the story of a process type or a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhyInstance {
    /// It.
    pub id: InstanceId,
    /// Its app.
    pub app: AppName,
    /// Its env.
    pub env: EnvName,
    /// Its process type.
    pub process: ProcessName,
    /// The release that it runs.
    pub release: ReleaseNumber,
    /// The node that it is on.
    pub node: NodeId,
    /// How it is now.
    pub state: String,
    /// Why, in short; empty where all is well.
    pub reason: String,
}

//! What a node and the server say to each other.

mod directory;
mod instance_report;
mod report_bounds;
mod report_delta;

use std::collections::BTreeMap;

use guest_protocol::GuestStats;
use model::instance::{InstanceSpec, InstanceState, PinnedImage};
use model::{
    Digest, EnvNetwork, Generation, InstanceId, NodeId, ProcessName, Term, Timestamp, VolumeId,
};
use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Unreadable;
use crate::enrollment::Hardware;
use crate::unreadable::Part;

pub use directory::{DirectoryChanges, DirectoryEntry, EnvDirectory};
pub use instance_report::{InstanceHolds, InstanceReport, MAX_LOG_TAIL};
pub use report_bounds::{
    Exceeded, MAX_FAILURE_BYTES, MAX_MACHINE_BYTES, MAX_MACHINE_CPUS, MAX_REPORTED_IMAGES,
    MAX_REPORTED_INSTANCES, MAX_REPORTED_VOLUMES, MAX_TEXT_BYTES,
};
pub use report_delta::{AgentSession, ReportAnswer, ReportDelta};

/// Everything one node is to run. Whole, never a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DesiredStateJson", into = "DesiredStateJson")]
pub struct DesiredState {
    /// The cluster's random id: state of another cluster is refused.
    pub cluster: String,
    /// The node this is for.
    pub node: NodeId,
    /// Grows with every change for this node. An older one of the same incarnation is refused; one of another is applied,
    /// whatever its counter.
    pub generation: Generation,
    /// The term of the leader that says it. One of an older term of the same incarnation is refused: its leader was taken for
    /// dead, and does not know what was decided since.
    pub term: Term,
    /// The instances to run.
    pub instances: Vec<InstanceSpec>,
    /// Instances to run whose specs this node cannot read, because the server is newer. They are not started; one that
    /// runs already goes on.
    pub unreadable: BTreeMap<InstanceId, Unreadable>,
    /// Instances that this node is to stop. An instance that is in neither list (an empty or restored store) is left
    /// running and reported.
    pub stop: Vec<InstanceId>,
    /// Volumes of this node that were deleted: their disks are to be removed. One that is not named
    /// is kept.
    pub remove_volumes: Vec<VolumeId>,
    /// Images whose disks the node never evicts from its cache: those of the last releases, so that a rollback needs no
    /// registry. Sorted.
    pub pinned_images: Vec<Digest>,
}

/// A desired state as it travels and as nodes keep it.
#[derive(Serialize, Deserialize)]
struct DesiredStateJson {
    cluster: String,
    node: NodeId,
    #[serde(flatten)]
    generation: Generation,
    #[serde(default, skip_serializing_if = "Term::is_sole")]
    term: Term,
    instances: Vec<Part<InstanceSpec>>,
    stop: Vec<InstanceId>,
    #[serde(default)]
    remove_volumes: Vec<VolumeId>,
    /// Agents before protocol 2 stored them as `keep_images`.
    #[serde(default, alias = "keep_images")]
    pinned_images: Vec<Digest>,
}

/// A spec cannot be read, and it is not known of which instance it is.
#[derive(Debug, thiserror::Error)]
#[error("an instance without a readable id: {0}")]
struct Nameless(String);

impl TryFrom<DesiredStateJson> for DesiredState {
    type Error = Nameless;

    fn try_from(json: DesiredStateJson) -> Result<Self, Nameless> {
        let (mut instances, mut unreadable) = (Vec::new(), BTreeMap::new());
        for part in json.instances {
            match part {
                Part::Read(spec) => instances.push(spec),
                Part::Unreadable(spec) => {
                    let id = spec.field("id");
                    let id = id.ok_or_else(|| Nameless(spec.reason().to_owned()))?;
                    unreadable.insert(id, spec);
                }
            }
        }
        Ok(Self {
            cluster: json.cluster,
            node: json.node,
            generation: json.generation,
            term: json.term,
            instances,
            unreadable,
            stop: json.stop,
            remove_volumes: json.remove_volumes,
            pinned_images: json.pinned_images,
        })
    }
}

impl From<DesiredState> for DesiredStateJson {
    fn from(desired: DesiredState) -> Self {
        let read = desired.instances.into_iter().map(Part::Read);
        let unreadable = desired.unreadable.into_values().map(Part::Unreadable);
        Self {
            cluster: desired.cluster,
            node: desired.node,
            generation: desired.generation,
            term: desired.term,
            instances: read.chain(unreadable).collect(),
            stop: desired.stop,
            remove_volumes: desired.remove_volumes,
            pinned_images: desired.pinned_images,
        }
    }
}

/// All that a node sees and does. It travels as a [`ReportDelta`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// The generation of the desired state that it has applied (the observed generation).
    pub generation: Generation,
    /// Which VMM driver it uses, and why.
    pub driver: DriverChoice,
    /// Whether its instances reach the internet; absent until it has looked.
    pub egress: Option<EgressState>,
    /// What it has.
    pub hardware: Hardware,
    /// Every instance it knows of, those to be stopped too.
    pub instances: Vec<InstanceReport>,
    /// Every volume whose disk it has.
    pub volumes: Vec<VolumeId>,
    /// The highest env network of any instance that it knows of: a server whose store was restored gives none of those to another env.
    pub highest_network: EnvNetwork,
    /// The root disks in its cache, those last used first; at most [`MAX_REPORTED_IMAGES`]. Nothing is decided by them.
    pub images: Vec<CachedImage>,
}

fn reported_instances<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<InstanceReport>, D::Error> {
    let parts = Vec::<Part<InstanceReport>>::deserialize(from)?;
    let report = |part| match part {
        Part::Read(report) => Ok(report),
        Part::Unreadable(report) => {
            let reason = report.reason();
            let id = report.field("id");
            let id = id.ok_or_else(|| D::Error::custom(Nameless(reason.to_owned())))?;
            Ok(InstanceReport {
                detail: format!("this server cannot read the node's report of it: {reason}"),
                ..InstanceReport::new(id, InstanceState::Unknown)
            })
        }
    };
    parts.into_iter().map(report).collect()
}

fn readable<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let parts = Vec::<Part<T>>::deserialize(from)?;
    Ok(parts
        .into_iter()
        .filter_map(|part| match part {
            Part::Read(item) => Some(item),
            Part::Unreadable(_) => None,
        })
        .collect())
}

/// A root disk in a node's cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CachedImage {
    /// The image from which it was built. Images of other repositories with the same digest share the disk.
    pub image: PinnedImage,
    /// Bytes that the disk takes on the node.
    pub size_bytes: u64,
    /// Time of its last lookup, or when it was built.
    pub last_used: Timestamp,
    /// Instances of the node that use it.
    pub instances: u32,
    /// Whether it is never evicted, because it is the image of one of the last releases
    /// ([`DesiredState::pinned_images`]).
    pub pinned: bool,
}

/// What to show to a registry. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PullSecret {
    /// A user's name and password, or an access token in its place.
    Basic {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken {
        /// The token.
        token: String,
    },
}

impl PullSecret {
    /// The user's name, where it has one.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Basic { user, .. } => Some(user),
            Self::IdentityToken { .. } => None,
        }
    }
}

impl std::fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PullSecret({})", self.user().unwrap_or("token"))
    }
}

/// The VMM driver a node uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DriverChoice {
    /// `firecracker`, `qemu-kvm` or `qemu-tcg`.
    pub name: String,
    /// Why this one.
    pub reason: String,
}

/// Whether the instances of a node reach the internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EgressState {
    /// They do.
    pub on: bool,
    /// By what, or why not and what to do.
    pub reason: String,
}

/// A stream that a node is asked to open at [`NODE_STREAM`](crate::paths::NODE_STREAM).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRequest {
    /// Its id: a random number, in hexadecimal.
    pub stream: String,
    /// What to send.
    pub wanted: StreamWanted,
}

/// What a node answers instead of opening a stream that it cannot open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRefused {
    /// Why, for people.
    pub reason: String,
    /// Whether it may do it later. A node of before this field leaves it out: what it refuses it does not know.
    #[serde(default, skip_serializing_if = "RefusalKind::is_unsupported")]
    pub kind: RefusalKind,
}

/// What becomes of a stream that a node refused, if it is asked for again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusalKind {
    /// The node has as many of its kind as it takes at a time.
    Busy,
    /// It is refused until the node is upgraded. A kind of a newer node is read as this.
    #[default]
    #[serde(other)]
    Unsupported,
}

impl RefusalKind {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_unsupported(&self) -> bool {
        *self == Self::Unsupported
    }
}

/// What a node is to send on a stream, and how it opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamWanted {
    /// By POST: lines of JSON ([`LogLine`]).
    Logs(LogsWanted),
    /// By GET with an upgrade: a command's streams.
    Exec(ExecWanted),
    /// By GET with an upgrade: one TCP connection to a port of an instance ([`crate::forward`]).
    Forward {
        /// Of which instance.
        instance: InstanceId,
        /// Which port, from 1.
        port: u16,
    },
    /// By POST: `Vec<InstanceStats>`.
    Stats {
        /// Of which instances.
        instances: Vec<InstanceId>,
    },
    /// By POST: [`SignalAnswer`].
    Signal {
        /// To the app of which instance.
        instance: InstanceId,
        /// Signal name.
        signal: String,
    },
    /// Something that this node does not know: the server is newer. It is answered by a [`StreamRefused`]. It is
    /// never sent.
    #[serde(skip_serializing)]
    Unsupported {
        /// What the server wants, in its word, and why it cannot be understood; for people.
        what: String,
    },
}

impl<'de> Deserialize<'de> for StreamWanted {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Known {
            Logs(LogsWanted),
            Exec(ExecWanted),
            Forward {
                instance: InstanceId,
                port: u16,
            },
            Stats {
                instances: Vec<InstanceId>,
            },
            Signal {
                instance: InstanceId,
                signal: String,
            },
        }
        let json = serde_json::Value::deserialize(from)?;
        let name = match &json {
            serde_json::Value::Object(fields) => fields.keys().next().cloned(),
            other => other.as_str().map(str::to_owned),
        };
        Ok(match serde_json::from_value(json) {
            Ok(Known::Logs(wanted)) => Self::Logs(wanted),
            Ok(Known::Exec(wanted)) => Self::Exec(wanted),
            Ok(Known::Forward { instance, port }) => Self::Forward { instance, port },
            Ok(Known::Stats { instances }) => Self::Stats { instances },
            Ok(Known::Signal { instance, signal }) => Self::Signal { instance, signal },
            Err(error) => Self::Unsupported {
                what: format!("{}: {error}", name.unwrap_or_default()),
            },
        })
    }
}

/// Which log lines are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsWanted {
    /// Of which instances.
    pub instances: Vec<InstanceId>,
    /// At most this many lines of the past, for each instance.
    pub tail: u32,
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
    /// Only lines before this time. Nodes of before protocol version 4 do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Only lines with this text in them. Nodes of before protocol version 4 do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether to go on with new lines until the reader leaves.
    pub follow: bool,
    /// Of the past, only what the instance said before it was last started again.
    pub previous: bool,
}

/// Longest line of a stream of [`LogLine`]s, in bytes with its line feed: a log piece in which
/// every byte is escaped, and the rest of the line.
pub const MAX_STREAM_LINE_BYTES: usize = 6 * guest_protocol::MAX_LOG_PIECE_BYTES + 1024;

/// One line of an instance's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// The instance.
    pub instance: InstanceId,
    /// Its process type.
    pub process: ProcessName,
    /// When the guest read it.
    pub at: Timestamp,
    /// `stdout`, `stderr` or `platform`.
    pub stream: guest_protocol::Stream,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// True when the line goes on in the next one of this stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A command that a node is asked to run in one of its guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecWanted {
    /// In which instance.
    pub instance: InstanceId,
    /// Program and arguments. Empty: the command that the instance was made for (`platform run`).
    pub command: Vec<String>,
    /// Rows and columns of a terminal; absent: pipes.
    pub terminal: Option<(u16, u16)>,
    /// Type of the user's terminal; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_type: Option<String>,
}

/// What a node answers when asked to pass a signal on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAnswer {
    /// Why the guest did not get it; absent when it did.
    pub refused: Option<String>,
}

/// What a node answers when asked for stats: one for each instance asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStats {
    /// The instance.
    pub instance: InstanceId,
    /// What its guest says; absent when it did not answer.
    pub stats: Option<GuestStats>,
    /// Why there are none.
    pub reason: Option<String>,
}

//! Names and numbers. Each is a newtype that cannot hold a wrong value: parse at the border.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name of an app, env or process type, in bytes: one DNS label (RFC 1035, 2.3.4).
pub const MAX_NAME_BYTES: usize = 63;

/// Why a text is not a valid name, digest or id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Names are DNS labels because `<process>.<env>.<app>.internal` must resolve.
    #[error(
        "`{text}` is not a valid {what}: use 1 to {MAX_NAME_BYTES} lowercase letters, digits and \
         hyphens, starting with a letter and not ending with a hyphen"
    )]
    NotALabel {
        /// What the text was meant to name.
        what: &'static str,
        /// The text as given.
        text: String,
    },
    /// What nodes are selected by: the form that Kubernetes gives the labels of nodes.
    #[error(
        "`{text}` is not a valid {what}: use 1 to {MAX_NAME_BYTES} letters, digits and `.`, `_`, `-`, `/`, starting and ending with a \
         letter or digit"
    )]
    NotANodeLabel {
        /// What the text was meant to be.
        what: &'static str,
        /// The text as given.
        text: String,
    },
    /// Users are people, called as at their mail, and programs.
    #[error(
        "`{0}` is not a valid name of a user: use 1 to {MAX_NAME_BYTES} lowercase letters, digits and `.`, `_`, `-`, `+`, `@`, starting with a \
         letter or digit"
    )]
    NotAUserName(String),
    /// Only sha256 is accepted, in lowercase hexadecimal (OCI image spec, descriptor).
    #[error(
        "`{0}` is not a digest: it must be `sha256:` followed by 64 lowercase hexadecimal digits"
    )]
    NotADigest(String),
    /// Instance ids are eight lowercase hexadecimal digits.
    #[error("`{0}` is not an instance id: it must be 8 lowercase hexadecimal digits")]
    NotAnInstanceId(String),
    /// Volume ids have the same form.
    #[error("`{0}` is not a volume id: it must be 8 lowercase hexadecimal digits")]
    NotAVolumeId(String),
    /// Node and edge ids are `n<number>` and `e<number>`.
    #[error("`{0}` is not an id of the form `{1}<number>`")]
    NotANumberedId(String, char),
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= MAX_NAME_BYTES
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Whether a text can be the key or the value of a label of a node.
pub fn is_node_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(a, z)| a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
        && bytes.len() <= MAX_NAME_BYTES
        && (bytes.iter()).all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(b))
}

fn node_label(what: &'static str, text: &str) -> Result<(), NameError> {
    if is_node_label(text) {
        Ok(())
    } else {
        Err(NameError::NotANodeLabel {
            what,
            text: text.to_owned(),
        })
    }
}

/// What [`is_label`] takes, as the API's description says it to programs.
#[cfg(feature = "schema")]
const LABEL: &str = "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$";
/// What [`is_node_label`] takes.
#[cfg(feature = "schema")]
const NODE_LABEL: &str = "^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$";

/// A text that is checked once. A copy shares the text: names are copied far more often than they are made. The pattern says to programs what the
/// check takes.
macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $pattern:tt, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = $pattern)))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text of it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), NameError> = $parse;
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

fn label(what: &'static str, text: &str) -> Result<(), NameError> {
    if is_label(text) {
        Ok(())
    } else {
        Err(NameError::NotALabel {
            what,
            text: text.to_owned(),
        })
    }
}

text_newtype!(
    /// The name of an app: one DNS label.
    AppName,
    LABEL,
    |text| label("app name", text)
);
text_newtype!(
    /// The name of an env of an app (`prod`): one DNS label.
    EnvName,
    LABEL,
    |text| label("env name", text)
);
text_newtype!(
    /// The name of a process type (`web`): one DNS label.
    ProcessName,
    LABEL,
    |text| label("process name", text)
);
text_newtype!(
    /// The name of a secret bundle of an env (`database`): one DNS label.
    BundleName,
    LABEL,
    |text| label("name of a secret bundle", text)
);
text_newtype!(
    /// The name of an org, which owns apps: of the form of an app's name.
    OrgName,
    LABEL,
    |text| label("name of an org", text)
);
text_newtype!(
    /// The name of a user, a person or a program (`ann@example.com`, `ci`): lowercase letters, digits and `._-+@`, at most [`MAX_NAME_BYTES`].
    UserName,
    "^[a-z0-9][a-z0-9._+@-]{0,62}$",
    |text| {
        let bytes = text.as_bytes();
        let is_first = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if bytes.first().is_some_and(is_first)
            && bytes.len() <= MAX_NAME_BYTES
            && bytes.iter().all(|b| is_first(b) || b"._-+@".contains(b))
        {
            Ok(())
        } else {
            Err(NameError::NotAUserName(text.to_owned()))
        }
    }
);
text_newtype!(
    /// The key of a label of a node (`disk`): letters, digits and `._-/`.
    LabelKey,
    NODE_LABEL,
    |text| node_label("key of a label", text)
);
text_newtype!(
    /// The value of a label of a node (`nvme`): of the same form as its key.
    LabelValue,
    NODE_LABEL,
    |text| node_label("value of a label", text)
);
text_newtype!(
    /// A content digest, `sha256:<64 lowercase hexadecimal digits>` (OCI image spec).
    Digest,
    "^sha256:[0-9a-f]{64}$",
    |text| {
        let ok = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if ok { Ok(()) } else { Err(NameError::NotADigest(text.to_owned())) }
    }
);

impl Default for OrgName {
    /// `default`: the org that is always there. It owns the apps for which no other is named.
    fn default() -> Self {
        Self("default".into())
    }
}

impl UserName {
    /// `admin`: the user that a server lets in on its own machine.
    pub fn admin() -> Self {
        Self("admin".into())
    }
}

impl Digest {
    /// The digest of these 32 bytes of SHA-256.
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }

    /// The 64 hexadecimal digits, without `sha256:`. Safe as a file name.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first 12 hexadecimal digits, for people to read.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

/// One env of one app: the unit of config, secrets and routing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EnvKey {
    /// The app.
    pub app: AppName,
    /// The env within the app.
    pub env: EnvName,
}

impl EnvKey {
    /// What is before every env of an app, and after those of the app before: no env has this key.
    pub fn before_all_of(app: &AppName) -> Self {
        Self {
            app: app.clone(),
            env: EnvName("".into()),
        }
    }
}

impl fmt::Display for EnvKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.env)
    }
}

/// Writes an id, padded where the format asks for that.
fn write_padded(f: &mut fmt::Formatter<'_>, id: fmt::Arguments<'_>) -> fmt::Result {
    if f.width().is_none() && f.precision().is_none() {
        return f.write_fmt(id);
    }
    f.pad(&id.to_string())
}

macro_rules! hexadecimal_id {
    ($(#[$doc:meta])* $name:ident, $wrong:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(
            feature = "schema",
            derive(schemars::JsonSchema),
            schemars(extend("pattern" = "^[0-9a-f]{8}$"))
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_padded(f, format_args!("{:08x}", self.0))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let shape =
                    text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                match u32::from_str_radix(text, 16) {
                    Ok(number) if shape => Ok(Self(number)),
                    _ => Err(NameError::$wrong(text.to_owned())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

hexadecimal_id! {
    /// One instance, that is one microVM of one process type. It is also the last 32 bits of the
    /// instance's address (ADR 0004), so it is unique in the cluster; shown as 8 hexadecimal digits.
    InstanceId, NotAnInstanceId
}

hexadecimal_id! {
    /// One volume, that is one disk that outlives instances. Unique in the cluster and never given
    /// twice while the volume exists; shown as 8 hexadecimal digits.
    VolumeId, NotAVolumeId
}

macro_rules! numbered_id {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(
            feature = "schema",
            derive(schemars::JsonSchema),
            schemars(extend("pattern" = concat!("^", $letter, "[0-9]{1,5}$")))
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub u16);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_padded(f, format_args!("{}{}", $letter, self.0))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                text.strip_prefix($letter)
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                    .and_then(|digits| digits.parse().ok())
                    .map(Self)
                    .ok_or_else(|| NameError::NotANumberedId(text.to_owned(), $letter))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

numbered_id!(
    /// One node (`n1`). The number is the node's 16 bits of every address on it (ADR 0004).
    /// Node 0 does not exist.
    NodeId,
    'n'
);
numbered_id!(
    /// One edge proxy (`e1`).
    EdgeId,
    'e'
);

/// A release of an env: 1, 2, 3 in the order of deploys; shown as `v3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ReleaseNumber(pub u32);

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_padded(f, format_args!("v{}", self.0))
    }
}

/// An env's 32 bits in the addresses of its instances (ADR 0004). 0 is the platform's own.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct EnvNetwork(pub u32);

/// A life of the store: random, drawn when the cluster is created and again whenever a backup is restored. What was counted
/// in another life says nothing about this one. 16 hexadecimal digits; 0 is nobody's, and stands for what a member of
/// before incarnations has.
#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// That of a member which does not know incarnations.
    pub const NONE: Self = Self(0);

    /// Whether it is nobody's.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Incarnation {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for Incarnation {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|error| {
            serde::de::Error::custom(format!(
                "{text:?} is no incarnation (16 hexadecimal digits): {error}"
            ))
        })
    }
}

/// A version of a desired state or of the route table: a counter within one incarnation of the store. Versions of two
/// incarnations are in no order.
///
/// In JSON it is two fields of the message that has it: `generation`, the counter, and `incarnation`, which a member of
/// before incarnations leaves out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The incarnation in which it was counted.
    #[serde(default, skip_serializing_if = "Incarnation::is_none")]
    pub incarnation: Incarnation,
    /// Grows with every change; 0 before the first.
    #[serde(rename = "generation")]
    pub counter: u64,
}

impl Generation {
    /// Whether this is older than the other: of the same incarnation, and counted before.
    pub fn is_before(self, other: Self) -> bool {
        self.incarnation == other.incarnation && self.counter < other.counter
    }

    /// Whether whoever has the other is to have this instead: it is of another incarnation, or newer.
    pub fn supersedes(self, other: Self) -> bool {
        self.incarnation != other.incarnation || self.counter > other.counter
    }

    /// The same, of this incarnation where it has none: what a member of before incarnations means.
    #[must_use]
    pub fn within(self, incarnation: Incarnation) -> Self {
        if self.incarnation == Incarnation::NONE {
            Self {
                incarnation,
                ..self
            }
        } else {
            self
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.counter, self.incarnation)
    }
}

/// The term of a leader: of several servers on one store, the one that holds its lease. It grows with every leader, and nodes refuse
/// what an older one says. 0: of a store that has one server.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// Whether it is that of a store which has one server.
    pub fn is_sole(&self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that a server draws each time it begins to lead. Counters say which of two states is the newer one only while nobody puts the store back:
/// what was counted in another session may never have been, whatever its number. 0: not said, by a server or an edge of before sessions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaderSession(pub u64);

impl LeaderSession {
    /// In the place of one where there is none.
    pub const NONE: Self = Self(0);

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl fmt::Display for LeaderSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment: milliseconds since 1970-01-01T00:00:00Z, by the clock of whoever states it.
/// For people and for order within one machine; leases use monotonic time instead.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds from `earlier` to `self`; 0 when the clock went backwards.
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

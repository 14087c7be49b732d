//! Parts of a message that its receiver cannot read, because its sender is newer.
//!
//! One such part never costs the rest of the message. It is kept as it came, so that a newer program that reads it from a
//! disk later finds it whole.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A part that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Unreadable {
    json: Value,
    /// What is wrong with it, for people.
    #[serde(skip)]
    reason: String,
}

impl Unreadable {
    /// What is wrong with it, for people.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// A field of it, where it has that field and its value is a `T`.
    pub(crate) fn field<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_value(self.json.get(name)?.clone()).ok()
    }
}

/// A part of a message, read as far as possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Part<T> {
    Read(T),
    Unreadable(Unreadable),
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(from)?;
        Ok(match T::deserialize(&json) {
            Ok(read) => Self::Read(read),
            Err(error) => Self::Unreadable(Unreadable {
                json,
                reason: error.to_string(),
            }),
        })
    }
}

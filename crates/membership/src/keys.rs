//! The keys that a machine made and is not known by yet: kept on its disk before anybody hears of them.

// ring: the reasons for which a machine cannot join are named where it joins, and its keys are one reason.

use std::io;
use std::path::{Path, PathBuf};

use identity::{KeyError, MemberKey, WireguardKey};
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};

use crate::JoinError;

/// The keys of a machine that joins: from before it asks until it has its certificate.
pub(crate) const JOINING: &str = "keys.json";
/// The keys that are to replace those of a member: from before it asks until it is known by them.
pub(crate) const NEXT: &str = "next-keys.json";

/// Private keys. Secret: the file has mode 0600.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Keys {
    /// PKCS#8 PEM.
    pub(crate) key_pem: String,
    /// Base64. Absent: an edge of a version before made the file.
    #[serde(default)]
    pub(crate) wireguard_private_key: Option<String>,
}

impl StateFormat for Keys {
    const VERSION: u32 = 1;
}

impl Keys {
    fn generate() -> Result<Self, KeyError> {
        Ok(Self {
            key_pem: MemberKey::generate()?.key_pem(),
            wireguard_private_key: Some(WireguardKey::generate()?.private_base64().to_owned()),
        })
    }

    /// The keys in this file of a data folder; made, and durable, where there are none. Blocks.
    pub(crate) fn load_or_make(data_dir: &Path, name: &str) -> Result<Self, JoinError> {
        let file = file(data_dir, name);
        let keys = match state_file::read::<Self>(&file)? {
            Some(keys) if keys.wireguard_private_key.is_some() => return Ok(keys),
            // The server may know the other key already: it stays.
            Some(keys) => Self {
                wireguard_private_key: Some(WireguardKey::generate()?.private_base64().to_owned()),
                ..keys
            },
            None => Self::generate()?,
        };
        state_file::write(&file, &keys)?;
        Ok(keys)
    }

    /// The key pair.
    pub(crate) fn member_key(&self) -> Result<MemberKey, KeyError> {
        MemberKey::load(&self.key_pem)
    }

    /// The WireGuard public key, base64.
    pub(crate) fn wireguard_public_key(&self) -> Result<Option<String>, KeyError> {
        let private = self.wireguard_private_key.as_deref();
        let key = private.map(WireguardKey::load).transpose()?;
        Ok(key.map(|key| key.public_base64().to_owned()))
    }
}

/// Removes a file of keys that are known. No error when there is none. Blocks.
pub(crate) fn remove(data_dir: &Path, name: &str) -> Result<(), StateFileError> {
    let path = file(data_dir, name);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateFileError::Io {
            operation: "remove",
            path,
            source,
        }),
        _ => Ok(()),
    }
}

pub(crate) fn file(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_each_version_are_read_with_and_without_added_fields() {
        state_file::fixtures::check::<Keys>(&[include_str!("fixtures/keys/version-1.json")]);
    }
}

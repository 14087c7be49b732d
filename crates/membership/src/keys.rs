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
            Some(keys) if keys.wireguard_private_key.is_some() => return keys.checked(file),
            // The server may know the other key already: it stays.
            Some(keys) => Self {
                wireguard_private_key: Some(WireguardKey::generate()?.private_base64().to_owned()),
                ..keys
            },
            None => Self::generate()?,
        };
        let keys = keys.checked(file.clone())?;
        state_file::write(&file, &keys)?;
        Ok(keys)
    }

    /// These, where they are keys.
    fn checked(self, path: PathBuf) -> Result<Self, JoinError> {
        let checked = self.member_key().and_then(|_| self.wireguard_public_key());
        match checked {
            Ok(_) => Ok(self),
            Err(source) => Err(JoinError::KeysDamaged { path, source }),
        }
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
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    impl JoinError {
        /// Whether the error says which file it is about.
        fn names(&self, path: &Path) -> bool {
            display::chain(self).contains(&path.display().to_string())
        }
    }

    #[test]
    fn keys_of_each_version_are_read_with_and_without_added_fields() {
        state_file::fixtures::check::<Keys>(&[include_str!("fixtures/keys/version-1.json")]);
    }

    #[test]
    fn keys_that_are_none_are_kept_and_their_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), JOINING);
        let good = Keys::load_or_make(dir.path(), JOINING).unwrap();
        let with = |key_pem: &str, wireguard: &str| {
            let keys = serde_json::json!({
                "version": 1, "key_pem": key_pem, "wireguard_private_key": wireguard
            });
            keys.to_string()
        };
        let wireguard = good.wireguard_private_key.as_deref().unwrap();
        for garbage in [
            "\0\0\0\0".to_owned(),
            String::new(),
            with("garbage", wireguard),
            with(&good.key_pem, "garbage"),
        ] {
            std::fs::write(&path, &garbage).unwrap();
            let error = Keys::load_or_make(dir.path(), JOINING).err().unwrap();
            assert!(error.names(&path), "{garbage}: {error:?}");
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                garbage,
                "it is kept"
            );
        }
    }
}

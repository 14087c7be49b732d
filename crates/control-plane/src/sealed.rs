//! The JSON inside of an envelope: `{"version": 1, "content": ..}`.
//!
//! What servers sealed before they named a version is the content alone. It is told apart by `version`, which is never a
//! number there. Content of a newer version is kept, and named as such.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version that is written.
const VERSION: u32 = 1;

/// Why the content of an envelope cannot be used. The envelope is kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    /// It is no JSON of the expected form.
    #[error("its content does not have the expected form")]
    Invalid(#[from] serde_json::Error),
    /// A newer server sealed it.
    #[error(
        "its content has version {found} and this server reads up to {VERSION}; run the newer server again"
    )]
    Newer {
        /// The version.
        found: u32,
    },
}

#[derive(Serialize)]
struct Sealed<'a, T> {
    version: u32,
    content: &'a T,
}

#[derive(Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    content: Value,
}

/// The bytes to seal.
pub(crate) fn encode<T: Serialize>(content: &T) -> Result<Vec<u8>, ContentError> {
    let version = VERSION;
    Ok(serde_json::to_vec(&Sealed { version, content })?)
}

/// The content of bytes that were sealed.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ContentError> {
    let json: Value = serde_json::from_slice(bytes)?;
    if !json.get("version").is_some_and(Value::is_u64) {
        return Ok(serde_json::from_value(json)?);
    }
    let Head { version, content } = serde_json::from_value(json)?;
    if version > VERSION {
        return Err(ContentError::Newer { found: version });
    }
    Ok(serde_json::from_value(content)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use api::node::PullSecret;

    use super::*;

    type Files = BTreeMap<String, Vec<u8>>;

    const LOGIN_BEFORE: &str = include_str!("fixtures/sealed/login-without-version.json");
    const LOGIN: &str = include_str!("fixtures/sealed/login-version-1.json");
    const BUNDLE_BEFORE: &str = include_str!("fixtures/sealed/bundle-without-version.json");
    const BUNDLE: &str = include_str!("fixtures/sealed/bundle-version-1.json");

    #[test]
    fn sealed_content_of_each_version_is_read() {
        for login in [LOGIN_BEFORE, LOGIN] {
            let secret: PullSecret = decode(login.as_bytes()).unwrap();
            assert_eq!(secret.user(), Some("u"));
        }
        for bundle in [BUNDLE_BEFORE, BUNDLE] {
            let files: Files = decode(bundle.as_bytes()).unwrap();
            // A user's file may have any name.
            let names: Vec<_> = files.keys().map(String::as_str).collect();
            assert_eq!(names, ["content", "version"]);
            let written: Value = serde_json::from_slice(&encode(&files).unwrap()).unwrap();
            assert_eq!(written, serde_json::from_str::<Value>(BUNDLE).unwrap());
        }
    }

    #[test]
    fn sealed_content_of_a_newer_version_is_named_as_such() {
        let newer = br#"{"version": 99, "sealed_since": 1}"#;
        let error = decode::<Files>(newer).unwrap_err();
        assert!(error.to_string().contains("version 99"), "{error}");
    }
}

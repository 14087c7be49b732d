//! Values to and from columns.

use model::{EnvKey, NameError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreError;

/// SQLite's integers are signed.
pub(crate) fn to_i64(what: &'static str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|e| StoreError::Unstorable {
        what,
        cause: e.to_string(),
    })
}

pub(crate) fn number<T: TryFrom<i64>>(what: &str, value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| StoreError::corrupt(what, format!("{value} is out of range")))
}

pub(crate) fn to_json(what: &'static str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Unstorable {
        what,
        cause: e.to_string(),
    })
}

pub(crate) fn from_json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::corrupt(what, e))
}

pub(crate) fn env_key(app: &str, env: &str) -> Result<EnvKey, StoreError> {
    let bad = |e: NameError| StoreError::corrupt("the name of an env", e);
    Ok(EnvKey {
        app: app.parse().map_err(bad)?,
        env: env.parse().map_err(bad)?,
    })
}

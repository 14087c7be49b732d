//! Values to and from columns.

use model::{EnvKey, NameError};

use crate::StoreError;

/// SQLite's integers are signed.
pub(crate) fn to_i64(what: &'static str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|e| StoreError::Unstorable {
        what,
        cause: e.to_string(),
    })
}

pub(crate) fn number<T: TryFrom<i64>>(what: &str, value: i64) -> Result<T, StoreError> {
    in_range(what, value).map_err(|cause| StoreError::Unreadable { cause })
}

/// [`number`] with a cause that can be kept with a record.
pub(crate) fn in_range<T: TryFrom<i64>>(what: &str, value: i64) -> Result<T, String> {
    T::try_from(value).map_err(|_| format!("{what} is out of range: {value}"))
}

pub(crate) fn env_key(app: &str, env: &str) -> Result<EnvKey, String> {
    let bad = |e: NameError| format!("{app}/{env} is not the name of an env: {e}");
    Ok(EnvKey {
        app: app.parse().map_err(bad)?,
        env: env.parse().map_err(bad)?,
    })
}

//! Calls that make a release or a run, made again or too late: the same call makes one however often it is made, and a caller who has not seen
//! the newest release changes nothing.

use std::fmt::Write as _;

use ::api::{IDEMPOTENCY_KEY, MAX_IDEMPOTENCY_KEY_BYTES};
use axum::extract::FromRequestParts;
use http::request::Parts;
use model::{EnvKey, ReleaseNumber, UserName};
use scheduler::cluster_state::{ClusterState, Release};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::extract::Params;
use crate::failure::ApiFailure;
use crate::state::App;

/// What a call that makes a release depends on.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    /// What the caller named the call.
    pub(crate) key: Option<String>,
    /// What tells the call from another one with its key.
    call: Option<String>,
    /// The newest release that the caller knows; 0: none.
    newest: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct ConditionParams {
    newest_release: Option<u32>,
}

impl FromRequestParts<App> for Conditions {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        let Params(ConditionParams { newest_release }) =
            Params::from_request_parts(parts, app).await?;
        let key = parts.headers.get(IDEMPOTENCY_KEY);
        let key = key.map(|value| read_key(value.as_bytes())).transpose()?;
        Ok(Self {
            key,
            call: None,
            newest: newest_release,
        })
    }
}

fn read_key(value: &[u8]) -> Result<String, ApiFailure> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    let is_key = (1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_key {
        return Err(ApiFailure::bad_request(format!(
            "the header Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_BYTES} visible ASCII characters"
        ))
        .hint("a random UUID is one"));
    }
    Ok(text.to_owned())
}

impl Conditions {
    /// The conditions of this kind of call with this body.
    pub(crate) fn of_call(self, kind: &str, body: &impl Serialize) -> Result<Self, ApiFailure> {
        let body = serde_json::to_string(body).map_err(|error| ApiFailure::internal(&error))?;
        let digest = Sha256::digest(format!("{kind} {body}"));
        let mut call = String::with_capacity(2 * digest.len());
        for byte in digest {
            let _ = write!(call, "{byte:02x}");
        }
        Ok(Self {
            call: Some(call),
            ..self
        })
    }

    /// What is recorded of the call beside its key.
    pub(crate) fn call(&self) -> Option<String> {
        self.call.clone().filter(|_| self.key.is_some())
    }

    /// The release that the same call has made before. `is_same`: whether it is what this call would make, as far as a release of a server of before says
    /// it, which did not record the call.
    pub(crate) fn made_before(
        &self,
        cluster: &ClusterState,
        env: &EnvKey,
        user: &UserName,
        is_same: impl Fn(&Release) -> bool,
    ) -> Result<Option<(ReleaseNumber, Release)>, ApiFailure> {
        let Some(key) = &self.key else {
            return Ok(None);
        };
        let releases = cluster.envs.get(env).map(|env| env.releases.iter());
        // Those that are kept: the newest 50 or so.
        let made = releases.into_iter().flatten().find(|(_, release)| {
            release.idempotency_key.as_ref() == Some(key) && release.by.as_ref() == Some(user)
        });
        match made {
            None => Ok(None),
            Some((number, release))
                if match &release.idempotency_call {
                    Some(call) => self.call.as_ref() == Some(call),
                    None => is_same(release),
                } =>
            {
                Ok(Some((*number, release.clone())))
            }
            Some((number, _)) => Err(key_reused(&format!("release {number} of {env}"))),
        }
    }

    /// Refuses a caller who does not know the newest release.
    pub(crate) fn check_newest(
        &self,
        cluster: &ClusterState,
        env: &EnvKey,
    ) -> Result<(), ApiFailure> {
        let Some(known) = self.newest else {
            return Ok(());
        };
        let env_now = cluster.envs.get(env);
        let newest = env_now.and_then(|env| env.releases.keys().next_back());
        let newest = newest.map_or(0, |number| number.0);
        if newest == known {
            return Ok(());
        }
        let what = match newest {
            0 => format!("{env} has no release"),
            newest => format!("the newest release of {env} is {}", ReleaseNumber(newest)),
        };
        Err(ApiFailure::conflict(
            "release_changed",
            format!(
                "{what}, and the call was made for {}",
                match known {
                    0 => "an env without one".to_owned(),
                    known => ReleaseNumber(known).to_string(),
                }
            ),
        )
        .hint("look at what was deployed meanwhile (`platform releases`), and decide anew"))
    }
}

/// 422: what another call has made has this key.
pub(crate) fn key_reused(made: &str) -> ApiFailure {
    let text = format!("{made} was made by another call with this Idempotency-Key");
    ApiFailure::refused("idempotency_key_reused", text).hint("give each call a key of its own")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_text_with_or_without_its_quotes() {
        assert_eq!(read_key(b"abc-1").ok().as_deref(), Some("abc-1"));
        assert_eq!(read_key(b"\"abc-1\"").ok().as_deref(), Some("abc-1"));
        let long = [b'a'; MAX_IDEMPOTENCY_KEY_BYTES + 1];
        for wrong in [&b""[..], b"\"\"", b"a b", b"\xff", &long] {
            assert!(read_key(wrong).is_err(), "{wrong:?}");
        }
    }
}

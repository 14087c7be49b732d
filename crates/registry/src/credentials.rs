//! User names and passwords for registries.
//!
//! The CLI reads the `config.json` of `docker login` (or `podman login`) and asks the credential helpers that it
//! names. The server asks its store and a node asks its server, each when a registry requires a
//! credential ([`CredentialSource`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::limits::MAX_MESSAGE_BYTES;

/// Longest wait for a credential helper.
const HELPER_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer of a credential helper, in bytes.
const MAX_HELPER_ANSWER_BYTES: u64 = 64 << 10;
/// Largest `config.json`, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The key of docker's own registry in `config.json`.
const DOCKER_IO_KEY: &str = "https://index.docker.io/v1/";

/// A credential for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user's name and password, or an access token in its place.
    Basic {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
    /// An `OAuth2` refresh token, which only a token service accepts.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => write!(f, "Basic({user})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// Where credentials are looked up.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// Nowhere.
    #[default]
    Anonymous,
    /// In this table, by registry (`ghcr.io`, `localhost:5000`).
    Fixed(BTreeMap<String, Credential>),
    /// In docker's configuration.
    Docker(DockerConfig),
    /// From this source.
    Source(Arc<dyn CredentialSource>),
}

/// A source of credentials, asked when a registry requires one.
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The credential for this registry, if there is one.
    ///
    /// # Errors
    /// The lookup fails; [`CredentialsError::Source`] where another attempt may succeed.
    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>>;
}

impl Credentials {
    /// The credential for this registry, if there is one.
    pub(crate) async fn find(
        &self,
        registry: &str,
    ) -> Result<Option<Credential>, CredentialsError> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Fixed(known) => Ok(known.get(registry).cloned()),
            Self::Docker(config) => config.find(registry).await,
            Self::Source(source) => source.find(registry).await,
        }
    }
}

/// Credentials could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file exists and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file does not have docker's format.
    #[error("{} is not a docker config: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The defect; never the content.
        reason: String,
    },
    /// The [`CredentialSource`] failed.
    #[error("the credentials could not be looked up")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The helper program failed.
    #[error("credential helper `docker-credential-{helper}` failed: {reason}")]
    Helper {
        /// Its name in the config.
        helper: String,
        /// Its message, or how it failed.
        reason: String,
    },
}

/// The credentials in a docker `config.json`.
#[derive(Debug, Clone, Default)]
pub struct DockerConfig {
    path: PathBuf,
    auths: BTreeMap<String, Credential>,
    store: Option<String>,
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    #[serde(default)]
    auths: BTreeMap<String, RawAuth>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// The user's own configuration: the first that exists of `$DOCKER_CONFIG/config.json`, `$REGISTRY_AUTH_FILE`,
    /// `~/.docker/config.json` and `$XDG_RUNTIME_DIR/containers/auth.json`.
    pub fn find_user() -> Result<Option<Self>, CredentialsError> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let candidates = [
            variable("DOCKER_CONFIG").map(|dir| PathBuf::from(dir).join("config.json")),
            variable("REGISTRY_AUTH_FILE").map(PathBuf::from),
            variable("HOME").map(|home| PathBuf::from(home).join(".docker/config.json")),
            variable("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("containers/auth.json")),
        ];
        match candidates.into_iter().flatten().find(|path| path.exists()) {
            Some(path) => Self::read(&path).map(Some),
            None => Ok(None),
        }
    }

    /// Reads one file.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        use io::Read as _;
        let mut text = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut text))
            .map_err(|source| CredentialsError::Read {
                path: path.to_owned(),
                source,
            })?;
        let malformed = |reason: String| CredentialsError::Malformed {
            path: path.to_owned(),
            reason,
        };
        // serde_json's message may quote a value, which is a secret; its position is enough.
        let raw: RawConfig = serde_json::from_slice(&text)
            .map_err(|e| malformed(format!("line {}, column {}", e.line(), e.column())))?;
        let mut auths = BTreeMap::new();
        for (key, auth) in raw.auths {
            let Some(registry) = registry_of_key(&key) else {
                continue;
            };
            let credential = read_auth(auth)
                .map_err(|reason| malformed(format!("the entry for {registry}: {reason}")))?;
            if let Some(credential) = credential {
                auths.insert(registry, credential);
            }
        }
        let helpers = raw
            .cred_helpers
            .into_iter()
            .filter_map(|(key, helper)| Some((registry_of_key(&key)?, helper)))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            auths,
            store: raw.creds_store.filter(|store| !store.is_empty()),
            helpers,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The credential for this registry: as in docker, from the registry's helper, else the store, else the file.
    pub async fn find(&self, registry: &str) -> Result<Option<Credential>, CredentialsError> {
        if let Some(helper) = self.helpers.get(registry).or(self.store.as_ref()) {
            let key = if registry == "docker.io" {
                DOCKER_IO_KEY
            } else {
                registry
            };
            if let Some(credential) = ask_helper(helper, key).await? {
                return Ok(Some(credential));
            }
        }
        Ok(self.auths.get(registry).cloned())
    }
}

/// `https://index.docker.io/v1/` -> `docker.io`, `ghcr.io` -> `ghcr.io`. Entries of podman for a part
/// of a registry (`quay.io/team`) are left out: they must not be sent to the whole registry.
fn registry_of_key(key: &str) -> Option<String> {
    let rest = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let host = match rest {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key
            .trim_end_matches('/')
            .trim_end_matches("/v1")
            .trim_end_matches("/v2"),
    };
    match host {
        "" => None,
        "index.docker.io" | "registry-1.docker.io" => Some("docker.io".to_owned()),
        host if host.contains('/') => None,
        host => Some(host.to_owned()),
    }
}

fn read_auth(auth: RawAuth) -> Result<Option<Credential>, &'static str> {
    if let Some(token) = auth.identity_token.filter(|token| !token.is_empty()) {
        return Ok(Some(Credential::IdentityToken(token)));
    }
    if let Some(encoded) = auth.auth.filter(|encoded| !encoded.is_empty()) {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(encoded.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or("`auth` is not base64")?;
        let (user, password) = decoded
            .split_once(':')
            .ok_or("`auth` is not USER:PASSWORD")?;
        return Ok(Some(Credential::Basic {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }));
    }
    Ok(match (auth.username, auth.password) {
        (Some(user), Some(password)) => Some(Credential::Basic { user, password }),
        _ => None,
    })
}

/// Runs `docker-credential-<helper> get`, as docker does.
async fn ask_helper(helper: &str, key: &str) -> Result<Option<Credential>, CredentialsError> {
    let failed = |reason: String| CredentialsError::Helper {
        helper: helper.to_owned(),
        reason,
    };
    let name_ok = !helper.is_empty()
        && helper
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !name_ok {
        return Err(failed("its name is not the name of a program".to_owned()));
    }
    ask_program(&format!("docker-credential-{helper}"), key)
        .await
        .map_err(failed)
}

/// The answer of a helper program to `get`; or why it cannot be used.
async fn ask_program(program: &str, key: &str) -> Result<Option<Credential>, String> {
    let ask = async {
        let mut child = tokio::process::Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input may still answer.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(MAX_HELPER_ANSWER_BYTES)
                .read_to_end(&mut answer)
                .await?;
        }
        Ok::<_, io::Error>((child.wait().await?, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, ask)
        .await
        .map_err(|_| format!("no answer in {} s", HELPER_TIMEOUT.as_secs()))?
        .map_err(|error| error.to_string())?;
    if !status.success() {
        let text = display::one_line(&String::from_utf8_lossy(&answer), MAX_MESSAGE_BYTES);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(text);
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&answer).map_err(|_| "its answer is not JSON".to_owned())?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::IdentityToken(answer.secret),
        _ => Credential::Basic {
            user: answer.username,
            password: answer.secret,
        },
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[tokio::test]
    async fn credentials_of_docker_login_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "YW5uOnNlY3JldDpjb2xvbg=="},
            "localhost:5000": {"username": "bob", "password": "pw"},
            "quay.io/team": {"auth": "YW5uOnB3"},
            "ghcr.io": {"identitytoken": "refresh"},
            "empty.example": {}},
            "HttpHeaders": {"x": "y"}}"#;
        std::fs::write(&path, text).unwrap();
        let config = DockerConfig::read(&path).unwrap();
        let basic = |user: &str, password: &str| Credential::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        let find = async |registry| config.find(registry).await.unwrap();
        assert_eq!(find("docker.io").await, Some(basic("ann", "secret:colon")));
        assert_eq!(find("localhost:5000").await, Some(basic("bob", "pw")));
        assert_eq!(find("quay.io").await, None);
        assert_eq!(
            find("ghcr.io").await,
            Some(Credential::IdentityToken("refresh".to_owned()))
        );
        assert_eq!(find("empty.example").await, None);
    }

    /// The script follows the protocol of docker's helpers: the registry on standard input, the answer on standard
    /// output.
    #[tokio::test]
    async fn a_credential_helper_is_asked_as_docker_asks_it() {
        let dir = tempfile::tempdir().unwrap();
        let ask = async |script: &str| {
            let program = dir.path().join("docker-credential-test");
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&program, mode).unwrap();
            ask_program(program.to_str().unwrap(), "quay.io").await
        };
        let answer = r#"[ "$1" = get ] && printf '{"ServerURL":"%s","Username":"ann","Secret":"at %s"}' "$(cat)" quay.io"#;
        assert_eq!(
            ask(answer).await,
            Ok(Some(Credential::Basic {
                user: "ann".to_owned(),
                password: "at quay.io".to_owned(),
            }))
        );
        let token = r#"echo '{"Username":"<token>","Secret":"refresh"}'"#;
        assert_eq!(
            ask(token).await,
            Ok(Some(Credential::IdentityToken("refresh".to_owned())))
        );
        let unknown = "echo credentials not found in native keychain; exit 1";
        assert_eq!(ask(unknown).await, Ok(None));
        assert_eq!(
            ask("echo the keychain is locked; exit 1").await,
            Err("the keychain is locked".to_owned())
        );
        assert_eq!(
            ask("echo oops").await,
            Err("its answer is not JSON".to_owned())
        );
    }

    #[test]
    fn a_malformed_config_is_refused_without_its_secrets_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in [
            r#"{"auths": {"a": {"auth": "hunter2!"}}}"#,
            r#"{"auths": {"a": "hunter2"}}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            let error = DockerConfig::read(&path).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

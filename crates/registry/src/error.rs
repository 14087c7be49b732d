//! Why an operation on a registry failed.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use oci::ImageError;

use crate::addresses::RefusedAddress;
use crate::cache::CacheError;
use crate::credentials::CredentialsError;

/// An operation on an image or a registry failed. Its text names both; [`Problem`] is the cause.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {image}")]
pub struct RegistryError {
    /// The operation: `resolve`, `fetch`, `log in to`.
    pub operation: &'static str,
    /// The image, as the user or the planner named it; or the registry.
    pub image: String,
    /// The cause.
    #[source]
    pub problem: Problem,
}

/// The cause of a [`RegistryError`]. Unless [`Problem::is_transient`], the next attempt fails in the same way.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The registry gives no answer: it is refused, unreachable, stalled, cut off, or not TLS.
    #[error("{host}{} does not answer ({attempts} attempts)", by(redirected_by.as_deref()))]
    Unreachable {
        /// Host and port.
        host: String,
        /// The registry, where `host` is the storage that it redirected to.
        redirected_by: Option<String>,
        /// Number of attempts.
        attempts: u32,
        /// The cause of the last failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry answers that it does not have the image. Some registries answer so where access is denied.
    #[error("{host} has no {what}")]
    NotFound {
        /// Host and port.
        host: String,
        /// Repository with tag or digest.
        what: String,
    },
    /// The registry requires credentials, or other ones.
    #[error("{host} denies access{}: {reason}", login.words())]
    Denied {
        /// Host and port.
        host: String,
        /// What is known of the login.
        login: LoginState,
        /// The registry's reason, or ours.
        reason: String,
    },
    /// The credentials could not be read.
    #[error("no credentials for {host}")]
    Credentials {
        /// Host and port.
        host: String,
        /// The cause.
        #[source]
        source: CredentialsError,
    },
    /// Another refusal; where it looked transient, after all attempts.
    #[error("{host} answers {status}: {reason}")]
    Refused {
        /// Host and port.
        host: String,
        /// HTTP status.
        status: u16,
        /// The beginning of its answer.
        reason: String,
        /// The pause that it asked for before another attempt.
        retry_after: Option<Duration>,
    },
    /// A redirect or a token service that leads to plain HTTP where that is not allowed, or a circle of redirects.
    #[error("{host} points to {target}: {reason}")]
    UnsafeRedirect {
        /// Host and port.
        host: String,
        /// The target.
        target: String,
        /// The host of the target, where listing it as an insecure registry allows the redirect.
        plain_host: Option<String>,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// The host is at an address where no registry is ([`crate::Addresses::Checked`]): nothing was connected to.
    #[error("{host} leads to {address}, {why}")]
    RefusedAddress {
        /// The host, as it was named.
        host: String,
        /// The address.
        address: IpAddr,
        /// Why.
        why: &'static str,
    },
    /// The image is refused: its bytes, or what they say.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The blob cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The program is shutting down.
    #[error("the download was abandoned because the program is shutting down")]
    ShuttingDown,
}

impl From<RefusedAddress> for Problem {
    fn from(refused: RefusedAddress) -> Self {
        let RefusedAddress { host, address, why } = refused;
        Self::RefusedAddress { host, address, why }
    }
}

/// What is known of the login that a registry denied access to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginState {
    /// There is none, or it was accepted and is not enough.
    Unknown,
    /// The registry does not accept it: it has expired, was revoked, or is wrong.
    Expired,
}

impl LoginState {
    fn words(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Expired => ", the login is wrong or has expired",
        }
    }
}

/// `, to which REGISTRY redirects,`.
fn by(registry: Option<&str>) -> String {
    registry.map_or_else(String::new, |registry| {
        format!(", to which {registry} redirects,")
    })
}

impl Problem {
    /// Whether the same operation may succeed later although nobody changed anything: the registry was
    /// unreachable or too busy, or the disk was full.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Cache(_) | Self::ShuttingDown => true,
            Self::Credentials { source, .. } => matches!(source, CredentialsError::Source(_)),
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// The pause that the registry asked for before another attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether this machine's disk is full.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::Cache(error) if error.source.kind() == io::ErrorKind::StorageFull)
    }

    /// What the user may do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable {
                host,
                redirected_by: Some(registry),
                ..
            } => format!(
                "{registry} keeps its blobs at {host}: is that running, and can this machine reach it?"
            ),
            Self::Unreachable { host, source, .. } => {
                let speaks = |of: &str| {
                    let mut causes = display::causes(source.as_ref());
                    causes.any(|cause| format!("{cause} {cause:?}").contains(of))
                };
                if speaks("InvalidContentType") || speaks("corrupt message") {
                    format!(
                        "if {host} speaks plain HTTP, list it as an insecure registry: \
                         --insecure-registry {host}"
                    )
                } else {
                    format!("is the registry running, and can this machine reach {host}?")
                }
            }
            Self::NotFound { .. } => {
                "check the name, the tag or digest, and that it was pushed; some registries answer \
                 so when credentials are missing"
                    .to_owned()
            }
            Self::Denied { host, login, .. } => match login {
                LoginState::Unknown => format!("log in first: docker login {host}"),
                LoginState::Expired => format!("log in again: docker login {host}"),
            },
            Self::UnsafeRedirect { plain_host, .. } => {
                let host = plain_host.as_ref()?;
                format!(
                    "if plain HTTP to {host} is intended, list it as an insecure registry: \
                     --insecure-registry {host}"
                )
            }
            Self::RefusedAddress { host, address, .. } if address.is_loopback() => format!(
                "name it by its address, or list it as an insecure registry, where plain HTTP is intended: --insecure-registry {host}"
            ),
            Self::Image(error) => error.hint()?.to_owned(),
            _ => return None,
        })
    }
}

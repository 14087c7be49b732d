//! Why a call of the API failed.

use std::error::Error;
use std::io;
use std::time::Duration;

use api::ApiError;
use rustls::CertificateError;

/// Why a call of the API failed. Each variant names the server or the operation; [`Self::hint`]
/// says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL, a certificate or a key that the client was made of is wrong.
    #[error("could not make a client for {server}: {cause}")]
    Setup {
        /// The server's URL as given.
        server: String,
        /// What is wrong.
        cause: String,
    },
    /// Nothing answers there.
    #[error("could not connect to {server}: {cause}")]
    Connect {
        /// The server's URL.
        server: String,
        /// The innermost cause: `Connection refused (os error 111)`.
        cause: String,
        /// What the library said.
        #[source]
        source: reqwest::Error,
    },
    /// Something answers, and it is not the server of this cluster, or does not accept our
    /// certificate.
    #[error("could not trust {server}: {cause}")]
    Tls {
        /// The server's URL.
        server: String,
        /// What is wrong with the handshake.
        cause: String,
        /// What the library said.
        #[source]
        source: reqwest::Error,
    },
    /// It took too long.
    #[error("{operation} was not answered by {server} within {} s", limit.as_secs())]
    TimedOut {
        /// What was asked for.
        operation: &'static str,
        /// The server's URL.
        server: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke before the answer was whole.
    #[error("{operation} was interrupted: the connection to {server} broke: {cause}")]
    Interrupted {
        /// What was asked for.
        operation: &'static str,
        /// The server's URL.
        server: String,
        /// The innermost cause.
        cause: String,
        /// What the library said.
        #[source]
        source: reqwest::Error,
    },
    /// The server understood and refuses.
    #[error("{}", error.message)]
    Api {
        /// What was asked for.
        operation: &'static str,
        /// The HTTP status.
        status: u16,
        /// Its code, message and hint.
        error: ApiError,
    },
    /// The answer is none of this API's.
    #[error("{operation}: the answer of {server} cannot be understood: {cause}")]
    Answer {
        /// What was asked for.
        operation: &'static str,
        /// The server's URL.
        server: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl ClientError {
    /// What to do about it, where we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { server, .. } => {
                Some(format!("is `platform server` running at {server}?"))
            }
            Self::Tls { .. } => Some(
                "is this the server that the token or the client configuration came from? the \
                 clocks of both machines must be right, too"
                    .to_owned(),
            ),
            Self::TimedOut { .. } => {
                Some("try again; the server's log says what it is doing".to_owned())
            }
            Self::Interrupted { .. } => Some(
                "was the server restarted? try again; its log says what it is doing".to_owned(),
            ),
            Self::Api { error, .. } => error.hint.clone(),
            Self::Answer { .. } => {
                Some("are the command and the server of the same version?".to_owned())
            }
            Self::Setup { .. } => None,
        }
    }

    /// The stable code of the server's refusal, if it is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Api { error, .. } => Some(&error.code),
            _ => None,
        }
    }

    /// How long to wait before the same call may succeed, where the server names it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api { error, .. } => error.retry_after_ms.map(Duration::from_millis),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anyone doing anything: the server is offline
    /// or in trouble, but did not refuse.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::TimedOut { .. } | Self::Interrupted { .. } => true,
            // A member that is refused for its version or its membership goes on with what it was last told: an operator
            // upgrades the one or the other.
            Self::Api { status, error, .. } => {
                *status >= 500
                    || *status == 429
                    || matches!(
                        error.code.as_str(),
                        api::error_code::PROTOCOL_VERSION
                            | api::error_code::NOT_A_MEMBER
                            | api::error_code::NOT_APPROVED
                            | api::error_code::REVOKED
                            | api::error_code::CERTIFICATE_EXPIRED
                    )
            }
            Self::Setup { .. } | Self::Tls { .. } | Self::Answer { .. } => false,
        }
    }

    pub(crate) fn of_request(
        operation: &'static str,
        server: &str,
        limit: Duration,
        source: reqwest::Error,
    ) -> Self {
        let server = server.to_owned();
        let source = source.without_url();
        let cause = innermost(&source);
        let tls = display::causes(&source)
            .find_map(|e| e.downcast_ref::<rustls::Error>())
            .map(tls_cause);
        if let Some(cause) = tls {
            Self::Tls {
                server,
                cause,
                source,
            }
        } else if source.is_connect() {
            Self::Connect {
                server,
                cause,
                source,
            }
        } else if source.is_timeout() {
            Self::TimedOut {
                operation,
                server,
                limit,
            }
        } else {
            Self::Interrupted {
                operation,
                server,
                cause,
                source,
            }
        }
    }
}

/// Whether the server closed the connection before it knew whose it is: it has as many as may be, or it ends.
pub(crate) fn was_turned_away(error: &reqwest::Error) -> bool {
    error.is_connect()
        && is_of_kind(
            error,
            &[io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset],
        )
}

fn is_of_kind(error: &(dyn Error + 'static), kinds: &[io::ErrorKind]) -> bool {
    display::causes(error).any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| kinds.contains(&cause.kind()))
    })
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    // rustls explains a missing close_notify, with a link into its manual. It is the end of a server that was killed.
    if is_of_kind(error, &[io::ErrorKind::UnexpectedEof]) {
        return "it was closed before the end".to_owned();
    }
    display::causes(error)
        .last()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// What went wrong with the handshake, for people.
fn tls_cause(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.to_string(),
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is not of the cluster we know".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time,
            not_before,
        }) => clock_cause(
            time.as_secs(),
            not_before.as_secs(),
            "is not valid yet",
            "behind",
        ),
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            clock_cause(time.as_secs(), not_after.as_secs(), "has expired", "ahead")
        }
        other => other.to_string(),
    }
}

/// A certificate is out of its dates by this machine's clock, in seconds since 1970.
fn clock_cause(now: u64, limit: u64, what: &str, which: &str) -> String {
    let apart = match now.abs_diff(limit) {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ ..3600 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    };
    format!(
        "its certificate {what} by this machine's clock, which is {apart} {which}, or the server's is wrong"
    )
}

#[cfg(test)]
mod tests {
    use super::clock_cause;

    #[test]
    fn how_wrong_a_clock_is_has_a_unit_that_fits() {
        for (seconds, apart) in [
            (59, "which is 59 s behind"),
            (60, "which is 1 min behind"),
            (3599, "which is 59 min behind"),
            (7200, "which is 2 h behind"),
            (93_600, "which is 26 h behind"),
            (172_800, "which is 2 days behind"),
        ] {
            let cause = clock_cause(1000, 1000 + seconds, "is not valid yet", "behind");
            assert!(cause.contains(apart), "{cause}");
        }
    }
}

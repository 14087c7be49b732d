//! How a command that could not do its work says so: the chain of causes, and what to do.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use api_client::ClientError;
use control_plane::ServerError;
use edge_proxy::EdgeError;
use image_source::SourceError;
use membership::JoinError;
use node_agent::NodeError;
use registry::RegistryError;
use state_file::{FormatError, StateFileError};

/// The user's input is wrong, or the cluster refuses.
const NO: u8 = 1;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const FAINT: Style = Style::new().dimmed();
const HINT: Style = AnsiColor::Cyan.on_default();

/// Standard output cannot be written: its disk is full, its reader has left.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct OutputError(#[source] pub(crate) std::io::Error);

/// Why a command ends with a status other than 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Everything was said already (diagnostics, a diff).
    Said,
    /// The reader of our output has closed it (`platform logs | head`): nothing can be printed any more.
    ReaderLeft,
    /// The user's own command ended with this status (`platform exec`), and said why itself.
    Ended(u8),
    /// A failure that is printed.
    Because {
        /// The failed operation, and its causes.
        error: anyhow::Error,
        /// What to do, where the command knows better than the error itself.
        hint: Option<String>,
    },
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let reader_left = display::causes(error.as_ref())
            .find_map(|cause| {
                let output = cause.downcast_ref::<OutputError>().map(|error| &error.0);
                output.or_else(|| cause.downcast_ref::<std::io::Error>())
            })
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
        if reader_left {
            Self::ReaderLeft
        } else {
            Self::Because { error, hint: None }
        }
    }
}

impl Failure {
    /// Whether it may come right by itself: the server is away, or busy.
    pub(crate) fn may_pass(&self) -> bool {
        let Self::Because { error, .. } = self else {
            return false;
        };
        display::causes(error.as_ref())
            .find_map(|cause| cause.downcast_ref::<ClientError>())
            .is_some_and(ClientError::is_transient)
    }

    /// A failure of our own, without a cause.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Because {
            error: anyhow::Error::msg(message.into()),
            hint: None,
        }
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Because { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// Adds that the command is for root, where that is why it failed: a role's files are root's.
    pub(crate) fn for_root(self) -> Self {
        if rustix::process::geteuid().is_root() {
            return self;
        }
        self.not_as_root()
    }

    fn not_as_root(self) -> Self {
        const HINT: &str = "run it as root, as with sudo: the roles and their files are root's";
        match &self {
            Self::Because { error, hint: None }
                if hint_of(error.as_ref()).is_none() && is_denied(error.as_ref()) =>
            {
                self.hint(HINT)
            }
            _ => self,
        }
    }

    /// Tells the user, and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        if let Self::Ended(status) = self {
            return ExitCode::from(*status);
        }
        if let Self::Because { error, hint } = self {
            let mut text = format!("{ERROR}error{ERROR:#}: ");
            for (depth, message) in messages(error.as_ref()).into_iter().enumerate() {
                if depth > 0 {
                    text.push_str(&format!("  {FAINT}caused by{FAINT:#}: "));
                }
                text.push_str(&message.replace('\n', "\n    "));
                text.push('\n');
            }
            let hint = hint.clone().or_else(|| hint_of(error.as_ref()));
            if let Some(hint) = hint {
                text.push_str(&format!("  {HINT}hint{HINT:#}: {hint}\n"));
            }
            // Where standard error is closed, only the status can tell.
            let _ = anstream::stderr().write_all(text.as_bytes());
        }
        ExitCode::from(NO)
    }
}

/// Whether the machine refused it to this user.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    display::causes(error)
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The messages of an error and its causes. A [`ClientError`] names its innermost cause itself: what lies
/// between are its library's own words.
fn messages(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut end = false;
    let causes = display::causes(error).take_while(|cause| {
        !std::mem::replace(&mut end, cause.downcast_ref::<ClientError>().is_some())
    });
    display::messages_of(causes)
}

fn hint_of(error: &(dyn Error + 'static)) -> Option<String> {
    display::causes(error).find_map(|link| {
        link.downcast_ref::<ClientError>()
            .and_then(ClientError::hint)
            .or_else(|| hint_of_file(link))
            .or_else(|| link.downcast_ref::<EdgeError>().and_then(EdgeError::hint))
            .or_else(|| {
                link.downcast_ref::<ServerError>()
                    .and_then(ServerError::hint)
            })
            .or_else(|| link.downcast_ref::<NodeError>().and_then(hint_of_node))
            .or_else(|| {
                let error = link.downcast_ref::<RegistryError>();
                error.and_then(|error| error.problem.hint())
            })
            .or_else(|| {
                let error = link.downcast_ref::<SourceError>();
                Some(error?.problem.hint()?.to_owned())
            })
    })
}

/// What to do about a file of a role that cannot be used. It is kept: somebody may know better.
fn hint_of_file(error: &(dyn Error + 'static)) -> Option<String> {
    let join = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(NodeError::Join(error)), _) | (_, Some(error)) => Some(error),
        _ => None,
    };
    let state = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(NodeError::State(error)), _) | (_, Some(EdgeError::State(error))) => Some(error),
        _ => error.downcast_ref(),
    };
    let path = match (join, state) {
        (Some(JoinError::KeysDamaged { path, .. }), _) => path,
        // The message of one of a newer version says to run the newer program.
        (_, Some(StateFileError::Format { path, source }))
            if !matches!(source, FormatError::Newer { .. }) =>
        {
            path
        }
        _ => return None,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let shown = path.display();
    Some(match &*name {
        "member.json" => format!(
            "put it back from a copy; or join anew with a new token: `platform node join --again`, of an edge `platform edge join --again`, \
             which keeps it as {shown}.before"
        ),
        "keys.json" | "next-keys.json" => format!(
            "remove {shown}: the machine makes other keys; where it was about to join, make a new token too"
        ),
        "options.json" => {
            format!("mend {shown}, or remove it and give `init` or `join` its options again")
        }
        _ => format!("put {shown} back from a copy, or move it away"),
    })
}

fn hint_of_node(error: &NodeError) -> Option<String> {
    match error {
        NodeError::Join(JoinError::Enroll(error)) => error.hint(),
        NodeError::Join(JoinError::PortTaken { .. }) => Some(membership::PORT_HINT.to_owned()),
        NodeError::Join(JoinError::State(_) | JoinError::KeysDamaged { .. }) => None,
        NodeError::Client(error) => Some(error.hint().unwrap_or_else(|| {
            "`platform node join --again`, with a new token, makes others".to_owned()
        })),
        NodeError::Join(_) => Some(
            "give --server, and by --token-file or PLATFORM_TOKEN a token that `platform tokens create --role node` made"
                .to_owned(),
        ),
        NodeError::Guest(_) => {
            Some("the package has them in /usr/lib/platform/guest, `cargo xtask guest` makes them in a clone; --guest says where they are".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io;

    use super::*;

    fn hint_after(error: impl Into<anyhow::Error>) -> Option<String> {
        match Failure::from(error).not_as_root() {
            Failure::Because { hint, .. } => hint,
            _ => None,
        }
    }

    #[test]
    fn a_file_of_a_role_that_is_garbage_has_a_hint_wherever_its_error_is() {
        let garbage = || StateFileError::Format {
            path: "/var/lib/platform/node/member.json".into(),
            source: FormatError::TooLarge,
        };
        let keys = || JoinError::KeysDamaged {
            path: "/var/lib/platform/node/keys.json".into(),
            source: key_error(),
        };
        let errors: [(anyhow::Error, &str); 7] = [
            (garbage().into(), "join anew"),
            (NodeError::State(garbage()).into(), "join anew"),
            (EdgeError::State(garbage()).into(), "join anew"),
            (JoinError::State(garbage()).into(), "join anew"),
            (
                NodeError::Join(JoinError::State(garbage())).into(),
                "join anew",
            ),
            (
                NodeError::Join(keys()).into(),
                "remove /var/lib/platform/node/keys.json",
            ),
            (
                EdgeError::Join(keys()).into(),
                "remove /var/lib/platform/node/keys.json",
            ),
        ];
        for (error, does) in errors {
            let hint = hint_of(error.as_ref()).unwrap_or_default();
            assert!(hint.contains(does), "{error:?}: {hint}");
        }
    }

    /// The error of a key that is none.
    fn key_error() -> identity::KeyError {
        let garbage = identity::MemberKey::load("garbage");
        garbage.expect_err("garbage is no key")
    }

    #[test]
    fn who_is_refused_a_file_is_told_to_be_root_and_nobody_else_is() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let of_role = state_file::StateFileError::Io {
            operation: "write",
            path: "/var/lib/platform/node/options.json".into(),
            source: denied(),
        };
        let hint = hint_after(of_role).unwrap_or_default();
        assert!(hint.starts_with("run it as root"), "{hint}");
        let listen = EdgeError::Listen {
            listen: ([0, 0, 0, 0], 80).into(),
            source: denied(),
        };
        assert!(hint_after(listen).is_some());
        assert_eq!(hint_after(io::Error::from(io::ErrorKind::NotFound)), None);
        // One that says itself what to do.
        let known = Failure::from(denied()).hint("another").not_as_root();
        assert!(matches!(known, Failure::Because { hint: Some(hint), .. } if hint == "another"));
    }
}

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

fn hint_of_node(error: &NodeError) -> Option<String> {
    match error {
        NodeError::Join(JoinError::Enroll(error)) => error.hint(),
        NodeError::Join(JoinError::State(_)) => None,
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

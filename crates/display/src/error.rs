//! An error with its causes.

use std::error::Error;
use std::io;

/// The error and its causes, outermost first. The error inside an [`io::Error`] is one of them.
pub fn causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'e (dyn Error + 'static)| {
        let error: &'e (dyn Error + 'static) = *error;
        // `source` of an io::Error skips the error that it wraps.
        match error.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

/// The messages of an error and its causes, outermost first. A message that the message before it contains
/// is left out: many libraries repeat the cause in their own text.
pub fn messages(error: &(dyn Error + 'static)) -> Vec<String> {
    messages_of(causes(error))
}

/// [`messages`] of these causes only.
pub fn messages_of<'e>(causes: impl IntoIterator<Item = &'e (dyn Error + 'static)>) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    for cause in causes {
        let message = cause.to_string();
        if !messages.last().is_some_and(|last| last.contains(&message)) {
            messages.push(message);
        }
    }
    messages
}

/// An error with its causes on one line: `cannot write a change: disk full`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    messages(error).join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file: {0}")]
    struct RepeatsItsCause(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct NamesNoCause(#[source] RepeatsItsCause);

    #[test]
    fn a_chain_names_each_cause_once() {
        let disk = io::Error::other("disk on fire");
        let error = io::Error::other(NamesNoCause(RepeatsItsCause(disk)));
        assert_eq!(
            chain(&error),
            "cannot start: cannot read the file: disk on fire"
        );
    }

    #[test]
    fn causes_include_the_error_inside_an_io_error() {
        let error = io::Error::other(RepeatsItsCause(io::Error::from(io::ErrorKind::NotFound)));
        assert!(causes(&error).any(<dyn Error>::is::<RepeatsItsCause>));
        assert_eq!(causes(&error).count(), 3);
    }
}

//! The error of a change that the store did not commit.

use std::sync::Arc;

use store::StoreError;

/// The store did not take a change. Nothing of it has happened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not write the change")]
pub(crate) struct NotCommitted(#[source] Arc<StoreError>);

impl NotCommitted {
    pub(crate) fn new(error: StoreError) -> Self {
        Self(Arc::new(error))
    }

    /// Whether the store refused what was written, and would take other changes: the cause is a record, not a full disk
    /// or a broken connection.
    pub(crate) fn is_about_a_record(&self) -> bool {
        self.0.is_about_a_record()
    }

    /// Whether the term is over in which it was to be written, and why it was not.
    pub(crate) fn ends_the_term(&self) -> Option<&StoreError> {
        Some(&*self.0).filter(|error| error.ends_the_term())
    }

    /// What to do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        self.0.hint()
    }

    /// Whether nothing is written any more, because the server ends.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(*self.0, StoreError::Closed)
    }
}

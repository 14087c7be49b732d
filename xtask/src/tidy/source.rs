//! A file that is checked.

/// A text file of the repository.
#[derive(Debug)]
pub(super) struct Source {
    /// From the repository's root.
    pub(super) path: String,
    pub(super) text: String,
}

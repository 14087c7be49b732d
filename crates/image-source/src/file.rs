//! Bounded reads of local files.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use oci::ImageError;

use crate::error::SourceProblem;

/// A whole file of at most `limit` bytes. `what` is its name in errors.
pub(crate) fn read_limited(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>, SourceProblem> {
    let file = File::open(path).map_err(unreadable(path))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(unreadable(path))?;
    if bytes.len() as u64 > limit {
        return Err(ImageError::OverLimit {
            what: what.to_owned(),
            actual: bytes.len() as u64,
            limit,
            unit: "bytes",
        }
        .into());
    }
    Ok(bytes)
}

pub(crate) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> SourceProblem {
    let path = path.to_owned();
    move |source| SourceProblem::File { path, source }
}

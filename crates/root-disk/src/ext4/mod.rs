//! Writing ext4.

use std::path::Path;

use crate::DiskError;

/// Makes an empty writable ext4.
pub fn format_empty(path: &Path, size_bytes: u64, label: &str) -> Result<(), DiskError> {
    let _ = (path, size_bytes, label);
    Err(DiskError::NoLayers)
}

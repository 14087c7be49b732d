//! Small files that a command sends: certificates and keys.

use std::path::Path;

use crate::failure::Failure;

/// Longest file that is read, in bytes: what the server takes of a chain or a key is less.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The text of such a file.
pub(super) async fn read(path: &Path) -> Result<String, Failure> {
    let failed = |cause: String| Failure::new(format!("cannot read {}: {cause}", path.display()));
    let file = tokio::fs::metadata(path).await;
    let length = file.map_err(|error| failed(error.to_string()))?.len();
    if length > MAX_FILE_BYTES {
        return Err(failed(format!(
            "it has {length} bytes, more than {MAX_FILE_BYTES}"
        )));
    }
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|error| failed(error.to_string()))?;
    // Editors of Windows begin a file so; the first block would be passed over.
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    #[tokio::test]
    async fn a_byte_order_mark_is_no_part_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chain.pem");
        std::fs::write(&path, "\u{feff}-----BEGIN").unwrap();
        assert_eq!(super::read(&path).await.unwrap(), "-----BEGIN");
    }
}

//! JSON files that survive a crash at any moment: written beside their place, synced, then renamed.
//!
//! Nodes and edges keep what they were last told in such files, so that they go on while the
//! control plane is away. Deliberately absent: locking; each file has one writer.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest file that is read, in bytes.
pub const MAX_STATE_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Why a state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The file system refused.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `write`.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is there and is not what it should be.
    #[error("`{}` is damaged", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Reads a JSON file; `None` when there is none.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateFileError> {
    let failed = |source| StateFileError::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_STATE_FILE_BYTES)
        .read_to_end(&mut text)
        .map_err(failed)?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| StateFileError::Damaged {
            path: path.to_owned(),
            source,
        })
}

/// Replaces a JSON file as a whole, readable by its owner only. After `Ok` it survives a power cut.
///
/// # Errors
/// It cannot be written; the old content is then still there.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateFileError> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| StateFileError::Damaged {
        path: path.to_owned(),
        source,
    })?;
    write_whole(path, &text).map_err(|source| StateFileError::Io {
        operation: "write",
        path: path.to_owned(),
        source,
    })
}

fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Made with mode 0600, and gone by itself when anything below fails.
    let mut beside = tempfile::NamedTempFile::new_in(folder)?;
    beside.write_all(text)?;
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_stays_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state.json");
        assert!(read::<Vec<u32>>(&path).unwrap().is_none());
        write(&path, &vec![1, 2]).unwrap();
        write(&path, &vec![3]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(
            std::fs::read_dir(dir.path().join("deep")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        std::fs::write(&path, "[1, ").unwrap();
        let error = read::<Vec<u32>>(&path).unwrap_err();
        assert!(
            error.to_string().ends_with("state.json` is damaged"),
            "{error}"
        );
    }
}

//! Files that survive a crash at any moment: written beside their place, synced, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::MAX_STATE_FILE_BYTES;

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
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateFileError> {
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

/// Finds out, without writing the file itself, whether it could be written.
pub(crate) fn prepare(path: &Path) -> Result<(), StateFileError> {
    let try_beside = || {
        fs::create_dir_all(folder_of(path))?;
        create(&path.with_extension("new"))
    };
    try_beside().map(drop).map_err(|source| StateFileError::Io {
        operation: "write",
        path: path.to_owned(),
        source,
    })
}

/// Writes a JSON file, readable by its owner only. After `Ok` it survives a power cut.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateFileError> {
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
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    let beside = path.with_extension("new");
    let mut file = create(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

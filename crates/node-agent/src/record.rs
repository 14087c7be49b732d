//! The agent's state files: `desired.json` and an `instance.json` for each instance.
//!
//! A file that cannot be read is not absent: it is kept, and its error says why.

use std::io;
use std::path::Path;

use api::node::DesiredState;
use model::instance::InstanceSpec;
use node_core::instance::Lifecycle;
use serde::{Deserialize, Serialize};
use state_file::{FormatError, StateFormat};

use crate::host::Files;

/// Name of the file with the last desired state, in the data folder.
pub(crate) const DESIRED_FILE: &str = "desired.json";
/// Name of an instance's record, in the instance's folder.
pub(crate) const INSTANCE_FILE: &str = "instance.json";

/// `desired.json`: the desired state that was applied last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct DesiredFile(pub(crate) DesiredState);

impl StateFormat for DesiredFile {
    const VERSION: u32 = 1;
}

/// `instance.json`: what is kept of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) spec: InstanceSpec,
    pub(crate) life: Lifecycle,
}

impl StateFormat for InstanceRecord {
    const VERSION: u32 = 1;
}

/// Why a state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the file system refused: {0}")]
    Io(#[from] io::Error),
    #[error("its content cannot be used: {0}")]
    Format(#[from] FormatError),
}

/// Reads a state file; `None` when there is none.
pub(crate) async fn read<T: StateFormat>(
    files: &dyn Files,
    path: &Path,
) -> Result<Option<T>, RecordError> {
    match files.read(path).await? {
        Some(bytes) => Ok(Some(state_file::decode(&bytes)?)),
        None => Ok(None),
    }
}

/// Replaces a state file.
pub(crate) async fn write<T: StateFormat>(
    files: &dyn Files,
    path: &Path,
    value: &T,
) -> Result<(), RecordError> {
    let bytes = state_file::encode(value)?;
    Ok(files.replace(path, bytes).await?)
}

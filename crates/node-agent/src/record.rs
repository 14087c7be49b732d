//! The agent's state files: `desired.json` and an `instance.json` for each instance.
//!
//! A file that cannot be read is not absent: it is kept, and its error says why.

use std::io;
use std::path::Path;

use api::node::DesiredState;
use model::instance::InstanceSpec;
use node_core::instance::ProgressRecord;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use state_file::{Fields, FormatError, StateFormat};

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

/// `instance.json`: what is kept of an instance. Version 1 had the whole life cycle, with fields that
/// repeat the spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct InstanceFile {
    pub(crate) spec: InstanceSpec,
    pub(crate) progress: ProgressRecord,
    /// The token of the guest's init, from its first connection on ([`guest_protocol::Hello::token`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest_token: Option<String>,
}

impl StateFormat for InstanceFile {
    const VERSION: u32 = 2;

    fn upgrade(from: u32, mut fields: Fields) -> Result<Fields, serde_json::Error> {
        if from != 1 {
            return Err(serde_json::Error::custom(format!(
                "there is no version {from}"
            )));
        }
        let life = fields.remove("life").unwrap_or_default();
        let progress = ProgressRecord::from_first_version(life)?;
        fields.insert("progress".to_owned(), serde_json::to_value(progress)?);
        Ok(fields)
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;

    fn fixtures(version: u32) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/fixtures/v{version}"))
    }

    fn instances(version: u32) -> Vec<(String, InstanceFile)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(fixtures(version)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name.starts_with("instance-") {
                let bytes = std::fs::read(&path).unwrap();
                found.push((name, state_file::decode(&bytes).unwrap()));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    /// Version 1 is what agents wrote up to the commit that named versions.
    #[test]
    fn an_instance_file_of_each_version_is_read_and_is_the_same_instance() {
        let first = instances(1);
        assert_eq!(first.len(), 12);
        assert_eq!(first, instances(2));
    }

    #[test]
    fn an_instance_file_is_written_as_its_newest_version() {
        for (name, file) in instances(1) {
            let written = state_file::encode(&file).unwrap();
            let written: Value = serde_json::from_slice(&written).unwrap();
            let fixture = std::fs::read(fixtures(2).join(&name)).unwrap();
            let fixture: Value = serde_json::from_slice(&fixture).unwrap();
            assert_eq!(written, fixture, "{name}");
        }
    }

    #[test]
    fn only_a_version_that_was_written_is_upgraded() {
        assert!(InstanceFile::upgrade(0, Fields::new()).is_err());
        assert!(InstanceFile::upgrade(2, Fields::new()).is_err());
        let error = state_file::decode::<InstanceFile>(br#"{"version": 0}"#).unwrap_err();
        assert!(display::chain(&error).contains("no version 0"), "{error}");
    }

    #[test]
    fn an_instance_file_with_added_fields_is_read() {
        fn add(value: &mut Value) {
            if let Value::Object(fields) = value {
                fields.values_mut().for_each(add);
                // Maps of the user's names are not structures.
                fields.insert("added".to_owned(), "later".into());
            }
        }
        for (name, file) in instances(2) {
            let mut value = serde_json::to_value(&file).unwrap();
            add(&mut value);
            value["version"] = 2.into();
            let text = serde_json::to_vec(&value).unwrap();
            let mut read: InstanceFile = state_file::decode(&text).unwrap();
            read.spec.variables.remove("added");
            assert_eq!(read, file, "{name}");
        }
    }

    #[test]
    fn a_desired_state_without_a_version_is_read() {
        let bytes = std::fs::read(fixtures(1).join("desired.json")).unwrap();
        let DesiredFile(desired) = state_file::decode(&bytes).unwrap();
        assert_eq!(desired.instances.len(), 1);
        // The first version named the field `keep_images`.
        assert_eq!(desired.pinned_images.len(), 1);
        let written = state_file::encode(&DesiredFile(desired.clone())).unwrap();
        let again: DesiredFile = state_file::decode(&written).unwrap();
        assert_eq!(again.0, desired);
    }
}

//! Versioned JSON files that survive a crash at any moment: written beside their place, synced, then renamed.
//!
//! Members keep what they need after a restart in such files. A file is a JSON object whose field
//! `version` says which version of its format it has; a file without it has version 1. A reader ignores
//! fields that it does not know and upgrades older versions one at a time ([`StateFormat::upgrade`]).
//!
//! A file that is absent, one that cannot be read and one of a newer version are three different
//! results. The last two are errors, and the file is kept as it is.
//!
//! Deliberately absent: locking. Each file has one writer.

#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Largest file that is read, in bytes.
pub const MAX_STATE_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Version of a file that has no `version` field.
const FIRST_VERSION: u32 = 1;
/// Name of the field with the version. The formats themselves have no field of this name.
const VERSION_FIELD: &str = "version";

/// The fields of a state file, without its version.
pub type Fields = serde_json::Map<String, Value>;

/// A value that is kept in a state file. It serializes to a JSON object without a field `version`.
/// Deserializing it must not refuse unknown fields.
pub trait StateFormat: Serialize + DeserializeOwned {
    /// The version that is written.
    const VERSION: u32;

    /// Turns the fields of version `from` into those of `from + 1`. Called for each version from the
    /// file's to [`Self::VERSION`]; a format with one version has nothing to do.
    ///
    /// # Errors
    /// The fields are not those of version `from`.
    fn upgrade(from: u32, fields: Fields) -> Result<Fields, serde_json::Error> {
        let _ = from;
        Ok(fields)
    }
}

/// Why the bytes of a state file are not a value.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// They are no JSON of this format.
    #[error("it does not have the expected format")]
    Invalid(#[from] serde_json::Error),
    /// They are larger than [`MAX_STATE_FILE_BYTES`].
    #[error("it is larger than {MAX_STATE_FILE_BYTES} bytes")]
    TooLarge,
    /// A newer program wrote them.
    #[error(
        "it has version {found} and this program reads up to {known}; run the newer program again"
    )]
    Newer {
        /// The file's version.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
}

/// Why a state file could not be read or written. The file is kept.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The file system refused.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// The operation: `read`, `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is there and its content cannot be used.
    #[error("cannot use `{}`", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: FormatError,
    },
}

impl StateFileError {
    /// Whether the file could not be written because the disk is full.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// A value from the bytes of a state file, upgraded to this program's version.
///
/// # Errors
/// The bytes are not of this format, or of a newer version.
pub fn decode<T: StateFormat>(bytes: &[u8]) -> Result<T, FormatError> {
    let mut fields: Fields = serde_json::from_slice(bytes)?;
    let found = match fields.remove(VERSION_FIELD) {
        None => FIRST_VERSION,
        Some(version) => serde_json::from_value(version)?,
    };
    if found > T::VERSION {
        return Err(FormatError::Newer {
            found,
            known: T::VERSION,
        });
    }
    for from in found..T::VERSION {
        fields = T::upgrade(from, fields)?;
    }
    Ok(serde_json::from_value(Value::Object(fields))?)
}

/// The bytes of a state file with this value.
///
/// # Errors
/// The value does not serialize to a JSON object.
pub fn encode<T: StateFormat>(value: &T) -> Result<Vec<u8>, FormatError> {
    #[derive(Serialize)]
    struct File<'a, T> {
        version: u32,
        #[serde(flatten)]
        value: &'a T,
    }
    let version = T::VERSION;
    Ok(serde_json::to_vec_pretty(&File { version, value })?)
}

/// Renames a file that cannot be used to `NAME.unreadable`, so that it is kept when its owner writes a new one. Gives the
/// new path. Blocks.
///
/// # Errors
/// It cannot be renamed.
pub fn set_aside(path: &Path) -> Result<PathBuf, StateFileError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".unreadable");
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside).map_err(|source| StateFileError::Io {
        operation: "set aside",
        path: path.to_owned(),
        source,
    })?;
    Ok(aside)
}

/// Reads a state file; `None` when there is none. Blocks.
///
/// # Errors
/// It is there and cannot be read, is damaged, or is of a newer version.
pub fn read<T: StateFormat>(path: &Path) -> Result<Option<T>, StateFileError> {
    let bytes = read_bytes(path).map_err(|source| StateFileError::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    let Some(bytes) = bytes else { return Ok(None) };
    let value = if bytes.len() as u64 > MAX_STATE_FILE_BYTES {
        Err(FormatError::TooLarge)
    } else {
        decode(&bytes)
    };
    value.map(Some).map_err(|source| StateFileError::Format {
        path: path.to_owned(),
        source,
    })
}

/// Replaces a state file as a whole, readable by its owner only. After `Ok` it survives a power cut.
/// Blocks.
///
/// # Errors
/// It cannot be written; the old content is then still there.
pub fn write<T: StateFormat>(path: &Path, value: &T) -> Result<(), StateFileError> {
    let bytes = encode(value).map_err(|source| StateFileError::Format {
        path: path.to_owned(),
        source,
    })?;
    replace(path, &bytes).map_err(|source| StateFileError::Io {
        operation: "write",
        path: path.to_owned(),
        source,
    })
}

/// At most one byte more than [`MAX_STATE_FILE_BYTES`] of a file; `None` when there is none. Blocks.
///
/// # Errors
/// The file system refused.
pub fn read_bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_STATE_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Replaces a file as a whole, readable by its owner only; its folder is made. After `Ok` it survives
/// a power cut. Blocks.
///
/// # Errors
/// The file system refused; the old content is then still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Made with mode 0600, and removed by its destructor when anything below fails.
    let mut beside = tempfile::NamedTempFile::new_in(folder)?;
    beside.write_all(bytes)?;
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde::Deserialize;
    use serde::de::Error as _;

    use super::*;

    /// Version 1 had `name`, version 2 had `names`, version 3 has `names` and `count`.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct State {
        names: Vec<String>,
        count: u32,
    }

    impl StateFormat for State {
        const VERSION: u32 = 3;

        fn upgrade(from: u32, mut fields: Fields) -> Result<Fields, serde_json::Error> {
            match from {
                1 => {
                    let name = fields.remove("name");
                    let name = name.ok_or_else(|| serde_json::Error::custom("no `name`"))?;
                    fields.insert("names".to_owned(), Value::Array(vec![name]));
                }
                _ => {
                    fields.insert("count".to_owned(), 0.into());
                }
            }
            Ok(fields)
        }
    }

    fn state(names: &[&str], count: u32) -> State {
        State {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            count,
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state.json");
        assert!(read::<State>(&path).unwrap().is_none());
        write(&path, &state(&["a"], 1)).unwrap();
        write(&path, &state(&["b"], 2)).unwrap();
        assert_eq!(read(&path).unwrap(), Some(state(&["b"], 2)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n  \"version\": 3,"), "{text}");
        let count = std::fs::read_dir(dir.path().join("deep")).unwrap().count();
        assert_eq!(count, 1);
    }

    #[test]
    fn older_versions_are_upgraded_one_at_a_time() {
        let v1 = br#"{"name": "a"}"#;
        assert_eq!(decode::<State>(v1).unwrap(), state(&["a"], 0));
        let v2 = br#"{"version": 2, "names": ["a", "b"]}"#;
        assert_eq!(decode::<State>(v2).unwrap(), state(&["a", "b"], 0));
    }

    const FILES: [&str; 3] = [
        r#"{"name": "a"}"#,
        r#"{"version": 2, "names": ["a"]}"#,
        r#"{"version": 3, "names": ["a"], "count": 0}"#,
    ];

    #[test]
    fn unknown_fields_are_ignored() {
        let added = br#"{"version": 3, "names": [], "count": 4, "colour": "red"}"#;
        assert_eq!(decode::<State>(added).unwrap(), state(&[], 4));
        fixtures::check::<State>(&FILES);
    }

    #[test]
    #[should_panic(expected = "a version has no fixture")]
    fn a_format_needs_a_fixture_of_each_version() {
        fixtures::check::<State>(&FILES[..2]);
    }

    #[test]
    #[should_panic(expected = "unknown field")]
    fn a_format_that_refuses_unknown_fields_is_found() {
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Strict {
            name: String,
        }
        impl StateFormat for Strict {
            const VERSION: u32 = 1;
        }
        fixtures::check::<Strict>(&[r#"{"version": 1, "name": "a"}"#]);
    }

    #[test]
    fn a_file_of_a_newer_version_is_an_error_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let newer = br#"{"version": 4, "names": [], "count": 4}"#;
        std::fs::write(&path, newer).unwrap();
        let error = read::<State>(&path).unwrap_err();
        let StateFileError::Format { source, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(
            source.to_string(),
            "it has version 4 and this program reads up to 3; run the newer program again"
        );
        assert_eq!(std::fs::read(&path).unwrap(), newer);
    }

    #[test]
    fn a_damaged_file_is_named_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for damaged in [
            "{\"name\": ",
            "[]",
            "",
            r#"{"version": 1}"#,
            r#"{"version": "x"}"#,
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = read::<State>(&path).unwrap_err();
            assert!(
                error.to_string().ends_with("state.json`"),
                "{damaged}: {error}"
            );
            assert!(
                matches!(
                    error,
                    StateFileError::Format {
                        source: FormatError::Invalid(_),
                        ..
                    }
                ),
                "{damaged}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }
}

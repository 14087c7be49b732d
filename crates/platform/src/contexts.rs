//! The clusters that a user knows, a file each: `~/.config/platform/contexts/NAME.json`, and `current-context` beside that folder with the name of
//! the one that commands are for.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use api_client::ClientConfig;

use crate::failure::Failure;

/// Longest name, in bytes.
const MAX_NAME_BYTES: usize = 63;

/// The name of a context: letters, digits and `._-`, so that it is a file's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContextName(String);

impl FromStr for ContextName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if (1..=MAX_NAME_BYTES).contains(&text.len())
            && text.chars().all(is_good)
            && !text.starts_with(['.', '-'])
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "the name of a context is 1 to {MAX_NAME_BYTES} letters, digits and `.`, `_`, `-`, and starts with a letter or digit"
            ))
        }
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where the contexts of a user are.
#[derive(Debug, Clone)]
pub(crate) struct Contexts {
    folder: PathBuf,
}

impl Contexts {
    /// Those of this user; absent where neither `$XDG_CONFIG_HOME` nor `$HOME` is set.
    pub(crate) fn of_user() -> Option<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")))?;
        Some(Self::at(&folder.join("platform")))
    }

    fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The file of before contexts, `config.json`.
    pub(crate) fn before(&self) -> PathBuf {
        self.folder.join("config.json")
    }

    /// The file of a context.
    pub(crate) fn file(&self, name: &ContextName) -> PathBuf {
        self.folder.join("contexts").join(format!("{name}.json"))
    }

    fn current_file(&self) -> PathBuf {
        self.folder.join("current-context")
    }

    /// The context that commands are for, where one is chosen.
    pub(crate) fn current(&self) -> Result<Option<ContextName>, Failure> {
        let file = self.current_file();
        match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map(Some).map_err(|cause: String| {
                Failure::new(format!("{} is damaged: {cause}", file.display()))
                    .hint("`platform contexts use NAME` writes it anew")
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error, "read", &file)),
        }
    }

    /// Every context, by name.
    pub(crate) fn known_names(&self) -> Result<Vec<ContextName>, Failure> {
        let folder = self.folder.join("contexts");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error, "read", &folder)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed(error, "read", &folder))?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(name.and_then(|name| name.parse().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Keeps a context, in the place of one of this name.
    pub(crate) fn save(&self, name: &ContextName, config: &ClientConfig) -> Result<(), Failure> {
        let file = self.file(name);
        if let Some(folder) = file.parent() {
            make_private(folder).map_err(|error| failed(error, "make", folder))?;
        }
        Ok(config.save(&file)?)
    }

    /// Commands are for this one from now on.
    pub(crate) fn choose(&self, name: &ContextName) -> Result<(), Failure> {
        let file = self.current_file();
        let beside = self.folder.join("current-context.new");
        fs::write(&beside, format!("{name}\n"))
            .and_then(|()| fs::rename(&beside, &file))
            .map_err(|error| failed(error, "write", &file))
    }

    /// Forgets a context. Whether it was there.
    pub(crate) fn remove(&self, name: &ContextName) -> Result<bool, Failure> {
        let file = self.file(name);
        match fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error, "remove", &file)),
        }
        // Where it was the one that is chosen, it stays that: commands would be for another cluster, which nobody chose.
        Ok(true)
    }
}

/// A context of which there is no file.
pub(crate) fn no_such_context(name: &ContextName) -> Failure {
    Failure::new(format!("there is no context {name}"))
        .hint("`platform contexts` lists those there are; `platform login` makes one")
}

/// A folder with tokens in it is its owner's.
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

fn failed(error: io::Error, what: &str, path: &Path) -> Failure {
    let told = Err::<(), _>(error).with_context(|| format!("could not {what} {}", path.display()));
    told.err()
        .map_or_else(|| Failure::new("nothing failed"), Failure::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn contexts_are_kept_chosen_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let contexts = Contexts::at(&folder.path().join("platform"));
        assert!(contexts.known_names().unwrap().is_empty());
        assert_eq!(contexts.current().unwrap(), None);
        let config = ClientConfig {
            server: "https://192.0.2.1:7400".to_owned(),
            token: "pu1_x".to_owned(),
            ca_pem: String::new(),
        };
        let [home, work]: [ContextName; 2] = ["home", "work"].map(|name| name.parse().unwrap());
        contexts.save(&work, &config).unwrap();
        contexts.save(&home, &config).unwrap();
        contexts.choose(&work).unwrap();
        assert_eq!(
            contexts.known_names().unwrap(),
            [home.clone(), work.clone()]
        );
        assert_eq!(contexts.current().unwrap(), Some(work.clone()));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(contexts.file(&work)), 0o600);
        assert_eq!(mode(folder.path().join("platform/contexts")), 0o700);
        assert!(contexts.remove(&work).unwrap());
        assert!(!contexts.remove(&work).unwrap());
        // Nobody chose another one.
        assert_eq!(contexts.current().unwrap(), Some(work.clone()));
        fs::write(folder.path().join("platform/current-context"), "../x").unwrap();
        assert!(contexts.current().is_err());
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["", ".", "..", "a/b", "-a", &"a".repeat(64)] {
            assert!(name.parse::<ContextName>().is_err(), "{name:?}");
        }
    }
}

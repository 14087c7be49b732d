//! The routes on disk, for when the server is out of reach: `routes.json`, a whole table, and `routes.journal`, what changed since.
//!
//! A change costs what it changes: it is one line of the journal. When the journal is larger than the table, or a whole table comes, that is
//! written in the place of both. A line that was not written wholly is none. After a crash between the two writes the journal's lines
//! are of before the table, and are passed over.
//!
//! ```text
//!   difference --> a line of routes.journal, synced      whole table, or a long journal --> routes.json, then the journal is emptied
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use api::edge::RouteTable;
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};

use crate::limits::MIN_JOURNAL_BYTES;
use crate::routes::Routes;

const FILE: &str = "routes.json";
const JOURNAL: &str = "routes.journal";

/// `routes.json`: a whole route table. The lines of `routes.journal` are tables of the same form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RoutesFile(pub(crate) RouteTable);

impl StateFormat for RoutesFile {
    const VERSION: u32 = 1;
}

/// What is on disk.
#[derive(Debug)]
pub(crate) struct KeptRoutes {
    dir: PathBuf,
    /// Bytes of whole lines in the journal.
    journal_bytes: u64,
    /// Bytes of the table beside it.
    table_bytes: u64,
    /// Whether the two do not lead to the table in use, because a write failed: then the next one is of the whole table.
    is_behind: bool,
}

/// Why the routes could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error("could not write the route table")]
    Table(#[from] StateFileError),
    #[error("could not write {path}")]
    Journal { path: PathBuf, source: io::Error },
    #[error("the change cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl KeptRoutes {
    /// Makes the routes those that were kept last. A table that cannot be used is set aside. Blocks.
    pub(crate) fn open(dir: &Path, routes: &Routes) -> Result<Self, StateFileError> {
        let path = dir.join(FILE);
        let mut kept = Self {
            dir: dir.to_owned(),
            journal_bytes: 0,
            table_bytes: std::fs::metadata(&path).map_or(0, |file| file.len()),
            is_behind: false,
        };
        match state_file::read::<RoutesFile>(&path) {
            Ok(Some(RoutesFile(table))) => {
                routes.take(&table);
            }
            Ok(None) => {}
            Err(StateFileError::Format { path, source }) => {
                let aside = state_file::set_aside(&path)?;
                tracing::error!(
                    path = %path.display(), cause = %source, kept = %aside.display(),
                    "cannot use the routes on disk; none are served until the server sends them"
                );
                kept.is_behind = true;
                return Ok(kept);
            }
            Err(error) => return Err(error),
        }
        let path = kept.journal();
        let read = state_file::read_bytes(&path);
        let journal = read.map_err(|source| StateFileError::Io {
            operation: "read",
            path: path.clone(),
            source,
        })?;
        kept.journal_bytes = replay(&journal.unwrap_or_default(), routes);
        Ok(kept)
    }

    /// Keeps what changed. `routes`: with it. Blocks.
    pub(crate) fn keep(&mut self, change: &RouteTable, routes: &Routes) -> Result<(), KeepError> {
        let most = self.table_bytes.max(MIN_JOURNAL_BYTES);
        if change.since.is_none() || self.is_behind || self.journal_bytes > most {
            return self.write_whole(routes);
        }
        self.is_behind = true;
        let mut line = serde_json::to_vec(change)?;
        line.push(b'\n');
        let path = self.journal();
        let end = self.journal_bytes;
        append(&path, end, &line).map_err(|source| KeepError::Journal { path, source })?;
        self.journal_bytes = end + line.len() as u64;
        self.is_behind = false;
        Ok(())
    }

    /// Keeps the table in use where that could not be written before. Blocks.
    pub(crate) fn catch_up(&mut self, routes: &Routes) -> Result<(), KeepError> {
        if self.is_behind {
            self.write_whole(routes)?;
        }
        Ok(())
    }

    fn write_whole(&mut self, routes: &Routes) -> Result<(), KeepError> {
        self.is_behind = true;
        let path = self.dir.join(FILE);
        state_file::write(&path, &RoutesFile(routes.whole()))?;
        self.table_bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
        let path = self.journal();
        append(&path, 0, &[]).map_err(|source| KeepError::Journal { path, source })?;
        (self.journal_bytes, self.is_behind) = (0, false);
        Ok(())
    }

    fn journal(&self) -> PathBuf {
        self.dir.join(JOURNAL)
    }
}

/// Applies the lines of a journal. Gives how many bytes of it are whole lines that lead on from the table.
fn replay(journal: &[u8], routes: &Routes) -> u64 {
    let mut taken = 0;
    for line in journal.split_inclusive(|byte| *byte == b'\n') {
        let change = line
            .strip_suffix(b"\n")
            .and_then(|line| serde_json::from_slice::<RouteTable>(line).ok());
        let Some(change) = change else {
            tracing::warn!(
                "the last change of the routes was not written wholly; the server sends it again"
            );
            break;
        };
        // One of before the table is in it already.
        let is_applied = routes.take(&change);
        if !is_applied && change.generation.supersedes(routes.generation()) {
            break;
        }
        taken += line.len() as u64;
    }
    taken
}

/// Makes a file end with this, after so many bytes of it. After `Ok` it survives a power cut.
fn append(path: &Path, after: u64, bytes: &[u8]) -> io::Result<()> {
    let is_new = !path.try_exists()?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    // What a write before left half-way.
    file.set_len(after)?;
    file.seek(SeekFrom::Start(after))?;
    file.write_all(bytes)?;
    file.sync_data()?;
    if is_new && let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use api::edge::Route;
    use model::{Generation, Incarnation, Term};

    use super::*;

    fn route(port: u16) -> Route {
        serde_json::from_value(serde_json::json!({
            "env": { "app": "a", "env": "prod" },
            "process": "web",
            "proxy_protocol": null,
            "backends": [{"instance": format!("0000{port:04x}"), "address": format!("127.0.0.1:{port}")}],
        }))
        .unwrap()
    }

    fn at(counter: u64) -> Generation {
        Generation {
            incarnation: Incarnation(1),
            counter,
        }
    }

    fn whole(counter: u64, hosts: u16) -> RouteTable {
        let routes = (0..hosts).map(|n| (format!("h{n}.test"), route(n + 1)));
        RouteTable {
            generation: at(counter),
            term: Term(3),
            routes: routes.collect(),
            ..RouteTable::default()
        }
    }

    fn change(counter: u64, host: &str, port: Option<u16>) -> RouteTable {
        RouteTable {
            generation: at(counter),
            term: Term(3),
            since: Some(counter - 1),
            routes: port
                .map(|port| (host.to_owned(), route(port)))
                .into_iter()
                .collect(),
            removed: match port {
                Some(_) => BTreeSet::new(),
                None => BTreeSet::from([host.to_owned()]),
            },
            ..RouteTable::default()
        }
    }

    fn keep(kept: &mut KeptRoutes, routes: &Routes, change: &RouteTable) {
        assert!(routes.take(change));
        kept.keep(change, routes).unwrap();
    }

    fn loaded(dir: &Path) -> (KeptRoutes, RouteTable) {
        let routes = Routes::default();
        let kept = KeptRoutes::open(dir, &routes).unwrap();
        (kept, routes.whole())
    }

    #[test]
    fn a_change_is_one_line_and_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let routes = Routes::default();
        let mut kept = KeptRoutes::open(dir.path(), &routes).unwrap();
        keep(&mut kept, &routes, &whole(1, 5000));
        let table = dir.path().join(FILE);
        let before = std::fs::read(&table).unwrap();
        for n in 0..100_u16 {
            let host = format!("h{n}.test");
            let port = (n % 10 != 0).then_some(n + 7000);
            keep(&mut kept, &routes, &change(2 + u64::from(n), &host, port));
        }
        assert!(
            std::fs::read(&table).unwrap() == before,
            "the table is not written again"
        );
        let journal = std::fs::metadata(dir.path().join(JOURNAL)).unwrap().len();
        assert!(journal < before.len() as u64 / 10, "{journal} bytes");
        assert_eq!(loaded(dir.path()).1, routes.whole());
        assert_eq!(routes.whole().term, Term(3));
    }

    #[test]
    fn a_line_that_was_not_written_wholly_is_none_and_the_next_one_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let routes = Routes::default();
        let mut kept = KeptRoutes::open(dir.path(), &routes).unwrap();
        keep(&mut kept, &routes, &whole(1, 3));
        keep(&mut kept, &routes, &change(2, "h0.test", Some(9000)));
        let before = routes.whole();
        keep(&mut kept, &routes, &change(3, "h1.test", None));
        let path = dir.path().join(JOURNAL);
        let journal = std::fs::read(&path).unwrap();
        let first = journal.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in first..journal.len() {
            std::fs::write(&path, &journal[..end]).unwrap();
            assert_eq!(loaded(dir.path()).1, before, "cut after {end} bytes");
        }
        std::fs::write(&path, &journal[..first + 9]).unwrap();
        let routes = Routes::default();
        let mut kept = KeptRoutes::open(dir.path(), &routes).unwrap();
        keep(&mut kept, &routes, &change(3, "h2.test", None));
        let after = loaded(dir.path()).1;
        assert_eq!(after, routes.whole());
        assert!(after.routes.contains_key("h1.test") && !after.routes.contains_key("h2.test"));
    }

    #[test]
    fn a_long_journal_becomes_a_table_and_lines_of_before_it_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let routes = Routes::default();
        let mut kept = KeptRoutes::open(dir.path(), &routes).unwrap();
        keep(&mut kept, &routes, &whole(1, 3));
        let mut counter = 1;
        while kept.journal_bytes <= MIN_JOURNAL_BYTES {
            counter += 1;
            keep(&mut kept, &routes, &change(counter, "h1.test", Some(5000)));
        }
        let journal = std::fs::read(dir.path().join(JOURNAL)).unwrap();
        keep(&mut kept, &routes, &change(counter + 1, "h2.test", None));
        assert_eq!(kept.journal_bytes, 0);
        // A crash before the journal was emptied.
        std::fs::write(dir.path().join(JOURNAL), journal).unwrap();
        assert_eq!(loaded(dir.path()).1, routes.whole());
    }

    #[test]
    fn after_a_write_that_failed_the_whole_table_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let routes = Routes::default();
        let mut kept = KeptRoutes::open(dir.path(), &routes).unwrap();
        keep(&mut kept, &routes, &whole(1, 3));
        let path = dir.path().join(JOURNAL);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let failed = change(2, "h0.test", None);
        assert!(routes.take(&failed));
        kept.keep(&failed, &routes).unwrap_err();
        kept.catch_up(&routes).unwrap_err();
        std::fs::remove_dir(&path).unwrap();
        kept.catch_up(&routes).unwrap();
        assert_eq!(loaded(dir.path()).1, routes.whole());
        keep(&mut kept, &routes, &change(3, "h1.test", None));
        assert_eq!(loaded(dir.path()).1, routes.whole());
        assert_eq!(routes.hosts(), 1);
    }

    #[test]
    fn routes_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<RoutesFile>(&[include_str!(
            "fixtures/routes/version-1.json"
        )]);
    }
}

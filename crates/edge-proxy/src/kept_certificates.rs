//! The certificates on disk, for when the server is out of reach: a file each, readable by its owner only.
//!
//! ```text
//!   certificates/NAME.json         those that the server keeps
//!   host-certificates/HOST.json    those of the ingress CA
//! ```
//!
//! What cannot be written or removed, because the disk is full, is remembered by its name, and done with the next change or after a pause
//! ([`CertificateFiles::keep_up`]): else a restart without the server would begin with what was before.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::edge::EdgeCertificate;
use blocking_work::blocking;
use display::Repeated;
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::limits::KEEP_RETRY;

/// A certificate with its key.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct CertificateFile(EdgeCertificate);

impl StateFormat for CertificateFile {
    const VERSION: u32 = 1;
}

/// Which kind of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Those that the server keeps, by name.
    Kept,
    /// Those of the ingress CA, by host.
    Issued,
}

const ENDING: &str = "json";

/// What is to be on disk: a certificate, or none of that name.
pub(crate) type Wanted = Option<EdgeCertificate>;

/// The folders of an edge's certificates. Everything blocks, but what is `async`.
#[derive(Debug, Clone)]
pub(crate) struct CertificateFiles(Arc<Files>);

#[derive(Debug)]
struct Files {
    data_dir: PathBuf,
    /// What is not on disk as it is to be. Held while the disk is written: of two changes of one name the later one stays.
    behind: Mutex<BTreeMap<(Kind, String), Wanted>>,
    /// How many these are.
    left: watch::Sender<usize>,
}

impl CertificateFiles {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(Arc::new(Files {
            data_dir: data_dir.to_owned(),
            behind: Mutex::default(),
            left: watch::Sender::new(0),
        }))
    }

    /// Makes the files those of these changes, and of the ones that could not be made before. What cannot be made now is remembered.
    pub(crate) fn keep(
        &self,
        kind: Kind,
        changes: impl IntoIterator<Item = (String, Wanted)>,
    ) -> Result<(), StateFileError> {
        let mut behind = self.0.behind.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, wanted) in changes {
            behind.insert((kind, name), wanted);
        }
        let mut failed = None;
        // What is removed makes room.
        for is_removal in [true, false] {
            behind.retain(|(kind, name), wanted| {
                let made = match wanted {
                    None if is_removal => self.remove(*kind, name),
                    Some(certificate) if !is_removal => self.write(*kind, name, certificate),
                    _ => return true,
                };
                match made {
                    Ok(()) => false,
                    Err(error) => {
                        failed.get_or_insert(error);
                        true
                    }
                }
            });
        }
        self.0.left.send_replace(behind.len());
        failed.map_or(Ok(()), Err)
    }

    /// Makes the files that could not be made before.
    pub(crate) fn catch_up(&self) -> Result<(), StateFileError> {
        self.keep(Kind::Kept, [])
    }

    /// How many files are not as they are to be.
    pub(crate) fn left(&self) -> usize {
        *self.0.left.borrow()
    }

    /// Tries what could not be made again after a pause, as often as it takes. Goes on for ever.
    pub(crate) async fn keep_up(&self) {
        let mut left = self.0.left.subscribe();
        let mut refused = Repeated::default();
        // The sender is here.
        while left.wait_for(|left| *left > 0).await.is_ok() {
            tokio::time::sleep(KEEP_RETRY).await;
            let files = self.clone();
            match blocking(move || files.catch_up()).await {
                Ok(()) => tracing::info!("all certificates are kept on disk again"),
                Err(error) => {
                    let error = display::chain(&error);
                    if refused.is_due(Instant::now(), &error) {
                        tracing::error!(
                            error,
                            left = self.left(),
                            "certificates still cannot be kept on disk; trying again"
                        );
                    }
                }
            }
        }
    }

    fn folder(&self, kind: Kind) -> PathBuf {
        self.0.data_dir.join(match kind {
            Kind::Kept => "certificates",
            Kind::Issued => "host-certificates",
        })
    }

    fn file(&self, kind: Kind, name: &str) -> PathBuf {
        self.folder(kind).join(format!("{name}.{ENDING}"))
    }

    /// Every certificate of a kind. One that cannot be read is set aside, and comes again from the server.
    pub(crate) fn read_all(
        &self,
        kind: Kind,
    ) -> Result<BTreeMap<String, EdgeCertificate>, StateFileError> {
        let folder = self.folder(kind);
        let failed = |source| StateFileError::Io {
            operation: "read",
            path: folder.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let is_one = path.extension().is_some_and(|ending| ending == ENDING);
            let name = path.file_stem().and_then(|name| name.to_str());
            let Some(name) = name.filter(|_| is_one) else {
                continue;
            };
            match state_file::read::<CertificateFile>(&path) {
                Ok(Some(CertificateFile(certificate))) => {
                    found.insert(name.to_owned(), certificate);
                }
                Ok(None) => {}
                Err(StateFileError::Format { path, source }) => {
                    let aside = state_file::set_aside(&path)?;
                    tracing::error!(
                        path = %path.display(), cause = %source, kept = %aside.display(),
                        "cannot use a certificate on disk; it comes again from the server"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Writes one. What failed is not remembered.
    pub(crate) fn write(
        &self,
        kind: Kind,
        name: &str,
        certificate: &EdgeCertificate,
    ) -> Result<(), StateFileError> {
        let file = CertificateFile(certificate.clone());
        state_file::write(&self.file(kind, name), &file)
    }

    /// Removes one, where it is there. What failed is not remembered.
    pub(crate) fn remove(&self, kind: Kind, name: &str) -> Result<(), StateFileError> {
        let path = self.file(kind, name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateFileError::Io {
                operation: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Removes all, those that could not be read too.
    pub(crate) fn remove_all(&self) -> Result<(), StateFileError> {
        let mut behind = self.0.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.clear();
        self.0.left.send_replace(0);
        for kind in [Kind::Kept, Kind::Issued] {
            let path = self.folder(kind);
            match std::fs::remove_dir_all(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateFileError::Io {
                        operation: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn one(text: &str) -> EdgeCertificate {
        EdgeCertificate {
            chain_pem: text.to_owned(),
            key_pem: text.to_owned(),
        }
    }

    #[test]
    fn a_certificate_is_a_file_that_only_its_owner_reads() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles::new(dir.path());
        assert!(files.read_all(Kind::Kept).unwrap().is_empty());
        files.write(Kind::Kept, "*.example.com", &one("a")).unwrap();
        files
            .write(Kind::Issued, "hello.localhost", &one("b"))
            .unwrap();
        for (folder, name) in [
            ("certificates", "*.example.com"),
            ("host-certificates", "hello.localhost"),
        ] {
            let path = dir.path().join(folder).join(format!("{name}.json"));
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let loaded = files.read_all(Kind::Kept).unwrap();
        assert_eq!(
            loaded.into_iter().collect::<Vec<_>>(),
            [("*.example.com".to_owned(), one("a"))]
        );
        std::fs::write(dir.path().join("certificates/broken.json"), "{").unwrap();
        assert_eq!(files.read_all(Kind::Kept).unwrap().len(), 1);
        files.remove(Kind::Kept, "*.example.com").unwrap();
        files.remove(Kind::Kept, "*.example.com").unwrap();
        assert!(files.read_all(Kind::Kept).unwrap().is_empty());
        assert_eq!(files.read_all(Kind::Issued).unwrap().len(), 1);
        files.remove_all().unwrap();
        files.remove_all().unwrap();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn what_could_not_be_written_or_removed_is_so_with_the_next_change() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles::new(dir.path());
        let folder = dir.path().join("certificates");
        let aside = dir.path().join("aside");
        let wanted = |text: &str| Some(one(text));
        files
            .keep(
                Kind::Kept,
                ["gone", "renewed"].map(|name| (name.to_owned(), wanted("before"))),
            )
            .unwrap();
        // Nothing can be written or removed where the folder is a file.
        std::fs::rename(&folder, &aside).unwrap();
        std::fs::write(&folder, "").unwrap();
        let changes = [
            ("gone", None),
            ("renewed", wanted("after")),
            ("new", wanted("a")),
            ("short", wanted("b")),
        ];
        let changes = changes.map(|(name, wanted)| (name.to_owned(), wanted));
        files.keep(Kind::Kept, changes).unwrap_err();
        assert_eq!(files.left(), 4);
        files
            .keep(Kind::Kept, [("short".to_owned(), None)])
            .unwrap_err();
        files
            .keep(Kind::Issued, [("host".to_owned(), wanted("c"))])
            .unwrap_err();
        assert_eq!(files.left(), 4, "what could be written is");
        assert_eq!(files.read_all(Kind::Issued).unwrap().len(), 1);
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&aside, &folder).unwrap();
        files
            .keep(Kind::Kept, [("next".to_owned(), wanted("d"))])
            .unwrap();
        assert_eq!(files.left(), 0);
        let all = files.read_all(Kind::Kept).unwrap();
        let all: Vec<_> = (all.iter())
            .map(|(name, pem)| (name.as_str(), pem.key_pem.as_str()))
            .collect();
        assert_eq!(all, [("new", "a"), ("next", "d"), ("renewed", "after")]);
        // Of an edge that was revoked nothing is written later.
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "").unwrap();
        files
            .keep(Kind::Kept, [("late".to_owned(), wanted("e"))])
            .unwrap_err();
        files.remove_all().unwrap_err();
        std::fs::remove_file(&folder).unwrap();
        files.catch_up().unwrap();
        assert!(files.read_all(Kind::Kept).unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_written_is_tried_again_after_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles::new(dir.path());
        let folder = dir.path().join("certificates");
        std::fs::write(&folder, "").unwrap();
        let change = ("a".to_owned(), Some(one("a")));
        files.keep(Kind::Kept, [change]).unwrap_err();
        let (up, began) = (files.clone(), Instant::now());
        let up = tokio::spawn(async move { up.keep_up().await });
        // In vain twice, and no more often than that.
        tokio::time::sleep(KEEP_RETRY * 5 / 2).await;
        assert_eq!(files.left(), 1);
        std::fs::remove_file(&folder).unwrap();
        let mut left = files.0.left.subscribe();
        left.wait_for(|left| *left == 0).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), (KEEP_RETRY * 3).as_secs());
        assert_eq!(files.read_all(Kind::Kept).unwrap().len(), 1);
        up.abort();
    }

    #[test]
    fn a_certificates_file_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<CertificateFile>(&[include_str!(
            "fixtures/certificate/version-1.json"
        )]);
    }
}

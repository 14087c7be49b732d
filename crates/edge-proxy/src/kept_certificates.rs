//! The certificates on disk, for when the server is out of reach: a file each, readable by its owner only.
//!
//! ```text
//!   certificates/NAME.json         those that the server keeps
//!   host-certificates/HOST.json    those of the ingress CA
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use api::edge::EdgeCertificate;
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};

/// A certificate with its key.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct CertificateFile(EdgeCertificate);

impl StateFormat for CertificateFile {
    const VERSION: u32 = 1;
}

/// Which kind of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Those that the server keeps, by name.
    Kept,
    /// Those of the ingress CA, by host.
    Issued,
}

const ENDING: &str = "json";

/// The folders of an edge's certificates. Everything blocks.
#[derive(Debug, Clone)]
pub(crate) struct CertificateFiles(PathBuf);

impl CertificateFiles {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(data_dir.to_owned())
    }

    fn folder(&self, kind: Kind) -> PathBuf {
        self.0.join(match kind {
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

    /// Keeps one.
    pub(crate) fn write(
        &self,
        kind: Kind,
        name: &str,
        certificate: &EdgeCertificate,
    ) -> Result<(), StateFileError> {
        let file = CertificateFile(certificate.clone());
        state_file::write(&self.file(kind, name), &file)
    }

    /// Removes one, where it is there.
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
    fn a_certificates_file_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<CertificateFile>(&[include_str!(
            "fixtures/certificate/version-1.json"
        )]);
    }
}

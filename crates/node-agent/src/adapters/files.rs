//! The agent's own files, on the threads for blocking work.

use std::io;
use std::path::Path;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::host::Files;
use blocking_work::blocking;

/// The file system of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostFiles;

impl Files for HostFiles {
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Option<Vec<u8>>>> {
        let path = path.to_owned();
        blocking(move || state_file::read_bytes(&path)).boxed()
    }

    fn replace<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        let path = path.to_owned();
        blocking(move || state_file::replace(&path, &bytes)).boxed()
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking(move || std::fs::rename(from, to)).boxed()
    }

    fn list<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        let folder = folder.to_owned();
        blocking(move || {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut names = Vec::new();
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort_unstable();
            Ok(names)
        })
        .boxed()
    }

    fn remove_folder<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        let folder = folder.to_owned();
        blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .boxed()
    }
}

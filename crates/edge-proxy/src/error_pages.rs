//! Pages of the operator's own in place of the edge's short texts: `404.html`, or `4xx.html` for all of its kind, in one folder. `{{request_id}}` in them is
//! the id under which the request is in the log.
//!
//! The folder is looked at every few seconds, and read again when it changed. A page that cannot be used is named in the log, and the edge's own text is
//! in its place. Pages are files of the folder: a link may lead to what is not for the public, and who opens a FIFO or a device may wait for ever.

use std::collections::BTreeMap;
use std::fs::{File, FileType, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use blocking_work::blocking;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::limits::{ERROR_PAGES_LOOK, MAX_ERROR_PAGE_BYTES};

/// What the request id stands in the place of.
const REQUEST_ID: &str = "{{request_id}}";

/// A page, in pieces between which the request id stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page(Vec<String>);

impl Page {
    fn of(text: &str) -> Self {
        Self(text.split(REQUEST_ID).map(str::to_owned).collect())
    }

    /// With the id of this request.
    pub(crate) fn with(&self, request_id: &str) -> String {
        // A trusted proxy's may have any visible characters.
        let id = request_id.replace('&', "&amp;").replace('<', "&lt;");
        self.0.join(&id.replace('>', "&gt;").replace('\'', "&#39;"))
    }
}

/// Those that there are, by the names of their files.
#[derive(Debug, Default)]
pub(crate) struct ErrorPages(RwLock<BTreeMap<String, Arc<Page>>>);

/// A file as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: FileType,
    length: u64,
    changed: Option<SystemTime>,
}

impl Seen {
    fn of(file: &Metadata) -> Self {
        Self {
            kind: file.file_type(),
            length: file.len(),
            changed: file.modified().ok(),
        }
    }
}

/// What a folder has.
#[derive(Debug, Default, Clone)]
pub(crate) struct Folder {
    seen: BTreeMap<String, Seen>,
    pages: BTreeMap<String, Arc<Page>>,
}

impl ErrorPages {
    /// The page for a status: its own, else that of its kind.
    pub(crate) fn of(&self, status: u16) -> Option<Arc<Page>> {
        let pages = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if pages.is_empty() {
            return None;
        }
        let own = pages.get(&format!("{status}.html"));
        own.or_else(|| pages.get(&format!("{}xx.html", status / 100)))
            .cloned()
    }

    pub(crate) fn set(&self, folder: &Folder) {
        let mut pages = self.0.write().unwrap_or_else(PoisonError::into_inner);
        pages.clone_from(&folder.pages);
    }
}

/// Reads the pages of a folder again, as often as they change, for ever.
pub(crate) async fn follow(pages: &ErrorPages, path: PathBuf, mut folder: Folder) {
    let mut failure = None;
    loop {
        tokio::time::sleep(ERROR_PAGES_LOOK).await;
        let (looked_at, known) = (path.clone(), std::mem::take(&mut folder.seen));
        match blocking(move || read_changed(&looked_at, known)).await {
            Ok(Changed::Not(seen)) => folder.seen = seen,
            Ok(Changed::To(new)) => {
                folder = new;
                pages.set(&folder);
                tracing::info!(path = %path.display(), pages = folder.pages.len(), "new error pages");
                failure = None;
            }
            // Those that were read go on.
            Err(error) => {
                let reason = Some(error.to_string());
                if failure != reason {
                    tracing::warn!(path = %path.display(), %error, "cannot read the folder of error pages");
                }
                failure = reason;
            }
        }
    }
}

enum Changed {
    Not(BTreeMap<String, Seen>),
    To(Folder),
}

fn read_changed(path: &Path, known: BTreeMap<String, Seen>) -> io::Result<Changed> {
    if look(path)? == known {
        return Ok(Changed::Not(known));
    }
    read(path).map(Changed::To)
}

/// What a folder has under names of pages, whatever it is. Links are not followed.
fn look(path: &Path) -> io::Result<BTreeMap<String, Seen>> {
    let mut seen = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_page(&name)
            && let Ok(file) = entry.metadata()
        {
            seen.insert(name, Seen::of(&file));
        }
    }
    Ok(seen)
}

/// `404.html` or `4xx.html`: there are not many of them.
fn is_page(name: &str) -> bool {
    let Some(status) = name.strip_suffix(".html") else {
        return false;
    };
    matches!(status.as_bytes(), [b'4' | b'5', rest @ ..]
        if rest == b"xx" || (rest.len() == 2 && rest.iter().all(u8::is_ascii_digit)))
}

/// Reads a folder. Blocks.
pub(crate) fn read(path: &Path) -> io::Result<Folder> {
    let mut folder = Folder {
        seen: look(path)?,
        ..Folder::default()
    };
    for (name, seen) in &folder.seen {
        let file = path.join(name);
        match read_page(&file, seen.kind) {
            Ok(text) => drop(folder.pages.insert(name.clone(), Arc::new(Page::of(&text)))),
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(path = %file.display(), error, "cannot use an error page");
            }
        }
    }
    Ok(folder)
}

/// Reads a file that was seen to be of this kind. What is none is not opened: that may wait, or change something. Whatever is in its place when it is opened, no
/// link is followed, and nobody is waited for.
fn read_page(path: &Path, kind: FileType) -> io::Result<String> {
    if !kind.is_file() {
        return Err(no_file(kind));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(openat(CWD, path, flags | OFlags::NOCTTY, Mode::empty())?);
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        return Err(no_file(kind));
    }
    let mut text = Vec::new();
    // One byte more shows that there are too many.
    file.take(MAX_ERROR_PAGE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_ERROR_PAGE_BYTES {
        let error = format!("it has more than {MAX_ERROR_PAGE_BYTES} bytes");
        return Err(io::Error::other(error));
    }
    String::from_utf8(text).map_err(io::Error::other)
}

fn no_file(kind: FileType) -> io::Error {
    io::Error::other(if kind.is_symlink() {
        "it is a link, which is not followed"
    } else if kind.is_dir() {
        "it is a folder, and no file"
    } else if kind.is_fifo() || kind.is_socket() {
        "it is a pipe or a socket, and no file"
    } else {
        "it is a device, and no file"
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_page_is_of_its_status_or_of_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
        write("404.html", b"<p>{{request_id}}</p><i>{{request_id}}</i>");
        write("4xx.html", b"any");
        write("503.html", b"\xff");
        write("502.html", &vec![b'x'; MAX_ERROR_PAGE_BYTES as usize + 1]);
        for other in [
            "200.html",
            "40.html",
            "4x4.html",
            "404.htm",
            "404.html~",
            "x.html",
        ] {
            write(other, b"never");
        }
        let pages = ErrorPages::default();
        assert_eq!(pages.of(404), None);
        pages.set(&read(dir.path()).unwrap());
        let text = |status| pages.of(status).map(|page| page.with("<a&'>"));
        let id = "&lt;a&amp;&#39;&gt;";
        assert_eq!(text(404).unwrap(), format!("<p>{id}</p><i>{id}</i>"));
        assert_eq!(text(429).unwrap(), "any");
        assert_eq!([text(502), text(503), text(504)], [None, None, None]);
        // What is the same is not read again; what changed is.
        let known = look(dir.path()).unwrap();
        assert!(matches!(
            read_changed(dir.path(), known.clone()),
            Ok(Changed::Not(_))
        ));
        write("504.html", b"late");
        let Ok(Changed::To(folder)) = read_changed(dir.path(), known) else {
            panic!("it changed");
        };
        pages.set(&folder);
        assert_eq!(text(504).unwrap(), "late");
        assert!(read(&dir.path().join("none")).is_err());
    }

    /// A folder with what an app of the operator's, or somebody else, may have put there.
    #[test]
    fn what_is_no_file_of_the_folder_is_no_page_and_is_named_in_the_log() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("400.html"), "own").unwrap();
        let secret = outside.path().join("key.pem");
        std::fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, at("404.html")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("405.html")).unwrap();
        mknodat(CWD, at("500.html"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        std::fs::create_dir(at("501.html")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("502.html")).unwrap();
        // It is read apart: who waits for a FIFO waits for ever.
        let (told, come) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        std::thread::spawn(move || {
            let (log, _guard) = crate::tests::logged();
            let folder = read(&path).unwrap();
            let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
            told.send((folder, log)).unwrap();
        });
        let (folder, log) = come
            .recv_timeout(std::time::Duration::from_secs(10))
            .unwrap();
        assert_eq!(folder.pages.keys().collect::<Vec<_>>(), ["400.html"]);
        for name in ["404.html", "405.html", "500.html", "501.html", "502.html"] {
            let line = log.lines().find(|line| line.contains(name));
            assert!(
                line.is_some_and(|line| line.contains("WARN")),
                "{name}: {log}"
            );
        }
        // It is not read, and named, again as long as it is the same.
        let changed = read_changed(dir.path(), folder.seen).unwrap();
        assert!(matches!(changed, Changed::Not(_)));
    }
}

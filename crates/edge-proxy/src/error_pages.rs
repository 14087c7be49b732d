//! Pages of the operator's own in place of the edge's short texts: `404.html`, or `4xx.html` for all of its kind, in one folder. `{{request_id}}` in them is
//! the id under which the request is in the log.
//!
//! The folder is looked at every few seconds, and read again when it changed. A page that cannot be used is named in the log, and the edge's own text is
//! in its place.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use blocking_work::blocking;

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

/// A file as it was seen: its length, and when it was changed.
type Seen = (u64, Option<SystemTime>);

/// What a folder has.
#[derive(Debug, Default)]
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

/// The files of a folder that are pages.
fn look(path: &Path) -> io::Result<BTreeMap<String, Seen>> {
    let mut seen = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_page(&name)
            && let Ok(file) = std::fs::metadata(entry.path())
        {
            seen.insert(name, (file.len(), file.modified().ok()));
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
    for (name, (length, _)) in &folder.seen {
        let file = path.join(name);
        let text = if *length > MAX_ERROR_PAGE_BYTES {
            Err(format!("it has more than {MAX_ERROR_PAGE_BYTES} bytes"))
        } else {
            std::fs::read_to_string(&file).map_err(|error| error.to_string())
        };
        match text {
            Ok(text) => drop(folder.pages.insert(name.clone(), Arc::new(Page::of(&text)))),
            Err(error) => {
                tracing::warn!(path = %file.display(), error, "cannot use an error page");
            }
        }
    }
    Ok(folder)
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
}

//! From the names in archives to the components of a path in the image.

use crate::error::EntryProblem;
use crate::limits::{MAX_NAME_BYTES, MAX_PATH_BYTES};

/// The components of an entry's name, or of a hard link's target, from the root on; empty for the root itself. A
/// leading `/` is the image's root, and `a/../b` is `b`, as docker, containerd and umoci have it.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryProblem> {
    if path.is_empty() {
        return Err(EntryProblem::EmptyName);
    }
    if path.contains(&0) {
        return Err(EntryProblem::NulInPath);
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(EntryProblem::PathTooLong);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop().ok_or(EntryProblem::AboveRoot)?),
            long if long.len() > MAX_NAME_BYTES => return Err(EntryProblem::PathTooLong),
            component => components.push(component),
        }
    }
    Ok(components)
}

/// The meaning of a name, by the image spec's reserved names and those of aufs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// An ordinary name.
    Ordinary,
    /// Hides this name in the lower layers.
    Whiteout(&'a [u8]),
    /// Hides everything that the lower layers have in this directory.
    Opaque,
    /// A file that hard links of this layer have as their target by this name; it has no name in the image. Docker's
    /// own layers from the years of aufs have them.
    AufsLink(&'a [u8]),
    /// A file of aufs's own, which is no part of the image.
    Aufs,
}

const PREFIX: &[u8] = b".wh.";
/// Of aufs's own names and of the opaque whiteout.
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The directory at the root for [`Meaning::AufsLink`].
const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// Recognises the reserved names.
pub(crate) fn meaning<'a>(components: &[&'a [u8]]) -> Result<Meaning<'a>, EntryProblem> {
    let malformed = |what| Err(EntryProblem::Whiteout { what });
    let Some((last, above)) = components.split_last() else {
        return Ok(Meaning::Ordinary);
    };
    let is_aufs = |name: &[u8]| name.starts_with(META_PREFIX) && name != OPAQUE;
    match above {
        [AUFS_LINKS] => return Ok(Meaning::AufsLink(last)),
        above if above.iter().any(|name| is_aufs(name)) => return Ok(Meaning::Aufs),
        above if above.iter().any(|name| name.starts_with(PREFIX)) => {
            return malformed("it is used as a directory");
        }
        _ if is_aufs(last) => return Ok(Meaning::Aufs),
        _ => {}
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Meaning::Ordinary),
        Some(_) if *last == OPAQUE => Ok(Meaning::Opaque),
        Some(b"") => malformed("it names nothing"),
        Some(b"." | b"..") => malformed("it names a directory by dots"),
        Some(name) => Ok(Meaning::Whiteout(name)),
    }
}

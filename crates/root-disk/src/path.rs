//! From the names in archives to the components of a path in the image.

use crate::error::EntryProblem;
use crate::limits::{MAX_NAME_BYTES, MAX_PATH_BYTES};

/// The components of an entry's name from the root on; empty for the root itself.
pub(crate) fn of_entry(name: &[u8]) -> Result<Vec<&[u8]>, EntryProblem> {
    if name.first() == Some(&b'/') && !name.iter().all(|byte| *byte == b'/') {
        return Err(EntryProblem::AbsoluteName);
    }
    components(name)
}

/// The components of a hard link's target. Some builders write it with a leading `/`.
pub(crate) fn of_link_target(target: &[u8]) -> Result<Vec<&[u8]>, EntryProblem> {
    components(target)
}

fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryProblem> {
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
            b".." => return Err(EntryProblem::ParentInPath),
            long if long.len() > MAX_NAME_BYTES => return Err(EntryProblem::PathTooLong),
            component => components.push(component),
        }
    }
    Ok(components)
}

/// The meaning of the last component of a name, by the image spec's reserved names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteout<'a> {
    /// An ordinary name.
    No,
    /// Hides this name in the lower layers.
    Name(&'a [u8]),
    /// Hides everything that the lower layers have in this directory (opaque).
    Opaque,
}

const PREFIX: &[u8] = b".wh.";

/// Recognises the reserved names.
pub(crate) fn whiteout<'a>(components: &[&'a [u8]]) -> Result<Whiteout<'a>, EntryProblem> {
    let malformed = |what| Err(EntryProblem::Whiteout { what });
    let Some((last, above)) = components.split_last() else {
        return Ok(Whiteout::No);
    };
    if above.iter().any(|component| component.starts_with(PREFIX)) {
        return malformed("it is used as a directory");
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Whiteout::No),
        Some(b".wh..opq") => Ok(Whiteout::Opaque),
        Some(b"") => malformed("it names nothing"),
        Some(b"." | b"..") => malformed("it names a directory by dots"),
        Some(name) if name.starts_with(PREFIX) => malformed("it names a whiteout"),
        Some(name) => Ok(Whiteout::Name(name)),
    }
}

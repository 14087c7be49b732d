//! Path resolution in the tree, through the image's symlinks, confined to the tree's root.

use crate::error::EntryProblem;
use crate::limits::{MAX_SYMLINK_STEPS, MAX_SYMLINKS};
use crate::tree::{Kind, NodeId, Tree};

/// The result of path resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolved {
    Directory(NodeId),
    Missing(Missing),
}

/// A component of the path itself does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    /// The directory that would contain it.
    pub(crate) directory: NodeId,
    /// Components of the path from the missing one on.
    pub(crate) left: usize,
}

impl Tree {
    /// Resolves components from a directory on. With `touch`, every name on the way is marked as an entry of
    /// that layer. A symlink that leads to nothing, to something other than a directory, or above the root,
    /// is refused: an entry below it is malformed or hostile.
    pub(crate) fn resolve(
        &mut self,
        from: NodeId,
        components: &[&[u8]],
        touch: Option<u16>,
    ) -> Result<Resolved, EntryProblem> {
        let mut at = from;
        let mut symlinks = 0;
        for (done, component) in components.iter().enumerate() {
            let Some(next) = self.step(at, component, touch) else {
                return Ok(Resolved::Missing(Missing {
                    directory: at,
                    left: components.len() - done,
                }));
            };
            at = match &self.node(next).kind {
                Kind::Directory(_) => next,
                Kind::Symlink { .. } => self.follow(at, next, component, touch, &mut symlinks)?,
                _ => return Err(not_through(component, "no directory")),
            };
        }
        Ok(Resolved::Directory(at))
    }

    /// Follows a symlink, and those in its target, to a directory.
    fn follow(
        &mut self,
        from: NodeId,
        symlink: NodeId,
        component: &[u8],
        touch: Option<u16>,
        symlinks: &mut u32,
    ) -> Result<NodeId, EntryProblem> {
        let mut at = from;
        // Targets that are not yet resolved, the current one last; each with the number of resolved components.
        let mut targets: Vec<(Box<[u8]>, usize)> = Vec::new();
        let mut next = Some(symlink);
        for _ in 0..MAX_SYMLINK_STEPS {
            if let Some(symlink) = next.take() {
                *symlinks += 1;
                if *symlinks > MAX_SYMLINKS {
                    return Err(EntryProblem::SymlinkLoop);
                }
                let Kind::Symlink { target, .. } = &self.node(symlink).kind else {
                    return Err(not_through(component, "no directory"));
                };
                if target.first() == Some(&b'/') {
                    at = Tree::ROOT;
                }
                targets.push((target.clone(), 0));
            }
            let Some((target, walked)) = targets.last_mut() else {
                return Ok(at);
            };
            let rest = &target[*walked..];
            if rest.is_empty() {
                targets.pop();
                continue;
            }
            let length = rest
                .iter()
                .position(|byte| *byte == b'/')
                .unwrap_or(rest.len());
            let name = rest[..length].to_vec();
            *walked += (length + 1).min(rest.len());
            match name.as_slice() {
                b"" | b"." => {}
                b".." => {
                    at = self
                        .directory(at)
                        .and_then(|directory| directory.parent)
                        .ok_or_else(|| EntryProblem::LeavesImage {
                            through: shown(component),
                        })?;
                }
                name => {
                    let child = self
                        .step(at, name, touch)
                        .ok_or_else(|| not_through(component, "a symlink to nothing"))?;
                    match &self.node(child).kind {
                        Kind::Directory(_) => at = child,
                        Kind::Symlink { .. } => next = Some(child),
                        _ => return Err(not_through(component, "a symlink to no directory")),
                    }
                }
            }
        }
        Err(EntryProblem::SymlinkLoop)
    }

    fn step(&mut self, at: NodeId, name: &[u8], touch: Option<u16>) -> Option<NodeId> {
        let child = self.directory_mut(at)?.children.get_mut(name)?;
        if let Some(layer) = touch {
            child.layer = layer;
        }
        Some(child.node)
    }
}

fn not_through(component: &[u8], what: &'static str) -> EntryProblem {
    EntryProblem::NotThroughDirectory {
        through: shown(component),
        what,
    }
}

fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

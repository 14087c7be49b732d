//! Path resolution in the tree, as the kernel resolves a path in the image: through the image's symlinks, and with a
//! `..` in a symlink that ends at the root. Nothing leads out of the tree.

use std::borrow::Cow;

use crate::error::EntryProblem;
use crate::limits::{MAX_SYMLINK_STEPS, MAX_SYMLINKS};
use crate::tree::{Kind, NodeId, Tree};

/// A path that is being resolved to a directory. [`Walk::advance`] stops where a directory is missing; its caller makes
/// it and goes on with [`Walk::enter`], or gives up.
#[derive(Debug)]
pub(crate) struct Walk<'p> {
    /// How far it is.
    at: NodeId,
    /// Components that are left, the next one last: those of the path and those of symlinks on it.
    left: Vec<Cow<'p, [u8]>>,
    symlinks: u32,
    /// Components of symlinks so far.
    steps: u32,
}

/// Where a walk stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At its end, which is this directory.
    Directory(NodeId),
    /// At a name that does not exist.
    Missing {
        /// The directory that would contain it.
        directory: NodeId,
        /// The name.
        name: Vec<u8>,
    },
}

impl<'p> Walk<'p> {
    /// Begins at the root.
    pub(crate) fn new(components: &[&'p [u8]]) -> Self {
        let left = components.iter().rev();
        Self {
            at: Tree::ROOT,
            left: left.map(|component| Cow::Borrowed(*component)).collect(),
            symlinks: 0,
            steps: 0,
        }
    }

    /// Walks as far as there are directories. With `touch`, every name on the way is marked as an entry of that layer.
    ///
    /// # Errors
    /// The path leads through something other than a directory, or through too many symlinks.
    pub(crate) fn advance(
        &mut self,
        tree: &mut Tree,
        touch: Option<u16>,
    ) -> Result<Stop, EntryProblem> {
        while let Some(component) = self.left.pop() {
            let name = component.as_ref();
            match name {
                b"" | b"." => continue,
                b".." => {
                    let parent = tree.directory(self.at).and_then(|at| at.parent);
                    // The root is its own parent.
                    self.at = parent.unwrap_or(Tree::ROOT);
                    continue;
                }
                _ => {}
            }
            let Some(child) = tree
                .directory_mut(self.at)
                .and_then(|at| at.children.get_mut(name))
            else {
                return Ok(Stop::Missing {
                    directory: self.at,
                    name: name.to_vec(),
                });
            };
            if let Some(layer) = touch {
                child.layer = layer;
            }
            let next = child.node;
            match &tree.node(next).kind {
                Kind::Directory(_) => self.at = next,
                Kind::Symlink { target, .. } => self.follow(target)?,
                _ => {
                    return Err(EntryProblem::NotThroughDirectory {
                        through: name.escape_ascii().to_string(),
                        what: "no directory",
                    });
                }
            }
        }
        Ok(Stop::Directory(self.at))
    }

    /// Goes on from a directory that was missing and was made.
    pub(crate) fn enter(&mut self, made: NodeId) {
        self.at = made;
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), EntryProblem> {
        self.symlinks += 1;
        let parts = target.split(|byte| *byte == b'/').rev();
        for part in parts {
            self.steps += 1;
            self.left.push(Cow::Owned(part.to_vec()));
        }
        if self.symlinks > MAX_SYMLINKS || self.steps > MAX_SYMLINK_STEPS {
            return Err(EntryProblem::SymlinkLoop);
        }
        if target.first() == Some(&b'/') {
            self.at = Tree::ROOT;
        }
        Ok(())
    }
}

//! Applies layers on top of each other as the OCI image spec says (image-spec, layer.md), in one pass from the
//! base up.
//!
//! All paths are resolved in the tree in memory, through the image's own symlinks and never
//! through the host. Where the spec is silent, docker and containerd are followed: directories without an entry are
//! made, also where a symlink leads to nothing; a whiteout is one by its name, whatever its type; what aufs wrote for
//! itself is left out. They are owned by root, with mode 0755 and time zero. The metadata of a hard link's entry are
//! ignored; attributes of overlayfs are left out.

use std::collections::BTreeMap;

use crate::error::{DiskError, EntryProblem, LayerError, OverLimit};
use crate::ext4::{BlockWriter, Content, xattr};
use crate::limits::{Limits, MAX_DEPTH, MAX_LINKS, MAX_NAME_BYTES, MAX_PATH_BYTES, within};
use crate::path::{self, Meaning};
use crate::resolve::{Stop, Walk};
use crate::tar::{Archive, Chunks, Entry, EntryKind};
use crate::tree::{Blocks, Child, Directory, Extent, Kind, Metadata, Node, NodeId, Tree};

/// Memory of a name in a directory besides its own bytes.
const NAME_MEMORY: u64 = 64;

/// An image that is being merged.
#[derive(Debug)]
pub(crate) struct Merger<'a> {
    pub(crate) tree: Tree,
    pub(crate) writer: BlockWriter,
    /// Blocks of removed content.
    pub(crate) freed: Vec<Extent>,
    limits: &'a Limits,
    /// The layer that is being applied.
    layer: u16,
    /// Files of this layer that only its hard links name ([`Meaning::AufsLink`]). Each has one link from here.
    aufs_links: BTreeMap<Vec<u8>, NodeId>,
    entries: u64,
    file_bytes: u64,
    tree_bytes: u64,
}

/// Why a layer was not applied.
#[derive(Debug)]
pub(crate) enum MergeError {
    /// The layer is refused.
    Layer(LayerError),
    /// The disk cannot be written.
    Disk(DiskError),
}

impl From<LayerError> for MergeError {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

impl From<OverLimit> for MergeError {
    fn from(error: OverLimit) -> Self {
        Self::Layer(error.into())
    }
}

impl From<DiskError> for MergeError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::OverLimit(limit) => Self::Layer(limit.into()),
            error => Self::Disk(error),
        }
    }
}

impl<'a> Merger<'a> {
    pub(crate) fn new(writer: BlockWriter, limits: &'a Limits) -> Self {
        Self {
            tree: Tree::new(),
            writer,
            freed: Vec::new(),
            limits,
            layer: 0,
            aufs_links: BTreeMap::new(),
            entries: 0,
            file_bytes: 0,
            tree_bytes: 0,
        }
    }

    /// Applies the layer with this number on top of the layers before it.
    pub(crate) fn apply<C: Chunks>(
        &mut self,
        layer: u16,
        archive: &mut Archive<C>,
    ) -> Result<(), MergeError> {
        self.layer = layer;
        while let Some(entry) = archive.next_entry()? {
            self.entries += 1;
            within(self.entries, self.limits.entries, "entries", "entries")?;
            let refused = |name: &[u8], source| LayerError::Entry {
                name: name.escape_ascii().to_string(),
                source,
            };
            match self
                .place(&entry)
                .map_err(|source| refused(&entry.name, source))?
            {
                Placed::Done => {}
                Placed::At { directory, name } => {
                    let name = name.to_vec();
                    if let Some(node) = self.add(archive, entry, directory)? {
                        self.insert(directory, &name, node);
                    }
                }
                Placed::AufsLink(name) => {
                    let name = name.to_vec();
                    if let Some(node) = self.add(archive, entry, Tree::ROOT)? {
                        self.keep_aufs_link(name, node);
                    }
                }
            }
            within(
                self.tree_bytes,
                self.limits.tree_bytes,
                "tree_bytes",
                "bytes of memory",
            )?;
        }
        for node in std::mem::take(&mut self.aufs_links).into_values() {
            self.detach(node);
        }
        Ok(())
    }

    fn keep_aufs_link(&mut self, name: Vec<u8>, node: NodeId) {
        self.tree_bytes += name.len() as u64 + NAME_MEMORY;
        self.tree.node_mut(node).links += 1;
        if let Some(replaced) = self.aufs_links.insert(name, node) {
            self.detach(replaced);
        }
    }

    /// Applies entries that need no content: whiteouts, the root, hard links, existing directories. For other entries
    /// returns the directory and the name.
    fn place<'e>(&mut self, entry: &'e Entry) -> Result<Placed<'e>, EntryProblem> {
        let components = path::components(&entry.name)?;
        match path::meaning(&components)? {
            Meaning::Ordinary => {}
            Meaning::AufsLink(name) if matches!(entry.kind, EntryKind::File { .. }) => {
                return Ok(Placed::AufsLink(name));
            }
            Meaning::AufsLink(_) | Meaning::Aufs => return Ok(Placed::Done),
            Meaning::Opaque => {
                self.hide(&components[..components.len() - 1], None)?;
                return Ok(Placed::Done);
            }
            Meaning::Whiteout(name) => {
                self.hide(&components[..components.len() - 1], Some(name))?;
                return Ok(Placed::Done);
            }
        }
        let Some((name, above)) = components.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(EntryProblem::RootNotDirectory);
            }
            self.tree.node_mut(Tree::ROOT).metadata = metadata(entry)?;
            return Ok(Placed::Done);
        };
        if matches!(entry.kind, EntryKind::File { .. }) && entry.name.ends_with(b"/") {
            return Err(EntryProblem::SlashAfterFile);
        }
        check_kind(&entry.kind)?;
        // The target of a hard link first, so that a refused link changes nothing in the tree.
        let target = match &entry.kind {
            EntryKind::HardLink { target } => Some(self.hard_link_target(target)?),
            _ => None,
        };
        let directory = self.directory_for(above)?;
        let existing = self
            .tree
            .directory(directory)
            .and_then(|d| d.children.get(*name))
            .copied();
        if let Some(target) = target {
            self.link(directory, name, target, existing, entry)?;
            return Ok(Placed::Done);
        }
        if let Some(child) = existing
            && entry.kind == EntryKind::Directory
            && self.tree.directory(child.node).is_some()
        {
            self.tree.node_mut(child.node).metadata = metadata(entry)?;
            self.touch(directory, name, child.node);
            return Ok(Placed::Done);
        }
        if let Some(child) = existing {
            self.detach(child.node);
        }
        Ok(Placed::At { directory, name })
    }

    /// Makes a new node for a directory; none for a hard link, which was linked before.
    fn add<C: Chunks>(
        &mut self,
        archive: &mut Archive<C>,
        entry: Entry,
        directory: NodeId,
    ) -> Result<Option<NodeId>, MergeError> {
        let metadata = metadata(&entry).map_err(|source| LayerError::Entry {
            name: entry.name.escape_ascii().to_string(),
            source,
        })?;
        let kind = match entry.kind {
            EntryKind::File { size } => self.write_content(archive, size)?,
            EntryKind::Directory => self.new_directory(directory),
            EntryKind::Symlink { target } => {
                self.tree_bytes += target.len() as u64;
                Kind::Symlink {
                    target: target.into(),
                    block: None,
                }
            }
            EntryKind::CharacterDevice { major, minor } => Kind::CharacterDevice { major, minor },
            EntryKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink { .. } => return Ok(None),
        };
        Ok(Some(self.new_node(metadata, kind)))
    }

    fn write_content<C: Chunks>(
        &mut self,
        archive: &mut Archive<C>,
        size: u64,
    ) -> Result<Kind, MergeError> {
        self.file_bytes = self.file_bytes.saturating_add(size);
        let allowed = self.limits.expanded_bytes.min(MAX_FILE_BYTES);
        within(self.file_bytes, allowed, "expanded_bytes", "bytes")?;
        let mut content = Content::default();
        while let Some((at, bytes)) = archive.next_content()? {
            content.skip_to(&mut self.writer, at)?;
            content.push(&mut self.writer, bytes)?;
            let memory = self.tree_bytes + content.memory();
            within(
                memory,
                self.limits.tree_bytes,
                "tree_bytes",
                "bytes of memory",
            )?;
        }
        let extents = content.finish(&mut self.writer)?;
        self.tree_bytes += size_of_val(extents.as_slice()) as u64;
        Ok(Kind::File {
            size,
            blocks: Blocks::of(extents),
        })
    }

    fn new_directory(&self, parent: NodeId) -> Kind {
        let depth = self
            .tree
            .directory(parent)
            .map_or(0, |directory| directory.depth + 1);
        Kind::Directory(Box::new(Directory {
            parent: Some(parent),
            depth,
            ..Directory::default()
        }))
    }

    fn new_node(&mut self, metadata: Metadata, kind: Kind) -> NodeId {
        let xattrs = metadata
            .xattrs
            .iter()
            .map(|xattr| xattr.name.len() + xattr.value.len() + 48);
        self.tree_bytes += (size_of::<Node>() + xattrs.sum::<usize>()) as u64;
        if matches!(kind, Kind::Directory(_)) {
            self.tree_bytes += size_of::<Directory>() as u64;
        }
        self.tree.add(metadata, kind)
    }

    /// Gives a node a name, which is free or belongs to a removed node.
    fn insert(&mut self, directory: NodeId, name: &[u8], node: NodeId) {
        self.tree_bytes += name.len() as u64 + NAME_MEMORY;
        self.tree.node_mut(node).links += 1;
        self.touch(directory, name, node);
    }

    /// Marks a name as an entry of this layer.
    fn touch(&mut self, directory: NodeId, name: &[u8], node: NodeId) {
        let child = Child {
            node,
            layer: self.layer,
        };
        if let Some(directory) = self.tree.directory_mut(directory) {
            if let Some(known) = directory.children.get_mut(name) {
                *known = child;
            } else {
                directory.children.insert(name.into(), child);
            }
        }
    }

    /// The directory with this path, created where it does not exist.
    fn directory_for(&mut self, components: &[&[u8]]) -> Result<NodeId, EntryProblem> {
        let mut walk = Walk::new(components);
        loop {
            match walk.advance(&mut self.tree, Some(self.layer))? {
                Stop::Directory(directory) => {
                    let depth = self
                        .tree
                        .directory(directory)
                        .map_or(0, |directory| directory.depth);
                    return if depth < MAX_DEPTH {
                        Ok(directory)
                    } else {
                        Err(EntryProblem::TooDeep)
                    };
                }
                Stop::Missing { directory, name } => {
                    // Of a symlink's target; those of the path were checked.
                    if name.len() > MAX_NAME_BYTES {
                        return Err(EntryProblem::PathTooLong);
                    }
                    let metadata = Metadata {
                        permissions: 0o755,
                        ..Metadata::default()
                    };
                    let kind = self.new_directory(directory);
                    let made = self.new_node(metadata, kind);
                    self.insert(directory, &name, made);
                    walk.enter(made);
                }
            }
        }
    }

    fn hard_link_target(&mut self, target: &[u8]) -> Result<NodeId, EntryProblem> {
        let refused = |what| EntryProblem::HardLinkTarget {
            target: target.escape_ascii().to_string(),
            what,
        };
        let components = path::components(target)?;
        match path::meaning(&components)? {
            Meaning::Ordinary => {}
            Meaning::AufsLink(name) => {
                let node = self.aufs_links.get(name);
                return node.copied().ok_or_else(|| refused("not there"));
            }
            Meaning::Whiteout(_) | Meaning::Opaque | Meaning::Aufs => {
                return Err(refused("a whiteout"));
            }
        }
        let Some((last, above)) = components.split_last() else {
            return Err(refused("a directory"));
        };
        // Symlinks on the way are followed; a symlink at its end is what the link names.
        let Stop::Directory(directory) = Walk::new(above).advance(&mut self.tree, None)? else {
            return Err(refused("not there"));
        };
        let child = self
            .tree
            .directory(directory)
            .and_then(|directory| directory.children.get(*last))
            .ok_or_else(|| refused("not there"))?;
        match &self.tree.node(child.node).kind {
            Kind::Directory(_) => Err(refused("a directory")),
            _ => Ok(child.node),
        }
    }

    fn link(
        &mut self,
        directory: NodeId,
        name: &[u8],
        target: NodeId,
        existing: Option<Child>,
        entry: &Entry,
    ) -> Result<(), EntryProblem> {
        if let Some(child) = existing {
            if child.node == target {
                if self.tree.node(target).links > 1 {
                    self.touch(directory, name, target);
                    return Ok(());
                }
                let target = match &entry.kind {
                    EntryKind::HardLink { target } => target.escape_ascii().to_string(),
                    _ => String::new(),
                };
                return Err(EntryProblem::HardLinkTarget {
                    target,
                    what: "itself",
                });
            }
            // The target may be below a directory that is replaced by the link.
            self.detach(child.node);
            if matches!(self.tree.node(target).kind, Kind::Gone) {
                return Err(EntryProblem::HardLinkTarget {
                    target: entry.name.escape_ascii().to_string(),
                    what: "replaced by the link",
                });
            }
        }
        if self.tree.node(target).links >= MAX_LINKS {
            return Err(EntryProblem::TooManyLinks);
        }
        self.insert(directory, name, target);
        Ok(())
    }

    /// Hides what lower layers have in a directory, by this name or all of it; what this layer has stays, wherever in
    /// the archive it is.
    fn hide(&mut self, directory: &[&[u8]], name: Option<&[u8]>) -> Result<(), EntryProblem> {
        let walked = Walk::new(directory).advance(&mut self.tree, None)?;
        let Stop::Directory(directory) = walked else {
            // Nothing is there that could be hidden.
            return Ok(());
        };
        let Some(name) = name else {
            self.hide_lower(directory);
            return Ok(());
        };
        let child = self
            .tree
            .directory(directory)
            .and_then(|d| d.children.get(name))
            .copied();
        match child {
            Some(child) if child.layer < self.layer => {
                if let Some(directory) = self.tree.directory_mut(directory) {
                    directory.children.remove(name);
                }
                self.detach(child.node);
            }
            Some(child) => self.hide_lower(child.node),
            None => {}
        }
        Ok(())
    }

    /// Removes from a directory, at any depth, what only lower layers named.
    fn hide_lower(&mut self, directory: NodeId) {
        let mut left = vec![directory];
        while let Some(id) = left.pop() {
            let layer = self.layer;
            let Some(directory) = self.tree.directory_mut(id) else {
                continue;
            };
            // Whatever was added since is this layer's own.
            if directory.cleared_by.replace(layer) == Some(layer) {
                continue;
            }
            let mut hidden = Vec::new();
            directory.children.retain(|_, child| {
                let keep = child.layer >= layer;
                if keep {
                    left.push(child.node);
                } else {
                    hidden.push(child.node);
                }
                keep
            });
            for node in hidden {
                self.detach(node);
            }
        }
    }

    /// A name of this node is no more; with its last one, and all of a directory's, its blocks are free.
    fn detach(&mut self, node: NodeId) {
        let mut left = vec![node];
        while let Some(id) = left.pop() {
            let node = self.tree.node_mut(id);
            node.links = node.links.saturating_sub(1);
            if node.links > 0 {
                continue;
            }
            node.metadata.xattrs = Vec::new();
            match std::mem::replace(&mut node.kind, Kind::Gone) {
                Kind::Directory(directory) => {
                    left.extend(directory.children.values().map(|child| child.node));
                }
                Kind::File { blocks, .. } => self.freed.extend(blocks.extents),
                _ => {}
            }
        }
    }
}

/// The largest file that ext4 can have with these blocks, in bytes: 16 TiB.
const MAX_FILE_BYTES: u64 = (u32::MAX as u64) * 4096;

/// What is left to do for an entry.
enum Placed<'e> {
    Done,
    At {
        directory: NodeId,
        name: &'e [u8],
    },
    /// It is kept for the hard links that name it so.
    AufsLink(&'e [u8]),
}

fn check_kind(kind: &EntryKind) -> Result<(), EntryProblem> {
    match kind {
        EntryKind::Symlink { target }
            if target.is_empty() || target.len() > MAX_PATH_BYTES || target.contains(&0) =>
        {
            Err(EntryProblem::SymlinkTarget)
        }
        // Linux's numbers of devices have 12 and 20 bits.
        EntryKind::CharacterDevice { major, minor } | EntryKind::BlockDevice { major, minor }
            if *major >= 1 << 12 || *minor >= 1 << 20 =>
        {
            Err(EntryProblem::Number {
                field: "device number",
            })
        }
        _ => Ok(()),
    }
}

fn metadata(entry: &Entry) -> Result<Metadata, EntryProblem> {
    let mut xattrs = Vec::new();
    for (name, value) in &entry.xattrs {
        xattrs.extend(xattr::encode(name, value)?);
    }
    xattr::settle(&mut xattrs)?;
    let symlink = matches!(entry.kind, EntryKind::Symlink { .. });
    Ok(Metadata {
        // Linux gives symlinks this mode and no way to change it.
        permissions: if symlink { 0o777 } else { entry.permissions },
        uid: entry.uid,
        gid: entry.gid,
        modified: entry.modified,
        accessed: entry.accessed.unwrap_or(entry.modified),
        xattrs,
    })
}

//! The image's tree in memory: everything except the content of files, which is on the disk already.
//!
//! Names and targets are bytes. The number of a node is its index in one list; hard links are several names of
//! one number.

use std::collections::BTreeMap;

/// The index of a node in [`Tree::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

/// A time of an archive, which may be out of ext4's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    /// Since 1970, negative before.
    pub(crate) seconds: i64,
    /// 0 to 999 999 999, counted forward from `seconds`.
    pub(crate) nanoseconds: u32,
}

/// A run of blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block within the file.
    pub(crate) logical: u32,
    /// First block on the disk.
    pub(crate) physical: u32,
    /// Number of blocks.
    pub(crate) blocks: u32,
}

/// An extended attribute as ext4 names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    /// Number of the name's prefix (`user.`: 1).
    pub(crate) index: u8,
    /// The name without its prefix.
    pub(crate) name: Box<[u8]>,
    /// In ext4's format.
    pub(crate) value: Box<[u8]>,
}

/// The attributes of every kind of node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Metadata {
    /// The low twelve bits of the mode.
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Time,
    pub(crate) accessed: Time,
    /// In ext4's order.
    pub(crate) xattrs: Vec<Xattr>,
}

/// The blocks of a node's content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Blocks {
    /// The runs; or, where `depth` is not zero, the blocks of the extent tree below the inode.
    pub(crate) extents: Vec<Extent>,
    /// Levels of the extent tree below the inode.
    pub(crate) depth: u16,
    /// Blocks that the extent tree itself takes.
    pub(crate) tree_blocks: u32,
    /// Blocks of content.
    pub(crate) data_blocks: u32,
}

impl Blocks {
    /// The blocks of a content with these runs.
    pub(crate) fn of(extents: Vec<Extent>) -> Self {
        let data_blocks = extents.iter().map(|extent| extent.blocks).sum();
        Self {
            extents,
            depth: 0,
            tree_blocks: 0,
            data_blocks,
        }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) node: NodeId,
    /// The last layer that has an entry for it or below it. A whiteout spares entries of its own layer.
    pub(crate) layer: u16,
}

/// A directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Box<[u8]>, Child>,
    /// The parent directory; of the root: itself.
    pub(crate) parent: Option<NodeId>,
    /// Components from the root.
    pub(crate) depth: u32,
    /// The last layer whose opaque whiteout was applied here, if any; it is applied once.
    pub(crate) cleared_by: Option<u16>,
    /// Set when the directory is written.
    pub(crate) blocks: Blocks,
    /// Set when the directory is written.
    pub(crate) indexed: bool,
}

/// The kind of a node.
#[derive(Debug)]
pub(crate) enum Kind {
    Directory(Box<Directory>),
    File {
        size: u64,
        blocks: Blocks,
    },
    Symlink {
        target: Box<[u8]>,
        block: Option<u32>,
    },
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// Removed, and its content freed. It has no name.
    Gone,
}

/// A future inode.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) kind: Kind,
    /// Number of its names; not used for directories.
    pub(crate) links: u32,
    /// Its inode number; zero until it has one.
    pub(crate) number: u32,
    /// The block of its extended attributes, where they do not fit into the inode.
    pub(crate) xattr_block: Option<u32>,
}

/// The tree of an image.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
}

impl Tree {
    /// The root is the first node.
    pub(crate) const ROOT: NodeId = NodeId(0);

    /// A tree with only a root directory, owned by root.
    pub(crate) fn new() -> Self {
        let mut tree = Self { nodes: Vec::new() };
        tree.add(
            Metadata {
                permissions: 0o755,
                ..Metadata::default()
            },
            Kind::Directory(Box::default()),
        );
        tree
    }

    /// Adds a node without a name. The caller keeps the number of nodes within 32 bits.
    pub(crate) fn add(&mut self, metadata: Metadata, kind: Kind) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(Node {
            metadata,
            kind,
            links: 0,
            number: 0,
            xattr_block: None,
        });
        id
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// The directory with this number, if it is one.
    pub(crate) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// As [`Self::directory`], mutable.
    pub(crate) fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

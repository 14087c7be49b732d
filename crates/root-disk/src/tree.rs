//! The image's tree in memory: everything but the content of files, which is on the disk already.
//!
//! Names and targets are bytes. Nodes are numbered by their place in one list, so that hard links
//! are nothing but two names of one number.

use std::collections::BTreeMap;

/// A node's place in [`Tree::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

/// A point in time, as ext4 can hold it or not.
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
    /// How many.
    pub(crate) blocks: u32,
}

/// An extended attribute as ext4 names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    /// Stands for the name's prefix (`user.`: 1).
    pub(crate) index: u8,
    /// The name without its prefix.
    pub(crate) name: Box<[u8]>,
    /// In the form that ext4 stores.
    pub(crate) value: Box<[u8]>,
}

/// What all kinds of nodes have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Metadata {
    /// The low twelve bits of the mode.
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Time,
    pub(crate) accessed: Time,
    /// Sorted as ext4 wants them.
    pub(crate) xattrs: Vec<Xattr>,
}

/// Where the content of a node is.
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
    /// These runs, all of them content.
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
    /// The last layer that named it, or something below it. Whiteouts spare what their own layer named.
    pub(crate) layer: u16,
}

/// A directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Box<[u8]>, Child>,
    /// The directory it is in; of the root: itself.
    pub(crate) parent: Option<NodeId>,
    /// Components from the root.
    pub(crate) depth: u32,
    /// The last layer that hid what those below it have here, if any: it need not do so again.
    pub(crate) cleared_by: Option<u16>,
    /// Known when it has been written.
    pub(crate) blocks: Blocks,
    /// Known when it has been written.
    pub(crate) indexed: bool,
}

/// What a node is.
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
    /// Removed, its content freed. Nothing names it any more.
    Gone,
}

/// An inode to be.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) kind: Kind,
    /// Names of it, for all but directories.
    pub(crate) links: u32,
    /// Its inode number; zero until it has one.
    pub(crate) number: u32,
    /// Where its extended attributes are, when the inode has no room for them.
    pub(crate) xattr_block: Option<u32>,
}

/// The whole.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
}

impl Tree {
    /// The root is the first node.
    pub(crate) const ROOT: NodeId = NodeId(0);

    /// Nothing but a root that belongs to root.
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

    /// Adds a node that nothing names yet. The caller keeps the number of nodes within 32 bits.
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

    /// The same, to be changed.
    pub(crate) fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

//! The journal (jbd2) of a disk that outlives its writer, empty: its superblock, and blocks that are holes.

use crate::error::DiskError;
use crate::ext4::layout::BLOCK;
use crate::ext4::writer::{BlockWriter, append_extent};
use crate::tree::{Blocks, Kind, Metadata, Node};

/// The journal's number among the inodes.
pub(crate) const JOURNAL_INODE: u32 = 8;
const MAGIC: u32 = 0xc03b_3998;
/// A superblock of version 2.
const SUPERBLOCK_V2: u32 = 4;

/// A journal of so many blocks, the first of which is its superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Journal {
    blocks: u32,
}

impl Journal {
    /// As large as mke2fs makes it for a disk of this size: 4 MiB to 128 MiB.
    pub(crate) fn for_disk(size_bytes: u64) -> Self {
        const MIB: u64 = 1024 * 1024;
        let mib = match size_bytes / MIB {
            ..128 => 4,
            128..1024 => 16,
            1024..2048 => 32,
            2048..16_384 => 64,
            16_384.. => 128,
        };
        Self { blocks: mib * 256 }
    }

    /// Appends it; its inode.
    pub(crate) fn write(self, writer: &mut BlockWriter) -> Result<Node, DiskError> {
        let mut superblock = [0; BLOCK];
        let words = [
            MAGIC,
            SUPERBLOCK_V2,
            0,           // sequence of this block
            4096,        // bytes of a block
            self.blocks, // all of them
            1,           // the first of the log
            1,           // the first sequence in the log
            0,           // where the log begins: nowhere, it is empty
        ];
        for (at, word) in (0..).step_by(4).zip(words) {
            superblock[at..at + 4].copy_from_slice(&u32::to_be_bytes(word));
        }
        // One file system uses it.
        superblock[0x40..0x44].copy_from_slice(&1_u32.to_be_bytes());

        let mut runs = Vec::new();
        append_extent(&mut runs, 0, writer.append(&superblock)?);
        for logical in 1..self.blocks {
            append_extent(&mut runs, logical, writer.next());
            writer.leave_out()?;
        }
        Ok(Node {
            metadata: Metadata {
                permissions: 0o600,
                ..Metadata::default()
            },
            kind: Kind::File {
                size: u64::from(self.blocks) * BLOCK as u64,
                blocks: Blocks::of(runs),
            },
            links: 1,
            number: JOURNAL_INODE,
            xattr_block: None,
        })
    }
}

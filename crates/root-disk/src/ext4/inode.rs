//! One inode: 256 bytes, the last 96 of them for extended attributes.

use crate::ext4::bytes::{high16, high32, low16, low32, put16, put32};
use crate::ext4::checksum::{Seed, crc};
use crate::ext4::directory::TYPE_DIRECTORY;
use crate::ext4::layout::BLOCK;
use crate::ext4::{extents, xattr};
use crate::tree::{Blocks, Kind, Node, Time};

/// Bytes of an inode.
pub(crate) const INODE_BYTES: usize = 256;
/// Bytes of what ext4 added to the 128 of ext2.
const EXTRA_BYTES: u16 = 32;
const XATTRS_AT: usize = 128 + EXTRA_BYTES as usize;
/// Bytes of an inode for attributes.
pub(crate) const XATTR_AREA: usize = INODE_BYTES - XATTRS_AT;
/// A target of so many bytes is within the inode.
pub(crate) const FAST_SYMLINK_BYTES: usize = 59;

const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INDEXED: u32 = 0x1000;
/// A directory with more subdirectories than this does not count them (`dir_nlink`).
const MAX_SUBDIRECTORIES: u32 = 65_000 - 2;
/// Seconds since 1970 that 34 bits have room for.
const TIME_RANGE: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;

/// What the inode and the names of a kind of node say: the type in a mode, the type in a name.
pub(crate) fn types(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File { .. } | Kind::Gone => (0x8000, 1),
        Kind::Directory(_) => (0x4000, TYPE_DIRECTORY),
        Kind::CharacterDevice { .. } => (0x2000, 3),
        Kind::BlockDevice { .. } => (0x6000, 4),
        Kind::Fifo => (0x1000, 5),
        Kind::Symlink { .. } => (0xa000, 7),
    }
}

/// Encodes a node. `subdirectories` counts, for a directory.
pub(crate) fn encode(node: &Node, subdirectories: u32, seed: Seed) -> [u8; INODE_BYTES] {
    let mut inode = [0; INODE_BYTES];
    let metadata = &node.metadata;
    put16(&mut inode, 0x00, types(&node.kind).0 | metadata.permissions);
    put16(&mut inode, 0x02, low16(metadata.uid));
    put16(&mut inode, 0x18, low16(metadata.gid));
    put16(&mut inode, 0x78, high16(metadata.uid));
    put16(&mut inode, 0x7a, high16(metadata.gid));

    put16(&mut inode, 0x80, EXTRA_BYTES);
    // Accessed, changed, modified, created. An archive tells nothing of changes and creation.
    put_time(&mut inode, 0x08, 0x8c, metadata.accessed);
    put_time(&mut inode, 0x0c, 0x84, metadata.modified);
    put_time(&mut inode, 0x10, 0x88, metadata.modified);
    put_time(&mut inode, 0x90, 0x94, metadata.modified);

    let mut links = node.links;
    let mut flags = 0;
    let mut size = 0;
    let mut blocks = 0;
    let mut set_blocks = |inode: &mut [u8], content: &Blocks| {
        flags |= FLAG_EXTENTS;
        blocks += content.data_blocks + content.tree_blocks;
        inode[0x28..0x64].copy_from_slice(&extents::in_inode(content));
    };
    match &node.kind {
        Kind::Directory(directory) => {
            size = u64::from(directory.blocks.data_blocks) * BLOCK as u64;
            set_blocks(&mut inode, &directory.blocks);
            flags |= if directory.indexed { FLAG_INDEXED } else { 0 };
            links = if subdirectories > MAX_SUBDIRECTORIES {
                1
            } else {
                subdirectories + 2
            };
        }
        Kind::File {
            size: bytes,
            blocks,
        } => {
            size = *bytes;
            set_blocks(&mut inode, blocks);
        }
        Kind::Symlink { target, block } => {
            size = target.len() as u64;
            if let Some(block) = block {
                let mut content = Vec::new();
                super::writer::append_extent(&mut content, 0, *block);
                set_blocks(&mut inode, &Blocks::of(content));
            } else {
                inode[0x28..0x28 + target.len()].copy_from_slice(target);
            }
        }
        Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            if *major < 256 && *minor < 256 {
                put32(&mut inode, 0x28, (major << 8) | minor);
            } else {
                put32(
                    &mut inode,
                    0x2c,
                    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
                );
            }
        }
        Kind::Fifo | Kind::Gone => {}
    }
    if let Some(block) = node.xattr_block {
        blocks += 1;
        put32(&mut inode, 0x68, block);
    } else if !metadata.xattrs.is_empty() {
        xattr::fill_inode(&mut inode[XATTRS_AT..], &metadata.xattrs);
    }
    put16(&mut inode, 0x1a, low16(links));
    put32(&mut inode, 0x04, low32(size));
    put32(&mut inode, 0x6c, high32(size));
    // In sectors of 512 bytes. A disk is smaller than 2^32 of them times eight.
    let sectors = u64::from(blocks) * (BLOCK as u64 / 512);
    put32(&mut inode, 0x1c, low32(sectors));
    put16(&mut inode, 0x74, low16(high32(sectors)));
    put32(&mut inode, 0x20, flags);

    let checksum = crc(seed.of_inode(node.number), &inode);
    put16(&mut inode, 0x7c, low16(checksum));
    put16(&mut inode, 0x82, high16(checksum));
    inode
}

/// The low 32 bits of the seconds at one place; two more bits and the nanoseconds at another. What is out
/// of the range becomes its end, which has no nanoseconds, as with the kernel.
fn put_time(inode: &mut [u8], at: usize, extra_at: usize, time: Time) {
    let (first, last) = (*TIME_RANGE.start(), *TIME_RANGE.end());
    let seconds = time.seconds.clamp(first, last);
    let inside = first < seconds && seconds < last;
    let nanoseconds = if inside { time.nanoseconds } else { 0 };
    let low = low32(seconds.cast_unsigned());
    let epoch = high32((seconds - i64::from(low.cast_signed())).cast_unsigned()) & 3;
    put32(inode, at, low);
    put32(inode, extra_at, (nanoseconds << 2) | epoch);
}

//! The superblock and the group descriptors: written last.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::ext4::bytes::{low16, put16, put32};
use crate::ext4::checksum::{Seed, crc};
use crate::ext4::inode::INODE_BYTES;
use crate::ext4::journal::JOURNAL_INODE;
use crate::ext4::layout::{BLOCKS_PER_GROUP, FIRST_INODE};

/// Bytes of a superblock.
pub(crate) const SUPERBLOCK_BYTES: usize = 1024;
/// Where it is on the disk, in bytes.
pub(crate) const SUPERBLOCK_AT: usize = 1024;
/// Bytes of a group's descriptor.
pub(crate) const DESCRIPTOR_BYTES: usize = 32;

const COMPATIBLE: u32 = 0x0008 // ext_attr
    | 0x0020 // dir_index
    | 0x0200; // sparse_super2, with no backups: nothing is to be found in the middle of data
const INCOMPATIBLE: u32 = 0x0002 // filetype
    | 0x0040 // extent
    | 0x0200; // flex_bg: bitmaps and inode tables are anywhere
const READ_ONLY_COMPATIBLE: u32 = 0x0001 // sparse_super
    | 0x0002 // large_file
    | 0x0008 // huge_file
    | 0x0020 // dir_nlink
    | 0x0040 // extra_isize
    | 0x0400; // metadata_csum

/// What makes this file system this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uuid: [u8; 16],
    pub(crate) hash_seed: [u32; 4],
    pub(crate) label: [u8; 16],
}

/// The numbers of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) blocks: u32,
    pub(crate) free_blocks: u32,
    pub(crate) inodes: u32,
    pub(crate) free_inodes: u32,
    pub(crate) inodes_per_group: u32,
}

/// Encodes a superblock.
pub(crate) fn superblock(identity: &Identity, totals: Totals) -> [u8; SUPERBLOCK_BYTES] {
    let mut block = [0; SUPERBLOCK_BYTES];
    let words = [
        (0x00, totals.inodes),
        (0x04, totals.blocks),
        (0x0c, totals.free_blocks),
        (0x10, totals.free_inodes),
        (0x18, 2), // blocks of 1024 << 2 bytes
        (0x1c, 2), // and so the clusters
        (0x20, BLOCKS_PER_GROUP),
        (0x24, BLOCKS_PER_GROUP),
        (0x28, totals.inodes_per_group),
        (0x4c, 1), // with features
        (0x54, FIRST_INODE),
        (0x5c, COMPATIBLE),
        (0x60, INCOMPATIBLE),
        (0x64, READ_ONLY_COMPATIBLE),
        (0x100, 0x000c), // mount with extended attributes and ACLs
        (0x160, 2),      // names are hashed as unsigned bytes
    ];
    for (at, value) in words {
        put32(&mut block, at, value);
    }
    let halves = [
        (0x36, u16::MAX), // no check after a count of mounts
        (0x38, 0xef53),
        (0x3a, 1), // clean
        (0x3c, 1), // on errors: continue
        (0x58, low16(u32::try_from(INODE_BYTES).unwrap_or(0))),
        (0x15c, 32), // bytes of an inode beyond 128 that are in use
        (0x15e, 32),
    ];
    for (at, value) in halves {
        put16(&mut block, at, value);
    }
    block[0x68..0x78].copy_from_slice(&identity.uuid);
    block[0x78..0x88].copy_from_slice(&identity.label);
    for (at, word) in (0xec..).step_by(4).zip(identity.hash_seed) {
        put32(&mut block, at, word);
    }
    block[0xfc] = super::dirhash::HALF_MD4;
    block[0x174] = 4; // groups of a flex_bg: 2^4
    block[0x175] = 1; // checksums are CRC-32C
    let checksum = crc(u32::MAX, &block[..0x3fc]);
    put32(&mut block, 0x3fc, checksum);
    block
}

/// Names the journal in a superblock that was written: its inode, which is kept here once more.
pub(crate) fn name_journal(file: &File, inode: &[u8; INODE_BYTES]) -> io::Result<()> {
    const HAS_JOURNAL: u32 = 0x0004;
    let mut block = [0; SUPERBLOCK_BYTES];
    file.read_exact_at(&mut block, SUPERBLOCK_AT as u64)?;
    put32(&mut block, 0x5c, COMPATIBLE | HAS_JOURNAL);
    put32(&mut block, 0xe0, JOURNAL_INODE);
    block[0xfd] = 1; // the inode is kept: its 60 bytes of extents, and its size, high and low
    block[0x10c..0x148].copy_from_slice(&inode[0x28..0x64]);
    block[0x148..0x14c].copy_from_slice(&inode[0x6c..0x70]);
    block[0x14c..0x150].copy_from_slice(&inode[0x04..0x08]);
    let checksum = crc(u32::MAX, &block[..0x3fc]);
    put32(&mut block, 0x3fc, checksum);
    file.write_all_at(&block, SUPERBLOCK_AT as u64)
}

/// A group of 32768 blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) block_bitmap: u32,
    pub(crate) inode_bitmap: u32,
    pub(crate) inode_table: u32,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) directories: u32,
    /// Inodes at the end of its table that were never used.
    pub(crate) unused_inodes: u32,
    /// The bitmap is not there because it would say: all free.
    pub(crate) blocks_uninitialized: bool,
    pub(crate) inodes_uninitialized: bool,
    pub(crate) block_bitmap_checksum: u32,
    pub(crate) inode_bitmap_checksum: u32,
}

/// Encodes the descriptor of the group with this number.
pub(crate) fn descriptor(group: &Group, number: u32, seed: Seed) -> [u8; DESCRIPTOR_BYTES] {
    let mut bytes = [0; DESCRIPTOR_BYTES];
    put32(&mut bytes, 0x00, group.block_bitmap);
    put32(&mut bytes, 0x04, group.inode_bitmap);
    put32(&mut bytes, 0x08, group.inode_table);
    put16(&mut bytes, 0x0c, low16(group.free_blocks));
    put16(&mut bytes, 0x0e, low16(group.free_inodes));
    put16(&mut bytes, 0x10, low16(group.directories));
    // 4: the inode table is zeroed, the kernel need not do it.
    let flags =
        u16::from(group.inodes_uninitialized) | u16::from(group.blocks_uninitialized) << 1 | 4;
    put16(&mut bytes, 0x12, flags);
    put16(&mut bytes, 0x18, low16(group.block_bitmap_checksum));
    put16(&mut bytes, 0x1a, low16(group.inode_bitmap_checksum));
    put16(&mut bytes, 0x1c, low16(group.unused_inodes));
    let checksum = crc(crc(seed.0, &number.to_le_bytes()), &bytes);
    put16(&mut bytes, 0x1e, low16(checksum));
    bytes
}

//! The blocks of a directory: one as it comes; more than one with an index over the names' hashes
//! (`dir_index`), so that the guest's kernel finds a name among many at once.

use crate::ext4::bytes::{put16, put32};
use crate::ext4::checksum::crc;
use crate::ext4::dirhash::{HALF_MD4, hash};
use crate::ext4::layout::BLOCK;

/// The checksum of a block of names looks like an unused name.
const TAIL_BYTES: usize = 12;
const TAIL_AT: usize = BLOCK - TAIL_BYTES;
const TAIL_TYPE: u8 = 0xde;
/// `.` and `..`.
const DOTS_BYTES: usize = 24;
/// Where the entries of an index begin: in its root, and in the nodes below.
const ROOT_ENTRIES_AT: usize = 32;
const NODE_ENTRIES_AT: usize = 8;
const INDEX_TAIL_BYTES: usize = 8;
const IN_ROOT: usize = (BLOCK - ROOT_ENTRIES_AT - INDEX_TAIL_BYTES) / 8;
const IN_NODE: usize = (BLOCK - NODE_ENTRIES_AT - INDEX_TAIL_BYTES) / 8;

/// The type of a directory in a name.
pub(crate) const TYPE_DIRECTORY: u8 = 2;

/// One name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u32,
    /// As in `struct ext4_dir_entry_2`.
    pub(crate) file_type: u8,
}

/// A directory to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectoryInodes {
    pub(crate) own: u32,
    pub(crate) parent: u32,
    /// What checksums of this inode begin with.
    pub(crate) seed: u32,
}

fn entry_bytes(name: &[u8]) -> usize {
    8 + name.len().next_multiple_of(4)
}

/// Gives the blocks, in order, to `write`; whether they have an index.
pub(crate) fn write<E>(
    inodes: DirectoryInodes,
    names: &[Name<'_>],
    hash_seed: &[u32; 4],
    mut write: impl FnMut(&[u8; BLOCK]) -> Result<(), E>,
) -> Result<bool, E> {
    let bytes: usize = names.iter().map(|name| entry_bytes(name.name)).sum();
    if DOTS_BYTES + bytes <= TAIL_AT {
        let mut block = [0; BLOCK];
        dots(&mut block, inodes, 12);
        fill_names(&mut block, DOTS_BYTES, 12, names.iter(), inodes.seed);
        write(&block)?;
        return Ok(false);
    }

    let mut hashed: Vec<((u32, u32), &Name<'_>)> = names
        .iter()
        .map(|name| (hash(name.name, hash_seed), name))
        .collect();
    hashed.sort_unstable_by_key(|(hash, name)| (*hash, name.name));
    let leaves = leaves(&hashed);
    let nodes = if leaves.len() <= IN_ROOT {
        0
    } else {
        leaves.len().div_ceil(IN_NODE)
    };

    // Block 0 is the root, then come the nodes, then the leaves. An index entry is the first hash of a
    // block and the block's number; bit 0 says that the block before ends with the same hash.
    let mut index: Vec<(u32, u32)> = Vec::with_capacity(leaves.len());
    for (number, leaf) in (1 + nodes..).zip(&leaves) {
        let first = hashed[leaf.start].0.0;
        let continued = leaf.start > 0 && hashed[leaf.start - 1].0.0 == first;
        index.push((first | u32::from(continued), number_of(number)));
    }
    let top: Vec<(u32, u32)> = if nodes == 0 {
        index.clone()
    } else {
        (1..)
            .zip(index.chunks(IN_NODE))
            .map(|(number, below)| (below[0].0, number))
            .collect()
    };

    let mut block = [0; BLOCK];
    // The name `..` covers the rest of the block, so that those who know no index see an empty block.
    dots(&mut block, inodes, BLOCK - 12);
    block[28] = HALF_MD4;
    block[29] = 8; // bytes of this information
    block[30] = u8::from(nodes > 0);
    fill_index(&mut block, ROOT_ENTRIES_AT, IN_ROOT, &top, inodes.seed);
    write(&block)?;
    if nodes > 0 {
        for below in index.chunks(IN_NODE) {
            let mut block = [0; BLOCK];
            put16(&mut block, 4, number_of(BLOCK).try_into().unwrap_or(0));
            fill_index(&mut block, NODE_ENTRIES_AT, IN_NODE, below, inodes.seed);
            write(&block)?;
        }
    }
    for leaf in leaves {
        let mut block = [0; BLOCK];
        fill_names(
            &mut block,
            0,
            0,
            hashed[leaf].iter().map(|(_, name)| *name),
            inodes.seed,
        );
        write(&block)?;
    }
    Ok(true)
}

fn number_of(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Which names go into which block: as many as fit.
fn leaves(hashed: &[((u32, u32), &Name<'_>)]) -> Vec<std::ops::Range<usize>> {
    let mut leaves = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for (at, (_, name)) in hashed.iter().enumerate() {
        let more = entry_bytes(name.name);
        if bytes + more > TAIL_AT {
            leaves.push(start..at);
            start = at;
            bytes = 0;
        }
        bytes += more;
    }
    leaves.push(start..hashed.len());
    leaves
}

fn dots(block: &mut [u8; BLOCK], inodes: DirectoryInodes, second_bytes: usize) {
    put_name(block, 0, inodes.own, 12, b".", TYPE_DIRECTORY);
    put_name(
        block,
        12,
        inodes.parent,
        second_bytes,
        b"..",
        TYPE_DIRECTORY,
    );
}

fn put_name(block: &mut [u8], at: usize, inode: u32, bytes: usize, name: &[u8], file_type: u8) {
    put32(block, at, inode);
    put16(block, at + 4, u16::try_from(bytes).unwrap_or(0));
    block[at + 6] = u8::try_from(name.len()).unwrap_or(u8::MAX);
    block[at + 7] = file_type;
    block[at + 8..at + 8 + name.len()].copy_from_slice(name);
}

/// Puts names from `at` on, and the checksum. The last name, which may be one that is there already at
/// `last`, covers what is left.
fn fill_names<'a>(
    block: &mut [u8; BLOCK],
    mut at: usize,
    mut last: usize,
    names: impl Iterator<Item = &'a Name<'a>>,
    seed: u32,
) {
    for name in names {
        let bytes = entry_bytes(name.name);
        put_name(block, at, name.inode, bytes, name.name, name.file_type);
        last = at;
        at += bytes;
    }
    put16(block, last + 4, u16::try_from(TAIL_AT - last).unwrap_or(0));
    put_name(block, TAIL_AT, 0, TAIL_BYTES, b"", TAIL_TYPE);
    let checksum = crc(seed, &block[..TAIL_AT]);
    put32(block, TAIL_AT + 8, checksum);
}

/// Puts the entries of an index, and the checksum. The first entry's hash is implied: its place holds
/// how many there are and could be.
fn fill_index(block: &mut [u8; BLOCK], at: usize, room: usize, entries: &[(u32, u32)], seed: u32) {
    for ((hash, number), bytes) in entries.iter().zip(block[at..].chunks_exact_mut(8)) {
        put32(bytes, 0, *hash);
        put32(bytes, 4, *number);
    }
    put16(block, at, u16::try_from(room).unwrap_or(0));
    put16(block, at + 2, u16::try_from(entries.len()).unwrap_or(0));
    let checksum = crc(seed, &block[..at + entries.len() * 8]);
    let checksum = crc(checksum, &[0; 8]);
    put32(block, BLOCK - 4, checksum);
}

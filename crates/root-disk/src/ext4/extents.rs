//! The tree of runs of one inode: up to four in the inode, else blocks of 340 below it.

use crate::error::DiskError;
use crate::ext4::bytes::{low16, put16, put32};
use crate::ext4::checksum::{Seed, crc};
use crate::ext4::layout::BLOCK;
use crate::ext4::writer::BlockWriter;
use crate::tree::{Blocks, Extent};

const MAGIC: u16 = 0xf30a;
/// Bytes of a header, and of every entry.
const ENTRY: usize = 12;
/// Entries that the inode has room for.
pub(crate) const IN_INODE: usize = 4;
/// Entries of one block, with the checksum at its end.
const IN_BLOCK: usize = (BLOCK - ENTRY) / ENTRY;
const CHECKSUM_AT: usize = ENTRY + IN_BLOCK * ENTRY;

/// Writes the levels that the inode has no room for.
pub(crate) fn settle(
    blocks: &mut Blocks,
    number: u32,
    seed: Seed,
    writer: &mut BlockWriter,
) -> Result<(), DiskError> {
    while blocks.extents.len() > IN_INODE {
        let mut above = Vec::with_capacity(blocks.extents.len().div_ceil(IN_BLOCK));
        for run in blocks.extents.chunks(IN_BLOCK) {
            let mut block = [0; BLOCK];
            fill(&mut block, run, blocks.depth, IN_BLOCK);
            let checksum = crc(seed.of_inode(number), &block[..CHECKSUM_AT]);
            put32(&mut block, CHECKSUM_AT, checksum);
            let physical = writer.append(&block)?;
            blocks.tree_blocks += 1;
            above.push(Extent {
                logical: run[0].logical,
                physical,
                blocks: 0,
            });
        }
        blocks.extents = above;
        blocks.depth += 1;
    }
    Ok(())
}

/// The 60 bytes of the inode.
pub(crate) fn in_inode(blocks: &Blocks) -> [u8; 60] {
    let mut root = [0; 60];
    fill(&mut root, &blocks.extents, blocks.depth, IN_INODE);
    root
}

fn fill(bytes: &mut [u8], entries: &[Extent], depth: u16, room: usize) {
    put16(bytes, 0, MAGIC);
    put16(bytes, 2, u16::try_from(entries.len()).unwrap_or(0));
    put16(bytes, 4, u16::try_from(room).unwrap_or(0));
    put16(bytes, 6, depth);
    for (entry, bytes) in entries.iter().zip(bytes[ENTRY..].chunks_exact_mut(ENTRY)) {
        put32(bytes, 0, entry.logical);
        if depth == 0 {
            put16(bytes, 4, low16(entry.blocks));
            put32(bytes, 8, entry.physical);
        } else {
            put32(bytes, 4, entry.physical);
        }
    }
}

//! The last step: bitmaps, inode tables, descriptors and the superblock, behind the data.
//!
//! All bitmaps and all inode tables are in one row after the last block of data (`flex_bg` allows it), so
//! that data can begin at a fixed block before anyone knows how many groups there will be.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::DiskError;
use crate::ext4::bytes::low16;
use crate::ext4::checksum::{Seed, crc};
use crate::ext4::inode::INODE_BYTES;
use crate::ext4::layout::{BLOCK, BLOCKS_PER_GROUP, FIRST_INODE};
use crate::ext4::superblock::{
    DESCRIPTOR_BYTES, Group, Identity, SUPERBLOCK_AT, SUPERBLOCK_BYTES, Totals, descriptor,
    superblock,
};
use crate::ext4::writer::BlockWriter;

/// Inodes of one block of a table.
const INODES_PER_BLOCK: u32 = (BLOCK / INODE_BYTES) as u32;
/// Inodes that the bitmap of one group, a block, has room for.
const MAX_INODES_PER_GROUP: u32 = BLOCK as u32 * 8;

/// Where everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) groups: u32,
    pub(crate) inodes_per_group: u32,
    /// Of the whole disk.
    pub(crate) blocks: u32,
    /// The first of the bitmaps of blocks.
    block_bitmaps: u32,
    inode_bitmaps: u32,
    inode_tables: u32,
    /// One more than the last that is in use.
    pub(crate) used_end: u32,
}

impl Geometry {
    /// For at least so many inodes and blocks, with data up to `data_end`.
    pub(crate) fn choose(data_end: u32, inodes: u32, min_blocks: u32) -> Self {
        let mut groups = min_blocks.max(data_end).div_ceil(BLOCKS_PER_GROUP);
        groups = groups.max(inodes.div_ceil(MAX_INODES_PER_GROUP));
        loop {
            let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            let block_bitmaps = data_end;
            let inode_bitmaps = block_bitmaps + groups;
            let inode_tables = inode_bitmaps + groups;
            let used_end = inode_tables + groups * (inodes_per_group / INODES_PER_BLOCK);
            // The last group must have a block, or it would be none.
            let blocks = used_end
                .max(min_blocks)
                .max((groups - 1) * BLOCKS_PER_GROUP + 1);
            if blocks.div_ceil(BLOCKS_PER_GROUP) == groups {
                return Self {
                    groups,
                    inodes_per_group,
                    blocks,
                    block_bitmaps,
                    inode_bitmaps,
                    inode_tables,
                    used_end,
                };
            }
            groups += 1;
        }
    }

    /// Blocks that the descriptors take.
    pub(crate) fn descriptor_blocks(&self) -> u32 {
        descriptor_blocks(self.groups)
    }
}

/// Blocks that the descriptors of so many groups take.
pub(crate) fn descriptor_blocks(groups: u32) -> u32 {
    groups.div_ceil((BLOCK / DESCRIPTOR_BYTES) as u32)
}

/// What is in use, for the bitmaps.
#[derive(Debug)]
pub(crate) struct Usage<'a> {
    /// Runs of blocks below `Geometry::used_end` that are free: first and how many. They do not overlap.
    pub(crate) free: &'a [(u32, u32)],
    /// Inodes 1 to this one are in use.
    pub(crate) last_inode: u32,
    /// The numbers of the inodes that are directories.
    pub(crate) directories: &'a [u32],
}

/// Appends bitmaps and inode tables, and writes the rest at the front; the file, not synced, of its size.
/// `inodes` gives the inodes from number 1 on, each 256 bytes; what it does not give is zero.
pub(crate) fn finish(
    mut writer: BlockWriter,
    path: &Path,
    identity: &Identity,
    geometry: Geometry,
    usage: &Usage<'_>,
    inodes: impl Iterator<Item = [u8; INODE_BYTES]>,
) -> Result<File, DiskError> {
    let seed = Seed::of(&identity.uuid);
    let mut groups = describe(geometry, usage);

    let mut free = usage.free.to_vec();
    free.sort_unstable();
    let mut free = free.as_slice();
    for number in 0..geometry.groups {
        let first = number * BLOCKS_PER_GROUP;
        let mut bitmap = vec![0xff_u8; BLOCK];
        let own = geometry.blocks.min(first + BLOCKS_PER_GROUP) - first;
        let used = geometry.used_end.clamp(first, first + own) - first;
        clear_bits(&mut bitmap, used, own - used);
        while let Some(&(start, count)) = free.first() {
            let from = start.max(first);
            let to = (start + count).min(first + BLOCKS_PER_GROUP);
            if from < to {
                clear_bits(&mut bitmap, from - first, to - from);
            }
            if start + count > first + BLOCKS_PER_GROUP {
                break;
            }
            free = &free[1..];
        }
        let group = &mut groups[number as usize];
        group.free_blocks = bitmap.iter().map(|byte| byte.count_zeros()).sum();
        // The last group always has its bitmap; others that are wholly free need none.
        if group.free_blocks == BLOCKS_PER_GROUP && number + 1 < geometry.groups {
            group.blocks_uninitialized = true;
            writer.leave_out()?;
        } else {
            group.block_bitmap_checksum = crc(seed.0, &bitmap);
            writer.append(&bitmap)?;
        }
    }
    for group in &mut groups {
        if group.inodes_uninitialized {
            writer.leave_out()?;
            continue;
        }
        let mut bitmap = vec![0xff_u8; BLOCK];
        let used = geometry.inodes_per_group - group.free_inodes;
        clear_bits(&mut bitmap, used, group.free_inodes);
        group.inode_bitmap_checksum =
            crc(seed.0, &bitmap[..geometry.inodes_per_group as usize / 8]);
        writer.append(&bitmap)?;
    }
    let mut within = 0;
    for inode in inodes {
        writer.current()[within..within + INODE_BYTES].copy_from_slice(&inode);
        within += INODE_BYTES;
        if within == BLOCK {
            writer.commit()?;
            within = 0;
        }
    }
    if within > 0 {
        writer.current()[within..].fill(0);
        writer.commit()?;
    }
    let file = writer.finish()?;

    let failed = |error| DiskError::io("write", path, error);
    file.set_len(u64::from(geometry.blocks) * BLOCK as u64)
        .map_err(failed)?;
    let mut front = vec![0_u8; BLOCK * (1 + geometry.descriptor_blocks() as usize)];
    let totals = Totals {
        blocks: geometry.blocks,
        free_blocks: groups.iter().map(|group| group.free_blocks).sum(),
        inodes: geometry.inodes_per_group * geometry.groups,
        free_inodes: groups.iter().map(|group| group.free_inodes).sum(),
        inodes_per_group: geometry.inodes_per_group,
    };
    front[SUPERBLOCK_AT..SUPERBLOCK_AT + SUPERBLOCK_BYTES]
        .copy_from_slice(&superblock(identity, totals));
    for ((number, group), bytes) in (0..)
        .zip(&groups)
        .zip(front[BLOCK..].chunks_exact_mut(DESCRIPTOR_BYTES))
    {
        bytes.copy_from_slice(&descriptor(group, number, seed));
    }
    file.write_all_at(&front, 0).map_err(failed)?;
    Ok(file)
}

/// The groups, all but for their bitmaps.
fn describe(geometry: Geometry, usage: &Usage<'_>) -> Vec<Group> {
    let per_group = geometry.inodes_per_group;
    let mut directories = vec![0; geometry.groups as usize];
    for inode in usage.directories {
        directories[((inode - 1) / per_group) as usize] += 1;
    }
    (0..geometry.groups)
        .zip(directories)
        .map(|(number, directories)| {
            let used = usage
                .last_inode
                .max(FIRST_INODE - 1)
                .saturating_sub(number * per_group)
                .min(per_group);
            Group {
                block_bitmap: geometry.block_bitmaps + number,
                inode_bitmap: geometry.inode_bitmaps + number,
                inode_table: geometry.inode_tables + number * (per_group / INODES_PER_BLOCK),
                free_blocks: 0,
                free_inodes: per_group - used,
                directories,
                unused_inodes: per_group - used,
                blocks_uninitialized: false,
                inodes_uninitialized: used == 0,
                block_bitmap_checksum: 0,
                inode_bitmap_checksum: 0,
            }
        })
        .collect()
}

fn clear_bits(bitmap: &mut [u8], first: u32, count: u32) {
    let mut bit = first;
    let end = first + count;
    while bit < end {
        if bit.is_multiple_of(8) && end - bit >= 8 {
            bitmap[(bit / 8) as usize] = 0;
            bit += 8;
        } else {
            bitmap[(bit / 8) as usize] &= !(1 << low16(bit % 8));
            bit += 1;
        }
    }
}

//! From a tree whose content is on the disk to the finished disk.

use std::fs::File;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::DiskError;
use crate::ext4::checksum::Seed;
use crate::ext4::directory::{self, DirectoryInodes, Name};
use crate::ext4::groups::{self, Geometry, Usage};
use crate::ext4::inode::{self, FAST_SYMLINK_BYTES, INODE_BYTES, XATTR_AREA};
use crate::ext4::layout::{BLOCK, BLOCKS_PER_GROUP, FIRST_INODE, ROOT_INODE};
use crate::ext4::superblock::Identity;
use crate::ext4::writer::{BlockWriter, append_extent};
use crate::ext4::{extents, xattr};
use crate::tree::{Blocks, Extent, Kind, NodeId, Tree};

/// Blocks kept for the group descriptors, which are written when their number is known. What is not
/// needed of them is free.
const DESCRIPTOR_ROOM: u32 = 16;
/// The first block of data.
pub(crate) const DATA_START: u32 = 1 + DESCRIPTOR_ROOM;
/// The largest disk whose descriptors have room: 256 GiB.
pub(crate) const MAX_DISK_BLOCKS: u32 = DESCRIPTOR_ROOM * (BLOCK as u32 / 32) * BLOCKS_PER_GROUP;

/// Appends directories and all metadata. `freed` are blocks that were written and are in use no more;
/// they read as zeros afterwards. The file is not synced.
pub(crate) fn finish(
    tree: &mut Tree,
    mut writer: BlockWriter,
    path: &Path,
    identity: &Identity,
    freed: &[Extent],
) -> Result<File, DiskError> {
    let seed = Seed::of(&identity.uuid);
    let numbered = number(tree);
    let mut directories = Vec::new();
    for id in &numbered.order {
        if tree.directory(*id).is_some() {
            directories.push(tree.node(*id).number);
            write_directory(tree, *id, seed, &identity.hash_seed, &mut writer)?;
        }
        write_outside_inode(tree, *id, seed, &mut writer)?;
    }

    let data_end = writer.next();
    let last_inode = numbered.last_inode;
    let geometry = Geometry::choose(data_end, last_inode, 0);
    let mut free: Vec<(u32, u32)> = freed.iter().map(|run| (run.physical, run.blocks)).collect();
    let descriptors_end = 1 + geometry.descriptor_blocks();
    if descriptors_end < DATA_START {
        free.push((descriptors_end, DATA_START - descriptors_end));
    }
    let usage = Usage {
        free: &free,
        last_inode,
        directories: &directories,
    };
    let tree = &*tree;
    let encode = |id: NodeId, subdirectories| inode::encode(tree.node(id), subdirectories, seed);
    let blank = [0; INODE_BYTES];
    // The root has number 2 among the reserved ones; all others follow those.
    let reserved = (1..FIRST_INODE).map(|number| {
        if number == ROOT_INODE {
            encode(Tree::ROOT, numbered.subdirectories[0])
        } else {
            blank
        }
    });
    let others = numbered.order.iter().zip(&numbered.subdirectories).skip(1);
    let others = others.map(|(id, subdirectories)| encode(*id, *subdirectories));
    let file = groups::finish(
        writer,
        path,
        identity,
        geometry,
        &usage,
        reserved.chain(others),
    )?;
    erase(&file, freed).map_err(|error| DiskError::io("write", path, error))?;
    Ok(file)
}

/// The order of the inodes on the disk.
struct Numbered {
    /// The root first; the others by their number, from `FIRST_INODE` on, without gaps.
    order: Vec<NodeId>,
    /// Of each in `order`; zero for what is no directory.
    subdirectories: Vec<u32>,
    last_inode: u32,
}

/// Gives numbers: what is in one directory has numbers in a row.
fn number(tree: &mut Tree) -> Numbered {
    let mut order = vec![Tree::ROOT];
    let mut subdirectories = Vec::new();
    tree.node_mut(Tree::ROOT).number = ROOT_INODE;
    let mut next = FIRST_INODE;
    let mut at = 0;
    while at < order.len() {
        let children: Vec<NodeId> = tree
            .directory(order[at])
            .map(|directory| {
                directory
                    .children
                    .values()
                    .map(|child| child.node)
                    .collect()
            })
            .unwrap_or_default();
        let mut count = 0;
        for child in children {
            let node = tree.node_mut(child);
            count += u32::from(matches!(node.kind, Kind::Directory(_)));
            if node.number == 0 {
                node.number = next;
                next += 1;
                order.push(child);
            }
        }
        subdirectories.push(count);
        at += 1;
    }
    Numbered {
        order,
        subdirectories,
        last_inode: next - 1,
    }
}

fn write_directory(
    tree: &mut Tree,
    id: NodeId,
    seed: Seed,
    hash_seed: &[u32; 4],
    writer: &mut BlockWriter,
) -> Result<(), DiskError> {
    let Some(directory) = tree.directory(id) else {
        return Ok(());
    };
    let own = tree.node(id).number;
    let inodes = DirectoryInodes {
        own,
        parent: tree.node(directory.parent.unwrap_or(Tree::ROOT)).number,
        seed: seed.of_inode(own),
    };
    let names: Vec<Name<'_>> = directory
        .children
        .iter()
        .map(|(name, child)| {
            let node = tree.node(child.node);
            Name {
                name,
                inode: node.number,
                file_type: inode::types(&node.kind).1,
            }
        })
        .collect();
    let mut runs = Vec::new();
    let indexed = directory::write(inodes, &names, hash_seed, |block| {
        let logical = runs
            .last()
            .map_or(0, |run: &Extent| run.logical + run.blocks);
        let physical = writer.append(block)?;
        append_extent(&mut runs, logical, physical);
        Ok::<(), DiskError>(())
    })?;
    if let Some(directory) = tree.directory_mut(id) {
        directory.blocks = Blocks::of(runs);
        directory.indexed = indexed;
    }
    Ok(())
}

/// Long targets of symlinks, trees of runs, and blocks of attributes.
fn write_outside_inode(
    tree: &mut Tree,
    id: NodeId,
    seed: Seed,
    writer: &mut BlockWriter,
) -> Result<(), DiskError> {
    let node = tree.node_mut(id);
    match &mut node.kind {
        Kind::File { blocks, .. } => extents::settle(blocks, node.number, seed, writer)?,
        Kind::Directory(directory) => {
            extents::settle(&mut directory.blocks, node.number, seed, writer)?;
        }
        Kind::Symlink { target, block } if target.len() > FAST_SYMLINK_BYTES => {
            let current = writer.current();
            current[..target.len()].copy_from_slice(target);
            current[target.len()..].fill(0);
            *block = Some(writer.commit()?);
        }
        _ => {}
    }
    if !xattr::fit_inode(&node.metadata.xattrs, XATTR_AREA) {
        let block = xattr::block(&node.metadata.xattrs, writer.next(), seed);
        node.xattr_block = Some(writer.append(&block)?);
    }
    Ok(())
}

/// Makes zeros of runs: holes where the host's file system has them.
fn erase(file: &File, freed: &[Extent]) -> std::io::Result<()> {
    let mut freed: Vec<Extent> = freed.to_vec();
    freed.sort_unstable_by_key(|run| run.physical);
    let mut rest = freed.as_slice();
    while let [first, ..] = rest {
        let mut end = first.physical;
        let count = rest.iter().take_while(|run| {
            let joins = run.physical == end;
            end += if joins { run.blocks } else { 0 };
            joins
        });
        rest = &rest[count.count()..];
        erase_run(
            file,
            u64::from(first.physical) * BLOCK as u64,
            u64::from(end) * BLOCK as u64,
        )?;
    }
    Ok(())
}

fn erase_run(file: &File, start: u64, end: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, start, end - start) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        other => return Ok(other?),
    }
    let mut at = start;
    while at < end {
        file.write_all_at(&[0; BLOCK], at)?;
        at += BLOCK as u64;
    }
    Ok(())
}

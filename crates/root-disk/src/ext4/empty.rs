//! An empty disk to write on.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::DiskError;
use crate::ext4::checksum::Seed;
use crate::ext4::directory::{self, DirectoryInodes};
use crate::ext4::groups::{self, Geometry, Usage};
use crate::ext4::inode::{self, INODE_BYTES};
use crate::ext4::journal::{JOURNAL_INODE, Journal};
use crate::ext4::layout::{BLOCK, BLOCKS_PER_GROUP, FIRST_INODE, ROOT_INODE};
use crate::ext4::superblock::{self, Identity};
use crate::ext4::writer::{BlockWriter, append_extent};
use crate::tree::{Blocks, Directory, Kind, Metadata, Node};

/// One inode for so many bytes of the disk: enough for trees of small files, 3 % of the disk.
const BYTES_PER_INODE: u64 = 8 * 1024;
/// Blocks of the smallest group, at the disk's end.
const MIN_GROUP_BLOCKS: u32 = 64;
/// The smallest that can be formatted, in bytes.
const MIN_BYTES: u64 = 1024 * 1024;
/// The smallest with a journal, in bytes.
const MIN_VOLUME_BYTES: u64 = 16 * 1024 * 1024;
/// The largest, in bytes: 4 TiB.
const MAX_BYTES: u64 = 4 << 40;

/// Makes a sparse file with an empty ext4 in it, ready to be mounted and written: a scratch disk.
/// It takes milliseconds and some hundred KiB of the host's disk, and replaces what is at `path`. The UUID
/// comes from label and size. There is no journal. Not synced: after a power cut, format again.
///
/// # Errors
/// A size outside 1 MiB to 4 TiB, a label over 16 bytes, or what the host's file system says.
pub fn format_empty(path: &Path, size_bytes: u64, label: &str) -> Result<(), DiskError> {
    check_size(size_bytes, MIN_BYTES)?;
    make(path, size_bytes, &identity(label, size_bytes, None)?, None).map(drop)
}

/// As [`format_empty`], and made to last: there is a journal, by which the kernel that mounts it next mends
/// it after its writer was killed, and it is synced. `number` makes the UUID this volume's own.
///
/// # Errors
/// A size outside 16 MiB to 4 TiB, a label over 16 bytes, or what the host's file system says.
pub fn format_volume(
    path: &Path,
    size_bytes: u64,
    label: &str,
    number: u32,
) -> Result<(), DiskError> {
    check_size(size_bytes, MIN_VOLUME_BYTES)?;
    let identity = identity(label, size_bytes, Some(number))?;
    let journal = Journal::for_disk(size_bytes);
    let file = make(path, size_bytes, &identity, Some(journal))?;
    file.sync_all()
        .map_err(|error| DiskError::io("sync", path, error))
}

fn check_size(size_bytes: u64, min: u64) -> Result<(), DiskError> {
    if (min..=MAX_BYTES).contains(&size_bytes) {
        return Ok(());
    }
    Err(DiskError::Size {
        size_bytes,
        min,
        max: MAX_BYTES,
    })
}

fn make(
    path: &Path,
    size_bytes: u64,
    identity: &Identity,
    journal: Option<Journal>,
) -> Result<File, DiskError> {
    let blocks = u32::try_from(size_bytes / BLOCK as u64).unwrap_or(u32::MAX);
    // A last group with hardly a block is left unused, as mke2fs does.
    let rest = blocks % BLOCKS_PER_GROUP;
    let unused = if rest < MIN_GROUP_BLOCKS && rest < blocks {
        rest
    } else {
        0
    };
    let inodes = u32::try_from(size_bytes / BYTES_PER_INODE).unwrap_or(u32::MAX);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| DiskError::io("create", path, error))?;
    let blocks = blocks - unused;
    let result = format(file, path, identity, blocks, inodes, journal).and_then(|file| {
        file.set_len(size_bytes)
            .map_err(|error| DiskError::io("write", path, error))?;
        Ok(file)
    });
    if result.is_err() {
        // Half a file system is of no use to anyone; that this fails, too, changes nothing.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn identity(label: &str, size_bytes: u64, number: Option<u32>) -> Result<Identity, DiskError> {
    let mut padded = [0; 16];
    padded
        .get_mut(..label.len())
        .ok_or_else(|| DiskError::Label {
            label: label.to_owned(),
        })?
        .copy_from_slice(label.as_bytes());
    let mut hasher = Sha256::new();
    hasher.update(b"empty disk 1");
    hasher.update(padded);
    hasher.update(size_bytes.to_le_bytes());
    if let Some(number) = number {
        hasher.update(number.to_le_bytes());
    }
    Ok(Identity::from_hash(&hasher.finalize().into(), padded))
}

fn format(
    file: File,
    path: &Path,
    identity: &Identity,
    blocks: u32,
    inodes: u32,
    journal: Option<Journal>,
) -> Result<File, DiskError> {
    let seed = Seed::of(&identity.uuid);
    let first = 1 + groups::descriptor_blocks(blocks.div_ceil(BLOCKS_PER_GROUP));
    let mut writer = BlockWriter::new(file, path.to_owned(), first, blocks);

    let inodes_of_root = DirectoryInodes {
        own: ROOT_INODE,
        parent: ROOT_INODE,
        seed: seed.of_inode(ROOT_INODE),
    };
    let mut runs = Vec::new();
    directory::write(inodes_of_root, &[], &identity.hash_seed, |block| {
        let physical = writer.append(block)?;
        append_extent(&mut runs, 0, physical);
        Ok::<(), DiskError>(())
    })?;
    let root = Node {
        metadata: Metadata {
            permissions: 0o755,
            ..Metadata::default()
        },
        kind: Kind::Directory(Box::new(Directory {
            blocks: Blocks::of(runs),
            ..Directory::default()
        })),
        links: 0,
        number: ROOT_INODE,
        xattr_block: None,
    };
    let journal = journal
        .map(|journal| journal.write(&mut writer))
        .transpose()?;
    let geometry = Geometry::choose(writer.next(), inodes.max(FIRST_INODE), blocks);
    let usage = Usage {
        free: &[],
        last_inode: FIRST_INODE - 1,
        directories: &[ROOT_INODE],
    };
    let mut table = [[0; INODE_BYTES]; JOURNAL_INODE as usize];
    table[ROOT_INODE as usize - 1] = inode::encode(&root, 0, seed);
    if let Some(journal) = &journal {
        table[JOURNAL_INODE as usize - 1] = inode::encode(journal, 0, seed);
    }
    let file = groups::finish(writer, path, identity, geometry, &usage, table.into_iter())?;
    if journal.is_some() {
        superblock::name_journal(&file, &table[JOURNAL_INODE as usize - 1])
            .map_err(|error| DiskError::io("write", path, error))?;
    }
    Ok(file)
}

impl Identity {
    /// A UUID (version 8: made as one likes) and a seed for the hashes of names.
    pub(crate) fn from_hash(hash: &[u8; 32], label: [u8; 16]) -> Self {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hash[..16]);
        uuid[6] = (uuid[6] & 0x0f) | 0x80;
        uuid[8] = (uuid[8] & 0x3f) | 0x80;
        let mut hash_seed = [0; 4];
        for (word, bytes) in hash_seed.iter_mut().zip(hash[16..].chunks_exact(4)) {
            *word = bytes
                .iter()
                .rev()
                .fold(0, |word, byte| (word << 8) | u32::from(*byte));
        }
        Self {
            uuid,
            hash_seed,
            label,
        }
    }
}

//! Extended attributes: in the inode where they fit, else in one block beside it.

use crate::error::EntryProblem;
use crate::ext4::bytes::{put16, put32};
use crate::ext4::checksum::{Seed, crc};
use crate::ext4::layout::BLOCK;
use crate::tree::Xattr;

const MAGIC: u32 = 0xea02_0000;
const ENTRY_BYTES: usize = 16;
const BLOCK_HEADER_BYTES: usize = 32;
const INODE_HEADER_BYTES: usize = 4;
const TERMINATOR_BYTES: usize = 4;
const BLOCK_CHECKSUM_AT: usize = 16;
/// What the attributes of one file may take, encoded, in bytes.
pub(crate) const MAX_BYTES: usize = BLOCK - BLOCK_HEADER_BYTES - TERMINATOR_BYTES;

const POSIX_ACL_ACCESS: u8 = 2;
const POSIX_ACL_DEFAULT: u8 = 3;
/// Longest first: `system.posix_acl_access` is not `system.` and a rest.
const PREFIXES: [(&[u8], u8); 6] = [
    (b"system.posix_acl_default", POSIX_ACL_DEFAULT),
    (b"system.posix_acl_access", POSIX_ACL_ACCESS),
    (b"security.", 6),
    (b"trusted.", 4),
    (b"system.", 7),
    (b"user.", 1),
];

/// An attribute as ext4 stores it; none where Linux has no such attributes (`com.apple.*`), or where it is
/// overlayfs's own (`trusted.overlay.*`): it would speak to the guest's overlayfs about another one's layers.
pub(crate) fn encode(name: &[u8], value: &[u8]) -> Result<Option<Xattr>, EntryProblem> {
    let malformed = || EntryProblem::Xattr {
        attribute: name.escape_ascii().to_string(),
    };
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Ok(None);
    }
    let Some((prefix, index)) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)) else {
        return Ok(None);
    };
    let rest = &name[prefix.len()..];
    let acl = matches!(*index, POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT);
    if rest.is_empty() != acl || name.len() > 255 || name.contains(&0) {
        return Err(malformed());
    }
    let value = if acl {
        acl_to_disk(value).ok_or_else(malformed)?
    } else {
        value.into()
    };
    Ok(Some(Xattr {
        index: *index,
        name: rest.into(),
        value,
    }))
}

/// An ACL as the kernel takes it from programs (version 2, 8 bytes an entry) to how ext4 stores it
/// (version 1, 4 bytes an entry without a name).
fn acl_to_disk(value: &[u8]) -> Option<Box<[u8]>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    const NAMELESS: [u16; 4] = [1, 4, 0x10, 0x20];
    let entries = value.strip_prefix(&2_u32.to_le_bytes())?;
    if entries.len() % 8 != 0 {
        return None;
    }
    let mut disk = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        disk.extend_from_slice(&entry[..4]);
        if matches!(tag, USER | GROUP) {
            disk.extend_from_slice(&entry[4..]);
        } else if !NAMELESS.contains(&tag) {
            return None;
        }
    }
    Some(disk.into())
}

/// Puts attributes in the order that the kernel searches them, and checks that they fit.
pub(crate) fn settle(xattrs: &mut [Xattr]) -> Result<(), EntryProblem> {
    xattrs.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    let bytes = encoded_bytes(xattrs);
    if bytes > MAX_BYTES {
        return Err(EntryProblem::XattrsTooLarge {
            bytes,
            allowed: MAX_BYTES,
        });
    }
    Ok(())
}

fn encoded_bytes(xattrs: &[Xattr]) -> usize {
    xattrs
        .iter()
        .map(|xattr| {
            ENTRY_BYTES
                + xattr.name.len().next_multiple_of(4)
                + xattr.value.len().next_multiple_of(4)
        })
        .sum()
}

/// Whether an area of this size at an inode's end has room for them.
pub(crate) fn fit_inode(xattrs: &[Xattr], area: usize) -> bool {
    INODE_HEADER_BYTES + encoded_bytes(xattrs) + TERMINATOR_BYTES <= area
}

/// Fills the area at an inode's end.
pub(crate) fn fill_inode(area: &mut [u8], xattrs: &[Xattr]) {
    put32(area, 0, MAGIC);
    fill(&mut area[INODE_HEADER_BYTES..], 0, xattrs);
}

/// A block of attributes that will be at `number`.
pub(crate) fn block(xattrs: &[Xattr], number: u32, seed: Seed) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let hashes = fill(&mut block, BLOCK_HEADER_BYTES, xattrs);
    put32(&mut block, 0, MAGIC);
    put32(&mut block, 4, 1); // used by one inode
    put32(&mut block, 8, 1); // one block
    let hash = hashes
        .iter()
        .fold(0_u32, |hash, entry| hash.rotate_left(16) ^ entry);
    // The kernel takes a zero among them for "may not be shared".
    put32(&mut block, 12, if hashes.contains(&0) { 0 } else { hash });
    let checksum = crc(crc(seed.0, &u64::from(number).to_le_bytes()), &block);
    put32(&mut block, BLOCK_CHECKSUM_AT, checksum);
    block
}

/// Entries from `first` on, values from the end backwards; offsets count from the begin of `bytes`.
fn fill(bytes: &mut [u8], first: usize, xattrs: &[Xattr]) -> Vec<u32> {
    let mut at = first;
    let mut end = bytes.len();
    let mut hashes = Vec::with_capacity(xattrs.len());
    for xattr in xattrs {
        let hash = hash(xattr);
        hashes.push(hash);
        let entry = &mut bytes[at..];
        entry[0] = u8::try_from(xattr.name.len()).unwrap_or(u8::MAX);
        entry[1] = xattr.index;
        put32(entry, 8, u32::try_from(xattr.value.len()).unwrap_or(0));
        put32(entry, 12, hash);
        entry[ENTRY_BYTES..ENTRY_BYTES + xattr.name.len()].copy_from_slice(&xattr.name);
        if !xattr.value.is_empty() {
            end -= xattr.value.len().next_multiple_of(4);
            put16(entry, 2, u16::try_from(end).unwrap_or(0));
            bytes[end..end + xattr.value.len()].copy_from_slice(&xattr.value);
        }
        at += ENTRY_BYTES + xattr.name.len().next_multiple_of(4);
    }
    hashes
}

fn hash(xattr: &Xattr) -> u32 {
    let mut hash = 0_u32;
    for byte in &xattr.name {
        hash = hash.rotate_left(5) ^ u32::from(*byte);
    }
    for bytes in xattr.value.chunks(4) {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        hash = hash.rotate_left(16) ^ u32::from_le_bytes(word);
    }
    hash
}

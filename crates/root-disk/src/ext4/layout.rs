//! Numbers of every disk that this module writes.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Blocks of a group: one for each bit of a block.
pub(super) const BLOCKS_PER_GROUP: u32 = BLOCK as u32 * 8;
/// Inode of the root directory.
pub(super) const ROOT_INODE: u32 = 2;
/// First inode that is not reserved.
pub(super) const FIRST_INODE: u32 = 11;

//! CRC-32C as ext4 takes it: without the inversions at begin and end, and seeded.

/// Continues `seed` over `bytes`.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// What the checksums of one file system begin with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed(pub(crate) u32);

impl Seed {
    /// Of the file system with this UUID.
    pub(crate) fn of(uuid: &[u8; 16]) -> Self {
        Self(crc(u32::MAX, uuid))
    }

    /// Of what belongs to one inode, whose generation is always zero here.
    pub(crate) fn of_inode(self, number: u32) -> u32 {
        let seed = crc(self.0, &number.to_le_bytes());
        crc(seed, &[0; 4])
    }
}

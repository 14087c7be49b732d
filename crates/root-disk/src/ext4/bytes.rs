//! Little-endian numbers at fixed places of a block. The places are constants, so nothing here can be
//! out of bounds but by a mistake in this crate.

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The low 16 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the other half is stored elsewhere"
)]
pub(crate) fn low16(value: u32) -> u16 {
    value as u16
}

/// The high 16 bits.
pub(crate) fn high16(value: u32) -> u16 {
    low16(value >> 16)
}

/// The low 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the other half is stored elsewhere"
)]
pub(crate) fn low32(value: u64) -> u32 {
    value as u32
}

/// The high 32 bits.
pub(crate) fn high32(value: u64) -> u32 {
    low32(value >> 32)
}

//! The 512 bytes before every entry: ustar, GNU, star and what was before them.

use crate::error::ArchiveProblem;

/// Bytes of a block of an archive.
pub(crate) const BLOCK: usize = 512;

/// A header whose checksum is right.
#[derive(Debug)]
pub(crate) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Takes a block for a header.
    pub(crate) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, ArchiveProblem> {
        let stored = number(&block[148..156]).ok_or(ArchiveProblem::HeaderChecksum)?;
        let mut unsigned = 8 * i64::from(b' ');
        // Some old programs added up signed bytes.
        let mut signed = unsigned;
        for byte in block[..148].iter().chain(&block[156..]) {
            unsigned += i64::from(*byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed {
            Ok(Self(block))
        } else {
            Err(ArchiveProblem::HeaderChecksum)
        }
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// Prefix and name.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if &self.0[257..263] != b"ustar\0" {
            b""
        } else if &self.0[508..] == b"tar\0" {
            text(&self.0[345..476])
        } else {
            text(&self.0[345..500])
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, name].join(&b'/')
        }
    }

    pub(crate) fn link_name(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<u32, ArchiveProblem> {
        self.unsigned("mode", 100..108)
    }

    pub(crate) fn uid(&self) -> Result<u32, ArchiveProblem> {
        self.unsigned("uid", 108..116)
    }

    pub(crate) fn gid(&self) -> Result<u32, ArchiveProblem> {
        self.unsigned("gid", 116..124)
    }

    /// Bytes of content in the archive.
    pub(crate) fn size(&self) -> Result<u64, ArchiveProblem> {
        self.unsigned("size", 124..136)
    }

    /// Seconds since 1970, possibly before.
    pub(crate) fn mtime(&self) -> Result<i64, ArchiveProblem> {
        number(&self.0[136..148]).ok_or(ArchiveProblem::HeaderNumber { field: "mtime" })
    }

    pub(crate) fn device(&self) -> Result<(u32, u32), ArchiveProblem> {
        Ok((
            self.unsigned("major", 329..337)?,
            self.unsigned("minor", 337..345)?,
        ))
    }

    /// Of an old GNU sparse file: four pieces of its map, whether more follow, and its size.
    pub(crate) fn sparse(&self) -> Result<(&'a [u8], bool, u64), ArchiveProblem> {
        Ok((
            &self.0[386..482],
            self.0[482] != 0,
            self.unsigned("real size", 483..495)?,
        ))
    }

    fn unsigned<T: TryFrom<i64>>(
        &self,
        field: &'static str,
        place: std::ops::Range<usize>,
    ) -> Result<T, ArchiveProblem> {
        number(&self.0[place])
            .and_then(|value| T::try_from(value).ok())
            .ok_or(ArchiveProblem::HeaderNumber { field })
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs (nothing is zero); or, with the first bit set, a big-endian number
/// in two's complement over the other bits.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let begin = i64::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        return rest.iter().try_fold(begin, |value, byte| {
            value.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let is_pad = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !is_pad(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_pad).unwrap_or(digits.len());
    if !digits[end..].iter().all(is_pad) {
        return None;
    }
    digits[..end]
        .iter()
        .try_fold(0_i64, |value, byte| match byte {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
            _ => None,
        })
}

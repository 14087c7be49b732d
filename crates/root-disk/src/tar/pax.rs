//! Extended headers: records of `length key=value` (POSIX pax).

use crate::tree::Time;

/// What the records of one extended header say, as far as it is wanted here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link_path: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) modified: Option<Time>,
    pub(crate) accessed: Option<Time>,
    /// Names and values of extended attributes, as the kernel takes them from programs.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: PaxSparse,
}

/// The records of GNU tar's sparse files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PaxSparse {
    /// Present from version 1.0 on, where the map is before the content.
    pub(crate) version: (Option<u64>, Option<u64>),
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// Versions 0.0 and 0.1: offsets and lengths in turn.
    pub(crate) map: Vec<u64>,
}

/// Decodes the content of an extended header; or says what is wrong with it.
pub(crate) fn parse(mut rest: &[u8], max_numbers: usize) -> Result<Pax, &'static str> {
    let mut pax = Pax::default();
    let mut seen: Vec<&[u8]> = Vec::new();
    while !rest.is_empty() {
        let (key, value, next) = record(rest)?;
        rest = next;
        let repeats = matches!(
            key,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" | b"comment"
        );
        if !repeats {
            if seen.contains(&key) {
                return Err("a key comes twice");
            }
            // Attributes are few; this is no way to make the search slow.
            if seen.len() == MAX_KEYS {
                return Err("more keys than any file has");
            }
            seen.push(key);
        }
        pax.take(key, value, max_numbers)?;
    }
    if pax.sparse.map.len() % 2 != 0 {
        return Err("an odd sparse map");
    }
    Ok(pax)
}

/// Different keys of one extended header.
const MAX_KEYS: usize = 1024;

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Key and value of the first record, and what follows it.
fn record(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    let space = bytes
        .iter()
        .take(20)
        .position(|byte| *byte == b' ')
        .ok_or("a record without a length")?;
    let length = decimal(&bytes[..space]).ok_or("a record whose length is no number")?;
    let length = usize::try_from(length).map_err(|_| "a record that is too long")?;
    let text = bytes
        .get(space + 1..length)
        .ok_or("a record that is longer than the header")?;
    let text = text
        .strip_suffix(b"\n")
        .ok_or("a record that does not end with a newline")?;
    let equals = text
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or("a record without `=`")?;
    if equals == 0 {
        return Err("a record without a key");
    }
    Ok((&text[..equals], &text[equals + 1..], &bytes[length..]))
}

impl Pax {
    /// Whether it says which file an entry is, or how many bytes it has.
    pub(crate) fn moves_bytes(&self) -> bool {
        self.path.is_some()
            || self.link_path.is_some()
            || self.size.is_some()
            || self.sparse != PaxSparse::default()
    }

    fn take(&mut self, key: &[u8], value: &[u8], max_numbers: usize) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        let number = || decimal(value).ok_or("a value that is no number in its range");
        let id = || number().and_then(|id| u32::try_from(id).map_err(|_| "an owner over 32 bits"));
        // No value: as if there were no record.
        match key {
            _ if value.is_empty() => {}
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(id()?),
            b"gid" => self.gid = Some(id()?),
            b"mtime" => self.modified = Some(time(value).ok_or("a time that is no number")?),
            b"atime" => self.accessed = Some(time(value).ok_or("a time that is no number")?),
            b"GNU.sparse.major" => self.sparse.version.0 = Some(number()?),
            b"GNU.sparse.minor" => self.sparse.version.1 = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.map" => {
                if !self.sparse.map.is_empty() {
                    return Err("two sparse maps");
                }
                for part in value.split(|byte| *byte == b',') {
                    self.add_to_map(part, max_numbers)?;
                }
            }
            b"GNU.sparse.offset" if self.sparse.map.len().is_multiple_of(2) => {
                self.add_to_map(value, max_numbers)?;
            }
            b"GNU.sparse.numbytes" if !self.sparse.map.len().is_multiple_of(2) => {
                self.add_to_map(value, max_numbers)?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => return Err("an odd sparse map"),
            _ => {}
        }
        Ok(())
    }

    fn add_to_map(&mut self, text: &[u8], max_numbers: usize) -> Result<(), &'static str> {
        if self.sparse.map.len() >= max_numbers {
            return Err("a sparse map of too many pieces");
        }
        self.sparse
            .map
            .push(decimal(text).ok_or("a sparse map of something else than numbers")?);
        Ok(())
    }
}

/// A number of digits and nothing else, below 2^63.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })?;
    u64::try_from(value).ok()
}

/// Seconds since 1970 with any number of decimals; a minus for before.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    let mut rest_is_zero = true;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let digit = |place| {
            fraction
                .get(place)
                .map_or(0, |digit| u32::from(digit - b'0'))
        };
        nanoseconds = (0..9).fold(0, |value, place| value * 10 + digit(place));
        rest_is_zero = fraction.iter().skip(9).all(|digit| *digit == b'0');
    }
    if !negative {
        return Some(Time {
            seconds,
            nanoseconds,
        });
    }
    // Down to the nanosecond before, as everything is rounded down.
    let nanoseconds = nanoseconds + u32::from(!rest_is_zero);
    Some(match nanoseconds {
        0 => Time {
            seconds: -seconds,
            nanoseconds: 0,
        },
        _ => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn check(text: &str, seconds: i64, nanoseconds: u32) {
        assert_eq!(
            time(text.as_bytes()),
            Some(Time {
                seconds,
                nanoseconds
            }),
            "{text}"
        );
    }

    #[test]
    fn times() {
        check("0", 0, 0);
        check("1.5", 1, 500_000_000);
        check("-1.5", -2, 500_000_000);
        check("-1", -1, 0);
        check("1.1234567899", 1, 123_456_789);
        check("-0.000000001", -1, 999_999_999);
        check("-0.9999999999", -1, 0);
        for wrong in ["", ".", "-", "1.x", "--1", "1e9", "99999999999999999999"] {
            assert_eq!(time(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn records() {
        let pax = parse(
            b"12 path=a/b\n25 SCHILY.xattr.user.k=v\n9 size=7\n8 uid=\n",
            10,
        );
        let expected = Pax {
            path: Some(b"a/b".to_vec()),
            size: Some(7),
            xattrs: vec![(b"user.k".to_vec(), b"v".to_vec())],
            ..Pax::default()
        };
        assert_eq!(pax, Err("a record that is longer than the header"));
        let pax = parse(
            b"12 path=a/b\n25 SCHILY.xattr.user.k=v\n9 size=7\n7 uid=\n",
            10,
        );
        assert_eq!(pax, Ok(expected));
        for wrong in [
            &b"12 path=a/b"[..],
            b"x path=a\n",
            b"7 path\n",
            b"4 =\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b" a=b\n",
        ] {
            assert!(parse(wrong, 10).is_err(), "{}", wrong.escape_ascii());
        }
        assert!(parse(b"8 uid=1\n8 uid=1\n", 10).is_err());
        assert!(parse(b"10 size=-1\n", 10).is_err());
        assert!(parse(b"18 uid=4294967296\n", 10).is_err());
    }
}

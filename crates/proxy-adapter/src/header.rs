//! The PROXY protocol header, version 2 (haproxy's proxy-protocol.txt, section 2.2), read strictly.
//! Pure: bytes in; a header's length, a request for more bytes, or a refusal out.
//!
//! The adapter does not use the client's address in the header: this module finds where the header ends,
//! and whether it is valid. As the specification has it, the bytes after LOCAL and UNSPEC are ignored; a
//! checksum among them is checked all the same where one can be read.

/// Largest header that is accepted, in bytes, signature and addresses included.
pub(crate) const MAX_HEADER_BYTES: usize = 4096;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// The TLV that holds a CRC32C of the whole header, taken with its own value as zeros.
const TLV_CRC32C: u8 = 0x03;

/// Why bytes are not a header that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// They do not begin with the signature.
    Signature,
    /// Version 1, which is text.
    VersionOne,
    /// Neither version 1 nor 2.
    Version,
    /// Neither LOCAL nor PROXY.
    Command,
    /// Not a pair of family and transport in the specification.
    Family,
    /// Longer than [`MAX_HEADER_BYTES`].
    TooLong,
    /// Shorter than the addresses of its family.
    TooShort,
    /// The bytes after the addresses are not a list of type, length and value.
    Tlv,
    /// The checksum does not match the header.
    Checksum,
}

impl Invalid {
    /// For people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Signature => "it did not begin with a PROXY v2 header",
            Self::VersionOne => "its PROXY header is of version 1",
            Self::Version => "its PROXY header is of an unknown version",
            Self::Command => "its PROXY header has an unknown command",
            Self::Family => "its PROXY header has an unknown address family",
            Self::TooLong => "its PROXY header is too long",
            Self::TooShort => "its PROXY header is too short for its addresses",
            Self::Tlv => "its PROXY header's fields do not fit in it",
            Self::Checksum => "its PROXY header's checksum is wrong",
        }
    }
}

/// The length of the header that the bytes begin with, in bytes; `None`: it needs more bytes.
///
/// # Errors
/// The bytes are not a header, whatever follows them.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<usize>, Invalid> {
    let begun = bytes.len().min(SIGNATURE.len());
    if bytes[..begun] != SIGNATURE[..begun] {
        return Err(if bytes.starts_with(b"PROXY") {
            Invalid::VersionOne
        } else {
            Invalid::Signature
        });
    }
    let Some(command) = bytes.get(12) else {
        return Ok(None);
    };
    if command >> 4 != 2 {
        return Err(Invalid::Version);
    }
    let local = match command & 0xf {
        0 => true,
        1 => false,
        _ => return Err(Invalid::Command),
    };
    let Some(family) = bytes.get(13) else {
        return Ok(None);
    };
    let addresses = match family {
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ if local => 0,
        _ => return Err(Invalid::Family),
    };
    let [_, _, high, low] = *bytes.get(12..FIXED_BYTES).unwrap_or_default() else {
        return Ok(None);
    };
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_HEADER_BYTES {
        return Err(Invalid::TooLong);
    }
    let ignored = local || *family == 0;
    if !ignored && length < FIXED_BYTES + addresses {
        return Err(Invalid::TooShort);
    }
    let Some(header) = bytes.get(..length) else {
        return Ok(None);
    };
    match check_fields(header, FIXED_BYTES + addresses) {
        Err(Invalid::Tlv) if ignored => Ok(Some(length)),
        checked => checked.map(|()| Some(length)),
    }
}

/// Reads the fields from `start` on, and checks the checksum if there is one.
fn check_fields(header: &[u8], start: usize) -> Result<(), Invalid> {
    let mut at = start;
    let mut checksum = None;
    while at != header.len() {
        let Some([kind, high, low]) = header.get(at..at + 3).and_then(<[u8]>::first_chunk) else {
            return Err(Invalid::Tlv);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = at + 3;
        at = value + length;
        if at > header.len() {
            return Err(Invalid::Tlv);
        }
        if *kind == TLV_CRC32C {
            if length != 4 || checksum.is_some() {
                return Err(Invalid::Tlv);
            }
            checksum = Some(value);
        }
    }
    let Some((before, [a, b, c, d, after @ ..])) =
        checksum.and_then(|at| header.split_at_checked(at))
    else {
        return Ok(());
    };
    let bytes = before.iter().chain(&[0; 4]).chain(after);
    if crc32c(bytes) == u32::from_be_bytes([*a, *b, *c, *d]) {
        Ok(())
    } else {
        Err(Invalid::Checksum)
    }
}

/// CRC32C, a bit at a time: headers are short, and a table would be in every guest's memory.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let mut crc = !0;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use proptest::prelude::*;
    use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader, Tlv};

    use super::{FIXED_BYTES, Invalid, MAX_HEADER_BYTES, TLV_CRC32C, crc32c, parse};

    /// Headers by another implementation, without a checksum.
    fn header() -> impl Strategy<Value = ProxyHeader<'static>> {
        let addresses =
            prop_oneof![
                Just(None),
                any::<(Ipv4Addr, u16, Ipv4Addr, u16, bool)>()
                    .prop_map(|(a, b, c, d, stream)| Some((a.into(), b, c.into(), d, stream))),
                any::<(Ipv6Addr, u16, Ipv6Addr, u16, bool)>()
                    .prop_map(|(a, b, c, d, stream)| Some((a.into(), b, c.into(), d, stream))),
            ];
        let field = (
            any::<u8>().prop_filter("no checksum", |kind| *kind != TLV_CRC32C),
            prop::collection::vec(any::<u8>(), 0..40),
        );
        (addresses, prop::collection::vec(field, 0..5)).prop_map(|(addresses, fields)| {
            let mut header = match addresses {
                None => ProxyHeader::with_local(),
                Some((from, from_port, to, to_port, stream)) => {
                    let (from, to) = (
                        SocketAddr::new(from, from_port),
                        SocketAddr::new(to, to_port),
                    );
                    ProxyHeader::with_address(if stream {
                        ProxiedAddress::stream(from, to)
                    } else {
                        ProxiedAddress::datagram(from, to)
                    })
                }
            };
            for (kind, value) in fields {
                header.append_tlv(Tlv::Custom(kind, value.into()));
            }
            header
        })
    }

    fn encode(header: &ProxyHeader<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    /// The header with a checksum, computed by another implementation.
    fn with_checksum(mut header: ProxyHeader<'_>, after: &[u8]) -> Vec<u8> {
        let at = encode(&header).len();
        header.append_tlv(Tlv::Crc32c(0));
        header.append_tlv(Tlv::UniqueId(after.into()));
        let mut bytes = encode(&header);
        let sum = ::crc32c::crc32c(&bytes);
        bytes[at + 3..at + 7].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_header_or_a_prefix_or_refused(
            begins in 0..20_usize,
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let good = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x30";
            let bytes = [&good[..begins.min(good.len())], &bytes].concat();
            match parse(&bytes) {
                Ok(Some(length)) => prop_assert!((FIXED_BYTES..=bytes.len()).contains(&length)),
                Ok(None) => prop_assert!(bytes.len() < MAX_HEADER_BYTES),
                Err(_) => {}
            }
        }

        /// A header by another implementation is read to its end and no further, and not accepted before.
        #[test]
        fn a_header_is_accepted_once_it_is_complete(
            header in header(),
            checked in any::<bool>(),
            follows in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = if checked { with_checksum(header, b"id") } else { encode(&header) };
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
            }
            let length = bytes.len();
            prop_assert_eq!(parse(&[bytes, follows].concat()), Ok(Some(length)));
        }

        /// Another implementation accepts the headers that this one accepts, with the same length.
        #[test]
        fn an_accepted_header_is_accepted_by_another_implementation(
            header in header(), at: prop::sample::Index, byte: u8,
        ) {
            let mut bytes = encode(&header);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            // The specification accepts any family with LOCAL; the other implementation checks it.
            prop_assume!(bytes[12] != 0x20);
            if let Ok(Some(length)) = parse(&bytes) {
                let read = ProxyHeader::parse(&bytes, ParseConfig::default());
                prop_assert_eq!(read.map(|(_, length)| length).ok(), Some(length));
            }
        }

        /// A header with a checksum and one changed byte is refused, except where the change removes the
        /// checksum field or makes the family UNSPEC, after which nothing is read.
        #[test]
        fn a_checksum_detects_a_changed_byte(
            header in header(), at: prop::sample::Index, change in 1_u8..,
        ) {
            let mut bytes = with_checksum(header, b"more");
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            if let Ok(Some(_)) = parse(&bytes) {
                prop_assert!(
                    bytes[13] == 0 || has_no_checksum(&bytes), "byte {} changed by {}", at, change
                );
            }
        }

        #[test]
        fn the_checksum_equals_that_of_another_implementation(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(crc32c(bytes.iter()), ::crc32c::crc32c(&bytes));
        }
    }

    /// Whether another implementation finds no checksum.
    fn has_no_checksum(bytes: &[u8]) -> bool {
        let config = ParseConfig {
            include_tlvs: true,
            ..ParseConfig::default()
        };
        match ProxyHeader::parse(bytes, config) {
            Ok((header, _)) => header.crc32c().is_none(),
            // LOCAL with an unknown family.
            Err(_) => bytes[12] == 0x20,
        }
    }

    #[test]
    fn a_header_with_unix_addresses_has_their_length() {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\xd7".to_vec();
        assert_eq!(parse(&bytes), Err(Invalid::TooShort));
        bytes[15] += 1;
        assert_eq!(parse(&bytes), Ok(None));
        bytes.extend([b'x'; 216]);
        assert_eq!(parse(&bytes), Ok(Some(232)));
    }

    #[test]
    fn a_second_checksum_and_one_of_other_than_four_bytes_are_refused() {
        let bytes = |fields: &[u8]| {
            let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00".to_vec();
            bytes.push(12 + u8::try_from(fields.len()).unwrap());
            [&bytes[..], &[7; 12], fields].concat()
        };
        assert_eq!(parse(&bytes(&[3, 0, 3, 1, 2, 3])), Err(Invalid::Tlv));
        assert_eq!(
            parse(&bytes(&[3, 0, 4, 0, 0, 0, 0])),
            Err(Invalid::Checksum)
        );
        let twice = bytes(&[3, 0, 4, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0]);
        assert_eq!(parse(&twice), Err(Invalid::Tlv));
        // With LOCAL too, where it can be read; unreadable fields are ignored.
        let local = [
            &b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x07"[..],
            &[3, 0, 4, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(parse(&local), Err(Invalid::Checksum));
        let local = [&local[..16], &[3, 0, 5, 0, 0, 0, 0]].concat();
        assert_eq!(parse(&local), Ok(Some(23)));
    }

    #[test]
    fn the_longest_header_is_accepted_and_a_longer_one_is_refused_at_its_length() {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x0f\xf0".to_vec();
        assert_eq!(parse(&bytes), Ok(None));
        bytes.resize(MAX_HEADER_BYTES, 0);
        assert_eq!(parse(&bytes), Ok(Some(MAX_HEADER_BYTES)));
        bytes[15] += 1;
        assert_eq!(parse(&bytes[..16]), Err(Invalid::TooLong));
    }
}

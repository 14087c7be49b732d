//! Which bytes may be where (RFC 9110, 5.5 and 5.6.2; RFC 3986, 3.2.2).

/// Bytes of a token.
const TOKEN: u8 = 1;
/// Bytes of a host or its port, brackets included.
const AUTHORITY: u8 = 2;

const CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let is_alphanumeric = (byte as u8).is_ascii_alphanumeric();
        if is_alphanumeric || is_among(byte as u8, b"!#$%&'*+-.^_`|~") {
            classes[byte] |= TOKEN;
        }
        if is_alphanumeric || is_among(byte as u8, b"-._~!$&'()*+,;=%:[]") {
            classes[byte] |= AUTHORITY;
        }
        byte += 1;
    }
    classes
}

const fn is_among(byte: u8, bytes: &[u8]) -> bool {
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == byte {
            return true;
        }
        at += 1;
    }
    false
}

/// Whether it is a token: a method, a name of a header, an option.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all_of(bytes, TOKEN)
}

/// Whether it has the bytes of a host, with or without a port, only.
pub(crate) fn is_authority(bytes: &[u8]) -> bool {
    all_of(bytes, AUTHORITY)
}

fn all_of(bytes: &[u8], class: u8) -> bool {
    bytes
        .iter()
        .all(|byte| CLASSES[usize::from(*byte)] & class != 0)
}

/// Whether it may be the value of a header: no control characters but tabs. Without branches, so that it is done many bytes at a time.
pub(crate) fn is_value(bytes: &[u8]) -> bool {
    let is_bad = |byte: u8| matches!(byte, 0..=8 | 10..=31 | 127);
    !bytes.iter().fold(false, |bad, byte| bad | is_bad(*byte))
}

/// Whether it may be a request's target: no spaces, no control characters. Bytes of other alphabets pass as they are.
pub(crate) fn is_target(bytes: &[u8]) -> bool {
    let is_bad = |byte: u8| matches!(byte, 0..=32 | 127);
    !bytes.iter().fold(false, |bad, byte| bad | is_bad(*byte))
}

/// Without spaces and tabs at its ends.
pub(crate) fn trimmed(bytes: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(first) = bytes.iter().position(|byte| !is_space(byte)) else {
        return &[];
    };
    let last = bytes
        .iter()
        .rposition(|byte| !is_space(byte))
        .unwrap_or(first);
    &bytes[first..=last]
}

/// The elements of a list with commas, without empty ones.
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(trimmed)
        .filter(|element| !element.is_empty())
}

/// A decimal number, of digits only.
pub(crate) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    bytes.iter().try_fold(0_u64, |number, digit| {
        number
            .checked_mul(10)?
            .checked_add(u64::from(*digit - b'0'))
    })
}

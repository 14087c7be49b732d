//! Where a head ends: at its first empty line.

use memchr::memchr;

/// The outcome of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadEnd {
    /// The head is the bytes before this place, its empty line among them.
    At(usize),
    /// It goes on. The last line begins here, and the next search may begin here.
    NotYet(usize),
    /// A line ends without a carriage return.
    BareLineFeed,
}

/// Looks for the end of a request's head. Lines before `from`, which is 0 or what an earlier search returned, are not looked at again.
pub fn find_request_end(bytes: &[u8], from: usize) -> HeadEnd {
    find(bytes, from, true)
}

/// Looks for the end of a response's head, whose lines may end without a carriage return (RFC 9112, 2.2).
pub fn find_response_end(bytes: &[u8], from: usize) -> HeadEnd {
    find(bytes, from, false)
}

fn find(bytes: &[u8], from: usize, strict: bool) -> HeadEnd {
    let mut line = from;
    loop {
        let Some(length) = memchr(b'\n', &bytes[line..]) else {
            return HeadEnd::NotYet(line);
        };
        let feed = line + length;
        let has_return = length > 0 && bytes[feed - 1] == b'\r';
        if strict && !has_return {
            return HeadEnd::BareLineFeed;
        }
        if length == usize::from(has_return) {
            return HeadEnd::At(feed + 1);
        }
        line = feed + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_its_first_empty_line() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\r\n\r\n";
        assert_eq!(find_request_end(bytes, 0), HeadEnd::At(27));
        for length in 0..27 {
            let part = &bytes[..length];
            let HeadEnd::NotYet(line) = find_request_end(part, 0) else {
                panic!("{length}");
            };
            assert_eq!(find_request_end(bytes, line), HeadEnd::At(27));
        }
    }

    #[test]
    fn a_line_of_a_request_ends_with_both_bytes_and_one_of_a_response_may_end_with_the_second() {
        for bytes in [
            &b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\n",
            b"\n",
        ] {
            assert_eq!(find_request_end(bytes, 0), HeadEnd::BareLineFeed);
        }
        assert_eq!(
            find_response_end(b"HTTP/1.1 200\nA: b\r\n\nrest", 0),
            HeadEnd::At(20)
        );
    }
}

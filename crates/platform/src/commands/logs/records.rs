//! Long lines come in pieces, each marked as going on; here they become one record again.

use std::collections::BTreeMap;

use api::node::LogLine;
use guest_protocol::Stream;
use model::InstanceId;

/// Longest record that is joined, in bytes of its text. A longer line is printed in parts of this size, each but the last
/// marked as going on.
pub(super) const MAX_RECORD_BYTES: usize = 1 << 20;
/// Most bytes of records that wait for their rest, of all instances together.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// The beginnings of lines whose rest has not come yet.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// By instance, and whether it is standard error.
    waiting: BTreeMap<(InstanceId, bool), LogLine>,
    bytes: usize,
}

impl Joiner {
    /// Adds a line or a piece of one; gives what can be printed now.
    pub(super) fn push(&mut self, mut line: LogLine) -> Vec<LogLine> {
        let key = (line.instance, line.stream == Stream::Stderr);
        if line.stream != Stream::Platform
            && let Some(mut begun) = self.waiting.remove(&key)
        {
            self.bytes -= begun.text.len();
            begun.text.push_str(&line.text);
            begun.partial = line.partial;
            line = begun;
        }
        if !line.partial || line.text.len() >= MAX_RECORD_BYTES {
            return vec![line];
        }
        self.bytes += line.text.len();
        self.waiting.insert(key, line);
        if self.bytes > MAX_WAITING_BYTES {
            return self.take();
        }
        Vec::new()
    }

    /// Whether a line waits for its rest.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The beginnings of lines whose rest is not waited for any longer.
    pub(super) fn take(&mut self) -> Vec<LogLine> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use model::Timestamp;

    use super::*;

    fn piece(id: u32, stream: Stream, at: u64, text: &str, partial: bool) -> LogLine {
        LogLine {
            instance: InstanceId(id),
            process: "web".parse().unwrap(),
            at: Timestamp(at),
            stream,
            text: text.to_owned(),
            partial,
        }
    }

    #[test]
    fn case_a_long_line_is_one_record_whatever_comes_between_its_pieces() {
        let mut joiner = Joiner::default();
        let out = Stream::Stdout;
        assert_eq!(joiner.push(piece(1, out, 1, "{\"a\":", true)), []);
        assert_eq!(joiner.push(piece(1, Stream::Stderr, 2, "half", true)), []);
        let other = piece(2, out, 3, "other", false);
        assert_eq!(joiner.push(other.clone()), [other]);
        let said = piece(1, Stream::Platform, 3, "closed a connection", false);
        assert_eq!(joiner.push(said.clone()), [said]);
        assert_eq!(joiner.push(piece(1, out, 4, "\"b\"", true)), []);
        let whole = joiner.push(piece(1, out, 5, "}", false));
        assert_eq!(whole, [piece(1, out, 1, "{\"a\":\"b\"}", false)]);
        assert!(joiner.is_waiting());
        assert_eq!(joiner.take(), [piece(1, Stream::Stderr, 2, "half", true)]);
        assert!(!joiner.is_waiting());
    }

    #[test]
    fn what_is_joined_is_bounded() {
        let mut joiner = Joiner::default();
        let text = "x".repeat(16 * 1024);
        let mut parts = Vec::new();
        for at in 0..=64 {
            parts.extend(joiner.push(piece(1, Stream::Stdout, at, &text, at < 64)));
        }
        let lengths: Vec<_> = parts
            .iter()
            .map(|part| (part.text.len(), part.partial))
            .collect();
        assert_eq!(lengths, [(MAX_RECORD_BYTES, true), (16 * 1024, false)]);

        let mut printed = 0;
        for id in 0..3000 {
            let pieces = joiner.push(piece(id, Stream::Stdout, 0, &text, true));
            printed += pieces.iter().map(|piece| piece.text.len()).sum::<usize>();
            assert!(joiner.bytes <= MAX_WAITING_BYTES);
        }
        assert!(printed > 0);
    }
}

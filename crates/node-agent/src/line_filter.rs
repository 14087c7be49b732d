//! Which lines of a log a reader wants: whole ones, and of these the ones that have a text in them. A line may come in pieces, between which those of
//! the other stream come.

use std::collections::BTreeMap;
use std::sync::Arc;

use guest_protocol::LogRecord;

/// Of a longer line so many bytes are looked at, in bytes; what its beginning decides goes for all of it.
const MAX_SEARCHED_BYTES: usize = 1 << 20;

/// Whether a record is the first of a boot. Guests' records count from 1, so none of theirs is.
pub(crate) fn begins_boot(record: &LogRecord) -> bool {
    record.seq == 0 && record.partial
}

/// Whether a record is a line, or the last piece of one.
pub(crate) fn ends_line(record: &LogRecord) -> bool {
    !record.partial || begins_boot(record)
}

/// Takes records in order, and gives those of wanted lines.
#[derive(Debug, Default)]
pub(crate) struct LineFilter {
    /// What is in every wanted line. Absent: all are wanted.
    text: Option<Arc<str>>,
    /// Of each stream whose last record did not end its line.
    begun: BTreeMap<u8, Begun>,
    /// Lines that were lost before lines that are not wanted: told with the next one that is.
    dropped: u32,
}

/// A line of which a piece is still to come.
#[derive(Debug)]
enum Begun {
    /// It is not known yet whether it is wanted.
    Held(Vec<LogRecord>),
    /// It is wanted, or it is not.
    Decided(bool),
}

impl LineFilter {
    /// For lines that have this text in them, or for all.
    pub(crate) fn new(text: Option<Arc<str>>) -> Self {
        Self {
            text,
            ..Self::default()
        }
    }

    /// The next record; gives those of which it is known now that they are wanted.
    pub(crate) fn push(&mut self, record: LogRecord) -> Vec<LogRecord> {
        let (stream, ends) = (record.stream as u8, ends_line(&record));
        let (mut held, decided) = match self.begun.remove(&stream) {
            None => (Vec::new(), None),
            Some(Begun::Held(held)) => (held, None),
            Some(Begun::Decided(is_wanted)) => (Vec::new(), Some(is_wanted)),
        };
        held.push(record);
        let bytes: usize = held.iter().map(|piece| piece.line.len()).sum();
        let is_known = self.text.is_none() || ends || bytes >= MAX_SEARCHED_BYTES;
        let decided = decided.or_else(|| is_known.then(|| self.has_text(&held)));
        match decided {
            None => {
                self.begun.insert(stream, Begun::Held(held));
                Vec::new()
            }
            Some(is_wanted) => {
                if !ends {
                    self.begun.insert(stream, Begun::Decided(is_wanted));
                }
                self.given(held, is_wanted)
            }
        }
    }

    /// The next record, of a time that nobody asks for: its line has no beginning, and is not wanted.
    pub(crate) fn leave_out(&mut self, record: &LogRecord) {
        let stream = record.stream as u8;
        if ends_line(record) {
            self.begun.remove(&stream);
        } else {
            self.begun.insert(stream, Begun::Decided(false));
        }
    }

    /// Nothing more comes: the wanted ones of the lines that have not ended.
    pub(crate) fn take(&mut self) -> Vec<LogRecord> {
        let mut records = Vec::new();
        for begun in std::mem::take(&mut self.begun).into_values() {
            if let Begun::Held(held) = begun {
                let is_wanted = self.has_text(&held);
                records.extend(self.given(held, is_wanted));
            }
        }
        records
    }

    fn given(&mut self, mut records: Vec<LogRecord>, is_wanted: bool) -> Vec<LogRecord> {
        if !is_wanted {
            let dropped = records.iter().map(|record| record.dropped);
            self.dropped = dropped.fold(self.dropped, u32::saturating_add);
            return Vec::new();
        }
        if let Some(first) = records.first_mut() {
            first.dropped = first.dropped.saturating_add(self.dropped);
            self.dropped = 0;
        }
        records
    }

    fn has_text(&self, pieces: &[LogRecord]) -> bool {
        let Some(text) = &self.text else {
            return true;
        };
        match pieces {
            [line] => String::from_utf8_lossy(&line.line).contains(&**text),
            pieces => {
                let parts = pieces.iter().map(|piece| piece.line.as_slice());
                let line = parts.collect::<Vec<_>>().concat();
                String::from_utf8_lossy(&line).contains(&**text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::Stream;

    use super::*;

    fn record(text: &str, stream: Stream, partial: bool) -> LogRecord {
        LogRecord {
            seq: 1,
            at_nanos: 0,
            stream,
            partial,
            dropped: 0,
            line: text.as_bytes().to_vec(),
        }
    }

    fn out(text: &str) -> LogRecord {
        record(text, Stream::Stdout, false)
    }

    fn piece(text: &str) -> LogRecord {
        record(text, Stream::Stdout, true)
    }

    fn texts(records: Vec<LogRecord>) -> Vec<String> {
        let lines = records.into_iter().map(|record| record.line);
        lines
            .map(|line| String::from_utf8_lossy(&line).into_owned())
            .collect()
    }

    #[test]
    fn a_text_is_found_across_the_pieces_of_a_line_and_gives_all_of_it() {
        let mut filter = LineFilter::new(Some("needle".into()));
        assert!(filter.push(out("hay")).is_empty());
        assert!(filter.push(piece("one nee")).is_empty());
        // The other stream's line comes between the pieces.
        let err = record("a needle", Stream::Stderr, false);
        assert_eq!(texts(filter.push(err)), ["a needle"]);
        assert_eq!(texts(filter.push(out("dle"))), ["one nee", "dle"]);
        assert!(filter.push(piece("nee")).is_empty());
        assert!(filter.push(out("d")).is_empty());
        assert!(filter.push(piece("a needle that")).is_empty());
        assert_eq!(texts(filter.take()), ["a needle that"]);
    }

    #[test]
    fn a_line_without_its_beginning_is_not_given() {
        for text in [None, Some("e".into())] {
            let mut filter = LineFilter::new(text);
            filter.leave_out(&piece("one e"));
            assert!(filter.push(piece(" two e")).is_empty());
            assert!(filter.push(out(" three e")).is_empty());
            assert_eq!(texts(filter.push(out("whole e"))), ["whole e"]);
        }
    }

    #[test]
    fn a_line_without_an_end_is_held_within_bounds_and_decided_by_its_beginning() {
        let part = "x".repeat(MAX_SEARCHED_BYTES / 4);
        for (first, is_given) in [("needle", true), ("hay", false)] {
            let mut filter = LineFilter::new(Some("needle".into()));
            let mut given = filter.push(piece(first)).len();
            for _ in 0..8 {
                given += filter.push(piece(&part)).len();
                let held = filter.begun.values().map(|begun| match begun {
                    Begun::Held(held) => held.len(),
                    Begun::Decided(_) => 0,
                });
                assert!(held.sum::<usize>() <= 5);
            }
            given += filter.push(out("a needle")).len();
            assert_eq!(given, if is_given { 10 } else { 0 }, "{first}");
            assert_eq!(texts(filter.push(out("needle"))), ["needle"]);
        }
    }

    #[test]
    fn lost_lines_are_told_although_the_line_behind_them_is_not_wanted() {
        let mut filter = LineFilter::new(Some("needle".into()));
        let lost = LogRecord {
            dropped: 3,
            ..out("hay")
        };
        assert!(filter.push(lost.clone()).is_empty());
        assert!(filter.push(lost).is_empty());
        let given = filter.push(out("needle"));
        assert_eq!(
            given
                .iter()
                .map(|record| record.dropped)
                .collect::<Vec<_>>(),
            [6]
        );
        assert_eq!(filter.push(out("needle"))[0].dropped, 0);
    }
}

//! The output of commands: tables for people, JSON for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use anstyle::Style;
use clap::{Args, ValueEnum};
use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::failure::{Failure, OutputError};
use crate::json_shapes::{Lines, Prints, Watched};

const HEADER: Style = Style::new().bold();

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct FormatArguments {
    /// `text` for people, `json` for programs
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// For whom output is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people; may change.
    #[default]
    Text,
    /// For programs; stable: docs/json.md has the shapes.
    Json,
}

/// Prints a value of a shape that is documented, as JSON.
pub(crate) fn json<T: Serialize>(_: impl Prints<T>, value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)?;
    line(text)?;
    Ok(())
}

/// Prints a value of a shape that is documented to programs; people have the sentence, on standard error.
pub(crate) fn json_or_note<T: Serialize>(
    format: FormatArguments,
    shape: impl Prints<T>,
    value: &T,
    sentence: impl Display,
) -> Result<(), Failure> {
    match format.format {
        Format::Json => json(shape, value),
        Format::Text => {
            note(sentence);
            Ok(())
        }
    }
}

/// Prints a line of a command on standard output; where that is for a program, on standard error.
pub(crate) fn line_for_people(
    format: FormatArguments,
    text: impl Display,
) -> Result<(), OutputError> {
    match format.format {
        Format::Json => {
            note(text);
            Ok(())
        }
        Format::Text => line(text),
    }
}

/// Prints a value of a shape that is documented, as a line of JSON.
pub(crate) fn json_line<T: Serialize>(_: Lines<T>, value: &T) -> Result<(), Failure> {
    line(serde_json::to_string(value)?)?;
    Ok(())
}

/// A list of a shape that is documented, as a line of JSON.
pub(crate) fn json_rows<T: Serialize>(_: &Watched<T>, rows: &[T]) -> Result<String, Failure> {
    Ok(serde_json::to_string(rows)? + "\n")
}

/// Prints one line on standard output, without its colours where they are not wanted.
pub(crate) fn line(text: impl Display) -> Result<(), OutputError> {
    write(&format!("{text}\n"))
}

/// Prints a text on standard output, without its colours where they are not wanted.
pub(crate) fn write(text: &str) -> Result<(), OutputError> {
    let mut out = anstream::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(OutputError)
}

/// Prints one line on standard error: what is not the command's result.
pub(crate) fn note(text: impl Display) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// A table without borders: a header line, and columns. Where it is wider than the terminal, cells are shortened in
/// their middle, the widest column first; elsewhere it is as wide as its cells.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Row>,
    /// Whether the last column has lists of words, which go on in the next line.
    wraps_last: bool,
    /// Columns that are left out where the terminal is too narrow, the first one first.
    optional: Vec<&'static str>,
}

struct Row {
    cells: Vec<String>,
    /// Sentences that stand below the row.
    notes: Vec<String>,
}

/// Blanks between two columns.
const GAP: usize = 2;
/// No column is shortened below this.
const MIN_COLUMN: usize = 8;
/// The last column, where it wraps, is at least this wide.
const MIN_LAST: usize = 20;
/// What stands before a note.
const NOTE_INDENT: &str = "    ";

impl Table {
    pub(crate) fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
            wraps_last: false,
            optional: Vec::new(),
        }
    }

    /// The last column has lists of words: it goes on in the next line rather than be shortened.
    pub(crate) fn wrapping_last(mut self) -> Self {
        self.wraps_last = true;
        self
    }

    /// These columns are left out where the terminal is too narrow for shortened cells, the first one first.
    pub(crate) fn leaving_out_first<const N: usize>(mut self, columns: [&'static str; N]) -> Self {
        self.optional = columns.to_vec();
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(Row {
            cells: cells.iter().map(|cell| one_line(cell)).collect(),
            notes: Vec::new(),
        });
    }

    /// Adds a sentence below the last row, unless it is empty.
    pub(crate) fn note(&mut self, text: &str) {
        if let Some(row) = self.rows.last_mut().filter(|_| !text.is_empty()) {
            row.notes.push(one_line(text));
        }
    }

    /// The lines, the header in bold, within this many columns of a terminal.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let columns = self.layout(width.unwrap_or(usize::MAX));
        let header: Vec<_> = self.header.iter().map(|name| (*name).to_owned()).collect();
        let mut text = String::new();
        for (index, line) in self.lines_of(&header, &columns).into_iter().enumerate() {
            if index == 0 {
                text.push_str(&format!("{HEADER}{line}{HEADER:#}\n"));
            } else {
                text.push_str(&format!("{line}\n"));
            }
        }
        for row in &self.rows {
            for line in self.lines_of(&row.cells, &columns) {
                text.push_str(&format!("{line}\n"));
            }
            let rest = width.map_or(usize::MAX, |width| width.saturating_sub(NOTE_INDENT.len()));
            for note in &row.notes {
                for line in wrapped(note, rest.max(MIN_LAST)) {
                    text.push_str(&format!("{NOTE_INDENT}{line}\n"));
                }
            }
        }
        text
    }

    /// The columns and their widths, so that a line is no wider than `most` if that can be.
    fn layout(&self, most: usize) -> Vec<Column> {
        let mut left: Vec<usize> = (0..self.header.len()).collect();
        let mut optional = self.optional.iter();
        loop {
            let columns = self.shortened_to(&left, most);
            if total(&columns) <= most {
                return columns;
            }
            let Some(name) = optional.next() else {
                return columns;
            };
            left.retain(|index| self.header[*index] != *name);
        }
    }

    /// These columns, shortened as far as that is needed and can be.
    fn shortened_to(&self, indexes: &[usize], most: usize) -> Vec<Column> {
        let natural = |index: &usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(*index));
            let widest = cells.map(|cell| cell.width()).max().unwrap_or(0);
            Column {
                index: *index,
                width: widest.max(self.header[*index].width()),
            }
        };
        let mut columns: Vec<_> = indexes.iter().map(natural).collect();
        let over = total(&columns).saturating_sub(most);
        if self.wraps_last
            && let Some(last) = columns.last_mut()
        {
            let least = last.width.min(MIN_LAST);
            last.width = last.width.saturating_sub(over).max(least);
        }
        while total(&columns) > most {
            let shrinking = columns.len() - usize::from(self.wraps_last);
            let widest = columns[..shrinking]
                .iter_mut()
                .max_by_key(|column| column.width);
            match widest.filter(|column| column.width > MIN_COLUMN) {
                Some(column) => column.width -= 1,
                None => break,
            }
        }
        columns
    }

    /// The lines of a row.
    fn lines_of(&self, cells: &[String], columns: &[Column]) -> Vec<String> {
        let mut first = String::new();
        let mut rest = Vec::new();
        for (at, column) in columns.iter().enumerate() {
            let cell = cells.get(column.index).map_or("", String::as_str);
            if self.wraps_last && at + 1 == columns.len() {
                let before: usize = columns[..at].iter().map(|column| column.width + GAP).sum();
                let mut lines = wrapped(cell, column.width).into_iter();
                first.push_str(&lines.next().unwrap_or_default());
                rest.extend(lines.map(|line| format!("{}{line}", " ".repeat(before))));
            } else {
                let cell = shortened(cell, column.width);
                first.push_str(&cell);
                let blanks = (column.width + GAP).saturating_sub(cell.width());
                first.push_str(&" ".repeat(blanks));
            }
        }
        let mut lines = vec![first.trim_end().to_owned()];
        lines.extend(rest);
        lines
    }

    /// The lines as [`Self::print`] prints them.
    pub(crate) fn text(&self) -> String {
        self.render(terminal_width())
    }

    pub(crate) fn print(&self) -> Result<(), OutputError> {
        write(&self.render(terminal_width()))
    }
}

/// Fails when a line of the table is wider than this, or when the table has no rows.
#[cfg(test)]
pub(crate) fn fits(table: &Table, width: usize) {
    let text = anstream::adapter::strip_str(&table.render(Some(width))).to_string();
    assert!(text.lines().count() > 1, "no rows");
    for line in text.lines() {
        assert!(line.width() <= width, "{} columns: {line}", line.width());
    }
}

/// A column that is shown.
#[derive(Debug, Clone, Copy)]
struct Column {
    index: usize,
    width: usize,
}

/// The width of a line of these columns.
fn total(columns: &[Column]) -> usize {
    let gaps = GAP * columns.len().saturating_sub(1);
    columns.iter().map(|column| column.width).sum::<usize>() + gaps
}

/// The columns of the terminal that standard output is, if it is one.
fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    // Some terminals do not know: 0.
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// The text, or its two ends where it is too wide.
fn shortened(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let left = most.saturating_sub(1);
    let end = left / 3;
    let head = taken(text.chars(), left - end);
    let tail = taken(text.chars().rev(), end);
    let tail: String = tail.chars().rev().collect();
    format!("{head}…{tail}")
}

/// As many characters as fit.
fn taken(characters: impl Iterator<Item = char>, most: usize) -> String {
    let mut text = String::new();
    let mut width = 0;
    for character in characters {
        width += character.width().unwrap_or(0);
        if width > most {
            break;
        }
        text.push(character);
    }
    text
}

/// The text in lines of at most this width, broken between words where that can be.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word.to_owned();
        loop {
            let index = lines.len() - 1;
            let line = &mut lines[index];
            let blank = usize::from(!line.is_empty());
            if line.width() + blank + word.width() <= most {
                if blank > 0 {
                    line.push(' ');
                }
                line.push_str(&word);
                break;
            }
            if line.is_empty() {
                let part = taken(word.chars(), most.max(1));
                if part.is_empty() {
                    break;
                }
                word = word.split_off(part.len());
                line.push_str(&part);
            }
            lines.push(String::new());
        }
    }
    lines
}

/// Longest text in a cell or a message line, in bytes.
const MAX_LINE_BYTES: usize = 4000;

/// A text from elsewhere on one line of a terminal, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    display::one_line(text, MAX_LINE_BYTES)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::expect;

    use super::*;

    #[test]
    fn a_table_has_a_header_line_and_columns() {
        let mut table = Table::new(["NODE", "STATE"]);
        table.row(["n1".to_owned(), "online".to_owned()]);
        table.row(["n1000".to_owned(), "offline\u{1b}[2J\nx".to_owned()]);
        let plain = anstream::adapter::strip_str(&table.render(None)).to_string();
        expect![[r"
            NODE   STATE
            n1     online
            n1000  offline [2J x
        "]]
        .assert_eq(&plain);
    }

    #[test]
    fn a_table_is_shortened_and_wrapped_to_the_width_of_the_terminal() {
        let mut table = Table::new(["ID", "IMAGE", "FILES"]).wrapping_last();
        let image = "registry.example.com:5000/a-team/of/long-names/shop";
        table.row(["0000000a", image, "ONE TWO THREE FOUR FIVE"].map(str::to_owned));
        table.note("it waits for its node, which has been down for a while");
        table.note("");
        let plain = anstream::adapter::strip_str(&table.render(Some(50))).to_string();
        expect![[r"
            ID        IMAGE               FILES
            0000000a  registry.exa…/shop  ONE TWO THREE FOUR
                                          FIVE
                it waits for its node, which has been down for
                a while
        "]]
        .assert_eq(&plain);
        // What cannot be shortened any more is left as it is.
        let plain = anstream::adapter::strip_str(&table.render(Some(1))).to_string();
        assert!(plain.contains("\n0000000a  regis…op  ONE TWO"), "{plain}");
    }

    #[test]
    fn optional_columns_are_left_out_where_shortening_is_not_enough() {
        let table = |optional| {
            let mut table = Table::new(["NODE", "TIME", "PIDS"]).leaving_out_first(optional);
            table.row(["n1".to_owned(), "3.2s".to_owned(), "7".to_owned()]);
            table
        };
        let header = |table: &Table, width| {
            let plain = anstream::adapter::strip_str(&table.render(Some(width))).to_string();
            plain.lines().next().unwrap().to_owned()
        };
        let some = table(["TIME", "PIDS"]);
        assert_eq!(header(&some, 16), "NODE  TIME  PIDS");
        assert_eq!(header(&some, 15), "NODE  PIDS");
        assert_eq!(header(&some, 9), "NODE");
        assert_eq!(header(&table(["none"; 2]), 9), "NODE  TIME  PIDS");
    }

    #[test]
    fn words_of_any_width_are_wrapped() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("a bb ccc", 4), ["a bb", "ccc"]);
        assert_eq!(wrapped("abcdefg hi", 3), ["abc", "def", "g", "hi"]);
        assert_eq!(wrapped("日本語", 4), ["日本", "語"]);
        assert_eq!(shortened("日本語日本語", 8), "日本…語");
    }
}

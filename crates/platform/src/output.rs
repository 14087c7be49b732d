//! The output of commands: tables for people, JSON for programs.

use std::fmt::Display;
use std::io::{self, Write as _};

use anstyle::Style;
use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table as Layout, presets};
use serde::Serialize;

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
    /// For programs; stable.
    Json,
}

/// Prints a value as JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), crate::failure::Failure> {
    let text = serde_json::to_string_pretty(value)?;
    line(text)?;
    Ok(())
}

/// Prints one line on standard output, without its colours where they are not wanted.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(anstream::stdout(), "{text}")
}

/// Prints one line on standard error: what is not the command's result.
pub(crate) fn note(text: impl Display) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// A table without borders: a header line, and columns.
pub(crate) struct Table(Layout);

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut layout = Layout::new();
        layout
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header);
        for column in layout.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self(layout)
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| one_line(&cell)));
    }

    /// The lines, the header in bold.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for (index, line) in self.0.lines().enumerate() {
            let line = line.trim_end();
            if index == 0 {
                text.push_str(&format!("{HEADER}{line}{HEADER:#}\n"));
            } else {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    pub(crate) fn print(&self) -> io::Result<()> {
        anstream::stdout().write_all(self.render().as_bytes())
    }
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
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        expect![[r"
            NODE   STATE
            n1     online
            n1000  offline [2J x
        "]]
        .assert_eq(&plain);
    }
}

//! `fmt`: the one layout of a manifest. It changes order, white space and quotes, never meaning.
//!
//! - Keys are in the order of the reference page; free keys (variables, hosts, process types) in
//!   the order of their letters, the process `web` first; keys that do not exist come last.
//! - Tables have a header of their own, but those that the definition calls inline (`stop`,
//!   `restart`, a process's `env`, a route) are in one line where they fit and have no comments.
//! - An empty line is before each header and before each key with comments above it.
//! - A list is in one line where it fits and has no comments, else an item a line.
//! - Comments stay with what they belong to ([`crate::document`] says what that is).

use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Code, Diagnostic, Finding, Sink};
use crate::document::{Array, Comments, Document, Entry, Node, Table};
use crate::schema::{At, Shape};
use crate::syntax::MAX_TEXT_BYTES;
use crate::{document, syntax};

/// Columns that a line may have before a table or list is taken apart.
const LINE_CHARS: usize = 100;
/// What an item of a list that has lines of its own starts with.
const INDENT: &str = "    ";

/// The text in the one layout, ending with a new line. Formatting it again changes nothing.
///
/// The text need not be a manifest that can be used, only TOML 1.0: keys that do not exist are
/// kept. `file_name` is only what diagnostics call it.
///
/// # Errors
/// Why it is not TOML 1.0, or that it would be too large.
pub fn fmt(file_name: &str, text: &str) -> Result<String, Vec<Diagnostic>> {
    let mut sink = Sink::new(file_name, text);
    let parsed = syntax::parse(text, &mut sink);
    let Some(parsed) = parsed.filter(|_| sink.is_empty()) else {
        return Err(sink.finish());
    };
    let shape = Shape::get();
    let mut refuse = |code, message: &str, hint: &str| {
        sink.error(Finding {
            code,
            span: 0..0,
            path: Vec::new(),
            message: message.to_owned(),
            hint: Some(hint.to_owned()),
        });
    };
    match document::read(text).map(|document| write(shape, document)) {
        Some(formatted) if formatted.len() > MAX_TEXT_BYTES => refuse(
            Code::TooLarge,
            "formatted, this text would be larger than a manifest may be",
            "shorten it: tables within tables repeat the names of those around them",
        ),
        // Formatting must not change meaning, whatever faults it has: look before anyone's file is
        // replaced.
        Some(formatted)
            if DeTable::parse(&formatted)
                .is_ok_and(|after| same_table(parsed.root.get_ref(), after.get_ref())) =>
        {
            return Ok(formatted);
        }
        _ => refuse(
            Code::Syntax,
            "this text cannot be formatted without changing what it means",
            "this is a fault of the platform; please report it",
        ),
    }
    Err(sink.finish())
}

fn same_table(a: &DeTable<'_>, b: &DeTable<'_>) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b.iter())
            .all(|((a_key, a), (b_key, b))| a_key.get_ref() == b_key.get_ref() && same(a, b))
}

fn same(a: &Spanned<DeValue<'_>>, b: &Spanned<DeValue<'_>>) -> bool {
    match (a.get_ref(), b.get_ref()) {
        (DeValue::Table(a), DeValue::Table(b)) => same_table(a, b),
        (DeValue::Array(a), DeValue::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same(a, b))
        }
        (DeValue::String(a), DeValue::String(b)) => a == b,
        (DeValue::Integer(a), DeValue::Integer(b)) => {
            a.as_str() == b.as_str() && a.radix() == b.radix()
        }
        (DeValue::Float(a), DeValue::Float(b)) => a.as_str() == b.as_str(),
        (DeValue::Boolean(a), DeValue::Boolean(b)) => a == b,
        (DeValue::Datetime(a), DeValue::Datetime(b)) => a == b,
        _ => false,
    }
}

fn write(shape: &Shape, document: Document) -> String {
    let mut writer = Writer { out: String::new() };
    writer.lines(&document.head);
    if !document.head.is_empty() {
        writer.gap();
    }
    writer.body(Some(shape.root()), document.root, &mut Vec::new());
    if !document.foot.is_empty() {
        writer.gap();
        writer.lines(&document.foot);
    }
    let end = writer.out.trim_end().len();
    writer.out.truncate(end);
    if !writer.out.is_empty() {
        writer.out.push('\n');
    }
    writer.out
}

/// A table that gets a header of its own.
struct Block<'s> {
    key: Rc<str>,
    at: Option<At<'s>>,
    comments: Comments,
    table: Table,
    /// `[[...]]`
    element: bool,
}

struct Writer {
    out: String,
}

impl Writer {
    /// True when there is more than a manifest may have: the rest is not worth writing.
    fn is_full(&self) -> bool {
        self.out.len() > MAX_TEXT_BYTES
    }

    fn line(&mut self, line: &str) {
        if self.is_full() {
            return;
        }
        self.out.push_str(line);
        self.out.push('\n');
    }

    fn lines(&mut self, lines: &[String]) {
        for line in lines {
            self.line(line);
        }
    }

    /// An empty line, unless there is one or nothing is written yet.
    fn gap(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    /// The keys of a table, then the tables in it.
    fn body(&mut self, at: Option<At<'_>>, table: Table, path: &mut Vec<Rc<str>>) {
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let mut first = true;
        let mut below = false;
        for entry in sorted(at, table.entries) {
            let at = at.and_then(|at| child(at, &entry.key));
            match place(at, entry) {
                Placed::Line(entry, value) => {
                    let comments = &entry.item.comments;
                    if below || !first && !comments.above.is_empty() {
                        self.gap();
                    }
                    self.lines(&comments.above);
                    let beside = beside(comments);
                    self.line(&format!("{} = {value}{beside}", key_text(&entry.key)));
                    self.lines(&comments.below);
                    below = !comments.below.is_empty();
                    first = false;
                }
                Placed::Blocks(more) => blocks.extend(more),
            }
        }
        for block in blocks {
            if self.is_full() {
                return;
            }
            path.push(Rc::clone(&block.key));
            self.block(block, path);
            path.pop();
        }
    }

    /// A table with its header, unless the header would say nothing.
    fn block(&mut self, block: Block<'_>, path: &mut Vec<Rc<str>>) {
        let Block {
            at,
            comments,
            table,
            element,
            ..
        } = block;
        let own_lines = table.entries.iter().any(|entry| {
            let at = at.and_then(|at| child(at, &entry.key));
            is_line(at, entry)
        });
        let needed = element || own_lines || table.entries.is_empty() || !comments.is_empty();
        if needed {
            self.gap();
            self.lines(&comments.above);
            let name = path
                .iter()
                .map(|key| key_text(key))
                .collect::<Vec<_>>()
                .join(".");
            let beside = beside(&comments);
            let header = if element {
                format!("[[{name}]]")
            } else {
                format!("[{name}]")
            };
            self.line(&format!("{header}{beside}"));
            if !comments.below.is_empty() {
                self.lines(&comments.below);
                self.gap();
            }
        }
        self.body(at, table, path);
    }
}

fn beside(comments: &Comments) -> String {
    comments
        .beside
        .as_ref()
        .map(|comment| format!(" {comment}"))
        .unwrap_or_default()
}

/// The schema of a key of a table, if there is such a key.
fn child<'s>(at: At<'s>, key: &str) -> Option<At<'s>> {
    at.property(key)
        .or_else(|| at.entries().map(|(_, entry)| entry))
}

/// The entries in the order in which they are written.
fn sorted(at: Option<At<'_>>, mut entries: Vec<Entry>) -> Vec<Entry> {
    let Some(at) = at else { return entries };
    if at.entries().is_some() {
        // The process type that every app has comes first.
        entries.sort_by(|a, b| {
            let first = |entry: &Entry| at.prefers() != Some(entry.key.as_ref());
            (first(a), &a.key).cmp(&(first(b), &b.key))
        });
        return entries;
    }
    let keys = at.keys();
    entries.sort_by_key(|entry| {
        keys.iter()
            .position(|key| *key == entry.key.as_ref())
            .unwrap_or(keys.len())
    });
    entries
}

enum Placed<'s> {
    /// `key = value`
    Line(Entry, String),
    /// Headers.
    Blocks(Vec<Block<'s>>),
}

fn is_line(at: Option<At<'_>>, entry: &Entry) -> bool {
    matches!(place(at, entry.clone()), Placed::Line(..))
}

/// Whether a key gets a line or headers.
fn place(at: Option<At<'_>>, mut entry: Entry) -> Placed<'_> {
    let key = Rc::clone(&entry.key);
    match entry.item.node {
        Node::Table(mut table) => {
            table.entries = sorted(at, table.entries);
            let wants_line = match at {
                Some(at) if at.kind() == "object" => at.text("x-layout") == Some("inline"),
                _ => table.inline,
            };
            // What is inline where the definition does not know it has no other form: its keys
            // may be anything.
            let known = at.is_some_and(|at| at.kind() == "object");
            let fits = one_line_table(&table).filter(|text| {
                !known || key_text(&key).len() + text.chars().count() + 3 <= LINE_CHARS
            });
            let value = fits.or_else(|| (!known).then(|| tall_table(&table, "")));
            // A comment below a header is within its table, so it keeps the header.
            let free = table.inline || entry.item.comments.below.is_empty();
            match value.filter(|_| wants_line && free) {
                Some(value) => {
                    entry.item.node = Node::Table(table);
                    Placed::Line(entry, value)
                }
                None => Placed::Blocks(vec![Block {
                    key,
                    at,
                    comments: entry.item.comments,
                    table,
                    element: false,
                }]),
            }
        }
        Node::Array(array) if wants_blocks(at, &array) => {
            let items_at = at.and_then(At::items);
            Placed::Blocks(elements(&key, items_at, entry.item.comments, array))
        }
        Node::Array(ref array) => {
            let width = key_text(&key).chars().count() + 3;
            let value = array_text(array, "", width);
            Placed::Line(entry, value)
        }
        Node::Scalar(ref text) => {
            let value = text.clone();
            Placed::Line(entry, value)
        }
    }
}

fn wants_blocks(at: Option<At<'_>>, array: &Array) -> bool {
    let tables = !array.items.is_empty()
        && array
            .items
            .iter()
            .all(|item| matches!(item.node, Node::Table(_)));
    let known = at
        .and_then(At::items)
        .is_some_and(|items| items.kind() == "object");
    tables && (known || array.blocks)
}

fn elements<'s>(
    key: &Rc<str>,
    at: Option<At<'s>>,
    outer: Comments,
    array: Array,
) -> Vec<Block<'s>> {
    let last = array.items.len().saturating_sub(1);
    let mut end = array.end;
    let mut outer = outer;
    let mut blocks = Vec::with_capacity(array.items.len());
    for (index, item) in array.items.into_iter().enumerate() {
        let Node::Table(table) = item.node else {
            continue;
        };
        let mut comments = item.comments;
        if index == 0 {
            // Comments on the whole list become comments on its first element.
            let mut above = std::mem::take(&mut outer.above);
            above.extend(outer.beside.take());
            above.append(&mut comments.above);
            comments.above = above;
        }
        if index == last {
            comments.below.append(&mut end);
            comments.below.append(&mut outer.below);
        }
        blocks.push(Block {
            key: Rc::clone(key),
            at,
            comments,
            table,
            element: true,
        });
    }
    blocks
}

/// The value in one line; absent where comments or a text of several lines are in the way.
fn one_line(node: &Node) -> Option<String> {
    match node {
        Node::Scalar(text) => (!text.contains('\n')).then(|| text.clone()),
        Node::Array(array) => {
            let plain = array.end.is_empty() && array.items.iter().all(|i| i.comments.is_empty());
            let items: Option<Vec<String>> = array
                .items
                .iter()
                .filter(|_| plain)
                .map(|item| one_line(&item.node))
                .collect();
            plain.then_some(())?;
            Some(format!("[{}]", items?.join(", ")))
        }
        Node::Table(table) => one_line_table(table),
    }
}

fn one_line_table(table: &Table) -> Option<String> {
    let mut entries = Vec::with_capacity(table.entries.len());
    for Entry { key, item } in &table.entries {
        if !item.comments.is_empty() {
            return None;
        }
        entries.push(format!("{} = {}", key_text(key), one_line(&item.node)?));
    }
    Some(braced(&entries))
}

/// An inline table with values in it that need several lines; itself it may have none.
fn tall_table(table: &Table, indent: &str) -> String {
    let entries: Vec<String> = table
        .entries
        .iter()
        .map(|Entry { key, item }| format!("{} = {}", key_text(key), any_text(&item.node, indent)))
        .collect();
    braced(&entries)
}

fn braced(entries: &[String]) -> String {
    if entries.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {} }}", entries.join(", "))
    }
}

fn any_text(node: &Node, indent: &str) -> String {
    if let Some(text) = one_line(node) {
        return text;
    }
    match node {
        Node::Scalar(text) => text.clone(),
        Node::Array(array) => array_text(array, indent, 0),
        Node::Table(table) => tall_table(table, indent),
    }
}

/// A list that starts in a line with `used` columns before it.
fn array_text(array: &Array, indent: &str, used: usize) -> String {
    let plain = array.end.is_empty() && array.items.iter().all(|item| item.comments.is_empty());
    if plain {
        let items: Option<Vec<String>> = array
            .items
            .iter()
            .map(|item| one_line(&item.node))
            .collect();
        let line = items.map(|items| format!("[{}]", items.join(", ")));
        let fits = |line: &String| indent.len() + used + line.chars().count() <= LINE_CHARS;
        if let Some(line) = line.filter(|line| array.items.is_empty() || fits(line)) {
            return line;
        }
    }
    let inner = format!("{indent}{INDENT}");
    let mut out = String::from("[\n");
    let mut push = |line: &str| {
        out.push_str(&inner);
        out.push_str(line);
        out.push('\n');
    };
    for item in &array.items {
        for comment in &item.comments.above {
            push(comment);
        }
        let value = match &item.node {
            Node::Array(array) => array_text(array, &inner, 0),
            node => any_text(node, &inner),
        };
        push(&format!("{value},{}", beside(&item.comments)));
    }
    for comment in &array.end {
        push(comment);
    }
    out.push_str(indent);
    out.push(']');
    out
}

/// The key as TOML writes it.
fn key_text(key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare {
        return key.to_owned();
    }
    let mut out = String::from("\"");
    for c in key.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if display::is_hidden(c) => {
                out.push_str(&format!("\\u{:04X}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Lines above which a comparison would take too long; see [`diff`].
const MAX_DIFF_LINES: usize = 5_000;

/// What formatting changes, as a unified diff; empty when nothing.
pub fn diff(file_name: &str, before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    let longest = before.lines().count().max(after.lines().count());
    if longest > MAX_DIFF_LINES {
        return format!(
            "--- {file_name}\n+++ {file_name} (formatted)\n@@ {longest} lines are too many to \
             compare @@\n"
        );
    }
    similar::TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(3)
        .header(file_name, &format!("{file_name} (formatted)"))
        .to_string()
}

//! A text as `fmt` sees it: values as they are spelled, and comments with what they belong to.
//!
//! A comment belongs to
//! - the statement in its line;
//! - else the statement right below it;
//! - else, when an empty line is below it and none above, the statement right above it (a key that
//!   was commented out stays in its table);
//! - else, with empty lines around it, the next statement, at that distance;
//! - the file, when it is the first thing in it and an empty line follows, or the last.
//!
//! The text must have passed [`crate::syntax`]: what is wrong there is not looked for here.

use std::collections::BTreeMap;
use std::rc::Rc;

use toml_parser::decoder::Encoding;
use toml_parser::parser::{Event, EventKind};
use toml_parser::{Raw, Source};

/// Comments and what they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Comments {
    /// Lines above; an empty text is an empty line.
    pub(crate) above: Vec<String>,
    /// In the same line, after it.
    pub(crate) beside: Option<String>,
    /// Lines right below.
    pub(crate) below: Vec<String>,
}

impl Comments {
    pub(crate) fn is_empty(&self) -> bool {
        self.above.is_empty() && self.beside.is_none() && self.below.is_empty()
    }
}

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// As it is spelled.
    Scalar(String),
    Array(Array),
    Table(Table),
}

/// A list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Array {
    pub(crate) items: Vec<Item>,
    /// Comments after the last item.
    pub(crate) end: Vec<String>,
    /// True for `[[...]]`.
    pub(crate) blocks: bool,
}

/// A table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
    /// Key to place in `entries`.
    index: BTreeMap<Rc<str>, usize>,
    /// True for `{ ... }`.
    pub(crate) inline: bool,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Rc<str>,
    pub(crate) item: Item,
}

/// A value and its comments.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) comments: Comments,
    pub(crate) node: Node,
}

impl Item {
    fn new(node: Node) -> Self {
        Self {
            comments: Comments::default(),
            node,
        }
    }
}

impl Table {
    fn push(&mut self, key: Rc<str>, item: Item) {
        self.index
            .entry(Rc::clone(&key))
            .or_insert(self.entries.len());
        self.entries.push(Entry { key, item });
    }

    /// The value of this key; a table that nothing was said about where there is none.
    fn entry(&mut self, key: &Rc<str>) -> &mut Item {
        let index = if let Some(index) = self.index.get(key) {
            *index
        } else {
            self.push(Rc::clone(key), Item::new(Node::Table(Self::default())));
            self.entries.len() - 1
        };
        &mut self.entries[index].item
    }
}

/// A whole text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document {
    pub(crate) root: Table,
    /// Comments at the start that belong to the file.
    pub(crate) head: Vec<String>,
    /// Comments at the end that belong to the file.
    pub(crate) foot: Vec<String>,
}

/// Reads a text that has no errors. Absent: it has some.
pub(crate) fn read(text: &str) -> Option<Document> {
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let mut events: Vec<Event> = Vec::with_capacity(tokens.len());
    let mut no_errors = |_| {};
    toml_parser::parser::parse_document(&tokens, &mut |event| events.push(event), &mut no_errors);
    let mut reader = Reader {
        text,
        events: events.into_iter().peekable(),
        pending: Vec::new(),
    };
    reader.document()
}

struct Reader<'t> {
    text: &'t str,
    events: std::iter::Peekable<std::vec::IntoIter<Event>>,
    /// Comments and empty lines since the last statement.
    pending: Vec<String>,
}

/// Where in the document something is: keys, and the newest element of arrays of tables.
type Place = Vec<Rc<str>>;

impl Reader<'_> {
    fn document(&mut self) -> Option<Document> {
        let mut document = Document::default();
        let mut table = Place::new();
        let mut last: Option<Place> = None;
        // True while nothing but white space was read in this line.
        let mut fresh = true;
        while let Some(event) = self.events.next() {
            match event.kind() {
                EventKind::Newline => {
                    if fresh {
                        self.pending.push(String::new());
                    }
                    fresh = true;
                }
                EventKind::Comment => {
                    let comment = self.comment(event);
                    match last.as_ref().filter(|_| !fresh) {
                        Some(place) => {
                            item_at(&mut document.root, place)?.comments.beside = Some(comment);
                        }
                        None => self.pending.push(comment),
                    }
                    // A comment's own line is not an empty one.
                    fresh = false;
                }
                EventKind::StdTableOpen | EventKind::ArrayTableOpen => {
                    let above = self.settle(&mut document, last.as_ref())?;
                    let path = self.header();
                    let blocks = event.kind() == EventKind::ArrayTableOpen;
                    open_table(&mut document.root, &path, blocks)?
                        .comments
                        .above = above;
                    table.clone_from(&path);
                    last = Some(path);
                    fresh = false;
                }
                EventKind::SimpleKey => {
                    let above = self.settle(&mut document, last.as_ref())?;
                    let (path, node) = self.key_value(event)?;
                    let mut place = table.clone();
                    place.extend(path);
                    let item = Item {
                        comments: Comments {
                            above,
                            ..Comments::default()
                        },
                        node,
                    };
                    insert(&mut document.root, &place, item)?;
                    last = Some(place);
                    fresh = false;
                }
                _ => {}
            }
        }
        self.end(&mut document, last.as_ref())?;
        Some(document)
    }

    fn comment(&self, event: Event) -> String {
        let text = self
            .text
            .get(event.span().start()..event.span().end())
            .unwrap_or_default();
        text.trim_end().to_owned()
    }

    /// Gives the pending comments to whom they belong; those of the next statement are returned.
    fn settle(&mut self, document: &mut Document, last: Option<&Place>) -> Option<Vec<String>> {
        let mut lines = std::mem::take(&mut self.pending);
        if last.is_none() {
            lines = tidy(lines);
        }
        let touches_last = lines.first().is_some_and(|line| !line.is_empty());
        if touches_last && let Some(gap) = lines.iter().position(String::is_empty) {
            let rest = lines.split_off(gap);
            match last {
                Some(place) => item_at(&mut document.root, place)?.comments.below = lines,
                None => document.head = lines,
            }
            lines = rest;
        }
        Some(tidy(lines))
    }

    fn end(&mut self, document: &mut Document, last: Option<&Place>) -> Option<()> {
        let mut lines = std::mem::take(&mut self.pending);
        let touches_last = lines.first().is_some_and(|line| !line.is_empty());
        if touches_last && let Some(place) = last {
            let gap = lines
                .iter()
                .position(String::is_empty)
                .unwrap_or(lines.len());
            let rest = lines.split_off(gap);
            item_at(&mut document.root, place)?.comments.below = lines;
            lines = rest;
        }
        document.foot = tidy(lines);
        while document.foot.last().is_some_and(String::is_empty) {
            document.foot.pop();
        }
        Some(())
    }

    fn header(&mut self) -> Place {
        let mut path = Place::new();
        for event in self.events.by_ref() {
            match event.kind() {
                EventKind::SimpleKey => path.push(key_name(self.text, event)),
                EventKind::StdTableClose | EventKind::ArrayTableClose => break,
                _ => {}
            }
        }
        path
    }

    fn key_value(&mut self, first: Event) -> Option<(Place, Node)> {
        let mut path = vec![key_name(self.text, first)];
        for event in self.events.by_ref() {
            match event.kind() {
                EventKind::SimpleKey => path.push(key_name(self.text, event)),
                EventKind::KeyValSep => break,
                _ => {}
            }
        }
        Some((path, self.value()?))
    }

    fn value(&mut self) -> Option<Node> {
        for event in self.events.by_ref() {
            let begins = matches!(
                event.kind(),
                EventKind::Scalar | EventKind::ArrayOpen | EventKind::InlineTableOpen
            );
            if begins {
                return self.value_from(event);
            }
        }
        None
    }

    fn value_from(&mut self, event: Event) -> Option<Node> {
        Some(match event.kind() {
            EventKind::ArrayOpen => Node::Array(self.array()?),
            EventKind::InlineTableOpen => Node::Table(self.inline_table()?),
            _ => Node::Scalar(self.spelling(event)),
        })
    }

    /// The value as it is written; a literal string as a basic one where they are spelled alike.
    fn spelling(&self, event: Event) -> String {
        let raw = self
            .text
            .get(event.span().start()..event.span().end())
            .unwrap_or_default();
        if event.encoding() == Some(Encoding::LiteralString) {
            let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
            if !inner.contains(['"', '\\']) {
                return format!("\"{inner}\"");
            }
        }
        raw.to_owned()
    }

    fn array(&mut self) -> Option<Array> {
        let mut array = Array::default();
        let mut above: Vec<String> = Vec::new();
        // True until a line ends after an item: a comment is beside it.
        let mut beside = false;
        while let Some(event) = self.events.next() {
            match event.kind() {
                EventKind::ArrayClose => break,
                EventKind::Newline => beside = false,
                EventKind::Comment => {
                    let comment = self.comment(event);
                    match array.items.last_mut().filter(|_| beside) {
                        Some(item) if item.comments.beside.is_none() => {
                            item.comments.beside = Some(comment);
                        }
                        _ => above.push(comment),
                    }
                }
                EventKind::Scalar | EventKind::ArrayOpen | EventKind::InlineTableOpen => {
                    let mut item = Item::new(self.value_from(event)?);
                    item.comments.above = std::mem::take(&mut above);
                    array.items.push(item);
                    beside = true;
                }
                _ => {}
            }
        }
        array.end = above;
        Some(array)
    }

    fn inline_table(&mut self) -> Option<Table> {
        let mut table = Table {
            inline: true,
            ..Table::default()
        };
        while let Some(event) = self.events.next() {
            match event.kind() {
                EventKind::InlineTableClose => break,
                EventKind::SimpleKey => {
                    let (path, node) = self.key_value(event)?;
                    insert(&mut table, &path, Item::new(node))?;
                }
                _ => {}
            }
        }
        make_inline(&mut table);
        Some(table)
    }
}

/// Tables that dotted keys make within an inline table are inline, too.
fn make_inline(table: &mut Table) {
    table.inline = true;
    for entry in &mut table.entries {
        if let Node::Table(table) = &mut entry.item.node {
            make_inline(table);
        }
    }
}

fn key_name(text: &str, event: Event) -> Rc<str> {
    let span = event.span();
    let raw = text.get(span.start()..span.end()).unwrap_or_default();
    let mut name = std::borrow::Cow::Borrowed("");
    let mut no_errors = |_| {};
    Raw::new_unchecked(raw, event.encoding(), span).decode_key(&mut name, &mut no_errors);
    name.into()
}

/// No empty line at the start, and never two together.
fn tidy(lines: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(lines.len());
    for line in lines {
        if line.is_empty() && out.last().is_none_or(String::is_empty) {
            continue;
        }
        out.push(line);
    }
    out
}

/// The table of this item: itself, or the newest element of an array of tables.
fn as_table(item: &mut Item) -> Option<&mut Table> {
    match &mut item.node {
        Node::Table(table) => Some(table),
        Node::Array(array) => array.items.last_mut().and_then(as_table),
        Node::Scalar(_) => None,
    }
}

fn descend<'d>(root: &'d mut Table, path: &[Rc<str>]) -> Option<&'d mut Table> {
    path.iter()
        .try_fold(root, |table, key| as_table(table.entry(key)))
}

/// The item at this place: for an array of tables, its newest element.
fn item_at<'d>(root: &'d mut Table, place: &[Rc<str>]) -> Option<&'d mut Item> {
    let (last, parents) = place.split_last()?;
    let item = descend(root, parents)?.entry(last);
    if !matches!(&item.node, Node::Array(array) if array.blocks) {
        return Some(item);
    }
    match &mut item.node {
        Node::Array(array) => array.items.last_mut(),
        Node::Scalar(_) | Node::Table(_) => None,
    }
}

fn open_table<'d>(root: &'d mut Table, path: &[Rc<str>], blocks: bool) -> Option<&'d mut Item> {
    if blocks {
        let (last, parents) = path.split_last()?;
        let table = descend(root, parents)?;
        if !table.index.contains_key(last) {
            let array = Array {
                blocks: true,
                ..Array::default()
            };
            table.push(Rc::clone(last), Item::new(Node::Array(array)));
        }
        if let Node::Array(array) = &mut table.entry(last).node {
            array.items.push(Item::new(Node::Table(Table::default())));
        }
    }
    item_at(root, path)
}

fn insert(root: &mut Table, place: &[Rc<str>], item: Item) -> Option<()> {
    let (last, parents) = place.split_last()?;
    descend(root, parents)?.push(Rc::clone(last), item);
    Some(())
}

//! The first reading: the events of a text, for the errors of its grammar, for what only TOML 1.1
//! allows, for nesting that is too deep, and for the key that each place belongs to.

// ring: the bounds of a manifest's syntax are named once, in the module that reads it in these steps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use toml_parser::decoder::{Encoding, ScalarKind};
use toml_parser::parser::{EventReceiver, ValidateWhitespace};
use toml_parser::{ErrorSink, ParseError, Raw, Source, Span};

use super::explain::{
    COMMENT_IN_INLINE, ESCAPE_11, NEWLINE_IN_INLINE, NO_SECONDS, TRAILING_COMMA, explain,
};
use super::{MAX_DEPTH, MAX_KEY_BYTES};
use crate::diagnostic::{Code, Finding, Path, Step};
use crate::formats::shown;

/// Something that was defined: the root, a table, or a key.
#[derive(Debug)]
struct Node {
    parent: usize,
    step: Step,
    /// Where its name was first written.
    span: Range<usize>,
}

/// What the events say.
pub(super) struct Scan<'t> {
    text: &'t str,
    /// Errors of the grammar: the structure is in doubt.
    pub(super) grammar: Vec<(Code, ParseError)>,
    /// Errors inside of values: the structure is sound.
    pub(super) values: Vec<(Code, ParseError)>,
    /// Places of the values with errors.
    pub(super) bad_values: Vec<Range<usize>>,
    pub(super) too_deep: bool,
    nodes: Vec<Node>,
    /// Where the key of a statement starts, in order, with its node.
    keys: Vec<(usize, usize)>,
    /// Statements as places, in order.
    statements: Vec<Range<usize>>,
}

impl Scan<'_> {
    /// The path of the key that this place belongs to; empty where there is none.
    fn path_at(&self, offset: usize) -> Path {
        let statement = self
            .statements
            .partition_point(|range| range.start <= offset);
        let Some(statement) = statement
            .checked_sub(1)
            .and_then(|i| self.statements.get(i))
        else {
            return Path::new();
        };
        let key = self.keys.partition_point(|(start, _)| *start <= offset);
        let Some((start, node)) = key.checked_sub(1).and_then(|i| self.keys.get(i)) else {
            return Path::new();
        };
        if offset > statement.end || *start < statement.start {
            return Path::new();
        }
        self.path_of(*node)
    }

    fn path_of(&self, mut node: usize) -> Path {
        let mut path = Path::new();
        while let Some(found) = self.nodes.get(node).filter(|_| node != ROOT) {
            path.push(found.step.clone());
            node = found.parent;
        }
        path.reverse();
        path
    }

    pub(super) fn finding(&self, text: &str, code: Code, error: &ParseError) -> Finding {
        let span = error_span(error);
        let (message, hint) = explain(text, code, error, &span);
        Finding {
            code,
            path: self.path_at(span.start),
            span,
            message,
            hint,
        }
    }

    /// A finding for an error of the second reading.
    pub(super) fn tree_finding(&self, message: &str, span: Range<usize>) -> Finding {
        let path = self.path_at(span.start);
        if message == "duplicate key" || message.starts_with("cannot extend") {
            let name = self.text.get(span.clone()).map(shown).unwrap_or_default();
            let key = self
                .keys
                .binary_search_by_key(&span.start, |(start, _)| *start);
            let first = key
                .ok()
                .map(|key| self.nodes[self.keys[key].1].span.clone())
                .filter(|first| first.start < span.start);
            let hint = first.map(|first| {
                let line = 1 + self.text[..first.start].matches('\n').count();
                format!("it is already defined in line {line}; keep one of them")
            });
            let message = match message.strip_prefix("cannot extend value of type ") {
                Some(rest) => {
                    let kind = rest.split(" with").next().unwrap_or(rest);
                    let article = if kind.starts_with(['a', 'i']) {
                        "an"
                    } else {
                        "a"
                    };
                    format!(
                        "`{name}` cannot be extended: it is already defined as {article} {kind}"
                    )
                }
                None => format!("`{name}` is defined twice"),
            };
            return Finding {
                code: Code::DuplicateKey,
                span,
                path,
                message,
                hint,
            };
        }
        Finding {
            code: Code::Syntax,
            span,
            path,
            message: message.to_owned(),
            hint: None,
        }
    }
}

pub(super) fn error_span(error: &ParseError) -> Range<usize> {
    let span = error.unexpected().or_else(|| error.context());
    span.map_or(0..0, |span| span.start()..span.end())
}

const ROOT: usize = 0;

/// What arrays and inline tables are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    /// With the place of the comma that was read last, if nothing came after it.
    Inline {
        comma: Option<(usize, usize)>,
        /// True once it was said that its lines are too many.
        tall: bool,
    },
}

/// Receives the events.
struct Scanner<'t, 'e> {
    source: Source<'t>,
    errors: &'e RefCell<Errors>,
    nodes: Vec<Node>,
    index: BTreeMap<(usize, String), usize>,
    /// How many elements the array of tables of this node has.
    elements: BTreeMap<usize, usize>,
    keys: Vec<(usize, usize)>,
    statements: Vec<Range<usize>>,
    containers: Vec<Container>,
    /// The table that statements go to.
    table: usize,
    /// The key that is being read: its node so far, and how deep it is.
    key: usize,
    key_depth: usize,
    /// The header that is being read: none, a table, an array of tables.
    header: Option<bool>,
    /// Nodes that keys in each open inline table start from.
    bases: Vec<usize>,
    /// False until a key was read in this statement.
    has_key: bool,
    too_deep: bool,
}

#[derive(Debug, Default)]
struct Errors {
    grammar: Vec<(Code, ParseError)>,
    values: Vec<(Code, ParseError)>,
    bad_values: Vec<Range<usize>>,
}

/// More errors than this are not kept: the sink shows fewer still.
const MAX_KEPT: usize = 2 * crate::diagnostic::MAX_DIAGNOSTICS;

impl Errors {
    fn grammar(&mut self, code: Code, error: ParseError) {
        if self.grammar.len() < MAX_KEPT {
            self.grammar.push((code, error));
        }
    }

    fn value(&mut self, code: Code, error: ParseError, value: Span) {
        if self.values.len() < MAX_KEPT {
            self.values.push((code, error));
            self.bad_values.push(value.start()..value.end());
        }
    }
}

impl<'t> Scanner<'t, '_> {
    fn raw(&self, span: Span, kind: Option<Encoding>) -> Option<Raw<'t>> {
        let text = self.source.input().get(span.start()..span.end())?;
        Some(Raw::new_unchecked(text, kind, span))
    }

    fn deep(&mut self, span: Span) {
        if !self.too_deep {
            self.too_deep = true;
            self.errors.borrow_mut().grammar(
                Code::TooDeep,
                ParseError::new("this lies too deep").with_unexpected(span),
            );
        }
    }

    fn open(&mut self, container: Container, span: Span) -> bool {
        self.touch();
        self.containers.push(container);
        self.bases.push(self.key);
        let allowed = self.containers.len() <= MAX_DEPTH;
        if !allowed {
            self.deep(span);
        }
        allowed
    }

    fn close(&mut self) -> Option<Container> {
        let base = self.bases.pop();
        self.key = base.unwrap_or(self.table);
        self.key_depth = 0;
        self.containers.pop()
    }

    /// Something follows the comma that was read last.
    fn touch(&mut self) {
        if let Some(Container::Inline { comma, .. }) = self.containers.last_mut() {
            *comma = None;
        }
    }

    fn toml_11(&self, what: &'static str, span: Span) {
        // The structure is as sound as in a text without it, but it is not TOML 1.0.
        let error = ParseError::new(what).with_unexpected(span);
        let mut errors = self.errors.borrow_mut();
        if errors.values.len() < MAX_KEPT {
            errors.values.push((Code::Toml11, error));
        }
    }

    /// Goes one step down from the key read so far.
    fn descend(&mut self, name: String, span: Span) {
        let parent = self.key;
        let next = self.nodes.len();
        let place = span.start()..span.end();
        let node = *self.index.entry((parent, name.clone())).or_insert(next);
        if node == next {
            self.nodes.push(Node {
                parent,
                step: Step::Key(name),
                span: place,
            });
        }
        self.key = node;
    }

    /// The node of the newest element of the array of tables at this node, if it is one.
    fn newest_element(&mut self, node: usize) -> usize {
        match self.elements.get(&node) {
            Some(count) => {
                let step = Step::Index(count - 1);
                // Elements are indexed by a name that no key can have: the empty parent is root's.
                let name = format!("\0{}", count - 1);
                let next = self.nodes.len();
                let element = *self.index.entry((node, name)).or_insert(next);
                if element == next {
                    let span = self.nodes[node].span.clone();
                    self.nodes.push(Node {
                        parent: node,
                        step,
                        span,
                    });
                }
                element
            }
            None => node,
        }
    }

    fn escapes_of_11(&self, raw: &str, span: Span) {
        if !raw.contains('\\') {
            return;
        }
        let bytes = raw.as_bytes();
        let mut at = 0;
        while at + 1 < bytes.len() {
            if bytes[at] != b'\\' {
                at += 1;
                continue;
            }
            if matches!(bytes[at + 1], b'e' | b'x') {
                let start = span.start() + at;
                self.toml_11(ESCAPE_11, Span::new_unchecked(start, start + 2));
            }
            at += 2;
        }
    }

    /// Says once of each inline table that it must be in one line.
    fn tall(&mut self, what: &'static str, span: Span) {
        let Some(Container::Inline { tall, .. }) = self.containers.last_mut() else {
            return;
        };
        if !std::mem::replace(tall, true) {
            self.toml_11(what, span);
        }
    }

    fn statement_end(&mut self, at: usize) {
        if let Some(statement) = self.statements.last_mut() {
            statement.end = statement.end.max(at);
        }
        self.has_key = false;
        self.key = self.table;
        self.key_depth = 0;
    }
}

impl EventReceiver for Scanner<'_, '_> {
    fn std_table_open(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        self.begin_header(span, false);
    }
    fn array_table_open(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        self.begin_header(span, true);
    }
    fn std_table_close(&mut self, _span: Span, _error: &mut dyn ErrorSink) {
        self.end_header();
    }
    fn array_table_close(&mut self, _span: Span, _error: &mut dyn ErrorSink) {
        self.end_header();
    }
    fn inline_table_open(&mut self, span: Span, _error: &mut dyn ErrorSink) -> bool {
        self.open(
            Container::Inline {
                comma: None,
                tall: false,
            },
            span,
        )
    }
    fn inline_table_close(&mut self, _span: Span, _error: &mut dyn ErrorSink) {
        if let Some(Container::Inline {
            comma: Some((start, end)),
            ..
        }) = self.close()
        {
            self.toml_11(TRAILING_COMMA, Span::new_unchecked(start, end));
        }
    }
    fn array_open(&mut self, span: Span, _error: &mut dyn ErrorSink) -> bool {
        self.open(Container::Array, span)
    }
    fn array_close(&mut self, _span: Span, _error: &mut dyn ErrorSink) {
        self.close();
    }
    fn simple_key(&mut self, span: Span, kind: Option<Encoding>, error: &mut dyn ErrorSink) {
        self.touch();
        let Some(raw) = self.raw(span, kind) else {
            return;
        };
        if kind == Some(Encoding::BasicString) {
            self.escapes_of_11(raw.as_str(), span);
        }
        let mut name = std::borrow::Cow::Borrowed("");
        raw.decode_key(&mut name, error);
        if !self.has_key && self.header.is_none() {
            self.statements.push(span.start()..span.end());
            self.has_key = true;
            self.key = self.table;
        }
        if span.len() > MAX_KEY_BYTES {
            let error = ParseError::new("this key is too long").with_unexpected(span);
            self.errors.borrow_mut().grammar(Code::WrongLength, error);
        }
        self.key_depth += 1;
        if self.key_depth + self.containers.len() > MAX_DEPTH {
            self.deep(span);
            return;
        }
        if self.header.is_some() && self.key_depth > 1 {
            self.key = self.newest_element(self.key);
        }
        self.descend(name.into_owned(), span);
        self.keys.push((span.start(), self.key));
    }
    fn key_val_sep(&mut self, _span: Span, _error: &mut dyn ErrorSink) {
        self.key_depth = 0;
    }
    fn scalar(&mut self, span: Span, kind: Option<Encoding>, _error: &mut dyn ErrorSink) {
        self.touch();
        let Some(raw) = self.raw(span, kind) else {
            return;
        };
        if matches!(kind, Some(Encoding::BasicString | Encoding::MlBasicString)) {
            self.escapes_of_11(raw.as_str(), span);
        }
        let mut decoded = std::borrow::Cow::Borrowed("");
        let mut problems: Vec<ParseError> = Vec::new();
        let scalar = raw.decode_scalar(&mut decoded, &mut problems);
        for problem in problems {
            self.errors.borrow_mut().value(Code::Syntax, problem, span);
        }
        if scalar == ScalarKind::DateTime && lacks_seconds(raw.as_str()) {
            self.toml_11(NO_SECONDS, span);
        }
    }
    fn value_sep(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        if let Some(Container::Inline { comma, .. }) = self.containers.last_mut() {
            *comma = Some((span.start(), span.end()));
        }
        if let (Some(Container::Inline { .. }), Some(base)) =
            (self.containers.last(), self.bases.last())
        {
            self.key = *base;
            self.key_depth = 0;
        }
    }
    fn comment(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        self.tall(COMMENT_IN_INLINE, span);
    }
    fn newline(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        if self.containers.is_empty() {
            self.statement_end(span.start());
        } else {
            self.tall(NEWLINE_IN_INLINE, span);
        }
    }
}

impl Scanner<'_, '_> {
    fn begin_header(&mut self, span: Span, array: bool) {
        self.containers.clear();
        self.bases.clear();
        self.header = Some(array);
        self.statements.push(span.start()..span.end());
        self.key = ROOT;
        self.key_depth = 0;
        self.has_key = false;
    }

    fn end_header(&mut self) {
        let array = self.header.take() == Some(true);
        if array {
            *self.elements.entry(self.key).or_insert(0) += 1;
        }
        self.table = self.newest_element(self.key);
        self.key = self.table;
        self.has_key = true;
    }
}

/// A date or time with hours and minutes and no seconds after them.
fn lacks_seconds(raw: &str) -> bool {
    let Some(colon) = raw.find(':') else {
        return false;
    };
    let rest = raw.as_bytes().get(colon + 1..).unwrap_or_default();
    rest.len() >= 2 && rest[..2].iter().all(u8::is_ascii_digit) && rest.get(2) != Some(&b':')
}

pub(super) fn scan(text: &str) -> Scan<'_> {
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let errors = RefCell::new(Errors::default());
    let mut scanner = Scanner {
        source,
        errors: &errors,
        nodes: vec![Node {
            parent: ROOT,
            step: Step::Index(0),
            span: 0..0,
        }],
        index: BTreeMap::new(),
        elements: BTreeMap::new(),
        keys: Vec::new(),
        statements: Vec::new(),
        containers: Vec::new(),
        table: ROOT,
        key: ROOT,
        key_depth: 0,
        header: None,
        bases: Vec::new(),
        has_key: false,
        too_deep: false,
    };
    let mut report = |error: ParseError| errors.borrow_mut().grammar(Code::Syntax, error);
    {
        let mut receiver = ValidateWhitespace::new(&mut scanner, source);
        toml_parser::parser::parse_document(&tokens, &mut receiver, &mut report);
    }
    scanner.statement_end(text.len());
    let Scanner {
        nodes,
        keys,
        statements,
        too_deep,
        ..
    } = scanner;
    let Errors {
        grammar,
        values,
        bad_values,
    } = errors.into_inner();
    Scan {
        text,
        grammar,
        values,
        bad_values,
        too_deep,
        nodes,
        keys,
        statements,
    }
}

//! From bytes to a tree of values with their places: TOML 1.0, in bounded time.
//!
//! The text is read twice. First as a stream of events (`toml_parser`), which finds every error of
//! the grammar at once, everything that only TOML 1.1 allows, and nesting that would be too deep
//! to build or drop a tree of. Then, unless the grammar is broken, as a tree (`toml`), which knows
//! about keys and tables that are defined twice. The events also say which key a place belongs to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeInteger, DeTable, DeValue};
use toml::Spanned;
use toml_parser::decoder::{Encoding, ScalarKind};
use toml_parser::parser::{EventReceiver, ValidateWhitespace};
use toml_parser::{ErrorSink, Expected, ParseError, Raw, Source, Span};

use crate::diagnostic::{Code, Finding, Path, Sink, Step};
use crate::formats::{is_bidi_control, shown};

/// Largest text that is read, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Deepest nesting of arrays, inline tables and dotted keys. A manifest needs 5.
pub const MAX_DEPTH: usize = 32;

/// A tree of values, and what of it cannot be trusted.
pub(crate) struct Parsed<'t> {
    /// The document.
    pub(crate) root: Spanned<DeTable<'t>>,
    /// Places of values that were reported already, in order.
    pub(crate) bad: Vec<Range<usize>>,
}

/// The bytes as text; what is not UTF-8 is reported.
pub(crate) fn text_of(bytes: &[u8]) -> Result<&str, Box<(String, Finding)>> {
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let utf16 = bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]);
    let hint = if utf16 || bytes.get(1) == Some(&0) || bytes.first() == Some(&0) {
        "this looks like UTF-16: save the file as UTF-8"
    } else {
        "save the file as UTF-8"
    };
    // Only the part up to the mistake is needed to say where it is.
    let good = error.valid_up_to().min(MAX_TEXT_BYTES);
    let readable = String::from_utf8_lossy(&bytes[..good]).into_owned();
    let at = readable.len();
    Err(Box::new((
        readable,
        Finding {
            code: Code::Encoding,
            span: at..at,
            path: Path::new(),
            message: "the file is not UTF-8 text".to_owned(),
            hint: Some(hint.to_owned()),
        },
    )))
}

/// Reads the text. Absent: it is so broken that its structure is not worth a look.
pub(crate) fn parse<'t>(text: &'t str, sink: &mut Sink<'_>) -> Option<Parsed<'t>> {
    if text.len() > MAX_TEXT_BYTES {
        sink.error(Finding {
            code: Code::TooLarge,
            span: 0..0,
            path: Path::new(),
            message: format!("the text is {} bytes long", text.len()),
            hint: Some(format!("a manifest has at most {MAX_TEXT_BYTES} bytes")),
        });
        return None;
    }
    hidden_characters(text, sink);
    let scan = scan(text);
    let broken = !scan.grammar.is_empty() || scan.too_deep;
    let mut bad = scan.bad_values.clone();
    for (code, error) in scan.grammar.iter().chain(&scan.values) {
        let finding = scan.finding(text, *code, error);
        sink.error(finding);
        if sink.is_full() {
            return None;
        }
    }
    if broken {
        return None;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let seen = scan.values.iter().any(|(_, seen)| error_span(seen).start == span.start)
            || scan.bad_values.iter().any(|value| touches(value, &span));
        if !seen {
            bad.push(span.clone());
            sink.error(scan.tree_finding(error.message(), span));
        }
    }
    numbers(root.get_ref(), &scan, sink, &mut bad);
    bad.sort_by_key(|range| (range.start, range.end));
    Some(Parsed { root, bad })
}

/// Whether two places have something in common; a place of no length is at its offset.
fn touches(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start <= b.start && b.start < a.end.max(a.start + 1)
        || b.start <= a.start && a.start < b.end.max(b.start + 1)
}

/// Numbers that TOML's grammar allows and its types do not: beyond 64 bits.
fn numbers(root: &DeTable<'_>, scan: &Scan<'_>, sink: &mut Sink<'_>, bad: &mut Vec<Range<usize>>) {
    // The nesting is bounded by `MAX_DEPTH`, still a list is as short as a recursion.
    let mut open: Vec<&Spanned<DeValue<'_>>> = root.values().collect();
    while let Some(value) = open.pop() {
        let problem = match value.get_ref() {
            DeValue::Integer(number) => integer(number).is_none().then_some(
                "this integer does not fit in 64 bits: it must be from -2^63 to 2^63 - 1",
            ),
            DeValue::Float(number) => {
                let text = number.as_str();
                let finite = text.parse::<f64>().is_ok_and(f64::is_finite);
                let named = text.contains("inf") || text.contains("nan");
                (!finite && !named).then_some("this number is too large for a 64-bit float")
            }
            DeValue::Array(items) => {
                open.extend(items.iter());
                None
            }
            DeValue::Table(table) => {
                open.extend(table.values());
                None
            }
            DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => None,
        };
        if let Some(problem) = problem {
            bad.push(value.span());
            sink.error(scan.tree_finding(problem, value.span()));
        }
    }
}

/// The integer's value, where it fits.
pub(crate) fn integer(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Characters that cannot be seen and change how a line reads, wherever they are.
fn hidden_characters(text: &str, sink: &mut Sink<'_>) {
    if text.is_ascii() {
        return;
    }
    for (at, c) in text.char_indices().filter(|(_, c)| is_bidi_control(*c)) {
        sink.error(Finding {
            code: Code::HiddenCharacter,
            span: at..at + c.len_utf8(),
            path: Path::new(),
            message: format!(
                "the invisible character U+{:04X} makes this line read otherwise than it is",
                u32::from(c)
            ),
            hint: Some(format!(
                "remove it; where a value needs it, write \"\\u{:04X}\"",
                u32::from(c)
            )),
        });
        if sink.is_full() {
            return;
        }
    }
}

/// Something that was defined: the root, a table, or a key.
#[derive(Debug)]
struct Node {
    parent: usize,
    step: Step,
    /// Where its name was first written.
    span: Range<usize>,
}

/// What the events say.
struct Scan<'t> {
    text: &'t str,
    /// Errors of the grammar: the structure is in doubt.
    grammar: Vec<(Code, ParseError)>,
    /// Errors inside of values: the structure is sound.
    values: Vec<(Code, ParseError)>,
    /// Places of the values with errors.
    bad_values: Vec<Range<usize>>,
    too_deep: bool,
    nodes: Vec<Node>,
    /// Where the key of a statement starts, in order, with its node.
    keys: Vec<(usize, usize)>,
    /// Statements as places, in order.
    statements: Vec<Range<usize>>,
}

impl Scan<'_> {
    /// The path of the key that this place belongs to; empty where there is none.
    fn path_at(&self, offset: usize) -> Path {
        let statement = self.statements.partition_point(|range| range.start <= offset);
        let Some(statement) = statement.checked_sub(1).and_then(|i| self.statements.get(i)) else {
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

    fn finding(&self, text: &str, code: Code, error: &ParseError) -> Finding {
        let span = error_span(error);
        let (message, hint) = explain(text, code, error, &span);
        Finding { code, path: self.path_at(span.start), span, message, hint }
    }

    /// A finding for an error of the second reading.
    fn tree_finding(&self, message: &str, span: Range<usize>) -> Finding {
        let path = self.path_at(span.start);
        if message == "duplicate key" || message.starts_with("cannot extend") {
            let name = self.text.get(span.clone()).map(shown).unwrap_or_default();
            let first = self
                .keys
                .iter()
                .find(|(start, _)| *start == span.start)
                .map(|(_, node)| self.nodes[*node].span.clone())
                .filter(|first| first.start < span.start);
            let hint = first.map(|first| {
                let line = 1 + self.text[..first.start].matches('\n').count();
                format!("it is already defined in line {line}; keep one of them")
            });
            let message = match message.strip_prefix("cannot extend value of type ") {
                Some(rest) => {
                    let kind = rest.split(" with").next().unwrap_or(rest);
                    format!("`{name}` cannot be extended: it is already defined as {kind}")
                }
                None => format!("`{name}` is defined twice"),
            };
            return Finding { code: Code::DuplicateKey, span, path, message, hint };
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

fn error_span(error: &ParseError) -> Range<usize> {
    let span = error.unexpected().or_else(|| error.context());
    span.map_or(0..0, |span| span.start()..span.end())
}

/// The parser's words for people, and what to do.
fn explain(
    text: &str,
    code: Code,
    error: &ParseError,
    span: &Range<usize>,
) -> (String, Option<String>) {
    if code == Code::Toml11 {
        let hint = match error.description() {
            NEWLINE_IN_INLINE | COMMENT_IN_INLINE => {
                "write the table on one line, or as a `[table]` of its own"
            }
            TRAILING_COMMA => "remove the comma before the `}`",
            NO_SECONDS => "write the seconds as well, such as `07:32:00`",
            _ => "write it as `\\u00XX`",
        };
        let hint = format!("that is TOML 1.1, manifests are TOML 1.0: {hint}");
        return (error.description().to_owned(), Some(hint));
    }
    let mut message = error.description().to_owned();
    if let Some(expected) = error.expected().filter(|expected| !expected.is_empty()) {
        let words: Vec<String> = expected
            .iter()
            .map(|expected| match expected {
                Expected::Literal("\n") => "a new line".to_owned(),
                Expected::Literal(literal) => format!("`{}`", literal.escape_debug()),
                Expected::Description(words) => (*words).to_owned(),
                _ => "something else".to_owned(),
            })
            .collect();
        message.push_str(", expected ");
        message.push_str(&words.join(", "));
    }
    let at = text.get(span.start..).unwrap_or_default();
    let line = text.get(..span.start).unwrap_or_default();
    let line_start = line.rfind('\n').map_or(0, |newline| newline + 1);
    let before = text.get(line_start..span.start).unwrap_or_default();
    let value = at.split(['\n', '\r', '#']).next().unwrap_or_default().trim();
    let hint = if code == Code::TooDeep {
        Some(format!("at most {MAX_DEPTH} levels are read; a manifest needs 5"))
    } else if at.starts_with('\r') {
        Some("end lines with LF or CR LF, not with a lone CR".to_owned())
    } else if at.starts_with('\0') || at.chars().next().is_some_and(char::is_control) {
        Some("remove the control character; in a value, write it as `\\u00XX`".to_owned())
    } else if at.starts_with('\u{FEFF}') {
        Some("a byte order mark may only be at the start of the file; remove it".to_owned())
    } else if at.starts_with(['\u{201C}', '\u{201D}', '\u{2018}', '\u{2019}']) {
        Some("use straight quotes: \" or '".to_owned())
    } else if at.starts_with("---") || at.starts_with("- ") {
        Some("this looks like YAML; manifests are TOML: https://toml.io/en/v1.0.0".to_owned())
    } else if before.trim_end().ends_with('=') && error.description().contains("quoted") {
        Some(format!("put the text in quotes: \"{}\"", shown(value.trim_matches(['"', '\'']))))
    } else if matches!(value, "yes" | "on" | "True" | "TRUE") {
        Some("write `true`".to_owned())
    } else if matches!(value, "no" | "off" | "False" | "FALSE") {
        Some("write `false`".to_owned())
    } else if matches!(value, "null" | "nil" | "None" | "~") {
        Some("TOML has no null: leave the key out".to_owned())
    } else {
        None
    };
    (message, hint)
}

const ROOT: usize = 0;
const NEWLINE_IN_INLINE: &str = "a new line within an inline table";
const COMMENT_IN_INLINE: &str = "a comment within an inline table";
const TRAILING_COMMA: &str = "a comma after the last value of an inline table";
const NO_SECONDS: &str = "a time without seconds";
const ESCAPE_11: &str = "the escape `\\e` or `\\x`";

/// What arrays and inline tables are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    /// With the place of the comma that was read last, if nothing came after it.
    Inline { comma: Option<(usize, usize)> },
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
        if let Some(Container::Inline { comma }) = self.containers.last_mut() {
            *comma = None;
        }
    }

    fn toml_11(&self, what: &'static str, span: Span) {
        // The structure is as sound as in a text without it, but it is not TOML 1.0.
        let error = ParseError::new(what).with_unexpected(span);
        self.errors.borrow_mut().values.push((Code::Toml11, error));
    }

    /// Goes one step down from the key read so far.
    fn descend(&mut self, name: String, span: Span) {
        let parent = self.key;
        let next = self.nodes.len();
        let place = span.start()..span.end();
        let node = *self.index.entry((parent, name.clone())).or_insert(next);
        if node == next {
            self.nodes.push(Node { parent, step: Step::Key(name), span: place });
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
                    self.nodes.push(Node { parent: node, step, span });
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
        self.open(Container::Inline { comma: None }, span)
    }
    fn inline_table_close(&mut self, _span: Span, _error: &mut dyn ErrorSink) {
        if let Some(Container::Inline { comma: Some((start, end)) }) = self.close() {
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
        let Some(raw) = self.raw(span, kind) else { return };
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
        let Some(raw) = self.raw(span, kind) else { return };
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
        if let Some(Container::Inline { comma }) = self.containers.last_mut() {
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
        if matches!(self.containers.last(), Some(Container::Inline { .. })) {
            self.toml_11(COMMENT_IN_INLINE, span);
        }
    }
    fn newline(&mut self, span: Span, _error: &mut dyn ErrorSink) {
        match self.containers.last() {
            Some(Container::Inline { .. }) => self.toml_11(NEWLINE_IN_INLINE, span),
            Some(Container::Array) => {}
            None => self.statement_end(span.start()),
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
    let Some(colon) = raw.find(':') else { return false };
    let rest = raw.as_bytes().get(colon + 1..).unwrap_or_default();
    rest.len() >= 2
        && rest[..2].iter().all(u8::is_ascii_digit)
        && rest.get(2) != Some(&b':')
}

fn scan(text: &str) -> Scan<'_> {
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let errors = RefCell::new(Errors::default());
    let mut scanner = Scanner {
        source,
        errors: &errors,
        nodes: vec![Node { parent: ROOT, step: Step::Index(0), span: 0..0 }],
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
    let Scanner { nodes, keys, statements, too_deep, .. } = scanner;
    let Errors { grammar, values, bad_values } = errors.into_inner();
    Scan { text, grammar, values, bad_values, too_deep, nodes, keys, statements }
}

//! Holds the tree of values against the schema: which keys there are, of which types, with which
//! forms and ranges. Everything that is wrong is reported; what is right goes on to the meaning.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use crate::diagnostic::{Code, Finding, Path, Sink, Step, shown_key};
use crate::formats;
use crate::schema::{At, Shape};
use crate::suggest;
use crate::syntax::{self, Parsed};
use crate::units;

/// The values that are right, and the paths of those that are not.
pub(crate) struct Checked {
    /// As JSON in the authored form; what was wrong is left out.
    pub(crate) value: Value,
    /// Paths with a mistake at them.
    pub(crate) tainted: Vec<Path>,
    /// For arrays that lost items: the indexes that the remaining ones had.
    pub(crate) kept: BTreeMap<Path, Vec<usize>>,
}

/// Checks the whole document.
pub(crate) fn check(shape: &Shape, parsed: &Parsed<'_>, sink: &mut Sink<'_>) -> Checked {
    let mut checker = Checker {
        sink,
        bad: &parsed.bad,
        tainted: Vec::new(),
        kept: BTreeMap::new(),
        path: Path::new(),
    };
    let root = parsed.root.get_ref();
    let value = checker
        .table(shape.root(), root, 0..0)
        .unwrap_or(Value::Object(Map::new()));
    Checked {
        value,
        tainted: checker.tainted,
        kept: checker.kept,
    }
}

struct Checker<'a, 't> {
    sink: &'a mut Sink<'t>,
    bad: &'a [Range<usize>],
    tainted: Vec<Path>,
    kept: BTreeMap<Path, Vec<usize>>,
    path: Path,
}

impl Checker<'_, '_> {
    /// Reports a mistake at the current path.
    fn refuse(
        &mut self,
        code: Code,
        span: Range<usize>,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        self.tainted.push(self.path.clone());
        self.sink.error(Finding {
            code,
            span,
            path: self.path.clone(),
            message: message.into(),
            hint,
        });
    }

    fn within<T>(&mut self, step: Step, work: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let result = work(self);
        self.path.pop();
        result
    }

    /// True when the value was reported by the syntax already.
    fn is_bad(&self, span: &Range<usize>) -> bool {
        // The places are few, and none when the syntax is right.
        self.bad.iter().any(|bad| {
            bad.start < span.end.max(span.start + 1) && span.start < bad.end.max(bad.start + 1)
        })
    }

    fn value(&mut self, at: At<'_>, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        let span = value.span();
        let nested = matches!(value.get_ref(), DeValue::Array(_) | DeValue::Table(_));
        if !nested && self.is_bad(&span) {
            self.tainted.push(self.path.clone());
            return None;
        }
        let at = match value.get_ref() {
            DeValue::Table(_) => at.of_kind("object"),
            _ => at.of_kind("string"),
        };
        match (at.kind(), value.get_ref()) {
            ("object", DeValue::Table(table)) => self.table(at, table, span),
            ("array", DeValue::Array(items)) => self.array(at, items, span),
            ("string", DeValue::String(text)) => self.string(at, text, span),
            ("integer" | "number", DeValue::Integer(number)) => {
                let number = syntax::integer(number)?;
                self.range(at, number_as_f64(number), &number.to_string(), span)?;
                Some(Value::from(number))
            }
            ("number", DeValue::Float(number)) => {
                let text = number.as_str();
                let parsed = text.parse::<f64>().ok().filter(|f| f.is_finite());
                let Some(parsed) = parsed else {
                    let message = format!("`{text}` is not a number one can use here");
                    self.refuse(Code::OutOfRange, span, message, range_hint(at));
                    return None;
                };
                self.range(at, parsed, text, span)?;
                Number::from_f64(parsed).map(Value::Number)
            }
            ("boolean", DeValue::Boolean(yes)) => Some(Value::Bool(*yes)),
            (_, found) => {
                let message = format!("expected {}, found {}", wanted(at), kind_of(found));
                let hint = self.type_hint(at, found);
                self.refuse(Code::WrongType, span, message, hint);
                None
            }
        }
    }

    fn table(&mut self, at: At<'_>, table: &DeTable<'_>, span: Range<usize>) -> Option<Value> {
        let mut out = Map::new();
        for (key, value) in table {
            if self.sink.is_full() {
                return None;
            }
            let name = key.get_ref().as_ref();
            if let Some((pattern, entry)) = at.entries().filter(|_| at.property(name).is_none())
                && self.unquoted(pattern, entry, key, value)
            {
                continue;
            }
            self.within(Step::Key(name.to_owned()), |this| {
                if let Some(property) = at.property(name) {
                    if let Some(value) = this.value(property, value) {
                        out.insert(name.to_owned(), value);
                    }
                } else if let Some((pattern, entry)) = at.entries() {
                    let named = this.key_name(at, pattern, name, key.span());
                    if let (Some(value), true) = (this.value(entry, value), named) {
                        out.insert(name.to_owned(), value);
                    }
                } else {
                    this.unknown_key(at, name, key.span(), table);
                }
            });
        }
        self.table_size(at, table, &span);
        let mut whole = true;
        for missing in at.required().filter(|key| !table.contains_key(*key)) {
            self.missing_key(at, missing, None, &span, table);
            whole = false;
        }
        // A required key that is there but wrong leaves the table without meaning, too.
        whole &= at.required().all(|key| out.contains_key(key));
        for condition in at.conditions() {
            if table.get(condition.key).and_then(|v| v.get_ref().as_str()) != Some(condition.value)
            {
                continue;
            }
            let because = format!("`{} = \"{}\"`", condition.key, condition.value);
            for missing in condition
                .required
                .iter()
                .filter(|key| !table.contains_key(**key))
            {
                self.missing_key(at, missing, Some(&because), &span, table);
                whole = false;
            }
            whole &= condition.required.iter().all(|key| out.contains_key(*key));
            for (key, _) in table
                .iter()
                .filter(|(key, _)| condition.forbidden.contains(&key.get_ref().as_ref()))
            {
                let name = key.get_ref().as_ref();
                let message = format!("`{name}` does not go with {because}");
                let others: Vec<String> = at
                    .conditions()
                    .iter()
                    .filter(|other| !other.forbidden.contains(&name))
                    .map(|other| format!("`{} = \"{}\"`", other.key, other.value))
                    .collect();
                let hint = format!("remove it, or write {}", others.join(" or "));
                self.within(Step::Key(name.to_owned()), |this| {
                    this.refuse(Code::NotWithThis, key.span(), message, Some(hint));
                });
                out.remove(name);
            }
        }
        (whole || self.path.is_empty()).then_some(Value::Object(out))
    }

    /// Reports names with dots that were written without quotes, which TOML reads as tables within tables; true when
    /// there was one.
    fn unquoted(
        &mut self,
        pattern: &str,
        entry: At<'_>,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> bool {
        let noun = match pattern {
            formats::HOST_NAME => "host",
            formats::VARIABLE_NAME => "name",
            _ => return false,
        };
        let is_entry = |value: &DeValue<'_>| match value {
            DeValue::Table(table) => table
                .keys()
                .any(|key| entry.property(key.get_ref()).is_some()),
            _ => entry.kind() != "object",
        };
        // `shop.example.com = 8080`: the last part is the end of a name, unless it is nearly a key of the entry.
        let ends_a_name = |value: &DeValue<'_>, key: &str| {
            !matches!(value, DeValue::Table(_))
                && suggest::nearest(key, entry.keys().iter().copied()).is_none()
        };
        let mut names = Vec::new();
        let mut open = vec![(key.get_ref().to_string(), key, value, false)];
        while let Some((name, last, value, is_dotted)) = open.pop() {
            if is_entry(value.get_ref())
                || is_dotted && ends_a_name(value.get_ref(), last.get_ref())
            {
                names.push((name, last, value));
            } else if let DeValue::Table(table) = value.get_ref()
                // Not within braces.
                && value.span().start <= last.span().start
            {
                let dots_follow = value.span() == last.span();
                let below = |(key, value)| {
                    let key: &Spanned<DeString<'_>> = key;
                    (format!("{name}.{}", key.get_ref()), key, value, dots_follow)
                };
                open.extend(table.iter().map(below));
            }
            // Hostile nesting is bounded by the parser, and what is reported by the sink.
            if self.sink.is_full() {
                return true;
            }
        }
        names.retain(|(_, last, _)| last.span() != key.span());
        names.sort_by_key(|(_, last, _)| last.span().start);
        let only = names.len() == 1;
        for (name, last, value) in &names {
            let quoted = format!("{:?}", formats::shown(name));
            let is_header = value.span().start < last.span().start;
            let hint = if is_header {
                let table = crate::diagnostic::dotted(&self.path);
                format!("quote the {noun}: `[{table}.{quoted}]`")
            } else if value.span() == last.span() {
                format!("quote the {noun}: `{quoted}`")
            } else {
                format!("quote the {noun}: `{quoted} = …`")
            };
            let span = if only && key.span().start < last.span().end {
                key.span().start..last.span().end
            } else {
                last.span()
            };
            let message = format!(
                "`{}` is not in quotes, so that each dot begins a table",
                formats::shown(name)
            );
            self.within(Step::Key(name.clone()), |this| {
                this.refuse(Code::UnquotedName, span, message, Some(hint));
            });
        }
        !names.is_empty()
    }

    fn table_size(&mut self, at: At<'_>, table: &DeTable<'_>, span: &Range<usize>) {
        let count = table.len();
        if at.count("minProperties").is_some_and(|least| count < least) {
            let name = self.last_name();
            self.refuse(
                Code::WrongLength,
                span.clone(),
                format!("`{name}` is empty"),
                Some("name at least one, or leave it out".to_owned()),
            );
        }
        if let Some(most) = at.count("maxProperties").filter(|most| count > *most) {
            let name = self.last_name();
            self.refuse(
                Code::WrongLength,
                span.clone(),
                format!("`{name}` has {count} entries"),
                Some(format!("at most {most} are allowed")),
            );
        }
    }

    fn last_name(&self) -> String {
        let last = self.path.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(shown_key(key)),
            Step::Index(_) => None,
        });
        last.unwrap_or_else(|| "the manifest".to_owned())
    }

    /// Checks the name of an entry of a table with free keys.
    fn key_name(&mut self, at: At<'_>, pattern: &str, name: &str, span: Range<usize>) -> bool {
        let most = at.key_length();
        match formats::check(pattern, name) {
            Ok(()) if most.is_some_and(|most| name.chars().count() > most) => {
                let hint = most.map(|most| format!("at most {most} characters are allowed"));
                self.refuse(Code::WrongLength, span, "this name is too long", hint);
                false
            }
            Ok(()) => true,
            Err(refusal) => {
                self.refuse(
                    Code::InvalidValue,
                    span,
                    refusal.message,
                    Some(refusal.hint),
                );
                false
            }
        }
    }

    fn unknown_key(&mut self, at: At<'_>, name: &str, span: Range<usize>, table: &DeTable<'_>) {
        let keys = at.keys();
        let free = keys.iter().copied().filter(|key| !table.contains_key(*key));
        let nearest =
            suggest::nearest(name, free).or_else(|| suggest::nearest(name, keys.iter().copied()));
        let hint = if let Some(place) = elsewhere(at, name) {
            place
        } else if let Some(nearest) = nearest {
            format!("did you mean `{nearest}`?")
        } else {
            let list: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
            format!("keys here: {}", list.join(", "))
        };
        let message = format!("unknown key `{}`", shown_key(name));
        self.refuse(Code::UnknownKey, span, message, Some(hint));
    }

    fn missing_key(
        &mut self,
        at: At<'_>,
        key: &str,
        because: Option<&str>,
        span: &Range<usize>,
        table: &DeTable<'_>,
    ) {
        let message = match because {
            Some(because) => format!("missing key `{key}`, which {because} needs"),
            None => format!("missing key `{key}`"),
        };
        let misspelled = table
            .keys()
            .map(|k| k.get_ref().as_ref())
            .find(|k| at.property(k).is_none() && suggest::nearest(k, [key]).is_some());
        let hint = match misspelled {
            Some(name) => format!("is `{}` meant to be it?", shown_key(name)),
            None => match at.property(key).and_then(example) {
                Some(example) => format!("add it, such as `{key} = {example}`"),
                None => "add it".to_owned(),
            },
        };
        self.within(Step::Key(key.to_owned()), |this| {
            this.refuse(Code::MissingKey, span.clone(), message, Some(hint));
        });
    }

    fn array(&mut self, at: At<'_>, items: &DeArray<'_>, span: Range<usize>) -> Option<Value> {
        let count = items.len();
        let least = at.count("minItems").unwrap_or(0);
        let most = at.count("maxItems").unwrap_or(usize::MAX);
        if count < least || count > most {
            let name = self.last_name();
            let (message, hint) = if count < least {
                (
                    format!("`{name}` is empty"),
                    "leave the key out, or give it a value".to_owned(),
                )
            } else {
                (
                    format!("`{name}` has {count} items"),
                    format!("at most {most} are allowed"),
                )
            };
            self.refuse(Code::WrongLength, span, message, Some(hint));
            return None;
        }
        let item_schema = at.items()?;
        let mut out = Vec::with_capacity(count);
        let mut kept = Vec::with_capacity(count);
        for (index, item) in items.iter().enumerate() {
            if self.sink.is_full() {
                return None;
            }
            let value = self.within(Step::Index(index), |this| this.value(item_schema, item));
            if let Some(value) = value {
                out.push(value);
                kept.push(index);
            }
        }
        if kept.len() < count {
            self.kept.insert(self.path.clone(), kept);
        }
        Some(Value::Array(out))
    }

    fn string(&mut self, at: At<'_>, text: &str, span: Range<usize>) -> Option<Value> {
        let choices = at.choices();
        if !choices.is_empty() && !choices.contains(&text) {
            let message = format!("`{}` is not allowed here", formats::shown(text));
            let hint = formats::choice_hint(text, &choices);
            self.refuse(Code::NotAllowed, span, message, Some(hint));
            return None;
        }
        if let Some(most) = at.count("maxLength") {
            let count = text.chars().count();
            if count > most {
                let message = format!("this text has {count} characters");
                let hint = format!("at most {most} are allowed");
                self.refuse(Code::WrongLength, span, message, Some(hint));
                return None;
            }
        }
        if let Some(pattern) = at.text("pattern") {
            if let Err(refusal) = formats::check(pattern, text) {
                let code = if refusal.by_tag {
                    Code::ImageByTag
                } else {
                    Code::InvalidValue
                };
                self.refuse(code, span, refusal.message, Some(refusal.hint));
                return None;
            }
            self.bounds(at, pattern, text, span)?;
        }
        Some(Value::String(text.to_owned()))
    }

    /// Bounds of durations and sizes, which the schema cannot state.
    fn bounds(&mut self, at: At<'_>, pattern: &str, text: &str, span: Range<usize>) -> Option<()> {
        let read = match pattern {
            formats::DURATION => units::parse_duration,
            formats::SIZE => units::parse_size,
            _ => return Some(()),
        };
        let (Some(least), Some(most)) = (at.text("x-minimum"), at.text("x-maximum")) else {
            return Some(());
        };
        let value = read(text)?;
        let outside = read(least).is_some_and(|least| value < least)
            || read(most).is_some_and(|most| value > most);
        if outside {
            let message = format!("`{text}` is out of range");
            let hint = format!("write a value from \"{least}\" to \"{most}\"");
            self.refuse(Code::OutOfRange, span, message, Some(hint));
            return None;
        }
        let multiple = at.text("x-multiple").and_then(|m| Some((m, read(m)?)));
        if let Some((unit, length)) = multiple
            && !value.is_multiple_of(length)
        {
            let message = format!("`{text}` is not a whole number of {unit}");
            let rounded = units::format_size(value.next_multiple_of(length));
            let hint = format!("write \"{rounded}\"");
            self.refuse(Code::OutOfRange, span, message, Some(hint));
            return None;
        }
        Some(())
    }

    fn range(&mut self, at: At<'_>, value: f64, text: &str, span: Range<usize>) -> Option<()> {
        let low = at.number("minimum").is_some_and(|least| value < least);
        let high = at.number("maximum").is_some_and(|most| value > most);
        if low || high {
            self.refuse(
                Code::OutOfRange,
                span,
                format!("`{text}` is out of range"),
                range_hint(at),
            );
            return None;
        }
        Some(())
    }

    fn type_hint(&self, at: At<'_>, found: &DeValue<'_>) -> Option<String> {
        let quoted = |text: &str| format!("{:?}", formats::shown(text));
        match (at.kind(), found) {
            ("array", DeValue::String(text)) => {
                let words: Vec<String> = text.split_whitespace().take(8).map(quoted).collect();
                Some(format!("write a list: [{}]", words.join(", ")))
            }
            ("array", DeValue::Table(_)) => Some(format!(
                "write `[[{}]]`, once for each",
                crate::diagnostic::dotted(&self.path)
            )),
            ("object", DeValue::Array(items)) if is_tables(items) => {
                let name = crate::diagnostic::dotted(&self.path);
                Some(match at.prefers() {
                    Some(first) => format!("name each: write `[{name}.{first}]`"),
                    None => format!("there is only one: write `[{name}]`"),
                })
            }
            ("object", _) => {
                let required: Option<Vec<String>> = at
                    .required()
                    .map(|key| Some(format!("{key} = {}", example(at.property(key)?)?)))
                    .collect();
                let required = required.filter(|required| !required.is_empty())?;
                Some(format!("such as {{ {} }}", required.join(", ")))
            }
            ("string", _) if !at.choices().is_empty() => {
                example(at).map(|example| format!("such as {example}"))
            }
            ("string", DeValue::Integer(number)) => match at.text("pattern") {
                Some(formats::DURATION) => Some(format!("write it with its unit: \"{number}s\"")),
                Some(formats::SIZE) => Some(format!("write it with its unit: \"{number}MiB\"")),
                _ => Some(format!("write it in quotes: \"{number}\"")),
            },
            ("string", DeValue::Float(number)) => Some(format!("write it in quotes: \"{number}\"")),
            ("string", DeValue::Boolean(yes)) => Some(format!("write it in quotes: \"{yes}\"")),
            ("string", DeValue::Datetime(time)) => Some(format!("write it in quotes: \"{time}\"")),
            ("integer" | "number", DeValue::String(text))
                if text.trim().parse::<f64>().is_ok_and(f64::is_finite) =>
            {
                Some(format!("write it without quotes: {}", text.trim()))
            }
            ("integer", DeValue::Float(_)) => {
                Some("write a whole number, without a decimal point".to_owned())
            }
            ("boolean", _) => Some("write `true` or `false`".to_owned()),
            _ => example(at).map(|example| format!("such as {example}")),
        }
    }
}

/// Where a key that does not exist here does exist: in a table below.
fn elsewhere(at: At<'_>, name: &str) -> Option<String> {
    if let Some((table, list)) = below(at, name) {
        return Some(if list {
            format!("it belongs to the items of `{table}`")
        } else {
            format!("it belongs to `{table}`: write `{table}.{name}`")
        });
    }
    at.keys().into_iter().find_map(|key| {
        let (_, entry) = at.property(key)?.entries()?;
        let first = at.property(key)?.prefers()?;
        let header = if entry.property(name).is_some() {
            format!("[{key}.{first}]")
        } else {
            match below(entry, name)? {
                (table, true) => format!("[[{key}.{first}.{table}]]"),
                (table, false) => format!("[{key}.{first}.{table}]"),
            }
        };
        Some(format!(
            "it belongs to one of the `{key}`: write it under `{header}`"
        ))
    })
}

/// The table with this key among those of a table, and whether it is a list of tables.
fn below<'s>(at: At<'s>, name: &str) -> Option<(&'s str, bool)> {
    at.keys().into_iter().find_map(|key| {
        let property = at.property(key)?;
        let list = property
            .items()
            .is_some_and(|item| item.property(name).is_some());
        (list || property.property(name).is_some()).then_some((key, list))
    })
}

fn is_tables(items: &DeArray<'_>) -> bool {
    !items.is_empty() && items.iter().all(|item| item.get_ref().is_table())
}

#[allow(
    clippy::cast_precision_loss,
    reason = "compared with bounds far below 2^53 only"
)]
fn number_as_f64(number: i64) -> f64 {
    number as f64
}

fn range_hint(at: At<'_>) -> Option<String> {
    let least = at.number("minimum")?;
    let most = at.number("maximum")?;
    Some(format!("write a value from {least} to {most}"))
}

fn wanted(at: At<'_>) -> &'static str {
    match at.kind() {
        "object" => "a table",
        "array" => "a list",
        "string" if at.choices().is_empty() => at.text("pattern").map_or("a string", formats::noun),
        "string" => "a string",
        "integer" => "an integer",
        "number" => "a number",
        "boolean" => "a boolean",
        _ => "something else",
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// An example of a value, as TOML writes it.
pub(crate) fn example(at: At<'_>) -> Option<String> {
    if let Some(example) = at
        .get("examples")
        .and_then(Value::as_array)
        .and_then(|e| e.first())
    {
        return inline(example);
    }
    at.choices().first().map(|choice| format!("\"{choice}\""))
}

/// A JSON value as TOML writes it in one line; absent for null.
pub(crate) fn inline(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => number.to_string(),
        // JSON's escapes are TOML's, but for the solidus, which serde_json does not escape.
        Value::String(text) => Value::String(text.clone()).to_string(),
        Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(inline).collect();
            format!("[{}]", items?.join(", "))
        }
        Value::Object(map) => {
            let entries: Option<Vec<String>> = map
                .iter()
                .map(|(key, value)| Some(format!("{} = {}", shown_key(key), inline(value)?)))
                .collect();
            let entries = entries?;
            if entries.is_empty() {
                "{}".to_owned()
            } else {
                format!("{{ {} }}", entries.join(", "))
            }
        }
    })
}

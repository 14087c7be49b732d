//! The schema, made from the authored types: published as JSON Schema 2020-12, and read by the
//! decoder, by `fmt` and by the reference page.

use std::fmt;
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::{Map, Value, json};

use crate::authored;

/// Where the published schema says it comes from.
const SCHEMA_ID: &str = "urn:platform:manifest:v1";

/// The schema with our extensions, and the order of keys.
#[derive(Debug)]
pub(crate) struct Shape {
    root: Value,
    orders: Vec<(&'static str, &'static [&'static str])>,
}

impl Shape {
    /// The one there is; made when it is first asked for.
    pub(crate) fn get() -> &'static Self {
        static SHAPE: OnceLock<Shape> = OnceLock::new();
        SHAPE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12();
        let schema = settings
            .into_generator()
            .into_root_schema_for::<authored::Manifest>();
        let mut root = schema.to_value();
        without_null(&mut root);
        Self {
            root,
            orders: vec![
                ("Manifest", fields::<authored::Manifest>()),
                ("Process", fields::<authored::Process>()),
                ("Stop", fields::<authored::Stop>()),
                ("Restart", fields::<authored::Restart>()),
                ("Port", fields::<authored::Port>()),
                ("HealthCheck", fields::<authored::HealthCheck>()),
                ("Resources", fields::<authored::Resources>()),
                ("Scaling", fields::<authored::Scaling>()),
                ("SecretBundle", fields::<authored::SecretBundle>()),
                ("Volume", fields::<authored::Volume>()),
                ("Deploy", fields::<authored::Deploy>()),
                ("Route", fields::<authored::Route>()),
                ("TcpRoute", fields::<authored::TcpRoute>()),
            ],
        }
    }

    /// The schema of the whole manifest.
    pub(crate) fn root(&self) -> At<'_> {
        At {
            shape: self,
            outer: &self.root,
            inner: &self.root,
        }
    }

    /// The published schema.
    pub(crate) fn published(&self) -> Value {
        let mut root = self.root.clone();
        describe_extensions(&mut root);
        if let Some(map) = root.as_object_mut() {
            map.insert("$id".to_owned(), json!(SCHEMA_ID));
            map.insert("title".to_owned(), json!("Platform manifest"));
        }
        root
    }

    fn at<'s>(&'s self, outer: &'s Value) -> At<'s> {
        let inner = outer
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| reference.strip_prefix('#'))
            .and_then(|pointer| self.root.pointer(pointer))
            .unwrap_or(outer);
        At {
            shape: self,
            outer,
            inner,
        }
    }
}

/// The schema of one place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'s> {
    shape: &'s Shape,
    /// As the place has it: description, default, bounds.
    outer: &'s Value,
    /// Behind its reference, if it is one.
    inner: &'s Value,
}

impl<'s> At<'s> {
    /// What the place itself says, else its type.
    pub(crate) fn get(self, keyword: &str) -> Option<&'s Value> {
        self.outer.get(keyword).or_else(|| self.inner.get(keyword))
    }

    pub(crate) fn text(self, keyword: &str) -> Option<&'s str> {
        self.get(keyword).and_then(Value::as_str)
    }

    pub(crate) fn number(self, keyword: &str) -> Option<f64> {
        self.get(keyword).and_then(Value::as_f64)
    }

    pub(crate) fn count(self, keyword: &str) -> Option<usize> {
        self.get(keyword)
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
    }

    /// `object`, `array`, `string`, `integer`, `number` or `boolean`; of a place with alternatives, the first one's.
    pub(crate) fn kind(self) -> &'s str {
        match self.text("type") {
            Some(kind) => kind,
            None => self.alternatives().next().map_or("", At::kind),
        }
    }

    /// The schemas of a place that may have values of several types.
    pub(crate) fn alternatives(self) -> impl Iterator<Item = At<'s>> {
        let any = self.get("anyOf").and_then(Value::as_array);
        let shape = self.shape;
        any.into_iter().flatten().map(|schema| shape.at(schema))
    }

    /// The alternative for values of this type, else the first one; the place itself where there are none.
    pub(crate) fn of_kind(self, kind: &str) -> At<'s> {
        let fits = self.alternatives().find(|at| at.kind() == kind);
        fits.or_else(|| self.alternatives().next()).unwrap_or(self)
    }

    /// The schema of this key of a table.
    pub(crate) fn property(self, key: &str) -> Option<At<'s>> {
        let schema = self.get("properties")?.get(key)?;
        Some(self.shape.at(schema))
    }

    /// The keys of a table that has fixed ones, in the order they are written.
    pub(crate) fn keys(self) -> Vec<&'s str> {
        let Some(properties) = self.get("properties").and_then(Value::as_object) else {
            return Vec::new();
        };
        // A table is found by its keys: no two tables have the same.
        let order = self
            .shape
            .orders
            .iter()
            .map(|(_, keys)| *keys)
            .find(|keys| {
                keys.len() == properties.len()
                    && keys.iter().all(|key| properties.contains_key(*key))
            });
        match order {
            Some(order) => order.to_vec(),
            None => properties.keys().map(String::as_str).collect(),
        }
    }

    /// For a table with free keys: the pattern of the keys, and the schema of the values.
    pub(crate) fn entries(self) -> Option<(&'s str, At<'s>)> {
        let (pattern, schema) = self.get("patternProperties")?.as_object()?.iter().next()?;
        Some((pattern, self.shape.at(schema)))
    }

    /// For a table with free keys: the key that comes first, if one does.
    pub(crate) fn prefers(self) -> Option<&'s str> {
        self.text("x-first")
    }

    /// For a table with free keys: the most characters of a key.
    pub(crate) fn key_length(self) -> Option<usize> {
        let most = self.get("propertyNames")?.get("maxLength")?.as_u64()?;
        usize::try_from(most).ok()
    }

    /// The schema of the items of an array.
    pub(crate) fn items(self) -> Option<At<'s>> {
        self.get("items").map(|schema| self.shape.at(schema))
    }

    pub(crate) fn required(self) -> impl Iterator<Item = &'s str> {
        strings(self.get("required"))
    }

    /// The texts allowed, where there is a choice.
    pub(crate) fn choices(self) -> Vec<&'s str> {
        strings(self.get("enum"))
            .chain(self.text("const"))
            .collect()
    }

    /// Conditions: when `key` has `value`, then `required` keys must and `forbidden` may not be.
    pub(crate) fn conditions(self) -> Vec<Condition<'s>> {
        let all = self
            .get("allOf")
            .and_then(Value::as_array)
            .map(Vec::as_slice);
        all.unwrap_or_default()
            .iter()
            .filter_map(condition)
            .collect()
    }

    /// The name of the type that this place refers to, for the reference page.
    pub(crate) fn type_name(self) -> Option<&'s str> {
        self.outer
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|r| r.rsplit('/').next())
    }

    /// What the type says about itself, as opposed to the place.
    pub(crate) fn type_description(self) -> &'s str {
        self.inner
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Bounds of a duration or size as a sentence.
    pub(crate) fn bounds(self) -> Option<String> {
        bounds_in_words(self.outer.as_object()?)
    }
}

/// Keys that go with a value of another key, or do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition<'s> {
    pub(crate) key: &'s str,
    pub(crate) value: &'s str,
    pub(crate) required: Vec<&'s str>,
    pub(crate) forbidden: Vec<&'s str>,
}

fn condition(schema: &Value) -> Option<Condition<'_>> {
    let (key, constant) = schema
        .get("if")?
        .get("properties")?
        .as_object()?
        .iter()
        .next()?;
    let then = schema.get("then")?;
    let forbidden = then
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, schema)| **schema == Value::Bool(false))
        .map(|(key, _)| key.as_str())
        .collect();
    Some(Condition {
        key,
        value: constant.get("const")?.as_str()?,
        required: strings(then.get("required")).collect(),
        forbidden,
    })
}

fn strings(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// TOML has no null: an absent key is absent. Takes out what `Option` put in, and what only the
/// source's layout did.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            if let Some(Value::Array(options)) = map.get_mut("anyOf") {
                options.retain(|option| option.get("type") != Some(&json!("null")));
                if let [Value::Object(only)] = options.as_slice() {
                    let only = only.clone();
                    map.remove("anyOf");
                    for (keyword, value) in only {
                        map.entry(keyword).or_insert(value);
                    }
                }
            }
            // The ranges say all that these would.
            map.remove("format");
            if let Some(Value::String(description)) = map.get_mut("description") {
                // Where a comment's lines end says nothing; an empty line is a paragraph's end.
                let paragraphs: Vec<String> = description
                    .split("\n\n")
                    .map(|p| p.replace('\n', " "))
                    .collect();
                *description = paragraphs.join("\n\n");
            }
            map.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// Turns our extensions into words of the description.
fn describe_extensions(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(words) = bounds_in_words(map)
                && let Some(Value::String(description)) = map.get_mut("description")
            {
                description.push(' ');
                description.push_str(&words);
            }
            map.retain(|keyword, _| !keyword.starts_with("x-"));
            map.values_mut().for_each(describe_extensions);
        }
        Value::Array(items) => items.iter_mut().for_each(describe_extensions),
        _ => {}
    }
}

fn bounds_in_words(map: &Map<String, Value>) -> Option<String> {
    let least = map.get("x-minimum")?.as_str()?;
    let most = map.get("x-maximum")?.as_str()?;
    Some(format!("From {least} to {most}."))
}

/// The field names of a struct in the order they are declared, as serde's derive knows them.
fn fields<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // It always "fails": the catcher looks at the names and gives no value.
    let _ = T::deserialize(Catcher { found: &mut found });
    found
}

struct Catcher<'a> {
    found: &'a mut &'static [&'static str],
}

#[derive(Debug)]
struct Caught;

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no value")
    }
}

impl std::error::Error for Caught {}

impl de::Error for Caught {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Catcher<'_> {
    type Error = Caught;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Caught> {
        Err(Caught)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Caught> {
        *self.found = fields;
        Err(Caught)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

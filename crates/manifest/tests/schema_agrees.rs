//! The published schema accepts exactly what the decoder's structure accepts.
//!
//! The reference is a small checker of the JSON Schema keywords that the schema uses; a keyword that it
//! does not know is a failure. Two things are out of reach of any schema for TOML's JSON form, and
//! so of this test: a float with a whole value (`8080.0`), which JSON cannot tell from an integer,
//! and dates, which JSON has not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use manifest::{Code, Manifest, schema};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use serde_json::{Map, Value, json};

/// Whether the schema accepts the value.
fn accepts(root: &Value, schema: &Value, value: &Value) -> bool {
    let Some(keywords) = schema.as_object() else {
        return schema.as_bool().unwrap();
    };
    keywords
        .iter()
        .all(|(keyword, wanted)| match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" | "default" | "examples" => true,
            "$ref" => {
                let target = root.pointer(wanted.as_str().unwrap().strip_prefix('#').unwrap());
                accepts(root, target.unwrap(), value)
            }
            "type" => match wanted.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "number" => value.is_number(),
                "integer" => value.is_i64() || value.is_u64(),
                other => panic!("type {other}"),
            },
            "enum" => wanted.as_array().unwrap().contains(value),
            "const" => wanted == value,
            "minimum" => value.as_f64().is_none_or(|v| v >= wanted.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|v| v <= wanted.as_f64().unwrap()),
            "maxLength" => value
                .as_str()
                .is_none_or(|v| v.chars().count() <= size(wanted)),
            "minItems" => value.as_array().is_none_or(|v| v.len() >= size(wanted)),
            "maxItems" => value.as_array().is_none_or(|v| v.len() <= size(wanted)),
            "minProperties" => value.as_object().is_none_or(|v| v.len() >= size(wanted)),
            "maxProperties" => value.as_object().is_none_or(|v| v.len() <= size(wanted)),
            "pattern" => value
                .as_str()
                .is_none_or(|v| matches(wanted.as_str().unwrap(), v)),
            "required" => value.as_object().is_none_or(|v| {
                wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|key| v.contains_key(key.as_str().unwrap()))
            }),
            "items" => value
                .as_array()
                .is_none_or(|v| v.iter().all(|v| accepts(root, wanted, v))),
            "propertyNames" => value
                .as_object()
                .is_none_or(|v| v.keys().all(|key| accepts(root, wanted, &json!(key)))),
            "properties" => value.as_object().is_none_or(|v| {
                let known = wanted.as_object().unwrap();
                v.iter()
                    .all(|(key, v)| known.get(key).is_none_or(|schema| accepts(root, schema, v)))
            }),
            "patternProperties" => value.as_object().is_none_or(|v| {
                wanted.as_object().unwrap().iter().all(|(pattern, schema)| {
                    v.iter()
                        .all(|(key, v)| !matches(pattern, key) || accepts(root, schema, v))
                })
            }),
            "additionalProperties" => {
                assert_eq!(*wanted, Value::Bool(false));
                let named = schema.get("properties").and_then(Value::as_object);
                let patterns = schema.get("patternProperties").and_then(Value::as_object);
                value.as_object().is_none_or(|v| {
                    v.keys().all(|key| {
                        named.is_some_and(|named| named.contains_key(key))
                            || patterns.is_some_and(|p| p.keys().any(|p| matches(p, key)))
                    })
                })
            }
            "allOf" => wanted
                .as_array()
                .unwrap()
                .iter()
                .all(|schema| accepts(root, schema, value)),
            "anyOf" => wanted
                .as_array()
                .unwrap()
                .iter()
                .any(|schema| accepts(root, schema, value)),
            "if" => !accepts(root, wanted, value) || accepts(root, &schema["then"], value),
            "then" => true,
            other => panic!("keyword {other} is not known here"),
        })
}

fn size(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn matches(pattern: &str, text: &str) -> bool {
    thread_local! {
        static KNOWN: std::cell::RefCell<std::collections::BTreeMap<String, regex::Regex>> =
            const { std::cell::RefCell::new(std::collections::BTreeMap::new()) };
    }
    KNOWN.with_borrow_mut(|known| {
        known
            .entry(pattern.to_owned())
            .or_insert_with(|| regex::Regex::new(pattern).unwrap())
            .is_match(text)
    })
}

/// True when the decoder finds nothing wrong with keys, types, forms and ranges.
fn decoder_accepts(value: &Value) -> bool {
    let text = toml::to_string(value).unwrap();
    let Err(errors) = Manifest::from_toml("test.toml", &text) else {
        return true;
    };
    errors.iter().all(|error| {
        matches!(
            error.code,
            Code::ReservedName
                | Code::Duplicate
                | Code::UnknownProcess
                | Code::UnknownPort
                | Code::NotHttp
                | Code::Conflict
                | Code::MinAboveMax
                | Code::NoProgress
        )
    })
}

/// Texts that are right for some place, or nearly right. Durations and sizes are within the bounds
/// of every key that takes them, as those bounds are not the schema's to state.
fn texts() -> impl Strategy<Value = Value> {
    let digest = "0123456789abcdef".repeat(4);
    let mut texts: Vec<String> = [
        "web",
        "shop",
        "a",
        "a-b",
        "-a",
        "a-",
        "A",
        "",
        "1a",
        "a_b",
        "RUST_LOG",
        "_X",
        "X Y",
        "10s",
        "10",
        "1m",
        "10 s",
        "0x1s",
        "600s",
        "1000000s",
        "256MiB",
        "1GiB",
        "256MB",
        "1.5GiB",
        "always",
        "on-failure",
        "never",
        "Never",
        "http",
        "tcp",
        "command",
        "strip",
        "v2",
        "rolling",
        "SIGTERM",
        "SIGHUP",
        "TERM",
        "SIGFOO",
        "/",
        "/a?b=c",
        "a/b",
        "/a b",
        "/#",
        "/é",
        "x\u{0}y",
        "line\nline",
        "shop.example.com",
        "shop.example.com.",
        "Shop.example.com",
        "*.a.b",
        "a..b",
        "root",
        "1000:1000",
        "a:b:c",
        ":x",
        "x:",
        "nginx:1.25",
        "é",
        "true",
        "8080",
    ]
    .iter()
    .map(|text| (*text).to_owned())
    .collect();
    for name in [
        "nginx",
        "docker.io/library/nginx",
        "h:5000/a/b:1.2",
        "A/b",
        "a/B",
        "a//b",
        "a/b:",
    ] {
        texts.push(format!("{name}@sha256:{digest}"));
        texts.push(format!("{name}@sha256:{}", &digest[1..]));
    }
    for length in [63, 64, 128, 129, 253, 254, 255, 256, 512, 1024, 1025] {
        texts.push("a".repeat(length));
        texts.push(format!("/{}", "a".repeat(length - 1)));
        texts.push("a.".repeat(length / 2) + "a");
    }
    select(texts).prop_map(Value::String)
}

fn scalars() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => texts(),
        2 => select(vec![0_i64, 1, 2, 3, 80, 8080, 65535, 65536, -1, 100, 101, 1000, 1001, i64::MAX])
            .prop_map(Value::from),
        1 => select(vec![0.5, 0.25, 0.01, 0.001, -0.5, 255.5, 256.5]).prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
    ]
}

fn junk() -> impl Strategy<Value = Value> {
    scalars().prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A value that the schema accepts, more often than not.
fn value_of(root: &'static Value, schema: &'static Value, depth: u32) -> BoxedStrategy<Value> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        return value_of(root, target, depth);
    }
    if let Some(alternatives) = schema.get("anyOf").and_then(Value::as_array) {
        let each = alternatives
            .iter()
            .map(|schema| value_of(root, schema, depth));
        return proptest::strategy::Union::new(each).boxed();
    }
    let good: BoxedStrategy<Value> = match schema.get("type").and_then(Value::as_str) {
        Some("object") => object_of(root, schema, depth),
        Some("array") => {
            let item = value_of(root, &schema["items"], depth + 1);
            prop::collection::vec(item, 0..3)
                .prop_map(Value::Array)
                .boxed()
        }
        Some("string") => match schema.get("enum").and_then(Value::as_array) {
            Some(choices) => select(choices.clone()).boxed(),
            None => {
                let good = schema["examples"].as_array().unwrap().clone();
                prop_oneof![4 => select(good), 1 => texts()].boxed()
            }
        },
        Some("integer") => {
            let low = schema["minimum"].as_i64().unwrap();
            let high = schema["maximum"].as_i64().unwrap();
            select(vec![low, low + 1, high])
                .prop_map(Value::from)
                .boxed()
        }
        Some("number") => select(vec![json!(0.5), json!(1), json!(0.01), json!(256)]).boxed(),
        Some("boolean") => any::<bool>().prop_map(Value::from).boxed(),
        other => panic!("type {other:?}"),
    };
    prop_oneof![60 => good, 1 => junk()].boxed()
}

fn object_of(root: &'static Value, schema: &'static Value, depth: u32) -> BoxedStrategy<Value> {
    if let Some(entries) = schema.get("patternProperties").and_then(Value::as_object) {
        let (_, entry) = entries.iter().next().unwrap();
        let names = prop_oneof![
            10 => select(vec!["web", "worker", "a", "shop", "x"]).prop_map(str::to_owned),
            10 => select(vec!["A", "RUST_LOG", "a.b", "shop.example.com"]).prop_map(str::to_owned),
            1 => texts().prop_map(|text| text.as_str().unwrap().to_owned()),
        ];
        return prop::collection::btree_map(names, value_of(root, entry, depth + 1), 0..3)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
            .boxed();
    }
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = schema["properties"].as_object().unwrap();
    let mut entries: Vec<BoxedStrategy<Option<(String, Value)>>> = Vec::new();
    for (key, property) in properties {
        let present = if required.contains(&key.as_str()) {
            0.98
        } else {
            0.4
        };
        let value = value_of(root, property, depth + 1);
        let key = key.clone();
        entries.push(
            proptest::option::weighted(present, value.prop_map(move |value| (key.clone(), value)))
                .boxed(),
        );
    }
    let extra = proptest::option::weighted(0.01, ("[a-z]{1,8}", junk()));
    (entries, extra)
        .prop_map(|(entries, extra)| {
            let map: Map<String, Value> = entries.into_iter().flatten().chain(extra).collect();
            Value::Object(map)
        })
        .boxed()
}

fn leaked_schema() -> &'static Value {
    static SCHEMA: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
    SCHEMA.get_or_init(schema)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn on_whole_manifests(value in object_of(leaked_schema(), leaked_schema(), 0)) {
        let expected = accepts(leaked_schema(), leaked_schema(), &value);
        prop_assert_eq!(decoder_accepts(&value), expected, "{}", value);
    }
}

/// Each key of each table alone, with every kind of value in it: what random manifests reach
/// seldom.
#[test]
fn on_each_key_with_every_value() {
    let schema = leaked_schema();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut values: Vec<Value> = vec![json!([]), json!({}), json!([1]), json!(["a", "b"])];
    for _ in 0..600 {
        values.push(junk().new_tree(&mut runner).unwrap().current());
    }
    values.push(json!(vec!["a"; 1025]));
    values.push(json!("x".repeat(32_769)));
    let (mut yes, mut no) = (0, 0);
    let mut compare = |value: &Value| {
        let expected = accepts(schema, schema, value);
        assert_eq!(decoder_accepts(value), expected, "{value}");
        if expected { yes += 1 } else { no += 1 }
    };
    for value in &values {
        for key in schema["properties"].as_object().unwrap().keys() {
            let mut manifest = json!({ "app": "shop" });
            manifest[key] = value.clone();
            compare(&manifest);
        }
        for key in schema["$defs"]["Process"]["properties"]
            .as_object()
            .unwrap()
            .keys()
        {
            compare(&json!({ "app": "shop", "processes": { "web": { key: value } } }));
        }
        for (table, base) in [
            ("stop", json!({})),
            ("restart", json!({})),
            ("resources", json!({})),
            ("scaling", json!({})),
            ("deploy", json!({})),
            ("healthcheck", json!({ "type": "http", "port": 80 })),
            ("healthcheck", json!({ "type": "tcp", "port": 80 })),
            (
                "healthcheck",
                json!({ "type": "command", "command": ["x"] }),
            ),
        ] {
            let name = match table {
                "healthcheck" => "HealthCheck".to_owned(),
                other => other[..1].to_uppercase() + &other[1..],
            };
            for key in schema["$defs"][&name]["properties"]
                .as_object()
                .unwrap()
                .keys()
            {
                let mut base = base.clone();
                base[key] = value.clone();
                compare(&json!({ "app": "shop", "processes": { "web": { table: base } } }));
            }
        }
        for (list, item, base) in [
            ("ports", "Port", json!({ "port": 80 })),
            (
                "volumes",
                "Volume",
                json!({ "name": "data", "size": "1GiB" }),
            ),
            ("secrets", "SecretBundle", json!({ "name": "database" })),
        ] {
            for key in schema["$defs"][item]["properties"]
                .as_object()
                .unwrap()
                .keys()
            {
                let mut base = base.clone();
                base[key] = value.clone();
                compare(&json!({ "app": "shop", "processes": { "web": { list: [base] } } }));
            }
        }
        compare(&json!({ "app": "shop", "processes": { "web": { "secrets": [value] } } }));
        compare(&json!({ "app": "shop", "routes": { "a": value } }));
        compare(&json!({ "app": "shop", "routes": { "a": { "port": value } } }));
        compare(&json!({ "app": "shop", "processes": { "web": value } }));
        if let Some(text) = value.as_str() {
            compare(&json!({ "app": "shop", "env": { text: "x" } }));
            compare(&json!({ "app": "shop", "routes": { text: { "port": 80 } } }));
            compare(&json!({ "app": "shop", "processes": { text: {} } }));
        }
    }
    assert!(yes > 1000 && no > 1000, "{yes} {no}");
}

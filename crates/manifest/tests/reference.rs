//! The reference page and the schema are generated from the types.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use expect_test::expect_file;
use manifest::{Manifest, fmt, reference_page, schema};
use serde_json::Value;

#[test]
fn the_page_is_in_step_with_the_types() {
    expect_file!["../../../docs/manifest.md"].assert_eq(&reference_page());
}

#[test]
fn the_example_of_the_page_is_a_manifest_as_fmt_writes_it() {
    let page = reference_page();
    let example = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let decoded = Manifest::from_toml("example", example).unwrap();
    assert_eq!(decoded.warnings, []);
    assert_eq!(fmt("example", example).unwrap(), example);
}

/// Every key of every table is described, and has a default, or is required, or says what its
/// absence means.
#[test]
fn the_schema_tells_everything() {
    let schema = schema();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    let tables = schema["$defs"].as_object().unwrap().iter();
    let root = ("Manifest".to_owned(), schema.clone());
    let tables = tables
        .map(|(name, table)| (name.clone(), table.clone()))
        .chain([root]);
    let mut keys = 0;
    for (name, table) in tables {
        assert!(
            table["description"].is_string(),
            "{name} has no description"
        );
        let Some(properties) = table["properties"].as_object() else {
            continue;
        };
        assert_eq!(
            table["additionalProperties"], false,
            "{name} lets unknown keys pass"
        );
        let required: Vec<&str> = table["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (key, property) in properties {
            keys += 1;
            let description = property["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "{name}.{key} has no description");
            let told = required.contains(&key.as_str())
                || !property["default"].is_null()
                || description.contains("Absent:")
                || description.contains("absent:")
                || description.contains("required");
            assert!(told, "{name}.{key}: what when it is absent?");
            assert!(
                property
                    .as_object()
                    .unwrap()
                    .keys()
                    .all(|k| !k.starts_with("x-"))
            );
        }
    }
    assert!(keys > 45, "only {keys} keys");
}

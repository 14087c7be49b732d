//! The table has every command that prints JSON, and docs/json.md is what it says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};
use expect_test::expect_file;
use serde_json::Map;

use super::*;
use crate::cli::Cli;

const HEAD: &str = "\
# What the command line prints as JSON

Written by a test, of the types that are printed: `UPDATE_EXPECT=1 cargo test --release -p platform docs_json_md`.

With `--format json` a command prints to standard output what is here, and nothing else; messages for people go to standard error. The exit
status is the same as without. Where a command fails before it has a result, standard output is empty.

These shapes are stable: fields and values are added, none goes or changes its meaning. Readers ignore fields and values that they do
not know. A field that is marked *may be absent* is left out where there is nothing to name. The server's types are those of
[openapi.json](openapi.json); what a newer server adds to them is printed by a newer command line.

`platform schema COMMAND` prints the JSON Schema of a command's output: `platform schema ps`. Beside these, `platform normalize` prints
the manifest as JSON, by the schema that `platform schema` prints, and `--log-format json` of the roles is in [operations.md](operations.md).

A command that lists prints its rows. One that changes a thing prints that thing after the change, as a row of its list: `platform nodes
cordon` a row of `platform nodes`. One that removes a thing prints what is gone, a [Removed](#removed), whatever it is. `volumes delete` and
`destroy`, which end more than one thing, have shapes of their own, and so have commands about this machine: `login`, `server init`,
`node join`. Without `--format` are: `exec`, whose output is the command's; `fmt`, `normalize`, `completions` and `dev`, whose output is
a file or a log; `schema`, which prints JSON without it; and the roles themselves, `server`, `node` and `edge`.

A `Timestamp` is in milliseconds since 1970-01-01T00:00:00Z.
";

#[test]
fn docs_json_md_is_what_the_types_are() {
    let mut generator = generator();
    let mut text = HEAD.to_owned();
    text.push_str("\n## Commands\n");
    for documented in SHAPES {
        let mut shape = (documented.schema)(&mut generator).to_value();
        api::openapi::tidy(&mut shape);
        for words in documented.commands() {
            let _ = write!(text, "\n### platform {words}\n");
        }
        let (what, shape) = (documented.what, type_of(&shape));
        let form = match documented.form {
            Form::Whole => format!("Prints: {shape}."),
            Form::Lines => format!("Prints a line for each, with: {shape}."),
            Form::Watched => {
                format!(
                    "Prints: {shape}; with `--watch` that on one line, whenever it has changed."
                )
            }
        };
        let _ = write!(text, "\n{what}. {form}\n");
    }
    text.push_str("\n## Types\n");
    let mut types = Value::Object(generator.take_definitions(true));
    api::openapi::tidy(&mut types);
    for (name, schema) in types.as_object().unwrap() {
        // Two types of one name would be told apart by a number at their end.
        assert!(!name.ends_with(|c: char| c.is_ascii_digit()), "{name}");
        let _ = write!(text, "\n### {name}\n\n{}", definition(schema));
    }
    expect_file!["../../../../docs/json.md"].assert_eq(&text);
}

/// What a type is, in Markdown.
fn definition(schema: &Value) -> String {
    let mut text = String::new();
    let meaning = description(schema);
    if !meaning.is_empty() {
        text = format!("{meaning}\n");
    }
    let variants = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
    if let Some(fields) = schema["properties"].as_object() {
        text.push_str("\n| field | type | meaning |\n|---|---|---|\n");
        for (name, field) in fields {
            let _ = writeln!(
                text,
                "| `{name}` | {}{} | {} |",
                cell(&type_of(field)),
                absent(schema, name),
                cell(&description(field)),
            );
        }
    }
    match variants {
        Some(variants) => {
            text.push_str("\nOne of:\n\n");
            for variant in variants {
                let meaning = description(variant);
                let colon = if meaning.is_empty() { "" } else { ": " };
                let _ = writeln!(text, "- {}{colon}{meaning}", type_of(variant));
                nested(variant, 1, &mut text);
            }
        }
        None if schema["properties"].is_null() => {
            let _ = write!(text, "\nIs: {}", type_of(schema));
            if let Some(pattern) = schema["pattern"].as_str() {
                let _ = write!(text, ", `{pattern}`");
            }
            text.push('\n');
        }
        None => {}
    }
    text
}

/// The fields of a variant, and those of an object in it, a line each.
fn nested(variant: &Value, depth: usize, text: &mut String) {
    for (name, field) in variant["properties"].as_object().into_iter().flatten() {
        let meaning = description(field);
        if !meaning.is_empty() {
            let absent = absent(variant, name);
            let _ = writeln!(text, "{}- `{name}`{absent}: {meaning}", "  ".repeat(depth));
        }
        nested(field, depth + 1, text);
    }
}

fn absent(object: &Value, field: &str) -> &'static str {
    let required = object["required"].as_array();
    if required.is_some_and(|required| required.contains(&json!(field))) {
        ""
    } else {
        "; *may be absent*"
    }
}

fn description(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The type that a schema is of, in Markdown: names are links.
fn type_of(schema: &Value) -> String {
    let Some(schema) = schema.as_object() else {
        return "any JSON".to_owned();
    };
    if let Some(to) = schema.get("$ref").and_then(Value::as_str) {
        let name = to.strip_prefix("#/$defs/").unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(only) = schema.get("const") {
        return format!("`{only}`");
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(Value::Array(all)) = schema.get(several) {
            return joined(all.iter().map(type_of), " or ");
        }
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        return joined(values.iter().map(|value| format!("`{value}`")), " or ");
    }
    match schema.get("type") {
        Some(Value::String(name)) => of_type(name, schema),
        Some(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str);
            joined(names.map(|name| of_type(name, schema)), " or ")
        }
        _ => "any JSON".to_owned(),
    }
}

fn of_type(name: &str, schema: &Map<String, Value>) -> String {
    match name {
        "array" => {
            if let Some(Value::Array(items)) = schema.get("prefixItems") {
                return format!("`[`{}`]`", joined(items.iter().map(type_of), ", "));
            }
            let items = schema.get("items").map_or("any JSON".to_owned(), type_of);
            format!("list of {items}")
        }
        "object" => {
            if let Some(Value::Object(fields)) = schema.get("properties") {
                let fields = fields
                    .iter()
                    .map(|(name, field)| format!("`{name}`: {}", type_of(field)));
                return format!("`{{` {} `}}`", joined(fields, ", "));
            }
            let patterns = schema.get("patternProperties").and_then(Value::as_object);
            let by_pattern = patterns.and_then(|patterns| patterns.values().next());
            let others = schema.get("additionalProperties");
            match by_pattern.or(others.filter(|others| others.is_object())) {
                Some(of) => format!("object, its keys to {}", type_of(of)),
                None => "object".to_owned(),
            }
        }
        name => name.to_owned(),
    }
}

fn joined(parts: impl Iterator<Item = String>, between: &str) -> String {
    parts.collect::<Vec<_>>().join(between)
}

/// The words of every command below this one, with the ids of its arguments.
fn commands(command: &Command, path: &str, all: &mut Vec<(String, BTreeSet<String>)>) {
    for below in command.get_subcommands() {
        let path = format!("{path} {}", below.get_name()).trim().to_owned();
        let arguments = below.get_arguments().map(|a| a.get_id().to_string());
        all.push((path.clone(), arguments.collect()));
        commands(below, &path, all);
    }
}

/// `ps --ended` is of `ps`.
fn without_options(words: &str) -> &str {
    words.split(" --").next().unwrap()
}

#[test]
fn every_command_with_format_is_documented_and_every_shape_is_of_such_a_command() {
    let mut all = Vec::new();
    commands(&Cli::command(), "", &mut all);
    let with = |id: &str| -> BTreeSet<&str> {
        let commands = all.iter().filter(|(_, arguments)| arguments.contains(id));
        commands.map(|(path, _)| path.as_str()).collect()
    };
    let of = |form: Option<Form>| -> BTreeSet<&str> {
        let shapes = SHAPES
            .iter()
            .filter(|shape| form.is_none_or(|form| form == shape.form));
        let commands = shapes.flat_map(Documented::commands);
        commands.map(without_options).collect()
    };
    let mut documented = of(None);
    // It prints nothing else.
    assert!(documented.remove("schema"));
    assert_eq!(documented, with("format"));
    assert_eq!(of(Some(Form::Watched)), with("watch"));
}

/// Commands whose output is no result with a shape.
const WITHOUT_FORMAT: [&str; 12] = [
    // Prints the command's own output.
    "exec",
    // Print files, or write them.
    "completions",
    "fmt",
    "manual",
    "normalize",
    // Prints a schema, which is JSON already.
    "schema",
    // Run until they are ended, and log.
    "dev",
    "edge",
    "node",
    "server",
    // Are run by the roles.
    "resolver",
    "wireguard",
];

#[test]
fn every_command_has_format_but_those_whose_output_is_something_else() {
    fn walk(command: &Command, path: &str, without: &mut BTreeSet<String>) {
        for below in command.get_subcommands() {
            let path = format!("{path} {}", below.get_name()).trim().to_owned();
            let has_format = below.get_arguments().any(|a| a.get_id() == "format");
            // `secrets` alone is no command, `nodes` alone is one.
            if !has_format && !below.is_subcommand_required_set() {
                without.insert(path.clone());
            }
            walk(below, &path, without);
        }
    }
    let mut without = BTreeSet::new();
    walk(&Cli::command(), "", &mut without);
    let expected = WITHOUT_FORMAT.map(str::to_owned).into();
    assert_eq!(without, expected);
}

#[test]
fn no_words_are_in_the_table_twice() {
    let words: Vec<_> = SHAPES.iter().flat_map(Documented::commands).collect();
    let distinct: BTreeSet<_> = words.iter().collect();
    assert_eq!(words.len(), distinct.len());
}

/// JSON is written where its shape is asked for.
#[test]
fn only_output_writes_json() {
    let mut found = Vec::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src"
    ))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs")
                && !path.ends_with("json_shapes/tests.rs")
            {
                let text = std::fs::read_to_string(&path).unwrap();
                if text.contains("serde_json::to_string") || text.contains("serde_json::to_writer")
                {
                    found.push(path.file_name().unwrap().to_string_lossy().into_owned());
                }
            }
        }
    }
    found.sort();
    // `image inspect` shows words of a config to people as JSON has them.
    assert_eq!(found, ["inspect.rs", "output.rs"]);
}

#[test]
fn case_a_schema_of_a_command_is_whole() {
    for documented in SHAPES {
        for words in documented.commands() {
            let schema = schema_of(words).unwrap();
            let text = schema.to_string();
            let named = text.matches("\"$ref\":\"#/$defs/").count();
            assert!(schema["$defs"].is_object(), "{words}");
            for (at, _) in text.match_indices("\"$ref\":\"#/$defs/") {
                let name = text[at..].split('/').nth(2).unwrap();
                let name = name.split('"').next().unwrap();
                assert!(!schema["$defs"][name].is_null(), "{words}: {name}");
            }
            assert!(
                named > 0 || words == "schema" || words == "volumes delete",
                "{words}"
            );
        }
    }
    assert_eq!(schema_of("fmt"), None);
}

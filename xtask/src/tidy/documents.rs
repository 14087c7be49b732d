//! Documents name files and tests that exist.

use std::collections::BTreeSet;
use std::path::Path;

use super::Source;

/// Largest ARCHITECTURE.md, in lines: it is meant to be read whole.
const MAX_ARCHITECTURE_LINES: usize = 300;
/// Underscores in a test's name, at least: it is a sentence.
const TEST_NAME_UNDERSCORES: usize = 3;

/// Checks the links and the names of tests in every document.
pub(super) fn check(root: &Path, sources: &[Source], findings: &mut Vec<String>) {
    let functions: BTreeSet<&str> = sources
        .iter()
        .filter(|source| source.path.ends_with(".rs"))
        .flat_map(|source| named_functions(&source.text))
        .collect();
    for document in sources.iter().filter(|source| source.path.ends_with(".md")) {
        check_links(root, &document.path, &document.text, findings);
        check_tests(&document.path, &document.text, &functions, findings);
        if document.path == "ARCHITECTURE.md"
            && document.text.lines().count() > MAX_ARCHITECTURE_LINES
        {
            findings.push(format!(
                "ARCHITECTURE.md: over {MAX_ARCHITECTURE_LINES} lines"
            ));
        }
    }
}

/// Relative links `](path)` lead somewhere.
fn check_links(root: &Path, file: &str, text: &str, findings: &mut Vec<String>) {
    let folder = root.join(file);
    let folder = folder.parent().unwrap_or(root);
    for (number, line) in text.lines().enumerate() {
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains(':') {
                continue;
            }
            if !folder.join(target).exists() {
                findings.push(format!("{file}:{}: `{target}` does not exist", number + 1));
            }
        }
    }
}

/// Names of the functions that a source defines.
fn named_functions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (_, rest) = line.split_once("fn ")?;
        rest.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
    })
}

/// Tests that a document names are there.
fn check_tests(file: &str, text: &str, functions: &BTreeSet<&str>, findings: &mut Vec<String>) {
    let is_name = |word: &&str| {
        word.matches('_').count() >= TEST_NAME_UNDERSCORES
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    for (number, line) in text.lines().enumerate() {
        // What is between backticks: every second piece.
        for name in line.split('`').skip(1).step_by(2).filter(is_name) {
            if !functions.contains(name) {
                findings.push(format!("{file}:{}: there is no test `{name}`", number + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_names_a_missing_test_is_a_finding() {
        let source =
            "#[test]\nfn a_thing_that_is_so() {\n}\nasync fn another_thing_is_so(a: u8) {}\n";
        let functions = named_functions(source).collect();
        let text = "| a | `a_thing_that_is_so`, `max_surge` |\n| b | `a_thing_that_was_so` |\n";
        let mut findings = Vec::new();
        check_tests("a.md", text, &functions, &mut findings);
        assert_eq!(findings, ["a.md:2: there is no test `a_thing_that_was_so`"]);
    }
}

//! Documents name files and tests that exist, and ADRs are amended at their end.

use std::collections::BTreeSet;
use std::path::Path;

use super::source::Source;

/// Largest ARCHITECTURE.md, in lines: it is meant to be read whole.
const MAX_ARCHITECTURE_LINES: usize = 300;
/// Underscores in a test's name, at least: it is a sentence.
const TEST_NAME_UNDERSCORES: usize = 3;
/// Where the ADRs are; each begins with its number.
const ADRS: &str = "docs/adr/";
/// How the heading of an ADR's amendment begins; a date and a subject follow.
const AMENDMENT: &str = "## Amendment, ";

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
        if is_adr(&document.path) {
            check_amendments(&document.path, &document.text, findings);
        }
        if document.path == "ARCHITECTURE.md"
            && document.text.lines().count() > MAX_ARCHITECTURE_LINES
        {
            findings.push(format!(
                "ARCHITECTURE.md: over {MAX_ARCHITECTURE_LINES} lines"
            ));
        }
    }
}

/// Whether this is an ADR: `docs/adr/0001-subject.md`.
pub(super) fn is_adr(path: &str) -> bool {
    path.strip_prefix(ADRS)
        .is_some_and(|name| name.starts_with(|c: char| c.is_ascii_digit()))
}

/// The number of lines above the first amendment of an ADR: the decision as it was taken.
pub(super) fn lines_of_the_decision(text: &str) -> usize {
    text.lines()
        .take_while(|line| !line.starts_with(AMENDMENT))
        .count()
}

/// Amendments are sections `## Amendment, YYYY-MM-DD: subject`, the later ones below the earlier ones, and no other
/// section follows them.
fn check_amendments(file: &str, text: &str, findings: &mut Vec<String>) {
    let mut latest: Option<&str> = None;
    let headings = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("# ") || line.starts_with("## "));
    for (number, heading) in headings {
        let place = format!("{file}:{}", number + 1);
        let amendment = heading
            .strip_prefix(AMENDMENT)
            .and_then(|rest| rest.split_once(": "))
            .filter(|(date, subject)| is_date(date) && !subject.trim().is_empty());
        match (amendment, latest) {
            (Some((date, _)), Some(before)) if date < before => findings.push(format!(
                "{place}: the amendment of {date} is below that of {before}: later ones go to the end"
            )),
            (Some((date, _)), _) => latest = Some(date),
            (None, _) if heading.to_lowercase().contains("amend") => findings.push(format!(
                "{place}: an amendment's heading is `{AMENDMENT}YYYY-MM-DD: subject`"
            )),
            (None, Some(_)) => findings.push(format!(
                "{place}: `{heading}` is below an amendment: amendments are at the end"
            )),
            (None, None) => {}
        }
    }
}

/// Whether a text has the form `YYYY-MM-DD`.
fn is_date(text: &str) -> bool {
    text.len() == "YYYY-MM-DD".len()
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// Relative links `](path)` lead somewhere.
fn check_links(root: &Path, file: &str, text: &str, findings: &mut Vec<String>) {
    let folder = root.join(file);
    let folder = folder.parent().unwrap_or(root);
    for (number, line) in text.lines().enumerate() {
        // What is between backticks is no link, but for the text of one.
        let line: String = line.split('`').step_by(2).collect();
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

/// What a page says that a test makes of types: names in it are those of fields.
const MADE_OF_TYPES: &str = "Written by a test, of the types";

/// Tests that a document names are there.
fn check_tests(file: &str, text: &str, functions: &BTreeSet<&str>, findings: &mut Vec<String>) {
    if text.contains(MADE_OF_TYPES) {
        return;
    }
    let is_name = |word: &&str| {
        // Names of metrics look the same: tests of theirs hold docs/metrics.md against what is told.
        !["platform_", "process_"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
            && word.matches('_').count() >= TEST_NAME_UNDERSCORES
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

    fn amendments(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_amendments("docs/adr/0001-a.md", text, &mut findings);
        findings
    }

    #[test]
    fn dated_amendments_at_the_end_of_an_adr_are_in_order() {
        let text = "# ADR 1\n## Decision\n## Amendment, 2026-01-02: a\n### More\n## Amendment, 2026-01-02: b\n## Amendment, 2026-02-01: c\n";
        assert_eq!(amendments(text), [""; 0]);
        assert_eq!(lines_of_the_decision(text), 2);
        assert!(is_adr("docs/adr/0001-a.md") && !is_adr("docs/adr/README.md"));
    }

    #[test]
    fn an_amendment_of_another_form_or_at_another_place_is_a_finding() {
        for (text, expected) in [
            (
                "## Amendment of 2026-01-02: a\n",
                "docs/adr/0001-a.md:1: an amendment's heading is",
            ),
            (
                "## Amendment, 2026-1-2: a\n",
                "docs/adr/0001-a.md:1: an amendment's heading is",
            ),
            (
                "## Amendment, 2026-01-02: \n",
                "docs/adr/0001-a.md:1: an amendment's heading is",
            ),
            (
                "## Amended on 2026-01-02\n",
                "docs/adr/0001-a.md:1: an amendment's heading is",
            ),
            (
                "## Amendment, 2026-01-02: a\n## Non-goals\n",
                "docs/adr/0001-a.md:2: `## Non-goals` is below an amendment",
            ),
            (
                "## Amendment, 2026-01-02: a\n## Amendment, 2026-01-01: b\n",
                "docs/adr/0001-a.md:2: the amendment of 2026-01-01 is below that of 2026-01-02",
            ),
        ] {
            let found = amendments(text);
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{text}: {found:?}"
            );
        }
    }
}

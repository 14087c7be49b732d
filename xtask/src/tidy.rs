//! `cargo xtask tidy`: what a reviewer should not have to look for.
//!
//! - ARCHITECTURE.md's table of rooms is the workspace's, and imports between rooms point down it.
//! - No source file is larger than a room should be.
//! - Nothing unfinished is committed under a finished name.
//! - Documents name files and tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Largest Rust file, in lines. Two things live in a larger one.
const MAX_FILE_LINES: usize = 800;
/// Largest file of tests, in lines: a table of cases may be long.
const MAX_TEST_FILE_LINES: usize = 1000;
/// Largest ARCHITECTURE.md, in lines: it is meant to be read whole.
const MAX_ARCHITECTURE_LINES: usize = 300;
/// Underscores in a name from which on it is a test's, which tells what is so in a sentence.
const TEST_NAME_UNDERSCORES: usize = 3;
/// Words that say a thing is not done.
const UNFINISHED: [&str; 4] = [
    "todo!(",
    "unimplemented!(",
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
];

/// Checks everything; prints each finding.
///
/// # Errors
/// Something is out of order, or cannot be looked at.
pub(crate) fn tidy(root: &Path) -> Result<()> {
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md"))
        .context("cannot read ARCHITECTURE.md")?;
    let mut findings = Vec::new();
    if architecture.lines().count() > MAX_ARCHITECTURE_LINES {
        findings.push(format!(
            "ARCHITECTURE.md: over {MAX_ARCHITECTURE_LINES} lines"
        ));
    }
    check_floors(root, &floors(&architecture), &mut findings)?;
    let mut functions = BTreeSet::new();
    let mut documents = Vec::new();
    for file in committed_files(root)? {
        // A file may be deleted in the work tree and not yet in the index.
        let Ok(text) = std::fs::read_to_string(root.join(&file)) else {
            continue;
        };
        match Path::new(&file)
            .extension()
            .and_then(|extension| extension.to_str())
        {
            Some("rs") => {
                check_source(&file, &text, &mut findings);
                functions.extend(named_functions(&text).map(str::to_owned));
            }
            Some("md") => {
                check_links(root, &file, &text, &mut findings);
                documents.push((file, text));
            }
            _ => {}
        }
    }
    for (file, text) in &documents {
        check_tests(file, text, &functions, &mut findings);
    }
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} thing(s) are out of order", findings.len());
}

/// The rows `| 2 | `store` | ... |` of the table of rooms: crate to floor.
fn floors(architecture: &str) -> BTreeMap<String, u32> {
    architecture
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let floor = cells.next()?.parse().ok()?;
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), floor))
        })
        .collect()
}

fn check_floors(
    root: &Path,
    floors: &BTreeMap<String, u32>,
    findings: &mut Vec<String>,
) -> Result<()> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot run cargo metadata")?;
    let crates: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| (package.name.to_string(), package))
        .collect();
    for name in floors.keys().filter(|name| !crates.contains_key(*name)) {
        findings.push(format!("ARCHITECTURE.md: the room `{name}` does not exist"));
    }
    for (name, package) in &crates {
        let Some(floor) = floors.get(name) else {
            findings.push(format!(
                "ARCHITECTURE.md: the room `{name}` is missing from the table"
            ));
            continue;
        };
        if package
            .description
            .as_deref()
            .unwrap_or_default()
            .is_empty()
        {
            findings.push(format!("{name}: Cargo.toml has no description"));
        }
        let imports = package
            .dependencies
            .iter()
            .filter(|d| d.kind != DependencyKind::Development);
        for import in imports {
            let Some(below) = floors.get(&import.name) else {
                continue;
            };
            // `cluster` decides about manifests, so the two pure rooms of floor 1 may look at each
            // other; a cycle is impossible anyway.
            let allowed = below < floor || (*floor == 1 && *below == 1);
            if !allowed {
                findings.push(format!(
                    "{name} (floor {floor}) imports {} (floor {below}): imports point down",
                    import.name
                ));
            }
        }
    }
    Ok(())
}

fn committed_files(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git ls-files")?;
    if !output.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

fn check_source(file: &str, text: &str, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    let limit = if file.contains("/tests/") {
        MAX_TEST_FILE_LINES
    } else {
        MAX_FILE_LINES
    };
    if lines > limit {
        findings.push(format!(
            "{file}: {lines} lines; over {limit}, two things live there"
        ));
    }
    if file.ends_with("xtask/src/tidy.rs") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        if let Some(word) = UNFINISHED.iter().find(|word| line.contains(*word)) {
            findings.push(format!("{file}:{}: `{word}` is committed", number + 1));
        }
        // Measurements are run by `make bench`; a test is run by `make test`, or is none.
        if line.contains("#[ignore") && !line.contains(r#"#[ignore = "a measurement"#) {
            findings.push(format!("{file}:{}: a test is switched off", number + 1));
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
fn check_tests(file: &str, text: &str, functions: &BTreeSet<String>, findings: &mut Vec<String>) {
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
    fn the_table_of_rooms_is_read() {
        let table = "| floor | room | does |\n|---|---|---|\n| 0 | `contract` | types |\ntext\n| 2 | `store` | SQL |\n";
        let expected = BTreeMap::from([("contract".to_owned(), 0), ("store".to_owned(), 2)]);
        assert_eq!(floors(table), expected);
    }

    #[test]
    fn a_document_that_names_a_test_that_is_gone_is_found() {
        let source =
            "#[test]\nfn a_thing_that_is_so() {\n}\nasync fn another_thing_is_so(a: u8) {}\n";
        let functions = named_functions(source).map(str::to_owned).collect();
        let text = "| a | `a_thing_that_is_so`, `max_surge` |\n| b | `a_thing_that_was_so` |\n";
        let mut findings = Vec::new();
        check_tests("a.md", text, &functions, &mut findings);
        assert_eq!(findings, ["a.md:2: there is no test `a_thing_that_was_so`"]);
    }

    #[test]
    fn unfinished_work_and_switched_off_tests_are_found() {
        let mut findings = Vec::new();
        check_source(
            "a.rs",
            "fn f() {\n    todo!()\n}\n#[ignore]\nfn g() {}\n",
            &mut findings,
        );
        assert_eq!(
            findings,
            [
                "a.rs:2: `todo!(` is committed",
                "a.rs:4: a test is switched off"
            ]
        );
    }
}

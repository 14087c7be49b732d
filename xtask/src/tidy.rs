//! `cargo xtask tidy`: what a reviewer should not have to look for.
//!
//! - [`layers`]: ARCHITECTURE.md's table of layers is the workspace's, imports between crates point down it, and the pure
//!   crates are held to that.
//! - [`rings`]: files of one crate do not import each other in a ring.
//! - [`blocking`]: async code does not wait for a disk.
//! - [`glossary`]: the words that CONTRIBUTING.md's glossary replaced are gone.
//! - [`documents`]: documents name files and tests that exist, and ADRs are amended at their end.
//! - Here: source files are small, and nothing unfinished is committed.

#![allow(
    clippy::case_sensitive_file_extension_comparisons,
    reason = "names of committed files are lower case"
)]

mod blocking;
mod documents;
mod glossary;
mod layers;
mod rings;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Largest Rust file, in lines. Two things live in a larger one.
const MAX_FILE_LINES: usize = 800;
/// Largest file of tests, in lines: a table of cases may be long.
const MAX_TEST_FILE_LINES: usize = 1000;
/// Words that say a thing is not done.
const UNFINISHED: [&str; 4] = [
    "todo!(",
    "unimplemented!(",
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
];

/// A text file of the repository.
#[derive(Debug)]
struct Source {
    /// From the repository's root.
    path: String,
    text: String,
}

/// Checks everything; prints each finding.
///
/// # Errors
/// Something is out of order, or cannot be read.
pub(crate) fn tidy(root: &Path) -> Result<()> {
    let sources: Vec<Source> = committed_files(root)?
        .into_iter()
        .filter_map(|path| {
            // A binary file is no text, and a deleted file may still be in git's index.
            let text = std::fs::read_to_string(root.join(&path)).ok()?;
            Some(Source { path, text })
        })
        .collect();
    let architecture = sources
        .iter()
        .find(|source| source.path == "ARCHITECTURE.md")
        .context("ARCHITECTURE.md is missing")?;
    let mut findings = Vec::new();
    layers::check(root, &architecture.text, &mut findings)?;
    rings::check(&sources, &mut findings)?;
    blocking::check(&sources, &mut findings)?;
    glossary::check(&sources, &mut findings);
    documents::check(root, &sources, &mut findings);
    for source in sources.iter().filter(|source| source.path.ends_with(".rs")) {
        check_source(&source.path, &source.text, &mut findings);
    }
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("tidy has {} finding(s)", findings.len());
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
    if file == "xtask/src/tidy.rs" {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        if let Some(word) = UNFINISHED.iter().find(|word| line.contains(*word)) {
            findings.push(format!("{file}:{}: `{word}` is committed", number + 1));
        }
        // `make bench` runs measurements; `make test` runs every test.
        if line.contains("#[ignore") && !line.contains(r#"#[ignore = "a measurement"#) {
            findings.push(format!("{file}:{}: a test is switched off", number + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_work_and_a_test_that_is_switched_off_are_findings() {
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

//! `cargo xtask tidy`: what a reviewer should not have to look for.
//!
//! - [`layers`]: ARCHITECTURE.md's table of layers is the workspace's, imports between crates point down it, and the pure
//!   crates are held to that.
//! - [`rings`]: files of one crate do not import each other in a ring.
//! - [`dependencies`]: the dependencies are what deny.toml allows.
//! - [`blocking`]: async code does not wait for a disk.
//! - [`glossary`]: the words that CONTRIBUTING.md's glossary replaced are gone.
//! - [`documents`]: documents name files and tests that exist, and ADRs are amended at their end.
//! - Here: source files are small, nothing unfinished is committed, and the mutations of the simulation apply.

#![allow(
    clippy::case_sensitive_file_extension_comparisons,
    reason = "names of committed files are lower case"
)]

mod blocking;
mod dependencies;
mod documents;
mod glossary;
mod layers;
mod rings;
mod source;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use self::source::Source;

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
    let deny = sources.iter().find(|source| source.path == "deny.toml");
    let deny = deny.context("deny.toml is missing")?;
    dependencies::check(root, &deny.text, &mut findings)?;
    rings::check(&sources, &mut findings)?;
    blocking::check(&sources, &mut findings)?;
    glossary::check(&sources, &mut findings);
    documents::check(root, &sources, &mut findings);
    check_mutations(root, &sources, &mut findings)?;
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

/// The mutations of the simulation apply to the sources as they are: one that does not is noticed here, not when all are run.
fn check_mutations(root: &Path, sources: &[Source], findings: &mut Vec<String>) -> Result<()> {
    let patches = sources.iter().map(|source| source.path.as_str());
    for patch in patches.filter(|path| path.ends_with(".patch")) {
        let mut git = Command::new("git");
        let checked = git
            .args(["apply", "--check", patch])
            .current_dir(root)
            .output();
        let checked = checked.with_context(|| format!("cannot run git for {patch}"))?;
        if !checked.status.success() {
            let why = String::from_utf8_lossy(&checked.stderr);
            findings.push(format!("{patch}: does not apply: {}", why.trim()));
        }
    }
    Ok(())
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
    let is_format = |line: &str| line.starts_with("impl") && line.contains("StateFormat for ");
    if text.lines().any(is_format) && !text.contains("fixtures") {
        findings.push(format!(
            "{file}: a format of a file on disk without fixtures: keep one of each version, and read it in a test"
        ));
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
    fn a_file_format_without_fixtures_is_a_finding() {
        let format = "impl StateFormat for A {\n    const VERSION: u32 = 1;\n}\n";
        let mut findings = Vec::new();
        check_source("a.rs", format, &mut findings);
        assert_eq!(findings.len(), 1);
        let tested =
            format!("{format}const A: &str = include_str!(\"fixtures/a/version-1.json\");\n");
        check_source("a.rs", &tested, &mut findings);
        assert_eq!(findings.len(), 1);
    }

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

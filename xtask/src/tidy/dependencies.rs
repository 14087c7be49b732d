//! The dependencies are what deny.toml allows: no banned crate, only allowed licences, only registries as sources.
//!
//! These are the rules of `cargo deny check bans licenses sources` that need no more than `cargo tree`, so that they are
//! checked on every machine. `make deny` runs cargo-deny itself, with its database of advisories.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// What deny.toml says, as far as it is checked here.
#[derive(Debug, Default)]
struct Rules {
    banned: BTreeSet<String>,
    licenses: BTreeSet<String>,
}

/// Checks the dependencies of the workspace.
///
/// # Errors
/// `cargo tree` cannot be run, or deny.toml is not in its form.
pub(super) fn check(root: &Path, deny: &str, findings: &mut Vec<String>) -> Result<()> {
    let rules = rules(deny)?;
    // Not `cargo metadata`: it lists optional dependencies too, which no feature has switched on.
    let output = Command::new("cargo")
        .args(["tree", "--workspace", "--all-features", "--locked"])
        .args([
            "--target",
            "x86_64-unknown-linux-gnu",
            "--edges",
            "normal,build,dev",
        ])
        .args(["--prefix", "none", "--format", "{p}\t{l}"])
        .current_dir(root)
        .output()
        .context("cannot run cargo tree")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let packages: BTreeSet<&str> = text
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .collect();
    for package in packages {
        check_package(package, &rules, findings);
    }
    Ok(())
}

fn rules(deny: &str) -> Result<Rules> {
    let table: toml::Table = deny.parse().context("deny.toml is not TOML")?;
    let list = |table_name: &str, key: &str| {
        let list = table.get(table_name).and_then(|table| table.get(key));
        list.and_then(toml::Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let banned = list("bans", "deny");
    let banned = banned
        .iter()
        .filter_map(|entry| entry.get("crate")?.as_str());
    let licenses = list("licenses", "allow");
    let licenses = licenses.iter().filter_map(toml::Value::as_str);
    let rules = Rules {
        banned: banned.map(str::to_owned).collect(),
        licenses: licenses.map(str::to_owned).collect(),
    };
    anyhow::ensure!(
        !rules.banned.is_empty() && !rules.licenses.is_empty(),
        "deny.toml names no banned crate or no licence: its form has changed"
    );
    Ok(rules)
}

/// Checks one line of `cargo tree`: name, version, where it is from unless that is a registry, and its licence.
fn check_package(line: &str, rules: &Rules, findings: &mut Vec<String>) {
    let (package, license) = line.split_once('\t').unwrap_or((line, ""));
    let mut words = package.split(' ');
    let (Some(name), Some(version)) = (words.next(), words.next()) else {
        return; // A heading: `[dev-dependencies]`.
    };
    if rules.banned.contains(name) {
        findings.push(format!(
            "Cargo.lock: {name} {version} is banned by deny.toml"
        ));
    }
    let source = words
        .find(|word| *word != "(proc-macro)")
        .unwrap_or_default();
    if source.starts_with("(/") {
        return; // Of this workspace.
    }
    if !source.is_empty() {
        findings.push(format!(
            "Cargo.lock: {name} {version} is from {source}, which is no registry"
        ));
    }
    if !is_allowed(license, &rules.licenses) {
        findings.push(format!(
            "Cargo.lock: the licence of {name} {version}, `{license}`, is not allowed by deny.toml"
        ));
    }
}

/// Whether an SPDX expression can be met with allowed licences. `A/B` is an old way to write `A OR B`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    any_of(&mut words, allowed) && words.is_empty()
}

/// Takes `A OR B OR ..` from the end of the words, which are in reverse order.
fn any_of(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, allowed);
    while words.last() == Some(&"OR") {
        words.pop();
        // Not short-circuited: the words are taken either way.
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.last() == Some(&"AND") {
        words.pop();
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> bool {
    match words.pop() {
        Some("(") => {
            let met = any_of(words, allowed);
            words.pop() == Some(")") && met
        }
        Some(license) if words.last() == Some(&"WITH") => {
            words.pop();
            let exception = words.pop().unwrap_or_default();
            allowed.contains(&format!("{license} WITH {exception}"))
        }
        Some(license) => allowed.contains(license),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_expression_is_allowed_where_allowed_licences_meet_it() {
        let allowed = [
            "MIT",
            "Apache-2.0",
            "Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ];
        let allowed = BTreeSet::from(allowed.map(str::to_owned));
        for expression in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "GPL-3.0 OR (MIT AND Unicode-3.0)",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_allowed(expression, &allowed), "{expression}");
        }
        for expression in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR Apache-2.0) AND GPL-3.0",
            "MIT WITH Classpath-exception-2.0",
            "MIT MIT",
            "(MIT",
        ] {
            assert!(!is_allowed(expression, &allowed), "{expression}");
        }
    }

    #[test]
    fn a_banned_crate_another_licence_and_another_source_are_findings() {
        let one = |name: &str| BTreeSet::from([name.to_owned()]);
        let rules = Rules {
            banned: one("ring"),
            licenses: one("MIT"),
        };
        let findings = |line: &str| {
            let mut findings = Vec::new();
            check_package(line, &rules, &mut findings);
            findings.len()
        };
        for fine in [
            "a v1.0.0\tMIT",
            "a v1.0.0 (proc-macro)\tMIT",
            "ours v0.1.0 (/src/ours)\tApache-2.0",
            "",
        ] {
            assert_eq!(findings(fine), 0, "{fine}");
        }
        for wrong in [
            "ring v0.17.14\tMIT",
            "a v1.0.0\tGPL-3.0",
            "a v1.0.0 (https://example.com/a#1)\tMIT",
        ] {
            assert_eq!(findings(wrong), 1, "{wrong}");
        }
    }

    #[test]
    fn the_rules_are_read_from_the_form_of_cargo_deny() {
        let text = "[bans]\ndeny = [{ crate = \"ring\", reason = \"r\" }]\n[licenses]\nallow = [\"MIT\"]\n";
        let read = rules(text).map(|rules| (rules.banned, rules.licenses)).ok();
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        assert_eq!(read, Some((set("ring"), set("MIT"))));
        assert!(rules("[bans]\n").is_err());
    }
}

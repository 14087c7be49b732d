//! ARCHITECTURE.md's table of layers is the workspace's, and imports point down it. The crates that it calls pure have
//! the clippy.toml that refuses I/O and clocks, and import nothing for async, randomness or I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// The layer of contracts. Its crates may import one another: the API carries the guest protocol's frames.
const CONTRACTS: u32 = 1;
/// How the line of ARCHITECTURE.md begins that names the pure layers and crates, up to its first full stop.
const PURE: &str = "- **Pure**: ";
/// What the clippy.toml of a pure crate has, at least.
const REFUSED_BY_CLIPPY: [&str; 6] = [
    "std::time::SystemTime",
    "std::fs::File",
    "std::net::TcpStream",
    "std::process::Command",
    "std::env::var",
    "std::collections::HashMap",
];
/// Crates for async, randomness or I/O.
const IMPURE: [&str; 14] = [
    "async-trait",
    "futures-util",
    "getrandom",
    "hyper",
    "libc",
    "nix",
    "rand",
    "reqwest",
    "rustix",
    "sqlx",
    "tempfile",
    "tokio",
    "tokio-util",
    "tracing",
];

/// Checks the table of layers in the text of ARCHITECTURE.md against `cargo metadata`.
///
/// # Errors
/// `cargo metadata` cannot be run.
pub(super) fn check(root: &Path, architecture: &str, findings: &mut Vec<String>) -> Result<()> {
    let layers = table(architecture);
    let pure = pure_crates(architecture, &layers);
    if pure.is_empty() {
        findings.push(format!(
            "ARCHITECTURE.md: no line begins with `{PURE}` and names layers or crates"
        ));
    }
    for name in pure.iter().filter(|name| !layers.contains_key(*name)) {
        findings.push(format!(
            "ARCHITECTURE.md: `{name}` is called pure and is not in the table of layers"
        ));
    }
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
    for name in layers.keys().filter(|name| !crates.contains_key(*name)) {
        findings.push(format!(
            "ARCHITECTURE.md: the crate `{name}` does not exist"
        ));
    }
    for (name, package) in &crates {
        let Some(layer) = layers.get(name) else {
            findings.push(format!(
                "ARCHITECTURE.md: the crate `{name}` is missing from the table of layers"
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
            .filter(|dependency| dependency.kind != DependencyKind::Development);
        if pure.contains(name) {
            let file = package.manifest_path.with_file_name("clippy.toml");
            check_clippy(name, std::fs::read_to_string(file).ok(), findings);
        }
        for import in imports {
            if pure.contains(name) && IMPURE.contains(&import.name.as_str()) {
                findings.push(format!("{name} is pure and imports {}", import.name));
            }
            if let Some(imported) = layers.get(&import.name)
                && !may_import(*layer, *imported)
            {
                findings.push(format!(
                    "{name} (layer {layer}) imports {} (layer {imported}): imports point down",
                    import.name
                ));
            }
        }
    }
    Ok(())
}

/// A pure crate has a clippy.toml that refuses what is not pure.
fn check_clippy(name: &str, file: Option<String>, findings: &mut Vec<String>) {
    let Some(text) = file else {
        findings.push(format!(
            "{name} is pure and has no clippy.toml: copy that of `model`"
        ));
        return;
    };
    for refused in REFUSED_BY_CLIPPY {
        if !text.contains(&format!("\"{refused}")) {
            findings.push(format!(
                "{name} is pure, and its clippy.toml does not refuse {refused}"
            ));
        }
    }
}

/// The crates that the line behind [`PURE`] names, by their layer (`layers 1 and 2`) or by name.
fn pure_crates(architecture: &str, layers: &BTreeMap<String, u32>) -> BTreeSet<String> {
    let line = architecture
        .lines()
        .find_map(|line| line.strip_prefix(PURE))
        .unwrap_or_default();
    let sentence = line.split('.').next().unwrap_or_default();
    let by_name = sentence.split('`').skip(1).step_by(2).map(str::to_owned);
    let pure_layers: Vec<u32> = sentence
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    let by_layer = layers
        .iter()
        .filter(|(_, layer)| pure_layers.contains(layer))
        .map(|(name, _)| name.clone());
    by_name.chain(by_layer).collect()
}

/// Whether a crate of one layer may import a crate of another.
fn may_import(layer: u32, imported: u32) -> bool {
    imported < layer || (layer == CONTRACTS && imported == CONTRACTS)
}

/// The rows `| 2 | `store` | ... |` of the table: crate to layer.
fn table(architecture: &str) -> BTreeMap<String, u32> {
    architecture
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let layer = cells.next()?.parse().ok()?;
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), layer))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_layers_is_read() {
        let text = "| layer | crate | does |\n|---|---|---|\n| 0 | `model` | values |\ntext\n| 3 | `store` | SQL |\n";
        let expected = BTreeMap::from([("model".to_owned(), 0), ("store".to_owned(), 3)]);
        assert_eq!(table(text), expected);
    }

    #[test]
    fn pure_crates_are_named_by_layer_and_by_name() {
        let layers = [("model", 0), ("file", 0), ("api", 1), ("store", 3)];
        let layers = BTreeMap::from(layers.map(|(name, layer)| (name.to_owned(), layer)));
        let text =
            "- **3, mechanisms**\n- **Pure**: layers 1 and 2, `model`. No I/O, not `store`.\n";
        let expected = BTreeSet::from(["api", "model"].map(str::to_owned));
        assert_eq!(pure_crates(text, &layers), expected);
        assert!(pure_crates("pure: `model`\n", &layers).is_empty());
    }

    #[test]
    fn a_pure_crate_without_the_clippy_file_is_a_finding() {
        let mut findings = Vec::new();
        check_clippy("api", None, &mut findings);
        assert_eq!(
            findings,
            ["api is pure and has no clippy.toml: copy that of `model`"]
        );
        let all: Vec<_> = REFUSED_BY_CLIPPY.map(|path| format!("{path:?}")).into();
        findings.clear();
        check_clippy("api", Some(all.join("\n")), &mut findings);
        assert!(findings.is_empty());
        check_clippy("api", Some(all[1..].join("\n")), &mut findings);
        assert_eq!(
            findings,
            ["api is pure, and its clippy.toml does not refuse std::time::SystemTime"]
        );
    }

    #[test]
    fn a_mechanism_imports_no_mechanism_and_nothing_from_above() {
        assert!(may_import(3, 2) && may_import(3, 0) && may_import(1, 1));
        assert!(!may_import(3, 3) && !may_import(3, 4) && !may_import(2, 2) && !may_import(0, 0));
    }
}

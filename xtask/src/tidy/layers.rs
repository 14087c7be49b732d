//! ARCHITECTURE.md's table of layers is the workspace's, and imports point down it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// The layer of contracts. Its crates may import one another: the API carries the guest protocol's frames.
const CONTRACTS: u32 = 1;

/// Checks the table of layers in the text of ARCHITECTURE.md against `cargo metadata`.
///
/// # Errors
/// `cargo metadata` cannot be run.
pub(super) fn check(root: &Path, architecture: &str, findings: &mut Vec<String>) -> Result<()> {
    let layers = table(architecture);
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
        for import in imports {
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
    fn a_mechanism_imports_no_mechanism_and_nothing_from_above() {
        assert!(may_import(3, 2) && may_import(3, 0) && may_import(1, 1));
        assert!(!may_import(3, 3) && !may_import(3, 4) && !may_import(2, 2) && !may_import(0, 0));
    }
}

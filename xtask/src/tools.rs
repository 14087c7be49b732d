//! What tasks share: run a command, write a file whole, hash, remember what an artifact was made from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// The repository's root. `cargo run` names it at run time, so that a clone that was moved or copied with its
/// `target` works on itself and not on the folder that it was built in.
pub(crate) fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.join("..")
}

/// Runs a command and returns its standard output; its standard error is shown when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = format!("{command:?}");
    let output = command
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("run {name}"))?;
    ensure!(
        output.status.success(),
        "{name}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Writes beside and renames, so that a reader sees the old file or the new one. Everyone may read the file,
/// whatever the umask: a VMM opens kernel and initramfs as a user of its own.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes)
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// One hash of several inputs, in their order.
pub(crate) fn hash_of(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // Of each its own hash: where one ends and the next begins counts as well.
        hash.update(Sha256::digest(part));
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether `record` says it was made from these inputs and its files, beside it, are as it says.
pub(crate) fn is_current(record: &Path, inputs: &str) -> bool {
    let Some(value) = read_record(record) else {
        return false;
    };
    let files: BTreeMap<String, String> =
        serde_json::from_value(value["sha256"].clone()).unwrap_or_default();
    value["inputs"] == inputs
        && !files.is_empty()
        && files.iter().all(|(name, hash)| {
            fs::read(record.with_file_name(name)).is_ok_and(|bytes| &sha256(&bytes) == hash)
        })
}

pub(crate) fn read_record(record: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(record).ok()?).ok()
}

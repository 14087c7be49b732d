//! Lists the migrations: every file of `migrations/` is one, so that none can be forgotten in a list beside it.

#![allow(clippy::print_stdout, reason = "cargo is told on standard output")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const FOLDER: &str = "migrations";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let mut files: Vec<PathBuf> = std::fs::read_dir(FOLDER)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let mut list = "&[\n".to_owned();
    for (expected, file) in (1_i64..).zip(&files) {
        let (number, name) = parts(file).ok_or_else(|| {
            let file = file.display();
            format!("{file}: a migration is called NNNN_name.sql")
        })?;
        if number != expected {
            let file = file.display();
            return Err(format!("{file}: the next migration has the number {expected}").into());
        }
        let path = std::path::absolute(file)?;
        let path = path
            .to_str()
            .ok_or_else(|| format!("{}: the path is not UTF-8", path.display()))?;
        writeln!(list, "({number}, {name:?}, include_str!({path:?})),")?;
    }
    list.push(']');
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("migrations.rs"), list)?;
    Ok(())
}

/// The number and the name in `0002_name_of_it.sql`.
fn parts(file: &Path) -> Option<(i64, String)> {
    let stem = file.file_name()?.to_str()?.strip_suffix(".sql")?;
    let (number, name) = stem.split_once('_')?;
    Some((number.parse().ok()?, name.replace('_', " ")))
}

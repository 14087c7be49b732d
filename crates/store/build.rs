//! Lists the migrations: every file of `migrations/sqlite` and `migrations/postgres` is one, so that none can be forgotten in a
//! list beside it. A schema has the same number in both.

#![allow(clippy::print_stdout, reason = "cargo is told on standard output")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Each folder, and the number of its first file: PostgreSQL came when SQLite had the tenth schema.
const FOLDERS: [(&str, i64); 2] = [("sqlite", 1), ("postgres", 10)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut newest = None;
    for (folder, first) in FOLDERS {
        let last = list(folder, first)?;
        if newest.is_some_and(|newest| newest != last) {
            return Err(format!(
                "migrations/{folder} ends with number {last}, and migrations/{} with another: a change of the schema is a file \
                 in both",
                FOLDERS[0].0
            )
            .into());
        }
        newest = Some(last);
    }
    Ok(())
}

/// Writes the list of one folder. Gives the number of its last file.
fn list(folder: &str, first: i64) -> Result<i64, Box<dyn std::error::Error>> {
    let path = format!("migrations/{folder}");
    println!("cargo::rerun-if-changed={path}");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&path)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let mut list = "&[\n".to_owned();
    let mut last = 0;
    for (expected, file) in (first..).zip(&files) {
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
        last = number;
    }
    list.push(']');
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join(format!("{folder}_migrations.rs")),
        list,
    )?;
    Ok(last)
}

/// The number and the name in `0002_name_of_it.sql`.
fn parts(file: &Path) -> Option<(i64, String)> {
    let stem = file.file_name()?.to_str()?.strip_suffix(".sql")?;
    let (number, name) = stem.split_once('_')?;
    Some((number.parse().ok()?, name.replace('_', " ")))
}

//! `cargo xtask mutations`: breaks each rule on purpose, and sees the simulation catch it (docs/simulation.md).
//!
//! A mutation is a patch in `crates/simulation/mutations`. Each is applied alone to a copy of the sources, which is built and run until
//! the simulation reports the expected violation. A patch that does not apply, does not build, or is not caught is an error.
//!
//! Before its first `diff` line a patch has a header of `Name: value` lines: `Rule`, what it breaks, and `Caught`, a part of what the
//! simulation says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::tools::output;

/// Where the mutations are, below the repository's root.
const FOLDER: &str = "crates/simulation/mutations";

/// What the table shows of what the simulation says, in characters.
const MAX_SAYS: usize = 130;

/// What to break.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these mutations, by the names of their files without `.patch`. None: all of them.
    names: Vec<String>,
    /// A mutation that is not caught within so many seeds fails.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Where the copy of the sources is, and what is built of it. It stays there, so that the next time less is built.
    #[arg(long, default_value = "target/mutations")]
    folder: PathBuf,
}

/// One mutation.
struct Mutation {
    name: String,
    patch: PathBuf,
    rule: String,
    caught: String,
}

/// How it was caught.
struct Caught {
    seed: u64,
    step: u64,
    violation: String,
}

/// Breaks each rule and prints a table of how that was caught.
///
/// # Errors
/// A patch does not apply or build, or was not caught.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let mutations = read_all(&root.join(FOLDER), &options.names)?;
    let folder = root.join(&options.folder);
    let (copy, target) = (folder.join("sources"), folder.join("target"));
    copy_sources(root, &copy)?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for mutation in &mutations {
        match try_one(mutation, &copy, &target, options.seeds) {
            Ok(caught) => {
                let row = row(mutation, &caught);
                print_line(&row);
                rows.push(row);
            }
            Err(error) => {
                let failure = format!("{}: {error:#}", mutation.name);
                print_line(&failure);
                failed.push(failure);
            }
        }
    }
    print_line("\n| rule | mutation | seed | step | the simulation says |\n|---|---|---|---|---|");
    for row in &rows {
        print_line(row);
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} mutations failed:\n{}",
            failed.len(),
            mutations.len(),
            failed.join("\n")
        );
    }
    Ok(())
}

/// Prints a line of the table, which is this task's output.
#[allow(clippy::print_stdout, reason = "a table is this task's output")]
fn print_line(line: &str) {
    println!("{line}");
}

fn row(mutation: &Mutation, caught: &Caught) -> String {
    let Mutation { name, rule, .. } = mutation;
    let Caught {
        seed,
        step,
        violation,
    } = caught;
    let mut says: String = violation.chars().take(MAX_SAYS).collect();
    if says.len() < violation.len() {
        says.push_str(" ..");
    }
    let says = says.replace('|', "\\|");
    format!("| {rule} | `{name}` | {seed} | {step} | {says} |")
}

/// The mutations of the folder, in the order of their names.
fn read_all(folder: &Path, names: &[String]) -> Result<Vec<Mutation>> {
    let mut mutations = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let patch = entry?.path();
        let name = patch.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.into_owned();
        if patch.extension().is_none_or(|kind| kind != "patch")
            || !(names.is_empty() || names.contains(&name))
        {
            continue;
        }
        let text = fs::read_to_string(&patch);
        let text = text.with_context(|| format!("read {}", patch.display()))?;
        let header = |field: &str| -> Result<String> {
            let lines = text.lines().take_while(|line| !line.starts_with("diff "));
            let mut values = lines.filter_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
            let value = values.next().map(str::to_owned);
            value.with_context(|| format!("{} has no line `{field}: ..`", patch.display()))
        };
        mutations.push(Mutation {
            rule: header("Rule")?,
            caught: header("Caught")?,
            name,
            patch,
        });
    }
    for name in names {
        let is_known = mutations.iter().any(|mutation| mutation.name == *name);
        ensure!(is_known, "there is no {name}.patch in {}", folder.display());
    }
    mutations.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(mutations)
}

/// Copies the files that git knows, and those that it does not ignore. What is there already stays as old as it is, so that it is not
/// built again.
fn copy_sources(root: &Path, copy: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let names = output(list.current_dir(root))?;
    let names = names.split('\0').filter(|name| !name.is_empty());
    // One may have been removed and that not be committed yet.
    let names: BTreeSet<_> = names.filter(|name| root.join(name).is_file()).collect();
    remove_others(copy, copy, &names)?;
    for name in names {
        let (from, to) = (root.join(name), copy.join(name));
        let bytes = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        if fs::read(&to).is_ok_and(|known| known == bytes) {
            continue;
        }
        let folder = to.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(&to, bytes).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(())
}

/// Removes the files of the copy that are not of these names.
fn remove_others(folder: &Path, copy: &Path, names: &BTreeSet<&str>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.strip_prefix(copy)?.to_string_lossy().into_owned();
        if path.is_dir() {
            remove_others(&path, copy, names)?;
        } else if !names.contains(name.as_str()) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Applies a mutation, builds, simulates, and takes it back.
fn try_one(mutation: &Mutation, copy: &Path, target: &Path, seeds: u64) -> Result<Caught> {
    apply(mutation, copy, &[])?;
    let caught = build(copy, target).and_then(|binary| simulate(&binary, mutation, seeds));
    apply(mutation, copy, &["--reverse"])?;
    caught
}

fn apply(mutation: &Mutation, copy: &Path, how: &[&str]) -> Result<()> {
    let mut git = Command::new("git");
    git.args(["apply", "--whitespace=nowarn"]).args(how);
    let above = copy.parent().unwrap_or(copy);
    // The copy is no repository, and none above it counts.
    git.arg(&mutation.patch)
        .current_dir(copy)
        .env("GIT_CEILING_DIRECTORIES", above);
    let applied = output(&mut git);
    applied.with_context(|| format!("{} does not apply any more", mutation.patch.display()))?;
    Ok(())
}

/// Builds the simulation.
fn build(copy: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--quiet", "-p", "simulation"]);
    cargo
        .args(["--bin", "simulate", "--target-dir"])
        .arg(target);
    // Each is built once and run for seconds: what matters is how long that takes.
    cargo
        .env("CARGO_INCREMENTAL", "1")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
    output(cargo.current_dir(copy))?;
    Ok(target.join("release/simulate"))
}

fn simulate(binary: &Path, mutation: &Mutation, seeds: u64) -> Result<Caught> {
    let mut simulate = Command::new(binary);
    simulate.env("RUST_BACKTRACE", "0");
    simulate.args(["--seeds", &seeds.to_string(), "--expect", &mutation.caught]);
    let found = output(&mut simulate)?;
    let found: serde_json::Value = serde_json::from_str(found.trim())?;
    Ok(Caught {
        seed: found["seed"].as_u64().context("no seed")?,
        step: found["step"].as_u64().context("no step")?,
        violation: found["violation"].as_str().unwrap_or_default().to_owned(),
    })
}

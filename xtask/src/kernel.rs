//! `cargo xtask kernel`: the platform's own guest kernel, `target/guest/vmlinux` (ADR 0003).
//!
//! Debian's source package of the kernel, with its fixes, configured by `xtask/kernel/guest.config` and
//! nothing else. The result is an ELF file with a PVH entry, which QEMU's microvm machine and
//! Firecracker boot without firmware. It is kept by the hash of its inputs: source package, config,
//! compiler, recipe. It takes two cores six to ten minutes, so it is a task of its own: where it was
//! run, guests boot this kernel, elsewhere Debian's.
//!
//! It may be interrupted at any moment; the next run goes on where it was. The same inputs give the
//! same bytes: nothing of the time, the user and the machine is in the kernel.
//!
//! Absent on purpose: modules, debug information, and an initramfs inside the kernel (init changes more
//! often).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::apt;
use crate::tools::{hash_of, is_current, output, read_record, replace, root, sha256};

/// Raised when this task makes another kernel of the same inputs.
const RECIPE: &str = "1";
/// The source package; its minor series is Debian 12's, as are the fixes in it.
const SOURCE_PACKAGE: &str = "linux-source-6.1";
/// What building needs, beside what building the platform needs.
const BUILD_PACKAGES: [&str; 8] = [
    "bc",
    "binutils",
    "bison",
    "flex",
    "gcc",
    "libelf-dev",
    "make",
    "xz-utils",
];
/// What the kernel says of its making in place of the time, user and machine it was made by.
const MADE_BY: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "platform"),
    ("KBUILD_BUILD_HOST", "platform"),
    ("KBUILD_BUILD_VERSION", "1"),
];
/// How much the build yields to whatever else runs (nice(1)).
const NICENESS: &str = "10";

/// Options of `cargo xtask kernel`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Compilers at once [default: as many as there are processors]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

/// Builds `target/guest/vmlinux`.
///
/// # Errors
/// What is missing, or the step that failed with its words.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = root().canonicalize()?;
    let out = root.join("target/guest");
    let cache = out.join("cache");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    apt::install(&BUILD_PACKAGES)?;

    let config = root.join("xtask/kernel/guest.config");
    let shown = apt::show(SOURCE_PACKAGE)?;
    let version = apt::field(&shown, "Version:")?;
    let package = apt::download(&cache, SOURCE_PACKAGE, version, "all")?;
    let inputs = hash_of(&[
        RECIPE.as_bytes(),
        &read(&config)?,
        &read(&package)?,
        output(Command::new("gcc").arg("--version"))?.as_bytes(),
        output(Command::new("ld").arg("--version"))?.as_bytes(),
    ]);
    let record = out.join("kernel.json");
    if !is_current(&record, &inputs) {
        let work = root.join("target/kernel");
        let source = unpack(&package, &work, version)?;
        configure(&source, &config)?;
        let vmlinux = build(&source, options.jobs)?;
        replace(&out.join("vmlinux"), &vmlinux)?;
        let value = json!({
            "inputs": inputs,
            "version": format!("{SOURCE_PACKAGE} {version}"),
            "sha256": { "vmlinux": sha256(&vmlinux) },
        });
        replace(&record, format!("{value:#}\n").as_bytes())?;
        // Gigabytes, and of no use any more.
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    let value = read_record(&record).context("read back kernel.json")?;
    eprintln!(
        "{}: {}, {} KiB",
        out.join("vmlinux").display(),
        value["version"].as_str().unwrap_or("?"),
        fs::metadata(out.join("vmlinux"))?.len() / 1024,
    );
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The source tree of this version, unpacked when it is not there.
fn unpack(package: &Path, work: &Path, version: &str) -> Result<PathBuf> {
    let source = work.join(version.replace([':', '~'], "-"));
    if source.is_dir() {
        return Ok(source);
    }
    eprintln!("unpacking {}", package.display());
    // Of another version, or cut short.
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("remove {}", work.display()))?;
    }
    let partial = work.join("partial");
    fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
    output(Command::new("dpkg-deb").arg("-x").args([package, &partial]))?;
    let archive = partial.join(format!("usr/src/{SOURCE_PACKAGE}.tar.xz"));
    output(
        Command::new("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(&partial),
    )?;
    fs::rename(partial.join(SOURCE_PACKAGE), &source)
        .with_context(|| format!("{} does not hold {SOURCE_PACKAGE}", archive.display()))?;
    fs::remove_dir_all(&partial)?;
    Ok(source)
}

/// Writes the tree's `.config`, and makes sure that it says what ours says.
fn configure(source: &Path, config: &Path) -> Result<()> {
    output(
        make(source)
            .arg(format!("KCONFIG_ALLCONFIG={}", config.display()))
            .arg("allnoconfig"),
    )?;
    let wanted = fs::read_to_string(config)?;
    let got = fs::read_to_string(source.join(".config")).context("read the kernel's .config")?;
    let lost = unmet(&wanted, &got);
    ensure!(
        lost.is_empty(),
        "the kernel's configuration does not take these lines of {}; an option was renamed, or what \
         it depends on is off:\n  {}",
        config.display(),
        lost.join("\n  ")
    );
    Ok(())
}

/// Lines of the one configuration that do not hold in the other.
fn unmet<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let holds = |line: &str| match line
        .strip_prefix("# ")
        .and_then(|rest| rest.strip_suffix(" is not set"))
    {
        Some(option) => !got.lines().any(|set| {
            set.strip_prefix(option)
                .is_some_and(|rest| rest.starts_with('='))
        }),
        None => got.lines().any(|set| set == line),
    };
    wanted
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("CONFIG_") || line.ends_with(" is not set"))
        .filter(|line| !holds(line))
        .collect()
}

/// Compiles, or goes on compiling, and gives the kernel without its symbols.
fn build(source: &Path, jobs: Option<usize>) -> Result<Vec<u8>> {
    let jobs = match jobs {
        Some(jobs) => jobs,
        None => std::thread::available_parallelism()?.get(),
    };
    eprintln!("building in {} ({jobs} at once)", source.display());
    let status = make(source)
        .arg(format!("-j{jobs}"))
        .arg("vmlinux")
        .status()
        .context("run make")?;
    ensure!(status.success(), "the kernel does not build (see above)");
    let stripped = source.join("vmlinux.stripped");
    output(
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&stripped)
            .arg(source.join("vmlinux")),
    )?;
    read(&stripped)
}

/// The kernel's make, which is the same whoever runs it, and is nice to others.
fn make(source: &Path) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", NICENESS, "make", "--silent"])
        .current_dir(source)
        .env("LC_ALL", "C")
        .envs(MADE_BY)
        // Of a cargo or a make that runs us.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    command
}

#[cfg(test)]
mod tests {
    use super::unmet;

    #[test]
    fn a_line_that_does_not_hold_is_named() {
        let wanted =
            "# A comment\nCONFIG_A=y\nCONFIG_B=7\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let got = "CONFIG_A=y\nCONFIG_B=8\nCONFIG_C=y\nCONFIG_DD=y\n";
        assert_eq!(unmet(wanted, got), ["CONFIG_B=7", "# CONFIG_C is not set"]);
    }
}

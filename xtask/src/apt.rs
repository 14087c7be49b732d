//! Debian's packages: what is current, a package's file in our cache, and the installation of packages that a task needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tools::{output, sha256};

/// A package's description.
///
/// # Errors
/// apt is not here or knows no such package.
pub(crate) fn show(package: &str) -> Result<String> {
    output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
        .with_context(|| format!("apt knows no {package}: run `apt-get update` first"))
}

/// The value of a field of a package's description.
///
/// # Errors
/// It has no such field.
pub(crate) fn field<'a>(description: &'a str, key: &str) -> Result<&'a str> {
    description
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
        .with_context(|| format!("apt-cache show: no {key} in\n{description}"))
}

/// The file of a package in the cache, downloaded when it is not there.
///
/// # Errors
/// It cannot be downloaded, or is not what apt lists.
pub(crate) fn download(cache: &Path, name: &str, version: &str, arch: &str) -> Result<PathBuf> {
    let file_name = format!("{name}_{}_{arch}.deb", version.replace(':', "%3a"));
    let path = cache.join(&file_name);
    if path.exists() {
        return Ok(path);
    }
    eprintln!("downloading {name} {version}");
    let package = format!("{name}={version}");
    let shown = show(&package)?;
    let expected = field(&shown, "SHA256:")?;
    // Under its name it is whole: what was cut short or changed stays out of the cache.
    let partial = cache.join(format!("partial.{}", std::process::id()));
    fs::create_dir_all(&partial)?;
    let downloaded = (|| {
        // apt's own user cannot write to our directory, which apt mentions at length: quiet, and
        // the checksum below is what counts.
        output(
            Command::new("apt-get")
                .current_dir(&partial)
                .args(["download", "--quiet", &package]),
        )?;
        let bytes = fs::read(partial.join(&file_name))
            .with_context(|| format!("apt-get left no {file_name}"))?;
        ensure!(
            sha256(&bytes) == expected,
            "{package} does not have the sha256 that apt lists, {expected}"
        );
        fs::rename(partial.join(&file_name), &path)
            .with_context(|| format!("keep {}", path.display()))
    })();
    let _ = fs::remove_dir_all(&partial);
    downloaded?;
    Ok(path)
}

/// Installs those of these packages that are missing.
///
/// # Errors
/// Some are missing and apt does not install them: only root can.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !is_installed(package))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    eprintln!("installing {names}");
    let installed = output(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(&missing),
    );
    if let Err(error) = installed {
        bail!("{error}\nhint: as root: apt-get update && apt-get install {names}");
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]))
        .is_ok_and(|status| status == "install ok installed")
}

//! How long a disk takes to build, and how much memory, against the floor: `igzip` to `dd`, synced.
//!
//! `bench [LAYER.tar.gz ..]`. Without an argument it makes one with `debootstrap` (as root, once): Debian
//! minbase with python3 and git. Needs Debian's isal, gzip and coreutils. The page cache is warm.
#![allow(clippy::print_stdout, reason = "a bench tells its numbers")]

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use contract::Digest;
use root_disk::{Compression, Layer, Limits, build};
use sha2::{Digest as _, Sha256};

/// Of so many runs the quickest counts.
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        paths.push(debian()?);
    }
    for path in paths {
        let layer = layer(&path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let (disk, raw) = (folder.join("bench.ext4"), folder.join("bench.tar"));
        let mut floor = f64::MAX;
        let mut ours = f64::MAX;
        for _ in 0..RUNS {
            // Nothing of what came before is still to be written.
            run(&mut Command::new("sync"))?;
            floor = floor.min(seconds(|| unpack(&path, &raw))?);
            fs::remove_file(&raw)?;
            run(&mut Command::new("sync"))?;
            ours = ours.min(seconds(|| {
                let _: () = drop(build(
                    std::slice::from_ref(&layer),
                    &disk,
                    &Limits::default(),
                )?);
                Ok(())
            })?);
        }
        let size = disk.metadata()?.len();
        fs::remove_file(&disk)?;
        println!(
            "{}: {ours:.2} s, floor {floor:.2} s, ratio {:.2}; disk {} MiB, peak RSS {} MiB",
            path.display(),
            ours / floor,
            size >> 20,
            peak_rss_kib()? >> 10,
        );
    }
    Ok(())
}

fn seconds(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {status}").into())
    }
}

fn unpack(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let mut igzip = Command::new("igzip")
        .arg("-dc")
        .arg(from)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = igzip.stdout.take().ok_or("no output")?;
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "iflag=fullblock", "conv=fsync", "status=none"]);
    run_with(dd.arg(format!("of={}", to.display())), output)?;
    if igzip.wait()?.success() {
        Ok(())
    } else {
        Err("igzip failed".into())
    }
}

fn run_with(command: &mut Command, input: impl Into<Stdio>) -> Result<(), Box<dyn Error>> {
    if command.stdin(input).status()?.success() {
        Ok(())
    } else {
        Err(format!("{command:?} failed").into())
    }
}

fn layer(path: &Path) -> Result<Layer, Box<dyn Error>> {
    let sum = |reader: &mut dyn io::Read| -> io::Result<Digest> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = reader.read(&mut buffer)?;
            if length == 0 {
                return Ok(Digest::from_sha256(&hasher.finalize().into()));
            }
            hasher.update(&buffer[..length]);
        }
    };
    Ok(Layer {
        path: path.to_owned(),
        digest: sum(&mut File::open(path)?)?,
        diff_id: sum(&mut flate2::read::MultiGzDecoder::new(File::open(path)?))?,
        compression: Compression::Gzip,
    })
}

/// The most memory this process ever had resident, in KiB.
fn peak_rss_kib() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn debian() -> Result<PathBuf, Box<dyn Error>> {
    let folder = std::env::temp_dir().join("root-disk-bench");
    let layer = folder.join("debian.tar.gz");
    if layer.exists() {
        return Ok(layer);
    }
    fs::create_dir_all(&folder)?;
    let tree = folder.join("debian");
    let mut debootstrap = Command::new("debootstrap");
    debootstrap
        .args(["--variant=minbase", "--include=python3,git", "bookworm"])
        .arg(&tree);
    run(&mut debootstrap)?;
    let mut tar = Command::new("tar")
        .args([
            "--numeric-owner",
            "--xattrs",
            "--exclude=./var/cache/apt/archives/*.deb",
            "-cf",
            "-",
            "-C",
        ])
        .arg(&tree)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()?;
    let unfinished = folder.join("unfinished");
    run_with(
        Command::new("gzip")
            .arg("-6")
            .stdout(File::create(&unfinished)?),
        tar.stdout.take().ok_or("no output")?,
    )?;
    if !tar.wait()?.success() {
        return Err("tar failed".into());
    }
    fs::rename(&unfinished, &layer)?;
    fs::remove_dir_all(&tree)?;
    Ok(layer)
}

//! How long a root disk takes to build, and how much memory, beside the baseline and what others use.
//!
//! `bench IMAGE ..`, each an OCI layout as `DIRECTORY:TAG`; `make bench` gives it those of
//! `examples/images.sh`. Ours is the time from the layers to a disk on stable storage, digests and diff_ids
//! checked. The baseline is the least that anything could do: `igzip -dc LAYER | dd conv=fsync` of every layer. The
//! page cache is warm, nothing is waiting to be written, and of `RUNS` runs in turn the median counts.
//!
//! The others: `umoci unpack` and `mke2fs -d`, once; `mkfs.erofs --tar`, where erofs-utils knows it (1.7; Debian
//! 12 has 1.5).
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench tells its numbers, and fails by panicking"
)]

#[path = "../tests/support/oci.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use the rest")]
mod oci;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use ::oci::{Compression, LayerFile};
use root_disk::{Limits, build};

const RUNS: usize = 5;
/// The most memory that a build may have resident, in MiB.
const RSS_GOAL: u64 = 64;
/// The images that are measured, and how many times the baseline each may take.
const GOALS: [(&str, f64); 2] = [("tools", 1.9), ("modules", 3.4)];

fn main() {
    let images: Vec<String> = std::env::args().skip(1).collect();
    assert!(!images.is_empty(), "usage: bench DIRECTORY:TAG ..");
    for image in images {
        bench(&image);
    }
}

fn bench(image: &str) {
    let name = image.rsplit(':').next().unwrap();
    let layers = oci::layers(image);
    assert!(
        layers
            .iter()
            .all(|layer| layer.compression == Compression::Gzip)
    );
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let (disk, raw) = (dir.path().join("ours.ext4"), dir.path().join("raw"));
    let mut baselines = Vec::new();
    let mut ours = Vec::new();
    let mut sums = Vec::new();
    let mut rss = 0;
    for _ in 0..RUNS {
        sync();
        baselines.push(seconds(|| {
            for layer in &layers {
                unpack(layer, &raw);
            }
        }));
        fs::remove_file(&raw).unwrap();
        sync();
        // From here on, the most that is resident.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        ours.push(seconds(|| {
            sums.push(build(&layers, &disk, &Limits::default()).unwrap());
        }));
        rss = peak_rss().max(rss);
    }
    assert!(
        sums.iter().all(|built| *built == sums[0]),
        "two builds differ"
    );
    let (baseline, ours) = (median(baselines), median(ours));
    let ratio = ours / baseline;
    let goal = GOALS.iter().find(|(image, _)| *image == name);
    println!(
        "root disk of {name}: {ours:.2} s, {ratio:.2} times the baseline of {baseline:.2} s{}; peak RSS {rss} MiB \
         (goal {RSS_GOAL}); {} MiB, {RUNS} builds equal",
        goal.map_or_else(String::new, |(_, goal)| format!(" (goal {goal})")),
        sums[0].size_bytes >> 20,
    );
    fs::remove_file(&disk).unwrap();
    sync();
    let theirs = seconds(|| unpack_and_format(image, dir.path()));
    println!("    umoci unpack, mke2fs -d: {theirs:.2} s");
    match erofs(&layers, dir.path()) {
        Some(seconds) => println!("    mkfs.erofs --tar: {seconds:.2} s"),
        None => println!("    mkfs.erofs --tar: not measured, no erofs-utils from 1.7 on"),
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn run(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

fn sync() {
    run(&mut Command::new("sync"));
}

fn sync_file(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn unpack(layer: &LayerFile, to: &Path) {
    let mut igzip = Command::new("igzip")
        .arg("-dc")
        .arg(&layer.path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("igzip of Debian's isal");
    run(Command::new("dd")
        .args(["bs=1M", "iflag=fullblock", "conv=fsync", "status=none"])
        .arg(format!("of={}", to.display()))
        .stdin(igzip.stdout.take().unwrap()));
    assert!(igzip.wait().unwrap().success());
}

/// What people do who have no program for it.
fn unpack_and_format(image: &str, dir: &Path) {
    let tree = oci::unpack(image, dir);
    let disk = dir.join("theirs.ext4");
    run(Command::new("mke2fs")
        .args([
            "-q", "-t", "ext4", "-b", "4096", "-i", "4096", "-m", "0", "-d",
        ])
        .arg(tree)
        .arg(&disk)
        .arg("2G"));
    sync_file(&disk);
}

fn erofs(layers: &[LayerFile], dir: &Path) -> Option<f64> {
    let help = Command::new("mkfs.erofs").arg("--help").output().ok()?;
    let help = [help.stdout, help.stderr].concat();
    let knows = String::from_utf8_lossy(&help).contains("--tar");
    let [layer] = layers else { return None };
    let disk = dir.join("erofs");
    knows.then(|| {
        seconds(|| {
            run(Command::new("mkfs.erofs")
                .args(["--tar=f", "--gzip"])
                .arg(&disk)
                .arg(&layer.path));
            sync_file(&disk);
        })
    })
}

/// In MiB, rounded up.
fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes.div_ceil(1024)
}

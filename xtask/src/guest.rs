//! `cargo xtask guest`: what every guest boots, in `target/guest` (ADR 0003, design section 4).
//!
//! `platform-init` is built statically; the kernel is Debian's cloud kernel, downloaded but not
//! installed; the initramfs holds init, the modules that kernel needs for our devices in load
//! order, and a console node. The same inputs give the same bytes: the archive's files have owner
//! 0 and time 0. A run whose inputs did not change does nothing but check them.
//!
//! Absent on purpose: the platform's own kernel (built from linux-source), which is another chore,
//! and any compression of the initramfs: unpacking costs more boot time than the bytes do.

mod cpio;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The meta package whose one dependency is the current kernel.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The modules of Debian's kernel that our devices need, in load order: each after the ones it
/// uses. Paths are below `lib/modules/<version>/kernel`, without the suffix.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/virtio/virtio_mmio",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
    "fs/overlayfs/overlay",
    "drivers/char/hw_random/virtio-rng",
];

/// How platform-init is compiled and linked: static, at a fixed address (nothing to relocate at
/// start), and small, because its pages are memory that every guest pays for. A panic aborts, which
/// the kernel answers with a reboot, so nothing is ever unwound and the tables for it stay out.
const INIT_FLAGS: &[&str] = &[
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Cstrip=symbols",
    "-Cpanic=abort",
    "-Cforce-unwind-tables=no",
    "-Ccodegen-units=1",
    "-Clink-arg=-Wl,--icf=all",
    "-Clink-arg=-Wl,-O2",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,--no-eh-frame-hdr",
];

/// Options of `cargo xtask guest`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Use this `.deb` of a Debian kernel instead of asking apt for the current one.
    #[arg(long, value_name = "FILE")]
    kernel_package: Option<PathBuf>,
}

/// Builds `target/guest`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = workspace_root()?;
    let out = root.join("target/guest");
    let cache = out.join("cache");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;

    let init = build_init(&root)?;
    let package = match &options.kernel_package {
        Some(path) => path.clone(),
        None => current_kernel(&cache)?,
    };
    let package_name = package
        .file_name()
        .context("the kernel package has no file name")?
        .to_string_lossy()
        .into_owned();
    let inputs = inputs_hash(&init, &package)?;
    let record = out.join("guest.json");
    if is_current(&record, &inputs, &out) {
        report(&record)?;
        return Ok(());
    }

    let kernel = unpack_kernel(&package)?;
    let initramfs = initramfs(&init, &kernel.modules)?;
    replace(&out.join("vmlinuz"), &kernel.image)?;
    replace(&out.join("platform-init"), &init)?;
    make_executable(&out.join("platform-init"))?;
    replace(&out.join("initramfs.cpio"), &initramfs)?;
    let value = json!({
        "inputs": inputs,
        "kernel": { "version": kernel.version, "package": package_name },
        "modules": kernel.modules.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "sha256": {
            "vmlinuz": sha256(&kernel.image),
            "platform-init": sha256(&init),
            "initramfs.cpio": sha256(&initramfs),
        },
    });
    replace(&record, format!("{value:#}\n").as_bytes())?;
    report(&record)
}

/// The directory of the workspace's Cargo.toml.
fn workspace_root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .context("xtask has no parent directory")?
        .to_path_buf())
}

/// Builds platform-init and returns its bytes. Only the last crate is compiled with these flags, so
/// nothing else in the shared target directory is built a second time.
fn build_init(root: &Path) -> Result<Vec<u8>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root)
        .args(["rustc", "--release", "--quiet", "-p", "guest-init"])
        .args(["--bin", "platform-init", "--"])
        .args(INIT_FLAGS)
        .status()
        .context("run cargo rustc for platform-init")?;
    ensure!(status.success(), "platform-init does not build (see above)");
    let path = root.join("target/release/platform-init");
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        !has_interpreter(&bytes)?,
        "platform-init came out dynamically linked: is libc6-dev (libc.a) installed?"
    );
    Ok(bytes)
}

/// Whether an ELF file names a dynamic linker, that is, has a `PT_INTERP` program header.
fn has_interpreter(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| -> Result<u64> {
        let slice = elf
            .get(at..at + bytes)
            .context("platform-init is no whole ELF file")?;
        Ok(slice
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "platform-init is no 64-bit ELF file"
    );
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let at = usize::try_from(table + index * size)?;
        if number(at, 4)? == u64::from(PT_INTERP) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The current kernel's package in the cache, downloaded when it is not there.
fn current_kernel(cache: &Path) -> Result<PathBuf> {
    let no_apt = "without apt, give a Debian kernel package with --kernel-package FILE";
    // One question in the usual case: each costs apt a second.
    let meta = apt_cache_show(KERNEL_META_PACKAGE).with_context(|| {
        format!("apt knows no {KERNEL_META_PACKAGE}: run `apt-get update` first; {no_apt}")
    })?;
    // `linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`
    let (name, version) = field(&meta, "Depends:")?
        .strip_suffix(')')
        .and_then(|depends| depends.split_once(" (= "))
        .filter(|(name, _)| name.starts_with("linux-image-"))
        .with_context(|| format!("{KERNEL_META_PACKAGE} does not depend on one kernel"))?;
    let file_name = format!("{name}_{}_amd64.deb", version.replace(':', "%3a"));
    let path = cache.join(&file_name);
    if path.exists() {
        return Ok(path);
    }
    eprintln!("downloading {name} {version}");
    let package = format!("{name}={version}");
    let shown = apt_cache_show(&package)?;
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

fn apt_cache_show(package: &str) -> Result<String> {
    output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
}

/// The value of a field of a package's description.
fn field<'a>(description: &'a str, key: &str) -> Result<&'a str> {
    description
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
        .with_context(|| format!("apt-cache show: no {key} in\n{description}"))
}

/// What is taken from a kernel package.
struct Kernel {
    version: String,
    image: Vec<u8>,
    /// Names and contents, in load order. Those built into the kernel are not among them.
    modules: Vec<(String, Vec<u8>)>,
}

fn unpack_kernel(package: &Path) -> Result<Kernel> {
    let temporary = package.with_extension(format!("{}.tmp", std::process::id()));
    let result = unpack_kernel_into(package, &temporary);
    let _ = fs::remove_dir_all(&temporary);
    result.with_context(|| format!("take the kernel out of {}", package.display()))
}

fn unpack_kernel_into(package: &Path, directory: &Path) -> Result<Kernel> {
    output(
        Command::new("dpkg-deb")
            .arg("-x")
            .args([package, directory]),
    )?;
    let boot = directory.join("boot");
    let version = fs::read_dir(&boot)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .context("no boot/vmlinuz-* in it")?;
    let image = fs::read(boot.join(format!("vmlinuz-{version}")))?;
    let tree = ["lib/modules", "usr/lib/modules"]
        .map(|path| directory.join(path).join(&version))
        .into_iter()
        .find(|path| path.is_dir())
        .context("no lib/modules in it")?;
    let builtin = fs::read_to_string(tree.join("modules.builtin"))?;
    let mut modules = Vec::new();
    for module in MODULES {
        if builtin
            .lines()
            .any(|line| line == format!("kernel/{module}.ko"))
        {
            continue;
        }
        let name = module.rsplit('/').next().unwrap_or(module);
        modules.push((
            format!("{name}.ko"),
            read_module(&tree.join("kernel"), module)?,
        ));
    }
    Ok(Kernel {
        version,
        image,
        modules,
    })
}

/// A module, unpacked: Debian 12 ships them plain, Debian 13 as `.ko.xz`.
fn read_module(kernel: &Path, module: &str) -> Result<Vec<u8>> {
    let plain = kernel.join(format!("{module}.ko"));
    if plain.exists() {
        return fs::read(&plain).with_context(|| format!("read {}", plain.display()));
    }
    let packed = kernel.join(format!("{module}.ko.xz"));
    ensure!(
        packed.exists(),
        "module {module} is neither built in nor in the package: MODULES in xtask/src/guest.rs \
         does not fit this kernel"
    );
    output(Command::new("xz").arg("-d").arg(&packed))?;
    fs::read(&plain).with_context(|| format!("read {}", plain.display()))
}

fn initramfs(init: &[u8], modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    archive.directory("dev")?;
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, init)?;
    archive.directory("modules")?;
    let mut order = String::new();
    for (name, bytes) in modules {
        archive.file(&format!("modules/{name}"), 0o644, bytes)?;
        writeln!(order, "{name}")?;
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.finish()
}

/// Hash of all that decides the output: init, the kernel package, and this chore itself.
fn inputs_hash(init: &[u8], package: &Path) -> Result<String> {
    let bytes = fs::read(package).with_context(|| format!("read {}", package.display()))?;
    let mut hash = Sha256::new();
    for part in [
        include_bytes!("guest.rs").as_slice(),
        include_bytes!("guest/cpio.rs").as_slice(),
        sha256(init).as_bytes(),
        sha256(&bytes).as_bytes(),
    ] {
        hash.update(part);
    }
    Ok(hex(&hash.finalize()))
}

/// Whether `record` says it was made from these inputs and its files are as it says.
fn is_current(record: &Path, inputs: &str, out: &Path) -> bool {
    let Some(value) = read_record(record) else {
        return false;
    };
    let files: BTreeMap<String, String> =
        serde_json::from_value(value["sha256"].clone()).unwrap_or_default();
    value["inputs"] == inputs
        && !files.is_empty()
        && files
            .iter()
            .all(|(name, hash)| fs::read(out.join(name)).is_ok_and(|bytes| &sha256(&bytes) == hash))
}

fn read_record(record: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(record).ok()?).ok()
}

fn report(record: &Path) -> Result<()> {
    let value = read_record(record).context("read back guest.json")?;
    let out = record.parent().context("guest.json has no directory")?;
    let size = |name: &str| fs::metadata(out.join(name)).map(|file| file.len() / 1024);
    eprintln!(
        "{}: kernel {}, platform-init {} KiB, initramfs.cpio {} KiB",
        out.display(),
        value["kernel"]["version"].as_str().unwrap_or("?"),
        size("platform-init")?,
        size("initramfs.cpio")?,
    );
    Ok(())
}

/// Writes beside and renames, so that a reader sees the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

/// Runs a command and returns its standard output; its standard error is shown when it fails.
fn output(command: &mut Command) -> Result<String> {
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

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

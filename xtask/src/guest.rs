//! `cargo xtask guest`: what every guest boots, in `target/guest` (ADR 0003, design section 4).
//!
//! `platform-init` is built statically; the kernel is Debian's cloud kernel, downloaded but not
//! installed; the initramfs holds init, the modules that kernel needs for our devices in load
//! order, those that a guest loads on demand, and a console node. The same inputs give the same bytes: the archive's files have owner
//! 0 and time 0. A run whose inputs did not change does nothing but check them.
//!
//! A second initramfs, without modules, is for a kernel that has everything built in: the platform's own, which
//! `cargo xtask kernel` builds.
//!
//! With `--profile dist` the folder is `target/dist/guest`, beside the platform that is shipped.
//!
//! Absent on purpose: any compression of the initramfs. Unpacking costs more boot time than the bytes do.

mod cpio;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::apt;
use crate::tools::{hash_of, is_current, output, read_record, replace, root, sha256};

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

/// The modules of Debian's kernel that the guest loads when something asks for them (`guest-init`, `modules.rs`): netfilter, tun and
/// fuse. Each comes after the ones it uses.
const DEMANDED: &[&str] = &[
    "drivers/net/tun",
    "fs/fuse/fuse",
    "net/netfilter/nfnetlink",
    "lib/libcrc32c",
    "net/netfilter/nf_tables",
    "net/netfilter/x_tables",
    "net/netfilter/nft_compat",
    "net/ipv4/netfilter/nf_defrag_ipv4",
    "net/ipv6/netfilter/nf_defrag_ipv6",
    "net/netfilter/nf_conntrack",
    "net/netfilter/nft_ct",
    "net/netfilter/nft_limit",
    "net/netfilter/nft_log",
    "net/netfilter/nf_nat",
    "net/netfilter/nft_masq",
    "net/netfilter/nft_nat",
    "net/netfilter/nft_redir",
    "net/ipv4/netfilter/nf_reject_ipv4",
    "net/ipv6/netfilter/nf_reject_ipv6",
    "net/netfilter/nft_reject",
    "net/netfilter/nft_reject_inet",
    "net/ipv4/netfilter/nft_reject_ipv4",
    "net/ipv6/netfilter/nft_reject_ipv6",
    "net/netfilter/nft_chain_nat",
    "net/netfilter/nft_hash",
    "net/netfilter/nft_quota",
    "net/netfilter/nft_fib",
    "net/ipv6/netfilter/nft_fib_ipv6",
    "net/ipv4/netfilter/nft_fib_ipv4",
    "net/netfilter/nft_fib_inet",
    "net/netfilter/xt_addrtype",
    "net/netfilter/xt_comment",
    "net/netfilter/xt_conntrack",
    "net/netfilter/xt_mark",
    "net/netfilter/xt_connmark",
    "net/netfilter/xt_owner",
    "net/netfilter/xt_statistic",
    "net/netfilter/xt_multiport",
    "net/netfilter/xt_state",
    "net/netfilter/xt_limit",
    "net/netfilter/xt_MASQUERADE",
    "net/netfilter/xt_REDIRECT",
    "net/netfilter/xt_LOG",
    "net/netfilter/xt_nat",
    "net/netfilter/xt_tcpudp",
    "net/netfilter/xt_TCPMSS",
    "net/ipv4/netfilter/ip_tables",
    "net/ipv4/netfilter/iptable_filter",
    "net/ipv4/netfilter/iptable_nat",
    "net/ipv4/netfilter/iptable_mangle",
    "net/ipv4/netfilter/iptable_raw",
    "net/ipv6/netfilter/ip6_tables",
    "net/ipv6/netfilter/ip6table_filter",
    "net/ipv6/netfilter/ip6table_nat",
    "net/ipv6/netfilter/ip6table_mangle",
    "net/ipv6/netfilter/ip6table_raw",
    "net/ipv4/netfilter/ipt_REJECT",
    "net/ipv6/netfilter/ip6t_REJECT",
    "net/netfilter/nf_log_syslog",
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
/// A linker script, relative to the repository's root. std and the C library bring their own unwind tables, an
/// eleventh of the program that nothing reads: it leaves them out.
const INIT_LINKER_SCRIPT: &str = "xtask/src/guest/init.ld";

/// Largest platform-init, in bytes (ADR 0003): it is in the memory of every guest.
const MAX_INIT_BYTES: usize = 1536 * 1024;

/// Options of `cargo xtask guest`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Use this `.deb` of a Debian kernel instead of asking apt for the current one.
    #[arg(long, value_name = "FILE")]
    kernel_package: Option<PathBuf>,
    /// Build init as the tests boot it, or as it is shipped.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Also build what `make bench` measures of init on this machine itself, with the same flags.
    #[arg(long)]
    natively: bool,
}

/// A profile of Cargo.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Checks for integer overflow.
    Release,
    /// Optimised throughout.
    Dist,
}

impl Profile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }

    /// Where what guests boot is put, from the workspace's root.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Release => DEFAULT_FOLDER,
            Self::Dist => "target/dist/guest",
        }
    }
}

/// Where tests and the demo look for what guests boot, and where `cargo xtask kernel` puts its kernel.
const DEFAULT_FOLDER: &str = "target/guest";

/// Builds the folder of the profile.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = root().canonicalize()?;
    let profile = options.profile;
    let out = root.join(profile.folder());
    // Both profiles share what is downloaded.
    let cache = root.join(DEFAULT_FOLDER).join("cache");
    for folder in [&out, &cache] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let own_kernel = root.join(DEFAULT_FOLDER).join("vmlinux");
    if profile == Profile::Dist && own_kernel.is_file() {
        let kernel =
            fs::read(&own_kernel).with_context(|| format!("read {}", own_kernel.display()))?;
        replace(&out.join("vmlinux"), &kernel)?;
    }

    if options.natively {
        let what = ["--example", "natively"];
        let program = compile(&root, profile, &what, "examples/natively")?;
        replace(&out.join("natively"), &program)?;
        make_executable(&out.join("natively"))?;
    }
    let init = build_init(&root, profile)?;
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
    if is_current(&record, &inputs) {
        report(&record)?;
        return Ok(());
    }

    let kernel = unpack_kernel(&package)?;
    let with_modules = initramfs(&init, &kernel.modules, &kernel.demanded)?;
    let builtin = initramfs(&init, &[], &[])?;
    replace(&out.join("vmlinuz"), &kernel.image)?;
    replace(&out.join("platform-init"), &init)?;
    make_executable(&out.join("platform-init"))?;
    replace(&out.join("initramfs.cpio"), &with_modules)?;
    replace(&out.join("initramfs-builtin.cpio"), &builtin)?;
    let value = json!({
        "inputs": inputs,
        "kernel": { "version": kernel.version, "package": package_name },
        "modules": kernel.modules.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "sha256": {
            "vmlinuz": sha256(&kernel.image),
            "platform-init": sha256(&init),
            "initramfs.cpio": sha256(&with_modules),
            "initramfs-builtin.cpio": sha256(&builtin),
        },
    });
    replace(&record, format!("{value:#}\n").as_bytes())?;
    report(&record)
}

/// The directory of the workspace's Cargo.toml.
/// Builds platform-init and returns its bytes. Only the last crate is compiled with these flags, so
/// nothing else in the shared target directory is built a second time.
fn build_init(root: &Path, profile: Profile) -> Result<Vec<u8>> {
    let bytes = compile(root, profile, &["--bin", "platform-init"], "platform-init")?;
    ensure!(
        !has_interpreter(&bytes)?,
        "platform-init came out dynamically linked: is libc6-dev (libc.a) installed?"
    );
    ensure!(
        bytes.len() <= MAX_INIT_BYTES,
        "platform-init has {} bytes, more than the {MAX_INIT_BYTES} that ADR 0003 allows",
        bytes.len()
    );
    Ok(bytes)
}

/// Compiles one target of guest-init as init is, and reads the program.
fn compile(root: &Path, profile: Profile, what: &[&str], program: &str) -> Result<Vec<u8>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root)
        .args([
            "rustc",
            "--profile",
            profile.name(),
            "--quiet",
            "-p",
            "guest-init",
        ])
        .args(what)
        .arg("--")
        .args(INIT_FLAGS)
        .arg(format!(
            "-Clink-arg=-T{}",
            root.join(INIT_LINKER_SCRIPT).display()
        ))
        .status()
        .context("run cargo rustc for platform-init")?;
    ensure!(status.success(), "{program} does not build (see above)");
    let path = root.join("target").join(profile.name()).join(program);
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Whether an ELF file names a dynamic linker, that is, has a `PT_INTERP` program header.
pub(crate) fn has_interpreter(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| -> Result<u64> {
        let slice = elf
            .get(at..at + bytes)
            .context("platform-init is a truncated ELF file")?;
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
    // One question in the usual case: each costs apt a second.
    let meta = apt::show(KERNEL_META_PACKAGE)
        .context("without apt, give a Debian kernel package with --kernel-package FILE")?;
    // `linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`
    let (name, version) = apt::field(&meta, "Depends:")?
        .strip_suffix(')')
        .and_then(|depends| depends.split_once(" (= "))
        .filter(|(name, _)| name.starts_with("linux-image-"))
        .with_context(|| format!("{KERNEL_META_PACKAGE} does not depend on one kernel"))?;
    apt::download(cache, name, version, "amd64")
}

/// What is taken from a kernel package.
struct Kernel {
    version: String,
    image: Vec<u8>,
    /// Names and contents, in load order. Those built into the kernel are not among them.
    modules: Vec<(String, Vec<u8>)>,
    /// Likewise, those that are loaded on demand.
    demanded: Vec<(String, Vec<u8>)>,
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
    let read = |wanted: &[&str]| -> Result<Vec<_>> {
        let mut modules = Vec::new();
        for module in wanted {
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
        Ok(modules)
    };
    Ok(Kernel {
        version,
        image,
        modules: read(MODULES)?,
        demanded: read(DEMANDED)?,
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

/// Values of a key in a module's section `.modinfo`, where each is a C string `key=value`.
fn modinfo<'m>(module: &'m [u8], key: &'m str) -> impl Iterator<Item = &'m str> {
    module
        .split(|byte| *byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok())
        .filter_map(move |text| text.strip_prefix(key)?.strip_prefix('='))
}

/// The list from which the guest knows which modules to load, in which order, for a name or an alias.
fn aliases(modules: &[(String, Vec<u8>)]) -> Result<String> {
    let plain = |name: &str| name.trim_end_matches(".ko").replace('-', "_");
    let mut files: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut text = String::new();
    for (file, module) in modules {
        let mut needed: Vec<&str> = Vec::new();
        let depends = modinfo(module, "depends").flat_map(|names| names.split(','));
        for name in depends.filter(|name| !name.is_empty()) {
            let known = files.get(&plain(name)).with_context(|| {
                format!("{file} needs {name}, which DEMANDED does not name before it")
            })?;
            for file in known {
                if !needed.contains(file) {
                    needed.push(file);
                }
            }
        }
        needed.push(file);
        let name = plain(file);
        for alias in [name.as_str()].into_iter().chain(modinfo(module, "alias")) {
            writeln!(text, "{alias} {}", needed.join(" "))?;
        }
        files.insert(name, needed);
    }
    Ok(text)
}

fn initramfs(
    init: &[u8],
    modules: &[(String, Vec<u8>)],
    demanded: &[(String, Vec<u8>)],
) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    archive.directory("dev")?;
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, init)?;
    if modules.is_empty() {
        return archive.finish();
    }
    archive.directory("modules")?;
    let mut order = String::new();
    for (name, bytes) in modules {
        archive.file(&format!("modules/{name}"), 0o644, bytes)?;
        writeln!(order, "{name}")?;
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.directory("modules/demand")?;
    for (name, bytes) in demanded {
        archive.file(&format!("modules/demand/{name}"), 0o644, bytes)?;
    }
    let aliases = aliases(demanded)?;
    archive.file("modules/demand/aliases", 0o644, aliases.as_bytes())?;
    archive.finish()
}

/// Hash of all that decides the output: init, the kernel package, and this task itself.
fn inputs_hash(init: &[u8], package: &Path) -> Result<String> {
    let package = fs::read(package).with_context(|| format!("read {}", package.display()))?;
    Ok(hash_of(&[
        include_bytes!("guest.rs"),
        include_bytes!("guest/cpio.rs"),
        init,
        &package,
    ]))
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

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::aliases;

    #[test]
    fn names_and_aliases_lead_to_the_modules_to_load_in_order() {
        let module = |name: &str, info: &str| (name.to_owned(), info.replace('|', "\0").into());
        let first = module("a-b.ko", "code|alias=net-pf-16-proto-12|depends=|");
        let second = module("c.ko", "|depends=a_b|alias=char-major-10-200|name=c");
        let text = aliases(&[first, second.clone()]).unwrap();
        assert_eq!(
            text,
            "a_b a-b.ko\nnet-pf-16-proto-12 a-b.ko\nc a-b.ko c.ko\nchar-major-10-200 a-b.ko c.ko\n"
        );
        let error = aliases(&[second]).unwrap_err().to_string();
        assert!(error.contains("c.ko needs a_b"), "{error}");
    }
}

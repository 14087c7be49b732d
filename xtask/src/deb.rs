//! `cargo xtask deb`: the Debian package, `target/platform_VERSION_amd64.deb`.
//!
//! It packs what is built: the platform of a profile, what guests boot, and the vsock device. Man pages and completions
//! are written by the platform itself. The same commit and the same inputs give the same bytes: every time in the
//! package is the commit's, every owner is root.
//!
//! The platform's own kernel is in it where `cargo xtask kernel` has built it; Debian's always is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::guest::{Profile, has_interpreter};
use crate::tools::{output, replace, root};

/// Where the package has its files.
const LIB: &str = "usr/lib/platform";
const DOC: &str = "usr/share/doc/platform";
/// What guests boot. The first three are always there.
const GUEST_FILES: [&str; 7] = [
    "vmlinuz",
    "initramfs.cpio",
    "guest.json",
    "initramfs-builtin.cpio",
    "platform-init",
    "vmlinux",
    "kernel.json",
];
const GUEST_FILES_NEEDED: usize = 3;
/// Scripts of the package, run by dpkg.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// A shell, and where it looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/platform"),
    ("zsh", "usr/share/zsh/vendor-completions/_platform"),
    ("fish", "usr/share/fish/vendor_completions.d/platform.fish"),
];

/// Options of `cargo xtask deb`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Pack what was built by this profile.
    #[arg(long, value_enum, default_value_t = Profile::Dist)]
    profile: Profile,
    /// The package's version [default: the platform's, and the commit's time and name unless it has the tag `vVERSION`]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
}

/// Builds the package.
///
/// # Errors
/// What is not built yet, or the step that failed with its words.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = root().canonicalize()?;
    let version = match &options.version {
        Some(version) => version.clone(),
        None => version_of(&root)?,
    };
    let path = root
        .join("target")
        .join(format!("platform_{version}_amd64.deb"));
    build(&root, options.profile, &version, &path)?;
    check_by_lintian(&path)?;
    eprintln!("{}", path.display());
    Ok(())
}

/// Holds the package to Debian's policy, where lintian is installed: what it finds is mended, or excused in
/// `packaging/deb/lintian-overrides`.
fn check_by_lintian(package: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    match lintian
        .args(["--fail-on", "error,warning", "--"])
        .arg(package)
        .output()
    {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: lintian is not installed");
            Ok(())
        }
        Err(error) => Err(error).context("run lintian"),
        Ok(found) => {
            ensure!(
                found.status.success(),
                "lintian: {}\n{}",
                found.status,
                String::from_utf8_lossy(&found.stdout)
            );
            Ok(())
        }
    }
}

fn build(root: &Path, profile: Profile, version: &str, path: &Path) -> Result<()> {
    let stage = root.join("target/deb");
    match fs::remove_dir_all(&stage) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", stage.display()));
        }
        _ => {}
    }
    let epoch = git(root, &["log", "-1", "--format=%ct"])?;
    let tree = Tree(stage);
    add_programs(&tree, root, profile)?;
    add_guest(&tree, &root.join(profile.folder()), root)?;
    let packaging = root.join("packaging");
    for role in ["server", "node", "edge"] {
        let unit = format!("platform-{role}.service");
        let text = read(&packaging.join("systemd").join(&unit))?;
        tree.add(&format!("usr/lib/systemd/system/{unit}"), &text, 0o644)?;
    }
    let date = output(Command::new("date").args(["-u", "-R", "-d", &format!("@{epoch}")]))?;
    let changelog = format!(
        "platform ({version}) unstable; urgency=medium\n\n  * See /usr/share/doc/platform/changelog.gz.\n\n -- The platform's \
         authors <platform@localhost>  {}\n",
        date.trim()
    );
    tree.add_gzipped(&format!("{DOC}/changelog.Debian"), changelog.as_bytes())?;
    tree.add_gzipped(
        &format!("{DOC}/changelog"),
        &read(&root.join("CHANGELOG.md"))?,
    )?;
    tree.add(
        &format!("{DOC}/copyright"),
        &read(&packaging.join("deb/copyright"))?,
        0o644,
    )?;
    tree.add(
        &format!("{DOC}/operations.md"),
        &read(&root.join("docs/operations.md"))?,
        0o644,
    )?;
    let overrides = read(&packaging.join("deb/lintian-overrides"))?;
    tree.add("usr/share/lintian/overrides/platform", &overrides, 0o644)?;
    add_control(&tree, &packaging.join("deb"), version)?;
    // Folders too, whatever the umask; and no time after the commit's.
    output(
        Command::new("find")
            .arg(&tree.0)
            .args(["-type", "d", "-exec", "chmod", "0755", "{}", "+"]),
    )?;
    let temporary = path.with_extension("deb.tmp");
    output(
        Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", &epoch)
            .args(["--root-owner-group", "-Zxz", "--build"])
            .args([&tree.0, &temporary]),
    )?;
    fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

/// The platform, its man pages and completions, and the vsock device.
fn add_programs(tree: &Tree, root: &Path, profile: Profile) -> Result<()> {
    let program = root.join("target").join(profile.name()).join("platform");
    let bytes = read(&program).context("is it built? `make build`, or `make dist`")?;
    ensure!(
        !has_interpreter(&bytes)?,
        "{} is linked dynamically, as tests build it: `make build`, or `make dist`, links it statically",
        program.display()
    );
    tree.add("usr/bin/platform", &bytes, 0o755)?;
    let device = read(&root.join("target/tools/bin/vhost-device-vsock"))
        .context("is it installed? `make install`")?;
    tree.add(&format!("{LIB}/vhost-device-vsock"), &device, 0o755)?;

    let pages = tree.0.join("usr/share/man/man1");
    fs::create_dir_all(&pages)?;
    output(Command::new(&program).arg("manual").arg(&pages))?;
    let mut count = 0;
    for entry in fs::read_dir(&pages)? {
        let page = entry?.path();
        fs::set_permissions(&page, fs::Permissions::from_mode(0o644))?;
        output(Command::new("gzip").arg("-9n").arg(&page))?;
        count += 1;
    }
    ensure!(count > 1, "{} writes no man pages", program.display());
    for (shell, path) in COMPLETIONS {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        tree.add(path, script.as_bytes(), 0o644)?;
    }
    Ok(())
}

fn add_guest(tree: &Tree, folder: &Path, root: &Path) -> Result<()> {
    for (index, name) in GUEST_FILES.iter().enumerate() {
        let mut from = folder.join(name);
        if *name == "kernel.json" {
            // It is beside the kernel that was built, whatever the profile.
            from = root.join("target/guest").join(name);
        }
        if index >= GUEST_FILES_NEEDED && !from.exists() {
            continue;
        }
        let bytes = read(&from).context("is it built? `cargo xtask guest`")?;
        let mode = if *name == "platform-init" {
            0o755
        } else {
            0o644
        };
        tree.add(&format!("{LIB}/guest/{name}"), &bytes, mode)?;
    }
    Ok(())
}

fn add_control(tree: &Tree, folder: &Path, version: &str) -> Result<()> {
    let mut kibibytes = 0;
    for (_, bytes) in tree.files()? {
        kibibytes += bytes.div_ceil(1024);
    }
    let device = read(&tree.0.join(LIB).join("vhost-device-vsock"))?;
    let libc =
        newest_glibc(&device).context("vhost-device-vsock names no version of the C library")?;
    let control = String::from_utf8(read(&folder.join("control"))?)?;
    let mut text = String::new();
    for line in control.lines() {
        text.push_str(line);
        if line.starts_with("Depends: ") {
            text.push_str(&format!(", libc6 (>= {libc}), libgcc-s1"));
        }
        text.push('\n');
        if line.starts_with("Package: ") {
            text.push_str(&format!(
                "Version: {version}\nInstalled-Size: {kibibytes}\n"
            ));
        }
    }
    let mut sums = String::new();
    for (path, _) in tree.files()? {
        let sum = output(
            Command::new("md5sum")
                .arg("--")
                .arg(&path)
                .current_dir(&tree.0),
        )?;
        sums.push_str(&sum);
    }
    tree.add("DEBIAN/control", text.as_bytes(), 0o644)?;
    tree.add("DEBIAN/md5sums", sums.as_bytes(), 0o644)?;
    for script in SCRIPTS {
        tree.add(
            &format!("DEBIAN/{script}"),
            &read(&folder.join(script))?,
            0o755,
        )?;
    }
    Ok(())
}

/// The newest version of the GNU C library that a program asks for: `2.34`.
fn newest_glibc(program: &[u8]) -> Option<String> {
    const PREFIX: &[u8] = b"GLIBC_2.";
    let minor = program
        .windows(PREFIX.len())
        .enumerate()
        .filter(|(_, window)| *window == PREFIX)
        .filter_map(|(at, _)| {
            let digits: String = program[at + PREFIX.len()..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .map(|&byte| char::from(byte))
                .collect();
            digits.parse::<u32>().ok()
        })
        .max()?;
    Some(format!("2.{minor}"))
}

/// The version of the workspace, and the commit where it is not the one that is tagged.
fn version_of(root: &Path) -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let tags = git(root, &["tag", "--points-at", "HEAD"])?;
    if tags.lines().any(|tag| tag == format!("v{version}")) {
        return Ok(version.to_owned());
    }
    let commit = git(
        root,
        &[
            "log",
            "-1",
            "--format=%cd.%h",
            "--date=format-local:%Y%m%d.%H%M%S",
            "--abbrev=7",
        ],
    )?;
    Ok(format!("{version}+{commit}"))
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let text = output(
        Command::new("git")
            .arg("-C")
            .arg(root)
            .args(arguments)
            .env("TZ", "UTC"),
    )
    .context("the package's times are those of the commit")?;
    Ok(text.trim().to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The folder that becomes the package.
struct Tree(PathBuf);

impl Tree {
    fn add(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.0.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        replace(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    fn add_gzipped(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.add(path, bytes, 0o644)?;
        output(Command::new("gzip").arg("-9n").arg(self.0.join(path)))?;
        Ok(())
    }

    /// What the package installs, relative and sorted, with sizes in bytes.
    fn files(&self) -> Result<Vec<(String, u64)>> {
        let listed = output(
            Command::new("find")
                .args([
                    ".",
                    "-type",
                    "f",
                    "-not",
                    "-path",
                    "./DEBIAN/*",
                    "-printf",
                    "%P\\t%s\\n",
                ])
                .current_dir(&self.0),
        )?;
        let mut files: Vec<(String, u64)> = listed
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(path, size)| Ok((path.to_owned(), size.parse()?)))
            .collect::<Result<_>>()?;
        files.sort();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_newest_c_library_that_a_program_asks_for_is_found() {
        let program = b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0";
        assert_eq!(newest_glibc(program).unwrap(), "2.34");
        assert_eq!(newest_glibc(b"static"), None);
    }

    /// What is not built here is replaced by small programs: what is tested is the packing.
    #[test]
    fn a_package_unpacks_to_what_was_built_and_is_the_same_twice() {
        let folder = std::env::temp_dir().join(format!("platform-deb-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let sources = root().canonicalize().unwrap();
        let copy = |from: &str| {
            let to = folder.join(from);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            output(
                Command::new("cp")
                    .arg("-rT")
                    .arg(sources.join(from))
                    .arg(to),
            )
            .unwrap();
        };
        for path in ["packaging", "CHANGELOG.md", "docs/operations.md"] {
            copy(path);
        }
        let put = |path: &str, text: &[u8], mode: u32| {
            Tree(folder.clone()).add(path, text, mode).unwrap();
        };
        put("program.c", PROGRAM.as_bytes(), 0o644);
        fs::create_dir_all(folder.join("target/release")).unwrap();
        let program = folder.join("target/release/platform");
        let source = folder.join("program.c");
        output(
            Command::new("cc")
                .arg("-static")
                .arg("-o")
                .args([&program, &source]),
        )
        .unwrap();
        put("target/tools/bin/vhost-device-vsock", b"GLIBC_2.31", 0o755);
        for name in ["vmlinuz", "initramfs.cpio", "guest.json"] {
            put(&format!("target/guest/{name}"), name.as_bytes(), 0o600);
        }
        for arguments in [
            &["init", "-q"][..],
            &["add", "packaging"],
            &[
                "-c",
                "user.name=x",
                "-c",
                "user.email=x@y",
                "commit",
                "-q",
                "-m",
                "x",
            ],
        ] {
            git(&folder, arguments).unwrap();
        }

        let first = folder.join("target/first.deb");
        build(&folder, Profile::Release, "1.2.3", &first).unwrap();
        // In another second, which a time in the package would show.
        let second = || {
            let now = std::time::SystemTime::now();
            now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
        };
        let built_in = second();
        while second() == built_in {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let again = folder.join("target/again.deb");
        build(&folder, Profile::Release, "1.2.3", &again).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&again).unwrap());

        let field =
            |name| output(Command::new("dpkg-deb").arg("-f").arg(&first).arg(name)).unwrap();
        assert_eq!(field("Version").trim(), "1.2.3");
        assert!(
            field("Depends").contains("libc6 (>= 2.31)"),
            "{}",
            field("Depends")
        );
        let listed = output(Command::new("dpkg-deb").arg("-c").arg(&first)).unwrap();
        for line in listed.lines() {
            assert!(line.contains(" root/root "), "{line}");
        }
        let unpacked = folder.join("unpacked");
        output(Command::new("dpkg-deb").arg("-x").args([&first, &unpacked])).unwrap();
        let version = output(Command::new(unpacked.join("usr/bin/platform")).arg("--version"));
        assert_eq!(version.unwrap().trim(), "platform of a test");
        for path in [
            "usr/lib/platform/guest/vmlinuz",
            "usr/lib/platform/vhost-device-vsock",
            "usr/lib/systemd/system/platform-node.service",
            "usr/share/man/man1/platform.1.gz",
            "usr/share/doc/platform/operations.md",
        ] {
            let mode = fs::metadata(unpacked.join(path))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o044, 0o044, "{path}: {mode:o}");
        }
        for role in ["server", "node", "edge"] {
            check_unit(&unpacked, &format!("platform-{role}.service"));
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Has systemd read a unit of an unpacked package.
    fn check_unit(unpacked: &Path, unit: &str) {
        let text = fs::read_to_string(unpacked.join("usr/lib/systemd/system").join(unit)).unwrap();
        let program = unpacked.join("usr/bin/platform");
        let file = unpacked.join(unit);
        fs::write(
            &file,
            text.replace("/usr/bin/platform", program.to_str().unwrap()),
        )
        .unwrap();
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&file)
            .output();
        match verified {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("SKIPPED: systemd-analyze is not installed");
            }
            verified => {
                let verified = verified.unwrap();
                let stderr = String::from_utf8_lossy(&verified.stderr);
                assert!(
                    verified.status.success() && stderr.is_empty(),
                    "{unit}: {stderr}"
                );
            }
        }
    }

    /// Answers as the platform does to what the packing asks.
    const PROGRAM: &str = r#"
        #include <stdio.h>
        #include <string.h>
        int main(int argc, char **argv) {
            if (argc > 2 && !strcmp(argv[1], "manual")) {
                const char *names[] = { "platform.1", "platform-node.1" };
                for (int i = 0; i < 2; i++) {
                    char path[4096];
                    snprintf(path, sizeof path, "%s/%s", argv[2], names[i]);
                    FILE *file = fopen(path, "w");
                    if (!file || fputs("a page\n", file) < 0 || fclose(file)) return 1;
                }
                return 0;
            }
            puts("platform of a test");
            return 0;
        }
    "#;
}

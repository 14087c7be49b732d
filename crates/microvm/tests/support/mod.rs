//! A guest of the tests' own: the kernel that a node would boot here, its modules, and a busybox script as
//! its init, so that a test says in a few lines what the guest does.

#![allow(dead_code, reason = "each file of tests uses its part")]

pub(crate) mod node;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microvm::{DriverKind, GuestKernel, VmSpec};
use model::InstanceId;

/// Longest that a test takes.
const LIMIT: Duration = Duration::from_mins(60);

/// The artifacts of `cargo xtask guest`, or those in `PLATFORM_GUEST_DIR`; nothing when these tests are switched off.
pub(crate) fn guest_dir() -> Option<PathBuf> {
    if test_namespaces::is_skipped() {
        return None;
    }
    let dir = std::env::var_os("PLATFORM_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
        PathBuf::from,
    );
    assert!(
        dir.join("vmlinuz").exists(),
        "no guest kernel: cargo xtask guest makes it"
    );
    assert!(
        Path::new("/bin/busybox").exists(),
        "no busybox: apt-get install busybox-static"
    );
    Some(dir)
}

/// Runs a test's body in a process of its own, with a network and a `/run` that nobody else sees, and with
/// processes that end with it.
pub(crate) fn in_a_network_of_its_own(test: &str, body: impl Future<Output = ()>) {
    on_a_machine_of_its_own(test, ":", body);
}

/// The same, after these shell lines: they mount, set the umask, export variables.
pub(crate) fn on_a_machine_of_its_own(test: &str, setup: &str, body: impl Future<Output = ()>) {
    if test_namespaces::isolated_after(test, setup, LIMIT) {
        tokio::runtime::Runtime::new().unwrap().block_on(body);
    }
}

/// The installed vsock device, without symbolic links.
pub(crate) fn vsock_device() -> PathBuf {
    let name = "vhost-device-vsock";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    std::env::split_paths(&path)
        .chain([
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin"),
            home.join(".cargo/bin"),
        ])
        .find_map(|dir| dir.join(name).canonicalize().ok())
        .unwrap_or_else(|| panic!("{name} is not installed: make install installs it"))
}

/// The kernel that a node would boot here, whose init runs these shell lines and powers off.
pub(crate) fn kernel_with_script(guest: &Path, dir: &Path, script: &str) -> GuestKernel {
    with_script(GuestKernel::in_directory(guest).unwrap(), dir, script)
}

/// A kernel whose init runs these shell lines, with all modules loaded, and powers off after them.
pub(crate) fn with_script(kernel: GuestKernel, dir: &Path, script: &str) -> GuestKernel {
    let init = format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin\n\
         /bin/busybox mkdir -p /proc /sys\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
         [ -e /modules/order ] && while read -r module; do insmod /modules/$module; done < /modules/order\n\
         {script}\n\
         reboot -f\n"
    );
    let busybox = fs::read("/bin/busybox").unwrap();
    let programs = [("bin/busybox", &busybox[..]), ("init", init.as_bytes())];
    with_programs(kernel, &dir.join("initramfs.cpio"), &programs)
}

/// A kernel with more programs in its initramfs, or others in their place.
pub(crate) fn with_programs(
    kernel: GuestKernel,
    initramfs: &Path,
    programs: &[(&str, &[u8])],
) -> GuestKernel {
    let mut entries = vec![("bin", None)];
    entries.extend(
        programs
            .iter()
            .map(|(name, content)| (*name, Some(*content))),
    );
    with_entries(kernel, initramfs, &entries)
}

/// A kernel with more directories and programs in its initramfs.
pub(crate) fn with_entries(
    kernel: GuestKernel,
    initramfs: &Path,
    entries: &[(&str, Option<&[u8]>)],
) -> GuestKernel {
    let mut archive = fs::read(&kernel.initramfs).unwrap();
    // Archives may follow one another; what comes later replaces what came before.
    for (name, content) in entries {
        match content {
            Some(content) => entry(&mut archive, name, 0o100_755, content),
            None => entry(&mut archive, name, 0o040_755, b""),
        }
    }
    entry(&mut archive, "TRAILER!!!", 0, b"");
    let initramfs = initramfs.to_owned();
    fs::write(&initramfs, archive).unwrap();
    // A VMM opens it as a user of its own.
    fs::set_permissions(&initramfs, fs::Permissions::from_mode(0o644)).unwrap();
    GuestKernel {
        initramfs,
        ..kernel
    }
}

/// One entry of a newc archive.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let fields = [
        u32::try_from(archive.len()).unwrap(),
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(content.len()).unwrap(),
        0,
        0,
        0,
        0,
        u32::try_from(name.len() + 1).unwrap(),
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

pub(crate) fn spec(instance: InstanceId, run_dir: &Path, kernel: GuestKernel) -> VmSpec {
    VmSpec {
        instance,
        run_dir: run_dir.to_owned(),
        driver: DriverKind::QemuTcg,
        kernel,
        vcpus: 1,
        cpu_millis: 500,
        memory_bytes: 128 * 1024 * 1024,
        disks: Vec::new(),
        nic: None,
    }
}

/// Processes of the VM of this instance and run directory: (pid, name).
pub(crate) fn processes_of(instance: InstanceId, run_dir: &Path) -> Vec<(i32, String)> {
    // QEMU's -name, Firecracker's --id.
    let wanted = [format!("instance-{instance}"), instance.to_string()];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let dir = entry.path();
        let command = fs::read(dir.join("cmdline")).unwrap_or_default();
        let is_vmm = command
            .split(|b| *b == 0)
            .any(|word| wanted.iter().any(|wanted| wanted.as_bytes() == word));
        let is_device = fs::read_link(dir.join("cwd")).is_ok_and(|cwd| cwd.starts_with(run_dir));
        if is_vmm || is_device {
            let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

pub(crate) fn pid_of(instance: InstanceId, run_dir: &Path, name: &str) -> rustix::process::Pid {
    let processes = processes_of(instance, run_dir);
    let (pid, _) = processes
        .iter()
        .find(|(_, comm)| comm.starts_with(name))
        .unwrap_or_else(|| panic!("no {name} among {processes:?}"));
    rustix::process::Pid::from_raw(*pid).unwrap()
}

/// What is in the run directory, console excepted. A boot that was cut short may have made none of it.
pub(crate) fn left_in(run_dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = [run_dir.to_owned(), run_dir.join("vsock")]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with("console.log") && name != "vsock")
        .collect();
    names.sort();
    names
}

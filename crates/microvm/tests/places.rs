//! Where programs and files of a VM may lie: below folders that others may not enter, made under any umask,
//! with a blank in the path, on a file system without programs. And the errors where a place cannot work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use microvm::{BootError, Disk, boot};
use model::InstanceId;
use support::{
    guest_dir, kernel_with_script, on_a_machine_of_its_own, pid_of, processes_of, spec,
    vsock_device,
};

const SCRIPT: &str = "echo GUEST UP: $(cat /dev/vda | head -n 1)\nwhile true; do sleep 1000; done";

/// Shell lines that put the vsock device below `folder`, with the umask in force.
fn move_vsock_device_to(folder: &str) -> String {
    format!(
        "mkdir -p '{folder}'
         cat '{}' > '{folder}/vhost-device-vsock'
         export PLATFORM_VHOST_DEVICE_VSOCK='{folder}/vhost-device-vsock'",
        vsock_device().display()
    )
}

/// Boots a VM whose every file is below `folder` and readable by root only, and ends it; gives its processes' capabilities.
async fn boot_below(folder: &Path, guest: &Path, instance: InstanceId) -> Vec<String> {
    fs::create_dir_all(folder).unwrap();
    let run_dir = folder.join("run");
    let root = folder.join("root.img");
    let mut content = b"THE ROOT DISK\n".to_vec();
    content.resize(1 << 20, 0);
    fs::write(&root, content).unwrap();
    let mut kernel = kernel_with_script(guest, folder, SCRIPT);
    let own = folder.join("kernel");
    fs::copy(&kernel.kernel, &own).unwrap();
    kernel.kernel = own;
    for file in [&kernel.kernel, &kernel.initramfs, &root] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let mut spec = spec(instance, &run_dir, kernel);
    spec.disks = vec![Disk {
        path: root,
        read_only: true,
    }];
    let vm = boot(spec).await.unwrap();
    let give_up = Instant::now() + Duration::from_mins(1);
    while !microvm::console_tail(&run_dir).contains("GUEST UP: THE ROOT DISK") {
        let told = microvm::console_tail(&run_dir);
        assert!(
            vm.has_ended().is_none() && Instant::now() < give_up,
            "{told}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let capabilities = ["qemu", "vhost-device"]
        .iter()
        .flat_map(|name| {
            let pid = pid_of(instance, &run_dir, name);
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let sets = status
                .lines()
                .filter(|line| line.starts_with("Cap") && !line.starts_with("CapBnd"));
            sets.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    vm.kill().await;
    assert_eq!(processes_of(instance, &run_dir), []);
    capabilities
}

#[test]
fn a_vm_boots_from_closed_folders_under_any_umask_with_a_blank_in_the_path() {
    let Some(guest) = guest_dir() else { return };
    on_a_machine_of_its_own(
        "a_vm_boots_from_closed_folders_under_any_umask_with_a_blank_in_the_path",
        &format!(
            "umask 077
             {}
             chmod 700 '/run/closed folder/vhost-device-vsock'",
            move_vsock_device_to("/run/closed folder")
        ),
        async {
            let capabilities = boot_below(
                Path::new("/run/closed folder"),
                &guest,
                InstanceId(0xa100_0001),
            )
            .await;
            // What let them be executed is gone.
            assert_eq!(capabilities.len(), 8);
            for set in capabilities {
                assert!(set.ends_with("\t0000000000000000"), "{set}");
            }
        },
    );
}

#[test]
fn a_vm_boots_with_its_files_on_a_noexec_file_system() {
    let Some(guest) = guest_dir() else { return };
    on_a_machine_of_its_own(
        "a_vm_boots_with_its_files_on_a_noexec_file_system",
        &format!(
            "{}; chmod 755 /run/programs/vhost-device-vsock
             mkdir /run/data; mount -t tmpfs -o noexec tmpfs /run/data",
            move_vsock_device_to("/run/programs")
        ),
        async {
            boot_below(Path::new("/run/data/node"), &guest, InstanceId(0xa100_0002)).await;
        },
    );
}

/// Boots a VM that cannot be, and gives the error.
async fn refused(guest: &Path, instance: InstanceId) -> BootError {
    let folder = Path::new("/run/vm");
    fs::create_dir_all(folder).unwrap();
    let kernel = kernel_with_script(guest, folder, SCRIPT);
    let run_dir = folder.join("run");
    let error = boot(spec(instance, &run_dir, kernel)).await.unwrap_err();
    assert_eq!(processes_of(instance, &run_dir), []);
    assert!(!error.is_transient(), "{error}");
    error
}

#[test]
fn a_program_on_a_noexec_file_system_is_named_with_its_mount_point() {
    let Some(guest) = guest_dir() else { return };
    on_a_machine_of_its_own(
        "a_program_on_a_noexec_file_system_is_named_with_its_mount_point",
        &format!(
            "mkdir /run/mounted; mount -t tmpfs -o noexec tmpfs /run/mounted
             {}; chmod 755 /run/mounted/below/vhost-device-vsock",
            move_vsock_device_to("/run/mounted/below")
        ),
        async {
            let error = refused(&guest, InstanceId(0xa100_0003)).await.to_string();
            assert!(
                error.starts_with(
                    "/run/mounted/below/vhost-device-vsock cannot be executed: the file system at \
                     /run/mounted is mounted noexec"
                ),
                "{error}"
            );
        },
    );
}

#[test]
fn a_program_that_nobody_may_execute_is_named_with_its_mode() {
    let Some(guest) = guest_dir() else { return };
    on_a_machine_of_its_own(
        "a_program_that_nobody_may_execute_is_named_with_its_mode",
        &format!(
            "{}; chmod 644 /run/programs/vhost-device-vsock",
            move_vsock_device_to("/run/programs")
        ),
        async {
            let error = refused(&guest, InstanceId(0xa100_0004)).await.to_string();
            assert!(
                error.starts_with(
                    "/run/programs/vhost-device-vsock cannot be executed: the file's mode 0644"
                ),
                "{error}"
            );
        },
    );
}

#[test]
fn a_closed_folder_is_named_to_an_agent_that_is_not_root() {
    let Some(guest) = guest_dir() else { return };
    on_a_machine_of_its_own(
        "a_closed_folder_is_named_to_an_agent_that_is_not_root",
        &format!(
            "{}; chmod 755 /run/programs/vhost-device-vsock
             mkdir -p /run/vm /run/closed/below; chmod 777 /run/vm; chmod 700 /run/closed
             echo disk > /run/closed/below/root.img",
            move_vsock_device_to("/run/programs")
        ),
        async {
            let kernel = kernel_with_script(&guest, Path::new("/run/vm"), SCRIPT);
            let run_dir = Path::new("/run/vm/run");
            let mut spec = spec(InstanceId(0xa100_0005), run_dir, kernel);
            spec.disks = vec![Disk {
                path: "/run/closed/below/root.img".into(),
                read_only: true,
            }];
            // In a thread of its own, which is the agent that is not root.
            let error = tokio::task::spawn_blocking(move || {
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(boot(spec)).unwrap_err()
            })
            .await
            .unwrap();
            assert!(!error.is_transient(), "{error}");
            assert!(error.source().is_some());
            let error = error.to_string();
            assert!(
                error.starts_with(
                    "cannot open /run/closed/below/root.img: the folder /run/closed (mode 0700, \
                     owner 0) may not be entered"
                ),
                "{error}"
            );
        },
    );
}

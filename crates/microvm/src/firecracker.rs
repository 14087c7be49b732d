//! The Firecracker driver: one process, in the jail that its jailer makes. Its API configures its VM.
//!
//! The same as under QEMU: the disks and their order, the tap, the console's FIFO, the cgroup, the sockets for
//! vsock (the device is inside this VMM, and QEMU's vsock device follows its convention). Different: it opens files
//! and the tap by name, as its own user. So disks that it writes are given to that user, the tap persists until
//! `node-network` removes it, and the jail is in the network namespace of the tap.
//!
//! An agent that is killed between the start of the process and `InstanceStart` leaves a VMM without a running
//! guest. It is adopted like any other, and the boot watchdog ends it.

mod api;
mod jail;
mod tap;

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blocking_work::blocking;
use process_handle::Process;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::jail::Jail;
use self::tap::PersistentTap;
use crate::driver::{Boot, Driver, GUEST_CID, Started, check_readable, file};
use crate::kernel::boot_arguments;
use crate::monitor::{Answer, Event, Monitor};
use crate::programs::{self, FirecrackerPrograms};
use crate::spawn::{Launch, Prepare};
use crate::spec::{DISK_BYTES_PER_SECOND, DISK_OPERATIONS_PER_SECOND};
use crate::{
    BootError, Disk, DriverKind, Machine, StatusError, VmSpec, VmStatus, console, run_dir,
};

/// Longest wait until Firecracker's API listens.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two tries.
const API_POLL: Duration = Duration::from_millis(2);
const MIB: u64 = 1024 * 1024;
/// Period of the rate limits.
const REFILL_MILLISECONDS: u64 = 1000;

/// Firecracker under its jailer.
#[derive(Debug)]
pub(crate) struct Firecracker;

impl Driver for Firecracker {
    fn start<'a>(
        &'a self,
        boot: &'a mut Boot,
        spec: VmSpec,
    ) -> Answer<'a, Result<Started, BootError>> {
        Box::pin(start(boot, spec))
    }

    fn monitor(&self, run_dir: &Path) -> Box<dyn Monitor> {
        Box::new(Api(run_dir.to_owned()))
    }

    fn has_vsock_process(&self) -> bool {
        false
    }
}

/// Starts the jailed VMM and configures its VM. A VMM that refuses a part of it is ended.
async fn start(boot: &mut Boot, spec: VmSpec) -> Result<Started, BootError> {
    let refused = |reason: &str| BootError::Spec {
        instance: spec.instance,
        reason: reason.to_owned(),
    };
    let user = boot
        .user
        .ok_or_else(|| refused("Firecracker's jailer needs root"))?;
    if spec.kernel.machine != Machine::Microvm {
        return Err(refused("Firecracker boots the platform's own kernel only"));
    }
    let (spec, programs) = blocking(move || {
        let programs = FirecrackerPrograms::find()?;
        hand_over_files(&spec, user)?;
        Ok::<_, BootError>((spec, programs))
    })
    .await?;
    let tap = match &spec.nic {
        Some(nic) => {
            Some(
                PersistentTap::make(&nic.tap, user).map_err(|source| BootError::Start {
                    program: programs::FIRECRACKER,
                    source,
                })?,
            )
        }
        None => None,
    };
    let parts = parts(&spec, tap.as_ref().map(|tap| tap.name.as_str()));
    let jail = Jail::new(boot, &spec, programs.firecracker, user);
    // One process may have the tap open: Firecracker.
    drop(spec.nic);
    let launch = Launch {
        program: programs.jailer,
        exe: jail.exe(),
        arguments: jail.arguments(),
        current_dir: PathBuf::from("/"),
        // The only descriptor that the jailer does not close: it is open for both, so it keeps the
        // FIFO's content while no agent runs.
        output: boot.copy_of(&boot.ends.keeper)?,
        pass: Vec::new(),
        // The jailer changes to it, when it has made the jail.
        user: None,
        group: None,
        prepare: Some(prepare(jail, tap)),
    };
    let vmm = boot.start_vmm(programs::JAILER, launch).await?;
    match configure(&boot.dir, &vmm, parts).await {
        Ok(()) => Ok(Started {
            vmm,
            vsock_device: None,
        }),
        Err(error) => {
            vmm.kill();
            vmm.ended().await;
            Err(error)
        }
    }
}

/// Firecracker, asked by its API: it says nothing unasked.
struct Api(PathBuf);

impl Monitor for Api {
    fn status(&mut self) -> Answer<'_, Result<VmStatus, StatusError>> {
        Box::pin(status(&self.0))
    }

    fn event(&mut self) -> Answer<'_, Event> {
        Box::pin(std::future::pending())
    }
}

/// Sees to it that the VMM can open the VM's files again inside its jail, where an error would not name them. Blocks.
fn hand_over_files(spec: &VmSpec, user: u32) -> Result<(), BootError> {
    for path in [&spec.kernel.kernel, &spec.kernel.initramfs] {
        check_readable(path, Some(user))?;
    }
    for disk in &spec.disks {
        if disk.read_only {
            make_readable(&disk.path).map_err(file("hand over", &disk.path))?;
        } else {
            File::open(&disk.path).map_err(file("open", &disk.path))?;
            std::os::unix::fs::chown(&disk.path, Some(user), Some(user))
                .map_err(file("hand over", &disk.path))?;
        }
    }
    Ok(())
}

/// Lets the VM's user read a disk that VMs share. The folders above are closed to every other user, and a jail binds this one
/// file. Blocks.
fn make_readable(path: &Path) -> std::io::Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o004 == 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | 0o044))?;
    }
    Ok(())
}

/// Asks Firecracker about its guest.
async fn status(run_dir: &Path) -> Result<VmStatus, StatusError> {
    let answer = api::call(run_dir, "GET", "/", None).await?;
    match answer.get("state").and_then(Value::as_str) {
        Some("Running") => Ok(VmStatus::Running),
        Some(other) => Ok(VmStatus::Stopped(other.to_lowercase())),
        None => Err(StatusError::Answer(answer.to_string())),
    }
}

/// What is done before the fork, on the thread that forks.
fn prepare(jail: Jail, tap: Option<PersistentTap>) -> Prepare {
    Box::new(move || {
        // blocks: on the thread that forks
        jail.furnish()?;
        match tap {
            Some(tap) => tap.enter_namespace(),
            None => tap::enter_empty_namespace(),
        }
    })
}

/// Configures the VM, part by part, and starts it.
async fn configure(
    run_dir: &Path,
    vmm: &Process,
    parts: Vec<(String, Value)>,
) -> Result<(), BootError> {
    wait_for_api(run_dir, vmm).await?;
    for (path, part) in parts {
        if let Err(error) = api::call(run_dir, "PUT", &path, Some(&part)).await {
            return Err(BootError::Firecracker {
                what: format!("take PUT {path}"),
                reason: error.to_string(),
                output_tail: console::read_tail(run_dir).await,
            });
        }
    }
    Ok(())
}

async fn wait_for_api(run_dir: &Path, vmm: &Process) -> Result<(), BootError> {
    let give_up = Instant::now() + API_TIMEOUT;
    loop {
        let dir = run_dir::vsock_dir(run_dir);
        let Err(error) = run_dir::connect(&dir, run_dir::API_SOCKET).await else {
            return Ok(());
        };
        let reason = if Instant::now() >= give_up {
            format!("not within {} s ({error})", API_TIMEOUT.as_secs())
        } else if let Ok(exit) = tokio::time::timeout(API_POLL, vmm.ended()).await {
            format!("it ended at once ({exit:?})")
        } else {
            continue;
        };
        return Err(BootError::Firecracker {
            what: "answer".to_owned(),
            reason,
            output_tail: console::read_tail(run_dir).await,
        });
    }
}

/// The parts of a VM, by the paths of Firecracker's API, in the order to tell them. Pure.
fn parts(spec: &VmSpec, tap: Option<&str>) -> Vec<(String, Value)> {
    let mut parts = vec![
        (
            "/machine-config".to_owned(),
            json!({
                "vcpu_count": spec.vcpus,
                "mem_size_mib": spec.memory_bytes / MIB,
                "smt": false,
            }),
        ),
        (
            "/boot-source".to_owned(),
            json!({
                "kernel_image_path": jail::KERNEL,
                "initrd_path": jail::INITRAMFS,
                "boot_args": boot_arguments(DriverKind::Firecracker, spec.kernel.machine, None),
            }),
        ),
    ];
    for (index, Disk { read_only, .. }) in spec.disks.iter().enumerate() {
        parts.push((
            format!("/drives/disk{index}"),
            json!({
                "drive_id": format!("disk{index}"),
                "path_on_host": jail::disk(index),
                "is_root_device": false,
                "is_read_only": read_only,
                // What the guest flushes is on the host's disk when it is told so.
                "cache_type": if *read_only { "Unsafe" } else { "Writeback" },
                "rate_limiter": {
                    "bandwidth": bucket(DISK_BYTES_PER_SECOND),
                    "ops": bucket(DISK_OPERATIONS_PER_SECOND),
                },
            }),
        ));
    }
    if let (Some(nic), Some(tap)) = (&spec.nic, tap) {
        parts.push((
            "/network-interfaces/eth0".to_owned(),
            json!({
                "iface_id": "eth0",
                "host_dev_name": tap,
                "guest_mac": nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
            }),
        ));
    }
    parts.extend([
        ("/entropy".to_owned(), json!({})),
        (
            "/vsock".to_owned(),
            json!({ "guest_cid": GUEST_CID, "uds_path": jail::GUEST_SOCKET }),
        ),
        (
            "/actions".to_owned(),
            json!({ "action_type": "InstanceStart" }),
        ),
    ]);
    parts
}

/// A token bucket of so much a second.
fn bucket(each_second: u64) -> Value {
    json!({ "size": each_second, "refill_time": REFILL_MILLISECONDS })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::path::PathBuf;

    use expect_test::expect;
    use model::InstanceId;

    use super::*;
    use crate::GuestKernel;

    #[test]
    fn requests_of_a_vm_with_every_part() {
        let disk = |read_only| Disk {
            path: PathBuf::from("/somewhere"),
            read_only,
        };
        let spec = VmSpec {
            instance: InstanceId(0xab),
            run_dir: PathBuf::from("/run/x"),
            driver: DriverKind::Firecracker,
            kernel: GuestKernel::platform(Path::new("/guest")),
            vcpus: 2,
            cpu_millis: 1500,
            memory_bytes: 256 * MIB,
            disks: vec![disk(true), disk(false)],
            nic: Some(crate::Nic {
                tap: File::open("/dev/null").unwrap().into(),
                mac: [2, 1, 0, 0, 0, 0xab],
            }),
        };
        let lines: Vec<String> = parts(&spec, Some("t000000ab"))
            .iter()
            .map(|(path, part)| format!("{path} {part}"))
            .collect();
        expect![[r#"
            /machine-config {"mem_size_mib":256,"smt":false,"vcpu_count":2}
            /boot-source {"boot_args":"console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nokbd reboot=k","initrd_path":"/initramfs","kernel_image_path":"/kernel"}
            /drives/disk0 {"cache_type":"Unsafe","drive_id":"disk0","is_read_only":true,"is_root_device":false,"path_on_host":"/disk0","rate_limiter":{"bandwidth":{"refill_time":1000,"size":536870912},"ops":{"refill_time":1000,"size":20000}}}
            /drives/disk1 {"cache_type":"Writeback","drive_id":"disk1","is_read_only":false,"is_root_device":false,"path_on_host":"/disk1","rate_limiter":{"bandwidth":{"refill_time":1000,"size":536870912},"ops":{"refill_time":1000,"size":20000}}}
            /network-interfaces/eth0 {"guest_mac":"02:01:00:00:00:ab","host_dev_name":"t000000ab","iface_id":"eth0"}
            /entropy {}
            /vsock {"guest_cid":3,"uds_path":"/vsock/guest"}
            /actions {"action_type":"InstanceStart"}"#]].assert_eq(&lines.join("\n"));
    }
}

//! Real VMs under TCG: boot, console, disks, end, kill, loss of either process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use microvm::{BootError, Disk, GuestKernel, HowEnded, Nic, Vm, VmStatus, boot};
use model::{InstanceId, NodeId};
use node_network::{Endpoint, Network, NetworkSettings};
use rustix::process::{Signal, kill_process};
use support::{
    guest_dir, in_a_network_of_its_own, kernel_with_script, left_in, pid_of, processes_of, spec,
    with_script,
};

const FOR_EVER: &str = "echo GUEST UP\nwhile true; do sleep 1000; done";

async fn wait_for_console(vm: &Vm, text: &str) {
    let give_up = Instant::now() + Duration::from_mins(1);
    while !microvm::console_tail(vm.run_dir()).contains(text) {
        assert!(
            vm.has_ended().is_none() && Instant::now() < give_up,
            "{:?} {}",
            vm.has_ended(),
            microvm::console_tail(vm.run_dir())
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn assert_nothing_left(instance: InstanceId, run_dir: &Path) {
    assert_eq!(processes_of(instance, run_dir), []);
    assert_eq!(left_in(run_dir), Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_has_its_disks_in_order_and_powers_off() {
    let Some(guest) = guest_dir() else { return };
    guest_has_its_disks_and_powers_off(InstanceId(0xa000_0001), GuestKernel::debian(&guest)).await;
    let own = GuestKernel::platform(&guest);
    if own.kernel.exists() {
        guest_has_its_disks_and_powers_off(InstanceId(0xa000_000a), own).await;
    } else {
        eprintln!("NOT EXERCISED: the platform's own kernel; hint: make kernel");
    }
}

async fn guest_has_its_disks_and_powers_off(instance: InstanceId, kernel: GuestKernel) {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let (root, scratch) = (dir.path().join("root.img"), dir.path().join("scratch.img"));
    let mut content = b"THE ROOT DISK\n".to_vec();
    content.resize(1 << 20, 0);
    fs::write(&root, &content).unwrap();
    fs::write(&scratch, vec![0xaa; 1 << 20]).unwrap();
    let script = "echo \"root says: $(head -n 1 /dev/vda)\"\n\
         echo x > /dev/vda && echo ROOT WAS WRITTEN || echo root is read-only\n\
         echo written by the guest | dd of=/dev/vdb conv=notrunc 2>/dev/null; sync\n\
         blkdiscard -o 524288 -l 524288 /dev/vdb; sync\n\
         test -c /dev/hwrng && echo rng is there\n\
         echo cpus: $(grep -c ^processor /proc/cpuinfo)";
    let mut spec = spec(instance, &run_dir, with_script(kernel, dir.path(), script));
    spec.vcpus = 2;
    spec.disks = vec![
        Disk {
            path: root.clone(),
            read_only: true,
        },
        Disk {
            path: scratch.clone(),
            read_only: false,
        },
    ];
    let vm = boot(spec).await.unwrap();
    let end = vm.ended().await;
    let told = &end.console_tail;
    assert_eq!(end.how, HowEnded::Exited(0), "{told}");
    for text in [
        "root says: THE ROOT DISK",
        "root is read-only",
        "rng is there",
        "cpus: 2",
    ] {
        assert!(told.contains(text), "{text} in: {told}");
    }
    assert_eq!(fs::read(&root).unwrap(), content);
    let mut start = [0; 20];
    fs::File::open(&scratch)
        .unwrap()
        .read_exact(&mut start)
        .unwrap();
    assert_eq!(&start, b"written by the guest");
    // Discarded blocks are given back, where the file system can.
    let metadata = fs::metadata(&scratch).unwrap();
    assert!(metadata.blocks() * 512 < metadata.len(), "{metadata:?}");
    assert_nothing_left(instance, &run_dir);
}

#[test]
fn a_vm_takes_the_largest_number_of_disks() {
    let Some(guest) = guest_dir() else { return };
    in_a_network_of_its_own("a_vm_takes_the_largest_number_of_disks", async move {
        boot_with_most_disks(&guest).await;
    });
}

/// As many disks as may be, in their order, and the other devices beside them, each with its driver.
async fn boot_with_most_disks(guest: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0009);
    let script = "for disk in /dev/vd?; do echo \"$disk is $(head -n 1 $disk)\"; done\n\
         echo driven: $(ls -d /sys/bus/virtio/devices/*/driver | wc -l)\n\
         echo year: $(date +%Y)";
    let kernel = kernel_with_script(guest, dir.path(), script);
    let mut spec = spec(instance, &run_dir, kernel);
    let most = spec.kernel.machine.max_disks(spec.driver);
    spec.disks = (0..most)
        .map(|number| {
            let path = dir.path().join(format!("{number}.img"));
            let mut content = format!("number {number}\n").into_bytes();
            content.resize(4096, 0);
            fs::write(&path, content).unwrap();
            Disk {
                path,
                read_only: number == 0,
            }
        })
        .collect();
    let network = Network::ensure(&NetworkSettings {
        suffix: "vm".to_owned(),
        cluster_prefix: "fd12:3456:789a::".parse().unwrap(),
        node: NodeId(3),
        mtu: 1420,
    })
    .await
    .unwrap();
    let address = "fd12:3456:789a:3:0:7:a000:9".parse().unwrap();
    let member = Endpoint {
        instance,
        address,
        ipv4: std::net::Ipv4Addr::new(100, 64, 0, 2),
        egress: model::instance::EgressPolicy::All,
        edge_ports: std::collections::BTreeSet::new(),
    };
    let tap = network.create_tap(&member).await.unwrap();
    spec.nic = Some(Nic {
        tap: tap.fd,
        mac: tap.mac,
    });
    let told = boot(spec).await.unwrap().ended().await.console_tail;
    for (number, letter) in (0..most).zip('a'..) {
        let line = format!("/dev/vd{letter} is number {number}");
        assert!(told.contains(&line), "{told}");
    }
    // NIC, randomness, vsock.
    assert!(told.contains(&format!("driven: {}", most + 3)), "{told}");
    // The date is the host's, near enough.
    let after = told.split("year: ").nth(1).unwrap_or_default();
    let year: Option<u32> = after
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    assert!(year.is_some_and(|year| year >= 2025), "{told}");
    Network::remove("vm").await.unwrap();
}

#[tokio::test]
async fn a_vm_answers_and_is_killed() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0002);
    let kernel = kernel_with_script(&guest, dir.path(), FOR_EVER);
    let vm = boot(spec(instance, &run_dir, kernel.clone()))
        .await
        .unwrap();
    wait_for_console(&vm, "GUEST UP").await;
    assert_eq!(vm.status().await.unwrap(), VmStatus::Running);

    let again = boot(spec(instance, &run_dir, kernel)).await;
    assert!(
        matches!(again, Err(BootError::AlreadyRunning { .. })),
        "{again:?}"
    );

    for name in ["qemu", "vhost-device"] {
        let pid = pid_of(instance, &run_dir, name);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        if rustix::process::geteuid().is_root() {
            let uid: u32 = field("Uid:").parse().unwrap();
            assert_eq!(uid, microvm::VMM_UIDS.0 + instance.0 % microvm::VMM_UIDS.1);
            assert_eq!(field("CapEff:"), "0000000000000000");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        // Its own session: no terminal and no service manager's signal of ours reaches it.
        assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
    }
    let end = vm.kill().await;
    assert_eq!(end.how, HowEnded::Killed);
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn a_killed_vmm_is_noticed() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0003);
    let kernel = kernel_with_script(&guest, dir.path(), FOR_EVER);
    let vm = boot(spec(instance, &run_dir, kernel)).await.unwrap();
    kill_process(pid_of(instance, &run_dir, "qemu"), Signal::KILL).unwrap();
    assert_eq!(vm.ended().await.how, HowEnded::Signal(9));
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn a_lost_vsock_device_ends_the_vm() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0004);
    let kernel = kernel_with_script(&guest, dir.path(), FOR_EVER);
    let vm = boot(spec(instance, &run_dir, kernel)).await.unwrap();
    wait_for_console(&vm, "GUEST UP").await;
    kill_process(pid_of(instance, &run_dir, "vhost-device"), Signal::KILL).unwrap();
    assert_eq!(vm.ended().await.how, HowEnded::VsockLost);
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn a_stopped_vmm_does_not_answer() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0005);
    let kernel = kernel_with_script(&guest, dir.path(), FOR_EVER);
    let vm = boot(spec(instance, &run_dir, kernel)).await.unwrap();
    kill_process(pid_of(instance, &run_dir, "qemu"), Signal::STOP).unwrap();
    assert!(vm.status().await.is_err());
    assert!(vm.has_ended().is_none());
    assert_eq!(vm.kill().await.how, HowEnded::Killed);
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn case_a_stopped_vmm_or_vsock_device_is_noticed_and_one_that_goes_on_too() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_000b);
    let kernel = kernel_with_script(&guest, dir.path(), FOR_EVER);
    let vm = boot(spec(instance, &run_dir, kernel)).await.unwrap();
    wait_for_console(&vm, "GUEST UP").await;
    let mut health = vm.health();
    assert_eq!(health.borrow().stalled, None);
    let limit = Duration::from_mins(1);
    for (program, why) in [
        ("qemu", "has not answered"),
        ("vhost-device", "its vsock device is stopped"),
    ] {
        kill_process(pid_of(instance, &run_dir, program), Signal::STOP).unwrap();
        let stalled = tokio::time::timeout(limit, health.wait_for(|h| h.stalled.is_some())).await;
        let stalled = stalled.unwrap().unwrap().stalled.clone().unwrap();
        assert!(stalled.contains(why), "{stalled}");
        kill_process(pid_of(instance, &run_dir, program), Signal::CONT).unwrap();
        let again = tokio::time::timeout(limit, health.wait_for(|h| h.stalled.is_none())).await;
        again.unwrap().unwrap();
    }
    assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
    vm.kill().await;
    assert_nothing_left(instance, &run_dir);
}

/// The host's disk is full, by whoever: the guest whose disk cannot grow gets an I/O error, and runs on.
#[test]
fn case_a_guest_whose_disk_cannot_grow_gets_an_io_error_and_runs_on() {
    let Some(guest) = guest_dir() else { return };
    let test = "case_a_guest_whose_disk_cannot_grow_gets_an_io_error_and_runs_on";
    let small = "mkdir /run/small; mount -t tmpfs -o size=8m,mode=700 tmpfs /run/small";
    support::on_a_machine_of_its_own(test, small, async move {
        fill_the_disk(InstanceId(0xa000_000c), GuestKernel::debian(&guest)).await;
        let own = GuestKernel::platform(&guest);
        if own.kernel.exists() {
            fill_the_disk(InstanceId(0xa000_000d), own).await;
        } else {
            eprintln!("NOT EXERCISED: the platform's own kernel; hint: make kernel");
        }
    });
}

async fn fill_the_disk(instance: InstanceId, kernel: GuestKernel) {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let run_dir = dir.path().join("run");
    let (root, scratch) = (dir.path().join("root.img"), Path::new("/run/small/scratch"));
    fs::write(&root, vec![0; 1 << 20]).unwrap();
    let file = fs::File::create(scratch).unwrap();
    file.set_len(64 << 20).unwrap();
    let script = "dd if=/dev/zero of=/dev/vdb bs=1M count=32 conv=fsync 2>&1 | grep -i error\n\
         head -n 1 /dev/vdb >/dev/null && echo IT RUNS ON\n\
         while true; do sleep 1000; done";
    let mut spec = spec(instance, &run_dir, with_script(kernel, dir.path(), script));
    spec.disks = vec![
        Disk {
            path: root,
            read_only: true,
        },
        Disk {
            path: scratch.to_owned(),
            read_only: false,
        },
    ];
    let vm = boot(spec).await.unwrap();
    wait_for_console(&vm, "IT RUNS ON").await;
    let told = microvm::console_tail(vm.run_dir());
    assert!(told.to_lowercase().contains("error"), "{told}");
    let mut health = vm.health();
    let limit = Duration::from_mins(1);
    let heard = tokio::time::timeout(limit, health.wait_for(|h| h.disk_errors > 0)).await;
    let heard = heard.unwrap().unwrap().clone();
    let fault = heard.last_disk_error.unwrap();
    assert_eq!(
        (fault.disk, fault.operation.as_str(), fault.no_space),
        (Some(1), "write", true),
        "{fault:?}"
    );
    assert_eq!(fault.reason, "No space left on device");
    assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
    vm.kill().await;
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn a_kernel_panic_ends_the_vm_and_is_on_its_console() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0006);
    let kernel = kernel_with_script(&guest, dir.path(), "echo c > /proc/sysrq-trigger");
    let vm = boot(spec(instance, &run_dir, kernel)).await.unwrap();
    let end = vm.ended().await;
    assert_eq!(end.how, HowEnded::Exited(0));
    assert!(
        end.console_tail.contains("Kernel panic"),
        "{}",
        end.console_tail
    );
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn a_vmm_that_refuses_its_spec_says_why() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0007);
    let kernel = kernel_with_script(&guest, dir.path(), FOR_EVER);
    let mut spec = spec(instance, &run_dir, kernel);
    // More than any machine has.
    spec.memory_bytes = 1 << 50;
    let end = boot(spec).await.unwrap().ended().await;
    assert_eq!(end.how, HowEnded::Exited(1));
    assert!(end.console_tail.contains("qemu"), "{}", end.console_tail);
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn a_missing_disk_is_named_and_nothing_is_left() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xa000_0008);
    let kernel = kernel_with_script(&guest, dir.path(), FOR_EVER);
    let mut spec = spec(instance, &run_dir, kernel);
    let path = dir.path().join("absent.img");
    spec.disks = vec![Disk {
        path,
        read_only: true,
    }];
    let error = boot(spec).await.unwrap_err().to_string();
    assert!(error.contains("absent.img"), "{error}");
    assert_nothing_left(instance, &run_dir);
}

//! The Firecracker driver against the real program: the jail, the API up to `InstanceStart`, adoption, the
//! tap; and the guest itself where the processor virtualizes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use microvm::{
    BootError, Disk, DriverKind, GuestKernel, HowEnded, Nic, Vm, VmSpec, VmStatus, boot,
    check_programs,
};
use model::{InstanceId, NodeId};
use node_network::{Endpoint, Network, NetworkSettings};
use support::{
    guest_dir, in_a_network_of_its_own, left_in, pid_of, processes_of, spec, with_script,
};

/// The kernel to boot; nothing, and said why, where Firecracker cannot even be started.
fn kernel(dir: &Path, script: &str) -> Option<GuestKernel> {
    let own = GuestKernel::platform(&guest_dir()?);
    let missing = if let Err(error) = check_programs(DriverKind::Firecracker) {
        Some(error.to_string())
    } else if !own.kernel.exists() {
        Some("the platform's own kernel is not built; hint: make kernel".to_owned())
    } else if !rustix::process::geteuid().is_root() {
        Some("the jailer needs root".to_owned())
    } else if !Path::new("/dev/kvm").exists() {
        Some("there is no /dev/kvm".to_owned())
    } else {
        None
    };
    if let Some(missing) = missing {
        eprintln!("NOT EXERCISED: the Firecracker driver: {missing}");
        return None;
    }
    Some(with_script(own, dir, script))
}

fn firecracker_spec(instance: InstanceId, run_dir: &Path, kernel: GuestKernel) -> VmSpec {
    VmSpec {
        driver: DriverKind::Firecracker,
        ..spec(instance, run_dir, kernel)
    }
}

/// What the guest says, where it can run.
async fn wait_for_console(vm: &Vm, text: &str) {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    if !cpuinfo
        .split_whitespace()
        .any(|word| word == "vmx" || word == "svm")
    {
        eprintln!("NOT EXERCISED: the guest itself: the processor has neither vmx nor svm");
        return;
    }
    let give_up = Instant::now() + Duration::from_secs(30);
    while !microvm::console_tail(vm.run_dir()).contains(text) {
        assert!(
            Instant::now() < give_up,
            "{}",
            microvm::console_tail(vm.run_dir())
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_vm_is_jailed_started_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo \"root says: $(head -n 1 /dev/vda)\"; while true; do sleep 1000; done";
    let Some(kernel) = kernel(dir.path(), script) else {
        return;
    };
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xd000_0001);
    let mut spec = firecracker_spec(instance, &run_dir, kernel);
    for (name, read_only) in [("root.img", true), ("scratch.img", false)] {
        let path = dir.path().join(name);
        let mut content = b"THE DISK\n".to_vec();
        content.resize(1 << 20, 0);
        fs::write(&path, content).unwrap();
        spec.disks.push(Disk { path, read_only });
    }
    let vm = boot(spec).await.unwrap();
    assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
    wait_for_console(&vm, "root says: THE DISK").await;

    let pid = pid_of(instance, &run_dir, "firecracker");
    let proc = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned()
    };
    let user = microvm::VMM_UIDS.0 + instance.0 % microvm::VMM_UIDS.1;
    assert_eq!(field("Uid:"), user.to_string());
    assert_eq!(field("Gid:"), user.to_string());
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let mut inside: Vec<_> = fs::read_dir(proc.join("root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    inside.sort();
    let expected = [
        "dev",
        "disk0",
        "disk1",
        "firecracker",
        "firecracker.pid",
        "initramfs",
        "kernel",
        "run",
        "vsock",
    ];
    assert_eq!(inside, expected);
    let mounts = fs::read_to_string(proc.join("mounts")).unwrap();
    for (what, access) in [
        ("kernel", "ro"),
        ("initramfs", "ro"),
        ("disk0", "ro"),
        ("disk1", "rw"),
    ] {
        let start = format!("{access},nosuid,nodev");
        let mount = mounts
            .lines()
            .find(|line| line.contains(&format!(" /{what} ")));
        let options = mount.unwrap().split(' ').nth(3).unwrap();
        assert!(options.starts_with(&start), "{mounts}");
    }
    let namespace = |name: &str| fs::read_link(proc.join("ns").join(name)).unwrap();
    for name in ["net", "mnt"] {
        let ours = fs::read_link(Path::new("/proc/self/ns").join(name)).unwrap();
        assert_ne!(namespace(name), ours, "{name}");
    }
    // Nothing of it is mounted here.
    let here = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!here.contains(run_dir.to_str().unwrap()), "{here}");

    // As the agent after this one would.
    let again = Vm::adopt(&run_dir).await.unwrap().unwrap();
    assert_eq!(again.status().await.unwrap(), VmStatus::Running);
    assert_eq!(vm.kill().await.how, HowEnded::Killed);
    again.ended().await;
    assert_eq!(processes_of(instance, &run_dir), []);
    assert_eq!(left_in(&run_dir), Vec::<String>::new());
}

#[tokio::test]
async fn a_part_that_firecracker_refuses_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut kernel) = kernel(dir.path(), "") else {
        return;
    };
    kernel.kernel = dir.path().join("no-kernel");
    fs::write(&kernel.kernel, "This is no ELF file.").unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xd000_0002);
    let error = boot(firecracker_spec(instance, &run_dir, kernel))
        .await
        .unwrap_err();
    assert!(matches!(error, BootError::Firecracker { .. }), "{error:?}");
    let told = error.to_string();
    assert!(
        told.contains("PUT /actions") && told.contains("ELF"),
        "{told}"
    );
    assert_eq!(processes_of(instance, &run_dir), []);
    assert_eq!(left_in(&run_dir), Vec::<String>::new());
}

#[test]
fn a_tap_of_firecracker_is_opened_by_name_and_outlives_the_vmm() {
    let dir = tempfile::tempdir().unwrap();
    let Some(kernel) = kernel(dir.path(), "ip link set eth0 up; echo UP; sleep 1000") else {
        return;
    };
    in_a_network_of_its_own(
        "a_tap_of_firecracker_is_opened_by_name_and_outlives_the_vmm",
        with_tap(dir.path(), kernel),
    );
}

async fn with_tap(dir: &Path, kernel: GuestKernel) {
    let instance = InstanceId(0xd000_0003);
    let address: Ipv6Addr = "fd12:3456:789a:3:0:7:d000:3".parse().unwrap();
    let member = Endpoint {
        instance,
        address,
        ipv4: std::net::Ipv4Addr::new(100, 64, 0, 2),
        egress: model::instance::EgressPolicy::All,
        edge_ports: std::collections::BTreeSet::new(),
    };
    let network = Network::ensure(&NetworkSettings {
        suffix: "fc".to_owned(),
        cluster_prefix: "fd12:3456:789a::".parse().unwrap(),
        node: NodeId(3),
        mtu: 1420,
    })
    .await
    .unwrap();
    let links = || {
        let output = Command::new("ip")
            .args(["-n", network.namespace(), "-o", "link"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let run_dir = dir.join("run");
    // Twice: the second finds the tap of the first.
    for _ in 0..2 {
        let tap = network.create_tap(&member).await.unwrap();
        let mut spec = firecracker_spec(instance, &run_dir, kernel.clone());
        spec.nic = Some(Nic {
            tap: tap.fd,
            mac: tap.mac,
        });
        let vm = boot(spec).await.unwrap();
        assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
        wait_for_console(&vm, "UP").await;
        network.create_tap(&member).await.unwrap_err();
        vm.kill().await;
        assert!(links().contains(&tap.name), "{}", links());
    }
    assert!(DriverKind::Firecracker.leaves_tap());
    network.release(instance).await.unwrap();
    assert!(!links().contains("tap"), "{}", links());
    Network::remove("fc").await.unwrap();
}

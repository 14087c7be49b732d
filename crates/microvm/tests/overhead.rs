//! What a VM takes of the host's memory beside its guest's, measured for each kernel and number of processors: never
//! more than `DriverKind::memory_overhead_bytes`, which placement counts and the cgroup allows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use microvm::{GuestKernel, boot};
use model::InstanceId;
use support::{guest_dir, processes_of, spec, with_script};

const MIB: f64 = 1024.0;

/// A guest that has used all of its memory, and run as much different code as busybox has, several times at once.
const BUSY: &str = "mount -t tmpfs tmpfs /mnt 2>/dev/null || { mkdir -p /mnt; mount -t tmpfs tmpfs /mnt; }\n\
    dd if=/dev/zero of=/mnt/fill bs=1M count=24 2>/dev/null\n\
    for round in 1 2 3; do\n\
      for tool in sha256sum sha512sum md5sum 'gzip -c' 'bzip2 -c' 'xz -c' 'sort' 'od -x' 'wc' 'tail -n 3' 'uuencode x' 'cksum'; do\n\
        head -c 400000 /dev/urandom | $tool >/dev/null 2>&1 &\n\
      done\n\
      awk 'BEGIN { for (i = 0; i < 20000; i++) { s = s sprintf(\"%x\", i); if (length(s) > 1000) s = substr(s, 500) } }'\n\
      wait\n\
    done\n\
    echo GUEST IS WARM\n\
    while true; do sleep 1000; done";

/// KiB of a process that are its own, the guest's memory (shared) left out; and its page tables.
fn own_kib(pid: i32) -> f64 {
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        let number = number.trim().trim_end_matches(" kB");
        number.parse::<f64>().unwrap()
    };
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    field(&rollup, "Pss_Anon:") + field(&rollup, "Pss_File:") + field(&status, "VmPTE:")
}

#[tokio::test]
async fn case_a_vm_takes_no_more_of_the_host_than_its_guests_memory_and_the_drivers_overhead() {
    let Some(guest) = guest_dir() else { return };
    let own = GuestKernel::platform(&guest);
    let mut kernels = vec![("Debian's kernel", GuestKernel::debian(&guest))];
    if own.kernel.exists() {
        kernels.push(("the platform's kernel", own));
    } else {
        eprintln!("NOT EXERCISED: the platform's own kernel; hint: make kernel");
    }
    let mut number = 0xa000_00d0;
    for (name, kernel) in kernels {
        for vcpus in [1, 4] {
            number += 1;
            let dir = tempfile::tempdir().unwrap();
            let run_dir = dir.path().join("run");
            let instance = InstanceId(number);
            let kernel = with_script(kernel.clone(), dir.path(), BUSY);
            let mut spec = spec(instance, &run_dir, kernel);
            spec.vcpus = vcpus;
            let allowed = spec.driver.memory_overhead_bytes();
            let driver = spec.driver.name();
            let vm = boot(spec).await.unwrap();
            let give_up = Instant::now() + Duration::from_mins(5);
            while !microvm::console_tail(vm.run_dir()).contains("GUEST IS WARM") {
                assert!(
                    vm.has_ended().is_none() && Instant::now() < give_up,
                    "{:?} {}",
                    vm.has_ended(),
                    microvm::console_tail(vm.run_dir())
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let processes = processes_of(instance, &run_dir);
            let each: Vec<_> = processes
                .iter()
                .map(|(pid, name)| (name.clone(), own_kib(*pid)))
                .collect();
            vm.kill().await;
            let kib: f64 = each.iter().map(|(_, kib)| kib).sum();
            let parts: Vec<_> = each
                .iter()
                .map(|(name, kib)| format!("{name} {:.1}", kib / MIB))
                .collect();
            eprintln!(
                "{driver}, {name}, {vcpus} processors: {:.1} MiB beside the guest's memory ({}); {} MiB are counted",
                kib / MIB,
                parts.join(", "),
                allowed >> 20
            );
            #[allow(clippy::cast_precision_loss, reason = "some MiB")]
            let allowed = allowed as f64 / MIB;
            assert!(kib <= allowed, "{kib} KiB");
        }
    }
}

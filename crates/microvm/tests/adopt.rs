//! An agent that is killed, and the one that comes after it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::error::Error as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microvm::{
    AdoptError, BootError, GuestKernel, HowEnded, Vm, VmStatus, boot, console_tail, end_leftovers,
    has_processes, recorded, recover_records, remove_run_dir,
};
use model::InstanceId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, kill_process};
use support::{guest_dir, kernel_with_script, left_in, pid_of, processes_of, spec};

/// Set in the process that plays the first agent: the run directory.
const RUN_DIR: &str = "MICROVM_TEST_RUN_DIR";
const INSTANCE: &str = "MICROVM_TEST_INSTANCE";
const SCRIPT: &str = "echo GUEST UP\nwhile true; do date; sleep 1; done";

/// Not a test by itself: the first agent, which boots a VM, says so, and waits for its end.
#[tokio::test]
async fn first_agent() {
    let Some(run_dir) = std::env::var_os(RUN_DIR) else {
        return;
    };
    let run_dir = Path::new(&run_dir);
    let instance: InstanceId = std::env::var(INSTANCE).unwrap().parse().unwrap();
    let guest = guest_dir().unwrap();
    let kernel = kernel_with_script(&guest, run_dir.parent().unwrap(), SCRIPT);
    eprintln!("BOOTING");
    let _vm = boot(spec(instance, run_dir, kernel)).await.unwrap();
    eprintln!("BOOTED");
    std::future::pending::<()>().await;
}

/// Starts the first agent, and waits until it says this.
#[allow(clippy::zombie_processes, reason = "the caller kills and reaps it")]
fn start_agent(instance: InstanceId, run_dir: &Path, until: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "first_agent", "--nocapture"])
        .env(RUN_DIR, run_dir)
        .env(INSTANCE, instance.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut told = String::new();
    loop {
        let line = lines.next().unwrap_or_else(|| panic!("{told}")).unwrap();
        if line == until {
            return child;
        }
        told.push_str(&line);
        told.push('\n');
    }
}

fn kill_agent(mut agent: Child) {
    agent.kill().unwrap();
    agent.wait().unwrap();
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_mins(1);
    while !done() {
        assert!(Instant::now() < give_up, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn assert_nothing_left(instance: InstanceId, run_dir: &Path) {
    assert_eq!(processes_of(instance, run_dir), []);
    assert_eq!(left_in(run_dir), Vec::<String>::new());
}

/// By its user, its program and its console, whatever became of its record and its run directory.
#[tokio::test]
async fn case_a_vm_whose_record_is_lost_or_damaged_is_found() {
    if guest_dir().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let instance = InstanceId(0xb000_0009);
    let run_dir = dir.path().join(instance.to_string());
    assert!(!has_processes(dir.path()).unwrap());
    let agent = start_agent(instance, &run_dir, "BOOTED");
    let before = processes_of(instance, &run_dir);
    kill_agent(agent);
    assert!(has_processes(dir.path()).unwrap());
    // A record that can be read stays as it is.
    let record = run_dir.join("vm.json");
    let whole = fs::read(&record).unwrap();
    assert_eq!(recover_records(dir.path()).unwrap(), []);
    assert_eq!(fs::read(&record).unwrap(), whole);

    let mut adopted: Option<Vm> = None;
    for damaged in [
        None,
        Some("{\"version\": 1, \"boot"),
        Some("{\"version\": 99}"),
    ] {
        match damaged {
            None => fs::remove_file(&record).unwrap(),
            Some(text) => fs::write(&record, text).unwrap(),
        }
        assert_eq!(recover_records(dir.path()).unwrap(), [instance]);
        assert_eq!(recorded(dir.path()).unwrap(), [instance]);
        if let Some(text) = damaged {
            let kept = fs::read_to_string(run_dir.join("vm.json.unreadable"));
            assert_eq!(kept.unwrap(), text);
        }
        // QEMU's monitor talks to one agent at a time.
        drop(adopted.take());
        let vm = Vm::adopt(&run_dir).await.unwrap().unwrap();
        assert!(vm.has_ended().is_none());
        assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
        assert_eq!(processes_of(instance, &run_dir), before);
        adopted = Some(vm);
    }
    // It is ended without any of its files.
    fs::remove_dir_all(&run_dir).unwrap();
    let ended = end_leftovers(dir.path()).await.unwrap();
    assert!(!ended.is_empty(), "{ended:?}");
    if let Some(vm) = adopted {
        vm.ended().await;
    }
    assert!(!has_processes(dir.path()).unwrap());
    assert!(end_leftovers(dir.path()).await.unwrap().is_empty());
    // A damaged record of a VM that is gone is no VM.
    fs::create_dir_all(&run_dir).unwrap();
    fs::write(&record, "half").unwrap();
    assert!(Vm::adopt(&run_dir).await.is_err());
    assert_eq!(recover_records(dir.path()).unwrap(), []);
    assert!(Vm::adopt(&run_dir).await.unwrap().is_none());
}

#[tokio::test]
async fn a_running_vm_is_adopted_by_the_next_agent() {
    if guest_dir().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xb000_0001);
    let agent = start_agent(instance, &run_dir, "BOOTED");
    let before = processes_of(instance, &run_dir);
    kill_agent(agent);

    let vm = Vm::adopt(&run_dir).await.unwrap().unwrap();
    assert_eq!(vm.instance(), instance);
    assert!(vm.has_ended().is_none());
    assert_eq!(processes_of(instance, &run_dir), before);
    assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
    // The console goes on, too.
    until("console", || console_tail(&run_dir).contains("GUEST UP")).await;

    // Another one may look as well, and both see the end.
    let other = Vm::adopt(&run_dir).await.unwrap().unwrap();
    kill_process(pid_of(instance, &run_dir, "qemu"), Signal::KILL).unwrap();
    assert_eq!(vm.ended().await.how, HowEnded::Unknown);
    assert_eq!(other.ended().await.how, HowEnded::Unknown);
    assert_nothing_left(instance, &run_dir);
    assert!(Vm::adopt(&run_dir).await.unwrap().is_none());
}

#[tokio::test]
async fn a_vm_that_ended_without_an_agent_is_reported_with_its_console() {
    if guest_dir().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xb000_0002);
    let agent = start_agent(instance, &run_dir, "BOOTED");
    kill_agent(agent);
    let vmm = pid_of(instance, &run_dir, "qemu");
    // Said while no agent reads: look at the FIFO without taking anything.
    let fifo = fs::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(run_dir.join("console.fifo"))
        .unwrap();
    until("console", || {
        let mut fds = [PollFd::from_borrowed_fd(fifo.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    })
    .await;
    drop(fifo);
    kill_process(vmm, Signal::KILL).unwrap();
    until("VMM", || {
        processes_of(instance, &run_dir)
            .iter()
            .all(|(_, name)| !name.starts_with("qemu"))
    })
    .await;
    let vm = Vm::adopt(&run_dir).await.unwrap().unwrap();
    let end = vm.ended().await;
    assert_eq!(end.how, HowEnded::Unknown);
    assert_ne!(end.console_tail, "");
    assert_nothing_left(instance, &run_dir);
}

#[tokio::test]
async fn a_vm_without_its_vsock_device_is_ended() {
    if guest_dir().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xb000_0003);
    let agent = start_agent(instance, &run_dir, "BOOTED");
    kill_agent(agent);
    let device = pid_of(instance, &run_dir, "vhost-device");
    kill_process(device, Signal::KILL).unwrap();
    until("device", || {
        processes_of(instance, &run_dir)
            .iter()
            .all(|(_, name)| !name.starts_with("vhost"))
    })
    .await;
    let vm = Vm::adopt(&run_dir).await.unwrap().unwrap();
    assert_eq!(vm.ended().await.how, HowEnded::VsockLost);
    assert_nothing_left(instance, &run_dir);
}

/// However far a boot had come when its agent was killed, nothing is left that is not known.
#[tokio::test]
async fn a_boot_that_is_interrupted_at_any_moment_leaves_nothing() {
    if guest_dir().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let instance = InstanceId(0xb000_0004);
    let mut outcomes = std::collections::BTreeMap::new();
    for round in 0..24 {
        let agent = start_agent(instance, &run_dir, "BOOTING");
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        kill_agent(agent);
        // A process that waits before its exec is killed by the kernel.
        let known = fs::read_to_string(run_dir.join("vm.json")).unwrap_or_default();
        let outcome = match Vm::adopt(&run_dir).await.unwrap() {
            None => "nothing",
            Some(vm) if vm.has_ended().is_some() => "ended",
            Some(vm) => {
                vm.kill().await;
                "running"
            }
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
        until(&format!("round {round}: {outcome} {known}"), || {
            processes_of(instance, &run_dir).is_empty()
        })
        .await;
        if run_dir.exists() {
            assert_nothing_left(instance, &run_dir);
        }
    }
    eprintln!("{outcomes:?}");
    assert!(outcomes.contains_key("nothing"), "{outcomes:?}");
}

/// Writes a record whose processes are this test's own, with a start time that none has.
fn write_record(run_dir: &Path, version: u32, boot_id: &str) {
    let me = std::process::id();
    let exe = std::env::current_exe().unwrap();
    let identity = format!(r#"{{"pid":{me},"start_time":0,"exe":"{}"}}"#, exe.display());
    let text = format!(
        r#"{{"version":{version},"boot_id":{boot_id:?},"instance":"000000ab","driver":"qemu-tcg",
            "cgroup":null,"vsock_device":{identity},"vmm":{identity},"added_later":true}}"#
    );
    fs::write(run_dir.join("vm.json"), text).unwrap();
}

#[tokio::test]
async fn a_record_of_another_boot_of_the_machine_is_of_a_vm_that_ended() {
    let dir = tempfile::tempdir().unwrap();
    write_record(dir.path(), 1, "another");
    fs::create_dir(dir.path().join("vsock")).unwrap();
    let vm = Vm::adopt(dir.path()).await.unwrap().unwrap();
    assert_eq!(vm.ended().await.how, HowEnded::Unknown);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_an_error_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("vm.json");
    let why = |error: AdoptError| error.source().unwrap().to_string();
    write_record(dir.path(), 2, "another");
    let error = Vm::adopt(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("vm.json"), "{error}");
    assert!(why(error).contains("version 2"));
    // What only this file names is not removed with the directory.
    assert!(remove_run_dir(dir.path()).is_err());
    assert!(record.exists());
    for damaged in ["", "{", "[]", r#"{"version":1}"#, r#"{"version":"x"}"#] {
        fs::write(&record, damaged).unwrap();
        let error = Vm::adopt(dir.path()).await.unwrap_err();
        assert!(matches!(error, AdoptError::Record { .. }), "{damaged}");
        assert_eq!(fs::read_to_string(&record).unwrap(), damaged);
    }
    // Nor does a boot in this directory pass over it.
    let kernel = GuestKernel::debian(Path::new("/nowhere"));
    let error = boot(spec(InstanceId(0xab), dir.path(), kernel)).await;
    assert!(
        matches!(error, Err(BootError::Leftovers(AdoptError::Record { .. }))),
        "{error:?}"
    );
    fs::remove_file(&record).unwrap();
    remove_run_dir(dir.path()).unwrap();
    remove_run_dir(dir.path()).unwrap();
    assert!(!dir.path().exists());
}

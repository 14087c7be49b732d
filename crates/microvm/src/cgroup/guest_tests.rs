//! The memory cap and the CPU weight at work, on a machine with cgroup v2 and its controllers: a guest, because the
//! machine that runs the tests may have version 1. This test program runs in the guest.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::{GuestKernel, boot};

#[path = "../../tests/support/mod.rs"]
mod support;

const INSIDE: &str = "MICROVM_TEST_IN_GUEST";
const TEST: &str = "cgroup::guest_tests::memory_cap_and_cpu_weight_of_a_cgroup_hold";
const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn memory_cap_and_cpu_weight_of_a_cgroup_hold() {
    if std::env::var_os(INSIDE).is_some() {
        memory_is_capped();
        processors_are_weighted();
        return;
    }
    let Some(guest) = support::guest_dir() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         {INSIDE}=1 /test --exact {TEST} --nocapture && echo LIMITS HOLD\n\
         ls -d /sys/fs/cgroup/{PARENT} 2>/dev/null && echo LEFT"
    );
    let kernel = support::with_script(GuestKernel::debian(&guest), dir.path(), &script);
    let mut programs = vec![("test".to_owned(), std::env::current_exe().unwrap())];
    programs.extend(libraries(&programs[0].1));
    let contents: Vec<_> = programs
        .iter()
        .map(|(name, path)| (name.as_str(), fs::read(path).unwrap()))
        .collect();
    let mut entries: Vec<_> = ["lib", "lib/x86_64-linux-gnu", "lib64"]
        .map(|dir| (dir, None))
        .to_vec();
    entries.extend(
        contents
            .iter()
            .map(|(name, content)| (*name, Some(&content[..]))),
    );
    let kernel = support::with_entries(kernel, &dir.path().join("with-test.cpio"), &entries);
    let run_dir = dir.path().join("run");
    let mut spec = support::spec(InstanceId(0xa000_00c0), &run_dir, kernel);
    spec.memory_bytes = 768 * MIB;
    let end = boot(spec).await.unwrap().ended().await;
    let told = end.console_tail;
    let measured = told
        .lines()
        .find(|line| line.contains("a quarter of a core"));
    eprintln!("{}", measured.unwrap_or_default().trim());
    assert!(
        told.contains("LIMITS HOLD") && !told.contains("LEFT"),
        "{told}"
    );
}

/// The libraries that a program names, by their path without its slash.
fn libraries(program: &Path) -> Vec<(String, PathBuf)> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(|path| (path.trim_start_matches('/').to_owned(), PathBuf::from(path)))
        .collect()
}

/// A shell that waits in a cgroup until it is told to go on with these words.
fn start_in(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("/bin/busybox")
        .args(["sh", "-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cgroup
        .add_process(i32::try_from(child.id()).unwrap())
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    child
}

/// A number in a file of a cgroup.
fn number(cgroup: &Cgroup, file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(cgroup.path().join(file)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .trim()
        .parse()
        .unwrap()
}

fn memory_is_capped() {
    // One buffer of 320 MiB: more than a VM of 272 MiB may have, less than one of 384.
    const FILL: &str = "dd if=/dev/zero of=/dev/null bs=320M count=1 2>/dev/null && echo FILLED";
    let small = Cgroup::try_make(InstanceId(1), 272 * MIB, 1000).unwrap();
    let large = Cgroup::try_make(InstanceId(2), 384 * MIB, 1000).unwrap();
    let mut line = String::new();
    let mut child = start_in(&large, FILL);
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "FILLED\n");
    assert!(child.wait().unwrap().success());
    assert_eq!(number(&large, "memory.events", "oom_kill "), 0);

    let mut child = start_in(
        &small,
        &format!("exec {}", FILL.split(" &&").next().unwrap()),
    );
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(number(&small, "memory.events", "oom_kill "), 1);
    small.remove_dir();
    large.remove_dir();
    assert!(!small.path().exists() && !large.path().exists());
}

fn processors_are_weighted() {
    let light = Cgroup::try_make(InstanceId(3), 272 * MIB, 250).unwrap();
    let heavy = Cgroup::try_make(InstanceId(4), 272 * MIB, 1000).unwrap();
    let mut busy = [&light, &heavy].map(|cgroup| start_in(cgroup, "while :; do :; done"));
    let used = |cgroup: &Cgroup| number(cgroup, "cpu.stat", "usage_usec ");
    while used(&light) + used(&heavy) < 3_000_000 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let (less, more) = (used(&light), used(&heavy));
    for child in &mut busy {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    eprintln!("a quarter of a core and a whole one, both busy on one: {less} and {more} us");
    // Four times as much by their weights.
    assert!(more > less * 3 && more < less * 5);
    light.remove_dir();
    heavy.remove_dir();
}

//! The rights of the PROXY adapter's process, seen from outside: an app does not see it.
//!
//! Alone in its program: a fork of a process with busy threads could wait for ever. Needs root; without it the test
//! says so and is skipped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "only a part of init's modules is used")]

#[path = "../src/namespace.rs"]
mod namespace;
#[path = "../src/spawn.rs"]
mod spawn;
#[path = "../src/sys.rs"]
mod sys;
#[path = "../src/user.rs"]
mod user;

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use spawn::{Executable, Namespaces, Program, Streams};

/// The name that the adapter's process has.
const NAME: &str = "platform-proxy";
/// Longer than the test takes, which kills it.
const CHILD_LIFE: Duration = Duration::from_secs(60);

/// What is executed in the adapter's place: this program.
#[test]
fn child_that_waits() {
    if std::env::args().next().is_some_and(|name| name == NAME) {
        std::thread::sleep(CHILD_LIFE);
    }
}

#[test]
fn the_adapter_has_no_rights_no_environment_and_its_listeners_only() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: it needs root");
        return;
    }
    let listener = File::open("/dev/null").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _other = File::create(folder.path().join("not-for-the-adapter")).unwrap();
    let nobody = user::resolve("65534:65534", b"", b"").unwrap();
    let arguments = [NAME, "--exact", "child_that_waits"];
    let program = Program {
        argv: &arguments.map(str::to_owned),
        environment: &[],
        working_dir: "/",
        user: &nobody,
        cgroup: None,
        executable: Executable::Confined(&[listener.as_fd()]),
        namespaces: Namespaces::Init,
    };
    let (_read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let streams = Streams::Pipes {
        input: None,
        output: write.try_clone().unwrap(),
        error: write,
    };
    let pid = spawn::spawn(&program, streams).unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let (status, environment) = (read("status"), read("environ"));
    let descriptors: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().to_str().unwrap().to_owned();
            // Its own descriptors come and go.
            let target = fs::read_link(entry.path()).unwrap_or_default();
            (number, target.display().to_string())
        })
        .collect();
    sys::kill(pid, libc::SIGKILL).unwrap();
    let child = rustix::process::Pid::from_raw(pid);
    rustix::process::waitpid(child, rustix::process::WaitOptions::empty()).unwrap();

    let status: Vec<_> = status
        .lines()
        .map(|line| line.replace('\t', " ").trim().to_owned())
        .collect();
    for line in [
        "Uid: 65534 65534 65534 65534",
        "Gid: 65534 65534 65534 65534",
        "Groups: 65534",
        "CapInh: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 1",
    ] {
        assert!(
            status.iter().any(|known| known == line),
            "{line}: {status:?}"
        );
    }
    assert_eq!(environment, "");
    let kept = (listener.as_raw_fd().to_string(), "/dev/null".to_owned());
    assert!(
        descriptors.contains(&kept)
            && !descriptors
                .iter()
                .any(|(_, target)| target.contains("not-for-the-adapter")),
        "{descriptors:?}"
    );
}

//! For tests of what changes a machine: the test runs again as root in namespaces of its own (network, mounts, processes), so that the machine is never touched
//! and no process outlives it. Other machines are network namespaces in there.
//!
//! Deliberately absent: anything that programs use.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Display;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Set in the process that runs a test inside of its namespaces.
const INSIDE: &str = "TEST_NAMESPACES_INSIDE";
/// The one switch that leaves privileged tests out, on a machine where they cannot run.
const SKIP: &str = "PLATFORM_SKIP_PRIVILEGED_TESTS";
/// Longest that a test in its namespaces takes: one that hangs is a failure, and is named.
const LIMIT: Duration = Duration::from_mins(5);
/// Longest wait of [`eventually`].
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the test `name` again, in namespaces of its own, for 5 minutes at most. True in those.
///
/// # Panics
/// The test failed there, or this is not root.
pub fn isolated(name: &str) -> bool {
    isolated_after(name, ":", LIMIT)
}

/// The same, after these shell lines in the namespaces: they mount, or export variables.
///
/// # Panics
/// The test failed there, or this is not root.
pub fn isolated_after(name: &str, setup: &str, limit: Duration) -> bool {
    if is_inside() {
        return true;
    }
    if is_skipped() {
        return false;
    }
    let output = isolated_command(setup, limit)
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    // What is left out, and what is measured, is for whoever runs the tests.
    let (_, own) = text.split_once("running 1 test\n").unwrap_or(("", &text));
    eprint!("{}", own.split("\ntest result:").next().unwrap_or(own));
    false
}

/// Whether this is a test in its namespaces.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether privileged tests are left out.
///
/// # Panics
/// They are not, and this is not root.
pub fn is_skipped() -> bool {
    if std::env::var_os(SKIP).is_some() {
        eprintln!("SKIPPED: {SKIP} is set");
        return true;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root; {SKIP}=1 leaves it out"
    );
    false
}

/// This program again, in namespaces of its own, in which these shell lines are done first. Its arguments and variables are the caller's to add.
///
/// # Panics
/// This program has no path.
pub fn isolated_command(setup: &str, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &limit.as_secs().to_string(), "unshare"])
        .args(["--net", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .args(["sh", "-ec"])
        // /run too, for the names of namespaces.
        .arg(format!(
            "mount -t tmpfs tmpfs /run; ip link set lo up\n{setup}\nexec \"$@\""
        ))
        .arg("sh")
        .arg(std::env::current_exe().unwrap());
    command
}

/// Moves this thread into a named network namespace.
///
/// # Panics
/// There is no such namespace.
pub fn enter(namespace: &str) {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// Does something in a namespace, on a thread of its own, and waits for it.
///
/// # Panics
/// It panicked.
pub fn within<T: Send + 'static>(namespace: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_within(namespace, body).join().unwrap()
}

/// Does something in a namespace, on a thread of its own.
///
/// # Panics
/// There is no such namespace.
pub fn spawn_within<T: Send + 'static>(
    namespace: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let namespace = namespace.to_owned();
    std::thread::spawn(move || {
        enter(&namespace);
        body()
    })
}

/// Does something as an agent on a machine, which is a namespace: it ends with the call.
///
/// # Panics
/// It panicked.
pub fn agent<T, F>(machine: &str, work: impl FnOnce() -> F + Send) -> T
where
    T: Send,
    F: Future<Output = T>,
{
    let machine = machine.to_owned();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            enter(&machine);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .on_thread_start(move || enter(&machine))
                .build()
                .unwrap();
            runtime.block_on(work())
        });
        thread.join().unwrap()
    })
}

/// What these shell lines print.
///
/// # Panics
/// One of them failed.
pub fn shell(lines: &str) -> String {
    let output = Command::new("sh").args(["-ec", lines]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines}: {text}{errors}");
    text
}

/// Waits until it is so, 20 s at most.
///
/// # Panics
/// It is never so.
pub fn eventually<T>(what: impl Display, mut is: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "it is never so that {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

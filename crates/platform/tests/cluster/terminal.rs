//! `platform exec -it` on a real terminal, whose size changes.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::harness::{Cluster, wait_for};

/// A shell in an instance, on a terminal that `script` makes for the command line.
pub(crate) fn a_shell_has_the_terminals_size_and_follows_its_changes(cluster: &Cluster, id: &str) {
    let exec = cluster.command(&["exec", "-it", id, "--", "/bin/sh"]);
    let words = [exec.get_program()].into_iter().chain(exec.get_args());
    let words: Vec<_> = words
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let line = format!("tty; stty rows 24 cols 80; exec {}", words.join(" "));
    let envs = exec
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut shell = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .envs(envs)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = shell.stdin.take().unwrap();
    let mut screen = shell.stdout.take().unwrap();
    let shown = Arc::new(Mutex::new(String::new()));
    let reader = std::thread::spawn({
        let shown = shown.clone();
        move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                *shown.lock().unwrap() += &String::from_utf8_lossy(&bytes[..count]);
            }
        }
    });
    // The terminal echoes the input, so the input must not contain the awaited output.
    let mut typed = |text: &str| keys.write_all(text.as_bytes()).unwrap();
    let shows = |text: &str| shown.lock().unwrap().contains(text);
    wait_for("the terminal's name", || shows("/dev/pts/"));
    let screen = shown.lock().unwrap().clone();
    let terminal = screen.lines().next().unwrap().trim().to_owned();

    typed("echo size $(stty size), by $(id -un)\n");
    wait_for("the size it began with", || shows("size 24 80, by hello"));
    let resized = Command::new("stty")
        .args(["-F", &terminal, "rows", "30", "cols", "100"])
        .status();
    assert!(resized.unwrap().success());
    wait_for("its new size", || {
        typed("echo size $(stty size)\n");
        shows("size 30 100")
    });
    // An interrupt reaches the command in the guest, and does not end the command line.
    typed("sh -c 'echo be''gun; exec sleep 1000'\n");
    wait_for("a command", || shows("begun"));
    typed("\x03");
    typed("echo status $?.\n");
    wait_for("the interrupt", || shows("status 130."));
    typed("exit 9\n");
    assert_eq!(shell.wait().unwrap().code(), Some(9));
    reader.join().unwrap();
}

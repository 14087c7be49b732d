//! `platform exec -it` and `platform top` on a real terminal.

use std::io::{Read as _, Write as _};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::harness::{Cluster, Running, wait_for};

/// A command on a terminal of 24 rows and 80 columns that `script` makes for it.
struct Terminal {
    child: Running,
    keys: ChildStdin,
    shown: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Runs the shell's line, in which `{}` stands for the command line with these arguments.
    fn run(cluster: &Cluster, arguments: &[&str], line: &str) -> Self {
        let command = cluster.command(arguments);
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let words: Vec<_> = words
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let line = format!(
            "tty; stty rows 24 cols 80; {}",
            line.replace("{}", &words.join(" "))
        );
        let envs = command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .envs(envs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let keys = child.stdin.take().unwrap();
        let mut screen = child.stdout.take().unwrap();
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
        Self {
            child: Running(child),
            keys,
            shown,
            reader,
        }
    }

    fn typed(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    fn screen(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn shows(&self, text: &str) -> bool {
        self.screen().contains(text)
    }

    /// The exit status, and everything that was shown.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.0.wait().unwrap().code();
        self.reader.join().unwrap();
        let shown = self.shown.lock().unwrap().clone();
        (status, shown)
    }
}

/// A shell in an instance.
pub(crate) fn a_shell_has_the_terminals_size_and_follows_its_changes(cluster: &Cluster, id: &str) {
    let exec = ["exec", "-it", id, "--", "/bin/sh"];
    let mut shell = Terminal::run(cluster, &exec, "exec {}");
    // The terminal echoes the input, so the input must not contain the awaited output.
    wait_for("the terminal's name", || shell.shows("/dev/pts/"));
    let screen = shell.screen();
    let terminal = screen.lines().next().unwrap().trim().to_owned();

    shell.typed("echo size $(stty size), by $(id -un)\n");
    wait_for("the size it began with", || {
        shell.shows("size 24 80, by hello")
    });
    let resized = Command::new("stty")
        .args(["-F", &terminal, "rows", "30", "cols", "100"])
        .status();
    assert!(resized.unwrap().success());
    wait_for("its new size", || {
        shell.typed("echo size $(stty size)\n");
        shell.shows("size 30 100")
    });
    // An interrupt reaches the command in the guest, and does not end the command line.
    shell.typed("sh -c 'echo be''gun; exec sleep 1000'\n");
    wait_for("a command", || shell.shows("begun"));
    shell.typed("\x03");
    shell.typed("echo status $?.\n");
    wait_for("the interrupt", || shell.shows("status 130."));
    shell.typed("exit 9\n");
    assert_eq!(shell.end().0, Some(9));
}

/// `top` is within the terminal's columns, ends with `q`, and leaves the terminal as it was.
pub(crate) fn case_top_fits_the_terminal_and_ends_with_q(cluster: &Cluster) {
    let top = ["top", "--app", "hello"];
    let mut top = Terminal::run(cluster, &top, "{}; echo status $?; stty -a");
    wait_for("the table", || top.shows("MiB"));
    top.typed("xq");
    let (status, shown) = top.end();
    assert_eq!(status, Some(0), "{shown}");
    assert!(shown.contains("status 0"), "{shown}");
    let (table, settings) = shown.split_once("status 0").unwrap();
    let rows = table.lines().filter(|line| line.contains("MiB"));
    let widths: Vec<_> = rows.map(|row| row.trim_end().chars().count()).collect();
    assert!(
        !widths.is_empty() && widths.iter().all(|width| *width <= 80),
        "{table}"
    );
    let is_on = |name| {
        settings
            .split([' ', ';', '\r', '\n'])
            .any(|word| word == name)
    };
    assert!(is_on("icanon") && is_on("echo"), "{settings}");
}

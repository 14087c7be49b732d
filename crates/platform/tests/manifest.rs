//! `platform validate`, `fmt`, `normalize` and `schema` as people and CI call them: files, pipes, exit
//! statuses, colours.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a measurement tells its numbers"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use expect_test::{Expect, expect};
use tempfile::TempDir;

const GOOD: &str = "app = \"shop\"\n\n[processes.web]\ncommand = [\"/srv/shop\"]\n";
const UNTIDY: &str = "app='shop' # ours\n[processes.web]\ncommand=[ '/srv/shop' ]\n";
const TIDY: &str = "app = \"shop\" # ours\n\n[processes.web]\ncommand = [\"/srv/shop\"]\n";
const BAD: &str = "app = \"shop\"\n[processes.web]\ncomand = [\"/srv/shop\"]\n";

/// A folder with these manifests.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_platform"));
    command
        .args(arguments)
        .current_dir(dir)
        .env_remove("NO_COLOR")
        .env("TERM", "xterm");
    command
}

fn run(dir: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = command(dir, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// The exit status, and what was said where.
#[track_caller]
fn check(dir: &TempDir, arguments: &[&str], input: &str, expected: Expect) {
    let output = run(dir.path(), arguments, input);
    let mut shown = format!("exit {}\n", output.status.code().unwrap());
    for (name, bytes) in [("out", output.stdout), ("err", output.stderr)] {
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains('\u{1b}'), "colours in a pipe: {text:?}");
        for line in text.lines() {
            writeln!(shown, "{name}| {line}").unwrap();
        }
    }
    expected.assert_eq(&shown);
}

#[test]
fn validate_looks_at_every_file() {
    let dir = folder(&[("good.toml", GOOD), ("bad.toml", BAD)]);
    check(
        &dir,
        &["validate", "none.toml", "bad.toml", "good.toml"],
        "",
        expect![[r#"
            exit 1
            out| good.toml: a valid manifest of shop
            err| error: cannot read the manifest `none.toml`
            err|   caused by: No such file or directory (os error 2)
            err|   hint: go to the app's folder, or name the manifest
            err| error[unknown_key]: unknown key `comand`
            err|  --> bad.toml:3:1
            err|   |
            err| 3 | comand = ["/srv/shop"]
            err|   | ^^^^^^ processes.web.comand
            err|   |
            err|   = help: did you mean `command`?
        "#]],
    );
    check(
        &dir,
        &["validate", "-"],
        GOOD,
        expect![[r#"
        exit 0
        out| standard input: a valid manifest of shop
    "#]],
    );
    check(
        &dir,
        &["validate"],
        "",
        expect![[r#"
        exit 1
        err| error: cannot read the manifest `platform.toml`
        err|   caused by: No such file or directory (os error 2)
        err|   hint: go to the app's folder, or name the manifest
    "#]],
    );
}

#[test]
fn validate_for_programs() {
    let dir = folder(&[("good.toml", GOOD), ("bad.toml", BAD)]);
    check(
        &dir,
        &["validate", "--format", "json", "bad.toml"],
        "",
        expect![[r#"
            exit 1
            out| [
            out|   {
            out|     "code": "unknown_key",
            out|     "path": "processes.web.comand",
            out|     "line": 3,
            out|     "column": 1,
            out|     "message": "unknown key `comand`",
            out|     "hint": "did you mean `command`?"
            out|   }
            out| ]
        "#]],
    );
    check(
        &dir,
        &["validate", "--format", "json", "good.toml"],
        "",
        expect![[r#"
            exit 0
            out| []
        "#]],
    );
}

#[test]
fn fmt_writes_in_place_and_keeps_the_link_and_the_mode() {
    let dir = folder(&[("real.toml", UNTIDY), ("good.toml", GOOD)]);
    let real = dir.path().join("real.toml");
    fs::set_permissions(&real, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("real.toml", dir.path().join("link.toml")).unwrap();
    check(
        &dir,
        &["fmt", "link.toml", "good.toml"],
        "",
        expect![[r#"
            exit 0
            err| link.toml: formatted
        "#]],
    );
    assert_eq!(fs::read_to_string(&real).unwrap(), TIDY);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&real).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o640);
    assert!(dir.path().join("link.toml").is_symlink());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn fmt_check_shows_and_changes_nothing() {
    let dir = folder(&[
        ("untidy.toml", UNTIDY),
        ("good.toml", GOOD),
        ("broken.toml", "app = \n"),
    ]);
    check(
        &dir,
        &["fmt", "--check", "good.toml"],
        "",
        expect![[r#"
        exit 0
    "#]],
    );
    check(
        &dir,
        &["fmt", "--check", "broken.toml", "untidy.toml"],
        "",
        expect![[r#"
            exit 1
            out| --- untidy.toml
            out| +++ untidy.toml (formatted)
            out| @@ -1,3 +1,4 @@
            out| -app='shop' # ours
            out| +app = "shop" # ours
            out| +
            out|  [processes.web]
            out| -command=[ '/srv/shop' ]
            out| +command = ["/srv/shop"]
            err| error[syntax]: there is no value
            err|  --> broken.toml:1:7
            err|   |
            err| 1 | app = 
            err|   |       ^ app
            err|   |
            err|   = help: write one after the `=`
        "#]],
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("untidy.toml")).unwrap(),
        UNTIDY
    );
}

#[test]
fn fmt_is_a_filter() {
    let dir = folder(&[]);
    let output = run(dir.path(), &["fmt", "-"], UNTIDY);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), TIDY);
    // What a terminal takes for a colour is a text like any other, if TOML allows it.
    let odd = "app = \"shop\" # \u{9b}1m\n";
    assert_eq!(run(dir.path(), &["fmt", "-"], odd).stdout, odd.as_bytes());
}

#[test]
fn normalize_and_schema_are_for_programs() {
    let dir = folder(&[("a.toml", UNTIDY), ("b.toml", GOOD), ("bad.toml", BAD)]);
    let of = |file| run(dir.path(), &["normalize", file], "");
    assert!(of("a.toml").status.success());
    assert_eq!(of("a.toml").stdout, of("b.toml").stdout);
    assert_eq!(of("bad.toml").status.code(), Some(1));
    assert!(of("bad.toml").stdout.is_empty());
    let schema: serde_json::Value =
        serde_json::from_slice(&run(dir.path(), &["schema"], "").stdout).unwrap();
    assert_eq!(schema, manifest::schema());
}

/// On a terminal, diagnostics have colours, unless NO_COLOR is set.
#[test]
fn colours_are_for_terminals() {
    let dir = folder(&[("bad.toml", BAD)]);
    for (no_color, coloured) in [(None, true), (Some("1"), false)] {
        // util-linux's `script` gives a program a terminal.
        let validate = format!("{} validate bad.toml", env!("CARGO_BIN_EXE_platform"));
        let output = Command::new("script")
            .args(["-q", "-e", "-c", &validate, "/dev/null"])
            .current_dir(dir.path())
            .env_remove("NO_COLOR")
            .env("TERM", "xterm")
            .envs(no_color.map(|value| ("NO_COLOR", value)))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("unknown_key"), "{text}");
        assert_eq!(text.contains('\u{1b}'), coloured, "{text:?}");
    }
}

#[test]
fn case_every_example_of_the_repository_is_formatted_and_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut count = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let folder = entry.unwrap().path();
        let manifests = fs::read_dir(&folder).into_iter().flatten();
        let manifests = manifests.map(|entry| entry.unwrap().file_name());
        for name in manifests.filter(|name| name.to_string_lossy().ends_with(".toml")) {
            let name = name.to_str().unwrap();
            if name == "Cargo.toml" || name == "hello.toml" {
                continue;
            }
            for arguments in [&["fmt", "--check", name][..], &["validate", name]] {
                let output = run(&folder, arguments, "");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(
                    output.status.success(),
                    "{arguments:?} in {}: {said}",
                    folder.display()
                );
            }
            count += 1;
        }
    }
    assert!(count >= 9, "{count} examples");
}

/// Goal: under 10 ms, the start of the process included.
#[test]
#[ignore = "a measurement"]
fn validate_of_300_lines() {
    const RUNS: u32 = 101;
    let mut text = String::from("app = \"shop\"\n");
    for number in 1..=27 {
        write!(
            text,
            "\n[processes.p{number}]\ncommand = [\"/srv/shop\", \"{number}\"]\nuser = \"shop\"\n\
             stop = {{ signal = \"SIGTERM\", timeout = \"10s\" }}\n\n[[processes.p{number}.ports]]\nport = 8080\n\n\
             [processes.p{number}.scaling]\nmin = 1\nmax = 4\n"
        )
        .unwrap();
    }
    let dir = folder(&[("platform.toml", &text)]);
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let start = std::time::Instant::now();
            let output = command(dir.path(), &["validate"]).output().unwrap();
            assert!(output.status.success());
            start.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "platform validate of {} lines: {:.1} ms, the slowest of {RUNS} {:.1} ms (goal 10)",
        text.lines().count(),
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() - 1].as_secs_f64() * 1e3,
    );
}

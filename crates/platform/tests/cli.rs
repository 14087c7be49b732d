//! The command line from outside: help, usage, and how errors read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::needless_pass_by_value, reason = "reads better at the call")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use expect_test::{Expect, expect};

/// Runs `platform` in an empty folder, without anything of the environment that it looks at.
fn run(arguments: &[&str], stdin: &str, folder: &Path) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_platform"))
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent")
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// Everything that was printed, and the status.
fn printed(output: &Output) -> String {
    format!(
        "{}{}[status {}]\n",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status.code().unwrap()
    )
}

fn check(arguments: &[&str], expected: Expect) {
    let folder = tempfile::tempdir().unwrap();
    expected.assert_eq(&printed(&run(arguments, "", folder.path())));
}

fn check_input(arguments: &[&str], stdin: &str, expected: Expect) {
    let folder = tempfile::tempdir().unwrap();
    expected.assert_eq(&printed(&run(arguments, stdin, folder.path())));
}

#[test]
fn help() {
    check(&["--help"], expect![[]]);
}

#[test]
fn help_of_deploy() {
    check(&["deploy", "--help"], expect![[]]);
}

#[test]
fn help_of_node() {
    check(&["node", "--help"], expect![[]]);
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in [
        "deploy",
        "ps",
        "logs",
        "scale",
        "envs",
        "destroy",
        "validate",
        "normalize",
        "schema",
        "nodes",
        "tokens create",
        "server",
        "node",
        "edge",
        "dev",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = run(&arguments, "", folder.path());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{command}");
        assert!(
            text.contains("Example"),
            "{command} has no example:\n{text}"
        );
        let undocumented = text.lines().find(|line| {
            let line = line.trim_start();
            line.starts_with("--") && line.split("  ").count() < 2 && line.ends_with('>')
        });
        assert!(undocumented.is_none(), "{command}: {undocumented:?}");
    }
}

#[test]
fn wrong_usage_has_status_2() {
    check(&["scale", "web"], expect![[]]);
    check(&["tokens", "create", "--ttl", "15"], expect![[]]);
    check(&["deply"], expect![[]]);
}

#[test]
fn a_missing_cluster_is_said_with_what_to_do() {
    check(
        &["nodes", "--config", "/nonexistent/client.json"],
        expect![[]],
    );
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let ca = identity::ClusterCa::generate("test", contract::Timestamp(1_700_000_000_000)).unwrap();
    let config = api_client::ClientConfig {
        server: "https://127.0.0.1:1".to_owned(),
        token: "pu1_x".to_owned(),
        ca_pem: ca.certificate_pem().to_owned(),
    };
    config.save(&folder.path().join("client.json")).unwrap();
    let output = run(&["ps", "--config", "client.json"], "", folder.path());
    expect![[]].assert_eq(&printed(&output));
}

#[test]
fn a_missing_manifest_is_said_with_what_to_do() {
    check(&["deploy", "--image", "x"], expect![[]]);
}

#[test]
fn a_wrong_manifest_is_shown_and_nothing_is_deployed() {
    let wrong = "app = \"hello\"\n[processes.web]\nhealtcheck = 1\n";
    check_input(&["deploy", "-", "--image", "x"], wrong, expect![[]]);
    check_input(&["validate", "--format", "json", "-"], wrong, expect![[]]);
}

#[test]
fn a_valid_manifest() {
    let right = "app = \"hello\"\n[processes.web]\n";
    check_input(&["validate", "-"], right, expect![[]]);
    check_input(&["validate", "--format", "json", "-"], right, expect![[]]);
}

#[test]
fn an_edge_that_was_told_nothing_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "edge",
        "--data-dir",
        "edge",
        "--listen",
        "127.0.0.1:0",
        "--log",
        "error",
    ];
    expect![[]].assert_eq(&printed(&run(&arguments, "", folder.path())));
}

/// `platform schema | head -1` is no error.
#[test]
fn a_reader_that_leaves_is_no_news() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_platform"))
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

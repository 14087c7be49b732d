//! What the command line says before it talks to a cluster: help, wrong usage, a wrong configuration, a full disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_platform"));
    command
        .args(arguments)
        .env_remove("PLATFORM_CONFIG")
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME");
    command
}

/// The exit status, standard output and standard error.
fn run(mut command: Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn case_help_and_version_are_commands_too() {
    let (status, help, _) = run(command(&["help", "exec"]));
    assert_eq!(status, 0);
    assert!(
        help.contains("Run a command in a running instance"),
        "{help}"
    );
    let (status, version, _) = run(command(&["version"]));
    assert_eq!((status, version), (0, run(command(&["--version"])).1));
}

#[test]
fn case_a_program_is_given_the_version_and_the_shape_of_what_commands_print() {
    let (status, version, _) = run(command(&["version", "--format", "json"]));
    assert_eq!(status, 0);
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    let expected = serde_json::json!({ "version": env!("CARGO_PKG_VERSION") });
    assert_eq!(version, expected);

    for (words, of) in [
        (&["schema", "ps"][..], "InstanceRow"),
        (&["schema", "ps", "--ended"], "EndedRow"),
        (&["schema", "secrets", "set"], "SecretsSet"),
        (&["schema", "nodes", "cordon"], "NodeRow"),
        (&["schema", "tokens", "revoke"], "Removed"),
    ] {
        let (status, text, _) = run(command(words));
        assert_eq!(status, 0, "{words:?}");
        let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(schema["$defs"][of]["properties"].is_object(), "{text}");
    }
    let (status, text, said) = run(command(&["schema", "fmt"]));
    assert_eq!((status, text.as_str()), (1, ""));
    assert!(
        said.contains("`platform fmt`") && said.contains("secrets set"),
        "{said}"
    );
}

#[test]
fn case_a_command_without_its_dashes_is_told_to_have_them() {
    let (status, _, text) = run(command(&["exec", "--process", "web", "ls"]));
    assert_eq!(status, 2);
    assert!(text.contains("the command comes after `--`"), "{text}");
    let (status, _, text) = run(command(&["exec", "--", "ls"]));
    assert_eq!(status, 2);
    assert!(text.contains("--process <PROCESS>"), "{text}");
    let (status, _, text) = run(command(&["exec", "-p", "web", "1f0c2b7a", "--", "ls"]));
    assert_eq!(status, 2);
    assert!(text.contains("cannot be used with"), "{text}");
}

#[test]
fn case_a_wrong_number_or_name_is_told_in_the_words_of_its_option() {
    let (status, _, text) = run(command(&["logs", "-n", "abc"]));
    assert_eq!(status, 2);
    assert!(text.contains("write a whole number"), "{text}");
    let (status, _, text) = run(command(&["secrets", "set", "B", "K=x"]));
    assert_eq!(status, 2);
    assert!(
        text.contains("`B` is not a valid name of a secret bundle"),
        "{text}"
    );
}

#[test]
fn case_an_empty_variable_counts_as_absent_and_a_wrong_file_is_named() {
    let mut empty = command(&["ps"]);
    empty.env("PLATFORM_CONFIG", "").env("PLATFORM_CONTEXT", "");
    let (status, _, text) = run(empty);
    assert_eq!(status, 1, "{text}");
    if !Path::new("/var/lib/platform/server/client.json").exists() {
        assert!(text.contains("no cluster is known"), "{text}");
    }

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("client.json");
    let file_name = file.to_str().unwrap();
    let config = r#"{"server":"https://127.0.0.1:1","token":"t","ca_pem":"nonsense"}"#;
    fs::write(&file, config).unwrap();
    let (status, _, text) = run(command(&["ps", "--config", file_name]));
    assert_eq!(status, 1);
    assert!(text.contains(file_name), "{text}");
    assert!(
        text.contains("the cluster's CA: there is no certificate in it"),
        "{text}"
    );
}

#[test]
fn case_a_full_disk_is_told_to_be_that_of_standard_output() {
    let mut schema = command(&["schema"]);
    schema.stdout(File::options().write(true).open("/dev/full").unwrap());
    let (status, _, text) = run(schema);
    assert_eq!(status, 1);
    assert!(text.contains("cannot write to standard output"), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
}

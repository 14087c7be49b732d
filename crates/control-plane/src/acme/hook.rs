//! The hook for DNS-01: a program of the operator's, on the server, that sets a record in the DNS and removes it (RFC 8555, 8.4).
//!
//! It is called as lego calls one (`exec`), so what was written for that can be used:
//!
//! ```text
//!   HOOK present _acme-challenge.example.com. VALUE     the record is to be there, and seen by everybody, when it ends with 0
//!   HOOK cleanup _acme-challenge.example.com. VALUE     it is needed no more
//! ```
//!
//! A user of the API cannot name a program: it is an option of the server.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::limits::{DNS_HOOK_TIMEOUT, MAX_DNS_HOOK_OUTPUT_BYTES};

/// What the hook is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Present,
    Cleanup,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Cleanup => "cleanup",
        }
    }
}

/// A record: a TXT of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TxtRecord {
    /// The name that is certified, of a wildcard without its `*.`.
    pub(crate) domain: String,
    /// The text.
    pub(crate) value: String,
}

impl TxtRecord {
    /// The name of the record, as the DNS has it.
    fn name(&self) -> String {
        format!("_acme-challenge.{}.", self.domain)
    }
}

/// The hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("the hook for DNS-01 could not be started: {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the hook for DNS-01 was not done within {} s, and was killed{}", .limit.as_secs(), shown(output))]
    TooLong { limit: Duration, output: String },
    #[error("the hook for DNS-01 ended with {status}{}", shown(output))]
    Failed { status: String, output: String },
}

fn shown(output: &str) -> String {
    if output.is_empty() {
        ", and said nothing".to_owned()
    } else {
        format!(": {output}")
    }
}

/// Calls the hook. It is killed when it takes too long, and when nobody waits for it any more.
pub(crate) async fn call(
    program: &Path,
    action: Action,
    record: &TxtRecord,
) -> Result<(), HookError> {
    call_within(program, action, record, DNS_HOOK_TIMEOUT).await
}

async fn call_within(
    program: &Path,
    action: Action,
    record: &TxtRecord,
    limit: Duration,
) -> Result<(), HookError> {
    let failed = |source| HookError::Start {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args([action.as_str(), &record.name(), &record.value])
        .env("ACME_ACTION", action.as_str())
        .env("ACME_DOMAIN", &record.domain)
        .env("ACME_RECORD", record.name())
        .env("ACME_VALUE", &record.value)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What it started is killed with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let _group = Group(child.id());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let ended = {
        let running = async {
            let read = (read_some(out, &mut output), read_some(err, &mut errors));
            let (status, (), ()) = tokio::join!(child.wait(), read.0, read.1);
            status
        };
        tokio::time::timeout(limit, running).await
    };
    output.extend(errors);
    let text = String::from_utf8_lossy(&output);
    let output = display::one_line(text.trim(), MAX_DNS_HOOK_OUTPUT_BYTES);
    match ended {
        Err(_) => Err(HookError::TooLong { limit, output }),
        Ok(Err(source)) => Err(failed(source)),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(HookError::Failed {
            status: status.to_string(),
            output,
        }),
    }
}

/// Reads to the end, and keeps the begin of it.
async fn read_some(from: Option<impl tokio::io::AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let room = MAX_DNS_HOOK_OUTPUT_BYTES.saturating_sub(into.len());
        into.extend_from_slice(&chunk[..count.min(room)]);
    }
}

/// The processes of a hook, killed with this.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // None is left where all have ended.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A hook that is this script, beside a file that it may write.
    fn hook(folder: &Path, script: &str) -> PathBuf {
        let file = folder.join("hook");
        std::fs::write(
            &file,
            format!("#!/bin/sh\ncd {}\n{script}\n", folder.display()),
        )
        .unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    fn record() -> TxtRecord {
        TxtRecord {
            domain: "example.com".to_owned(),
            value: "value-1".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_hook_gets_the_record_by_its_arguments_and_by_variables() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo \"$@ $ACME_ACTION $ACME_DOMAIN $ACME_RECORD $ACME_VALUE\" >>told";
        let program = hook(folder.path(), script);
        for action in [Action::Present, Action::Cleanup] {
            call(&program, action, &record()).await.unwrap();
        }
        let told = std::fs::read_to_string(folder.path().join("told")).unwrap();
        let line = |action: &str| {
            format!(
                "{action} _acme-challenge.example.com. value-1 {action} example.com _acme-challenge.example.com. value-1"
            )
        };
        assert_eq!(
            told.lines().collect::<Vec<_>>(),
            [line("present"), line("cleanup")]
        );
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_why_in_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let program = hook(folder.path(), "echo out; echo 'no such zone' >&2; exit 3");
        let error = call(&program, Action::Present, &record())
            .await
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("no such zone"),
            "{error}"
        );
        let program = hook(folder.path(), "yes | head -c 100000; exit 1");
        let error = call(&program, Action::Present, &record())
            .await
            .unwrap_err();
        assert!(error.to_string().len() < 2 * MAX_DNS_HOOK_OUTPUT_BYTES);
        let missing = folder.path().join("missing");
        let error = call(&missing, Action::Present, &record())
            .await
            .unwrap_err();
        assert!(matches!(error, HookError::Start { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let program = hook(
            folder.path(),
            "sleep 1000 & echo $! >child; echo waiting; wait",
        );
        let limit = Duration::from_millis(500);
        let error = call_within(&program, Action::Present, &record(), limit).await;
        assert!(matches!(error, Err(HookError::TooLong { .. })), "{error:?}");
        let child = std::fs::read_to_string(folder.path().join("child")).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        for _ in 0..500 {
            // Gone, or a zombie that nobody reaps.
            match std::fs::read_to_string(&stat) {
                Ok(text) if !text.contains(") Z ") => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                _ => return,
            }
        }
        panic!("the hook's child lives");
    }
}

//! Runs `ip` and `nft`: with input, a time limit, and an error that names the command.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use blocking_work::blocking;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::NetworkError;

/// Longest run of one command. The first `nft` of a machine has the kernel load its modules: 11 s on two cores under TCG.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a command's standard error that an error carries.
pub(crate) const MAX_STDERR_BYTES: usize = 2048;
/// Where Debian keeps `ip` and `nft`, which the PATH of a service may lack.
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The `PATH` for commands.
pub(crate) fn path() -> String {
    match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{SYSTEM_PATH}"),
        _ => SYSTEM_PATH.to_owned(),
    }
}

/// Where a program of [`path`] is. By its whole name it starts without a copy of the agent's page tables, which grow with its
/// instances (posix_spawn in place of fork).
async fn find(program: &str) -> Option<PathBuf> {
    let program = program.to_owned();
    blocking(move || {
        std::env::split_paths(&path())
            .map(|folder| folder.join(&program))
            .find(|path| path.is_absolute() && path.is_file())
    })
    .await
}

/// Runs a command and gives what it wrote to standard output.
pub(crate) async fn run(arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let line = arguments.join(" ");
    let start = |source| start_error(&line, "apt-get install iproute2 nftables", source);
    let (program, rest) = arguments
        .split_first()
        .ok_or_else(|| start(io::Error::other("empty command")))?;
    let found = find(program).await;
    let mut child = Command::new(found.as_deref().unwrap_or(Path::new(program)))
        .args(rest)
        .env("PATH", path())
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let stdin = child.stdin.take();
    let work = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command that ends early says why on standard error; a broken pipe adds nothing.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        output
    };
    let output = tokio::time::timeout(COMMAND_TIMEOUT, work)
        .await
        .map_err(|_| NetworkError::CommandTimeout {
            command: line.clone(),
            limit: COMMAND_TIMEOUT,
        })?
        .map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = &output.stderr[..output.stderr.len().min(MAX_STDERR_BYTES)];
    let stderr = String::from_utf8_lossy(stderr).trim().to_owned();
    Err(NetworkError::Command {
        hint: hint_for(&stderr),
        command: command_with_line(&line, &stderr, input),
        stderr,
    })
}

/// Runs lines of `ip`, in the machine's namespace or a named one; stops at the first that fails.
pub(crate) async fn ip_batch(
    namespace: Option<&str>,
    lines: &[String],
) -> Result<(), NetworkError> {
    let mut input = lines.join("\n");
    input.push('\n');
    match namespace {
        Some(name) => run(&["ip", "-n", name, "-batch", "-"], &input).await?,
        None => run(&["ip", "-batch", "-"], &input).await?,
    };
    Ok(())
}

/// Loads a whole rule set in a named namespace, in one transaction.
pub(crate) async fn nft(namespace: &str, ruleset: &str) -> Result<(), NetworkError> {
    run(
        &["ip", "netns", "exec", namespace, "nft", "-f", "-"],
        ruleset,
    )
    .await?;
    Ok(())
}

/// `ip -batch` says `Command failed -:3`: shows the line it means.
fn command_with_line(command: &str, stderr: &str, input: &str) -> String {
    stderr
        .rsplit_once("Command failed -:")
        .and_then(|(_, number)| number.trim().parse::<usize>().ok())
        .and_then(|number| input.lines().nth(number.saturating_sub(1)))
        .map_or_else(
            || command.to_owned(),
            |line| command.replace("-batch -", line),
        )
}

/// Why a program could not be started; `install` is what to do where it is not there.
pub(crate) fn start_error(command: &str, install: &'static str, source: io::Error) -> NetworkError {
    let hint = match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            "the node is out of open files: raise LimitNOFILE= of its service, or `ulimit -n`"
        }
        Some(libc::EAGAIN | libc::ENOMEM) => "the machine is out of processes or memory",
        _ => install,
    };
    NetworkError::Start {
        command: command.to_owned(),
        hint,
        source,
    }
}

fn hint_for(stderr: &str) -> &'static str {
    if stderr.contains("Operation not permitted") || stderr.contains("Permission denied") {
        "run the node as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
    } else if stderr.contains("No such file or directory") && stderr.contains("nft") {
        "apt-get install nftables"
    } else if stderr.contains("Operation not supported") || stderr.contains("Unknown device type") {
        "the kernel lacks veth, tun or nf_tables: load the module or use another kernel"
    } else {
        "run the command by hand to see more"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_is_found_by_its_whole_name() {
        assert!(find("sh").await.is_some_and(|path| path.is_absolute()));
        assert_eq!(find("no-such-program").await, None);
    }

    #[test]
    fn a_program_that_is_not_started_for_want_of_descriptors_is_not_to_be_installed() {
        let error = |errno| start_error("ip", "apt-get", io::Error::from_raw_os_error(errno));
        assert!(error(libc::ENOENT).to_string().ends_with("hint: apt-get"));
        assert!(error(libc::EMFILE).to_string().contains("LimitNOFILE"));
    }

    #[test]
    fn a_failed_batch_names_its_line() {
        let told = command_with_line(
            "ip -n platform-x -batch -",
            "RTNETLINK answers: File exists\nCommand failed -:2",
            "link set lo up\naddr add ::1 dev lo\n",
        );
        assert_eq!(told, "ip -n platform-x addr add ::1 dev lo");
    }
}

//! Runs `ip` and `nft`: with input, a time limit, and an error that names the command.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::NetworkError;

/// Longest run of one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
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

/// Runs a command and gives what it wrote to standard output.
pub(crate) async fn run(arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let line = arguments.join(" ");
    let start = |source| NetworkError::Start {
        command: line.clone(),
        hint: "install what it needs: apt-get install iproute2 nftables",
        source,
    };
    let (program, rest) = arguments
        .split_first()
        .ok_or_else(|| start(std::io::Error::other("empty command")))?;
    let mut child = Command::new(program)
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

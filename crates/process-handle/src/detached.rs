//! A process that outlives the agent that started it, from both ends.
//!
//! The agent starts it ([`start`]) as a command of the program `platform`. Any later agent finds it by its control socket ([`listener`]): the kernel says
//! who listens there (`SO_PEERCRED`), so no record of it is kept. The process says with [`begin`] that it is one, opens what it needs, and gives up its
//! rights with [`serve`] before it reads what others sent.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::sandbox::{self, Sandbox};
use crate::{Process, is_gone};

/// What the process writes to its standard output when it answers.
const READY: &str = "ready";
/// Longest wait for a start, and for the end of a killed process.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of the process's standard error that an error carries.
const MAX_STDERR_BYTES: u64 = 2048;

/// The process did not start.
#[derive(Debug, thiserror::Error)]
#[error("`{command}` did not start: {why}")]
pub struct StartError {
    /// Its command line.
    pub command: String,
    /// What it wrote, or why there is no process.
    pub why: String,
}

/// Why the process ended, or did not begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct StepError {
    /// What was to be done.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// That this step was not possible, for `map_err`.
pub fn cannot<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> StepError {
    move |source| StepError {
        what,
        source: source.into(),
    }
}

/// Starts the process, and waits until it says that it answers ([`serve`]). `program` is a whole path: without a search and without work between fork and
/// exec the process starts without a copy of the agent's page tables (posix_spawn). It gets no environment and no standard input.
///
/// # Errors
/// It ended, with what it wrote, or was not ready within 10 s.
pub async fn start(program: &Path, arguments: &[OsString]) -> Result<Process, StartError> {
    let command = std::iter::once(program.as_os_str())
        .chain(arguments.iter().map(OsString::as_os_str))
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let failed = |why: String| StartError {
        command: command.clone(),
        why,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let pid = child.id().and_then(|pid| pid.try_into().ok());
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let ready = async {
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line).await?;
        }
        io::Result::Ok(line.trim_end() == READY)
    };
    match tokio::time::timeout(PATIENCE, ready).await {
        // A child that nobody waited for keeps its pid.
        Ok(Ok(true)) => Process::hold(pid.unwrap_or(0)).map_err(|error| failed(error.to_string())),
        Ok(_) => {
            let mut text = Vec::new();
            if let Some(errors) = errors {
                let _ = errors.take(MAX_STDERR_BYTES).read_to_end(&mut text).await;
            }
            let _ = child.wait().await;
            let text = String::from_utf8_lossy(&text);
            Err(failed(text.trim().replace('\n', "; ")))
        }
        Err(_) => {
            let _ = child.kill().await;
            let seconds = PATIENCE.as_secs();
            Err(failed(format!("it was not ready within {seconds} s")))
        }
    }
}

/// Who listens at this control socket, if anybody does. It is held before it is known to be there still. Blocks.
pub fn listener(control: &Path) -> Option<Process> {
    let stream = UnixStream::connect(control).ok()?;
    let listener = rustix::net::sockopt::socket_peercred(stream.as_fd()).ok()?;
    let process = Process::hold(listener.pid.as_raw_nonzero().get()).ok()?;
    // Its end closes the socket: one that is open now is of the process that is held.
    UnixStream::connect(control).is_ok().then_some(process)
}

/// Every process of the machine with such a command line: its words, of which the kernel ends each with a zero byte (proc(5)). Blocks.
///
/// # Errors
/// `/proc` cannot be read.
pub fn find_all(is_one: impl Fn(&[u8]) -> bool) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let is_one = || is_one(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
        if !is_one() {
            continue;
        }
        match Process::hold(pid) {
            // Read again after the process is held: the answer is then about this process.
            Ok(process) if is_one() => found.push(process),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Kills the process, and waits for its end.
///
/// # Errors
/// It has not ended after 10 s.
pub async fn end(process: &Process) -> io::Result<()> {
    process.kill();
    let ended = tokio::time::timeout(PATIENCE, process.ended()).await;
    ended.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    Ok(())
}

/// Removes the control socket of a process that has ended, if it is there. Blocks.
///
/// # Errors
/// Its folder refuses.
pub fn remove_socket(control: &Path) -> io::Result<()> {
    match fs::remove_file(control) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The first that the process does. It leaves the session of its agent, and what it makes is root's alone from the first moment on: only root may ask it. Until
/// [`serve`], when it can be found by its control socket, it ends with its agent.
///
/// # Errors
/// The kernel refuses.
pub fn begin() -> Result<(), StepError> {
    // One that leads a session already is on its own.
    let _ = rustix::process::setsid();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(cannot("end with its agent"))?;
    rustix::process::umask(Mode::from_raw_mode(0o177));
    Ok(())
}

/// The last that the process does before it serves: it outlives its agent from now on, gives up its rights, and says that it is ready. The caller is root, has one
/// thread, and listens at its control socket already.
///
/// # Errors
/// The kernel refuses: it has no seccomp, or this process may not do so.
pub fn serve(sandbox: &Sandbox<'_>) -> Result<(), StepError> {
    rustix::process::set_parent_process_death_signal(None).map_err(cannot("outlive its agent"))?;
    sandbox::enter(sandbox).map_err(cannot("give up rights"))?;
    let mut output = io::stdout();
    let ready = writeln!(output, "{READY}").and_then(|()| output.flush());
    ready.map_err(cannot("say that it is ready"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::Exit;

    fn shell(script: &str) -> Vec<OsString> {
        vec!["-c".into(), script.into()]
    }

    #[tokio::test]
    async fn a_process_is_held_once_it_is_ready_and_its_last_lines_say_why_it_is_not() {
        let script = shell("echo ready; exec sleep 1000");
        let process = start(Path::new("/bin/sh"), &script).await.unwrap();
        end(&process).await.unwrap();
        let script = shell("echo no room >&2; echo at all >&2; exit 1");
        let error = start(Path::new("/bin/sh"), &script).await.unwrap_err();
        assert_eq!(error.why, "no room; at all");
        assert!(error.command.starts_with("/bin/sh -c echo no room"));
        let error = start(Path::new("/nowhere"), &[]).await.unwrap_err();
        assert!(error.why.contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn who_listens_at_a_socket_is_known_and_a_socket_without_anybody_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        assert!(listener(&control).is_none());
        let socket = UnixListener::bind(&control).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(listener(&control).unwrap().pid(), own);
        drop(socket);
        assert!(listener(&control).is_none());
        remove_socket(&control).unwrap();
        remove_socket(&control).unwrap();
        assert!(!control.exists());
    }

    #[tokio::test]
    async fn processes_are_found_by_their_command_lines() {
        let script = shell("echo ready; exec sleep 123456.5");
        let process = start(Path::new("/bin/sh"), &script).await.unwrap();
        let is_one = |line: &[u8]| line == b"sleep\x00123456.5\0";
        while find_all(is_one).unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(find_all(is_one).unwrap()[0].pid(), process.pid());
        end(&process).await.unwrap();
        assert!(find_all(is_one).unwrap().is_empty());
        assert_eq!(process.ended().await, Exit::Unknown);
    }
}

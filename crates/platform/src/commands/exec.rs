//! `platform exec`: a command in a running instance, beside its app.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;

use api::exec::UserFrame;
use api::user::{ExecQuery, InstanceRow, InstancesQuery, is_terminal_type};
use api_client::{
    ApiClient, ExecReader, ExecWriter, STREAM_LOST, STREAM_SILENCE, UserExec, unless_silent,
};
use clap::{ArgGroup, Args};
use guest_protocol::{GuestFrame, Stream};
use model::instance::InstanceState;
use model::{EnvKey, InstanceId, NameError, ProcessName};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::connection::{ClusterArguments, EnvArguments, Scope};
use crate::failure::{Failure, OutputError};

const EXAMPLES: &str = "\
Examples:
  platform exec -it 1f0c2b7a -- sh                   a shell, in one instance
  platform exec --process web -- cat /etc/hostname   in any instance of web
  platform exec -i --process db -- psql < dump.sql   with this input

It runs as the app's user, with its variables, in its working directory, and sees the app's processes;
nothing but what the image has is there. On a terminal TERM is yours. It ends when the connection does. The exit status is the command's; 1 and a message
when it could not be run or its end is not known.";

/// Bytes of input sent at a time.
const INPUT_BYTES: usize = 16 * 1024;
/// Pieces of input that wait for a slow command.
const INPUT_QUEUE: usize = 4;

/// Run a command in a running instance, beside its app
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("where").args(["instance", "process"]).required(true))]
pub(crate) struct Arguments {
    /// The instance (`platform ps` shows the ids)
    #[arg(value_parser = parse_instance)]
    instance: Option<InstanceId>,
    /// Any healthy instance of this process type
    #[arg(long, short, value_name = "PROCESS")]
    process: Option<ProcessName>,
    /// Send standard input to the command
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
}

/// An instance's id. A command that lacks its `--` is taken for one.
fn parse_instance(text: &str) -> Result<InstanceId, String> {
    text.parse().map_err(|error: NameError| {
        format!("{error}; the command comes after `--`, as in `platform exec --process web -- ls`")
    })
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let instance = match (arguments.instance, arguments.process) {
        (Some(instance), _) => instance,
        (None, Some(process)) => {
            let env = arguments.which.choose(&client).await?;
            choose(&client, &Candidate { env, process }, None, &[]).await?
        }
        // The parser has refused it.
        (None, None) => return Err(Failure::Said),
    };
    let terminal = if arguments.tty {
        Some(Terminal::open()?)
    } else {
        None
    };
    let size = terminal.as_ref().map(Terminal::size).transpose()?;
    let query = ExecQuery {
        command: arguments.command,
        rows: size.map(|(rows, _)| rows),
        columns: size.map(|(_, columns)| columns),
        terminal_type: size
            .and_then(|_| std::env::var("TERM").ok())
            .filter(|text| is_terminal_type(text)),
    };
    let UserExec { reader, writer } = client.exec(instance, &query).await?;
    match converse(
        UserExec { reader, writer },
        terminal.as_ref(),
        arguments.interactive,
    )
    .await?
    {
        0 => Ok(()),
        status => Err(Failure::Ended(status)),
    }
}

/// Carries input and output of a command to its end; gives its exit code.
pub(super) async fn converse(
    UserExec { reader, writer }: UserExec,
    terminal: Option<&Terminal>,
    interactive: bool,
) -> Result<u8, Failure> {
    // From here on the terminal is the command's: keys are sent, not acted on.
    let raw = match terminal {
        Some(terminal) if interactive => Some(terminal.raw()?),
        _ => None,
    };
    let keys = interactive.then(read_input);
    let ended = tokio::select! {
        ended = print_output(reader) => ended,
        failure = send_input(writer, keys, terminal) => Err(failure),
    };
    drop(raw);
    ended
}

/// Of which an instance is chosen.
pub(super) struct Candidate {
    pub(super) env: EnvKey,
    pub(super) process: ProcessName,
}

/// A healthy instance of the process, and none of `gone`; `before`, where that is as healthy as any.
pub(super) async fn choose(
    client: &ApiClient,
    Candidate { env, process }: &Candidate,
    before: Option<InstanceId>,
    gone: &[InstanceId],
) -> Result<InstanceId, Failure> {
    let query = InstancesQuery {
        app: Some(env.app.clone()),
        env: Some(env.env.clone()),
        ..InstancesQuery::default()
    };
    let rows = client.find_instances(&query).await?;
    match healthiest(&rows, process, before, gone) {
        Some(id) => Ok(id),
        None => {
            if rows.is_empty() {
                let scope = Scope {
                    app: Some(env.app.clone()),
                    env: Some(env.env.clone()),
                };
                scope.nothing(client, "instances").await?;
            }
            let process = process.as_str();
            let others: BTreeSet<_> = rows.iter().map(|row| row.process.as_str()).collect();
            let mut text = format!("no instance of {process} in {env} runs");
            if !others.is_empty() && !others.contains(process) {
                let others: Vec<_> = others.into_iter().collect();
                text.push_str(&format!("; there are instances of {}", others.join(", ")));
            }
            Err(Failure::new(text).hint("`platform ps` lists the instances and what they wait for"))
        }
    }
}

/// The healthiest instance that runs.
fn healthiest(
    rows: &[InstanceRow],
    process: &ProcessName,
    before: Option<InstanceId>,
    gone: &[InstanceId],
) -> Option<InstanceId> {
    let health = |row: &&InstanceRow| {
        let state = row.report.as_ref().map(|report| report.state);
        // A running instance that is not ready is better than none: it is what people want to look into.
        (
            state.is_some_and(InstanceState::is_ready) && !row.terminating && !row.node_offline,
            !row.terminating,
            before == Some(row.id),
        )
    };
    let runs = |row: &&InstanceRow| {
        let report = row.report.as_ref();
        report.is_some_and(|report| report.state.is_running())
    };
    let of_process = rows
        .iter()
        .filter(|row| row.runs.is_app() && *process == row.process && !gone.contains(&row.id));
    let healthiest = of_process.filter(runs).max_by_key(health);
    healthiest.map(|row| row.id)
}

/// Writes the output of the command; returns its exit code.
async fn print_output(mut reader: ExecReader<GuestFrame>) -> Result<u8, Failure> {
    let mut gives_signs = false;
    loop {
        // On a terminal that is the command's, a line begins where the one before ended.
        let silent = || crate::output::note(format_args!("{}\r", silence()));
        let Some(next) = unless_silent(gives_signs, reader.next(), silent).await else {
            let seconds = STREAM_LOST.as_secs();
            return Err(cut(&format!("nothing has come for {seconds} s")));
        };
        match next {
            Ok(Some(GuestFrame::ExecOutput { bytes, .. })) if bytes.is_empty() => {
                gives_signs = true;
            }
            Ok(Some(GuestFrame::ExecOutput { stream, bytes })) => match stream {
                Stream::Stderr => write(io::stderr(), &bytes)?,
                _ => write(io::stdout(), &bytes).map_err(OutputError)?,
            },
            Ok(Some(GuestFrame::ExecExited(exit))) => return Ok(exit.exit_code),
            Ok(Some(GuestFrame::ExecFailed { reason })) => {
                return Err(Failure::new(crate::output::one_line(&reason)));
            }
            Ok(Some(_)) => return Err(Failure::new("the stream has what does not belong there")),
            Ok(None) => return Err(cut("it was closed")),
            Err(error) => return Err(cut(&error.to_string())),
        }
    }
}

/// That a stream stalls, for people.
pub(super) fn silence() -> String {
    format!(
        "nothing has come from the server for {} s: the connection to it stalls; waiting",
        STREAM_SILENCE.as_secs()
    )
}

fn cut(how: &str) -> Failure {
    Failure::new(format!(
        "the connection to the command broke before it ended ({how}), and the command was ended"
    ))
    .hint("was the server or the node's agent restarted, or your token revoked (`platform whoami` says)? the app itself goes on; run it again")
}

/// The command's bytes as they are: they are for this terminal, or this file.
fn write(mut to: impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Sends input, the terminal's sizes and signals. Returns only with what went wrong.
async fn send_input(
    mut writer: ExecWriter,
    keys: Option<mpsc::Receiver<Vec<u8>>>,
    terminal: Option<&Terminal>,
) -> Failure {
    let result: Result<std::convert::Infallible, Failure> = async {
        let mut keys = match keys {
            Some(keys) => Some(keys),
            None => {
                // Nothing will come: a command that reads must not wait. One on a terminal may.
                if terminal.is_none() {
                    writer.send(&UserFrame::input(Vec::new())).await?;
                }
                None
            }
        };
        let mut resized = signal(SignalKind::window_change())?;
        let mut asked_to_end = [
            ("SIGINT", signal(SignalKind::interrupt())?),
            ("SIGTERM", signal(SignalKind::terminate())?),
        ];
        let mut asked_before = false;
        loop {
            let [(int, interrupt), (term, terminate)] = &mut asked_to_end;
            let frame = tokio::select! {
                key = next(&mut keys) => match key {
                    Some(bytes) => UserFrame::input(bytes),
                    None => {
                        keys = None;
                        UserFrame::input(Vec::new())
                    }
                },
                () = came(&mut resized), if terminal.is_some() => match terminal.map(Terminal::size) {
                    Some(Ok((rows, columns))) => UserFrame::resize(rows, columns),
                    _ => continue,
                },
                name = async { tokio::select! {
                    () = came(interrupt) => *int,
                    () = came(terminate) => *term,
                } } => {
                    // The command decides what the first signal does; the second ends it.
                    if std::mem::replace(&mut asked_before, true) {
                        return Err(Failure::Ended(130));
                    }
                    UserFrame::signal(name)
                }
            };
            if writer.send(&frame).await.is_err() {
                // The other side says why.
                std::future::pending::<()>().await;
            }
        }
    }
    .await;
    match result {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

async fn next(keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

async fn came(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Standard input, a piece at a time, in a thread of its own: a read of a terminal cannot be
/// called off, so it must keep nothing waiting when the command has ended.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut bytes = vec![0; INPUT_BYTES];
        while let Ok(count @ 1..) = input.read(&mut bytes) {
            if sender.blocking_send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The terminal that the command gets the size of.
pub(super) struct Terminal(File);

impl Terminal {
    pub(super) fn open() -> Result<Self, Failure> {
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            return Ok(Self(File::from(io::stdin().as_fd().try_clone_to_owned()?)));
        }
        Err(
            Failure::new("-t needs a terminal, and standard input or output is none")
                .hint("leave -t out; -i alone sends input through a pipe"),
        )
    }

    /// Rows and columns.
    pub(super) fn size(&self) -> Result<(u16, u16), Failure> {
        let size = tcgetwinsize(&self.0).map_err(io::Error::from)?;
        Ok((size.ws_row, size.ws_col))
    }

    /// Passes every key on, until it is dropped.
    fn raw(&self) -> Result<Raw, Failure> {
        let before = tcgetattr(&self.0).map_err(io::Error::from)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&self.0, OptionalActions::Now, &raw).map_err(io::Error::from)?;
        Ok(Raw {
            terminal: self.0.try_clone()?,
            before,
        })
    }
}

/// A terminal in raw mode; as it was before, once dropped.
struct Raw {
    terminal: File,
    before: Termios,
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to be told.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::{Value, json};

    use super::*;

    fn row(id: &str, process: &str, report: &Value) -> InstanceRow {
        let report = report.as_object().map(|fields| {
            let mut report = json!({
                "id": id, "detail": "", "restarts": 0, "last_exit": null, "failure": null,
                "log_tail": [], "started_at": null,
            });
            report.as_object_mut().unwrap().extend(fields.clone());
            report
        });
        let row = json!({
            "id": id, "env": {"app": "shop", "env": "prod"}, "process": process, "release": 1, "node": "n1",
            "node_name": "box", "address": "fd00::1", "terminating": false, "created_at": 0, "report": report,
        });
        serde_json::from_value(row).unwrap()
    }

    #[test]
    fn case_an_instance_that_is_started_again_gets_nothing_while_another_is_healthy() {
        let ready = json!({"state": "running", "ready": true});
        let unready = json!({"state": "running", "ready": false});
        let starting = json!({"state": "starting", "ready": false});
        let web = "web".parse().unwrap();
        let choose = |rows: &[InstanceRow], before: &str, gone: &[&str]| {
            let gone: Vec<InstanceId> = gone.iter().map(|id| id.parse().unwrap()).collect();
            let chosen = healthiest(rows, &web, before.parse().ok(), &gone);
            chosen.map(|id| id.to_string()).unwrap_or_default()
        };
        let (first, second) = ("0000000a", "0000000b");
        let both = [row(first, "web", &ready), row(second, "web", &ready)];
        // It stays with the one it had.
        assert_eq!(choose(&both, first, &[]), first);
        assert_eq!(choose(&both, second, &[]), second);
        assert_eq!(choose(&both, first, &[first]), second);
        for state in [&starting, &unready, &Value::Null] {
            let rows = [row(first, "web", state), row(second, "web", &ready)];
            assert_eq!(choose(&rows, first, &[]), second, "{state}");
        }
        // One that is not ready is better than none, and one that does not run is none.
        let alone = [row(first, "web", &unready), row(second, "db", &ready)];
        assert_eq!(choose(&alone, second, &[]), first);
        let none = [row(first, "web", &starting)];
        assert_eq!(choose(&none, first, &[]), "");
        let mut leaves = [row(first, "web", &ready), row(second, "web", &ready)];
        leaves[0].terminating = true;
        assert_eq!(choose(&leaves, first, &[]), second);
    }
}

//! `platform run`: a command in a microVM of its own, of the env's release.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use api::user::{
    AttachQuery, InstanceRow, MAX_COMMAND_LIFETIME_MS, RunRequest, RunResponse, is_terminal_type,
};
use api_client::ApiClient;
use clap::Args;
use model::instance::InstanceState;
use model::{EnvKey, ProcessName};
use tokio::signal::unix::{SignalKind, signal};

use super::exec::{Terminal, converse};
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform run -- rails db:migrate                   a migration; its exit status is yours
  platform run --process worker -- sh                a shell, with all that a worker has
  platform run -- psql < dump.sql                    with this input
  platform run --detach -- /srv/report --month 11    `platform logs -i INSTANCE` has what it says

The microVM has the image, variables, secrets, user, network and resources of a process type of the
release that is wanted in the env; volumes and ports it has none. The image's Entrypoint stays before
the command. It runs once: it is never started again, whatever becomes of it. On a terminal it has a
terminal. It ends when the connection does, unless --detach. The exit status is the command's; 1 and a
message when it could not be run or its end is not known.";

/// Pause between two looks at an instance that is about to run.
const LOOK_PAUSE: Duration = Duration::from_millis(300);
/// The exit status of a command that was interrupted before it began.
const INTERRUPTED: u8 = 130;

/// Run a command in a microVM of its own
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The process type whose image, variables, secrets and resources it has [default: web, or the only one]
    #[arg(long, short, value_name = "PROCESS")]
    process: Option<ProcessName>,
    /// Do not wait for it: print the instance, and leave it running
    #[arg(long, short)]
    detach: bool,
    /// It is ended after so long, a week at most [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    timeout: Option<Duration>,
    /// Do not say where it runs
    #[arg(long, short)]
    quiet: bool,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let lifetime_ms = match arguments.timeout {
        None => None,
        Some(timeout) => match u64::try_from(timeout.as_millis()) {
            Ok(ms @ 1..=MAX_COMMAND_LIFETIME_MS) => Some(ms),
            _ => {
                return Err(Failure::new(
                    "--timeout is a week at most, and more than nothing",
                ));
            }
        },
    };
    let client = arguments.cluster.connect()?;
    let env = arguments.which.choose(&client).await?;
    let request = RunRequest {
        process: arguments.process,
        command: arguments.command,
        attached: !arguments.detach,
        lifetime_ms,
    };
    let made = client.run(&env, &request).await?;
    if arguments.detach {
        return match arguments.format.format {
            Format::Json => output::json(json_shapes::STARTED, &made),
            Format::Text => Ok(output::line(made.instance)?),
        };
    }
    let quiet = arguments.quiet;
    if !quiet {
        output::note(format_args!(
            "instance {} of {} {} on {}",
            made.instance, made.process, made.release, made.node_name
        ));
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let begun = tokio::select! {
        begun = begin(&client, &env, &made, quiet) => begun,
        _ = interrupt.recv() => Err(Failure::Ended(INTERRUPTED)),
        _ = terminate.recv() => Err(Failure::Ended(INTERRUPTED)),
    };
    drop((interrupt, terminate));
    let (stream, terminal) = match begun {
        Ok(begun) => begun,
        Err(failure) => {
            // One that nobody attaches to ends by itself, later.
            let _ = client.end_run(made.instance).await;
            return Err(failure);
        }
    };
    match converse(stream, terminal.as_ref(), true).await {
        Ok(0) => Ok(()),
        Ok(status) | Err(Failure::Ended(status)) => Err(Failure::Ended(status)),
        Err(failure) => Err(explain(&client, &env, &made, failure).await),
    }
}

/// Waits until the instance runs, and begins the command.
async fn begin(
    client: &ApiClient,
    env: &EnvKey,
    made: &RunResponse,
    quiet: bool,
) -> Result<(api_client::UserExec, Option<Terminal>), Failure> {
    wait_until_running(client, env, made, quiet).await?;
    let terminal = if io::stdin().is_terminal() && io::stdout().is_terminal() {
        Some(Terminal::open()?)
    } else {
        None
    };
    let size = terminal.as_ref().map(Terminal::size).transpose()?;
    let query = AttachQuery {
        rows: size.map(|(rows, _)| rows),
        columns: size.map(|(_, columns)| columns),
        terminal_type: size
            .and_then(|_| std::env::var("TERM").ok())
            .filter(|text| is_terminal_type(text)),
    };
    Ok((client.attach(made.instance, &query).await?, terminal))
}

async fn wait_until_running(
    client: &ApiClient,
    env: &EnvKey,
    made: &RunResponse,
    quiet: bool,
) -> Result<(), Failure> {
    let mut said = String::new();
    loop {
        let rows = client.instances(Some(env)).await?;
        let Some(row) = rows.into_iter().find(|row| row.id == made.instance) else {
            return Err(ended(client, made).await);
        };
        let state = row.report.as_ref().map(|report| report.state);
        if let Some(InstanceState::Running { .. }) = state
            && !row.terminating
        {
            return Ok(());
        }
        if row.terminating || matches!(state, Some(InstanceState::Failed | InstanceState::Stopped))
        {
            return Err(failed(made, &row));
        }
        let now = match &row.report {
            _ if row.node_offline => format!("{} is offline", row.node_name),
            None => "waiting for the node".to_owned(),
            Some(report) if report.detail.is_empty() => report.state.to_string(),
            Some(report) => format!("{}, {}", report.state, output::one_line(&report.detail)),
        };
        if !quiet && now != said {
            output::note(format_args!("instance {}: {now}", made.instance));
            said = now;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Why an instance that is still there does not run.
fn failed(made: &RunResponse, row: &InstanceRow) -> Failure {
    let report = row.report.as_ref();
    let why = match report.and_then(|report| report.failure.as_ref()) {
        Some(failure) => format!(": {}", output::one_line(failure)),
        None if row.terminating && crate::units::now() >= made.ends_at => {
            ": its --timeout, which counts from the call, was over before it did".to_owned()
        }
        None if row.terminating => ": it was ended".to_owned(),
        None => String::new(),
    };
    Failure::new(format!(
        "instance {} did not come to run the command{why}",
        row.id
    ))
}

/// Why an instance is gone.
async fn ended(client: &ApiClient, made: &RunResponse) -> Failure {
    let rows = client.ended_instances().await.unwrap_or_default();
    let how = rows
        .iter()
        .find(|row| row.id == made.instance)
        .map(api::user::EndedRow::how);
    let how = how.map_or_else(|| "it is gone".to_owned(), |how| output::one_line(&how));
    Failure::new(format!(
        "instance {} did not come to run the command: {how}",
        made.instance
    ))
}

/// The failure of a command's stream, with what is known of its node.
async fn explain(
    client: &ApiClient,
    env: &EnvKey,
    made: &RunResponse,
    failure: Failure,
) -> Failure {
    let rows = client.instances(Some(env)).await.unwrap_or_default();
    match rows.iter().find(|row| row.id == made.instance) {
        Some(row) if row.node_offline => Failure::new(format!(
            "{} is offline, and whether the command completed is not known: it is not run again",
            row.node_name
        ))
        .hint("`platform ps` shows the instance until its node is heard again"),
        _ => failure,
    }
}

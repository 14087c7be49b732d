//! `platform logs`: the log lines of instances.

mod records;

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use api::node::LogLine;
use api::user::LogsQuery;
use api_client::{ApiClient, ClientError, LogStream};
use clap::Args;
use futures_util::StreamExt as _;
use guest_protocol::Stream;
use model::{EnvKey, InstanceId, ProcessName, Timestamp};

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, note};
use crate::units::{parse_count, parse_moment, rfc3339};
use records::Joiner;

const EXAMPLES: &str = "\
Examples:
  platform logs -f                          everything, and what comes
  platform logs --process web --tail 20
  platform logs --instance 1f0c2b7a --since 10m
  platform logs --grep timeout -n 20        the last 20 of each instance that have this in them
  platform logs --since 2026-11-30T08:00:00Z --until 2026-11-30T08:05:00Z
  platform logs --process web --previous    what it said before it was started again, or ended
  platform logs --format json | jq .text    a JSON object per line

Lines of the past are in the order of time, whatever node and release they are of. Those of instances
that are gone are among them, each with how it ended: what ended within the last hour (or since
--since; with --until or --grep all that is kept), at most 5 of a process type where no time is named;
where nothing else is there, what ended last. `platform ps --ended` lists them, --instance shows any.

A node keeps the last 16 MiB of each instance, and those of what is gone for 7 days, at most 500
instances and 256 MiB of them, the oldest of the env with most going first. What was dropped is named.";

/// Colours that tell instances apart.
const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Yellow,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
];
const FAINT: Style = Style::new().dimmed();
/// Pause before the server is asked again after it could not be reached.
const RETRY: Duration = Duration::from_secs(1);
/// The rest of a line that came in pieces is waited for this long.
const REST_TIMEOUT: Duration = Duration::from_secs(2);

/// Print what instances wrote to standard output and standard error
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Go on with new lines until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only of this process type
    #[arg(long, short, value_name = "PROCESS")]
    process: Option<ProcessName>,
    /// Only of this instance (`platform ps` shows the ids, `platform ps --ended` those of what is gone)
    #[arg(long, short, value_name = "ID")]
    instance: Option<InstanceId>,
    /// At most this many lines of the past, for each instance [default: 100]
    #[arg(long, short = 'n', value_name = "LINES", value_parser = parse_count)]
    tail: Option<u32>,
    /// Only lines that are not older than this: `10m`, or a time of RFC 3339
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Only lines that are older than this: `10m`, or a time of RFC 3339
    #[arg(long, value_name = "TIME", value_parser = parse_moment, conflicts_with = "follow")]
    until: Option<Timestamp>,
    /// Only lines that have this text in them; it is no pattern, and large and small letters differ
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Only the lines of each instance from before it was last started again, and the last run of what is gone
    #[arg(long, conflicts_with = "follow")]
    previous: bool,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let env = arguments.which.choose(&client).await?;
    let mut query = LogsQuery {
        process: arguments.process,
        instance: arguments.instance,
        tail: arguments.tail,
        since: arguments.since,
        until: arguments.until,
        text: arguments.grep,
        follow: arguments.follow,
        previous: arguments.previous,
    };
    let mut lines = client.logs(&env, &query).await?;
    let mut printer = Printer {
        format: arguments.format.format,
        joiner: Joiner::default(),
        last: None,
    };
    loop {
        match printer.print_all(&mut lines).await? {
            Ended::Whole => {
                if query.follow {
                    // It ends with the instance that is asked for, and with what the user may do.
                    client.whoami().await?;
                }
                break;
            }
            Ended::Broken(error) if query.follow && error.is_transient() => {
                note(format!("{error}; waiting for the server"));
                if let Some(last) = printer.last {
                    query.since = Some(Timestamp(last.0 + 1));
                    query.tail = Some(u32::MAX);
                }
                lines = again(&client, &env, &query).await?;
                note("the server is back");
            }
            Ended::Broken(error) => return Err(error.into()),
        }
    }
    if printer.last.is_none() {
        note("no log lines");
    }
    Ok(())
}

/// The lines once more, as soon as the server is there again.
async fn again(
    client: &ApiClient,
    env: &EnvKey,
    query: &LogsQuery,
) -> Result<LogStream, ClientError> {
    loop {
        match client.logs(env, query).await {
            Err(error) if error.is_transient() => tokio::time::sleep(RETRY).await,
            answer => return answer,
        }
    }
}

/// How a stream of lines ended.
enum Ended {
    /// The server has sent all there is.
    Whole,
    Broken(ClientError),
}

/// Prints lines as they come.
struct Printer {
    format: Format,
    joiner: Joiner,
    /// The time of the last line.
    last: Option<Timestamp>,
}

impl Printer {
    async fn print_all(&mut self, lines: &mut LogStream) -> Result<Ended, Failure> {
        loop {
            let next = if self.joiner.is_waiting() {
                match tokio::time::timeout(REST_TIMEOUT, lines.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        let pieces = self.joiner.take();
                        self.print(&pieces)?;
                        continue;
                    }
                }
            } else {
                lines.next().await
            };
            match next {
                Some(Ok(line)) => {
                    self.last = self.last.max(Some(line.at));
                    let records = self.joiner.push(line);
                    self.print(&records)?;
                }
                end => {
                    let pieces = self.joiner.take();
                    self.print(&pieces)?;
                    return Ok(match end {
                        Some(Err(error)) => Ended::Broken(error),
                        _ => Ended::Whole,
                    });
                }
            }
        }
    }

    fn print(&self, records: &[LogLine]) -> Result<(), Failure> {
        for record in records {
            match self.format {
                Format::Text => output::line(text(record))?,
                Format::Json => output::json_line(json_shapes::LOG_LINES, record)?,
            }
        }
        Ok(())
    }
}

/// A line for people: when, who, what.
fn text(line: &LogLine) -> String {
    let colour = COLOURS[line.instance.0 as usize % COLOURS.len()].on_default();
    let mark = match line.stream {
        Stream::Stdout => "|",
        Stream::Stderr => "!",
        Stream::Platform => "#",
    };
    let goes_on = if line.partial { "…" } else { "" };
    format!(
        "{FAINT}{}{FAINT:#} {colour}{} {} {mark}{colour:#} {}{goes_on}",
        rfc3339(line.at),
        line.process,
        line.instance,
        display::coloured_line(&line.text),
    )
}

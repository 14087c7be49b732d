//! `platform logs`: the log lines of instances.

use std::io::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use api::node::LogLine;
use api::user::LogsQuery;
use clap::Args;
use futures_util::StreamExt as _;
use guest_protocol::Stream;
use model::{InstanceId, ProcessName, Timestamp};

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::output::{Format, FormatArguments};
use crate::units::{self, parse_duration, rfc3339};

const EXAMPLES: &str = "\
Examples:
  platform logs -f                          everything, and what comes
  platform logs --process web --tail 20
  platform logs --instance 1f0c2b7a --since 10m
  platform logs --process web --previous    what it said before it was started again
  platform logs --format json | jq .text    a JSON object per line";

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
    /// Only of this instance (`platform ps` shows the ids)
    #[arg(long, short, value_name = "ID")]
    instance: Option<InstanceId>,
    /// At most this many lines of the past, for each instance [default: 100]
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<u32>,
    /// Only lines that are not older than this: `10m`
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only the lines of each instance from before it was last started again
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
    let query = LogsQuery {
        process: arguments.process,
        instance: arguments.instance,
        tail: arguments.tail,
        since: arguments.since.map(ago),
        follow: arguments.follow,
        previous: arguments.previous,
    };
    let mut lines = client.logs(&env, &query).await?;
    let mut out = anstream::stdout();
    while let Some(line) = lines.next().await {
        let line = line?;
        match arguments.format.format {
            Format::Text => writeln!(out, "{}", text(&line))?,
            Format::Json => writeln!(out, "{}", serde_json::to_string(&line)?)?,
        }
    }
    out.flush()?;
    Ok(())
}

fn ago(duration: Duration) -> Timestamp {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Timestamp(units::now().0.saturating_sub(millis))
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

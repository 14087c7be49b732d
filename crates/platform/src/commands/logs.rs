//! `platform logs`: what the instances say.

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
        harmless(&line.text),
    )
}

/// An app's text for a terminal: it may use colours, and nothing else that a terminal obeys.
fn harmless(text: &str) -> String {
    const RESET: &str = "\x1b[0m";
    if !text.chars().any(|c| c.is_control() && c != '\t') {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len() + RESET.len());
    let mut coloured = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(sequence) = colour_sequence(rest) {
            shown.push_str(sequence);
            coloured = true;
            rest = &rest[sequence.len()..];
            continue;
        }
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        shown.push_str(RESET);
    }
    shown
}

/// The sequence for colours (SGR) that the text begins with: `ESC [ digits ; … m`.
fn colour_sequence(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..]
        .starts_with('m')
        .then(|| &text[..=(2 + end)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_can_colour_its_lines_and_nothing_else() {
        assert_eq!(harmless("plain\ttext ü"), "plain\ttext ü");
        assert_eq!(harmless("\x1b[1;31mred"), "\x1b[1;31mred\x1b[0m");
        assert_eq!(harmless("\x1b[2Jgone"), r"\u{1b}[2Jgone");
        assert_eq!(harmless("a\rb\x1b]0;title\x07"), r"a\rb\u{1b}]0;title\u{7}");
        assert_eq!(harmless("\x1b[3"), r"\u{1b}[3");
    }
}

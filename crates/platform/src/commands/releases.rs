//! `platform releases` and `platform rollback`: what was deployed, and the way back.

use std::time::Duration;

use api::user::{ReleaseRow, RolloutPhase};
use clap::{Args, Subcommand};
use model::ReleaseNumber;

use super::deploy::follow;
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units::{self, parse_duration};

const RELEASES_EXAMPLES: &str = "\
Examples:
  platform releases
  platform releases show 3       its manifest, with every default filled in
  diff <(platform normalize | jq .) <(platform releases show 3 --format json | jq .manifest)

The last 50 are kept, and those that something runs or goes back to.";

/// Show the releases of an env, or one with its manifest
#[derive(Debug, Args)]
#[command(after_help = RELEASES_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct ReleasesArguments {
    #[command(subcommand)]
    command: Option<ReleasesCommand>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Debug, Subcommand)]
enum ReleasesCommand {
    /// Show a release with its manifest, for who may deploy
    Show(ShowArguments),
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Args)]
struct ShowArguments {
    /// The release: `3` or `v3`
    #[arg(value_name = "RELEASE", value_parser = parse_release)]
    release: ReleaseNumber,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

const EXAMPLES: &str = "\
Examples:
  platform rollback          to the release before, that was rolled out wholly
  platform rollback 3        to release 3
  platform rollback v3 --no-wait

Makes a new release with the older one's image, manifest and versions of secrets, and rolls it out. What
instances keep on volumes stays as it is. Ends as `platform deploy` does.";

/// Go back to an older release
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RollbackArguments {
    /// The release: `3` or `v3` [default: the one before, that was rolled out wholly]
    #[arg(value_name = "RELEASE", value_parser = parse_release)]
    release: Option<ReleaseNumber>,
    /// Return as soon as the release is recorded
    #[arg(long)]
    no_wait: bool,
    /// How long to watch
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

fn parse_release(text: &str) -> Result<ReleaseNumber, String> {
    let digits = text.strip_prefix('v').unwrap_or(text);
    match digits.parse() {
        Ok(number) if number > 0 => Ok(ReleaseNumber(number)),
        _ => Err("a release is a number: `3` or `v3`".to_owned()),
    }
}

pub(crate) async fn run(arguments: ReleasesArguments) -> Result<(), Failure> {
    match arguments.command {
        None => list(arguments.list).await,
        Some(ReleasesCommand::Show(arguments)) => show(arguments).await,
    }
}

/// The release as in the list, and its manifest as JSON below it.
async fn show(arguments: ShowArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let env = arguments.which.choose(&client).await?;
    let details = client.release(&env, arguments.release).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::RELEASE, &details);
    }
    table(std::slice::from_ref(&details.release)).print()?;
    output::line(format_args!("\n{:#}", details.manifest))?;
    Ok(())
}

async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let env = arguments.which.choose(&client).await?;
    let rows = client.releases(&env).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::RELEASES, &rows);
    }
    table(&rows).print()?;
    Ok(())
}

fn table(rows: &[ReleaseRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["RELEASE", "STATUS", "AGE", "BY", "IMAGE"]).wrapping_last();
    for row in rows {
        let by = row.by.as_ref().map_or("-", |by| by.as_str());
        let digest = || format!("…@{}", row.image_ref_digest);
        table.row([
            row.number.to_string(),
            status(row),
            units::age(now, row.created_at),
            by.to_owned(),
            row.image.clone().unwrap_or_else(digest),
        ]);
        if let Some(to) = row.rollback_to {
            table.note(&format!("the same as {to}"));
        }
        if let Some(reason) = &row.reason {
            table.note(reason);
        }
    }
    table
}

fn status(row: &ReleaseRow) -> String {
    let phase = match row.phase {
        None => "-",
        Some(RolloutPhase::Rolling) => "rolling",
        Some(RolloutPhase::Done) => "done",
        Some(RolloutPhase::Failed) => "failed",
        Some(RolloutPhase::Reverted) => "reverted",
        Some(RolloutPhase::Superseded) => "superseded",
    };
    match (row.serving, row.phase) {
        (true, Some(RolloutPhase::Done) | None) => "live".to_owned(),
        (true, Some(RolloutPhase::Rolling)) => phase.to_owned(),
        (true, _) => format!("live, {phase}"),
        (false, _) => phase.to_owned(),
    }
}

pub(crate) async fn rollback(arguments: RollbackArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let env = arguments.which.choose(&client).await?;
    let release = client.rollback(&env, arguments.release).await?;
    let json = arguments.format.format == Format::Json;
    if !json {
        note(format!("release {} of {env}", release.release));
    }
    let timeout = (!arguments.no_wait).then_some(arguments.timeout);
    follow(&client, &env, &release, timeout, json).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_named_by_its_number() {
        assert_eq!(parse_release("v12"), Ok(ReleaseNumber(12)));
        assert_eq!(parse_release("3"), Ok(ReleaseNumber(3)));
        for text in ["", "v", "0", "-1", "3.0", "vv3", "latest"] {
            assert!(parse_release(text).is_err(), "{text:?}");
        }
    }
}

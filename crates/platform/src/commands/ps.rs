//! `platform ps`: the instances.

use api::node::InstanceReport;
use api::user::InstanceRow;
use clap::Args;
use model::instance::InstanceState;

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform ps                        the app of ./platform.toml; without one, everything
  platform ps --app shop --env prod
  platform ps --all --format json";

/// List the instances: where they run and how they are
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Those of every app, also where there is a ./platform.toml
    #[arg(long, short, conflicts_with = "app")]
    all: bool,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let which = &arguments.which;
    let app = if arguments.all {
        None
    } else {
        which.app_at_hand()?
    };
    let mut rows = arguments.cluster.connect()?.instances(None).await?;
    rows.retain(|row| {
        app.as_ref().is_none_or(|app| row.env.app == *app)
            && which.env.as_ref().is_none_or(|env| row.env.env == *env)
    });
    rows.sort_by(|a, b| {
        (&a.env, &a.process, a.release, a.id).cmp(&(&b.env, &b.process, b.release, b.id))
    });
    if arguments.format.format == Format::Json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        note(match app {
            Some(app) => format!("no instances of {app}"),
            None => "no instances".to_owned(),
        });
        return Ok(());
    }
    table(&rows).print()?;
    Ok(())
}

pub(crate) fn table(rows: &[InstanceRow]) -> Table {
    let now = units::now();
    let mut table = Table::new([
        "INSTANCE", "APP", "ENV", "PROCESS", "RELEASE", "STATE", "UP", "RESTARTS", "NODE",
        "ADDRESS", "DETAIL",
    ]);
    for row in rows {
        let report = row.report.as_ref();
        table.row([
            row.id.to_string(),
            row.env.app.to_string(),
            row.env.env.to_string(),
            row.process.to_string(),
            row.release.to_string(),
            state(row),
            report
                .filter(|r| r.state == InstanceState::Running)
                .and_then(|r| r.started_at)
                .map_or_else(|| "-".to_owned(), |at| units::age(now, at)),
            report.map_or(0, |r| r.restarts).to_string(),
            row.node_name.clone(),
            row.address.to_string(),
            report.map_or_else(String::new, detail),
        ]);
    }
    table
}

fn state(row: &InstanceRow) -> String {
    match &row.report {
        _ if row.terminating => "terminating".to_owned(),
        None => "created".to_owned(),
        Some(r) if r.state == InstanceState::Running && r.ready => "healthy".to_owned(),
        Some(r) => r.state.to_string(),
    }
}

/// What it does or waits for, and what it failed of before.
fn detail(report: &InstanceReport) -> String {
    match (&report.failure, report.state) {
        (None, _) => report.detail.clone(),
        (Some(failure), InstanceState::Failed | InstanceState::Stopped) => failure.clone(),
        (Some(failure), _) if report.detail.is_empty() => format!("before: {failure}"),
        (Some(failure), _) if report.detail.contains(failure.as_str()) => report.detail.clone(),
        (Some(failure), _) => format!("{}; before: {failure}", report.detail),
    }
}

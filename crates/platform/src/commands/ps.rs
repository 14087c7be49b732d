//! `platform ps`: the instances.

use api::node::InstanceReport;
use api::user::{EndedRow, InstanceRow, InstancesQuery};
use api_client::ApiClient;
use clap::Args;
use model::ProcessName;
use model::instance::{ExitEvent, InstanceState, Runs};

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table};
use crate::units;
use crate::watch::{self, WatchArguments};

const EXAMPLES: &str = "\
Examples:
  platform ps                        the app of ./platform.toml; without one, everything
  platform ps --app shop --env prod
  platform ps --all --node n2 --watch   what a node runs, again and again
  platform ps --ended                what has ended of late, and how; `platform logs -i ID` has its log
  platform ps --all --format json";

/// List the instances: where they run and how they are
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Those of every app, also where there is a ./platform.toml
    #[arg(long, short, conflicts_with = "app")]
    all: bool,
    /// Those that have ended within the last days
    #[arg(long)]
    ended: bool,
    #[command(flatten)]
    which: EnvArguments,
    /// Those of this process type
    #[arg(long, short, value_name = "PROCESS")]
    process: Option<ProcessName>,
    /// Those on this node, by its id or its name
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Those that are healthy (`--ready`), or those that are not (`--ready=false`)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", conflicts_with = "ended")]
    ready: Option<bool>,
    #[command(flatten)]
    watch: WatchArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let scope = arguments.which.scope(arguments.all)?;
    let client = arguments.cluster.connect()?;
    let format = arguments.format.format;
    let query = InstancesQuery {
        app: scope.app.clone(),
        env: scope.env.clone(),
        process: arguments.process,
        node: arguments.node.as_ref().and_then(|node| node.parse().ok()),
        ready: arguments.ready,
        ..InstancesQuery::default()
    };
    // By its name: the rows have it, and who may not list nodes sees those.
    let name = arguments.node.filter(|_| query.node.is_none());
    let wanted = Wanted { query, name };
    if arguments.watch.watch {
        return if arguments.ended {
            watch::show(
                json_shapes::ENDED,
                format,
                async || ended(&client, &wanted).await,
                ended_table,
            )
            .await
        } else {
            watch::show(
                json_shapes::INSTANCES,
                format,
                async || running(&client, &wanted).await,
                table,
            )
            .await
        };
    }
    if arguments.ended {
        let rows = ended(&client, &wanted).await?;
        return if rows.is_empty() && format == Format::Text {
            scope.nothing(&client, "recently ended instances").await
        } else if format == Format::Json {
            output::json(json_shapes::ENDED, &rows)
        } else {
            Ok(ended_table(&rows).print()?)
        };
    }
    let rows = running(&client, &wanted).await?;
    if rows.is_empty() {
        scope.nothing(&client, "instances").await?;
    }
    match format {
        Format::Json => output::json(json_shapes::INSTANCES, &rows),
        Format::Text if rows.is_empty() => Ok(()),
        Format::Text => Ok(table(&rows).print()?),
    }
}

/// Which instances are shown.
struct Wanted {
    query: InstancesQuery,
    /// Of the node, where it is named by its name.
    name: Option<String>,
}

impl Wanted {
    fn is_on(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|wanted| wanted == name)
    }
}

async fn running(client: &ApiClient, wanted: &Wanted) -> Result<Vec<InstanceRow>, Failure> {
    let mut rows = client.find_instances(&wanted.query).await?;
    rows.retain(|row| wanted.is_on(&row.node_name));
    rows.sort_by(|a, b| {
        (&a.env, &a.process, a.release, a.id).cmp(&(&b.env, &b.process, b.release, b.id))
    });
    Ok(rows)
}

async fn ended(client: &ApiClient, wanted: &Wanted) -> Result<Vec<EndedRow>, Failure> {
    let mut rows = client.find_ended_instances(&wanted.query).await?;
    rows.retain(|row| wanted.is_on(&row.node_name));
    rows.sort_by(|a, b| {
        (&a.env, &a.process, a.ended_at, a.id).cmp(&(&b.env, &b.process, b.ended_at, b.id))
    });
    Ok(rows)
}

pub(crate) fn table(rows: &[InstanceRow]) -> Table {
    let now = units::now();
    let mut table = Table::new([
        "INSTANCE", "ENV", "PROCESS", "RELEASE", "STATE", "UP", "RESTARTS", "NODE",
    ]);
    for row in rows {
        let report = row.report.as_ref();
        table.row([
            row.id.to_string(),
            row.env.to_string(),
            match row.runs {
                Runs::App => row.process.to_string(),
                Runs::ReleaseCommand => format!("{} (release command)", row.process),
                Runs::Command { .. } => format!("{} (command)", row.process),
            },
            row.release.to_string(),
            state(row),
            match report.map(|r| r.state) {
                Some(InstanceState::Running {
                    started_at: Some(at),
                    ..
                }) => units::age(now, at),
                _ => "-".to_owned(),
            },
            report.map_or(0, |r| r.restarts).to_string(),
            row.node_name.clone(),
        ]);
        if row.node_offline {
            let last = match report {
                Some(report) if report.state.is_ready() => "healthy".to_owned(),
                Some(report) => report.state.to_string(),
                None => "not reported yet".to_owned(),
            };
            table.note(&format!("{} is offline; before: {last}", row.node_name));
        }
        table.note(&report.map_or_else(String::new, detail));
    }
    table
}

fn ended_table(rows: &[EndedRow]) -> Table {
    let now = units::now();
    let mut table = Table::new([
        "INSTANCE", "ENV", "PROCESS", "RELEASE", "ENDED", "RESTARTS", "NODE",
    ]);
    for row in rows {
        table.row([
            row.id.to_string(),
            row.env.to_string(),
            row.process.to_string(),
            row.release.to_string(),
            format!("{} ago", units::age(now, row.ended_at)),
            row.restarts.to_string(),
            row.node_name.clone(),
        ]);
        table.note(&row.how());
    }
    table
}

fn state(row: &InstanceRow) -> String {
    match &row.report {
        _ if row.terminating => "terminating".to_owned(),
        _ if row.node_offline => "unknown".to_owned(),
        None => "created".to_owned(),
        Some(r) if r.state.is_ready() => "healthy".to_owned(),
        // Ended by itself.
        Some(InstanceReport {
            state: InstanceState::Stopped,
            last_exit: Some(exit),
            ..
        }) => format!("exited ({})", exit.exit_code),
        Some(r) => r.state.to_string(),
    }
}

/// What it does or waits for, and what it ended or failed of before.
fn detail(report: &InstanceReport) -> String {
    let unusual = |exit: &&ExitEvent| exit.signal.is_some() || exit.oom_killed;
    let exit = match report.state {
        InstanceState::Backoff => report.last_exit.as_ref(),
        InstanceState::Stopped | InstanceState::Failed => report.last_exit.as_ref().filter(unusual),
        _ => None,
    };
    let mut parts = Vec::new();
    parts.extend(exit.map(|exit| format!("ended: {exit}")));
    if !report.detail.is_empty() {
        parts.push(report.detail.clone());
    }
    if let Some(failure) = &report.failure
        && !parts.iter().any(|part| part.contains(failure.as_str()))
    {
        parts.push(match report.state {
            InstanceState::Failed | InstanceState::Stopped => failure.clone(),
            _ => format!("before: {failure}"),
        });
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::expect;
    use serde_json::{Value, json};

    use super::*;

    fn report(state: &str, exit: Value, detail: &str, failure: Value) -> Value {
        json!({
            "id": "0000000a", "state": state, "ready": state == "running", "restarts": 12, "detail": detail,
            "last_exit": exit, "failure": failure, "log_tail": [], "started_at": null,
        })
    }

    fn exit(code: u8, signal: Option<u8>) -> Value {
        json!({
            "exit_code": code, "signal": signal, "oom_killed": false, "requested_stop": false, "at": 0,
        })
    }

    fn row(app: &str, process: &str, node: &str, report: Value) -> InstanceRow {
        serde_json::from_value(json!({
            "id": "0000000a",
            "env": { "app": app, "env": "prod" },
            "process": process,
            "release": 1234,
            "node": "n1",
            "node_name": node,
            "address": "fd12:3456:789a:1:0:1:1234:5678",
            "terminating": false,
            "created_at": 0,
            "report": report,
        }))
        .unwrap()
    }

    #[test]
    fn each_state_has_its_word_and_its_reason() {
        let rows = [
            row(
                "shop",
                "web",
                "box",
                report("running", Value::Null, "", Value::Null),
            ),
            row(
                "shop",
                "job",
                "box",
                report("stopped", exit(0, None), "", Value::Null),
            ),
            row(
                "shop",
                "job",
                "box",
                report("stopped", exit(137, Some(9)), "", Value::Null),
            ),
            row(
                "shop",
                "worker",
                "box",
                report("backoff", exit(3, None), "next start in 4 s", Value::Null),
            ),
            row(
                "shop",
                "worker",
                "box",
                report(
                    "failed",
                    exit(3, None),
                    "",
                    json!("given up after 10 restarts"),
                ),
            ),
            row("shop", "web", "box", Value::Null),
            // What was said of it last is not known to be so any more.
            InstanceRow {
                node_offline: true,
                ..row(
                    "shop",
                    "web",
                    "box",
                    report("running", Value::Null, "", Value::Null),
                )
            },
        ];
        let plain = table(&rows).render(Some(80));
        expect![[r"
            INSTANCE  ENV        PROCESS  RELEASE  STATE         UP  RESTARTS  NODE
            0000000a  shop/prod  web      v1234    healthy       -   12        box
            0000000a  shop/prod  job      v1234    exited (0)    -   12        box
            0000000a  shop/prod  job      v1234    exited (137)  -   12        box
                ended: killed by signal 9 (exit code 137)
            0000000a  shop/prod  worker   v1234    backoff       -   12        box
                ended: exit code 3; next start in 4 s
            0000000a  shop/prod  worker   v1234    failed        -   12        box
                given up after 10 restarts
            0000000a  shop/prod  web      v1234    created       -   0         box
            0000000a  shop/prod  web      v1234    unknown       -   12        box
                box is offline; before: healthy
        "]]
        .assert_eq(&anstream::adapter::strip_str(&plain).to_string());
    }

    #[test]
    fn case_a_table_fits_its_terminal_with_the_longest_names() {
        let long = "a-name-of-63-characters-which-is-the-longest-that-a-label-can-be";
        let long = &long[..63];
        let why = "the health check failed: connection refused ".repeat(5);
        let rows = [row(
            long,
            long,
            long,
            report(
                "backoff",
                exit(137, Some(9)),
                "next start in 4 s",
                json!(why),
            ),
        )];
        let ended: EndedRow = serde_json::from_value(json!({
            "id": "0000000a", "env": { "app": long, "env": long }, "process": long, "release": 1234,
            "node": "n1", "node_name": long, "created_at": 0, "ended_at": 0, "reason": why, "restarts": 10,
            "last_exit": exit(1, None), "failure": why,
        }))
        .unwrap();
        for width in [80, 100] {
            for table in [table(&rows), ended_table(std::slice::from_ref(&ended))] {
                output::fits(&table, width);
            }
        }
    }
}

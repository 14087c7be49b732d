//! `platform top`: CPU and memory that instances use, by their guests' stats.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use api::user::StatsRow;
use api_client::ApiClient;
use clap::Args;
use guest_protocol::GuestStats;
use model::InstanceId;

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table};
use crate::units::size;
use crate::watch::{self, CLEAR, Ends};

const EXAMPLES: &str = "\
Examples:
  platform top                     the app of ./platform.toml, again and again on a terminal; `q` ends it
  platform top --all --once        every instance, once
  platform top --format json       the counters, once";

/// Time between two looks; the CPU's share is over this time.
const INTERVAL: Duration = Duration::from_secs(2);

/// Show what instances use: CPU, memory, disk, network
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Those of every app, also where there is a ./platform.toml
    #[arg(long, short, conflicts_with = "app")]
    all: bool,
    /// Print one table and end; so it is where output is no terminal
    #[arg(long)]
    once: bool,
    /// Again and again, also where output is no terminal; with `--format json`, an array a line
    #[arg(long, short, conflicts_with = "once")]
    watch: bool,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let mut before = Look::at(&client, &arguments).await?;
    if before.rows.is_empty() {
        let scope = arguments.which.scope(arguments.all)?;
        scope.nothing(&client, "instances").await?;
    }
    if arguments.format.format == Format::Json {
        if arguments.watch {
            let look = async || Ok(Look::at(&client, &arguments).await?.rows);
            let none = |_: &[StatsRow]| Table::new([]);
            return watch::show(json_shapes::STATS, Format::Json, look, none).await;
        }
        return output::json(json_shapes::STATS, &before.rows);
    }
    if before.rows.is_empty() {
        return Ok(());
    }
    let on_terminal = std::io::stdout().is_terminal();
    let once = arguments.once || !on_terminal && !arguments.watch;
    // A share of the CPU needs two looks.
    let next = async || {
        tokio::time::sleep(INTERVAL).await;
        Look::at(&client, &arguments).await
    };
    if once {
        return Ok(table(&before, &next().await?).print()?);
    }
    let mut ends = Ends::listen()?;
    loop {
        let now = tokio::select! {
            now = next() => now?,
            () = ends.asked() => return Ok(()),
        };
        let table = table(&before, &now);
        if on_terminal {
            output::write(CLEAR)?;
        }
        table.print()?;
        before = now;
    }
}

/// The stats at one time.
struct Look {
    at: Instant,
    rows: Vec<StatsRow>,
}

impl Look {
    async fn at(client: &ApiClient, arguments: &Arguments) -> Result<Self, Failure> {
        let scope = arguments.which.scope(arguments.all)?;
        let mut rows = client.stats(scope.app.as_ref(), scope.env.as_ref()).await?;
        rows.sort_by(|a, b| (&a.env, &a.process, a.id).cmp(&(&b.env, &b.process, b.id)));
        Ok(Self {
            at: Instant::now(),
            rows,
        })
    }
}

fn table(before: &Look, now: &Look) -> Table {
    let elapsed = now.at.duration_since(before.at);
    let known: BTreeMap<InstanceId, &GuestStats> = before
        .rows
        .iter()
        .filter_map(|row| Some((row.id, row.stats.as_ref()?)))
        .collect();
    let mut table = Table::new([
        "INSTANCE", "ENV", "PROCESS", "CPU", "TIME", "MEMORY", "OF", "SCRATCH", "NET IN",
        "NET OUT", "PIDS", "NODE",
    ])
    .leaving_out_first(["TIME", "PIDS", "OF", "SCRATCH"]);
    for row in &now.rows {
        let mut cells = [
            row.id.to_string(),
            row.env.to_string(),
            row.process.to_string(),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
            if row.node_name.is_empty() {
                row.node.to_string()
            } else {
                row.node_name.clone()
            },
        ];
        let size = |bytes| size(bytes).replace(' ', "");
        if let Some(stats) = &row.stats {
            cells[3] = known
                .get(&row.id)
                .map_or_else(|| "-".to_owned(), |before| share(before, stats, elapsed));
            cells[4] = format!(
                "{:.1}s",
                Duration::from_micros(stats.cpu_micros).as_secs_f64()
            );
            cells[5] = size(stats.memory_bytes);
            cells[6] = size(stats.memory_total_bytes);
            cells[7] = size(stats.scratch_used_bytes);
            cells[8] = size(stats.network_bytes.0);
            cells[9] = size(stats.network_bytes.1);
            cells[10] = stats.processes.to_string();
        }
        table.row(cells);
        table.note(row.reason.as_deref().unwrap_or_default());
    }
    table
}

/// Of one core.
fn share(before: &GuestStats, now: &GuestStats, elapsed: Duration) -> String {
    // A guest that was started again counts from 0.
    let Some(used) = now.cpu_micros.checked_sub(before.cpu_micros) else {
        return "-".to_owned();
    };
    let percent = 100.0 * Duration::from_micros(used).as_secs_f64() / elapsed.as_secs_f64();
    format!("{percent:.0}%")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn case_a_table_fits_its_terminal_with_large_numbers_and_reasons() {
        let long = "a-name-of-63-characters-which-is-the-longest-that-a-label-can-be";
        let long = &long[..63];
        let stats = GuestStats {
            cpu_micros: 99_999_000_000,
            memory_bytes: 1023 << 20,
            memory_total_bytes: 1023 << 30,
            scratch_used_bytes: 1023 << 20,
            network_bytes: (1023 << 20, 1023 << 20),
            processes: 32_000,
            init_memory_bytes: 1 << 20,
            edge_connections: Some(10_000),
        };
        let row = |stats: Option<&GuestStats>, reason: Option<String>| -> StatsRow {
            serde_json::from_value(json!({
                "id": "0000000a", "env": { "app": long, "env": long }, "process": long, "node": "n1",
                "node_name": long, "stats": stats, "reason": reason,
            }))
            .unwrap()
        };
        let why = "instance 0000000a does not run at the moment ".repeat(3);
        let look = |at| Look {
            at,
            rows: vec![row(Some(&stats), None), row(None, Some(why.clone()))],
        };
        let before = Instant::now();
        let table = table(&look(before), &look(before + INTERVAL));
        for width in [80, 100] {
            output::fits(&table, width);
        }
    }

    #[test]
    fn the_share_is_of_one_core_and_over_the_time_between_two_looks() {
        let at = |cpu_micros| GuestStats {
            cpu_micros,
            ..GuestStats::default()
        };
        let elapsed = Duration::from_secs(2);
        assert_eq!(share(&at(1_000_000), &at(2_000_000), elapsed), "50%");
        assert_eq!(share(&at(0), &at(4_000_000), elapsed), "200%");
        assert_eq!(share(&at(9), &at(1), elapsed), "-");
    }
}

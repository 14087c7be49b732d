//! `platform top`: CPU and memory that instances use, by their guests' stats.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use api::user::StatsRow;
use api_client::ApiClient;
use clap::Args;
use guest_protocol::GuestStats;
use model::InstanceId;

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units::size;

const EXAMPLES: &str = "\
Examples:
  platform top                     the app of ./platform.toml, again and again on a terminal
  platform top --all --once        every instance, once
  platform top --format json       the counters, once";

/// Time between two looks; the CPU's share is over this time.
const INTERVAL: Duration = Duration::from_secs(2);
/// To the top left, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[J";

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
    if arguments.format.format == Format::Json {
        return output::json(&before.rows);
    }
    if before.rows.is_empty() {
        note("no instances");
        return Ok(());
    }
    let once = arguments.once || !std::io::stdout().is_terminal();
    loop {
        // A share of the CPU needs two looks.
        tokio::time::sleep(INTERVAL).await;
        let now = Look::at(&client, &arguments).await?;
        let table = table(&before, &now);
        if once {
            table.print()?;
            return Ok(());
        }
        let mut out = std::io::stdout();
        out.write_all(CLEAR.as_bytes())?;
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
        let which = &arguments.which;
        let app = if arguments.all {
            None
        } else {
            which.app_at_hand()?
        };
        let mut rows = client.stats(None).await?;
        rows.retain(|row| {
            app.as_ref().is_none_or(|app| row.env.app == *app)
                && which.env.as_ref().is_none_or(|env| row.env.env == *env)
        });
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
        "INSTANCE",
        "APP",
        "ENV",
        "PROCESS",
        "CPU",
        "CPU TIME",
        "MEMORY",
        "SCRATCH",
        "NET IN",
        "NET OUT",
        "PROCESSES",
        "NODE",
    ]);
    for row in &now.rows {
        let mut cells = [
            row.id.to_string(),
            row.env.app.to_string(),
            row.env.env.to_string(),
            row.process.to_string(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            row.node.to_string(),
        ];
        match &row.stats {
            Some(stats) => {
                cells[4] = known
                    .get(&row.id)
                    .map_or_else(|| "-".to_owned(), |before| share(before, stats, elapsed));
                cells[5] = format!(
                    "{:.1}s",
                    Duration::from_micros(stats.cpu_micros).as_secs_f64()
                );
                cells[6] = format!(
                    "{} of {}",
                    size(stats.memory_bytes),
                    size(stats.memory_total_bytes)
                );
                cells[7] = size(stats.scratch_used_bytes);
                cells[8] = size(stats.network_bytes.0);
                cells[9] = size(stats.network_bytes.1);
                cells[10] = stats.processes.to_string();
            }
            None => cells[4] = row.reason.clone().unwrap_or_else(|| "-".to_owned()),
        }
        table.row(cells);
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
    use super::*;

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

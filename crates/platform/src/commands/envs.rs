//! `platform envs`: the envs of the cluster.

use api::user::{EnvRow, RolloutPhase};
use clap::Args;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, Table, note};

/// List the envs: their release, processes and hosts
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  platform envs --format json | jq -r '.[].hosts[]'")]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let envs = arguments.cluster.connect()?.envs().await?;
    if arguments.format.format == Format::Json {
        return output::json(&envs);
    }
    if envs.is_empty() {
        note("nothing is deployed");
        return Ok(());
    }
    table(&envs).print()?;
    Ok(())
}

fn table(envs: &[EnvRow]) -> Table {
    let mut table = Table::new(["APP", "ENV", "RELEASE", "ROLLOUT", "READY", "HOSTS"]);
    for row in envs {
        table.row([
            row.env.app.to_string(),
            row.env.env.to_string(),
            row.release.to_string(),
            phase(row.phase).to_owned(),
            processes(row),
            row.hosts.join(" "),
        ]);
    }
    table
}

/// `web 2/2, worker 1/1`: ready of wanted.
pub(crate) fn processes(row: &EnvRow) -> String {
    let each: Vec<String> = row
        .processes
        .iter()
        .map(|(process, (wanted, ready))| format!("{process} {ready}/{wanted}"))
        .collect();
    each.join(", ")
}

fn phase(phase: RolloutPhase) -> &'static str {
    match phase {
        RolloutPhase::Rolling => "rolling",
        RolloutPhase::Done => "done",
        RolloutPhase::Failed => "failed",
        RolloutPhase::Reverted => "reverted",
        RolloutPhase::Superseded => "superseded",
    }
}

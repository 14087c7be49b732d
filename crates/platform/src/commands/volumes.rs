//! `platform volumes`: disks that outlive instances.

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use api::user::{VolumeRow, VolumesQuery};
use api_client::ApiClient;
use clap::{Args, Subcommand};
use model::{AppName, EnvKey, EnvName, VolumeId};

use crate::connection::{ClusterArguments, Scope};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units;

/// How long to wait until the disks are gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(300);

const EXAMPLES: &str = "\
Examples:
  platform volumes                      every volume, its node and its instance
  platform volumes --app shop
  platform volumes delete 1f2e3d4c      for good, with all that is in it; asks first

A volume is made when a process type with `[[processes.NAME.volumes]]` first gets an
instance, and stays on that instance's node. Neither `scale` nor `destroy` deletes it.";

/// List volumes, or delete them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only those of this app
    #[arg(long, value_name = "APP")]
    app: Option<AppName>,
    /// Only those of envs of this name
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Delete(DeleteArguments),
}

/// Delete volumes that no instance has, and all that is in them
#[derive(Debug, Args)]
struct DeleteArguments {
    /// Ids of the volumes, as `platform volumes` shows them
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<VolumeId>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(Command::Delete(arguments)) = arguments.command {
        return delete(arguments).await;
    }
    let client = arguments.cluster.connect()?;
    let scope = Scope {
        app: arguments.app,
        env: arguments.env,
    };
    let query = VolumesQuery {
        app: scope.app.clone(),
        env: scope.env.clone(),
        ..VolumesQuery::default()
    };
    let mut volumes = client.find_volumes(&query).await?;
    volumes.sort_by(|a, b| {
        (&a.env, &a.process, a.ordinal, &a.name).cmp(&(&b.env, &b.process, b.ordinal, &b.name))
    });
    if volumes.is_empty() {
        scope.nothing(&client, "volumes").await?;
        note("`[[processes.NAME.volumes]]` in a manifest makes some");
    }
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::VOLUMES, &volumes);
    }
    if volumes.is_empty() {
        return Ok(());
    }
    table(&volumes).print()?;
    Ok(())
}

fn table(volumes: &[VolumeRow]) -> Table {
    let now = units::now();
    let mut table = Table::new([
        "VOLUME", "ENV", "PROCESS", "NAME", "NUMBER", "SIZE", "NODE", "INSTANCE", "AGE",
    ])
    .leaving_out_first(["AGE", "NUMBER"]);
    for row in volumes {
        let instance = match row.instance {
            Some(id) => id.to_string(),
            None if row.deleting => "being deleted".to_owned(),
            None => "-".to_owned(),
        };
        table.row([
            row.id.to_string(),
            row.env.to_string(),
            row.process.to_string(),
            row.name.clone(),
            row.ordinal.to_string(),
            units::size(row.size_bytes),
            row.node_name.clone(),
            instance,
            units::age(now, row.created_at),
        ]);
    }
    table
}

async fn delete(arguments: DeleteArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let wanted: BTreeSet<_> = arguments.volumes.into_iter().collect();
    if !arguments.yes {
        let rows = client.volumes(None).await?;
        let named: Vec<_> = rows.iter().filter(|row| wanted.contains(&row.id)).collect();
        confirm(&named)?;
    }
    delete_and_wait(&client, &wanted).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::VOLUMES_DELETED, &wanted.into_iter().collect());
    }
    note(match wanted.len() {
        1 => "the volume is gone".to_owned(),
        several => format!("{several} volumes are gone"),
    });
    Ok(())
}

/// Deletes the volumes of an env of which no instance is left.
pub(crate) async fn delete_all_of(client: &ApiClient, env: &EnvKey) -> Result<usize, Failure> {
    let rows = client.volumes(Some(env)).await?;
    let all: BTreeSet<_> = rows.iter().map(|row| row.id).collect();
    delete_and_wait(client, &all).await?;
    Ok(all.len())
}

async fn delete_and_wait(client: &ApiClient, ids: &BTreeSet<VolumeId>) -> Result<(), Failure> {
    for id in ids {
        client.delete_volume(*id).await?;
    }
    let waits_until = Instant::now() + GONE_TIMEOUT;
    loop {
        let rows = client.volumes(None).await?;
        let left: Vec<_> = rows.iter().filter(|row| ids.contains(&row.id)).collect();
        let Some(first) = left.first() else {
            return Ok(());
        };
        if Instant::now() > waits_until {
            return Err(Failure::new(format!(
                "{} of {} volumes are still there after {} s",
                left.len(),
                ids.len(),
                GONE_TIMEOUT.as_secs()
            ))
            .hint(format!(
                "they go when their node, {}, is online again",
                first.node_name
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn confirm(rows: &[&VolumeRow]) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new("deleting volumes needs a yes")
            .hint("say it with --yes where nobody can be asked"));
    }
    let mut prompt = anstream::stderr();
    for row in rows {
        let (env, process, name, number) = (&row.env, &row.process, &row.name, row.ordinal);
        writeln!(prompt, "{} is {name} {number} of {env} {process}", row.id)?;
    }
    write!(prompt, "delete with all that is in it? Type yes: ")?;
    prompt.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::new("nothing was deleted"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn case_a_table_fits_its_terminal_with_the_longest_names() {
        let long = "a-name-of-63-characters-which-is-the-longest-that-a-label-can-be";
        let long = &long[..63];
        let row: VolumeRow = serde_json::from_value(json!({
            "id": "0000000a", "env": { "app": long, "env": long }, "process": long, "name": long, "ordinal": 12,
            "size_bytes": 1023_u64 << 30, "node": "n1", "node_name": long, "instance": null, "made": true,
            "deleting": true, "created_at": 0,
        }))
        .unwrap();
        for width in [80, 100] {
            output::fits(&table(std::slice::from_ref(&row)), width);
        }
    }
}

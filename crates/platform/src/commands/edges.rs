//! `platform edges`: the ingress proxies.

use api::enrollment::{EnrollRole, Member};
use api::user::EdgeRow;
use clap::{Args, Subcommand};

use super::members::{self, ApproveArguments, RevokeArguments, RotateKeysArguments};
use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::printed::Removed;
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform edges revoke e1        it gets no routes any more; those it knows it serves until it is stopped
  platform edges remove e1        for good, once it is revoked
  platform edges rotate-keys e1   it makes other keys";

/// List the edges, or approve, revoke, remove them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Approve(ApproveArguments),
    Revoke(RevokeArguments),
    RotateKeys(RotateKeysArguments),
    Remove(RemoveArguments),
}

/// Remove an edge that was revoked from the list for good
#[derive(Debug, Args)]
struct RemoveArguments {
    /// Id or name of the edge, as `platform edges` shows them
    #[arg(value_name = "EDGE")]
    edge: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let role = EnrollRole::Edge;
    match arguments.command {
        None => {}
        Some(Command::Approve(arguments)) => return members::approve(role, arguments).await,
        Some(Command::Revoke(arguments)) => return members::revoke(role, arguments).await,
        Some(Command::RotateKeys(arguments)) => return members::rotate_keys(role, arguments).await,
        Some(Command::Remove(arguments)) => return remove(arguments).await,
    }
    let edges = arguments.cluster.connect()?.edges().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::EDGES, &edges);
    }
    if edges.is_empty() {
        note("no edges; `platform tokens create --role edge` lets one join");
        return Ok(());
    }
    table(&edges).print()?;
    Ok(())
}

fn table(edges: &[EdgeRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["EDGE", "NAME", "REGION", "STATUS", "SEEN"]);
    for edge in edges {
        let status = match members::approval(edge.approval) {
            "" => "approved",
            approval => approval,
        };
        table.row([
            edge.id.to_string(),
            edge.name.clone(),
            edge.region.clone(),
            status.to_owned(),
            edge.seen_at
                .map_or_else(|| "-".to_owned(), |at| units::age(now, at)),
        ]);
        if let Some(key) = &edge.key {
            table.note(&format!("key: {key}"));
        }
    }
    table
}

async fn remove(arguments: RemoveArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let edge = members::find_edge(&client, &arguments.edge).await?;
    client.remove_edge(edge.id).await?;
    let removed = Removed::member(Member::Edge(edge.id), &edge.name);
    let sentence = format!("{} ({}) is removed", edge.name, edge.id);
    output::json_or_note(arguments.format, json_shapes::REMOVED, &removed, sentence)
}

//! `platform nodes`: the machines.

use api::user::NodeRow;
use clap::Args;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units;

/// List the nodes: what they have, how they run instances, whether those reach the internet, whether they are there
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  platform nodes --format json | jq '.[].driver'")]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let nodes = arguments.cluster.connect()?.nodes().await?;
    if arguments.format.format == Format::Json {
        return output::json(&nodes);
    }
    if nodes.is_empty() {
        note("no nodes; `platform tokens create --role node` lets one join");
        return Ok(());
    }
    table(&nodes).print()?;
    Ok(())
}

fn table(nodes: &[NodeRow]) -> Table {
    let now = units::now();
    let mut table = Table::new([
        "NODE",
        "NAME",
        "REGION",
        "STATUS",
        "SEEN",
        "INSTANCES",
        "CPUS",
        "MEMORY",
        "ARCH",
        "PREFIX",
        "DRIVER",
        "EGRESS",
    ]);
    for node in nodes {
        let (driver, egress) = (node.driver.as_ref(), node.egress.as_ref());
        table.row([
            node.id.to_string(),
            node.name.clone(),
            node.region.clone(),
            if node.online { "online" } else { "offline" }.to_owned(),
            node.seen_at
                .map_or_else(|| "never".to_owned(), |at| units::age(now, at)),
            node.instances.to_string(),
            node.hardware.cpus.to_string(),
            units::size(node.hardware.memory_bytes),
            node.hardware.arch.clone(),
            format!("{}/64", node.prefix),
            driver.map_or_else(|| "-".to_owned(), |d| format!("{} ({})", d.name, d.reason)),
            egress.map_or_else(
                || "-".to_owned(),
                |e| format!("{} ({})", if e.on { "yes" } else { "no" }, e.reason),
            ),
        ]);
    }
    table
}

//! `platform nodes`: the machines.

mod change;

use api::enrollment::EnrollRole;
use api::user::{NodeRow, NodesQuery, Scheduling, UnreadableRow};
use clap::{Args, Subcommand};
use model::{LabelKey, LabelValue, NameError};

use super::members::{self, ApproveArguments, RevokeArguments, RotateKeysArguments};
use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units;
use crate::watch::{self, WatchArguments};

const EXAMPLES: &str = "\
Examples:
  platform nodes --format json | jq '.[].driver'
  platform nodes -l disk=nvme --watch
  platform nodes drain n2         before its machine is taken down; ends when it has no instance
  platform nodes label n2 disk=nvme gpu-    for `labels` of a manifest; `gpu-` removes that one
  platform nodes set-org n2 shop  it runs the apps of org shop only; `--any` of all again
  platform nodes uncordon n2      it takes instances again
  platform nodes approve n2       lets it in, where its token asks for that; takes what hardware it claims
  platform nodes revoke n2        at once: a machine that is not yours any more
  platform nodes rotate-keys n2   it makes other keys
  platform nodes remove n2        for good, once it is empty
  platform nodes remove n2 --lost for good, with all that it had";

/// List the nodes, or label, cordon, drain, approve, revoke, remove them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Those in this region
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Those with this label, and with this value of it where one is named
    #[arg(long, short = 'l', value_name = "KEY[=VALUE]", value_parser = parse_label)]
    label: Option<WantedLabel>,
    /// Those that are online (`--online`), or those that are not (`--online=false`)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    online: Option<bool>,
    #[command(flatten)]
    watch: WatchArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Cordon(change::CordonArguments),
    Uncordon(change::UncordonArguments),
    Drain(change::DrainArguments),
    Label(change::LabelArguments),
    SetOrg(change::SetOrgArguments),
    StopUnknown(change::StopUnknownArguments),
    Approve(ApproveArguments),
    Revoke(RevokeArguments),
    RotateKeys(RotateKeysArguments),
    Remove(change::RemoveArguments),
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let role = EnrollRole::Node;
    match arguments.command {
        None => {}
        Some(Command::Cordon(arguments)) => return change::cordon(arguments).await,
        Some(Command::Uncordon(arguments)) => return change::uncordon(arguments).await,
        Some(Command::Drain(arguments)) => return change::drain(arguments).await,
        Some(Command::Label(arguments)) => return change::label(arguments).await,
        Some(Command::SetOrg(arguments)) => return change::set_org(arguments).await,
        Some(Command::StopUnknown(arguments)) => return change::stop_unknown(arguments).await,
        Some(Command::Approve(arguments)) => return members::approve(role, arguments).await,
        Some(Command::Revoke(arguments)) => return members::revoke(role, arguments).await,
        Some(Command::RotateKeys(arguments)) => return members::rotate_keys(role, arguments).await,
        Some(Command::Remove(arguments)) => return change::remove(arguments).await,
    }
    let client = arguments.cluster.connect()?;
    let WantedLabel { key, value } = arguments.label.unwrap_or_default();
    let query = NodesQuery {
        region: arguments.region,
        label: key,
        value,
        online: arguments.online,
        ..NodesQuery::default()
    };
    if arguments.watch.watch {
        let look = async || Ok(client.find_nodes(&query).await?);
        return watch::show(json_shapes::NODES, arguments.format.format, look, table).await;
    }
    let nodes = client.find_nodes(&query).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::NODES, &nodes);
    }
    if nodes.is_empty() {
        if query != NodesQuery::default() {
            note("no such nodes");
            return Ok(());
        }
        note("no nodes; `platform tokens create --role node` lets one join");
        return Ok(());
    }
    table(&nodes).print()?;
    Ok(())
}

/// A label that nodes are to have.
#[derive(Debug, Clone, Default)]
struct WantedLabel {
    key: Option<LabelKey>,
    value: Option<LabelValue>,
}

fn parse_label(text: &str) -> Result<WantedLabel, NameError> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.parse()?)),
        None => (text, None),
    };
    Ok(WantedLabel {
        key: Some(key.parse()?),
        value,
    })
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
        "DISK",
        "ARCH",
        "DRIVER",
        "EGRESS",
    ])
    .leaving_out_first(["ARCH", "REGION", "SEEN"]);
    for node in nodes {
        let (driver, egress) = (node.driver.as_ref(), node.egress.as_ref());
        table.row([
            node.id.to_string(),
            node.name.clone(),
            node.region.clone(),
            status(node),
            node.seen_at
                .map_or_else(|| "never".to_owned(), |at| units::age(now, at)),
            node.instances.to_string(),
            node.hardware.cpus.to_string(),
            units::size(node.hardware.memory_bytes).replace(' ', ""),
            node.hardware
                .disk
                .map_or_else(|| "-".to_owned(), |disk| size(disk.instances_bytes())),
            node.hardware.arch.clone(),
            driver.map_or_else(|| "-".to_owned(), |driver| driver.name.clone()),
            egress
                .map_or("-", |egress| if egress.on { "yes" } else { "no" })
                .to_owned(),
        ]);
        table.note(&memory_note(node));
        if let Some(disk) = disk_note(node) {
            table.note(&disk);
        }
        if !node.labels.is_empty() {
            let labels = node.labels.iter();
            let labels: Vec<_> = labels
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            table.note(&format!("labels: {}", labels.join(", ")));
        }
        if let Some(org) = &node.org {
            table.note(&format!("runs the apps of org {org} only"));
        }
        if let Some(driver) = driver {
            table.note(&format!("driver: {}", driver.reason));
        }
        if let Some(egress) = egress {
            table.note(&format!("egress: {}", egress.reason));
        }
        if let Some(key) = &node.key {
            table.note(&format!("key: {key}"));
        }
        if let Some(claimed) = claimed_note(node) {
            table.note(&claimed);
        }
        if let Some(record) = &node.unreadable {
            table.note(&format!("takes nothing: {record}"));
        }
        for unreadable in &node.unreadable_records {
            table.note(&unreadable_note(unreadable));
        }
        for warning in &node.warnings {
            table.note(&format!("warning: {warning}"));
        }
        for exceeded in &node.exceeded {
            table.note(&format!("left out of its report: {exceeded}"));
        }
        if !node.unknown_instances.is_empty() {
            let ids: Vec<_> = node
                .unknown_instances
                .iter()
                .map(ToString::to_string)
                .collect();
            table.note(&format!(
                "runs what the store does not know, as after a restore: {}; `platform nodes stop-unknown {}` ends them",
                ids.join(" "),
                node.id
            ));
        }
    }
    table
}

/// What a node says that it has beyond what was approved; absent where it does not.
fn claimed_note(node: &NodeRow) -> Option<String> {
    let claimed = node.claimed.as_ref()?;
    let mut more = Vec::new();
    let counts = &node.hardware;
    if claimed.memory_bytes > counts.memory_bytes {
        more.push(format!("{} memory", size(claimed.memory_bytes)));
    }
    if claimed.cpus > counts.cpus {
        more.push(format!("{} CPUs", claimed.cpus));
    }
    if claimed.arch != counts.arch {
        more.push(format!("architecture {}", claimed.arch));
    }
    let disks = claimed.disk.zip(counts.disk);
    if let Some((said, _)) = disks.filter(|(said, counts)| said.total_bytes > counts.total_bytes) {
        more.push(format!("{} disk", size(said.total_bytes)));
    }
    if more.is_empty() {
        more.push("less overhead of each instance".to_owned());
    }
    Some(format!(
        "claims more than was approved, which does not count: {}; `platform nodes approve {}` takes it",
        more.join(", "),
        node.id
    ))
}

fn status(node: &NodeRow) -> String {
    let approval = members::approval(node.approval);
    if !approval.is_empty() {
        return approval.to_owned();
    }
    let heard = match (node.online, node.not_heard_yet) {
        (true, _) => "online",
        (false, true) => "not heard yet",
        (false, false) => "offline",
    };
    let scheduling = match node.scheduling {
        Scheduling::Schedulable => "",
        Scheduling::Cordoned => ", cordoned",
        Scheduling::Draining { .. } if node.instances == 0 => ", drained",
        Scheduling::Draining { .. } => ", draining",
    };
    format!("{heard}{scheduling}")
}

/// A record that cannot be read, and what is counted for it.
fn unreadable_note(row: &UnreadableRow) -> String {
    let UnreadableRow {
        record,
        promised,
        assumed,
    } = row;
    let (whole, millis) = (promised.cpu_millis / 1000, promised.cpu_millis % 1000);
    let cores = format!("{whole}.{millis:03}");
    let cores = cores.trim_end_matches('0').trim_end_matches('.');
    let counted = [
        (promised.memory_bytes > 0).then(|| format!("{} of memory", size(promised.memory_bytes))),
        (promised.cpu_millis > 0).then(|| format!("{cores} CPU")),
        (promised.disk_bytes > 0).then(|| format!("{} of disk", size(promised.disk_bytes))),
    ];
    let counted: Vec<_> = counted.into_iter().flatten().collect();
    let why = if *assumed { ", part of it assumed" } else { "" };
    format!("{record}; counted as {}{why}", counted.join(", "))
}

fn size(bytes: u64) -> String {
    units::size(bytes).replace(' ', "")
}

/// What of the memory is promised, and what an instance costs.
fn memory_note(node: &NodeRow) -> String {
    let promised = node.promised.unwrap_or_default();
    format!(
        "memory: {} of {} promised; each instance costs {} beside its own",
        size(promised.memory_bytes),
        size(node.hardware.memory_bytes),
        size(node.hardware.instance_overhead().memory_bytes),
    )
}

/// What of the disk is promised, and what instances cannot have of it; absent from a node that does not say.
fn disk_note(node: &NodeRow) -> Option<String> {
    let disk = node.hardware.disk?;
    let promised = node.promised.unwrap_or_default();
    Some(format!(
        "disk: {} of {} promised; of {} in all, {} are reserved for the platform, {} for images, {} taken by others",
        size(promised.disk_bytes),
        size(disk.instances_bytes()),
        size(disk.total_bytes),
        size(disk.reserved_bytes),
        size(disk.images_bytes),
        size(disk.others_bytes),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn case_a_table_fits_its_terminal_with_sentences_in_it() {
        let why = "slirp4netns is not on the PATH, and the machine has no default route ".repeat(3);
        let row: NodeRow = serde_json::from_value(json!({
            "id": "n65535", "name": "a-name-of-a-machine-in-some-rack.example.com", "region": "eu-central-1",
            "hardware": { "arch": "amd64", "cpus": 256, "memory_bytes": 1_099_511_627_776_u64, "disk": {
                "total_bytes": 1_099_511_627_776_u64, "reserved_bytes": 10_737_418_240_u64,
                "images_bytes": 21_474_836_480_u64, "others_bytes": 123_456_789_u64 } },
            "promised": { "cpu_millis": 1, "memory_bytes": 1_099_511_627_775_u64, "disk_bytes": 1 },
            "labels": { "disk": "nvme", "example.com/gpu": "a100" }, "key": "SHA256:0123456789012345678901234567890123456789012",
            "claimed": { "arch": "arm64", "cpus": 512, "memory_bytes": 2_199_023_255_552_u64 },
            "driver": { "name": "firecracker", "reason": why }, "egress": { "on": false, "reason": why },
            "seen_at": 0, "online": true, "instances": 1000, "prefix": "fd12:3456:789a:1::",
            "unknown_instances": ["0000000a", "0000000b"],
            "unreadable_records": [{ "record": "the record of instance 0000000c cannot be read: its phase is `lost`",
                "promised": { "cpu_millis": 250, "memory_bytes": 1_073_741_824_u64, "disk_bytes": 10_737_418_240_u64 },
                "assumed": true }],
            "unreadable": "the record of node n65535 cannot be read: a node's hardware is damaged",
        }))
        .unwrap();
        for width in [80, 100] {
            output::fits(&table(std::slice::from_ref(&row)), width);
        }
        let wide = table(std::slice::from_ref(&row)).render(None);
        assert!(
            wide.contains(
                "runs what the store does not know, as after a restore: 0000000a 0000000b"
            ),
            "{wide}"
        );
        let unreadable = "instance 0000000c cannot be read: its phase is `lost`; counted as 1GiB of memory, 0.25 CPU, 10GiB of \
             disk, part of it assumed";
        assert!(wide.contains(unreadable), "{wide}");
        let node = "takes nothing: the record of node n65535 cannot be read";
        assert!(wide.contains(node), "{wide}");
    }
}

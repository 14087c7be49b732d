//! `platform network`: the overlay that joins the cluster's members (ADR 0004).

use std::collections::BTreeMap;

use api::enrollment::Member;
use api::member::{DEFAULT_OVERLAY_PORT, LinkReport};
use api::user::{NetworkMember, NetworkSettingsRequest, NetworkStatus};
use clap::{Args, Subcommand, ValueEnum};
use model::NodeId;
use overlay::topology::{HubRole, Mode};

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, Table, note};

const EXAMPLES: &str = "\
Examples:
  platform network                          mode, MTU, members, and what is not as it should be
  platform network set --mode hubs          beyond 50 members: each has two or three peers
  platform network set --mtu 1380           where the machines' network has an MTU of 1460
  platform nodes label n1 hub=preferred     n1 relays; hub=never keeps it from that
Settings are followed live: connections go on.";

/// Show the overlay that joins nodes and edges, or change its settings
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
    Set(SetArguments),
}

/// How members reach one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeName {
    /// Every member is every other's peer: well up to 50
    Mesh,
    /// Members peer with two or three hubs of their region, which relay
    Hubs,
}

/// Change how members reach one another, and the MTU; followed live
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct SetArguments {
    /// How members reach one another
    #[arg(long, value_enum, required_unless_present_any = ["local_mesh", "mtu"])]
    mode: Option<ModeName>,
    /// With hubs: in a region of up to so many members, those that are no hubs are peers of each other too
    #[arg(long, value_name = "MEMBERS")]
    local_mesh: Option<u16>,
    /// MTU of the overlay, the taps and the guests, in bytes: that of the machines' network without 80
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    #[command(flatten)]
    cluster: ClusterArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(Command::Set(arguments)) = arguments.command {
        return set(arguments).await;
    }
    let status = arguments.cluster.connect()?.network().await?;
    if arguments.format.format == Format::Json {
        return output::json(&status);
    }
    output::line(heading(&status))?;
    if !status.members.is_empty() {
        table(&status).print()?;
    }
    warn(&status);
    Ok(())
}

async fn set(arguments: SetArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let mode = match (arguments.mode, arguments.local_mesh) {
        (None, None) => None,
        (Some(ModeName::Mesh), _) => Some(Mode::Mesh),
        (Some(ModeName::Hubs), local_mesh) => Some(Mode::Hubs {
            local_mesh: local_mesh.unwrap_or(0),
        }),
        (None, Some(local_mesh)) => match client.network().await?.mode {
            Mode::Mesh => {
                return Err(
                    Failure::new("--local-mesh is of hubs, and the cluster is a mesh")
                        .hint("add `--mode hubs`"),
                );
            }
            Mode::Hubs { .. } => Some(Mode::Hubs { local_mesh }),
        },
    };
    let request = NetworkSettingsRequest {
        mode,
        mtu: arguments.mtu,
    };
    let status = client.set_network(&request).await?;
    output::line(heading(&status))?;
    warn(&status);
    Ok(())
}

fn heading(status: &NetworkStatus) -> String {
    let mode = match status.mode {
        Mode::Mesh => "mesh".to_owned(),
        Mode::Hubs { local_mesh: 0 } => "hubs".to_owned(),
        Mode::Hubs { local_mesh } => format!("hubs, mesh in regions of up to {local_mesh}"),
    };
    let (members, mtu, prefix) = (status.members.len(), status.mtu, status.prefix);
    format!("{mode}; MTU {mtu}; {prefix}/48; {members} members")
}

fn table(status: &NetworkStatus) -> Table {
    let names: BTreeMap<NodeId, &str> = (status.members.iter())
        .filter_map(|member| Some((member.number?, member.name.as_str())))
        .collect();
    let header = [
        "MEMBER",
        "NAME",
        "REGION",
        "ROLE",
        "ENDPOINT",
        "PEERS",
        "HANDSHAKES",
    ];
    let mut table = Table::new(header).leaving_out_first(["REGION", "NAME"]);
    for member in &status.members {
        let endpoint = member
            .endpoint
            .map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string());
        let nat = if member.is_behind_nat { " (NAT)" } else { "" };
        table.row([
            id(member),
            member.name.clone(),
            member.region.clone(),
            role(member, &names),
            format!("{endpoint}{nat}"),
            member.peers.to_string(),
            handshakes(&member.links),
        ]);
    }
    table
}

/// A member's id, with its number where that is another.
fn id(member: &NetworkMember) -> String {
    match (member.member, member.number) {
        (Member::Edge(edge), Some(number)) => format!("{edge} ({number})"),
        (other, _) => other.to_string(),
    }
}

fn role(member: &NetworkMember, names: &BTreeMap<NodeId, &str>) -> String {
    if member.number.is_none() {
        return "not in it".to_owned();
    }
    if member.is_dead {
        return "hub, dead".to_owned();
    }
    match (member.is_hub, member.home) {
        (true, _) if member.role == HubRole::Preferred => "hub, preferred".to_owned(),
        (true, _) => "hub".to_owned(),
        (false, Some(home)) => {
            let name = names.get(&home).copied();
            format!(
                "by {}",
                name.map_or_else(|| home.to_string(), str::to_owned)
            )
        }
        (false, None) => "peer".to_owned(),
    }
}

/// How many of its peers a member had a handshake with, and how old the oldest is.
fn handshakes(links: &BTreeMap<NodeId, LinkReport>) -> String {
    if links.is_empty() {
        return "-".to_owned();
    }
    let ages: Vec<u64> = (links.values())
        .filter_map(|link| link.handshake_age_seconds)
        .collect();
    let oldest = ages
        .iter()
        .max()
        .map_or(String::new(), |age| format!(", oldest {age} s"));
    format!("{} of {}{oldest}", ages.len(), links.len())
}

fn warn(status: &NetworkStatus) {
    for warning in &status.warnings {
        note(format!("warning: {}", warning.message));
        note(format!("  hint: {}", warning.hint));
    }
    let is_small = status.members.len() < 2;
    if is_small && status.warnings.is_empty() {
        note(format!(
            "members reach each other by UDP port {DEFAULT_OVERLAY_PORT}, where `--overlay-port` names no other"
        ));
    }
}

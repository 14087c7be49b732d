//! `platform network`: the overlay that joins the cluster's members (ADR 0004).

mod doctor;

use std::collections::BTreeMap;

use api::enrollment::Member;
use api::member::{DEFAULT_OVERLAY_PORT, LinkReport};
use api::user::{NetworkMember, NetworkSettingsRequest, NetworkStatus};
use clap::{Args, Subcommand, ValueEnum};
use model::NodeId;
use overlay::private_networks::PrivateNetworks;
use overlay::topology::{HubRole, Mode};

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};

const EXAMPLES: &str = "\
Examples:
  platform network                          mode, MTU, members, and what is not as it should be
  platform network doctor                   measure every link, and say what is wrong with it
  platform network set --mode hubs          beyond 50 members: each has two or three peers
  platform network set --mtu 1380           where the machines' network has an MTU of 1460
  platform network set --private-networks 10.1.0.0/16    what egress `all` reaches beside the internet
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
    Doctor(doctor::Arguments),
}

/// How members reach one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeName {
    /// Every member is every other's peer: well up to 50
    Mesh,
    /// Members peer with two or three hubs of their region, which relay
    Hubs,
}

/// Change how members reach one another, the MTU, and the private networks of egress; followed live
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct SetArguments {
    /// How members reach one another
    #[arg(long, value_enum, required_unless_present_any = ["local_mesh", "mtu", "private_networks"])]
    mode: Option<ModeName>,
    /// With hubs: in a region of up to so many members, those that are no hubs are peers of each other too
    #[arg(long, value_name = "MEMBERS")]
    local_mesh: Option<u16>,
    /// MTU of the overlay, the taps and the guests, in bytes: that of the machines' network without 80
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Private networks that instances with egress `all` reach: `all` (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and 198.18.0.0/15), `none`, or some of these
    /// with commas between
    #[arg(long, value_name = "CIDR[,CIDR..]")]
    private_networks: Option<PrivateNetworks>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Set(arguments)) => return set(arguments).await,
        Some(Command::Doctor(arguments)) => return doctor::run(arguments).await,
        None => {}
    }
    let status = arguments.cluster.connect()?.network().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::NETWORK, &status);
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
        private_networks: arguments.private_networks,
    };
    let status = client.set_network(&request).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::NETWORK, &status);
    }
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
    let private = &status.private_networks;
    format!(
        "{mode}; MTU {mtu}; {prefix}/48; {members} members; private networks of egress: {private}"
    )
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
        // It has not applied the last change that concerns it, as far as is known.
        let behind = if member.is_behind { ", behind" } else { "" };
        let nat = if member.is_behind_nat { " (NAT)" } else { "" };
        table.row([
            id(member),
            member.name.clone(),
            member.region.clone(),
            format!("{}{behind}", role(member, &names)),
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
    if !status.warnings.is_empty() {
        note("`platform network doctor` measures every link, and says more");
    }
    let is_small = status.members.len() < 2;
    if is_small && status.warnings.is_empty() {
        note(format!(
            "members reach each other by UDP port {DEFAULT_OVERLAY_PORT}, where `--overlay-port` names no other"
        ));
    }
}

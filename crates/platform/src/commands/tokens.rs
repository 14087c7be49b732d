//! `platform tokens`: enrollment tokens, with which machines join.

use std::time::Duration;

use api::enrollment::EnrollRole;
use api::user::CreateTokenRequest;
use clap::{Args, Subcommand, ValueEnum};

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, note};
use crate::units::{parse_duration, rfc3339};

const EXAMPLES: &str = "\
Examples:
  platform tokens create --role node                    prints the token
  TOKEN=$(platform tokens create --role edge --ttl 1h)";

/// Make one-time tokens that let machines join
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(CreateArguments),
}

/// Make a token that lets one machine join, once
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CreateArguments {
    /// What the machine becomes
    #[arg(long, value_enum, default_value = "node")]
    role: Role,
    /// How long the token works, up to 24h
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = parse_duration)]
    ttl: Duration,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Node,
    Edge,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    let Command::Create(arguments) = command;
    let client = arguments.cluster.connect()?;
    let request = CreateTokenRequest {
        role: match arguments.role {
            Role::Node => EnrollRole::Node,
            Role::Edge => EnrollRole::Edge,
        },
        ttl_seconds: arguments.ttl.as_secs(),
    };
    let created = client.create_token(&request).await?;
    if arguments.format.format == Format::Json {
        return output::json(&created);
    }
    output::line(&created.token)?;
    note(format!(
        "works once, until {}: platform {} --server {} --token …",
        rfc3339(created.expires_at),
        created.role,
        client.server(),
    ));
    Ok(())
}

//! `platform registries`: the registries that the cluster is logged in to.

use std::io::Read as _;

use api::node::PullSecret;
use api::user::{RegistryLoginRequest, RegistryRow};
use clap::{Args, Subcommand};
use oci::parse_registry;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::printed::{Removed, RemovedKind};
use crate::registry_access::docker_login;
use crate::units;

/// Longest password or token that is read from standard input, in bytes.
const MAX_PASSWORD_BYTES: u64 = 16 << 10;

const EXAMPLES: &str = "\
Examples:
  platform registries                            where the cluster is logged in
  platform registries login ghcr.io              with what `docker login ghcr.io` left here
  platform registries login ghcr.io --username ci --password-stdin < token
  platform registries logout ghcr.io

The login is tried, then kept sealed by the server. The server uses it to resolve images, and
gives it to a node only when that node has to pull from there; nodes keep it in memory.";

/// Log the cluster in to registries, to deploy private images
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Login(LoginArguments),
    Logout(LogoutArguments),
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Log the cluster in to a registry
#[derive(Debug, Args)]
struct LoginArguments {
    /// The registry, as in image references: `ghcr.io`, `docker.io`, `registry.example.com:5000`
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// As whom [default: what `docker login` left on this machine]
    #[arg(long, short, value_name = "USER", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password, or an access token, from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Forget the cluster's login to a registry
#[derive(Debug, Args)]
struct LogoutArguments {
    /// The registry
    #[arg(value_name = "REGISTRY")]
    registry: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        None => list(arguments.list).await,
        Some(Command::Login(arguments)) => login(arguments).await,
        Some(Command::Logout(arguments)) => {
            let registry = parse_registry(&arguments.registry)?;
            let client = arguments.cluster.connect()?;
            client.registry_logout(&registry).await?;
            let sentence = format!("logged out of {registry}");
            let removed = Removed::new(RemovedKind::RegistryLogin, registry);
            output::json_or_note(arguments.format, json_shapes::REMOVED, &removed, sentence)
        }
    }
}

async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let registries = arguments.cluster.connect()?.registries().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::REGISTRIES, &registries);
    }
    if registries.is_empty() {
        note("the cluster is logged in nowhere: it pulls what everyone may");
        return Ok(());
    }
    Ok(table(&registries).print()?)
}

fn table(registries: &[RegistryRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["REGISTRY", "USER", "LOGGED IN BY", "AGE"]);
    for row in registries {
        table.row([
            row.registry.clone(),
            row.user.clone().unwrap_or_else(|| "(token)".to_owned()),
            row.by.clone(),
            units::age(now, row.at),
        ]);
    }
    table
}

async fn login(arguments: LoginArguments) -> Result<(), Failure> {
    let registry = parse_registry(&arguments.registry)?;
    let secret = match arguments.username {
        Some(user) => PullSecret::Basic {
            user,
            password: password_on_stdin()?,
        },
        None => docker_login(&registry).await?,
    };
    let request = RegistryLoginRequest { registry, secret };
    let row = arguments
        .cluster
        .connect()?
        .registry_login(&request)
        .await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::REGISTRY, &row);
    }
    let user = row.user.map_or_else(String::new, |user| {
        format!(" as {}", output::one_line(&user))
    });
    note(format!(
        "the cluster is logged in to {}{user}",
        row.registry
    ));
    Ok(())
}

/// Everything on standard input but the line feed at its end, as docker has it.
fn password_on_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_PASSWORD_BYTES)
        .read_to_string(&mut text)?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::new("there is no password on standard input"));
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_a_table_fits_its_terminal_with_long_names() {
        let row = RegistryRow {
            registry: "123456789012.dkr.ecr.eu-central-1.amazonaws.com".to_owned(),
            user: Some("a-robot-account-with-a-long-name@some-project.example".to_owned()),
            by: "a-token-of-somebody-who-administers-this".to_owned(),
            at: model::Timestamp(0),
        };
        for width in [80, 100] {
            output::fits(&table(std::slice::from_ref(&row)), width);
        }
    }
}

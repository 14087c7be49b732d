//! `platform tokens`: enrollment tokens, with which machines join.

use std::time::Duration;

use api::enrollment::{EnrollRole, Member};
use api::user::{CreateTokenRequest, CreateTokenResponse, TokenRow};
use clap::{Args, Subcommand, ValueEnum};
use model::OrgName;

use super::members;
use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::printed::{Removed, RemovedKind};
use crate::units::{self, parse_duration, rfc3339};

const EXAMPLES: &str = "\
Examples:
  platform tokens create                                prints the token, for one node
  platform tokens create --role edge --ttl 1h > token   `platform edge join --token-file token`
  platform tokens create --approve --region north       it waits for `platform nodes approve`
  platform tokens create --org shop                     for a node that runs the apps of that org only
  platform tokens create --replaces n2                  for the machine that takes the place of n2
  platform tokens create --cloud-init > user-data       for a machine that joins at its first boot
The token is shown once. It carries the server's URL and the fingerprint of the cluster's CA.";

/// Make one-time tokens that let machines join, list and revoke them
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(CreateArguments),
    List(ListArguments),
    Revoke(RevokeArguments),
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
    /// The region that the machine is in [default: what the machine says]
    #[arg(long)]
    region: Option<String>,
    /// The machine may do nothing before `platform nodes approve`
    #[arg(long)]
    approve: bool,
    /// The machine takes the place of this node or edge, with its name, number and labels: it was wiped, or another one stands there
    #[arg(long, value_name = "MEMBER")]
    replaces: Option<String>,
    /// The node runs the apps of this org only [default: of every org]
    #[arg(long, value_name = "ORG")]
    org: Option<OrgName>,
    /// The server's URL that the token carries, or those of several with commas between [default: what the server advertises]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Print a cloud-init user data file with the token in place of the token
    #[arg(long, conflicts_with = "format")]
    cloud_init: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// List the tokens, those that were used too
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Revoke a token: it lets nobody in any more
#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// Id of the token, as `platform tokens list` shows it
    #[arg(value_name = "TOKEN", value_parser = parse_id)]
    token: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// The id of a token: hexadecimal digits.
fn parse_id(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("the id of a token is hexadecimal digits, such as 4f1c0a9b27de; `platform tokens list` shows them".to_owned())
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Node,
    Edge,
}

impl From<Role> for EnrollRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Node => Self::Node,
            Role::Edge => Self::Edge,
        }
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(arguments) => create(arguments).await,
        Command::List(arguments) => list(arguments).await,
        Command::Revoke(arguments) => revoke(arguments).await,
    }
}

async fn create(arguments: CreateArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let role = EnrollRole::from(arguments.role);
    let replaces = match &arguments.replaces {
        Some(wanted) => Some(members::find(&client, role, wanted).await?.0),
        None => None,
    };
    let request = CreateTokenRequest {
        region: arguments.region,
        approve: arguments.approve,
        replaces,
        org: arguments.org,
        server: arguments.server,
        ..CreateTokenRequest::new(role, arguments.ttl.as_secs())
    };
    let created = client.create_token(&request).await?;
    if arguments.cloud_init {
        output::write(&cloud_init(&created))?;
    } else if arguments.format.format == Format::Json {
        return output::json(json_shapes::TOKEN, &created);
    } else {
        output::line(&created.token)?;
    }
    note(format!(
        "works once, until {}; on the new machine: platform {role} join --token-file - (it asks for the token)",
        rfc3339(created.expires_at),
    ));
    Ok(())
}

/// What cloud-init does at a machine's first boot. The token is in a file of root's, in memory, and on no command line.
fn cloud_init(created: &CreateTokenResponse) -> String {
    const FILE: &str = "/run/platform-token";
    let (token, role) = (&created.token, created.role);
    format!(
        "#cloud-config\n\
         # Lets one machine join as {role}, once, until {}. The package has to be in its image, or installed before.\n\
         write_files:\n\
         - path: {FILE}\n\
         \x20 permissions: '0600'\n\
         \x20 content: |\n\
         \x20   {token}\n\
         runcmd:\n\
         - [platform, {role}, join, --token-file, {FILE}]\n\
         - [rm, -f, {FILE}]\n",
        rfc3339(created.expires_at),
    )
}

async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let tokens = arguments.cluster.connect()?.tokens().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::TOKENS, &tokens);
    }
    if tokens.is_empty() {
        note("no tokens; `platform tokens create` makes one");
        return Ok(());
    }
    table(&tokens).print()?;
    Ok(())
}

fn table(tokens: &[TokenRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["TOKEN", "ROLE", "STATUS", "REGION", "BY", "EXPIRES"]);
    for token in tokens {
        let status = match token.used_by {
            Some(member) => format!("used by {member}"),
            None if token.expires_at <= now => "expired".to_owned(),
            None => "good".to_owned(),
        };
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        table.row([
            token.id.clone(),
            token.role.to_string(),
            status,
            or_dash(&token.region),
            or_dash(&token.by),
            rfc3339(token.expires_at),
        ]);
        if token.approve {
            table.note("the machine waits for approval once it has joined");
        }
        if let Some(org) = &token.org {
            table.note(&format!("the node runs the apps of org {org} only"));
        }
        if let Some(replaced) = token.replaces {
            let kind = match replaced {
                Member::Node(_) => "node",
                Member::Edge(_) => "edge",
            };
            table.note(&format!("the machine takes the place of {kind} {replaced}"));
        }
    }
    table
}

async fn revoke(arguments: RevokeArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    client.revoke_token(&arguments.token).await?;
    let sentence = format!("token {} lets nobody in any more", arguments.token);
    let removed = Removed::new(RemovedKind::EnrollmentToken, arguments.token);
    output::json_or_note(arguments.format, json_shapes::REMOVED, &removed, sentence)
}

#[cfg(test)]
mod tests {
    use api::enrollment::EnrollRole;
    use model::Timestamp;

    use super::*;

    #[test]
    fn an_id_that_is_none_is_refused_before_anybody_is_asked() {
        assert_eq!(parse_id("4F1C0a9b27de"), Ok("4f1c0a9b27de".to_owned()));
        for wrong in ["", " ", "pt2_secret", "../nodes", "4f1c 0a9b"] {
            assert!(parse_id(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_cloud_init_file_has_the_token_on_no_command_line() {
        let text = cloud_init(&CreateTokenResponse {
            token: "pt2_secret".to_owned(),
            id: "00".to_owned(),
            role: EnrollRole::Edge,
            expires_at: Timestamp(0),
        });
        assert!(text.starts_with("#cloud-config\n"), "{text}");
        let lines: Vec<_> = text.lines().filter(|line| line.contains("pt2_")).collect();
        assert_eq!(lines, ["    pt2_secret"], "{text}");
        assert!(text.contains("- [platform, edge, join, --token-file, /run/platform-token]\n"));
    }
}

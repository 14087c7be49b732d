//! `platform users`: who may do what, and the tokens that let them in.

use std::time::Duration;

use api::user::{CreateUserTokenRequest, GrantRequest, Grants, Role, UserRow, UserTokenRow};
use api_client::ApiClient;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use model::{OrgName, UserName};

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::printed::{Removed, RemovedKind};
use crate::units::{self, parse_duration, rfc3339};

const EXAMPLES: &str = "\
Examples:
  platform users                                         who has which roles
  platform users grant ann --role deployer --org shop    ann is made with the first role
  platform users grant root --role admin                 in the whole cluster
  platform users revoke ann --org shop                   and gone with the last
  platform users tokens create --user ann --ttl 90d      prints a token, for `platform login`
  platform users tokens create --user ci --org shop --role deployer
  platform users tokens revoke 5a0c1d2e3f40

Roles: a viewer sees everything; a deployer deploys, sets secrets and runs commands too; an admin
destroys envs and deletes volumes too, and says who may do what. A role without an org is one in
the whole cluster, its nodes and its network.";

/// Show users and their roles; give and take roles and tokens
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
    /// Give a user a role, in an org or in the whole cluster
    Grant(GrantArguments),
    /// Take a user's role, in an org or in the whole cluster
    Revoke(RevokeArguments),
    /// Remove a user, with all roles and tokens
    Remove(RemoveArguments),
    Tokens(TokensArguments),
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Args)]
struct GrantArguments {
    /// The user: a name as `ann`, `ci` or `ann@example.com`
    #[arg(value_name = "USER")]
    user: UserName,
    /// What the user may
    #[arg(long, value_name = "ROLE", value_parser = role())]
    role: Role,
    /// Where [default: the whole cluster]
    #[arg(long, value_name = "ORG")]
    org: Option<OrgName>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Args)]
struct RevokeArguments {
    /// The user
    #[arg(value_name = "USER")]
    user: UserName,
    /// Where [default: the whole cluster]
    #[arg(long, value_name = "ORG")]
    org: Option<OrgName>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Args)]
struct RemoveArguments {
    /// The user
    #[arg(value_name = "USER")]
    user: UserName,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Show the tokens that let users in; make and revoke them
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct TokensArguments {
    #[command(subcommand)]
    command: Option<TokensCommand>,
    /// Only this user's
    #[arg(long, value_name = "USER")]
    user: Option<UserName>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Debug, Subcommand)]
enum TokensCommand {
    /// Make a token; it is shown once
    Create(CreateTokenArguments),
    /// Revoke a token: it lets nobody in any more
    Revoke(RevokeTokenArguments),
}

#[derive(Debug, Args)]
struct CreateTokenArguments {
    /// The user whom it lets in [default: you]
    #[arg(long, value_name = "USER")]
    user: Option<UserName>,
    /// The org in which it lets in, and nowhere else [default: wherever the user may]
    #[arg(long, value_name = "ORG")]
    org: Option<OrgName>,
    /// What it opens at most [default: all that the user may]
    #[arg(long, value_name = "ROLE", value_parser = role())]
    role: Option<Role>,
    /// How long it works, as in 12h or 90d [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Args)]
struct RevokeTokenArguments {
    /// Its id, as `platform users tokens` shows it
    #[arg(value_name = "TOKEN", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    token: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Reads a role, of those that `--help` and shells name.
fn role() -> impl TypedValueParser<Value = Role> {
    let roles = [Role::Viewer, Role::Deployer, Role::Admin];
    PossibleValuesParser::new(roles.map(Role::as_str)).try_map(|name| name.parse::<Role>())
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        None => list(arguments.list).await,
        Some(Command::Grant(arguments)) => grant(arguments).await,
        Some(Command::Revoke(arguments)) => revoke(arguments).await,
        Some(Command::Remove(arguments)) => {
            let RemoveArguments {
                user,
                cluster,
                format,
            } = arguments;
            cluster.connect()?.remove_user(&user).await?;
            let sentence = format!("{user} is gone, with every token");
            let removed = Removed::new(RemovedKind::User, user.as_str());
            output::json_or_note(format, json_shapes::REMOVED, &removed, sentence)
        }
        Some(Command::Tokens(arguments)) => tokens(arguments).await,
    }
}

async fn grant(arguments: GrantArguments) -> Result<(), Failure> {
    let GrantArguments { user, role, .. } = arguments;
    let client = arguments.cluster.connect()?;
    let place = place(arguments.org.as_ref());
    let request = GrantRequest {
        org: arguments.org,
        role: Some(role),
    };
    client.grant(&user, &request).await?;
    if arguments.format.format == Format::Json {
        let row = find(&client, &user)
            .await?
            .ok_or_else(|| Failure::new(format!("{user} has the role, and is gone already")))?;
        return output::json(json_shapes::USER, &row);
    }
    note(format!("{user} has the role {role} in {place}"));
    Ok(())
}

async fn revoke(arguments: RevokeArguments) -> Result<(), Failure> {
    let user = arguments.user;
    let client = arguments.cluster.connect()?;
    let place = place(arguments.org.as_ref());
    let request = GrantRequest {
        org: arguments.org,
        role: None,
    };
    client.grant(&user, &request).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::USER_LEFT, &find(&client, &user).await?);
    }
    note(format!("{user} has no role in {place} any more"));
    Ok(())
}

/// The user as the list has it; absent: it has no such user.
async fn find(client: &ApiClient, user: &UserName) -> Result<Option<UserRow>, Failure> {
    let mut users = client.users().await?.into_iter();
    Ok(users.find(|row| row.name == *user))
}

fn place(org: Option<&OrgName>) -> String {
    org.map_or_else(|| "the cluster".to_owned(), |org| format!("org {org}"))
}

async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let users = arguments.cluster.connect()?.users().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::USERS, &users);
    }
    users_table(&users).print()?;
    Ok(())
}

fn users_table(users: &[UserRow]) -> Table {
    let mut table = Table::new(["USER", "ROLES", "TOKENS", "CREATED"]);
    for user in users {
        table.row([
            user.name.to_string(),
            roles(&user.grants),
            user.tokens.to_string(),
            rfc3339(user.created_at),
        ]);
    }
    table
}

/// `admin`, `deployer of shop, viewer of bank`.
pub(crate) fn roles(grants: &Grants) -> String {
    let cluster = grants.cluster.map(|role| format!("{role} of the cluster"));
    let orgs = grants
        .orgs
        .iter()
        .map(|(org, role)| format!("{role} of {org}"));
    let all: Vec<_> = cluster.into_iter().chain(orgs).collect();
    if all.is_empty() {
        return "none".to_owned();
    }
    all.join(", ")
}

async fn tokens(arguments: TokensArguments) -> Result<(), Failure> {
    match arguments.command {
        None => list_tokens(arguments.list, arguments.user).await,
        Some(TokensCommand::Create(arguments)) => create_token(arguments).await,
        Some(TokensCommand::Revoke(arguments)) => {
            let RevokeTokenArguments {
                token,
                cluster,
                format,
            } = arguments;
            cluster.connect()?.revoke_user_token(&token).await?;
            let sentence = format!("token {token} lets nobody in any more");
            let removed = Removed::new(RemovedKind::UserToken, token);
            output::json_or_note(format, json_shapes::REMOVED, &removed, sentence)
        }
    }
}

async fn list_tokens(arguments: ListArguments, user: Option<UserName>) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let mut tokens = client.user_tokens(user.as_ref()).await?;
    // The server has those of a user in the order of their ids.
    tokens.sort_by(|a, b| (&a.user, a.created_at, &a.id).cmp(&(&b.user, b.created_at, &b.id)));
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::USER_TOKENS, &tokens);
    }
    if tokens.is_empty() {
        note("no tokens; `platform users tokens create` makes one");
        return Ok(());
    }
    tokens_table(&tokens).print()?;
    Ok(())
}

fn tokens_table(tokens: &[UserTokenRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["TOKEN", "USER", "OPENS", "EXPIRES", "USED", "BY"]);
    for token in tokens {
        let role = token.role.map_or("all", Role::as_str);
        let opens = match &token.org {
            Some(org) => format!("{role} in {org}"),
            None => role.to_owned(),
        };
        let expires = match token.expires_at {
            None => "never".to_owned(),
            Some(at) if at <= now => format!("expired {}", rfc3339(at)),
            Some(at) => rfc3339(at),
        };
        table.row([
            token.id.clone(),
            token.user.to_string(),
            opens,
            expires,
            token.used_at.map_or_else(|| "-".to_owned(), rfc3339),
            token.by.as_ref().map_or("-", UserName::as_str).to_owned(),
        ]);
        if !token.note.is_empty() {
            table.note(&token.note);
        }
    }
    table
}

async fn create_token(arguments: CreateTokenArguments) -> Result<(), Failure> {
    let request = CreateUserTokenRequest {
        user: arguments.user,
        org: arguments.org,
        role: arguments.role,
        ttl_seconds: arguments.ttl.map(|ttl| ttl.as_secs()),
        note: arguments.note,
    };
    let made = arguments
        .cluster
        .connect()?
        .create_user_token(&request)
        .await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::USER_TOKEN, &made);
    }
    output::line(&made.token)?;
    let until = made.expires_at.map_or_else(
        || "until it is revoked".to_owned(),
        |at| format!("until {}", rfc3339(at)),
    );
    note(format!(
        "lets {} in {until}; shown this once. On {}'s machine: platform login (it asks for the token)",
        made.user, made.user
    ));
    Ok(())
}

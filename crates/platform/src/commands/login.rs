//! `platform login`, `platform whoami` and `platform contexts`: which clusters this user knows.

use api::user::WhoAmI;
use api_client::{ApiClient, ClientConfig};
use blocking_work::blocking;
use clap::{Args, Subcommand};
use identity::{UserToken, pinned_root};

use super::users::roles;
use crate::connection::ClusterArguments;
use crate::contexts::{ContextName, Contexts, no_such_context};
use crate::failure::Failure;
use crate::join_token::SecretFile;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::printed::{ContextRow, LoggedIn, Removed, RemovedKind};
use crate::units::rfc3339;

const EXAMPLES: &str = "\
Examples:
  platform login                                    asks for the token of `platform users tokens create`
  platform login work --token-file token            keeps the cluster as `work`
  platform login --config client.json home          a server's own client.json, as `home`

The token says where the cluster is and by what it is known; no other server is believed.";

/// Keep a cluster and a token, for the commands from now on
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoginArguments {
    /// What to call the cluster here
    #[arg(value_name = "CONTEXT", default_value = "default")]
    context: ContextName,
    /// File with the token, `-` for standard input [default: asks]
    #[arg(long, value_name = "FILE", default_value = "-")]
    token_file: SecretFile,
    /// A client configuration to keep, in place of a token
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    config: Option<std::path::PathBuf>,
    #[command(flatten)]
    format: FormatArguments,
}

/// Show who you are in the cluster, and what your token opens
#[derive(Debug, Args)]
pub(crate) struct WhoAmIArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

const CONTEXT_EXAMPLES: &str = "\
Examples:
  platform contexts                     which clusters are known here, and which one commands are for
  platform contexts use work
  platform ps --context home            one command for another one
  platform contexts remove home";

/// Show the clusters that are known here, and choose the one that commands are for
#[derive(Debug, Args)]
#[command(after_help = CONTEXT_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct ContextsArguments {
    #[command(subcommand)]
    command: Option<ContextsCommand>,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Subcommand)]
enum ContextsCommand {
    /// Commands are for this one from now on
    Use(OneContext),
    /// Forget a cluster and the token for it; the token works on
    Remove(OneContext),
}

#[derive(Debug, Args)]
struct OneContext {
    /// Its name
    #[arg(value_name = "CONTEXT")]
    context: ContextName,
    #[command(flatten)]
    format: FormatArguments,
}

fn contexts() -> Result<Contexts, Failure> {
    Contexts::of_user().ok_or_else(|| {
        Failure::new("there is no place for contexts: neither HOME nor XDG_CONFIG_HOME is set")
    })
}

pub(crate) async fn login(arguments: LoginArguments) -> Result<(), Failure> {
    let contexts = contexts()?;
    let LoginArguments {
        context,
        token_file,
        config,
        format,
    } = arguments;
    let (config, who) = match config {
        Some(path) => {
            let config = blocking(move || ClientConfig::load(&path)).await?;
            let who = ApiClient::user(&config)?.whoami().await?;
            (config, who)
        }
        None => with_token(&token_file).await?,
    };
    let (kept, name) = (config.clone(), context.clone());
    blocking(move || {
        contexts
            .save(&name, &kept)
            .and_then(|()| contexts.choose(&name))
    })
    .await?;
    let (server, user) = (config.server, who.user);
    let sentence = format!(
        "{user} at {server}, kept as {context}; commands are for it from now on ({})",
        roles(&who.grants)
    );
    let kept = LoggedIn {
        context: ContextRow {
            name: context.to_string(),
            server: Some(server),
            current: true,
        },
        user,
        grants: who.grants,
    };
    output::json_or_note(format, json_shapes::LOGGED_IN, &kept, sentence)
}

/// The configuration that a token makes, once the cluster has taken it.
async fn with_token(file: &SecretFile) -> Result<(ClientConfig, WhoAmI), Failure> {
    let text = file.read("the token").await?;
    let token: UserToken = text.parse().map_err(|error| {
        Failure::from(anyhow::Error::new(error)).hint("`platform users tokens create` prints one")
    })?;
    let cluster = token.cluster.clone().ok_or_else(|| {
        Failure::new("the token does not say where its cluster is").hint(
            "make one with `platform users tokens create`, or name a client.json with --config",
        )
    })?;
    let secret = token.bare().to_string();
    let verifier = pinned_root(cluster.ca_fingerprint);
    let client = ApiClient::first_user(&cluster.server, verifier, secret.clone())?;
    let who = client.whoami().await?;
    let config = ClientConfig {
        server: cluster.server,
        token: secret,
        ca_pem: who.ca_pem.clone(),
    };
    Ok((config, who))
}

pub(crate) async fn whoami(arguments: WhoAmIArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let who = client.whoami().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::WHO_AM_I, &who);
    }
    output::line(format!("{} at {}", who.user, client.server()))?;
    output::line(format!("roles: {}", roles(&who.grants)))?;
    let until = who.expires_at.map_or_else(
        || "works until it is revoked".to_owned(),
        |at| format!("works until {}", rfc3339(at)),
    );
    output::line(format!("token: {}, {until}", who.token))?;
    Ok(())
}

pub(crate) fn run_contexts(arguments: ContextsArguments) -> Result<(), Failure> {
    let contexts = contexts()?;
    match arguments.command {
        None => list(&contexts, arguments.format.format),
        Some(ContextsCommand::Use(OneContext { context, format })) => {
            if !contexts.known_names()?.contains(&context) {
                return Err(no_such_context(&context));
            }
            contexts.choose(&context)?;
            let sentence = format!("commands are for {context} from now on");
            let row = row(&contexts, &context, Some(&context));
            output::json_or_note(format, json_shapes::CONTEXT, &row, sentence)
        }
        Some(ContextsCommand::Remove(OneContext { context, format })) => {
            if !contexts.remove(&context)? {
                return Err(no_such_context(&context));
            }
            let sentence =
                format!("{context} is forgotten; its token works on until it is revoked");
            let removed = Removed::new(RemovedKind::Context, context.to_string());
            output::json_or_note(format, json_shapes::REMOVED, &removed, sentence)?;
            if contexts.current()?.as_ref() == Some(&context) {
                note(
                    "it was the one that is chosen: choose another with `platform contexts use`, commands are refused until then",
                );
            }
            Ok(())
        }
    }
}

/// A context as the list has it.
fn row(contexts: &Contexts, name: &ContextName, current: Option<&ContextName>) -> ContextRow {
    ContextRow {
        name: name.to_string(),
        server: ClientConfig::load(&contexts.file(name))
            .ok()
            .map(|config| config.server),
        current: current == Some(name),
    }
}

fn list(contexts: &Contexts, format: Format) -> Result<(), Failure> {
    let current = contexts.current()?;
    let rows: Vec<_> = (contexts.known_names()?.iter())
        .map(|name| row(contexts, name, current.as_ref()))
        .collect();
    if format == Format::Json {
        return output::json(json_shapes::CONTEXTS, &rows);
    }
    if rows.is_empty() {
        note("no contexts; `platform login` makes one");
        return Ok(());
    }
    let mut table = Table::new(["CURRENT", "CONTEXT", "SERVER"]);
    for row in rows {
        table.row([
            if row.current { "*" } else { "" }.to_owned(),
            row.name,
            row.server.unwrap_or_else(|| "(damaged)".to_owned()),
        ]);
    }
    table.print()?;
    Ok(())
}

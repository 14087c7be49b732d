//! `platform edge`: the ingress proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use edge_proxy::{EdgeError, EdgeOptions};
use membership::JoinError;

use super::joining;
use crate::failure::Failure;
use crate::join_token::TokenArguments;
use crate::logging::LogArguments;
use crate::notify;
use crate::output::note;
use crate::role_options::{self, KeptEdgeOptions, KeptOptions as _};
use crate::service::{self, Start};

pub(super) const DATA_DIR: &str = "/var/lib/platform/edge";
/// Where an edge listens that was given nothing else.
pub(super) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

const EXAMPLES: &str = "\
Examples:
  platform edge join --token-file token --listen '[::]:80'
                                            once: joins, and starts platform-edge.service
  platform edge                             the proxy in this terminal
`platform tokens create --role edge` makes the token; it works once. The edge goes on
with the routes it knows while the server is offline.";

const JOIN_EXAMPLES: &str = "\
Examples:
  platform edge join --token-file token --listen '[::]:80'
  platform edge join --token-file -     and paste the token
`platform tokens create --role edge` makes the token. What else is given is kept: the service starts without flags.
Run again with options, it keeps them for the next start.";

/// Run an ingress proxy, HTTP to the instances by host name, or join a cluster
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Join(JoinArguments),
}

#[derive(Debug, Args)]
struct RunArguments {
    /// Where clients connect, HTTP [default: what `join` was given, else 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The server's URL, or those of several with commas between; remembered once the edge joined
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    #[command(flatten)]
    token: TokenArguments,
    /// Name of the edge in the cluster [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// The region this machine is in
    #[arg(long, default_value = "local")]
    region: String,
    /// Where its identity and the last routes are kept
    #[arg(long, value_name = "FOLDER", default_value = DATA_DIR)]
    data_dir: PathBuf,
    #[command(flatten)]
    log: LogArguments,
}

/// Join a cluster with this machine as an edge, and start it with the machine
#[derive(Debug, Args)]
#[command(after_help = JOIN_EXAMPLES)]
struct JoinArguments {
    #[command(flatten)]
    run: RunArguments,
    /// Join anew: the cluster does not know this machine any more
    #[arg(long)]
    again: bool,
    /// Do not start the edge
    #[arg(long)]
    no_start: bool,
}

impl RunArguments {
    fn kept(&self) -> KeptEdgeOptions {
        KeptEdgeOptions {
            listen: self.listen,
        }
    }

    async fn options(self, kept: KeptEdgeOptions) -> Result<EdgeOptions, Failure> {
        Ok(EdgeOptions {
            data_dir: self.data_dir,
            listen: kept.listen.unwrap_or(LISTEN),
            server: self.server,
            token: self.token.read().await?,
            name: self.name.unwrap_or_else(super::node::host_name),
            region: self.region,
        })
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Join(arguments)) => join(arguments).await,
        None => serve(arguments.run).await,
    }
}

async fn serve(arguments: RunArguments) -> Result<(), Failure> {
    arguments.log.start()?;
    let kept = role_options::or_kept(arguments.kept(), &arguments.data_dir).await?;
    let options = arguments.options(kept).await?;
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    let listener = match notify::kept_listener(options.listen) {
        Some(kept) => tokio::net::TcpListener::from_std(kept)?,
        None => {
            let listener = edge_proxy::listen(options.listen).await?;
            notify::keep_listener(&listener);
            listener
        }
    };
    notify::ready();
    Ok(edge_proxy::serve(options, listener, shutdown).await?)
}

async fn join(arguments: JoinArguments) -> Result<(), Failure> {
    let JoinArguments {
        run,
        again,
        no_start,
    } = arguments;
    run.log.start()?;
    service::close_to_others();
    let data_dir = run.data_dir.clone();
    if again {
        membership::leave(&data_dir).await?;
    }
    let given = run.kept();
    if let Some(member) = super::node::membership(&data_dir).await? {
        note(format!(
            "this machine is {} ({}) already",
            member.member, member.name
        ));
        let kept: KeptEdgeOptions = role_options::load(&data_dir).await?.unwrap_or_default();
        let changed = given.or(kept.clone());
        if changed != kept {
            role_options::keep(&data_dir, &changed).await?;
            service::note_changed("edge");
        }
    } else {
        // Before the token is spent, as of a node.
        role_options::keep(&data_dir, &given).await?;
        let options = run.options(given).await?;
        let unreached = |error: &EdgeError| match error {
            EdgeError::Join(JoinError::Enroll(error)) => joining::pause_after(error),
            _ => None,
        };
        let joined = joining::patiently(|| edge_proxy::join(&options), unreached).await?;
        joining::print(&joined)?;
    }
    service::start(Start {
        role: "edge",
        data_dir: &data_dir,
        unit_data_dir: Path::new(DATA_DIR),
        by_hand: no_start,
    })
    .await
}

//! `platform edge`: the ingress proxy.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use edge_proxy::EdgeOptions;

use crate::failure::Failure;
use crate::logging::LogArguments;

const EXAMPLES: &str = "\
Examples:
  platform edge --server https://cp.example.com:7400 --token \"$TOKEN\" --listen '[::]:80'
                                                                        the first time
  platform edge --listen '[::]:80'                                      from then on
`platform tokens create --role edge` makes the token; it works once. The edge goes on
with the routes it knows while the server is offline.";

/// Run an ingress proxy: HTTP to the instances, by host name
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where clients connect, HTTP
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The server's URL, or those of several with commas between; remembered once the edge joined
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The one-time token of `platform tokens create --role edge`; needed once
    #[arg(long, env = "PLATFORM_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Name of the edge in the cluster [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// The region this machine is in
    #[arg(long, default_value = "local")]
    region: String,
    /// Where its identity and the last routes are kept
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/platform/edge")]
    data_dir: PathBuf,
    #[command(flatten)]
    log: LogArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    arguments.log.start()?;
    let options = EdgeOptions {
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        server: arguments.server,
        // A variable that is set to nothing counts as absent.
        token: arguments.token.filter(|token| !token.is_empty()),
        name: arguments.name.unwrap_or_else(super::node::host_name),
        region: arguments.region,
    };
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    Ok(edge_proxy::run(options, shutdown).await?)
}

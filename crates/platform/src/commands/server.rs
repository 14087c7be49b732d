//! `platform server`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use control_plane::ServerOptions;

use crate::failure::Failure;
use crate::logging::LogArguments;
use crate::registry_access::RegistryArguments;

const EXAMPLES: &str = "\
Examples:
  platform server                                          for this machine alone
  platform server --listen '[::]:7400' --name cp.example.com
                                                           for other machines, too
The first start makes the cluster: its CA, its address range and the first admin's
`client.json` in the data folder. `platform tokens create` then lets nodes and edges in.";

/// Run the control plane: API, planner and store
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where to listen, HTTPS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Where its state is kept
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/lib/platform/server"
    )]
    data_dir: PathBuf,
    /// The store [default: sqlite:<data folder>/platform.db]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Another name or address by which this server is reached, for its certificate; repeatable
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// The URL that `client.json` names [default: made of the listen address]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    #[command(flatten)]
    registries: RegistryArguments,
    #[command(flatten)]
    log: LogArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    arguments.log.start()?;
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    let options = ServerOptions {
        listen: arguments.listen,
        store: arguments.store,
        data_dir: arguments.data_dir,
        names: arguments.names,
        advertise: arguments.advertise,
        insecure_registries: arguments.registries.insecure(),
        registry_mirrors: arguments.registries.mirrors(),
        ready: None,
    };
    Ok(control_plane::run(options, shutdown).await?)
}

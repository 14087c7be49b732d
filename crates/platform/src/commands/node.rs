//! `platform node`: the agent of a machine that runs instances.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use node_agent::{DownOptions, NodeOptions};

use crate::failure::Failure;
use crate::logging::LogArguments;
use crate::output::note;
use crate::registry_access::RegistryArguments;
use crate::units::parse_size;

pub(crate) const DATA_DIR: &str = "/var/lib/platform/node";
pub(crate) const RUN_DIR: &str = "/run/platform";
/// Where a package puts the guest's kernel and initramfs.
const PACKAGED_GUEST: &str = "/usr/lib/platform/guest";

const EXAMPLES: &str = "\
Examples:
  platform node --server https://cp.example.com:7400 --token \"$TOKEN\"     the first time
  platform node                                                           from then on
  platform node down                                                      before it leaves
`platform tokens create --role node` makes the token; it works once. The microVMs go on
when the agent ends; `node down` ends them.";

/// Run the agent of this machine, or take the machine's node down
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
    Down(DownArguments),
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The server's URL, or those of several with commas between; remembered once the node joined
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The one-time token of `platform tokens create --role node`; needed once
    #[arg(long, env = "PLATFORM_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Name of the node in the cluster [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// The region this machine is in
    #[arg(long, default_value = "local")]
    region: String,
    /// Memory that instances may use, such as 6GiB [default: most of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Disk that cached images may take, such as 50GiB [default: a fifth of the disk, at most 20GiB]. What
    /// instances run from and the last releases stay also where they take more
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    image_cache: Option<u64>,
    #[command(flatten)]
    registries: RegistryArguments,
    /// Folder with the guest's kernel and initramfs [default: `guest` beside the folder of this
    /// program, else /usr/lib/platform/guest]
    #[arg(long, value_name = "FOLDER")]
    guest: Option<PathBuf>,
    #[command(flatten)]
    folders: Folders,
    #[command(flatten)]
    log: LogArguments,
}

#[derive(Debug, Args)]
struct Folders {
    /// Where identity, disks and logs are kept
    #[arg(long, value_name = "FOLDER", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// Where sockets and records of running microVMs are kept
    #[arg(long, value_name = "FOLDER", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

/// Stop every microVM of this machine's node and remove its network; run it when the agent ended
#[derive(Debug, Args)]
struct DownArguments {
    #[command(flatten)]
    folders: Folders,
    #[command(flatten)]
    log: LogArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Down(arguments)) => down(arguments).await,
        None => serve(arguments.run).await,
    }
}

async fn serve(arguments: RunArguments) -> Result<(), Failure> {
    arguments.log.start()?;
    let options = NodeOptions {
        data_dir: arguments.folders.data_dir,
        run_dir: arguments.folders.run_dir,
        server: arguments.server,
        // A variable that is set to nothing counts as absent.
        token: arguments.token.filter(|token| !token.is_empty()),
        name: arguments.name.unwrap_or_else(host_name),
        region: arguments.region,
        guest_dir: arguments.guest.unwrap_or_else(default_guest),
        memory_bytes: arguments.memory,
        image_cache_bytes: arguments.image_cache,
        insecure_registries: arguments.registries.insecure(),
        registry_mirrors: arguments.registries.mirrors(),
    };
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    Ok(node_agent::run(options, shutdown).await?)
}

async fn down(arguments: DownArguments) -> Result<(), Failure> {
    arguments.log.start()?;
    let options = DownOptions {
        data_dir: arguments.folders.data_dir,
        run_dir: arguments.folders.run_dir,
    };
    node_agent::down(&options).await?;
    note("the node is down: no microVM and no network of it is left");
    Ok(())
}

/// This machine's name, as its kernel has it.
pub(crate) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The folder `guest` beside this program (`target/dist`) or beside this program's folder (`target/release` and
/// `target/guest`), else where a package has it.
fn default_guest() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("guest"))
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| Path::new(PACKAGED_GUEST).to_owned())
}

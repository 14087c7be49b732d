//! `platform node`: the agent of a machine that runs instances.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use api::enrollment::EnrollRole;
use blocking_work::blocking;
use clap::{Args, Subcommand};
use membership::{JoinError, Membership};
use node_agent::{DownOptions, NodeError, NodeOptions};

use super::joining;
use crate::failure::Failure;
use crate::join_token::TokenArguments;
use crate::json_shapes;
use crate::logging::LogArguments;
use crate::output::{self, FormatArguments};
use crate::printed::TakenDown;
use crate::registry_access::RegistryArguments;
use crate::role_options::{self, KeptNodeOptions, KeptOptions as _};
use crate::service::{self, Start};
use crate::units::parse_size;

pub(crate) const DATA_DIR: &str = "/var/lib/platform/node";
pub(crate) const RUN_DIR: &str = "/run/platform";
/// Where a package puts the guest's kernel and initramfs.
const PACKAGED_GUEST: &str = "/usr/lib/platform/guest";

const EXAMPLES: &str = "\
Examples:
  platform node join --token-file token     once: joins, and starts platform-node.service
  platform node                             the agent in this terminal
  platform node down                        ends the microVMs, before the machine leaves
`platform tokens create --role node` makes the token; it works once. The microVMs go on
when the agent ends; `node down` ends them.";

const JOIN_EXAMPLES: &str = "\
Examples:
  platform node join --token-file token
  platform node join --token-file -         and paste the token
`platform tokens create --role node` makes the token, on the server's machine or wherever an admin is. What else is
given is kept: the service starts without flags. A join that was interrupted is repeated with the same token and is the same node. Run again with options, it keeps them for the next start.";

/// Run the agent of this machine, join a cluster, or take the machine's node down
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
    Join(Box<JoinArguments>),
    Down(DownArguments),
}

#[derive(Debug, Args)]
struct RunArguments {
    #[command(flatten)]
    applicant: ApplicantArguments,
    #[command(flatten)]
    options: OptionArguments,
    #[command(flatten)]
    folders: Folders,
    #[command(flatten)]
    log: LogArguments,
}

/// Join a cluster with this machine, and start its agent with the machine
#[derive(Debug, Args)]
#[command(after_help = JOIN_EXAMPLES)]
struct JoinArguments {
    #[command(flatten)]
    run: RunArguments,
    /// Join anew, with a new token: the cluster does not know this machine any more, or revoked it. What it ran has to be down
    /// (`platform node down`). Where it is refused, the machine is who it was
    #[arg(long)]
    again: bool,
    /// Do not start the agent
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    format: FormatArguments,
}

/// Who joins.
#[derive(Debug, Args)]
struct ApplicantArguments {
    /// The server's URL, or those of several with commas between; remembered once the node joined [default: the token's]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    #[command(flatten)]
    token: TokenArguments,
    /// Name of the node in the cluster [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// The region this machine is in [default: local]
    #[arg(long)]
    region: Option<String>,
}

impl ApplicantArguments {
    fn given(&self) -> joining::Given {
        joining::Given {
            server: self.server.clone(),
            name: self.name.clone(),
            region: self.region.clone(),
            token: self.token.is_given(),
        }
    }
}

/// What `node join` keeps for later starts.
#[derive(Debug, Args)]
struct OptionArguments {
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
    /// Where it tells metrics and readiness to who watches it, HTTP [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    underlay: joining::UnderlayArguments,
}

impl OptionArguments {
    fn kept(&self) -> KeptNodeOptions {
        KeptNodeOptions {
            memory_bytes: self.memory,
            image_cache_bytes: self.image_cache,
            guest: self.guest.clone(),
            registries: self.registries.kept(),
            underlay: self.underlay.kept(),
            metrics_listen: self.metrics_listen,
        }
    }
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
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Join(arguments)) => join(*arguments).await,
        Some(Command::Down(arguments)) => down(arguments).await,
        None => serve(arguments.run).await,
    }
}

async fn serve(arguments: RunArguments) -> Result<(), Failure> {
    arguments.log.start()?;
    let kept = role_options::or_kept(arguments.options.kept(), &arguments.folders.data_dir).await?;
    let options = options(arguments.applicant, kept, arguments.folders).await?;
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    Ok(node_agent::run(options, shutdown).await?)
}

async fn join(arguments: JoinArguments) -> Result<(), Failure> {
    let JoinArguments {
        run,
        again,
        no_start,
        format,
    } = arguments;
    run.log.start()?;
    service::close_to_others();
    let (data_dir, run_dir) = (run.folders.data_dir.clone(), run.folders.run_dir.clone());
    let kept: KeptNodeOptions = role_options::load(&data_dir).await?.unwrap_or_default();
    let wanted = run.options.kept().or(kept.clone());
    let options_changed = wanted != kept;
    let known = if again {
        None
    } else {
        membership(&data_dir).await?
    };
    let is_new = known.is_none();
    let member = if let Some(member) = known {
        joining::note_known(&member, &run.applicant.given());
        if options_changed {
            role_options::keep(&data_dir, &wanted).await?;
            service::note_changed("node");
        }
        member
    } else {
        // With the token: nothing is changed where there is none.
        let options = options(run.applicant, wanted.clone(), run.folders).await?;
        // Before the token is spent: a full disk is found now, and the service never starts without them.
        role_options::keep(&data_dir, &wanted).await?;
        if again {
            node_agent::leave(&data_dir, &options.run_dir).await?;
        }
        let unreached = |error: &NodeError| match error {
            NodeError::Join(JoinError::Enroll(error)) => joining::pause_after(error),
            _ => None,
        };
        let joined = joining::patiently(|| node_agent::join(&options), unreached).await;
        let joined = joining::or_who_it_was(joined, &data_dir).await?;
        joining::print(&joined, format).await?;
        joined
    };
    let given = [("--run-dir", run_dir.as_path())];
    let has_own = run_dir != Path::new(RUN_DIR);
    let start = service::start(Start {
        role: "node",
        data_dir: &data_dir,
        unit_data_dir: Path::new(DATA_DIR),
        folders: if has_own { &given } else { &[] },
        by_hand: no_start,
        restart: again,
    })
    .await?;
    joining::print_member(format, member, is_new, options_changed, start)
}

/// The membership of this machine in a role, if it has joined.
pub(super) async fn membership(data_dir: &Path) -> Result<Option<Membership>, Failure> {
    let data_dir = data_dir.to_owned();
    Ok(blocking(move || Membership::load(&data_dir)).await?)
}

async fn options(
    applicant: ApplicantArguments,
    kept: KeptNodeOptions,
    folders: Folders,
) -> Result<NodeOptions, Failure> {
    let guest_dir = match kept.guest {
        Some(folder) => folder,
        None => blocking(default_guest).await,
    };
    Ok(NodeOptions {
        data_dir: folders.data_dir,
        run_dir: folders.run_dir,
        server: applicant.server,
        token: applicant.token.read().await?,
        name: applicant.name.unwrap_or_else(host_name),
        region: applicant.region.unwrap_or_else(joining::default_region),
        guest_dir,
        memory_bytes: kept.memory_bytes,
        image_cache_bytes: kept.image_cache_bytes,
        insecure_registries: kept.registries.insecure,
        registry_mirrors: kept.registries.mirrors,
        metrics_listen: kept.metrics_listen,
        underlay: kept.underlay.options(),
    })
}

async fn down(arguments: DownArguments) -> Result<(), Failure> {
    arguments.log.start()?;
    let options = DownOptions {
        data_dir: arguments.folders.data_dir,
        run_dir: arguments.folders.run_dir,
    };
    node_agent::down(&options).await?;
    let down = TakenDown {
        role: EnrollRole::Node,
        data_dir: options.data_dir,
    };
    let sentence = "the node is down: no microVM and no network of it is left";
    output::json_or_note(arguments.format, json_shapes::TAKEN_DOWN, &down, sentence)
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
pub(super) fn default_guest() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("guest"))
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| Path::new(PACKAGED_GUEST).to_owned())
}

//! `platform server`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use control_plane::{KEY_FILE, RestoreOptions, ServerOptions};

use crate::failure::Failure;
use crate::logging::LogArguments;
use crate::output::{self, note};
use crate::registry_access::RegistryArguments;
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform server                                          for this machine alone
  platform server --listen '[::]:7400' --name cp.example.com
                                                           for other machines, too
  platform server --store postgres://platform@db.example.com/platform \\
      --listen '[::]:7400' --advertise https://cp1.example.com:7400
                                                           one of several on one PostgreSQL
The first start makes the cluster: its CA, its address range and the first admin's
`client.json` in the data folder. `platform tokens create` then lets nodes and edges in.
Of several servers on one PostgreSQL one leads, and another takes over within 10 s; every one
answers. Copy key-encryption-key.json from the first one's data folder to the others'. The
database's password comes from PGPASSWORD or ~/.pgpass; for a unix socket, use
postgres:///DATABASE?host=/FOLDER&user=USER.";

const BACKUP_EXAMPLES: &str = "\
Examples:
  platform server backup /backup/platform-$(date +%F).db    while the server runs
The file has the whole store: every secret in it is sealed, every key wrapped. The key that
opens them, key-encryption-key.json in the data folder, is not in it: keep a copy apart.
What is in volumes is on the nodes. A backup of either store, SQLite or PostgreSQL, is restored to either.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  platform server restore backup.db --rehearse              can it be restored? changes nothing
  platform server restore backup.db                         the server must not run
The data folder has to have the key-encryption-key.json of the cluster. The store that is there
is kept beside the restored one. Nodes and edges apply the restored state as soon as the
server is started; instances that the backup does not know are left running.";

/// Run the control plane: API, planner and store
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen, HTTPS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    #[command(flatten)]
    place: Place,
    /// Another name or address by which this server is reached, for its certificate; repeatable
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// The URL that `client.json` names, and at which other servers on the same store reach this one [default: made of the listen
    /// address]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    #[command(flatten)]
    registries: RegistryArguments,
    #[command(flatten)]
    log: LogArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Backup(BackupArguments),
    Restore(RestoreArguments),
}

/// Where a server keeps its state.
#[derive(Debug, Args)]
struct Place {
    /// Where the server's state is kept
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/lib/platform/server"
    )]
    data_dir: PathBuf,
    /// The store, `sqlite:PATH` or `postgres://USER@HOST/DATABASE` [default: sqlite:<data folder>/platform.db]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// Copy the whole store to a file, beside a running server
#[derive(Debug, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
struct BackupArguments {
    /// The file to write; it must not be there yet
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Put a backup in the place of the store
#[derive(Debug, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
struct RestoreArguments {
    /// A file that `platform server backup` wrote
    file: PathBuf,
    /// Prove that the backup can be restored here, and change nothing
    #[arg(long)]
    rehearse: bool,
    #[command(flatten)]
    place: Place,
}

async fn backup(arguments: BackupArguments) -> Result<(), Failure> {
    let BackupArguments { file, place } = arguments;
    control_plane::backup(&place.data_dir, place.store.as_deref(), &file).await?;
    let size = std::fs::metadata(&file).map_or(0, |file| file.len());
    output::line(format!("{}: {}", file.display(), units::size(size)))?;
    note(format!(
        "it opens only with {} of the server: keep a copy of that apart",
        place.data_dir.join(KEY_FILE).display()
    ));
    Ok(())
}

async fn restore(arguments: RestoreArguments) -> Result<(), Failure> {
    let options = RestoreOptions {
        file: arguments.file,
        data_dir: arguments.place.data_dir,
        store: arguments.place.store,
        rehearse: arguments.rehearse,
    };
    let restored = control_plane::restore(&options).await?;
    output::line(format!(
        "cluster {}: {} nodes, {} envs, {} instances, {} volumes, {} secrets opened",
        restored.cluster,
        restored.nodes,
        restored.envs,
        restored.instances,
        restored.volumes,
        restored.secrets
    ))?;
    if !restored.has_checksum {
        note("the backup has no checksum (an older version wrote it), so that a flipped bit in a text is not found".to_owned());
    }
    for cause in &restored.unreadable {
        note(format!("cannot be read, and is kept: {cause}"));
    }
    if let Some(path) = &restored.replaced {
        note(format!(
            "the store that was there is kept: {}",
            path.display()
        ));
    }
    note(if options.rehearse {
        "the backup can be restored here; nothing was changed".to_owned()
    } else {
        "restored; start the server".to_owned()
    });
    Ok(())
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Backup(arguments)) => return backup(arguments).await,
        Some(Command::Restore(arguments)) => return Box::pin(restore(arguments)).await,
        None => {}
    }
    arguments.log.start()?;
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    let options = ServerOptions {
        listen: arguments.listen,
        store: arguments.place.store,
        data_dir: arguments.place.data_dir,
        names: arguments.names,
        advertise: arguments.advertise,
        insecure_registries: arguments.registries.insecure(),
        registry_mirrors: arguments.registries.mirrors(),
        ready: None,
    };
    Ok(control_plane::run(options, shutdown).await?)
}

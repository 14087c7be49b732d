//! `platform server`: the control plane.

mod init;
mod options;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use control_plane::{KEY_FILE, RestoreOptions, ServerOptions};

use super::members;
use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::logging::LogArguments;
use crate::output::{self, Format, FormatArguments, note};
use crate::printed::{BackedUp, CaRotation, RestoredBackup};
use crate::role_options;
use crate::{notify, units};

use self::options::{OptionArguments, Place, server_options};

pub(crate) use self::options::DATA_DIR;

const EXAMPLES: &str = "\
Examples:
  platform server init                                     makes a cluster, starts platform-server.service
  platform server                                          in this terminal, for this machine alone
  platform server --listen '[::]:7400' --name cp.example.com
                                                           for other machines, too
  platform server --store postgres://platform@db.example.com/platform \\
      --listen '[::]:7400' --advertise https://cp1.example.com:7400
                                                           one of several on one PostgreSQL
`server init`, or the first start, makes the cluster: its CA, its address range and the first admin's
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
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    options: OptionArguments,
    #[command(flatten)]
    log: LogArguments,
}

/// Where a server that `init` sets up listens, unless it is told otherwise.
pub(crate) fn init_listen() -> SocketAddr {
    init::every_address()
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Arguments),
    RotateCa(RotateCaArguments),
    Backup(BackupArguments),
    Restore(RestoreArguments),
}

/// Replace the cluster's CA while everything runs
///
/// First another CA begins to sign, and members renew their certificates; `--finish` ends the trust in the one before. Whoever was away for it
/// comes back: the new one is signed by the old one. Make a backup afterwards.
#[derive(Debug, Args)]
struct RotateCaArguments {
    /// Trust the CA before it no more
    #[arg(long)]
    finish: bool,
    /// Say who has learnt of the CA, and change nothing
    #[arg(long, conflicts_with = "finish")]
    status: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

async fn rotate_ca(arguments: RotateCaArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let ca = if arguments.status {
        client.ca().await?
    } else {
        client.rotate_ca(arguments.finish).await?
    };
    output::line_for_people(arguments.format, &ca.fingerprint)?;
    let members = members::acknowledged(&client, ca.counter, arguments.format).await?;
    let left = members.iter().filter(|row| !row.acknowledged).count();
    if left > 0 {
        note(format!(
            "{left} members have not learnt of it; they do when they are back"
        ));
    }
    if ca.trusts_before {
        note(
            "the CA before it is trusted too; `platform server rotate-ca --finish` ends that, best once every member has learnt of the new one",
        );
    }
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::CA, &CaRotation { ca, members });
    }
    Ok(())
}

/// Copy the whole store to a file, beside a running server
#[derive(Debug, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
struct BackupArguments {
    /// The file to write; it must not be there yet
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    format: FormatArguments,
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
    #[command(flatten)]
    format: FormatArguments,
}

async fn backup(arguments: BackupArguments) -> Result<(), Failure> {
    let BackupArguments {
        file,
        place,
        format,
    } = arguments;
    let store = place.store().await?;
    control_plane::backup(&place.data_dir, store.as_deref(), &file).await?;
    let size_bytes = std::fs::metadata(&file).map_or(0, |file| file.len());
    let text = format!("{}: {}", file.display(), units::size(size_bytes));
    let key_file = place.data_dir.join(KEY_FILE);
    let hint = format!(
        "it opens only with {} of the server: keep a copy of that apart",
        key_file.display()
    );
    if format.format == Format::Json {
        let written = BackedUp {
            file,
            size_bytes,
            key_file,
        };
        output::json(json_shapes::BACKUP, &written)?;
    } else {
        output::line(text)?;
    }
    note(hint);
    Ok(())
}

async fn restore(arguments: RestoreArguments) -> Result<(), Failure> {
    let options = RestoreOptions {
        file: arguments.file,
        store: arguments.place.store().await?,
        data_dir: arguments.place.data_dir,
        rehearse: arguments.rehearse,
    };
    let restored = control_plane::restore(&options).await?;
    let text = format!(
        "cluster {}: {} nodes, {} envs, {} instances, {} volumes, {} secrets opened",
        restored.cluster,
        restored.nodes,
        restored.envs,
        restored.instances,
        restored.volumes,
        restored.secrets
    );
    output::line_for_people(arguments.format, text)?;
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
    if arguments.format.format == Format::Json {
        let printed = RestoredBackup {
            rehearsed: options.rehearse,
            cluster: restored.cluster,
            nodes: restored.nodes,
            envs: restored.envs,
            instances: restored.instances,
            volumes: restored.volumes,
            secrets: restored.secrets,
            unreadable: restored.unreadable,
            replaced: restored.replaced,
        };
        return output::json(json_shapes::RESTORED, &printed);
    }
    Ok(())
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Init(arguments)) => return init::run(arguments).await,
        Some(Command::RotateCa(arguments)) => return rotate_ca(arguments).await,
        Some(Command::Backup(arguments)) => return backup(arguments).await,
        Some(Command::Restore(arguments)) => return Box::pin(restore(arguments)).await,
        None => {}
    }
    arguments.log.start()?;
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    let given = arguments.options.with_store(arguments.place.store);
    let used = role_options::or_kept(given, &arguments.place.data_dir).await?;
    let (ready, answers) = tokio::sync::oneshot::channel();
    let options = ServerOptions {
        ready: Some(ready),
        ..server_options(used, &arguments.place.data_dir)
    };
    tokio::spawn(async move {
        if answers.await.is_ok() {
            notify::ready();
        }
    });
    Ok(control_plane::run(options, shutdown).await?)
}

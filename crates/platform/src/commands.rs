//! The commands, a module each: its arguments with their help, and what it does.

pub(crate) mod deploy;
pub(crate) mod destroy;
pub(crate) mod dev;
pub(crate) mod edge;
pub(crate) mod envs;
pub(crate) mod exec;
pub(crate) mod fmt;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod logs;
pub(crate) mod manifest_file;
pub(crate) mod node;
pub(crate) mod nodes;
pub(crate) mod normalize;
pub(crate) mod ps;
pub(crate) mod registries;
pub(crate) mod scale;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod server;
pub(crate) mod signal;
pub(crate) mod tokens;
pub(crate) mod top;
pub(crate) mod validate;
pub(crate) mod volumes;

use std::future::Future;

use tokio_util::sync::CancellationToken;

use crate::cli::Command;
use crate::failure::Failure;

/// Runs one command to its end.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Deploy(arguments) => asynchronous(deploy::run(arguments)),
        Command::Ps(arguments) => asynchronous(ps::run(arguments)),
        Command::Logs(arguments) => asynchronous(logs::run(arguments)),
        Command::Exec(arguments) => asynchronous(exec::run(arguments)),
        Command::Top(arguments) => asynchronous(top::run(arguments)),
        Command::Signal(arguments) => asynchronous(signal::run(arguments)),
        Command::Scale(arguments) => asynchronous(scale::run(arguments)),
        Command::Envs(arguments) => asynchronous(envs::run(arguments)),
        Command::Secrets(command) => asynchronous(secrets::run(command)),
        Command::Volumes(arguments) => asynchronous(volumes::run(arguments)),
        Command::Destroy(arguments) => asynchronous(destroy::run(arguments)),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Fmt(arguments) => fmt::run(&arguments),
        Command::Normalize(arguments) => normalize::run(&arguments),
        Command::Schema(_) => schema::run(),
        Command::Image(command) => asynchronous(image::run(command)),
        Command::Images(arguments) => asynchronous(images::run(arguments)),
        Command::Registries(arguments) => asynchronous(registries::run(arguments)),
        Command::Nodes(arguments) => asynchronous(nodes::run(arguments)),
        Command::Tokens(command) => asynchronous(tokens::run(command)),
        Command::Server(arguments) => asynchronous(server::run(arguments)),
        Command::Node(arguments) => asynchronous(node::run(arguments)),
        Command::Edge(arguments) => asynchronous(edge::run(arguments)),
        Command::Dev(arguments) => asynchronous(dev::run(arguments)),
        Command::Version => Ok(crate::output::line(concat!(
            "platform ",
            env!("CARGO_PKG_VERSION")
        ))?),
    }
}

fn asynchronous(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    // Work that blocks (a long write) may end with the process.
    runtime.shutdown_background();
    result
}

/// Cancelled by the first SIGINT or SIGTERM. The second one ends the process at once.
pub(crate) fn until_asked_to_stop() -> Result<CancellationToken, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let asked = CancellationToken::new();
    let token = asked.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        };
        next().await;
        tracing::info!("stopping");
        token.cancel();
        let status = next().await;
        std::process::exit(status);
    });
    Ok(asked)
}

//! The command line: names, flags and their help, and the start of a command. What a command does is in its own module.

use std::future::Future;

use clap::builder::Styles;
use clap::builder::styling::{AnsiColor, Style};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    certificates, completions, deploy, destroy, dev, doctor, edge, edges, envs, events, exec, fmt,
    forward, image, images, login, logs, manual, network, node, nodes, normalize, orgs, plan, ps,
    registries, releases, resolver, run, scale, schema, secrets, server, signal, tokens, top,
    users, validate, version, volumes, why, wireguard,
};
use crate::failure::Failure;

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(Style::new());

const ABOUT_LONG: &str = "\
Runs container images as microVMs on your own machines.

A cluster is a `server` (control plane), `node`s (machines that run instances) and
`edge`s (HTTP ingress). `deploy` takes an image and a manifest (`platform.toml`) and
runs each process type of the app in microVMs of its own.";

const EXAMPLES: &str = "\
Examples:
  platform deploy --image registry.example.com/shop@sha256:…   a new release of ./platform.toml
  platform ps                                                   what runs
  platform logs -f --process web                                what it says
  platform exec -it --process web -- sh                         a shell in it
  platform run -- /srv/shop migrate                             a command in a microVM of its own
  platform forward --process db 5432                            its port, on this machine
  platform scale web=3                                          more of it
  platform why web                                              why it is as it is

Exit status: 0 done, 1 the input is wrong or the cluster refuses, 2 wrong usage; `exec` and `run` end with
their command's.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "platform",
    version,
    about = "Runs container images as microVMs on your own machines",
    long_about = ABOUT_LONG,
    after_help = EXAMPLES,
    styles = STYLES,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Every command, in the order of `--help`: an app's day, its manifest and image, then the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Deploy(deploy::Arguments),
    Plan(plan::Arguments),
    Releases(releases::ReleasesArguments),
    Rollback(releases::RollbackArguments),
    Ps(ps::Arguments),
    Logs(logs::Arguments),
    Events(events::Arguments),
    Why(why::Arguments),
    Exec(exec::Arguments),
    Run(run::Arguments),
    Forward(forward::Arguments),
    Top(top::Arguments),
    Signal(signal::Arguments),
    Scale(scale::Arguments),
    Envs(envs::Arguments),
    #[command(subcommand)]
    Secrets(secrets::Command),
    Volumes(volumes::Arguments),
    Destroy(destroy::Arguments),
    Validate(validate::Arguments),
    Fmt(fmt::Arguments),
    Normalize(normalize::Arguments),
    Schema(schema::Arguments),
    #[command(subcommand)]
    Image(image::Command),
    Nodes(nodes::Arguments),
    Edges(edges::Arguments),
    Network(network::Arguments),
    Images(images::Arguments),
    Registries(registries::Arguments),
    Certificates(certificates::Arguments),
    #[command(subcommand)]
    Tokens(tokens::Command),
    Users(users::Arguments),
    Orgs(orgs::OrgsArguments),
    Apps(orgs::AppsArguments),
    Login(login::LoginArguments),
    Whoami(login::WhoAmIArguments),
    Contexts(login::ContextsArguments),
    Server(server::Arguments),
    Node(node::Arguments),
    Edge(edge::Arguments),
    Doctor(doctor::Arguments),
    Dev(dev::Arguments),
    Completions(completions::Arguments),
    Manual(manual::Arguments),
    #[command(hide = true)]
    Wireguard(wireguard::Arguments),
    #[command(hide = true)]
    Resolver(resolver::Arguments),
    Version(version::Arguments),
}

/// Runs one command to its end.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Deploy(arguments) => asynchronous(deploy::run(arguments)),
        Command::Plan(arguments) => asynchronous(plan::run(arguments)),
        Command::Releases(arguments) => asynchronous(releases::run(arguments)),
        Command::Rollback(arguments) => asynchronous(releases::rollback(arguments)),
        Command::Ps(arguments) => asynchronous(ps::run(arguments)),
        Command::Logs(arguments) => asynchronous(logs::run(arguments)),
        Command::Why(arguments) => asynchronous(why::run(arguments)),
        Command::Events(arguments) => asynchronous(events::run(arguments)),
        Command::Exec(arguments) => asynchronous(exec::run(arguments)),
        Command::Run(arguments) => asynchronous(run::run(arguments)),
        Command::Forward(arguments) => asynchronous(forward::run(arguments)),
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
        Command::Schema(arguments) => schema::run(&arguments),
        Command::Image(command) => asynchronous(image::run(command)),
        Command::Network(arguments) => asynchronous(network::run(arguments)),
        Command::Images(arguments) => asynchronous(images::run(arguments)),
        Command::Registries(arguments) => asynchronous(registries::run(arguments)),
        Command::Certificates(arguments) => asynchronous(certificates::run(arguments)),
        Command::Nodes(arguments) => asynchronous(nodes::run(arguments)),
        Command::Edges(arguments) => asynchronous(edges::run(arguments)),
        Command::Tokens(command) => asynchronous(tokens::run(command)),
        Command::Users(arguments) => asynchronous(users::run(arguments)),
        Command::Orgs(arguments) => asynchronous(orgs::run_orgs(arguments)),
        Command::Apps(arguments) => asynchronous(orgs::run_apps(arguments)),
        Command::Login(arguments) => asynchronous(login::login(arguments)),
        Command::Whoami(arguments) => asynchronous(login::whoami(arguments)),
        Command::Contexts(arguments) => login::run_contexts(arguments),
        Command::Server(arguments) => {
            asynchronous(server::run(arguments)).map_err(Failure::for_root)
        }
        Command::Node(arguments) => asynchronous(node::run(arguments)).map_err(Failure::for_root),
        Command::Edge(arguments) => asynchronous(edge::run(arguments)).map_err(Failure::for_root),
        Command::Dev(arguments) => asynchronous(dev::run(arguments)),
        Command::Doctor(arguments) => asynchronous(doctor::run(arguments)),
        Command::Completions(arguments) => completions::run(&arguments, Cli::command()),
        Command::Manual(arguments) => manual::run(&arguments, Cli::command()),
        Command::Wireguard(arguments) => wireguard::run(arguments),
        Command::Resolver(arguments) => resolver::run(arguments),
        Command::Version(arguments) => version::run(&arguments),
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

//! `platform edge`: the ingress proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::enrollment::EnrollRole;
use clap::{Args, Subcommand};
use edge_proxy::{
    AccessLogTarget, EdgeError, EdgeOptions, KeptPorts, Listeners, PortRanges, ProxyNetwork,
};
use membership::JoinError;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::joining;
use crate::failure::Failure;
use crate::join_token::TokenArguments;
use crate::json_shapes;
use crate::logging::LogArguments;
use crate::notify;
use crate::output::{self, Format, FormatArguments};
use crate::printed::TakenDown;
use crate::role_options::{self, KeptEdgeOptions, KeptOptions as _};
use crate::service::{self, Start};
use crate::sockets::{self, Sockets};
use crate::succession::{self, Processes};

pub(super) const DATA_DIR: &str = "/var/lib/platform/edge";
/// Where an edge listens that was given nothing else.
pub(super) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Where an edge listens for HTTPS that was given nothing at all.
pub(super) const LISTEN_TLS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// The UDP port of an edge's WireGuard where nothing else was given: a node of the same machine has the one before.
pub(super) const OVERLAY_PORT: u16 = 51821;

const EXAMPLES: &str = "\
Examples:
  platform edge join --token-file token --listen '[::]:80' --listen-tls '[::]:443'
                                            once: joins, and starts platform-edge.service
  platform edge                             the proxy in this terminal
`platform tokens create --role edge` makes the token; it works once. The edge goes on
with the routes it knows while the server is offline.
SIGUSR2 has an edge that runs start another one in its place, of the program and the
options as they are then: no client is refused, and what is open goes on. The log says where
the other one does not start; then nothing changes. `systemctl reload platform-edge` sends it.";

const JOIN_EXAMPLES: &str = "\
Examples:
  platform edge join --token-file token --listen '[::]:80' --listen-tls '[::]:443'
  platform edge join --token-file -     and paste the token
`platform tokens create --role edge` makes the token. What else is given is kept: the service starts without flags.
Run again with options, it keeps them for the next start.";

/// Run an ingress proxy, HTTP and HTTPS to the instances by host name, or join a cluster
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
    /// Where clients connect, HTTP [default: what `join` was given, else 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// At which ports TCP routes of apps may have it listen: ports and ranges with commas between, or `none` [default: what `join` was given, else
    /// 30000-32767]
    #[arg(long, value_name = "PORTS")]
    tcp_ports: Option<PortRanges>,
    /// Where clients connect, HTTPS [default: what `join` was given; else 127.0.0.1:8443 without `--listen`, and nowhere with it]
    #[arg(long, value_name = "ADDRESS")]
    listen_tls: Option<SocketAddr>,
    /// The port at which clients reach `--listen-tls`, where something in front maps another one to it: redirects to HTTPS name it [default: what `join`
    /// was given, else that of `--listen-tls`; 443 behind a trusted proxy]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    https_port: Option<u16>,
    /// The server's URL, or those of several with commas between; remembered once the edge joined
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    #[command(flatten)]
    token: TokenArguments,
    /// Where it tells metrics and readiness to who watches it, HTTP [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// A proxy in front of the edge, or a network of them, that is believed what it says of clients: X-Forwarded-*, Forwarded, X-Real-IP and
    /// X-Request-Id, and the header of the PROXY protocol, version 2; may be repeated [default: none]
    #[arg(long = "trusted-proxy", value_name = "CIDR")]
    trusted_proxies: Vec<ProxyNetwork>,
    /// Where a line of JSON for each request goes: a file, or `-` for standard output [default: nowhere]
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// A folder with pages for the edge's own answers: 404.html, or 4xx.html for all of a kind; {{request_id}} in them is the request's id. Read again when it
    /// changes [default: short texts]
    #[arg(long, value_name = "FOLDER")]
    error_pages: Option<PathBuf>,
    #[command(flatten)]
    underlay: joining::UnderlayArguments,
    /// Name of the edge in the cluster [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// The region this machine is in [default: local]
    #[arg(long)]
    region: Option<String>,
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
    /// Join anew, with a new token: the cluster does not know this machine any more, or revoked it. Where it is refused, the machine
    /// is who it was
    #[arg(long)]
    again: bool,
    /// Do not start the edge
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    format: FormatArguments,
}

/// Remove what an edge that was stopped left on this machine: its link to the instances of other machines
///
/// The link outlives the edge, so that an edge that is started again reaches them at once.
#[derive(Debug, Args)]
struct DownArguments {
    /// The folder of the edge
    #[arg(long, value_name = "FOLDER", default_value = DATA_DIR)]
    data_dir: PathBuf,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    format: FormatArguments,
}

impl RunArguments {
    fn given(&self) -> joining::Given {
        joining::Given {
            server: self.server.clone(),
            name: self.name.clone(),
            region: self.region.clone(),
            token: self.token.is_given(),
        }
    }

    fn kept(&self) -> KeptEdgeOptions {
        KeptEdgeOptions {
            listen: self.listen,
            tcp_ports: self.tcp_ports.as_ref().map(PortRanges::to_string),
            listen_tls: self.listen_tls,
            https_port: self.https_port,
            underlay: self.underlay.kept(),
            metrics_listen: self.metrics_listen,
            trusted_proxies: self.trusted_proxies.clone(),
            access_log: self.access_log.clone(),
            error_pages: self.error_pages.clone(),
        }
    }

    /// `is_member`: it needs no token.
    async fn options(
        self,
        mut kept: KeptEdgeOptions,
        is_member: bool,
    ) -> Result<EdgeOptions, Failure> {
        kept.underlay.port.get_or_insert(OVERLAY_PORT);
        Ok(EdgeOptions {
            data_dir: self.data_dir,
            listen: kept.listen.unwrap_or(LISTEN),
            tcp_ports: match kept.tcp_ports {
                Some(ports) => ports.parse::<PortRanges>()?,
                None => PortRanges::default(),
            },
            listen_tls: kept
                .listen_tls
                .or(kept.listen.is_none().then_some(LISTEN_TLS)),
            https_port: kept.https_port,
            server: self.server,
            token: if is_member {
                None
            } else {
                self.token.read().await?
            },
            name: self.name.unwrap_or_else(super::node::host_name),
            region: self.region.unwrap_or_else(joining::default_region),
            metrics_listen: kept.metrics_listen,
            underlay: kept.underlay.options(),
            trusted_proxies: kept.trusted_proxies,
            access_log: kept.access_log.map(|path| {
                if path == Path::new("-") {
                    AccessLogTarget::Stdout
                } else {
                    AccessLogTarget::File(path)
                }
            }),
            error_pages: kept.error_pages,
        })
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Join(arguments)) => join(*arguments).await,
        Some(Command::Down(arguments)) => {
            arguments.log.start()?;
            edge_proxy::down(&arguments.data_dir).await?;
            let down = TakenDown {
                role: EnrollRole::Edge,
                data_dir: arguments.data_dir,
            };
            match arguments.format.format {
                Format::Json => output::json(json_shapes::TAKEN_DOWN, &down),
                Format::Text => Ok(()),
            }
        }
        None => serve(arguments.run).await,
    }
}

async fn serve(arguments: RunArguments) -> Result<(), Failure> {
    // Before all else: without it the signal ends the process.
    let asked = signal(SignalKind::user_defined2())?;
    let mut before = succession::before()?;
    arguments.log.start()?;
    let kept = role_options::or_kept(arguments.kept(), &arguments.data_dir).await?;
    let options = arguments.options(kept, before.is_some()).await?;
    let shutdown = crate::shutdown::until_asked_to_stop()?;
    let sockets = Arc::new(match &mut before {
        Some(before) => Sockets::new(std::mem::take(&mut before.sockets), false),
        None => Sockets::new(notify::kept(), true),
    });
    let listeners = Listeners {
        http: listener(&sockets, sockets::HTTP, options.listen).await?,
        https: match options.listen_tls {
            Some(address) => Some(listener(&sockets, sockets::HTTPS, address).await?),
            None => None,
        },
        metrics: match options.metrics_listen {
            Some(address) => Some(listener(&sockets, sockets::METRICS, address).await?),
            None => None,
        },
        tcp: KeptPorts {
            listeners: sockets.ports()?,
            keeper: Some(Arc::clone(&sockets) as _),
        },
    };
    let processes = Processes::new(sockets, before, asked, shutdown.clone());
    let serving = edge_proxy::serve(options, listeners, &processes, shutdown.clone());
    let mut serving = Box::pin(serving);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => processes.stop(),
        served = &mut serving => return Ok(served?),
    }
    Ok(serving.await?)
}

/// The listening socket that the process before this one had, else another one.
async fn listener(
    sockets: &Sockets,
    name: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, Failure> {
    if let Some(listener) = sockets.take(name, address)? {
        return Ok(listener);
    }
    let listener = match name {
        sockets::METRICS => edge_proxy::listen_for_watchers(address).await?,
        _ => edge_proxy::listen(address).await?,
    };
    sockets.add(name, &listener)?;
    Ok(listener)
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
    let data_dir = run.data_dir.clone();
    let kept: KeptEdgeOptions = role_options::load(&data_dir).await?.unwrap_or_default();
    let wanted = run.kept().or(kept.clone());
    let options_changed = wanted != kept;
    let known = if again {
        None
    } else {
        super::node::membership(&data_dir).await?
    };
    let is_new = known.is_none();
    let member = if let Some(member) = known {
        joining::note_known(&member, &run.given());
        if options_changed {
            role_options::keep(&data_dir, &wanted).await?;
            service::note_changed("edge");
        }
        member
    } else {
        // In the order of a node.
        let options = run.options(wanted.clone(), false).await?;
        role_options::keep(&data_dir, &wanted).await?;
        if again {
            edge_proxy::leave(&data_dir).await?;
        }
        let unreached = |error: &EdgeError| match error {
            EdgeError::Join(JoinError::Enroll(error)) => joining::pause_after(error),
            _ => None,
        };
        let joined = joining::patiently(|| edge_proxy::join(&options), unreached).await;
        let joined = joining::or_who_it_was(joined, &data_dir).await?;
        joining::print(&joined, format).await?;
        joined
    };
    let start = service::start(Start {
        role: "edge",
        data_dir: &data_dir,
        unit_data_dir: Path::new(DATA_DIR),
        folders: &[],
        by_hand: no_start,
        restart: again,
    })
    .await?;
    joining::print_member(format, member, is_new, options_changed, start)
}

//! `platform server init`: makes a cluster, keeps the server's options, and starts its unit.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use clap::Args;

use super::options::{DATA_DIR, OptionArguments, Place, server_options};
use crate::failure::Failure;
use crate::json_shapes;
use crate::logging::LogArguments;
use crate::output::{self, Format, FormatArguments, note};
use crate::printed::{ClusterSetUp, RoleStart, ServerSetUp};
use crate::role_options::{self, KeptOptions as _, KeptServerOptions};
use crate::service::{self, Start};

/// Where `init` has the server listen, on every address.
const PORT: u16 = 7400;

const EXAMPLES: &str = "\
Examples:
  platform server init                                     then: platform tokens create --role node
  platform server init --advertise https://cp.example.com:7400
  platform server init --store postgres://platform@db.example.com/platform
                                                           one of several on one PostgreSQL
Run again with options, it keeps them for the next start: `platform server init --name cp2.example.com`.";

/// Make a cluster on this machine, and start its server with the machine
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    options: OptionArguments,
    /// Do not start the server
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    arguments.log.start()?;
    service::close_to_others();
    let format = arguments.format;
    let data_dir = arguments.place.data_dir;
    let given = arguments.options.with_store(arguments.place.store);
    if let Some(kept) = role_options::load::<KeptServerOptions>(&data_dir).await? {
        let set_up = change(given, kept, &data_dir).await?;
        return print(format, &set_up);
    }
    let options = complete(given)?;
    let made = control_plane::init(&server_options(options.clone(), &data_dir)).await?;
    role_options::keep(&data_dir, &options).await?;
    let fingerprint = made
        .ca_fingerprint
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
    let cluster = ClusterSetUp {
        id: made.cluster,
        ca_fingerprint: format!("sha256:{fingerprint}"),
        server: made.url,
        client_config: made.client_config,
        key_file: data_dir.join(control_plane::KEY_FILE),
        is_new: made.is_new,
    };
    if format.format == Format::Text {
        output::line(format!("cluster {}", cluster.id))?;
        output::line(format!("CA      {}", cluster.ca_fingerprint))?;
        output::line(format!("server  {}", cluster.server))?;
        output::line(format!("admin   {}", cluster.client_config.display()))?;
    }
    if !cluster.is_new {
        note("the cluster was there before, and is kept");
    }
    note(format!(
        "keep a copy of {} apart from backups: without it no backup can be opened",
        cluster.key_file.display()
    ));
    let start = service::start(Start {
        role: "server",
        data_dir: &data_dir,
        unit_data_dir: Path::new(DATA_DIR),
        folders: &[],
        by_hand: arguments.no_start,
        restart: false,
    })
    .await?;
    note("next: `platform tokens create --role node` prints a token, with which a machine joins");
    let set_up = ServerSetUp {
        cluster: Some(cluster),
        options_changed: true,
        start,
    };
    print(format, &set_up)
}

/// Prints what was set up to programs; people have read it.
fn print(format: FormatArguments, set_up: &ServerSetUp) -> Result<(), Failure> {
    match format.format {
        Format::Json => output::json(json_shapes::SERVER_SET_UP, set_up),
        Format::Text => Ok(()),
    }
}

/// Keeps other options of a server that is set up.
async fn change(
    given: KeptServerOptions,
    kept: KeptServerOptions,
    data_dir: &Path,
) -> Result<ServerSetUp, Failure> {
    if given == KeptServerOptions::default() {
        return Err(Failure::new(format!(
            "this machine has a server already: {}",
            role_options::file(data_dir).display()
        ))
        .hint(
            "`platform tokens create` lets machines in; with options, `server init` keeps them for the \
             server's next start",
        ));
    }
    let changed = given.or(kept.clone());
    let options_changed = changed != kept;
    let mut start = RoleStart::default();
    if options_changed {
        role_options::keep(data_dir, &changed).await?;
        start.command = Some(service::note_changed("server"));
    } else {
        note("the server has these options already");
    }
    Ok(ServerSetUp {
        cluster: None,
        options_changed,
        start,
    })
}

/// The options with an address that other machines reach, unless one was named.
fn complete(given: KeptServerOptions) -> Result<KeptServerOptions, Failure> {
    let listen = match given.listen {
        Some(listen) => listen,
        None => every_address(),
    };
    let advertise = match given.advertise {
        Some(url) => Some(url),
        None if listen.ip().is_unspecified() => {
            let address = own_address().ok_or_else(|| {
                Failure::new("this machine has no address that others could reach").hint(
                    "say what they reach it by: `--advertise https://NAME:7400`; for this machine alone: \
                     `--listen 127.0.0.1:7400`",
                )
            })?;
            Some(format!(
                "https://{}",
                SocketAddr::new(address, listen.port())
            ))
        }
        None => None,
    };
    Ok(KeptServerOptions {
        listen: Some(listen),
        advertise,
        ..given
    })
}

/// Every address of IPv6 and IPv4, where the machine has IPv6.
pub(super) fn every_address() -> SocketAddr {
    let address = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        Err(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    SocketAddr::new(address, PORT)
}

/// The address that this machine has towards others: that of its default route. No packet is sent.
fn own_address() -> Option<IpAddr> {
    // Addresses of documentation (RFC 5737, RFC 3849), which are behind the default route.
    let towards = |from: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    };
    towards(
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(203, 0, 113, 1).into(),
    )
    .or_else(|| {
        let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        towards(Ipv6Addr::UNSPECIFIED.into(), documentation.into())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_named_address_is_used_and_the_loopback_needs_none() {
        let named = KeptServerOptions {
            advertise: Some("https://cp.example.com:7400".to_owned()),
            ..KeptServerOptions::default()
        };
        let options = complete(named.clone()).unwrap();
        assert_eq!(options.advertise, named.advertise);
        assert_eq!(options.listen.unwrap().port(), PORT);
        assert!(options.listen.unwrap().ip().is_unspecified());
        let loopback = KeptServerOptions {
            listen: Some("127.0.0.1:7401".parse().unwrap()),
            ..KeptServerOptions::default()
        };
        assert_eq!(complete(loopback.clone()).unwrap(), loopback);
    }
}

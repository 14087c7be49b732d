//! What a server is started with, as `server` and `server init` take it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use control_plane::ServerOptions;

use crate::failure::Failure;
use crate::registry_access::RegistryArguments;
use crate::role_options::{self, KeptServerOptions};

pub(crate) const DATA_DIR: &str = "/var/lib/platform/server";
/// Where a server listens that was given nothing else.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);

/// What `server init` keeps for later starts.
#[derive(Debug, Args)]
pub(super) struct OptionArguments {
    /// Where to listen, HTTPS [default: 127.0.0.1:7400; of `init`: every address, port 7400]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Another name or address by which this server is reached, for its certificate; repeatable
    #[arg(long = "name", value_name = "NAME", value_parser = parse_name)]
    names: Vec<String>,
    /// The URL that `client.json` names, and at which other servers on the same store reach this one [default: made of the listen
    /// address; of `init`: this machine's address]
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    advertise: Option<String>,
    /// Where it tells metrics and readiness to who watches it, HTTP [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// A program that sets and removes records in the DNS, for ACME's DNS-01 and wildcards: called as lego's `exec` is, `PROGRAM present|cleanup RECORD
    /// VALUE` [default: none]
    #[arg(long, value_name = "PROGRAM")]
    acme_dns_hook: Option<PathBuf>,
    #[command(flatten)]
    registries: RegistryArguments,
}

/// A server's URL. What it is kept for, every client and token, would not work with another.
fn parse_url(text: &str) -> Result<String, &'static str> {
    let place = text.strip_prefix("https://").unwrap_or_default();
    let place = place.trim_end_matches('/');
    let is_place = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    if place.is_empty() || !place.bytes().all(is_place) {
        return Err("write https://HOST:PORT");
    }
    Ok(text.to_owned())
}

/// A name or address for a certificate.
fn parse_name(text: &str) -> Result<String, &'static str> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-*".contains(&byte);
    if text.parse::<IpAddr>().is_ok() || !text.is_empty() && text.bytes().all(is_name) {
        return Ok(text.to_owned());
    }
    Err("write a DNS name or an IP address")
}

impl OptionArguments {
    pub(super) fn with_store(&self, store: Option<String>) -> KeptServerOptions {
        KeptServerOptions {
            listen: self.listen,
            store,
            names: self.names.clone(),
            advertise: self.advertise.clone(),
            registries: self.registries.kept(),
            metrics_listen: self.metrics_listen,
            acme_dns_hook: self.acme_dns_hook.clone(),
        }
    }
}

/// Where a server keeps its state.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Where the server's state is kept
    #[arg(long, value_name = "FOLDER", default_value = DATA_DIR)]
    pub(super) data_dir: PathBuf,
    /// The store, `sqlite:PATH` or `postgres://USER@HOST/DATABASE` [default: what `init` was given, else
    /// sqlite:<data folder>/platform.db]
    #[arg(long, value_name = "URL")]
    pub(super) store: Option<String>,
}

impl Place {
    /// The store's URL: the one that was named, else the one that `init` was given.
    pub(super) async fn store(&self) -> Result<Option<String>, Failure> {
        let given = KeptServerOptions {
            store: self.store.clone(),
            ..KeptServerOptions::default()
        };
        Ok(role_options::or_kept(given, &self.data_dir).await?.store)
    }
}

/// The options of a server that keeps its state in this folder.
pub(super) fn server_options(kept: KeptServerOptions, data_dir: &Path) -> ServerOptions {
    ServerOptions {
        listen: kept.listen.unwrap_or(LISTEN),
        store: kept.store,
        data_dir: data_dir.to_owned(),
        names: kept.names,
        advertise: kept.advertise,
        insecure_registries: kept.registries.insecure,
        registry_mirrors: kept.registries.mirrors,
        metrics_listen: kept.metrics_listen,
        acme_dns_hook: kept.acme_dns_hook,
        ready: None,
    }
}

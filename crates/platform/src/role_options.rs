//! `options.json` in a role's data folder: what `init` or `join` was given, so that the role's unit starts it without flags.
//!
//! A flag of a later start is used for that start alone. A member's name, region and server are in its `member.json`.
//! Deliberately absent: anything secret.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use blocking_work::blocking;
use edge_proxy::ProxyNetwork;
use membership::UnderlayOptions;
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};

/// Options that are kept.
pub(crate) trait KeptOptions:
    StateFormat + Clone + Default + PartialEq + Send + 'static
{
    /// These, and those of `kept` where these have none. A list replaces a list.
    #[must_use]
    fn or(self, kept: Self) -> Self;
}

/// Registries, as every role that pulls has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptRegistries {
    /// As [`crate::registry_access::RegistryArguments`] gives them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) insecure: BTreeSet<String>,
    /// Mirrors by the registry that they mirror.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) mirrors: BTreeMap<String, Vec<String>>,
}

impl KeptRegistries {
    fn or(self, kept: Self) -> Self {
        Self {
            insecure: if self.insecure.is_empty() {
                kept.insecure
            } else {
                self.insecure
            },
            mirrors: if self.mirrors.is_empty() {
                kept.mirrors
            } else {
                self.mirrors
            },
        }
    }
}

/// Of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptServerOptions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advertise: Option<String>,
    #[serde(default)]
    pub(crate) registries: KeptRegistries,
    /// Where it tells metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// The program for ACME's DNS-01.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) acme_dns_hook: Option<PathBuf>,
}

impl StateFormat for KeptServerOptions {
    const VERSION: u32 = 1;
}

impl KeptOptions for KeptServerOptions {
    fn or(self, kept: Self) -> Self {
        Self {
            listen: self.listen.or(kept.listen),
            store: self.store.or(kept.store),
            names: if self.names.is_empty() {
                kept.names
            } else {
                self.names
            },
            advertise: self.advertise.or(kept.advertise),
            registries: self.registries.or(kept.registries),
            metrics_listen: self.metrics_listen.or(kept.metrics_listen),
            acme_dns_hook: self.acme_dns_hook.or(kept.acme_dns_hook),
        }
    }
}

/// How a member's peers reach it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptUnderlay {
    /// The UDP port of its WireGuard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    /// Where its peers reach it. Port 0: the one above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advertise: Option<SocketAddr>,
}

impl KeptUnderlay {
    fn or(self, kept: Self) -> Self {
        Self {
            port: self.port.or(kept.port),
            advertise: self.advertise.or(kept.advertise),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// With what a member has where nobody said anything.
    pub(crate) fn options(self) -> UnderlayOptions {
        let port = self.port.unwrap_or(UnderlayOptions::default().port);
        let with_port = |mut address: SocketAddr| {
            if address.port() == 0 {
                address.set_port(port);
            }
            address
        };
        UnderlayOptions {
            port,
            advertise: self.advertise.map(with_port),
        }
    }
}

/// Of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptNodeOptions {
    /// Memory that instances may use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    /// Disk that cached images may take, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image_cache_bytes: Option<u64>,
    /// Folder with the guest's kernel and initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<PathBuf>,
    #[serde(default)]
    pub(crate) registries: KeptRegistries,
    #[serde(default, skip_serializing_if = "KeptUnderlay::is_empty")]
    pub(crate) underlay: KeptUnderlay,
    /// Where it tells metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<SocketAddr>,
}

impl StateFormat for KeptNodeOptions {
    const VERSION: u32 = 1;
}

impl KeptOptions for KeptNodeOptions {
    fn or(self, kept: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.or(kept.memory_bytes),
            image_cache_bytes: self.image_cache_bytes.or(kept.image_cache_bytes),
            guest: self.guest.or(kept.guest),
            registries: self.registries.or(kept.registries),
            underlay: self.underlay.or(kept.underlay),
            metrics_listen: self.metrics_listen.or(kept.metrics_listen),
        }
    }
}

/// Of an edge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptEdgeOptions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
    /// At which ports TCP routes may have it listen, as `--tcp-ports` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tcp_ports: Option<String>,
    /// Where it listens for HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listen_tls: Option<SocketAddr>,
    /// The port at which clients reach that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) https_port: Option<u16>,
    #[serde(default, skip_serializing_if = "KeptUnderlay::is_empty")]
    pub(crate) underlay: KeptUnderlay,
    /// Where it tells metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Proxies in front of it that are believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) trusted_proxies: Vec<ProxyNetwork>,
    /// Where its access log goes; `-`: standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access_log: Option<PathBuf>,
    /// The folder of its error pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error_pages: Option<PathBuf>,
}

impl StateFormat for KeptEdgeOptions {
    const VERSION: u32 = 1;
}

impl KeptOptions for KeptEdgeOptions {
    fn or(self, kept: Self) -> Self {
        Self {
            listen: self.listen.or(kept.listen),
            tcp_ports: self.tcp_ports.or(kept.tcp_ports),
            listen_tls: self.listen_tls.or(kept.listen_tls),
            https_port: self.https_port.or(kept.https_port),
            underlay: self.underlay.or(kept.underlay),
            metrics_listen: self.metrics_listen.or(kept.metrics_listen),
            trusted_proxies: if self.trusted_proxies.is_empty() {
                kept.trusted_proxies
            } else {
                self.trusted_proxies
            },
            access_log: self.access_log.or(kept.access_log),
            error_pages: self.error_pages.or(kept.error_pages),
        }
    }
}

/// The file, in a role's data folder.
pub(crate) fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("options.json")
}

/// The options of a role that were kept; `None` where none were.
pub(crate) async fn load<T: KeptOptions>(data_dir: &Path) -> Result<Option<T>, StateFileError> {
    let path = file(data_dir);
    blocking(move || state_file::read(&path)).await
}

/// Keeps the options of a role.
pub(crate) async fn keep<T: KeptOptions>(
    data_dir: &Path,
    options: &T,
) -> Result<(), StateFileError> {
    let (path, options) = (file(data_dir), options.clone());
    blocking(move || state_file::write(&path, &options)).await
}

/// What a start is given, and what was kept where it is given nothing.
pub(crate) async fn or_kept<T: KeptOptions>(
    given: T,
    data_dir: &Path,
) -> Result<T, StateFileError> {
    let kept = load(data_dir).await?;
    Ok(given.or(kept.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn options_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<KeptServerOptions>(&[include_str!(
            "fixtures/options/server-1.json"
        )]);
        state_file::fixtures::check::<KeptNodeOptions>(&[include_str!(
            "fixtures/options/node-1.json"
        )]);
        state_file::fixtures::check::<KeptEdgeOptions>(&[include_str!(
            "fixtures/options/edge-1.json"
        )]);
    }

    #[tokio::test]
    async fn a_flag_is_used_in_place_of_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let nothing: Option<KeptServerOptions> = load(dir.path()).await.unwrap();
        assert_eq!(nothing, None);
        let kept = KeptServerOptions {
            listen: Some("[::]:7400".parse().unwrap()),
            names: vec!["cp.example.com".to_owned()],
            ..KeptServerOptions::default()
        };
        keep(dir.path(), &kept).await.unwrap();
        let given = KeptServerOptions {
            names: vec!["other.example.com".to_owned()],
            ..KeptServerOptions::default()
        };
        let used = or_kept(given, dir.path()).await.unwrap();
        assert_eq!(used.listen, kept.listen);
        assert_eq!(used.names, ["other.example.com"]);
        let again: Option<KeptServerOptions> = load(dir.path()).await.unwrap();
        assert_eq!(again, Some(kept), "a start keeps nothing");
    }
}

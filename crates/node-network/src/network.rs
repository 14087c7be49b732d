//! Creates the workload network and keeps it in its wanted state.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;

use blocking_work::blocking;
use model::{InstanceId, NodeId};

use crate::command::{ip_batch, nft, run};
use crate::egress::{Egress, Slirp};
use crate::host_network::{self, HostNetwork};
use crate::names::{
    INSIDE_LINK, OVERLAY_LINK, Suffix, UPLINK, mac_of, mac_text, node_prefix, platform_address,
    tap_mac_of, tap_name,
};
use crate::namespace::{self, Named};
use crate::rules::Wanted;
use crate::{Endpoint, NetworkError, OverlayAccess, Tap, lost, neighbour, rules, tap};

/// Smallest MTU of IPv6, in bytes (RFC 8200, 5).
const MIN_MTU: u32 = 1280;
/// Largest MTU of a tap, in bytes (65535 less an Ethernet header).
const MAX_MTU: u32 = 65521;
/// Routes to the whole cluster get this plus the node's number as their metric, so that several
/// nodes on one machine each have theirs.
const CLUSTER_ROUTE_METRIC: u32 = 2048;
/// Metric of the default route by which packets meet the rules, which refuse them, while there is no uplink: the
/// last of all routes.
const NO_UPLINK_METRIC: u32 = u32::MAX;
/// The setting `arp_ignore` of a tap: no request is answered, and none makes a neighbour (kernel documentation, ip-sysctl).
const ARP_NEVER_ANSWERED: &str = "8";
/// How often the network is set up in one call, where somebody removes the namespace's name each time.
const MAX_ATTEMPTS: u32 = 3;
/// Where the machine's name servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The settings of a node's workload network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Identifies this network among several on one machine; see [`Suffix`].
    pub suffix: String,
    /// The cluster's /48, as its first address.
    pub cluster_prefix: Ipv6Addr,
    /// This node.
    pub node: NodeId,
    /// MTU of the links and the taps, in bytes; the guests are told the same.
    pub mtu: u32,
}

/// The workload network of this node. Dropping it changes nothing; [`Network::remove`] does.
#[derive(Debug)]
pub struct Network {
    pub(crate) settings: NetworkSettings,
    pub(crate) cluster_prefix: Ipv6Addr,
    /// In bytes. Locked for writing while links are given another.
    pub(crate) mtu: tokio::sync::RwLock<u32>,
    pub(crate) namespace: String,
    pub(crate) host_link: String,
    /// The namespace itself. It lives on when its name is removed.
    handle: Arc<File>,
    /// CountedAs while something is mended.
    mending: tokio::sync::Mutex<()>,
    /// Locked while rules are loaded, so that the last call's rules stay.
    pub(crate) loaded: tokio::sync::Mutex<Loaded>,
}

/// What the rules in the kernel were made from.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Absent: not known, because an agent before this one loaded them or the last change failed.
    pub(crate) endpoints: Option<BTreeMap<InstanceId, Endpoint>>,
    /// Who sends to them from other machines; before [`Network::apply_overlay`], nobody.
    pub(crate) access: OverlayAccess,
    pub(crate) host: HostNetwork,
}

impl Network {
    /// Makes whatever of the network is missing, and leaves what is there: taps, rules and
    /// connections of running instances are not disturbed. May be called at any time, and starts over where the
    /// namespace's name is removed meanwhile.
    ///
    /// # Errors
    /// Invalid settings, or a refusal of the kernel, `ip` or `nft`.
    pub async fn ensure(settings: &NetworkSettings) -> Result<Self, NetworkError> {
        let suffix = Suffix::new(&settings.suffix)?;
        if settings.cluster_prefix.to_bits() << 48 != 0 {
            return Err(NetworkError::Prefix(settings.cluster_prefix));
        }
        check_mtu(settings.mtu)?;
        let mut attempts = 1;
        loop {
            let made = Self::make_missing(settings, &suffix).await;
            let Err(error) = made else { return made };
            let named = namespace::look_up(&suffix.namespace()).await?;
            if matches!(named, Named::Present) || attempts == MAX_ATTEMPTS {
                return Err(error);
            }
            attempts += 1;
            tracing::warn!(
                error = display::chain(&error),
                "somebody removed the name of the workload network's namespace while it was set up; it is set up again"
            );
        }
    }

    async fn make_missing(
        settings: &NetworkSettings,
        suffix: &Suffix,
    ) -> Result<Self, NetworkError> {
        let namespace = suffix.namespace();
        ensure_namespace(&namespace, settings).await?;
        let network = Self {
            settings: settings.clone(),
            cluster_prefix: settings.cluster_prefix,
            mtu: tokio::sync::RwLock::new(settings.mtu),
            handle: Arc::new(namespace::open(&namespace).await?),
            namespace,
            host_link: suffix.host_link(),
            mending: tokio::sync::Mutex::new(()),
            loaded: tokio::sync::Mutex::new(Loaded {
                endpoints: None,
                access: OverlayAccess::default(),
                host: read_host_network().await?,
            }),
        };
        network.apply_settings().await?;
        network.ensure_link().await?;
        network.configure_link().await?;
        network.ensure_rules().await?;
        Ok(network)
    }

    /// Gives the namespace its name again, and makes its link again, where somebody removed them; says what was mended. Taps, rules
    /// and running VMs go on. Where nothing is to be mended it costs a few system calls.
    ///
    /// # Errors
    /// A refusal of the kernel or of `ip`.
    pub async fn mend(&self) -> Result<Vec<String>, NetworkError> {
        let _one_at_a_time = self.mending.lock().await;
        let mut mended = Vec::new();
        if !namespace::is_name_of(&self.namespace, &self.handle).await? {
            namespace::give_name(&self.namespace, self.handle.clone()).await?;
            mended.push(format!("the name of the namespace {}", self.namespace));
        }
        if !namespace::has_link(&self.host_link) {
            self.ensure_link().await?;
            self.configure_link().await?;
            mended.push(format!("the link {}", self.host_link));
        }
        for what in &mended {
            tracing::warn!(
                what,
                "somebody had removed a part of the workload network; it was made again"
            );
        }
        Ok(mended)
    }

    /// The named network namespace, for `ip -n`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes the tap of an instance. Until [`Network::apply_rules`] names the instance, nothing
    /// passes to or from it.
    ///
    /// # Errors
    /// [`NetworkError::TapBusy`] when a VMM of this instance still runs, or a refusal of the
    /// kernel or `ip`.
    pub async fn create_tap(&self, endpoint: &Endpoint) -> Result<Tap, NetworkError> {
        let Endpoint {
            instance,
            address,
            ipv4,
            ..
        } = endpoint;
        let (instance, address, ipv4) = (*instance, *address, *ipv4);
        // Nobody gives the taps another MTU before this one has its own.
        let mtu = self.mtu.read().await;
        let name = tap_name(instance);
        let mac = mac_of(instance);
        let fd = {
            let name = name.clone();
            namespace::within(&self.namespace, move || tap::open(&name)).await?
        };
        // A request for an address of the namespace would make its sender a neighbour.
        let quiet = format!("net/ipv4/conf/{name}/arp_ignore");
        namespace::within(&self.namespace, move || {
            namespace::write_settings(&[(quiet, ARP_NEVER_ANSWERED)])
        })
        .await?;
        ip_batch(
            Some(&self.namespace),
            &[
                format!(
                    "link set dev {name} address {} mtu {mtu} up",
                    mac_text(tap_mac_of(instance)),
                ),
                format!(
                    "addr replace {}/64 dev {name} nodad",
                    guest_protocol::GATEWAY
                ),
                format!("route replace {address}/128 dev {name}"),
                // By the neighbour below, so there is no ARP.
                format!("route replace {ipv4}/32 via inet6 {address} dev {name}"),
            ],
        )
        .await?;
        // Both ends know the guest's MAC: no discovery to wait for, or to forge.
        let link = name.clone();
        namespace::within(&self.namespace, move || {
            neighbour::set_permanent(&link, address, mac)
                .map_err(|source| NetworkError::Neighbour { link, source })
        })
        .await?;
        Ok(Tap { name, fd, mac })
    }

    /// Makes the rules those for exactly these instances, in one transaction. It costs what differs from the last call.
    /// Connections that are established live on, and limits go on counting.
    ///
    /// # Errors
    /// A refusal of `nft`; the rules are then as before.
    pub async fn apply_rules(&self, endpoints: &[Endpoint]) -> Result<(), NetworkError> {
        let endpoints = endpoints.iter().map(|e| (e.instance, e.clone())).collect();
        let mut loaded = self.loaded.lock().await;
        let access = loaded.access.clone();
        self.load(&mut loaded, endpoints, access).await
    }

    /// Loads what differs, or all where what is loaded is not known.
    pub(crate) async fn load(
        &self,
        loaded: &mut Loaded,
        endpoints: BTreeMap<InstanceId, Endpoint>,
        access: OverlayAccess,
    ) -> Result<(), NetworkError> {
        let wanted = Wanted {
            endpoints: &endpoints,
            access: &access,
        };
        if let Some(before) = &loaded.endpoints {
            let before = Wanted {
                endpoints: before,
                access: &loaded.access,
            };
            let change = rules::change(self.cluster_prefix, before, wanted);
            let changed = match change.as_str() {
                "" => Ok(()),
                change => nft(&self.namespace, change).await,
            };
            match changed {
                Ok(()) => {
                    loaded.endpoints = Some(endpoints);
                    loaded.access = access;
                    return Ok(());
                }
                // Somebody else changed the rules, or what was loaded is not what is there.
                Err(error) => {
                    tracing::warn!(
                        error = display::chain(&error),
                        "loading all rules, because a change was refused"
                    );
                }
            }
        }
        loaded.endpoints = None;
        let node = self.settings.node;
        let all = rules::ruleset(self.cluster_prefix, node, wanted, &loaded.host);
        nft(&self.namespace, &all).await?;
        loaded.endpoints = Some(endpoints);
        loaded.access = access;
        Ok(())
    }

    /// Loads all rules again where somebody removed a table: without them envs reach each other, or nothing does.
    async fn mend_rules(&self) -> Result<(), NetworkError> {
        let mut loaded = self.loaded.lock().await;
        if loaded.endpoints.is_none() || self.has_tables().await? {
            return Ok(());
        }
        let endpoints = loaded.endpoints.take().unwrap_or_default();
        let access = loaded.access.clone();
        self.load(&mut loaded, endpoints, access).await?;
        tracing::warn!(
            what = "the rules",
            "somebody had removed a part of the workload network; it was made again"
        );
        Ok(())
    }

    /// Mends what is missing ([`Self::mend`], and the rules), and ensures egress: rules that follow the machine's own addresses and resolver as they are now, and a running
    /// `slirp4netns`, which is left alone when it runs. May be called at any time. The caller calls it again after
    /// an error, when [`Egress::ended`] returns, and now and then, because the machine's addresses may change.
    ///
    /// # Errors
    /// [`NetworkError::NoUplink`] on a machine without a default route, or that `slirp4netns` is not installed or
    /// does not start. Instances are then refused at once.
    pub async fn ensure_egress(&self) -> Result<Egress, NetworkError> {
        self.mend().await?;
        let host = read_host_network().await?;
        self.mend_rules().await?;
        let mut loaded = self.loaded.lock().await;
        let host = HostNetwork {
            private: loaded.host.private.clone(),
            servers: loaded.host.servers.clone(),
            told_servers: loaded.host.told_servers.clone(),
            ..host
        };
        if host != loaded.host {
            // Rules that this agent did not load are loaded with the instances.
            if loaded.endpoints.is_some() {
                nft(&self.namespace, &rules::host_change(&host)).await?;
            }
            loaded.host = host;
        }
        drop(loaded);
        let namespace = namespace::path_of(&self.namespace);
        let linked = links(Some(&self.namespace))
            .await?
            .iter()
            .any(|link| link == UPLINK);
        let mut found = Slirp::find_all(&namespace).await?;
        if found.len() == 1 && linked && found[0].is_usable() {
            return Ok(Egress::new(found.remove(0)));
        }
        for slirp in found {
            slirp.end().await?;
        }
        if run(&["ip", "-4", "route", "show", "default"], "")
            .await?
            .trim()
            .is_empty()
        {
            return Err(NetworkError::NoUplink);
        }
        Slirp::start(&namespace, &self.namespace, *self.mtu.read().await).await?;
        match Slirp::find_all(&namespace).await?.pop() {
            Some(slirp) => Ok(Egress::new(slirp)),
            None => Err(NetworkError::Process {
                source: io::Error::other("slirp4netns ended at once"),
            }),
        }
    }

    /// Makes sure the instance's tap is gone, with its routes. It usually is: it ended with its VMM.
    ///
    /// # Errors
    /// A refusal of `ip`.
    pub async fn release(&self, instance: InstanceId) -> Result<(), NetworkError> {
        delete_link(Some(&self.namespace), &tap_name(instance)).await
    }

    /// Removes the whole network of this suffix, the taps of running VMMs included. Nothing is left
    /// of it, and it is no error when nothing was there.
    ///
    /// # Errors
    /// An invalid suffix, or a refusal of `ip`.
    pub async fn remove(suffix: &str) -> Result<(), NetworkError> {
        let suffix = Suffix::new(suffix)?;
        let name = suffix.namespace();
        for slirp in Slirp::find_all(&namespace::path_of(&name)).await? {
            slirp.end().await?;
        }
        match namespace::look_up(&name).await? {
            Named::Absent => {}
            Named::Stale => namespace::remove_stale_name(&name).await?,
            Named::Present => {
                // A VMM that still runs keeps the namespace alive without a name, so its tap is removed.
                for link in links(Some(&name)).await? {
                    // As does the process of a TUN device, which ends by that.
                    if link.starts_with('t') || link == OVERLAY_LINK {
                        delete_link(Some(&name), &link).await?;
                    }
                }
                run(&["ip", "netns", "delete", &name], "").await?;
            }
        }
        // Its other end went with the namespace, but the kernel may take a moment for it.
        delete_link(None, &suffix.host_link()).await
    }

    async fn apply_settings(&self) -> Result<(), NetworkError> {
        // Before any link is made: links take their settings from `default`.
        let settings: Vec<(String, &str)> = [
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_redirects", "0"),
            ("ipv6/conf/default/addr_gen_mode", "1"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/forwarding", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/ip_forward", "1"),
            // Sources are pinned by the rules.
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            // Every refusal is sent; the rules bound how many.
            ("ipv4/icmp_ratelimit", "0"),
        ]
        .into_iter()
        .map(|(name, value)| (format!("net/{name}"), value))
        .collect();
        namespace::within(&self.namespace, move || {
            namespace::write_settings(&settings)
        })
        .await
    }

    async fn ensure_link(&self) -> Result<(), NetworkError> {
        let host_link = &self.host_link;
        let on_host = links(None).await?.iter().any(|link| link == host_link);
        let inside = links(Some(&self.namespace))
            .await?
            .iter()
            .any(|link| link == INSIDE_LINK);
        if on_host && inside {
            return Ok(());
        }
        if on_host {
            // Left over from a namespace that is gone.
            delete_link(None, host_link).await?;
        }
        ip_batch(
            None,
            &[format!(
                "link add {host_link} type veth peer name {INSIDE_LINK} netns {}",
                self.namespace
            )],
        )
        .await
    }

    async fn configure_link(&self) -> Result<(), NetworkError> {
        let (settings, host_link) = (&self.settings, &self.host_link);
        let machine = platform_address(settings.cluster_prefix, settings.node, 1);
        let own = platform_address(settings.cluster_prefix, settings.node, 2);
        let too_big = platform_address(settings.cluster_prefix, settings.node, 3);
        let node = node_prefix(settings.cluster_prefix, settings.node);
        let cluster = settings.cluster_prefix;
        let mtu = *self.mtu.read().await;
        let metric = CLUSTER_ROUTE_METRIC + u32::from(settings.node.0);
        // Of this one link only: the machine's other settings stay as they are.
        let link_settings = [
            ("disable_ipv6", "0"),
            ("addr_gen_mode", "1"),
            ("accept_ra", "0"),
        ]
        .map(|(name, value)| (format!("net/ipv6/conf/{host_link}/{name}"), value));
        blocking(move || namespace::write_settings(&link_settings)).await?;
        ip_batch(
            Some(&self.namespace),
            &[
                "link set dev lo up".to_owned(),
                format!("link set dev {INSIDE_LINK} mtu {mtu} up"),
                format!("addr replace {own}/128 dev lo nodad"),
                format!("addr replace fe80::1/64 dev {INSIDE_LINK} nodad"),
                format!("route replace {machine}/128 dev {INSIDE_LINK}"),
                // Only what is too large for it gets there (the rules), so that it is answered by Packet Too Big: members see by that whether it comes back.
                format!("route replace {too_big}/128 dev {INSIDE_LINK} mtu {MIN_MTU}"),
                // Without an uplink, packets by this route meet the rules, which refuse them.
                format!("route replace default dev lo metric {NO_UPLINK_METRIC}"),
            ],
        )
        .await?;
        ip_batch(
            None,
            &[
                format!("link set dev {host_link} mtu {mtu} up"),
                format!("addr replace {machine}/128 dev {host_link} nodad"),
                format!("addr replace fe80::2/64 dev {host_link} nodad"),
                format!("route replace {node}/64 via fe80::1 dev {host_link} src {machine}"),
                format!(
                    "route replace {cluster}/48 via fe80::1 dev {host_link} src {machine} metric {metric}"
                ),
            ],
        )
        .await
    }

    /// Whether both tables are there.
    async fn has_tables(&self) -> Result<bool, NetworkError> {
        let namespace = &self.namespace;
        let command = ["ip", "netns", "exec", namespace, "nft", "list", "tables"];
        let tables = run(&command, "").await?;
        let is_there = |table: &str| {
            let line = format!("table {table}");
            tables.lines().any(|known| known.trim() == line)
        };
        Ok(is_there(rules::TABLE) && is_there(rules::LIMITS))
    }

    async fn ensure_rules(&self) -> Result<(), NetworkError> {
        if !self.has_tables().await? {
            self.apply_rules(&[]).await?;
        }
        // The setting is there once there are rules that track connections.
        namespace::within(&self.namespace, move || {
            namespace::write_settings(&[(
                "net/netfilter/nf_conntrack_udp_timeout".to_owned(),
                &rules::UDP_MEMORY_SECONDS.to_string(),
            )])
        })
        .await
    }
}

/// Whether IPv6 and taps have such an MTU.
pub(crate) fn check_mtu(mtu: u32) -> Result<(), NetworkError> {
    if (MIN_MTU..=MAX_MTU).contains(&mtu) {
        return Ok(());
    }
    Err(NetworkError::Mtu(mtu))
}

/// Makes the namespace, unless its name leads to one. One whose name is gone, and whose VMs run, is given its name again.
async fn ensure_namespace(name: &str, settings: &NetworkSettings) -> Result<(), NetworkError> {
    match namespace::look_up(name).await? {
        Named::Present => return Ok(()),
        Named::Stale => namespace::remove_stale_name(name).await?,
        Named::Absent => {}
    }
    let own = platform_address(settings.cluster_prefix, settings.node, 2);
    if let Some(found) = blocking(move || lost::find_namespace(own)).await {
        namespace::give_name(name, Arc::new(found.into())).await?;
        tracing::warn!(
            namespace = name,
            "somebody had removed the name of the workload network's namespace; it has its name again"
        );
        return Ok(());
    }
    let made = blocking(namespace::make_names_dir).await;
    made.map_err(|source| NetworkError::Namespace {
        name: name.to_owned(),
        source,
    })?;
    run(&["ip", "netns", "add", name], "").await?;
    Ok(())
}

/// The machine's own IPv4 addresses and resolver, as they are now.
async fn read_host_network() -> Result<HostNetwork, NetworkError> {
    let command = ["ip", "-4", "-json", "route", "show", "table", "local"];
    let routes = run(&command, "").await?;
    let own =
        host_network::own_addresses(&routes).map_err(|error| not_understood(&command, &error))?;
    // A machine without the file has no resolver that we could name.
    let resolv_conf = tokio::fs::read_to_string(RESOLV_CONF)
        .await
        .unwrap_or_default();
    Ok(HostNetwork {
        own,
        resolver: host_network::first_resolver(&resolv_conf),
        ..HostNetwork::default()
    })
}

fn not_understood(command: &[&str], error: &serde_json::Error) -> NetworkError {
    NetworkError::Command {
        command: command.join(" "),
        stderr: format!("its answer is not what was expected: {error}"),
        hint: "is this Debian's iproute2?",
    }
}

/// Names of all links of a namespace.
pub(crate) async fn links(namespace: Option<&str>) -> Result<Vec<String>, NetworkError> {
    #[derive(serde::Deserialize)]
    struct Link {
        // Links that were just removed come as `{}`.
        ifname: Option<String>,
    }
    let mut command = vec!["ip"];
    if let Some(name) = namespace {
        command.extend(["-n", name]);
    }
    command.extend(["-json", "link", "show"]);
    let text = run(&command, "").await?;
    let links: Vec<Link> =
        serde_json::from_str(text.trim()).map_err(|error| not_understood(&command, &error))?;
    Ok(links.into_iter().filter_map(|link| link.ifname).collect())
}

/// Deletes a link; it is no error when there is none.
async fn delete_link(namespace: Option<&str>, link: &str) -> Result<(), NetworkError> {
    match ip_batch(namespace, &[format!("link delete dev {link}")]).await {
        Err(NetworkError::Command { stderr, .. }) if stderr.contains("Cannot find device") => {
            Ok(())
        }
        other => other,
    }
}

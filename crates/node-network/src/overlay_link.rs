//! The node's end of the overlay: addresses and routes of the link by which other members are reached, and what follows them.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};

use guest_protocol::RESOLVER;
use overlay::private_networks::PrivateNetworks;

use crate::command::{ip_batch, nft};
use crate::host_network::HostNetwork;
use crate::names::{INSIDE_LINK, OVERLAY_LINK, UPLINK, node_prefix, platform_address};
use crate::network::{Network, check_mtu, links};
use crate::{NetworkError, OverlayAccess, attached, namespace, rules};

/// Metric of the route by which what is for an instance that is not here is refused, and does not go around in circles: the last one.
const NO_INSTANCE_METRIC: u32 = u32::MAX;

impl Network {
    /// Gives the link [`OVERLAY_LINK`], which `wireguard::interface` made in this namespace, its MTU and the routes to the other members. Until
    /// [`Network::apply_overlay`] names them nothing of theirs passes. May be called at any time.
    ///
    /// # Errors
    /// There is no such link, or a refusal of `ip`.
    pub async fn attach_overlay(&self) -> Result<(), NetworkError> {
        let mtu = *self.mtu.read().await;
        let node = self.settings.node;
        let own = platform_address(self.cluster_prefix, node, 2);
        let prefix = node_prefix(self.cluster_prefix, node);
        let cluster = self.cluster_prefix;
        let quiet = [("disable_ipv6", "0"), ("addr_gen_mode", "1")]
            .map(|(name, value)| (format!("net/ipv6/conf/{OVERLAY_LINK}/{name}"), value));
        namespace::within(&self.namespace, move || namespace::write_settings(&quiet)).await?;
        ip_batch(
            Some(&self.namespace),
            &[
                format!("link set dev {OVERLAY_LINK} mtu {mtu} up"),
                format!("route replace {cluster}/48 dev {OVERLAY_LINK} src {own}"),
                format!("route replace unreachable {prefix}/64 dev lo metric {NO_INSTANCE_METRIC}"),
            ],
        )
        .await
    }

    /// Whether the link still has its route to the other members, as [`Network::attach_overlay`] gave it. Reads a file.
    pub async fn is_attached(&self) -> bool {
        let cluster = self.cluster_prefix;
        let looked = namespace::within(&self.namespace, move || {
            Ok(attached::has_route(cluster, OVERLAY_LINK))
        });
        // What cannot be looked at is nothing to mend here.
        looked.await.unwrap_or(true)
    }

    /// Makes the rules those for exactly these other members. It costs what differs from the last call. An agent that starts calls it before its first
    /// [`Network::apply_rules`], which then loads both at once: nothing that passed is dropped in between.
    ///
    /// # Errors
    /// A refusal of `nft`; the rules are then as before.
    pub async fn apply_overlay(&self, access: &OverlayAccess) -> Result<(), NetworkError> {
        let mut loaded = self.loaded.lock().await;
        match loaded.endpoints.clone() {
            Some(endpoints) => self.load(&mut loaded, endpoints, access.clone()).await,
            // They are loaded with the instances.
            None => {
                loaded.access = access.clone();
                Ok(())
            }
        }
    }

    /// Gives every link and tap another MTU, in bytes, and those that are made from now on. Guests are told by the caller; a packet that is too large meanwhile is answered
    /// by Packet Too Big.
    ///
    /// # Errors
    /// An MTU that IPv6 or a tap does not have, or a refusal of `ip`.
    pub async fn set_mtu(&self, mtu: u32) -> Result<(), NetworkError> {
        check_mtu(mtu)?;
        let mut current = self.mtu.write().await;
        *current = mtu;
        let ours = |link: &String| {
            [INSIDE_LINK, OVERLAY_LINK, UPLINK].contains(&link.as_str()) || link.starts_with('t')
        };
        let set = |link: &str| format!("link set dev {link} mtu {mtu}");
        let inside = links(Some(&self.namespace)).await?;
        for link in inside.iter().filter(|link| ours(link)) {
            match ip_batch(Some(&self.namespace), &[set(link)]).await {
                // A tap that ended with its VM meanwhile.
                Err(NetworkError::Command { stderr, .. })
                    if stderr.contains("Cannot find device") => {}
                other => other?,
            }
        }
        ip_batch(None, &[set(&self.host_link)]).await
    }

    /// Gives the namespace the address at which guests ask for names, for a resolver that listens there. Without it `slirp4netns` answers for the machine's.
    ///
    /// # Errors
    /// A refusal of `ip`.
    pub async fn attach_resolver(&self) -> Result<(), NetworkError> {
        let line = format!("addr replace {RESOLVER}/32 dev lo");
        ip_batch(Some(&self.namespace), &[line]).await
    }

    /// Which private networks instances of egress `all` reach; without a call all of them. It does not open what is denied to everybody, as the machine's own
    /// addresses. What is established goes on.
    ///
    /// # Errors
    /// A refusal of `nft`; the rules are then as before.
    pub async fn set_private_networks(
        &self,
        networks: &PrivateNetworks,
    ) -> Result<(), NetworkError> {
        self.change_host(|host| host.private.clone_from(networks))
            .await
    }

    /// Where the servers of the cluster answer: no instance reaches the control plane, whatever its egress. Where one shares an address with an edge, TCP 80 and
    /// 443 stay open.
    ///
    /// # Errors
    /// A refusal of `nft`; the rules are then as before.
    pub async fn set_servers(&self, servers: &BTreeSet<SocketAddrV4>) -> Result<(), NetworkError> {
        self.change_host(|host| host.servers.clone_from(servers))
            .await
    }

    /// The same by what the servers themselves said, beside those of [`Self::set_servers`]: addresses of their machines that no URL names.
    ///
    /// # Errors
    /// A refusal of `nft`; the rules are then as before.
    pub async fn set_told_servers(
        &self,
        servers: &BTreeSet<SocketAddr>,
    ) -> Result<(), NetworkError> {
        let servers = servers.iter().filter_map(|server| match server {
            SocketAddr::V4(server) => Some(*server),
            // Instances have no egress by IPv6.
            SocketAddr::V6(_) => None,
        });
        let servers = servers.collect();
        self.change_host(|host| host.told_servers = servers).await
    }

    /// Changes what the rules have of the machine's surroundings. Rules that this agent did not load yet are loaded with the instances.
    async fn change_host(&self, change: impl FnOnce(&mut HostNetwork)) -> Result<(), NetworkError> {
        let mut loaded = self.loaded.lock().await;
        let mut host = loaded.host.clone();
        change(&mut host);
        if host != loaded.host && loaded.endpoints.is_some() {
            nft(&self.namespace, &rules::host_change(&host)).await?;
        }
        loaded.host = host;
        Ok(())
    }
}

//! An edge's end of the overlay: a link in the machine's own network, with the edge's addresses, a route to the cluster, and a table of rules of its own.
//!
//! An edge begins connections and gets none, so the table lets answers in, echoes and errors, and nothing else: a bad node reaches nothing of the edge's machine.
//! The rules compare TCP flags instead of tracking connections: tracking would cost every connection of the machine, and bound how many there are.

use std::net::Ipv6Addr;

use blocking_work::blocking;
use model::NodeId;

use crate::command::{ip_batch, run};
use crate::names::platform_address;
use crate::network::check_mtu;
use crate::{NetworkError, attached, namespace};

/// Metrics of edges' routes to the cluster are up to this: before those of nodes of the same machine, whose own /64 are more specific routes.
const MAX_ROUTE_METRIC: u32 = 2047;

/// An edge's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeLink {
    /// Its name, as of `wireguard::interface`: letters, digits and hyphens.
    pub link: String,
    /// The cluster's /48, as its first address.
    pub cluster_prefix: Ipv6Addr,
    /// The edge's number.
    pub edge: NodeId,
    /// In bytes.
    pub mtu: u32,
}

impl EdgeLink {
    /// Gives the link, which is there, addresses, route and rules; the rules come first. May be called at any time, also with another MTU.
    ///
    /// # Errors
    /// There is no such link, an MTU that IPv6 does not have, or a refusal of `ip` or `nft`.
    pub async fn ensure(&self) -> Result<(), NetworkError> {
        check_mtu(self.mtu)?;
        let Self {
            link,
            cluster_prefix,
            edge,
            mtu,
        } = self;
        run(&["nft", "-f", "-"], &rules(link)).await?;
        // A service that may not change the machine's settings has nothing to change, where links have IPv6.
        let setting = format!("net/ipv6/conf/{link}/disable_ipv6");
        let has_ipv6 = blocking({
            let path = format!("/proc/sys/{setting}");
            move || std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0")
        });
        if !has_ipv6.await {
            blocking(move || namespace::write_settings(&[(setting, "0")])).await?;
        }
        let address = |number| platform_address(*cluster_prefix, *edge, number);
        let (own, probed) = (address(1), address(2));
        // One of its own: several edges of one machine would replace each other's route.
        let metric = 1 + u32::from(edge.0) % MAX_ROUTE_METRIC;
        ip_batch(
            None,
            &[
                // It has no neighbours, so no link-local address, which it may have got when it was set up.
                format!("link set dev {link} addrgenmode none"),
                format!("addr flush dev {link} scope link"),
                format!("link set dev {link} mtu {mtu} up"),
                // The second is deprecated: nothing begins from it.
                format!("addr replace {own}/128 dev {link} nodad"),
                format!("addr replace {probed}/128 dev {link} nodad preferred_lft 0"),
                format!("route replace {cluster_prefix}/48 dev {link} src {own} metric {metric}"),
            ],
        )
        .await
    }

    /// Whether the link still has its addresses and its route, as [`EdgeLink::ensure`] gave them. Reads two files.
    pub async fn is_attached(&self) -> bool {
        let Self {
            link,
            cluster_prefix,
            edge,
            ..
        } = self.clone();
        blocking(move || {
            attached::has_route(cluster_prefix, &link)
                && attached::has_addresses(cluster_prefix, edge, &link)
        })
        .await
    }

    /// Removes the rules of a link; its addresses and routes went with it.
    ///
    /// # Errors
    /// A refusal of `nft`.
    pub async fn remove(link: &str) -> Result<(), NetworkError> {
        let table = table_of(link);
        // Named first, so that it is there to be deleted.
        let removal = format!("table {table}\ndelete table {table}\n");
        run(&["nft", "-f", "-"], &removal).await?;
        Ok(())
    }
}

/// Names of tables have no hyphens.
fn table_of(link: &str) -> String {
    format!("inet {}", link.replace('-', "_"))
}

fn rules(link: &str) -> String {
    let table = table_of(link);
    format!(
        "table {table}\n\
         delete table {table}\n\
         table {table} {{\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter - 1; policy accept;\n\
         \t\tiifname != \"{link}\" return\n\
         \t\ttcp flags & (fin | syn | rst | ack) != syn return\n\
         \t\ticmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply }} return\n\
         \t\tdrop\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter - 1; policy accept;\n\
         \t\tiifname \"{link}\" drop\n\
         \t\toifname \"{link}\" drop\n\
         \t}}\n\
         }}\n"
    )
}

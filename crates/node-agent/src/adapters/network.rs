//! The node's network namespace, its taps, rules and egress.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::node::InstanceReport;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use membership::server_addresses;
use microvm::Nic;
use model::InstanceId;
use node_network::{Endpoint, NetworkError};

use crate::host::{Egress, HostError, HostResult, Network, NetworkProbe};
use crate::names::NodeNames;
use crate::probes;
use display::chain;

/// Longest wait for the address of the server's name.
const NAME_WAIT: Duration = Duration::from_secs(2);

/// The network of this node.
#[derive(Debug)]
pub(crate) struct NodeNetwork {
    pub(crate) network: Arc<node_network::Network>,
    pub(crate) names: Arc<NodeNames>,
    /// The servers' URLs.
    pub(crate) server: String,
}

impl Network for NodeNetwork {
    fn create_tap(&self, endpoint: Endpoint) -> BoxFuture<'_, HostResult<Nic>> {
        async move {
            let tap = self.network.create_tap(&endpoint).await;
            let tap = tap.map_err(|error| {
                failed(&format!("make the tap of {}", endpoint.instance), &error)
            })?;
            Ok(Nic {
                tap: tap.fd,
                mac: tap.mac,
            })
        }
        .boxed()
    }

    fn apply_rules(&self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, HostResult<()>> {
        async move {
            // Before their VMs run, so that no question comes before its asker is known.
            self.names.set_clients(&endpoints);
            let applied = self.network.apply_rules(&endpoints).await;
            applied.map_err(|error| failed("apply the network rules", &error))
        }
        .boxed()
    }

    fn release(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>> {
        async move {
            let released = self.network.release(id).await;
            released.map_err(|error| failed(&format!("remove the tap of {id}"), &error))
        }
        .boxed()
    }

    fn ensure_egress(&self) -> BoxFuture<'_, HostResult<Egress>> {
        async move {
            // One whose name does not resolve now is where it was.
            let servers = tokio::time::timeout(NAME_WAIT, server_addresses(&self.server)).await;
            let servers: BTreeSet<_> = (servers.into_iter().flatten())
                .filter_map(|server| match server {
                    SocketAddr::V4(server) => Some(server),
                    SocketAddr::V6(_) => None,
                })
                .collect();
            if !servers.is_empty() {
                let set = self.network.set_servers(&servers).await;
                set.map_err(|error| failed("keep instances from the server", &error))?;
            }
            let egress = self.network.ensure_egress().await;
            let egress = egress.map_err(|error| HostError::transient(chain(&error)))?;
            Ok(Egress {
                reason: if self.names.has_servers() {
                    "by slirp4netns"
                } else {
                    "by slirp4netns; names outside of the cluster are not resolved, because /etc/resolv.conf names no name server: name one"
                }
                .to_owned(),
                ended: async move { egress.ended().await }.boxed(),
            })
        }
        .boxed()
    }

    fn set_reports(&self, reports: &[InstanceReport]) {
        self.names.set_reports(reports);
    }

    fn probe(&self, address: Ipv6Addr, probe: NetworkProbe) -> BoxFuture<'_, Result<(), String>> {
        async move { probes::over_network(address, &probe).await }.boxed()
    }
}

fn failed(operation: &str, error: &NetworkError) -> HostError {
    HostError::transient(format!("cannot {operation}: {}", chain(error)))
}

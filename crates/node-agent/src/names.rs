//! What this node's resolver is to know, and the process of the resolver.
//!
//! The server says which instances the node's envs have anywhere ([`node_core::directory`]); of its own the node knows better
//! whether they are ready, also while the server is away. What changes is collected until the resolver is told of it; a resolver that was started anew is
//! told everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::node::{DirectoryChanges, DirectoryEntry, InstanceReport};
use api_client::ApiClient;
use blocking_work::blocking;
use display::{Repeated, chain};
use model::instance::InstanceState;
use model::{EnvNetwork, InstanceId, NodeId};
use node_core::directory::{Directory, DirectoryRefused, EnvInstances};
use node_network::Endpoint;
use overlay::address_plan::env_network;
use resolver::agent::{Resolver, ResolverOptions};
use resolver::names::{Client, NamedInstance, NamedPort, Update};
use serde::{Deserialize, Serialize};
use state_file::StateFormat;
use tokio::sync::{Notify, watch};

/// How long one poll for the directory waits.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// Pause after a poll that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The directory is written to disk at most this often.
const WRITE_PAUSE: Duration = Duration::from_secs(2);
/// How often the machine's name servers and the resolver's process are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Where the machine's name servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The port of DNS.
const DNS_PORT: u16 = 53;
/// Name of the file with the directory, in the data folder.
const DIRECTORY_FILE: &str = "directory.json";

/// `directory.json`: what the server said last of the node's envs. One of each version is in `fixtures/directory`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct DirectoryFile(Directory);

impl StateFormat for DirectoryFile {
    const VERSION: u32 = 1;
}

/// What the resolver is to know, and who may send to this node's instances.
#[derive(Debug)]
pub(crate) struct NodeNames {
    cluster_prefix: Ipv6Addr,
    file: PathBuf,
    known: Mutex<Known>,
    /// Notified when there is something to tell the resolver.
    pending: Notify,
    /// Counts the changes of the directory.
    directory_changes: watch::Sender<u64>,
    /// Whether the instances of the agent before are known: until then the resolver goes on with those that it knows.
    has_clients: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    directory: Directory,
    /// Instances of this node, and whether they are ready.
    ready: BTreeMap<InstanceId, bool>,
    clients: BTreeMap<InstanceId, Client>,
    servers: Vec<SocketAddr>,
    pending: Update,
}

impl NodeNames {
    /// Begins with what the node knew last.
    pub(crate) async fn load(cluster_prefix: Ipv6Addr, data_dir: &Path) -> Arc<Self> {
        let file = data_dir.join(DIRECTORY_FILE);
        let path = file.clone();
        let read = blocking(move || state_file::read::<DirectoryFile>(&path)).await;
        let directory = match read {
            Ok(kept) => kept.map(|DirectoryFile(directory)| directory),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "cannot read the directory of the node's envs; the server is asked for it"
                );
                None
            }
        };
        Arc::new(Self {
            cluster_prefix,
            file,
            known: Mutex::new(Known {
                directory: directory.unwrap_or_default(),
                servers: machine_servers().await,
                ..Known::default()
            }),
            pending: Notify::new(),
            directory_changes: watch::Sender::new(0),
            has_clients: watch::Sender::new(false),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which peers may send from which envs of this node.
    pub(crate) fn neighbours(&self, own: NodeId) -> BTreeSet<(NodeId, EnvNetwork)> {
        self.known().directory.neighbours(self.cluster_prefix, own)
    }

    /// Changes whenever [`Self::neighbours`] may.
    pub(crate) fn directory_changes(&self) -> watch::Receiver<u64> {
        self.directory_changes.subscribe()
    }

    /// These instances of this node may ask; no others.
    pub(crate) fn set_clients(&self, endpoints: &[Endpoint]) {
        let clients: BTreeMap<_, _> = (endpoints.iter())
            .map(|endpoint| {
                let client = Client {
                    address: endpoint.address,
                    egress: endpoint.egress,
                };
                (endpoint.instance, client)
            })
            .collect();
        let mut known = self.known();
        let known = &mut *known;
        let gone = known.clients.keys().filter(|id| !clients.contains_key(id));
        known.pending.clients.extend(gone.map(|id| (*id, None)));
        let new = clients
            .iter()
            .filter(|(id, client)| known.clients.get(id) != Some(client));
        known
            .pending
            .clients
            .extend(new.map(|(id, client)| (*id, Some(*client))));
        known.clients = clients;
        self.notify(known);
        self.has_clients.send_replace(true);
    }

    /// What the agent reports of its instances.
    pub(crate) fn set_reports(&self, reports: &[InstanceReport]) {
        let ready: BTreeMap<_, _> = (reports.iter())
            .map(|report| {
                let ready = matches!(report.state, InstanceState::Running { ready: true, .. });
                (report.id, ready)
            })
            .collect();
        let mut known = self.known();
        let known = &mut *known;
        let before = std::mem::replace(&mut known.ready, ready);
        let ids = before.keys().chain(known.ready.keys());
        let changed: BTreeSet<_> = ids
            .filter(|id| before.get(id) != known.ready.get(id))
            .copied()
            .collect();
        for id in changed {
            let client = known.clients.get(&id);
            let Some(network) = client.map(|client| env_network(client.address)) else {
                continue;
            };
            let named = known.named(network, id);
            known.pending.instances.insert(id, named);
        }
        self.notify(known);
    }

    /// Whether the machine names a name server that can be asked.
    pub(crate) fn has_servers(&self) -> bool {
        !self.known().servers.is_empty()
    }

    fn set_servers(&self, servers: Vec<SocketAddr>) {
        let mut known = self.known();
        if known.servers != servers {
            known.servers.clone_from(&servers);
            known.pending.servers = Some(servers);
            self.notify(&known);
        }
    }

    fn notify(&self, known: &Known) {
        if !known.pending.is_empty() {
            self.pending.notify_one();
        }
    }

    /// Takes what the server says that changed.
    fn take(&self, cluster: &str, changes: DirectoryChanges) -> Result<(), DirectoryRefused> {
        let mut known = self.known();
        let known = &mut *known;
        let mut affected = BTreeSet::new();
        let mut all_of = |directory: &Directory, network: EnvNetwork| {
            if let Some(env) = directory.envs.get(&network) {
                affected.extend(env.instances.keys().map(|id| (network, *id)));
            }
        };
        if changes.since.is_none() {
            for network in known.directory.envs.keys() {
                all_of(&known.directory, *network);
            }
        }
        for network in &changes.removed {
            all_of(&known.directory, *network);
        }
        for (network, env) in &changes.envs {
            if env.whole {
                all_of(&known.directory, *network);
            }
        }
        for (network, env) in &changes.envs {
            let changed = env.instances.keys().chain(&env.removed);
            affected.extend(changed.map(|id| (*network, *id)));
        }
        known.directory.apply(cluster, changes)?;
        for (network, id) in affected {
            let named = known.named(network, id);
            // One that is in another env by now is named by that.
            if named.is_some() || !matches!(known.pending.instances.get(&id), Some(Some(_))) {
                known.pending.instances.insert(id, named);
            }
        }
        self.notify(known);
        self.directory_changes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn take_pending(&self) -> Update {
        std::mem::take(&mut self.known().pending)
    }

    /// Everything, for a resolver that may know nothing.
    fn whole(&self) -> Update {
        let mut known = self.known();
        known.pending = Update::default();
        let mut instances = BTreeMap::new();
        for (network, env) in &known.directory.envs {
            for id in env.instances.keys() {
                instances.insert(*id, known.named(*network, *id));
            }
        }
        Update {
            whole: true,
            cluster_prefix: Some(self.cluster_prefix),
            instances,
            clients: (known.clients.iter())
                .map(|(id, client)| (*id, Some(*client)))
                .collect(),
            servers: Some(known.servers.clone()),
        }
    }
}

impl Known {
    /// An instance as the resolver is to name it; absent: not at all.
    fn named(&self, network: EnvNetwork, id: InstanceId) -> Option<NamedInstance> {
        let env = self.directory.envs.get(&network)?;
        let entry = env.instances.get(&id)?;
        // An address of another env would be a server's mistake, and names one env's instance to the other.
        (env_network(entry.address) == network).then(|| named(env, entry, self.ready.get(&id)))
    }
}

/// `ready_here`: whether this node sees that it is ready, where it is one of its own.
fn named(env: &EnvInstances, entry: &DirectoryEntry, ready_here: Option<&bool>) -> NamedInstance {
    let port = |port: &model::instance::Port| NamedPort {
        port: port.port,
        protocol: port.protocol,
    };
    NamedInstance {
        app: env.app.clone(),
        env: env.env.clone(),
        process: entry.process.clone(),
        address: entry.address,
        ready: entry.ready && ready_here.is_none_or(|ready| *ready),
        ports: entry.ports.iter().map(port).collect(),
    }
}

/// Follows the directory of the node's envs for ever. While the server is away, what it said last holds.
pub(crate) async fn follow_directory(names: Arc<NodeNames>, cluster: String, client: ApiClient) {
    let changed = Notify::new();
    let following = async {
        let mut refused = Repeated::default();
        loop {
            let (session, after) = names.known().directory.position;
            let error = match client.directory(session, after, POLL_WAIT).await {
                Ok(None) => continue,
                Ok(Some(changes)) => match names.take(&cluster, changes) {
                    Ok(()) => {
                        changed.notify_one();
                        continue;
                    }
                    Err(refused) => refused.to_string(),
                },
                Err(error) => chain(&error),
            };
            if refused.is_due(tokio::time::Instant::now(), &error) {
                tracing::warn!(
                    error,
                    "cannot follow the directory of the node's envs; what is known of it holds"
                );
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    let writing = async {
        loop {
            changed.notified().await;
            let (file, kept) = (names.file.clone(), names.known().directory.clone());
            let written = blocking(move || state_file::write(&file, &DirectoryFile(kept))).await;
            if let Err(error) = written {
                let error = chain(&error);
                // A restart without the server begins with an older one.
                tracing::warn!(
                    error,
                    "cannot keep the directory of the node's envs on disk"
                );
            }
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    };
    let ((), ()) = tokio::join!(following, writing);
}

/// Keeps the resolver's process, and what it knows, for ever.
pub(crate) async fn keep_resolver(
    names: Arc<NodeNames>,
    network: Arc<node_network::Network>,
    options: ResolverOptions,
) {
    let mut refused = Repeated::default();
    loop {
        let reason = match serve_resolver(&names, &network, &options).await {
            Ok(ended) => ended,
            Err(error) => error,
        };
        if refused.is_due(tokio::time::Instant::now(), &reason) {
            tracing::warn!(reason, "the resolver of the instances is started again");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Starts or finds the resolver, and tells it what changes until it ends; why, for people.
async fn serve_resolver(
    names: &NodeNames,
    network: &node_network::Network,
    options: &ResolverOptions,
) -> Result<String, String> {
    let resolver = Resolver::ensure(options)
        .await
        .map_err(|error| chain(&error))?;
    let tell = async |update| {
        let told = resolver.update(update).await;
        told.map_err(|error| chain(&error))
    };
    // Its sender is the names themselves.
    let _ = names.has_clients.subscribe().wait_for(|has| *has).await;
    tell(names.whole()).await?;
    // Only now, so that until then those answer that did before.
    network
        .attach_resolver()
        .await
        .map_err(|error| chain(&error))?;
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            () = names.pending.notified() => {
                let update = names.take_pending();
                if !update.is_empty() {
                    tell(update).await?;
                }
            }
            () = resolver.ended() => return Ok("its process ended".to_owned()),
            _ = look.tick() => {
                names.set_servers(machine_servers().await);
                if resolver.is_stopped() {
                    return Ok("its process was stopped".to_owned());
                }
                network.attach_resolver().await.map_err(|error| chain(&error))?;
            }
        }
    }
}

/// The machine's name servers, as they are now. One that names none has none that we could ask.
async fn machine_servers() -> Vec<SocketAddr> {
    let text = blocking(|| std::fs::read_to_string(RESOLV_CONF)).await;
    servers(&text.unwrap_or_default())
}

/// The name servers of a resolv.conf(5), in order. Those of one link (`fe80::1%eth0`) are left out: the link is not known by number.
fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let named = (words.next()? == "nameserver").then(|| words.next())??;
        Some(SocketAddr::new(named.parse().ok()?, DNS_PORT))
    });
    lines.collect()
}

#[cfg(test)]
mod tests;

//! Which names there are, and for whom. Pure: it is told of changes, and of the time.
//!
//! A name is looked up in the env of who asks and in no other, so that nothing is told of other envs: their names do not exist.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use guest_protocol::INTERNAL_DOMAIN;
use model::instance::{EgressPolicy, Protocol};
use model::{AppName, EnvName, EnvNetwork, InstanceId, ProcessName};
use overlay::address_plan;
use serde::{Deserialize, Serialize};

/// How long an answer may be kept where nothing changed for a while, in seconds.
pub const MAX_TTL_SECONDS: u32 = 5;
/// How long an answer may be kept right after a change, and how long an answer that there is nothing, in seconds.
pub const MIN_TTL_SECONDS: u32 = 1;

/// An instance, as it has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedInstance {
    /// Its app.
    pub app: AppName,
    /// Its env.
    pub env: EnvName,
    /// Its process type.
    pub process: ProcessName,
    /// Its address, which says which env network it is in.
    pub address: Ipv6Addr,
    /// Whether it is ready: only then its names lead to it.
    pub ready: bool,
    /// The ports that it serves, in the manifest's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

/// A port that an instance serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    /// The number.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// An instance of this node, which may ask. Its questions come from [`address_plan::egress_address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its address, which says in which env network it asks.
    pub address: Ipv6Addr,
    /// Without egress, names outside of the cluster do not exist for it.
    pub egress: EgressPolicy,
}

/// What is another than before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Whether it is everything: what it does not name is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// The cluster's /48, as its first address. Absent: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_prefix: Option<Ipv6Addr>,
    /// Instances, anywhere in the cluster, of the envs that have instances on this node; null for one that is gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub instances: BTreeMap<InstanceId, Option<NamedInstance>>,
    /// Instances of this node; null for one that is gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clients: BTreeMap<InstanceId, Option<Client>>,
    /// The machine's name servers, the first one first. Absent: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<SocketAddr>>,
}

impl Update {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Every name.
#[derive(Debug, Default)]
pub struct Names {
    cluster_prefix: Option<Ipv6Addr>,
    envs: BTreeMap<EnvNetwork, EnvNames>,
    /// Where each instance is in [`Self::envs`].
    places: BTreeMap<InstanceId, (EnvNetwork, ProcessName)>,
    clients: BTreeMap<Ipv4Addr, (InstanceId, Client)>,
    servers: Vec<SocketAddr>,
}

#[derive(Debug)]
struct EnvNames {
    app: AppName,
    env: EnvName,
    processes: BTreeMap<ProcessName, ProcessNames>,
}

/// The instances of a process type, and when they last changed.
#[derive(Debug, Default)]
pub struct ProcessNames {
    instances: BTreeMap<InstanceId, NamedInstance>,
    changed_ms: u64,
}

/// What a name leads to.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// A process type's instances.
    Process(&'a ProcessNames),
    /// One instance.
    Instance(&'a ProcessNames, InstanceId),
    /// Those ports of a process type's instances (RFC 2782).
    Service(&'a ProcessNames, Service),
    /// The name of the instance that has this address.
    Address(&'a ProcessNames, InstanceId),
    /// The domain itself.
    Apex,
    /// The name exists, because others below it do, and leads to nothing.
    Empty,
    /// Nothing is known yet of the env of who asks.
    Unknown,
    /// There is no such name, for who asks.
    Absent,
    /// The name is none of the cluster's.
    External,
}

/// Which ports a name of a service means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `_http._tcp`, `_tcp._tcp`: those on which this is spoken.
    Protocol(Protocol),
    /// `_8080._tcp`: the one of this number.
    Port(u16),
}

impl Service {
    fn parse(label: &str) -> Option<Self> {
        match label.strip_prefix('_')? {
            "http" => Some(Self::Protocol(Protocol::Http)),
            "tcp" => Some(Self::Protocol(Protocol::Tcp)),
            number => number.parse().ok().map(Self::Port),
        }
    }

    /// Whether it means this port.
    pub fn has(self, port: NamedPort) -> bool {
        match self {
            Self::Protocol(protocol) => port.protocol == protocol,
            Self::Port(number) => port.port == number,
        }
    }
}

impl ProcessNames {
    /// The instances that are ready, by id.
    pub fn ready(&self) -> impl Iterator<Item = (InstanceId, &NamedInstance)> {
        let instances = self.instances.iter();
        instances.filter_map(|(id, instance)| instance.ready.then_some((*id, instance)))
    }

    /// An instance, ready or not.
    pub fn get(&self, id: InstanceId) -> Option<&NamedInstance> {
        self.instances.get(&id)
    }

    /// How long an answer may be kept, in seconds: as long as it has been true, within bounds. So while instances come and go, who asks sees it
    /// at once, and a name that is stable costs few questions.
    pub fn ttl(&self, now_ms: u64) -> u32 {
        let stable = now_ms.saturating_sub(self.changed_ms) / 1000;
        u32::try_from(stable)
            .unwrap_or(MAX_TTL_SECONDS)
            .clamp(MIN_TTL_SECONDS, MAX_TTL_SECONDS)
    }
}

impl Names {
    /// Follows what changed. `now_ms`: monotonic, in milliseconds.
    pub fn apply(&mut self, update: Update, now_ms: u64) {
        if update.whole {
            // What is as before has not changed, whoever tells it again.
            let gone: Vec<_> = (self.places.keys())
                .filter(|id| !matches!(update.instances.get(id), Some(Some(_))))
                .copied()
                .collect();
            for id in gone {
                self.remove(id, now_ms);
            }
            self.clients.clear();
        }
        if let Some(prefix) = update.cluster_prefix {
            self.cluster_prefix = Some(prefix);
        }
        if let Some(servers) = update.servers {
            self.servers = servers;
        }
        for (id, client) in update.clients {
            let address = address_plan::egress_address(id);
            match client {
                Some(client) => {
                    self.clients.insert(address, (id, client));
                }
                // Another instance may have the address by now.
                None => {
                    if (self.clients.get(&address)).is_some_and(|(holder, _)| *holder == id) {
                        self.clients.remove(&address);
                    }
                }
            }
        }
        for (id, instance) in update.instances {
            match instance {
                Some(instance) => self.insert(id, instance, now_ms),
                None => self.remove(id, now_ms),
            }
        }
    }

    fn insert(&mut self, id: InstanceId, instance: NamedInstance, now_ms: u64) {
        let network = address_plan::env_network(instance.address);
        let place = (network, instance.process.clone());
        if let Some(before) = self.places.get(&id) {
            if *before != place {
                self.remove(id, now_ms);
            } else if self.instance(id) == Some(&instance) {
                return;
            }
        }
        let env = self.envs.entry(network).or_insert_with(|| EnvNames {
            app: instance.app.clone(),
            env: instance.env.clone(),
            processes: BTreeMap::new(),
        });
        // A network that was given to another env.
        if (&env.app, &env.env) != (&instance.app, &instance.env) {
            env.app = instance.app.clone();
            env.env = instance.env.clone();
        }
        let process = env.processes.entry(place.1.clone()).or_default();
        process.changed_ms = now_ms;
        process.instances.insert(id, instance);
        self.places.insert(id, place);
    }

    fn remove(&mut self, id: InstanceId, now_ms: u64) {
        let Some((network, name)) = self.places.remove(&id) else {
            return;
        };
        let Some(env) = self.envs.get_mut(&network) else {
            return;
        };
        if let Some(process) = env.processes.get_mut(&name) {
            process.instances.remove(&id);
            process.changed_ms = now_ms;
            if process.instances.is_empty() {
                env.processes.remove(&name);
            }
        }
        if env.processes.is_empty() {
            self.envs.remove(&network);
        }
    }

    fn instance(&self, id: InstanceId) -> Option<&NamedInstance> {
        let (network, process) = self.places.get(&id)?;
        let env = self.envs.get(network)?;
        env.processes.get(process)?.instances.get(&id)
    }

    /// Who asks from this address; absent: no instance of this node.
    pub fn client(&self, address: Ipv4Addr) -> Option<Client> {
        self.clients.get(&address).map(|(_, client)| *client)
    }

    /// The machine's name servers.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// How many instances have names, and how many may ask.
    pub fn counts(&self) -> (usize, usize) {
        (self.places.len(), self.clients.len())
    }

    /// Looks up a name for who is in this env network. `labels`: in lowercase, the last one (`internal`) first.
    pub fn look_up(&self, asking: EnvNetwork, labels: &[&str]) -> Found<'_> {
        match labels {
            [INTERNAL_DOMAIN] => Found::Apex,
            [INTERNAL_DOMAIN, rest @ ..] => self.look_up_internal(asking, rest),
            ["arpa", "ip6", nibbles @ ..] => self.look_up_address(asking, nibbles),
            // Addresses of egress (RFC 6598) are each node's own matter; nobody outside knows them (RFC 7793).
            ["arpa", "in-addr", "100", second, ..]
                if second
                    .parse()
                    .is_ok_and(|byte: u8| (64..128).contains(&byte)) =>
            {
                Found::Absent
            }
            _ => Found::External,
        }
    }

    fn look_up_internal(&self, asking: EnvNetwork, labels: &[&str]) -> Found<'_> {
        // Who asks is an instance of it itself: its node is about to be told.
        let Some(own) = self.envs.get(&asking) else {
            return Found::Unknown;
        };
        let [app, rest @ ..] = labels else {
            return Found::Absent;
        };
        if *app != own.app.as_str() || rest.first().is_some_and(|env| *env != own.env.as_str()) {
            return Found::Absent;
        }
        let [_, process, rest @ ..] = rest else {
            return Found::Empty;
        };
        let name = process.parse::<ProcessName>();
        let Some(process) = name.ok().and_then(|name| own.processes.get(&name)) else {
            return Found::Absent;
        };
        match rest {
            [] => Found::Process(process),
            ["_tcp"] => Found::Empty,
            ["_tcp", service] => match Service::parse(service) {
                Some(service) if process.serves(service) => Found::Service(process, service),
                _ => Found::Absent,
            },
            [instance] => match instance.parse() {
                Ok(id) if process.instances.contains_key(&id) => Found::Instance(process, id),
                _ => Found::Absent,
            },
            _ => Found::Absent,
        }
    }

    /// `labels`: the nibbles of an address, the first one first (RFC 3596, 2.5).
    fn look_up_address(&self, asking: EnvNetwork, labels: &[&str]) -> Found<'_> {
        let Some(cluster) = self.cluster_prefix else {
            return Found::External;
        };
        let mut bits: u128 = 0;
        for label in labels {
            match (label.len(), u128::from_str_radix(label, 16)) {
                (1, Ok(nibble)) if labels.len() <= 32 => bits = bits << 4 | nibble,
                // No address.
                _ => return Found::External,
            }
        }
        let (known, of_cluster) = (
            4 * labels.len(),
            usize::from(address_plan::CLUSTER_PREFIX_BITS),
        );
        if known < of_cluster {
            return Found::External;
        }
        let address = Ipv6Addr::from_bits(bits.checked_shl(128 - known as u32).unwrap_or(0));
        match address_plan::locate(cluster, address) {
            None => Found::External,
            Some(_) if known < 128 => Found::Empty,
            Some(at) if at.network != asking => Found::Absent,
            Some(at) => {
                let process = self
                    .places
                    .get(&at.instance)
                    .and_then(|(network, process)| self.envs.get(network)?.processes.get(process));
                match process {
                    Some(process)
                        if (process.get(at.instance))
                            .is_some_and(|instance| instance.address == address) =>
                    {
                        Found::Address(process, at.instance)
                    }
                    _ => Found::Absent,
                }
            }
        }
    }
}

impl ProcessNames {
    fn serves(&self, service: Service) -> bool {
        let mut ports = self.instances.values().flat_map(|instance| &instance.ports);
        ports.any(|port| service.has(*port))
    }
}

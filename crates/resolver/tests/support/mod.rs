//! A machine with its name servers, a node's namespace on it, and guests in namespaces of their own. Each test runs again in a network and mount namespace of
//! its own, so that the machine is never touched.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use model::instance::{EgressPolicy, Protocol};
use model::{EnvNetwork, InstanceId, NodeId};
use overlay::address_plan::instance_address;
use resolver::agent::ResolverOptions;
use resolver::names::{Client, NamedInstance, NamedPort, Update};
use test_namespaces::shell;

pub(crate) const CLUSTER: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
pub(crate) const SHOP: EnvNetwork = EnvNetwork(0x10);
pub(crate) const BANK: EnvNetwork = EnvNetwork(0x20);

/// The machine: a namespace `node` in which 192.0.0.3 is local, and guests 1 and 2 that reach it from 100.64.0.1 and 100.64.0.2.
pub(crate) fn machine() -> ResolverOptions {
    shell(
        "ip link set lo up; ip netns add node; ip -n node link set lo up; ip -n node addr add 192.0.0.3/32 dev lo",
    );
    for guest in [1, 2] {
        shell(&format!(
            "ip netns add guest{guest}; ip link add n{guest} netns node type veth peer name eth0 netns guest{guest}
             ip -n node link set n{guest} up; ip -n node route add 100.64.0.{guest} dev n{guest}
             ip -n guest{guest} link set eth0 up; ip -n guest{guest} addr add 100.64.0.{guest}/32 dev eth0
             ip -n guest{guest} route add 192.0.0.3 dev eth0"
        ));
    }
    ResolverOptions {
        namespace: "/run/netns/node".into(),
        program: env!("CARGO_BIN_EXE_name-server").into(),
        run_dir: "/run/resolver".into(),
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// What a command in a guest writes.
pub(crate) fn in_guest(guest: u32, command: &str) -> String {
    shell(&format!("ip netns exec guest{guest} {command}"))
}

/// The answer that `dig` gets in a guest: the code, and the records without TTL and class.
pub(crate) fn dig(guest: u32, question: &str) -> String {
    let text = in_guest(
        guest,
        &format!("dig @192.0.0.3 +noall +comments +answer {question} || true"),
    );
    let mut answer = String::new();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("status: ") {
            answer.push_str(rest.split(',').next().unwrap());
        } else if !line.starts_with(';') && !line.is_empty() {
            let words: Vec<_> = line.split_whitespace().collect();
            answer.push_str(&format!(" | {} {}", words[0], words[3..].join(" ")));
        }
    }
    answer
}

pub(crate) fn instance(
    app: &str,
    process: &str,
    id: u32,
    ready: bool,
) -> (InstanceId, Option<NamedInstance>) {
    let network = if app == "shop" { SHOP } else { BANK };
    let instance = NamedInstance {
        app: app.parse().unwrap(),
        env: "prod".parse().unwrap(),
        process: process.parse().unwrap(),
        address: instance_address(CLUSTER, NodeId(1), network, InstanceId(id)),
        ready,
        ports: vec![NamedPort {
            port: 8080,
            protocol: Protocol::Http,
        }],
    };
    (InstanceId(id), Some(instance))
}

/// Guest 1 is of the shop, guest 2 of the bank, which has no egress.
pub(crate) fn names(servers: &[SocketAddr]) -> Update {
    let client = |network, id, egress| {
        let address = instance_address(CLUSTER, NodeId(1), network, InstanceId(id));
        (InstanceId(id), Some(Client { address, egress }))
    };
    Update {
        whole: true,
        cluster_prefix: Some(CLUSTER),
        instances: [
            instance("shop", "web", 1, true),
            instance("shop", "web", 3, true),
            instance("bank", "vault", 2, true),
        ]
        .into(),
        clients: [
            client(SHOP, 1, EgressPolicy::All),
            client(BANK, 2, EgressPolicy::None),
        ]
        .into(),
        servers: Some(servers.to_vec()),
    }
}

/// What a name server of the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Answers,
    Fails,
    Silent,
}

/// A name server of the machine, over UDP and TCP. It knows `www.example.` and `big.example.`, and who it is.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    pub(crate) mood: Arc<Mutex<Mood>>,
    pub(crate) asked: Arc<AtomicU32>,
}

impl NameServer {
    pub(crate) fn start(address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let server = Self {
            address,
            mood: Arc::new(Mutex::new(Mood::Answers)),
            asked: Arc::default(),
        };
        let udp = UdpSocket::bind(address).unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let (mood, asked) = (server.mood.clone(), server.asked.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = answer(&buffer[..length], *mood.lock().unwrap(), address, 512)
                {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let mood = server.mood.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                if let Some(answer) = answer(&question, *mood.lock().unwrap(), address, 65535) {
                    let length = u16::try_from(answer.len()).unwrap();
                    stream.write_all(&length.to_be_bytes()).unwrap();
                    stream.write_all(&answer).unwrap();
                }
            }
        });
        server
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(question: &[u8], mood: Mood, me: SocketAddr, limit: usize) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).unwrap();
    let name = asked.queries[0].name().clone();
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    answer.add_query(asked.queries[0].clone());
    match mood {
        Mood::Silent => return None,
        Mood::Fails => answer.metadata.response_code = ResponseCode::ServFail,
        Mood::Answers => match (name.to_ascii().as_str(), asked.queries[0].query_type()) {
            ("www.example.", RecordType::A) => {
                let address = RData::A(A("192.0.2.7".parse().unwrap()));
                answer.add_answer(Record::from_rdata(name, 60, address));
            }
            ("who.example.", _) => {
                let text = RData::TXT(TXT::new(vec![me.to_string()]));
                answer.add_answer(Record::from_rdata(name, 60, text));
            }
            ("big.example.", _) => {
                for number in 0..100 {
                    let text = RData::TXT(TXT::new(vec![format!("text {number:020}")]));
                    answer.add_answer(Record::from_rdata(name.clone(), 60, text));
                }
            }
            _ => answer.metadata.response_code = ResponseCode::NXDomain,
        },
    }
    let bytes = answer.to_vec().unwrap();
    if bytes.len() <= limit {
        return Some(bytes);
    }
    Some(answer.truncate().to_vec().unwrap())
}

/// Where a program of Debian is; the test says which package is missing.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    let found = ["/usr/bin", "/usr/sbin", "/bin"].map(|dir| PathBuf::from(dir).join(name));
    let found = found.into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not there: apt-get install {package}"))
}

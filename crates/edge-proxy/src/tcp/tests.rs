#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::Ipv4Addr;
use std::time::Duration;

use api::edge::{Backend, Route, RouteTable};
use model::{Generation, Incarnation, InstanceId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

mod resets;
mod tls;

/// A wait that never is that long, unless nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.unwrap()
}

/// A port that nobody has now.
async fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

/// A table in which ports lead to backends.
fn table(counter: u64, routes: &[(u16, &[SocketAddr])]) -> RouteTable {
    let route = |backends: &[SocketAddr]| Route {
        env: model::EnvKey {
            app: "shop".parse().unwrap(),
            env: "prod".parse().unwrap(),
        },
        process: "db".parse().unwrap(),
        proxy_protocol: None,
        protocol: api::edge::AppProtocol::default(),
        settings: model::RouteSettings::default(),
        backends: (0..)
            .zip(backends)
            .map(|(id, address)| Backend {
                instance: InstanceId(id),
                address: *address,
            })
            .collect(),
    };
    RouteTable {
        generation: Generation {
            incarnation: Incarnation(1),
            counter,
        },
        routes: (routes.iter())
            .map(|(port, backends)| (route_name::of_tcp(*port), route(backends)))
            .collect(),
        ..RouteTable::default()
    }
}

struct Running {
    edge: Arc<Edge>,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(allowed: &str) -> Self {
        Self::with(allowed, KeptPorts::default(), &table(0, &[]))
    }

    /// With sockets of the process before, and the routes on disk.
    fn with(allowed: &str, kept: KeptPorts, routes: &RouteTable) -> Self {
        let edge = Arc::new(Edge::default());
        Self::of(edge, None, allowed, kept, routes)
    }

    /// With what makes handshakes, too.
    fn of(
        edge: Arc<Edge>,
        tls: Option<Arc<Tls>>,
        allowed: &str,
        kept: KeptPorts,
        routes: &RouteTable,
    ) -> Self {
        edge.routes.take(routes);
        let shutdown = CancellationToken::new();
        let (served, allowed) = (Arc::clone(&edge), allowed.parse().unwrap());
        let serving = serve(
            served,
            tls,
            Ipv4Addr::LOCALHOST.into(),
            allowed,
            kept,
            shutdown.clone(),
        );
        Self {
            edge,
            shutdown,
            serving: tokio::spawn(serving),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        soon(self.serving).await.unwrap();
    }
}

/// A connection to a port, once somebody listens there.
async fn connection(port: u16) -> TcpStream {
    soon(async {
        loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

/// Takes one connection, reads it to its end, and sends back what came, then what its number is.
async fn echo(number: u8) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await.unwrap();
                said.push(number);
                stream.write_all(&said).await.unwrap();
            });
        }
    });
    address
}

/// All that comes back of what is sent, the client's half being closed.
async fn answer(mut stream: TcpStream, said: &[u8]) -> Vec<u8> {
    soon(async {
        stream.write_all(said).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    })
    .await
}

#[tokio::test]
async fn bytes_pass_both_ways_and_a_half_that_is_closed_is_told() {
    let (port, to) = (free_port().await, echo(7).await);
    let running = Running::start("1-65535");
    assert!(running.edge.routes.take(&table(1, &[(port, &[to])])));
    assert_eq!(answer(connection(port).await, b"hello").await, b"hello\x07");
    assert_eq!(answer(connection(port).await, b"").await, b"\x07");
    // More than a buffer and a pipe hold.
    let much: Vec<u8> = (0..3_000_001_u32)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
        .collect();
    let mut expected = much.clone();
    expected.push(7);
    let came = answer(connection(port).await, &much).await;
    assert!(
        came == expected,
        "{} of {} bytes",
        came.len(),
        expected.len()
    );
    let counted = &running
        .edge
        .routes
        .find(&route_name::of_tcp(port))
        .unwrap()
        .counted;
    assert_eq!(counted.received.get(), 5 + 3_000_001);
    assert_eq!(counted.sent.get(), 6 + 1 + 3_000_002);
    running.stop().await;
}

#[tokio::test]
async fn an_instance_that_takes_no_connection_is_passed_over() {
    let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().await));
    let (port, to) = (free_port().await, echo(7).await);
    let running = Running::start("1-65535");
    assert!(running.edge.routes.take(&table(1, &[(port, &[dead, to])])));
    for _ in 0..4 {
        assert_eq!(answer(connection(port).await, b"x").await, b"x\x07");
    }
    // Where none takes it, it ends.
    assert!(running.edge.routes.take(&table(2, &[(port, &[dead])])));
    let mut stream = connection(port).await;
    let mut came = Vec::new();
    soon(stream.read_to_end(&mut came)).await.unwrap_err();
    assert_eq!(came, b"");
    running.stop().await;
}

#[tokio::test]
async fn a_connection_outlives_its_route_and_the_port_does_not() {
    let (port, other) = (free_port().await, free_port().await);
    let to = echo(7).await;
    let running = Running::start("1-65535");
    assert!(running.edge.routes.take(&table(1, &[(port, &[to])])));
    let open = connection(port).await;
    // A connection that was not accepted yet would have no route.
    soon(async {
        while running.edge.metrics.tunnels.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(running.edge.routes.take(&table(2, &[(other, &[to])])));
    assert_eq!(answer(connection(other).await, b"y").await, b"y\x07");
    soon(async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(answer(open, b"x").await, b"x\x07");
    running.stop().await;
}

#[tokio::test]
async fn a_port_that_is_not_allowed_is_not_listened_at_and_one_that_is_taken_is_tried_again() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (port, forbidden) = (taken.local_addr().unwrap().port(), free_port().await);
    let to = echo(7).await;
    let running = Running::start(&port.to_string());
    assert!(
        running
            .edge
            .routes
            .take(&table(1, &[(port, &[to]), (forbidden, &[to])]))
    );
    let ports = |state| running.edge.metrics.port_gauge(state).get();
    soon(async {
        while ports(PortState::Taken) == 0 || ports(PortState::NotAllowed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(ports(PortState::Listening), 0);
    drop(taken);
    assert_eq!(answer(connection(port).await, b"x").await, b"x\x07");
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, forbidden)).await;
    assert_eq!(
        refused.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    let states = [
        PortState::Listening,
        PortState::Taken,
        PortState::NotAllowed,
    ];
    assert_eq!(states.map(ports), [1, 0, 1]);
    assert!(running.edge.routes.take(&table(2, &[])));
    soon(async {
        while states.map(ports) != [0, 0, 0] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    running.stop().await;
}

/// Has what is kept, as systemd has it.
#[derive(Debug, Default)]
struct Keeper(std::sync::Mutex<BTreeMap<SocketAddr, std::net::TcpListener>>);

impl KeepPorts for Keeper {
    fn keep(&self, listener: &TcpListener) {
        let copy = rustix::io::dup(listener).unwrap();
        let address = listener.local_addr().unwrap();
        self.0.lock().unwrap().insert(address, copy.into());
    }

    fn stop_keeping(&self, address: SocketAddr) {
        self.0.lock().unwrap().remove(&address);
    }
}

impl Keeper {
    fn kept(self: &Arc<Self>) -> KeptPorts {
        let copies = self.0.lock().unwrap();
        let copies = copies
            .values()
            .map(|listener| TcpListener::from_std(listener.try_clone().unwrap()).unwrap());
        KeptPorts {
            listeners: copies.collect(),
            keeper: Some(Arc::clone(self) as _),
        }
    }
}

#[tokio::test]
async fn no_client_of_a_port_is_refused_while_the_edge_is_started_again() {
    let (port, other, to) = (free_port().await, free_port().await, echo(7).await);
    let keeper = Arc::new(Keeper::default());
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let has = |port| keeper.0.lock().unwrap().contains_key(&at(port));
    let both = table(1, &[(port, &[to]), (other, &[to])]);
    let mut running = Running::with("1-65535", keeper.kept(), &both);
    assert_eq!(answer(connection(port).await, b"x").await, b"x\x07");
    assert_eq!(answer(connection(other).await, b"x").await, b"x\x07");
    for _ in 0..5 {
        let serving = Arc::clone(&running.edge);
        running.stop().await;
        drop(serving);
        // Nobody accepts, and nobody is refused.
        let waits = TcpStream::connect(at(port)).await.unwrap();
        running = Running::with("1-65535", keeper.kept(), &both);
        assert_eq!(answer(waits, b"y").await, b"y\x07");
    }
    assert!(has(port) && has(other));
    // A route that goes takes its socket with it, whether the edge runs meanwhile or not.
    assert!(running.edge.routes.take(&table(2, &[(port, &[to])])));
    soon(async {
        while has(other) || TcpStream::connect(at(other)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    running.stop().await;
    let none = Running::with("1-65535", keeper.kept(), &table(3, &[]));
    soon(async {
        while has(port) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    none.stop().await;
}

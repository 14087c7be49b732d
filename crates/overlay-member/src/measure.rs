//! What a member measures of its links when the server asks for it (`platform network doctor`), from its own network namespace: whether its peers answer in
//! the tunnel, how large packets may be, whether Packet Too Big comes back, whether large segments arrive, and the way outside of the tunnel.
//!
//! ```text
//!   request --> echoes, until each peer answered or had time for two handshakes
//!                 \--> more echoes; the largest packet; Packet Too Big; segments        (those that answered)
//!             --> the way to each endpoint; members by way of hubs                      (meanwhile) --> answer
//! ```
//!
//! It sends to probe addresses of peers, to addresses of members that the server names, and one or a few datagrams to each peer's endpoint; all of it at
//! a pace, and within the time that it is given. It answers echoes anyway, and TCP of members as long as a run goes on.
//!
//! Deliberately absent: what the measurements mean (`scheduler::doctor`).

mod echoes;
mod segments;
mod underlay;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::member::{
    Carrier, Echoes, LinkMeasurement, MAX_MEASUREMENT_MS, MAX_RELAYED, MAX_REPORTED_LINKS,
    Measurement, MeasurementRequest, PeerKind, Segments, UnderlayPath,
};
use api_client::ApiClient;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use membership::OverlayState;
use model::{NodeId, Timestamp};
use overlay::address_plan::{node_address, probe_address, too_big_address};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wireguard::interface::{Interface, Kind, MIN_MTU};
use wireguard::settings::{Key, Status};

use crate::place::{Current, Place};
use crate::source::Source;
use echoes::{ANSWER_TIMEOUT, Ask, Echoer, Outcome};

/// How long a peer may take to answer for the first time: WireGuard tries a handshake again after 5 s.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_millis(11_500);
/// Small echoes, in bytes: header of IPv6, of the echo, and as much as `ping` sends.
const SMALL: usize = 104;
/// Echoes for loss and time of each peer: so many, and fewer where there are many peers, so that all of them are at most these.
const ECHOES: usize = 10;
const MOST_ECHOES: usize = 3000;
/// Packets of one size, of which one has to come back.
const TRIES: usize = 3;
/// What is added to a few round trips: machines are busy.
const LEAST_PATIENCE: Duration = Duration::from_millis(300);
/// The largest packet is found up to so many bytes.
const MTU_STEP: usize = 4;
/// Peers to which segments are sent, and ways that are measured, at a time.
const AT_A_TIME: usize = 16;
/// How long segments may take for all peers.
const SEGMENTS_TIMEOUT: Duration = Duration::from_secs(8);
/// Times that the answer is sent where that fails, and the pause in between.
const SENDS: u32 = 3;
const SEND_PAUSE: Duration = Duration::from_secs(1);
/// How long an agent that starts may take to its interface, and the pause between two looks.
const INTERFACE_TIMEOUT: Duration = Duration::from_secs(5);
const INTERFACE_POLL: Duration = Duration::from_millis(100);
/// What of the time it is given a member keeps for its answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);

/// Now, by the machine's clock.
fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// Measures what the server asks for, and answers, for ever. One run at a time: what is asked meanwhile comes after it.
pub(crate) async fn answer_requests(
    place: &Place,
    current: &Current,
    state: watch::Receiver<OverlayState>,
    client: ApiClient,
    mut requests: watch::Receiver<Option<MeasurementRequest>>,
) {
    // What others send, sent back until a run is over for all.
    let mut serving = JoinSet::new();
    loop {
        if requests.changed().await.is_err() {
            return std::future::pending().await;
        }
        let Some(request) = requests.borrow_and_update().clone() else {
            continue;
        };
        let received_at = wall_clock();
        tracing::info!(
            run = request.run,
            "the links of this machine are measured, because a user asked for it"
        );
        let interface = interface_soon(current).await;
        let state = state.borrow().clone();
        serving.shutdown().await;
        // Edges let nothing begin from any member.
        if let (true, Some(own)) = (place.namespace.is_some(), state.number) {
            let own = probe_address(state.cluster_prefix, own);
            let within = Duration::from_millis(request.within_ms.min(MAX_MEASUREMENT_MS));
            serving.spawn(serve(Source::of(place, own), within));
        }
        let measured = measure(place, interface.as_deref(), &state, &request)
            .boxed()
            .await;
        let measured = Measurement {
            received_at,
            ..measured
        };
        send(&client, measured).await;
    }
}

/// The interface; where the agent starts just now, as soon as it is there.
async fn interface_soon(current: &Current) -> Option<Arc<Interface>> {
    let until = Instant::now() + INTERFACE_TIMEOUT;
    loop {
        let interface = current.read().await.clone();
        if interface.is_some() || Instant::now() >= until {
            return interface;
        }
        tokio::time::sleep(INTERFACE_POLL).await;
    }
}

/// Sends back what members send to this node, for so long.
pub async fn serve(source: Source, within: Duration) {
    if let Ok(Err(error)) = tokio::time::timeout(within, segments::serve(source)).await {
        tracing::warn!(%error, "what other members send is not sent back: they cannot see whether it arrives");
    }
}

async fn send(client: &ApiClient, mut measured: Measurement) {
    for attempt in 1..=SENDS {
        measured.sent_at = wall_clock();
        match client.report_measurement(&measured).await {
            Ok(()) => return,
            Err(error) => {
                let reason = display::chain(&error);
                tracing::warn!(reason, attempt, "cannot say what was measured");
                tokio::time::sleep(SEND_PAUSE).await;
            }
        }
    }
}

/// A peer that is measured.
#[derive(Debug, Clone, Copy)]
struct Peer {
    number: NodeId,
    kind: PeerKind,
    key: Option<Key>,
    probe: Ipv6Addr,
}

/// Measures what a request asks for. The clock's times are the caller's.
pub async fn measure(
    place: &Place,
    interface: Option<&Interface>,
    state: &OverlayState,
    request: &MeasurementRequest,
) -> Measurement {
    let begun = Instant::now();
    let within = Duration::from_millis(request.within_ms.min(MAX_MEASUREMENT_MS));
    let until = begun + within.saturating_sub(ANSWER_MARGIN);
    let mut measured = Measurement {
        run: request.run,
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        ..Measurement::default()
    };
    let (Some(interface), Some(own)) = (interface, state.number) else {
        measured.failure = Some("it has no interface of the overlay".to_owned());
        return measured.bounded();
    };
    let peers = peers(state, request);
    let before = match interface.status().await {
        Ok(status) => status,
        Err(error) => {
            measured.failure = Some(display::chain(&error));
            return measured.bounded();
        }
    };
    measured.carrier = Some(Carrier {
        is_kernel: interface.kind() == Kind::Kernel,
        offload: interface.kind() == Kind::Kernel || before.offloads.tun,
    });
    let own_probe = probe_address(state.cluster_prefix, own);
    let (tunnel, ways, relayed) = tokio::join!(
        in_the_tunnel(place, state, own, own_probe, &peers, until),
        ways(&before, state.mtu, &peers),
        relayed(state, own, request, until),
    );
    let after = interface.status().await.unwrap_or_default();
    match tunnel {
        Ok(links) => measured.links = links,
        Err(error) => {
            measured.failure = Some(format!("cannot send in the tunnel: {error}"));
            // What the interface knows is reported all the same.
            measured.links = (peers.iter())
                .map(|peer| (peer.number, LinkMeasurement::default()))
                .collect();
        }
    }
    for peer in &peers {
        let Some(link) = measured.links.get_mut(&peer.number) else {
            continue;
        };
        let of = |status: &Status| peer.key.and_then(|key| status.peers.get(&key).cloned());
        if let Some(now) = of(&after) {
            link.endpoint = now.endpoint;
            link.handshake_age_seconds = now.handshake_age_ms.map(|age| age / 1000);
            let earlier = of(&before).map_or(0, |before| before.received);
            // A process that was started again counts from 0.
            link.received_bytes = now.received.checked_sub(earlier).unwrap_or(now.received);
        }
        link.underlay = ways.get(&peer.number).cloned();
    }
    measured.relayed = relayed;
    measured.bounded()
}

fn peers(state: &OverlayState, request: &MeasurementRequest) -> Vec<Peer> {
    let wanted = state
        .peers
        .iter()
        .filter(|(number, _)| (request.peers.as_ref()).is_none_or(|peers| peers.contains(number)));
    let peer = |(number, peer): (&NodeId, &api::member::Peer)| Peer {
        number: *number,
        kind: peer.kind,
        key: peer.wireguard_public_key.parse().ok(),
        probe: probe_address(state.cluster_prefix, *number),
    };
    wanted.map(peer).take(MAX_REPORTED_LINKS).collect()
}

/// What is measured by packets within the tunnel.
async fn in_the_tunnel(
    place: &Place,
    state: &OverlayState,
    own: NodeId,
    own_probe: Ipv6Addr,
    peers: &[Peer],
    until: Instant,
) -> std::io::Result<BTreeMap<NodeId, LinkMeasurement>> {
    let mut links: BTreeMap<NodeId, LinkMeasurement> = (peers.iter())
        .map(|peer| (peer.number, LinkMeasurement::default()))
        .collect();
    let source = Source::of(place, own_probe);
    let mut echoer = Echoer::open(&source).await?;

    // Until each has answered once, or had time for two handshakes: a first packet may wait for one.
    let first_until = until.min(Instant::now() + FIRST_ANSWER_TIMEOUT);
    let mut silent = peers.to_vec();
    while !silent.is_empty() && Instant::now() < first_until {
        let asks: Vec<_> = silent.iter().map(|peer| small(peer.probe)).collect();
        let outcomes = echoer.round(&asks, ANSWER_TIMEOUT, first_until).await;
        let mut still = Vec::new();
        for (peer, outcome) in silent.iter().zip(outcomes) {
            let echoes = &mut links.entry(peer.number).or_default().echoes;
            count(echoes, outcome);
            if echoes.answered == 0 {
                still.push(*peer);
            }
        }
        silent = still;
    }
    let answering: Vec<Peer> = (peers.iter())
        .filter(|peer| links[&peer.number].echoes.answered > 0)
        .copied()
        .collect();

    // Loss and time are those of a link that has its session.
    let times = (MOST_ECHOES / answering.len().max(1)).clamp(1, ECHOES);
    let asks: Vec<_> = (0..times)
        .flat_map(|_| answering.iter().map(|peer| small(peer.probe)))
        .collect();
    let outcomes = echoer.round(&asks, ANSWER_TIMEOUT, until).await;
    let mut counted: BTreeMap<NodeId, Echoes> = BTreeMap::new();
    for (peer, outcome) in answering.iter().cycle().zip(outcomes) {
        count(counted.entry(peer.number).or_default(), outcome);
    }
    for (number, echoes) in counted {
        links.entry(number).or_default().echoes = echoes;
    }

    // From here on the ways are known: what does not come back within a few times of the slowest is lost.
    let slowest = links
        .values()
        .filter_map(|link| link.echoes.fastest_us)
        .max();
    let patience = Duration::from_micros(4 * slowest.unwrap_or_default()) + LEAST_PATIENCE;
    let patience = patience.min(ANSWER_TIMEOUT);
    let sizes = largest(&mut echoer, &answering, state.mtu, patience, until).await;
    for (number, mtu) in sizes {
        links.entry(number).or_default().mtu = mtu;
    }
    for (number, is_back) in too_big(&mut echoer, state, &answering, patience, until).await {
        links.entry(number).or_default().packet_too_big = Some(is_back);
    }

    // Each pair once: the node with the higher number asks. Edges answer nobody, and ask every node.
    let is_edge = place.namespace.is_none();
    // Where packets of the whole size are lost it is known that segments are.
    let is_whole = |peer: &Peer| links[&peer.number].mtu == Some(state.mtu);
    let asks = |peer: &Peer| {
        peer.kind == PeerKind::Node && (is_edge || peer.number < own) && is_whole(peer)
    };
    let asked: Vec<Peer> = answering.iter().copied().filter(asks).collect();
    let until = until.min(Instant::now() + SEGMENTS_TIMEOUT);
    let found: Vec<(NodeId, Option<Segments>)> = stream::iter(asked)
        .map(|peer| {
            let source = source.clone();
            let asking = async move {
                let found = segments::ask(&source, peer.probe, until).await;
                (peer.number, found)
            };
            asking.boxed()
        })
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    for (number, segments) in found {
        links.entry(number).or_default().segments = segments;
    }
    Ok(links)
}

fn small(to: Ipv6Addr) -> Ask {
    Ask { to, size: SMALL }
}

fn count(echoes: &mut Echoes, outcome: Outcome) {
    echoes.sent += 1;
    if let Outcome::Answered(after) = outcome {
        let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        echoes.answered += 1;
        echoes.fastest_us = Some(echoes.fastest_us.map_or(after, |best| best.min(after)));
    }
}

/// The largest packet that comes back from each: what fits into the cluster's MTU, as a rule; else it is searched between that and the least that IPv6 asks
/// for. Absent: not even that comes back.
async fn largest(
    echoer: &mut Echoer,
    peers: &[Peer],
    mtu: u32,
    patience: Duration,
    until: Instant,
) -> BTreeMap<NodeId, Option<u32>> {
    let (least, most) = (usize::from(MIN_MTU), mtu as usize);
    let mut found = BTreeMap::new();
    let mut sizes: BTreeMap<NodeId, usize> =
        (peers.iter()).map(|peer| (peer.number, most)).collect();
    let whole = come_back(echoer, peers, &sizes, patience, until).await;
    let mut searched: Vec<Peer> = Vec::new();
    for peer in peers {
        match whole.get(&peer.number) {
            Some(true) => {
                found.insert(peer.number, Some(mtu));
            }
            Some(false) => searched.push(*peer),
            // There was no time for it.
            None => {}
        }
    }
    for size in sizes.values_mut() {
        *size = least;
    }
    let at_least = come_back(echoer, &searched, &sizes, patience, until).await;
    // What comes back, and what does not.
    let mut between: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
    for peer in &searched {
        match at_least.get(&peer.number) {
            Some(true) => {
                between.insert(peer.number, (least, most));
            }
            Some(false) => {
                found.insert(peer.number, Some(u32::from(MIN_MTU) - 1));
            }
            None => {}
        }
    }
    loop {
        let open: Vec<Peer> = (searched.iter())
            .filter(|peer| {
                between
                    .get(&peer.number)
                    .is_some_and(|(low, high)| high - low > MTU_STEP)
            })
            .copied()
            .collect();
        if open.is_empty() {
            break;
        }
        for peer in &open {
            let (low, high) = between[&peer.number];
            sizes.insert(peer.number, usize::midpoint(low, high));
        }
        let back = come_back(echoer, &open, &sizes, patience, until).await;
        if back.is_empty() {
            break;
        }
        for (number, is_back) in back {
            let size = sizes[&number];
            if let Some((low, high)) = between.get_mut(&number) {
                if is_back { *low = size } else { *high = size }
            }
        }
    }
    for (number, (low, _)) in between {
        found.insert(number, u32::try_from(low).ok());
    }
    found
}

/// Whether a packet of a size comes back from each. Those for which there was no time are absent.
async fn come_back(
    echoer: &mut Echoer,
    peers: &[Peer],
    sizes: &BTreeMap<NodeId, usize>,
    patience: Duration,
    until: Instant,
) -> BTreeMap<NodeId, bool> {
    let mut back = BTreeMap::new();
    for _ in 0..TRIES {
        let asked: Vec<&Peer> = (peers.iter())
            .filter(|peer| back.get(&peer.number) != Some(&true))
            .collect();
        if Instant::now() >= until || asked.is_empty() {
            break;
        }
        let asks: Vec<_> = (asked.iter())
            .map(|peer| Ask {
                to: peer.probe,
                size: sizes[&peer.number],
            })
            .collect();
        let outcomes = echoer.round(&asks, patience, until).await;
        for (peer, outcome) in asked.iter().zip(outcomes) {
            let is_back = matches!(outcome, Outcome::Answered(_));
            back.insert(peer.number, is_back);
        }
    }
    back
}

/// Whether each node says Packet Too Big of a packet that is too large for one of its links, and that comes back.
async fn too_big(
    echoer: &mut Echoer,
    state: &OverlayState,
    peers: &[Peer],
    patience: Duration,
    until: Instant,
) -> BTreeMap<NodeId, bool> {
    let mut found = BTreeMap::new();
    // Where packets may be no larger than the least there is none that is too large.
    if state.mtu <= u32::from(MIN_MTU) {
        return found;
    }
    for _ in 0..TRIES {
        let asked: Vec<&Peer> = (peers.iter())
            .filter(|peer| peer.kind == PeerKind::Node && found.get(&peer.number) != Some(&true))
            .collect();
        if Instant::now() >= until || asked.is_empty() {
            break;
        }
        let asks: Vec<_> = (asked.iter())
            .map(|peer| Ask {
                to: too_big_address(state.cluster_prefix, peer.number),
                // Just too large, so that it arrives where larger ones do not.
                size: usize::from(MIN_MTU) + 8,
            })
            .collect();
        let outcomes = echoer.round(&asks, patience, until).await;
        for (peer, outcome) in asked.iter().zip(outcomes) {
            found.insert(peer.number, outcome == Outcome::TooBig);
        }
    }
    found
}

/// The way to each peer's endpoint outside of the tunnel.
async fn ways(status: &Status, mtu: u32, peers: &[Peer]) -> BTreeMap<NodeId, UnderlayPath> {
    let links: BTreeMap<IpAddr, _> = match node_network::host_links().await {
        Ok(links) => links,
        Err(error) => {
            let reason = display::chain(&error);
            tracing::warn!(reason, "cannot see by which links the machine sends");
            BTreeMap::new()
        }
    };
    let endpoint = |peer: &Peer| -> Option<(NodeId, SocketAddr)> {
        Some((peer.number, status.peers.get(&peer.key?)?.endpoint?))
    };
    let endpoints: Vec<_> = peers.iter().filter_map(endpoint).collect();
    let links = Arc::new(links);
    stream::iter(endpoints)
        .map(|(number, endpoint)| {
            let links = Arc::clone(&links);
            let measuring = async move {
                let way = underlay::path_to(endpoint, mtu, &links).await;
                way.map(|way| (number, way))
            };
            measuring.boxed()
        })
        .buffer_unordered(AT_A_TIME)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// Echoes of members that are no peers, at the address of their machine and from that of this one, which go by way of hubs both ways.
async fn relayed(
    state: &OverlayState,
    own: NodeId,
    request: &MeasurementRequest,
    until: Instant,
) -> BTreeMap<NodeId, Echoes> {
    let others: Vec<_> = request.relayed.iter().take(MAX_RELAYED).collect();
    let mut found = BTreeMap::new();
    if others.is_empty() {
        return found;
    }
    let source = Source {
        namespace: None,
        link: None,
        address: node_address(state.cluster_prefix, own),
    };
    let mut echoer = match Echoer::open(&source).await {
        Ok(echoer) => echoer,
        Err(error) => {
            tracing::warn!(%error, "cannot reach members by way of hubs");
            return found;
        }
    };
    let first_until = until.min(Instant::now() + FIRST_ANSWER_TIMEOUT);
    while Instant::now() < first_until {
        let asked: Vec<_> = (others.iter())
            .filter(|number| {
                found
                    .get(**number)
                    .is_none_or(|echoes: &Echoes| echoes.answered == 0)
            })
            .collect();
        if asked.is_empty() {
            break;
        }
        let asks: Vec<_> = (asked.iter())
            .map(|number| small(node_address(state.cluster_prefix, ***number)))
            .collect();
        let outcomes = echoer.round(&asks, ANSWER_TIMEOUT, first_until).await;
        for (number, outcome) in asked.iter().zip(outcomes) {
            count(found.entry(***number).or_default(), outcome);
        }
    }
    found
}

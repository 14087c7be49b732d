//! The way to a peer outside of the tunnel: its MTU, as routers on it say, and the link by which it begins.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::member::UnderlayPath;
use node_network::HostLink;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover,
    set_ipv6_mtu_discover,
};
use tokio::net::UdpSocket;

/// How long a router may take to say that a packet is too large.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);
/// Routers with a smaller MTU than the one before, one after the other.
const MAX_STEPS: usize = 4;
/// Header of UDP, in bytes.
const UDP_HEADER: u32 = 8;

/// The way to an endpoint. A datagram that may not be cut, as large as those of WireGuard with packets of `overlay_mtu` bytes, is sent there: WireGuard drops it,
/// for it is no message of its own, and a router for which it is too large says so.
pub(super) async fn path_to(
    endpoint: SocketAddr,
    overlay_mtu: u32,
    links: &BTreeMap<IpAddr, HostLink>,
) -> Option<UnderlayPath> {
    let (socket, header) = open(endpoint).await.ok()?;
    let wanted = overlay_mtu + header + UDP_HEADER + 32;
    let mut known = mtu_of(&socket, endpoint);
    for _ in 0..MAX_STEPS {
        let size = known.map_or(wanted, |mtu| mtu.min(wanted));
        let payload = vec![0; usize::try_from(size.saturating_sub(header + UDP_HEADER)).ok()?];
        // One that is refused is about an earlier one.
        let _ = socket.send(&payload).await;
        tokio::time::sleep(ANSWER_TIMEOUT).await;
        let now = mtu_of(&socket, endpoint);
        if now == known {
            break;
        }
        known = now;
    }
    let local = socket.local_addr().ok()?.ip().to_canonical();
    let link = links.get(&local).cloned().unwrap_or_default();
    Some(UnderlayPath {
        mtu: known,
        interface: link.name,
        kind: link.kind,
    })
}

/// A socket to there, whose datagrams are not cut, and how long the header of IP is.
async fn open(endpoint: SocketAddr) -> io::Result<(UdpSocket, u32)> {
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    let header = match endpoint {
        SocketAddr::V4(_) => {
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
            20
        }
        SocketAddr::V6(_) => {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
            40
        }
    };
    socket.connect(endpoint).await?;
    Ok((socket, header))
}

fn mtu_of(socket: &UdpSocket, endpoint: SocketAddr) -> Option<u32> {
    match endpoint {
        SocketAddr::V4(_) => ip_mtu(socket),
        SocketAddr::V6(_) => ipv6_mtu(socket),
    }
    .ok()
}

//! Egress from an app in a real VM to an external network: init's addresses and routes,
//! the tap, the node's rules, `slirp4netns`, and an uplink. The machine and the
//! external network are network namespaces.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use guest_protocol::RESOLVER;
use microvm::{Disk, GuestKernel, Nic, boot};
use model::{InstanceId, NodeId};
use node_network::{Endpoint, Network, NetworkSettings};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::node::{Node, config, make_disk};
use support::{guest_dir, in_a_network_of_its_own, spec};

const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SHOP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

#[test]
fn an_app_reaches_an_external_service_by_name_and_nothing_of_the_machine() {
    let Some(guest) = guest_dir() else { return };
    in_a_network_of_its_own(
        "an_app_reaches_an_external_service_by_name_and_nothing_of_the_machine",
        reach_an_external_service(&guest),
    );
}

fn shell(lines: &str) {
    let done = Command::new("sh").args(["-ec", lines]).status().unwrap();
    assert!(done.success(), "{lines}");
}

/// Binds in the external network's namespace.
fn in_the_external_network<T: Send + 'static>(bind: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        let external = fs::File::open("/run/netns/external").unwrap();
        move_into_link_name_space(external.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        bind()
    });
    thread.join().unwrap()
}

/// A shop that greets whoever comes by the address it sees, and a name server that knows the shop.
fn open_the_shop() {
    let shop = in_the_external_network(|| TcpListener::bind((SHOP, 80)).unwrap());
    std::thread::spawn(move || {
        for stream in shop.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            let _ = writeln!(stream, "welcome {peer}");
        }
    });
    let names = in_the_external_network(|| UdpSocket::bind((NEIGHBOUR, 53)).unwrap());
    std::thread::spawn(move || {
        let mut question = [0; 512];
        loop {
            let (length, from) = names.recv_from(&mut question).unwrap();
            let question = &question[..length];
            // RFC 1035, 4.1: the question's last four bytes are type and class; 1 is an IPv4 address.
            let of_ipv4 = question[length - 3] == 1;
            let mut answer = question[..2].to_vec();
            answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(of_ipv4), 0, 0, 0, 0]);
            answer.extend_from_slice(&question[12..]);
            if of_ipv4 {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend_from_slice(&SHOP.octets());
            }
            names.send_to(&answer, from).unwrap();
        }
    });
}

async fn reach_an_external_service(guest: &Path) {
    shell(
        "ip netns add external
         ip link add uplink type veth peer name inner netns external
         ip addr add 203.0.113.2/24 dev uplink; ip link set dev uplink up
         ip -n external link set dev lo up
         ip -n external addr add 203.0.113.1/24 dev inner; ip -n external link set dev inner up
         ip -n external addr add 198.51.100.1/32 dev lo
         ip route add default via 203.0.113.1
         echo nameserver 203.0.113.1 >/run/resolv.conf; mount --bind /run/resolv.conf /etc/resolv.conf",
    );
    open_the_shop();
    let machine = TcpListener::bind((Ipv4Addr::new(203, 0, 113, 2), 22)).unwrap();
    machine.set_nonblocking(true).unwrap();

    let script = "say() { echo \"$1: $($2 2>&1 | tail -n 1)\"; }
        say shop 'nc -w 20 shop.example.com 80'
        say metadata 'nc -w 20 169.254.169.254 80'
        say machine 'nc -w 20 203.0.113.2 22'
        cat /etc/resolv.conf";
    let mut config = config(&["/bin/busybox", "sh", "-c", script]);
    config.network.resolvers = vec![RESOLVER.into()];
    let instance = InstanceId(0xc000_0002);
    let member = Endpoint {
        instance,
        address: config.network.address,
        ipv4: config.network.ipv4,
        egress: model::instance::EgressPolicy::All,
        edge_ports: std::collections::BTreeSet::new(),
    };
    let network = Network::ensure(&NetworkSettings {
        suffix: "out".to_owned(),
        cluster_prefix: "fd12:3456:789a::".parse().unwrap(),
        node: NodeId(3),
        mtu: 1420,
    })
    .await
    .unwrap();
    network.ensure_egress().await.unwrap();
    let tap = network.create_tap(&member).await.unwrap();
    network.apply_rules(&[member]).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let (tree, run_dir) = (dir.path().join("tree"), dir.path().join("run"));
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for name in ["cat", "nc", "tail"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(name)).unwrap();
    }
    make_disk(&dir.path().join("root"), 16, Some(&tree));
    make_disk(&dir.path().join("scratch"), 16, None);
    let mut spec = spec(
        instance,
        &run_dir,
        GuestKernel::in_directory(guest).unwrap(),
    );
    spec.disks = [("root", true), ("scratch", false)]
        .map(|(name, read_only)| Disk {
            path: dir.path().join(name),
            read_only,
        })
        .into();
    spec.nic = Some(Nic {
        tap: tap.fd,
        mac: tap.mac,
    });
    let mut node = Node::listen(&run_dir, config);
    let vm = boot(spec).await.unwrap();
    let seen = node.until(|seen| seen.exited).await.unwrap();
    assert_eq!(
        seen.lines,
        [
            "shop: welcome 203.0.113.2",
            "metadata: nc: can't connect to remote host (169.254.169.254): No route to host",
            "machine: nc: can't connect to remote host (203.0.113.2): No route to host",
            "nameserver 192.0.0.3",
        ]
    );
    assert!(machine.accept().is_err());
    vm.kill().await;
    Network::remove("out").await.unwrap();
}

//! Interfaces over underlays as they are: IPv6, a NAT between, loss, small and unknown MTUs, agents that come and go.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each file uses what it needs")]
mod support;

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use support::{carries, give_addresses, inside, key_pair, settings};
use test_namespaces::{PATIENCE, agent, eventually, isolated, shell, spawn_within, within};
use wireguard::interface::{Interface, InterfaceOptions};
use wireguard::settings::{Settings, Status};

fn options(machine: &str, mtu: u16) -> InterfaceOptions {
    InterfaceOptions {
        name: "wg0".to_owned(),
        namespace: None,
        port: 51820,
        mtu,
        program: env!("CARGO_BIN_EXE_wireguard-interface").into(),
        run_dir: PathBuf::from("/run").join(machine),
        force_userspace: true,
    }
}

fn set(machine: &str, mtu: u16, settings: &Settings) -> Status {
    agent(machine, || async {
        let interface = Interface::ensure(&options(machine, mtu)).await.unwrap();
        interface.set(settings).await.unwrap()
    })
}

fn status(machine: &str, mtu: u16) -> Status {
    agent(machine, || async {
        let interface = Interface::ensure(&options(machine, mtu)).await.unwrap();
        interface.status().await.unwrap()
    })
}

/// Interfaces on machines `a`, where `b` is at this endpoint, and `b`, which learns where `a` is.
fn interfaces(mtu: u16, endpoint: &str) {
    set("a", mtu, &settings(1, &[(2, Some(endpoint))]));
    set("b", mtu, &settings(2, &[(1, None)]));
    for (machine, number) in [("a", 1), ("b", 2)] {
        give_addresses(machine, number);
        shell(&format!("ip -n {machine} link set dev wg0 mtu {mtu}"));
    }
}

/// Machines `a` and `b`, and a router `r` between: 10.1.0.2 and fd99:1::2, 10.2.0.2 and fd99:2::2. The link to `b` has this MTU.
fn routed(mtu: u16) {
    shell("ip netns add a; ip netns add b; ip netns add r");
    for (machine, number) in [("a", 1), ("b", 2)] {
        shell(&format!(
            "ip link add eth0 netns {machine} type veth peer name r{machine} netns r
             ip -n r addr add 10.{number}.0.1/24 dev r{machine}
             ip -n r addr add fd99:{number}::1/64 dev r{machine} nodad
             ip -n {machine} addr add 10.{number}.0.2/24 dev eth0
             ip -n {machine} addr add fd99:{number}::2/64 dev eth0 nodad
             ip -n {machine} link set lo up
             ip -n {machine} link set eth0 up; ip -n r link set r{machine} up
             ip -n {machine} route add default via 10.{number}.0.1
             ip -n {machine} -6 route add default via fd99:{number}::1"
        ));
    }
    shell(&format!(
        "ip -n r link set rb mtu {mtu}; ip -n b link set eth0 mtu {mtu}
         ip netns exec r sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
    ));
}

#[test]
fn an_underlay_of_ipv6_and_one_of_ipv4_carry_the_same() {
    if !isolated("an_underlay_of_ipv6_and_one_of_ipv4_carry_the_same") {
        return;
    }
    routed(1500);
    interfaces(1420, "[fd99:2::2]:51820");
    carries("a", ("b", 2), 8 << 20);
    let seen = || status("b", 1420).peers[&key_pair(1).1].endpoint;
    assert_eq!(seen(), Some("[fd99:1::2]:51820".parse().unwrap()));
    // The recorded endpoint changes its family, and connections go on.
    set("a", 1420, &settings(1, &[(2, Some("10.2.0.2:51820"))]));
    carries("a", ("b", 2), 8 << 20);
    assert_eq!(seen(), Some("10.1.0.2:51820".parse().unwrap()));
}

#[test]
fn a_path_of_a_smaller_mtu_than_anybody_knew_is_slow_and_not_dead() {
    if !isolated("a_path_of_a_smaller_mtu_than_anybody_knew_is_slow_and_not_dead") {
        return;
    }
    for endpoint in ["10.2.0.2:51820", "[fd99:2::2]:51820"] {
        for underlay in [1460, 1280] {
            routed(underlay);
            interfaces(1420, endpoint);
            carries("a", ("b", 2), 4 << 20);
            carries("b", ("a", 1), 4 << 20);
            for machine in ["a", "b"] {
                agent(machine, || async {
                    Interface::remove(&options(machine, 1420)).await.unwrap();
                });
            }
            shell("ip netns delete a; ip netns delete b; ip netns delete r");
        }
    }
}

#[test]
fn a_member_behind_a_nat_is_reached_as_long_as_it_sends() {
    if !isolated("a_member_behind_a_nat_is_reached_as_long_as_it_sends") {
        return;
    }
    routed(1500);
    shell(
        "ip netns exec r nft -f - <<'E'
         table ip nat {
           chain post { type nat hook postrouting priority srcnat; oifname rb masquerade random; }
           chain forward { type filter hook forward priority filter; policy drop;
             ct state established accept
             iifname ra accept
           }
         }
E",
    );
    let mut a = settings(1, &[(2, Some("10.2.0.2:51820"))]);
    for peer in a.peers.values_mut() {
        peer.keepalive = Some(1);
    }
    set("a", 1420, &a);
    set("b", 1420, &settings(2, &[(1, None)]));
    give_addresses("a", 1);
    give_addresses("b", 2);
    // It sends by itself, so `b` knows where it is before anybody asks.
    let seen = || status("b", 1420).peers[&key_pair(1).1].endpoint;
    let first = eventually("b knows where a is", seen);
    assert_eq!(first.ip().to_string(), "10.2.0.1");
    carries("b", ("a", 1), 1 << 20);
    // The NAT is rebooted: another port from now on, without a word of anybody.
    shell(
        "ip netns exec r nft add rule ip nat post ip daddr 10.9.9.9 accept
         ip -n a addr del 10.1.0.2/24 dev eth0
         ip -n a addr add 10.1.0.4/24 dev eth0; ip -n a route replace default via 10.1.0.1",
    );
    eventually("b sees it elsewhere", || seen().filter(|now| *now != first));
    carries("b", ("a", 1), 1 << 20);
}

#[test]
fn a_lossy_path_carries_everything() {
    if !isolated("a_lossy_path_carries_everything") {
        return;
    }
    routed(1500);
    // One in a hundred packets each way, among them those of handshakes.
    shell(
        "ip netns exec r nft 'table inet loss { chain forward { type filter hook forward priority filter; numgen random mod 100 == 0 drop; }; }'",
    );
    interfaces(1420, "10.2.0.2:51820");
    carries("a", ("b", 2), 4 << 20);
    carries("b", ("a", 1), 1 << 20);
}

#[test]
fn agents_come_and_go_and_no_ping_is_lost() {
    if !isolated("agents_come_and_go_and_no_ping_is_lost") {
        return;
    }
    routed(1500);
    interfaces(1420, "10.2.0.2:51820");
    carries("a", ("b", 2), 1000);
    let is_done = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let pings = ping_until(is_done.clone(), asked.clone(), "a", ("b", 2));
    let own = settings(1, &[(2, Some("10.2.0.2:51820"))]);
    for round in 0..20 {
        // Each is an agent that starts, goes on with what is there, sets what is recorded, and ends.
        let mut wanted = own.clone();
        wanted.peers.extend(support::many_peers(round * 10));
        assert_eq!(
            set("a", 1420, &wanted).peers.len(),
            usize::from(round) * 10 + 1
        );
        set("b", 1420, &settings(2, &[(1, None)]));
        eventually("something is asked meanwhile", || {
            (asked.load(Ordering::Relaxed) > usize::from(round)).then_some(())
        });
    }
    is_done.store(true, Ordering::Relaxed);
    let answered = pings.join().unwrap();
    assert_eq!(answered, asked.load(Ordering::Relaxed));
}

/// Asks every 5 ms and counts that, and gives how many were answered.
fn ping_until(
    is_done: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    from: &str,
    to: (&str, u8),
) -> JoinHandle<usize> {
    let address = SocketAddr::from((inside(to.1).1, 7));
    let echo = within(to.0, move || UdpSocket::bind(address).unwrap());
    let asking = within(from, || UdpSocket::bind("[::]:0").unwrap());
    echo.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            if length == 0 || echo.send_to(&buffer[..length], from).is_err() {
                break;
            }
        }
    });
    let answers = asking.try_clone().unwrap();
    answers
        .set_read_timeout(Some(std::time::Duration::from_secs(2)))
        .unwrap();
    let counting = std::thread::spawn(move || {
        let mut seen = std::collections::BTreeSet::new();
        let mut buffer = [0; 64];
        while let Ok(length) = answers.recv(&mut buffer) {
            seen.insert(buffer[..length].to_vec());
        }
        seen.len()
    });
    std::thread::spawn(move || {
        while !is_done.load(Ordering::Relaxed) {
            let number = asked.load(Ordering::Relaxed);
            asking.send_to(&number.to_ne_bytes(), address).unwrap();
            asked.store(number + 1, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        counting.join().unwrap()
    })
}

#[test]
fn one_that_is_revoked_is_not_heard_whatever_it_has() {
    if !isolated("one_that_is_revoked_is_not_heard_whatever_it_has") {
        return;
    }
    routed(1500);
    interfaces(1420, "10.2.0.2:51820");
    carries("a", ("b", 2), 1000);
    // It goes on sending with its session, and begins others with its key.
    let listening = within("a", || UdpSocket::bind((inside(1).1, 9)).unwrap());
    listening.set_read_timeout(Some(PATIENCE)).unwrap();
    let is_done = Arc::new(AtomicBool::new(false));
    let sending = {
        let is_done = is_done.clone();
        spawn_within("b", move || {
            let socket = UdpSocket::bind((inside(2).1, 0)).unwrap();
            while !is_done.load(Ordering::Relaxed) {
                socket.send_to(b"x", (inside(1).1, 9)).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        })
    };
    let mut buffer = [0; 10];
    listening.recv(&mut buffer).unwrap();
    let revoked = set("a", 1420, &settings(1, &[]));
    assert!(revoked.peers.is_empty());
    // What came before the answer is in the socket; afterwards nothing comes.
    listening.set_nonblocking(true).unwrap();
    while listening.recv(&mut buffer).is_ok() {}
    let dropped = revoked.dropped.invalid;
    eventually("a hundred of its packets are dropped", || {
        (status("a", 1420).dropped.invalid > dropped + 100).then_some(())
    });
    assert!(listening.recv(&mut buffer).is_err());
    is_done.store(true, Ordering::Relaxed);
    sending.join().unwrap();
}

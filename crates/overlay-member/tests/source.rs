//! What a member asks goes by its own link, whatever other members there are on its machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::Ipv6Addr;

use overlay_member::Source;
use overlay_member::probe::Prober;
use test_namespaces::{isolated, shell};

const PROBES: u64 = 50;
/// Whom both ask.
const TO: &str = "fd12::99";

/// Packets that went out by a link.
fn sent(link: &str) -> u64 {
    let said = shell(&format!("ip -j -s link show {link}"));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    said[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

#[test]
fn what_a_member_asks_goes_by_its_own_link() {
    if !isolated("what_a_member_asks_goes_by_its_own_link") {
        return;
    }
    // As two edges of one machine have them: addresses of their own, and each a route to the whole cluster.
    let links = ["edge-a", "edge-b"];
    let address = |number: usize| Ipv6Addr::new(0xfd12, 0, 0, number as u16 + 1, 0, 0, 0, 1);
    for (number, link) in links.iter().enumerate() {
        shell(&format!(
            "ip link add {link} type veth peer name {link}-peer && ip link set {link}-peer up && \
             ip link set {link} up && ip -6 address add {}/128 dev {link} nodad && \
             ip -6 route add fd12::/48 dev {link} metric {} && \
             ip -6 neighbour add {TO} lladdr 02:00:00:00:00:01 dev {link}",
            address(number),
            number + 10
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for (number, link) in links.iter().enumerate() {
        let source = Source {
            namespace: None,
            link: Some((*link).to_owned()),
            address: address(number),
        };
        let before = links.map(sent);
        runtime.block_on(async {
            let prober = Prober::open(&source).await.unwrap();
            for _ in 0..PROBES {
                // Until the socket is known to take something.
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                prober.send(TO.parse().unwrap());
            }
        });
        let after = links.map(sent);
        for (at, other) in links.iter().enumerate() {
            let sent = after[at] - before[at];
            // The kernel may say something of its own.
            assert_eq!(sent >= PROBES, other == link, "{sent} by {other}");
        }
    }
}

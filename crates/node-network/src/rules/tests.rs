//! The rules as text.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ::overlay::private_networks::PrivateNetworks;
use expect_test::expect;
use model::EnvNetwork;
use model::instance::EgressPolicy;

use super::*;
use crate::host_network::own_addresses;

fn cluster() -> Ipv6Addr {
    "fd12:3456:789a::".parse().unwrap()
}

fn endpoints(instances: &[(u32, &str)]) -> BTreeMap<InstanceId, Endpoint> {
    let endpoint = |(id, address): &(u32, &str)| {
        let instance = InstanceId(*id);
        let endpoint = Endpoint {
            instance,
            address: address.parse().unwrap(),
            ipv4: Ipv4Addr::from_bits(0x6440_0000 | id),
            egress: EgressPolicy::All,
            edge_ports: [8080].into(),
        };
        (instance, endpoint)
    };
    instances.iter().map(endpoint).collect()
}

fn host(own: &str, resolver: Option<&str>) -> HostNetwork {
    HostNetwork {
        own: own_addresses(own).unwrap(),
        resolver: resolver.map(|address| address.parse().unwrap()),
        private: PrivateNetworks(std::collections::BTreeSet::new()),
        servers: ["192.0.2.9:7400", "192.0.2.9:443"]
            .map(|at| at.parse().unwrap())
            .into(),
        // One of them is known by its URL too.
        told_servers: ["192.0.2.9:7400".parse().unwrap()].into(),
    }
}

/// What changes of the instances, with nobody elsewhere.
fn change(
    before: &BTreeMap<InstanceId, Endpoint>,
    after: &BTreeMap<InstanceId, Endpoint>,
) -> String {
    let access = &OverlayAccess::default();
    let wanted = |endpoints| Wanted { endpoints, access };
    super::change(cluster(), wanted(before), wanted(after))
}

const TWO_ENVS: [(u32, &str); 3] = [
    (0xa1, "fd12:3456:789a:3:0:7:0:a1"),
    (0xa2, "fd12:3456:789a:3:0:7:0:a2"),
    (0xa3, "fd12:3456:789a:3:0:8:0:a3"),
];

#[test]
fn rules_without_instances_admit_nothing() {
    expect![[r#"
        add table inet platform_counts
        add set inet platform_counts connections { type ifname; size 65535; flags dynamic; }
        add set inet platform_counts egress_by_tap { type ifname; size 65535; flags dynamic; }
        add set inet platform_counts egress_of_node { type ifname; size 65535; flags dynamic; }
        add set inet platform_counts egress_udp { type ifname; size 65535; flags dynamic,timeout; timeout 1m; }
        add set inet platform_counts names { type ifname; size 65535; flags dynamic,timeout; timeout 1m; }
        add set inet platform_counts sent { type ifname; size 65535; flags dynamic,timeout; timeout 1m; }
        add set inet platform_counts received { type ifname; size 65535; flags dynamic,timeout; timeout 1m; }
        add chain inet platform_counts prerouting { type filter hook prerouting priority raw - 1; policy accept; }
        flush chain inet platform_counts prerouting
        add rule inet platform_counts prerouting iifname "t*" update @sent { iifname limit rate over 250 mbytes/second burst 25 mbytes } drop
        add chain inet platform_counts forward { type filter hook forward priority filter - 1; policy accept; }
        flush chain inet platform_counts forward
        add rule inet platform_counts forward oifname "t*" update @received { oifname limit rate over 250 mbytes/second burst 25 mbytes } drop
        add chain inet platform_counts input { type filter hook input priority filter - 1; policy accept; }
        flush chain inet platform_counts input
        add rule inet platform_counts input iifname "t*" udp dport 53 update @names { iifname limit rate over 1000/second burst 2000 packets } drop
        add rule inet platform_counts input iifname "t*" meta l4proto { tcp, udp } ct state new add @connections { iifname ct count over 2048 } reject with icmpx admin-prohibited
        add rule inet platform_counts forward iifname "t*" ct state new add @connections { iifname ct count over 2048 } reject with icmpx admin-prohibited
        add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto tcp ct state new add @egress_by_tap { iifname ct count over 512 } reject with icmpx admin-prohibited
        add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto tcp ct state new add @egress_of_node { oifname ct count over 4096 } reject with icmpx admin-prohibited
        add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto udp ip daddr != 192.0.0.3 ct state new update @egress_udp { iifname limit rate over 20/second burst 200 packets } reject with icmpx admin-prohibited
        table inet platform
        delete table inet platform
        table inet platform {
        	set ipv6_sources {
        		type ifname . ipv6_addr;
        	}
        	set ipv4_sources {
        		type ifname . ipv4_addr;
        	}
        	set edge_ports {
        		type ipv6_addr . inet_service;
        	}
        	set link_local {
        		type ifname . ipv6_addr;
        	}
        	map env_of_tap {
        		type ifname : verdict;
        	}
        	map egress_of_tap {
        		type ifname : verdict;
        	}
        	set edges {
        		type ipv6_addr;
        	}
        	map env_of_sender {
        		type ipv6_addr : verdict;
        	}
        	set relays {
        		type ifname;
        	}
        	chain pin {
        		type filter hook prerouting priority raw; policy drop;
        		iifname "lo" accept
        		iifname "overlay" goto from_overlay
        		ip6 saddr :: ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit accept
        		iifname . ip6 saddr @link_local ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        		iifname "host" ip6 saddr fe80::/10 ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        		iifname "host" ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a:: accept
        		iifname "uplink" ip daddr 192.0.0.100 accept
        		iifname . ip6 saddr @ipv6_sources accept
        		iifname . ip saddr @ipv4_sources accept
        	}
        	set denied {
        		type ipv4_addr; flags interval; auto-merge;
        		elements = { 0.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16, 192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4 }
        	}
        	set private {
        		type ipv4_addr; flags interval;
        		elements = { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15 }
        	}
        	set private_reached {
        		type ipv4_addr; flags interval; auto-merge;
        	}
        	set servers {
        		type ipv4_addr . inet_service;
        	}
        	set machine {
        		type ipv4_addr; flags interval; auto-merge;
        	}
        	set resolver {
        		type ipv4_addr;
        	}
        	set refused {
        		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
        	}
        	chain translate {
        		type nat hook postrouting priority srcnat; policy accept;
        		oifname "uplink" meta nfproto ipv4 masquerade
        	}
        	chain refuse {
        		update @refused { iifname limit rate over 100/second burst 100 packets } drop
        		meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
        		reject with icmpx admin-prohibited
        	}
        	chain egress_all {
        		oifname "uplink" ip daddr @machine tcp dport { 80, 443 } accept
        		ip daddr @machine goto refuse
        		ip daddr @denied goto refuse
        		ip daddr . tcp dport @servers goto refuse
        		ip daddr @private ip daddr != @private_reached goto refuse
        		oifname "uplink" meta l4proto { tcp, udp, icmp } accept
        		goto refuse
        	}
        	chain egress_internet {
        		ip daddr @private goto refuse
        		goto egress_all
        	}
        	chain egress {
        		tcp flags & (fin | syn | rst | ack) != syn goto refuse
        		ip daddr @resolver meta l4proto { tcp, udp } th dport 53 oifname "uplink" accept
        		iifname vmap @egress_of_tap
        		goto refuse
        	}
        	chain from_overlay {
        		ip6 saddr fd12:3456:789a:3::/64 drop
        		ip6 saddr != fd12:3456:789a::/48 drop
        		ip6 daddr != fd12:3456:789a::/48 drop
        		iifname @relays ip6 daddr != fd12:3456:789a:3::/64 notrack accept
        		ip6 daddr != fd12:3456:789a:3::/64 drop
        		ip6 saddr @edges ip6 daddr . tcp dport @edge_ports accept
        		ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:ffff:ffff { fd12:3456:789a::1, fd12:3456:789a::2 } ip6 daddr { fd12:3456:789a:3::1, fd12:3456:789a:3::2 } icmpv6 type { echo-request, echo-reply } accept
        		ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:ffff:ffff { fd12:3456:789a::1, fd12:3456:789a::2 } ip6 daddr fd12:3456:789a:3::3 ip6 length > 1240 icmpv6 type echo-request accept
        		ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:ffff:ffff == fd12:3456:789a::2 ip6 daddr fd12:3456:789a:3::2 tcp dport 7 accept
        		ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:ffff:ffff == fd12:3456:789a::2 ip6 daddr fd12:3456:789a:3::2 tcp sport 7 accept
        		ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a:: icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
        		ip6 saddr & ffff:ffff:ffff:ffff:ffff:ffff:: vmap @env_of_sender
        	}
        	chain segments {
        		type filter hook forward priority mangle; policy accept;
        		oifname "overlay" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        		iifname "overlay" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        	}
        	chain forward {
        		type filter hook forward priority filter; policy drop;
        		iifname "overlay" oifname "overlay" accept
        		ct state established,related accept
        		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } drop
        		iifname "host" oifname "t*" accept
        		iifname { "host", "overlay" } oifname { "host", "overlay" } icmpv6 type { echo-request, echo-reply } accept
        		iifname "overlay" oifname "t*" ip6 saddr @edges accept
        		meta nfproto ipv6 meta l4proto { tcp, udp } th dport 61001-65535 goto refuse
        		iifname "overlay" oifname "t*" ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:: != fd12:3456:789a:: accept
        		iifname "t*" meta nfproto ipv4 goto egress
        		iifname vmap @env_of_tap
        	}
        	chain input {
        		type filter hook input priority filter; policy drop;
        		iifname "lo" accept
        		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept
        		ct state established,related accept
        		iifname "overlay" ip6 daddr fd12:3456:789a:3::2 tcp dport 7 accept
        		iifname "t*" ip daddr 192.0.0.3 meta l4proto { tcp, udp } th dport 53 accept
        		iifname "t*" meta nfproto ipv4 goto refuse
        	}
        }
        flush set inet platform machine
        flush set inet platform resolver
        flush set inet platform private_reached
        add element inet platform private_reached { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15 }
        flush set inet platform servers
    "#]].assert_eq(&ruleset(
        cluster(),
        NodeId(3),
        Wanted {
            endpoints: &BTreeMap::new(),
            access: &OverlayAccess::default(),
        },
        &HostNetwork::default(),
    ));
}

#[test]
fn the_machines_addresses_and_resolver_are_elements() {
    let own = r#"[{"dst":"203.0.113.2"},{"dst":"203.0.113.255"},{"dst":"10.1.0.0/16"}]"#;
    expect![[r#"
        flush set inet platform machine
        add element inet platform machine { 10.1.0.0/16, 203.0.113.2, 203.0.113.255 }
        flush set inet platform resolver
        add element inet platform resolver { 192.0.0.3 }
        flush set inet platform private_reached
        flush set inet platform servers
        add element inet platform servers { 192.0.2.9 . 7400 }
    "#]]
    .assert_eq(&host_change(&host(own, Some("203.0.113.53"))));
    expect![[r#"
        flush set inet platform machine
        flush set inet platform resolver
        flush set inet platform private_reached
        flush set inet platform servers
        add element inet platform servers { 192.0.2.9 . 7400 }
    "#]]
    .assert_eq(&host_change(&host("[]", None)));
}

#[test]
fn instances_of_two_envs_are_kept_apart() {
    expect![[r#"
        add chain inet platform from_env_00000007
        add rule inet platform from_env_00000007 ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::7:0:0 accept
        add chain inet platform from_env_00000008
        add rule inet platform from_env_00000008 ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::8:0:0 accept
        add element inet platform ipv6_sources { "t000000a1" . fd12:3456:789a:3:0:7:0:a1, "t000000a2" . fd12:3456:789a:3:0:7:0:a2, "t000000a3" . fd12:3456:789a:3:0:8:0:a3 }
        add element inet platform ipv4_sources { "t000000a1" . 100.64.0.161, "t000000a2" . 100.64.0.162, "t000000a3" . 100.64.0.163 }
        add element inet platform link_local { "t000000a1" . fe80::1:ff:fe00:a1, "t000000a2" . fe80::1:ff:fe00:a2, "t000000a3" . fe80::1:ff:fe00:a3 }
        add element inet platform edge_ports { fd12:3456:789a:3:0:7:0:a1 . 8080, fd12:3456:789a:3:0:7:0:a2 . 8080, fd12:3456:789a:3:0:8:0:a3 . 8080 }
        add element inet platform env_of_tap { "t000000a1" : goto from_env_00000007, "t000000a2" : goto from_env_00000007, "t000000a3" : goto from_env_00000008 }
        add element inet platform egress_of_tap { "t000000a1" : goto egress_all, "t000000a2" : goto egress_all, "t000000a3" : goto egress_all }
    "#]].assert_eq(&change(&BTreeMap::new(), &endpoints(&TWO_ENVS)));
}

#[test]
fn a_change_names_only_what_changes() {
    let all = endpoints(&TWO_ENVS);
    let first = endpoints(&TWO_ENVS[..2]);
    expect![[r#"
        add chain inet platform from_env_00000008
        add rule inet platform from_env_00000008 ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::8:0:0 accept
        add element inet platform ipv6_sources { "t000000a3" . fd12:3456:789a:3:0:8:0:a3 }
        add element inet platform ipv4_sources { "t000000a3" . 100.64.0.163 }
        add element inet platform link_local { "t000000a3" . fe80::1:ff:fe00:a3 }
        add element inet platform edge_ports { fd12:3456:789a:3:0:8:0:a3 . 8080 }
        add element inet platform env_of_tap { "t000000a3" : goto from_env_00000008 }
        add element inet platform egress_of_tap { "t000000a3" : goto egress_all }
    "#]].assert_eq(&change(&first, &all));
    expect![[r#"
        delete element inet platform ipv6_sources { "t000000a3" . fd12:3456:789a:3:0:8:0:a3 }
        delete element inet platform ipv4_sources { "t000000a3" . 100.64.0.163 }
        delete element inet platform link_local { "t000000a3" . fe80::1:ff:fe00:a3 }
        delete element inet platform edge_ports { fd12:3456:789a:3:0:8:0:a3 . 8080 }
        delete element inet platform env_of_tap { "t000000a3" : goto from_env_00000008 }
        delete element inet platform egress_of_tap { "t000000a3" : goto egress_all }
        flush chain inet platform from_env_00000008
        delete chain inet platform from_env_00000008
    "#]]
    .assert_eq(&change(&all, &first));
    let moved = endpoints(&[TWO_ENVS[0], (0xa2, "fd12:3456:789a:3:0:9:0:a2")]);
    expect![[r#"
        delete element inet platform ipv6_sources { "t000000a2" . fd12:3456:789a:3:0:7:0:a2 }
        delete element inet platform ipv4_sources { "t000000a2" . 100.64.0.162 }
        delete element inet platform link_local { "t000000a2" . fe80::1:ff:fe00:a2 }
        delete element inet platform edge_ports { fd12:3456:789a:3:0:7:0:a2 . 8080 }
        delete element inet platform env_of_tap { "t000000a2" : goto from_env_00000007 }
        delete element inet platform egress_of_tap { "t000000a2" : goto egress_all }
        add chain inet platform from_env_00000009
        add rule inet platform from_env_00000009 ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::9:0:0 accept
        add element inet platform ipv6_sources { "t000000a2" . fd12:3456:789a:3:0:9:0:a2 }
        add element inet platform ipv4_sources { "t000000a2" . 100.64.0.162 }
        add element inet platform link_local { "t000000a2" . fe80::1:ff:fe00:a2 }
        add element inet platform edge_ports { fd12:3456:789a:3:0:9:0:a2 . 8080 }
        add element inet platform env_of_tap { "t000000a2" : goto from_env_00000009 }
        add element inet platform egress_of_tap { "t000000a2" : goto egress_all }
    "#]].assert_eq(&change(&first, &moved));
    assert_eq!(change(&all, &all), "");
}

#[test]
fn an_instance_in_network_0_gets_no_rights() {
    let platform = endpoints(&[(1, "fd12:3456:789a:3::9")]);
    let text = change(&BTreeMap::new(), &platform);
    assert!(text.contains("ipv6_sources") && !text.contains("env_of_tap"));
}

fn access(neighbours: &[(u16, u32)], edges: &[u16], is_hub: bool) -> OverlayAccess {
    OverlayAccess {
        neighbours: (neighbours.iter())
            .map(|(node, env)| (NodeId(*node), EnvNetwork(*env)))
            .collect(),
        edges: edges.iter().map(|edge| NodeId(*edge)).collect(),
        is_hub,
    }
}

#[test]
fn senders_of_other_members_are_elements_of_the_envs_that_are_here() {
    let here = endpoints(&TWO_ENVS);
    let first = endpoints(&TWO_ENVS[..2]);
    let none = OverlayAccess::default();
    // Env 9 runs nowhere here.
    let some = access(&[(4, 7), (4, 8), (5, 7), (5, 9)], &[100], true);
    let changed = |before: (&_, &_), after: (&_, &_)| {
        let wanted = |(endpoints, access)| Wanted { endpoints, access };
        super::change(cluster(), wanted(before), wanted(after))
    };
    expect![[r#"
        add element inet platform env_of_sender { fd12:3456:789a:4:0:7:: : goto from_env_00000007, fd12:3456:789a:4:0:8:: : goto from_env_00000008, fd12:3456:789a:5:0:7:: : goto from_env_00000007 }
        add element inet platform edges { fd12:3456:789a:64::1 }
        add element inet platform relays { "overlay" }
    "#]].assert_eq(&changed((&here, &none), (&here, &some)));
    // One member more, another less: nothing of the others is touched.
    let other = access(&[(4, 7), (5, 7), (6, 8)], &[100, 101], false);
    expect![[r#"
        delete element inet platform env_of_sender { fd12:3456:789a:4:0:8:: : goto from_env_00000008 }
        add element inet platform env_of_sender { fd12:3456:789a:6:0:8:: : goto from_env_00000008 }
        add element inet platform edges { fd12:3456:789a:65::1 }
        delete element inet platform relays { "overlay" }
    "#]].assert_eq(&changed((&here, &some), (&here, &other)));
    // The last instance of an env takes its senders with it, the first brings them.
    expect![[r#"
        delete element inet platform ipv6_sources { "t000000a3" . fd12:3456:789a:3:0:8:0:a3 }
        delete element inet platform ipv4_sources { "t000000a3" . 100.64.0.163 }
        delete element inet platform link_local { "t000000a3" . fe80::1:ff:fe00:a3 }
        delete element inet platform edge_ports { fd12:3456:789a:3:0:8:0:a3 . 8080 }
        delete element inet platform env_of_tap { "t000000a3" : goto from_env_00000008 }
        delete element inet platform egress_of_tap { "t000000a3" : goto egress_all }
        delete element inet platform env_of_sender { fd12:3456:789a:4:0:8:: : goto from_env_00000008 }
        flush chain inet platform from_env_00000008
        delete chain inet platform from_env_00000008
    "#]].assert_eq(&changed((&here, &some), (&first, &some)));
    expect![[r#"
        add chain inet platform from_env_00000008
        add rule inet platform from_env_00000008 ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::8:0:0 accept
        add element inet platform ipv6_sources { "t000000a3" . fd12:3456:789a:3:0:8:0:a3 }
        add element inet platform ipv4_sources { "t000000a3" . 100.64.0.163 }
        add element inet platform link_local { "t000000a3" . fe80::1:ff:fe00:a3 }
        add element inet platform edge_ports { fd12:3456:789a:3:0:8:0:a3 . 8080 }
        add element inet platform env_of_tap { "t000000a3" : goto from_env_00000008 }
        add element inet platform egress_of_tap { "t000000a3" : goto egress_all }
        add element inet platform env_of_sender { fd12:3456:789a:4:0:8:: : goto from_env_00000008 }
    "#]].assert_eq(&changed((&first, &some), (&here, &some)));
    assert_eq!(changed((&here, &some), (&here, &some)), "");
}

#[test]
fn what_an_instance_reaches_outside_is_an_element_of_its_tap() {
    let mut all = endpoints(&TWO_ENVS);
    let before = all.clone();
    let [one, two] = [InstanceId(0xa1), InstanceId(0xa2)];
    all.get_mut(&one).unwrap().egress = EgressPolicy::None;
    all.get_mut(&two).unwrap().egress = EgressPolicy::Internet;
    let text = change(&BTreeMap::new(), &all);
    let line = text
        .lines()
        .find(|line| line.contains("egress_of_tap"))
        .unwrap();
    expect![[r#"add element inet platform egress_of_tap { "t000000a1" : goto refuse, "t000000a2" : goto egress_internet, "t000000a3" : goto egress_all }"#]].assert_eq(line);
    assert!(change(&before, &all).contains("t000000a1"));
    assert!(!change(&before, &all).contains("t000000a3"));
}

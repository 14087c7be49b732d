//! What members are asked, and what their answers mean.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::member::{Carrier, Echoes, LinkMeasurement, Segments, UnderlayPath};
use api::user::{DiagnosedMember, FindingSeverity, MeasurementState, NetworkFinding};
use expect_test::{Expect, expect};
use overlay::topology;

use super::*;

/// A link on which nothing is wrong.
fn well() -> LinkMeasurement {
    LinkMeasurement {
        endpoint: Some("198.18.7.9:51820".parse().unwrap()),
        handshake_age_seconds: Some(20),
        received_bytes: 10_000,
        echoes: echoes(10, 10),
        mtu: Some(1420),
        packet_too_big: Some(true),
        segments: Some(Segments {
            single: true,
            large: true,
        }),
        underlay: Some(UnderlayPath {
            mtu: Some(1500),
            interface: "eth0".to_owned(),
            kind: "veth".to_owned(),
        }),
    }
}

/// A link by which nothing comes back, and by which so many bytes came.
fn silent(received_bytes: u64) -> LinkMeasurement {
    LinkMeasurement {
        endpoint: Some("198.18.7.9:51820".parse().unwrap()),
        received_bytes,
        echoes: echoes(12, 0),
        ..LinkMeasurement::default()
    }
}

fn echoes(sent: u32, answered: u32) -> Echoes {
    Echoes {
        sent,
        answered,
        fastest_us: (answered > 0).then_some(500),
    }
}

/// Nodes 1 to `count`, all of whose links are well.
fn mesh(count: u16) -> (Overview, Vec<DiagnosedMember>) {
    let placed = |number| {
        let placed = Placed {
            member: Member::Node(NodeId(number)),
            name: format!("web-{number}"),
            endpoint: Some(format!("198.18.7.{number}:51820").parse().unwrap()),
            home: None,
        };
        (NodeId(number), placed)
    };
    let overview = Overview {
        prefix: "fd12:3456:789a::".parse().unwrap(),
        mtu: 1420,
        placed: (1..=count).map(placed).collect(),
    };
    let member = |number: u16| DiagnosedMember {
        member: Member::Node(NodeId(number)),
        name: format!("web-{number}"),
        number: Some(NodeId(number)),
        state: MeasurementState::Measured,
        failure: None,
        clock_ahead_ms: Some(0),
        kernel: "7.0.1".to_owned(),
        carrier: Some(Carrier {
            is_kernel: false,
            offload: true,
        }),
        links: (1..=count)
            .filter(|other| *other != number)
            .map(|other| (NodeId(other), well()))
            .collect(),
        relayed: BTreeMap::new(),
    };
    (overview, (1..=count).map(member).collect())
}

fn set(members: &mut [DiagnosedMember], from: usize, to: u16, link: LinkMeasurement) {
    members[from - 1].links.insert(NodeId(to), link);
}

fn check(found: &[NetworkFinding], expected: &Expect) {
    let mut text = String::new();
    for finding in found {
        let severity = match finding.severity {
            FindingSeverity::Error => "error",
            FindingSeverity::Warning => "warning",
            FindingSeverity::Note => "note",
        };
        let members: Vec<_> = finding.members.iter().map(ToString::to_string).collect();
        text += &format!(
            "{severity} {} [{}]\n  {}\n  {}\n  {}\n",
            finding.code,
            members.join(" "),
            finding.found,
            finding.why,
            finding.mend
        );
    }
    expected.assert_eq(&text);
}

#[test]
fn nothing_is_found_where_all_is_healthy() {
    let (overview, members) = mesh(4);
    assert_eq!(findings(&overview, &members), []);
    assert!(is_healthy(&well(), 1420));
}

#[test]
fn a_path_that_is_broken_in_one_direction_is_named_with_the_port_to_open() {
    let (overview, mut members) = mesh(4);
    // Nothing of web-1 arrives at web-2 and web-3.
    for other in [2, 3] {
        set(&mut members, 1, other, silent(148));
        set(&mut members, usize::from(other), 1, silent(0));
    }
    check(
        &findings(&overview, &members),
        &expect![[r#"
        error one_way [n1 n2 n3]
          no packet from web-1 arrives at web-2, web-3; those from web-2, web-3 arrive at web-1
          a firewall or a router on the way from web-1 to web-2, web-3 drops UDP
          let UDP port 51820 in on web-2 (198.18.7.2), web-3 (198.18.7.3) from web-1 (198.18.7.1); see also that nothing on web-1 keeps it from going out
    "#]],
    );
}

#[test]
fn blocked_udp_is_one_finding_of_the_machine_that_all_have_in_common() {
    let (overview, mut members) = mesh(8);
    for other in 1..8 {
        set(&mut members, 8, other, silent(0));
        set(&mut members, usize::from(other), 8, silent(0));
    }
    check(
        &findings(&overview, &members),
        &expect![[r#"
            error udp_blocked [n8 n1 n2 n3 n4 n5 n6 n7]
              no packet arrives between web-8 and web-1, web-2, web-3, web-4, web-5 and 2 more, either way
              UDP is blocked between them, there is no route, or the recorded endpoint is not where they are
              let UDP port 51820 in on web-8 (198.18.7.8) from web-1 (198.18.7.1), web-2 (198.18.7.2), web-3 (198.18.7.3), web-4 (198.18.7.4), web-5 (198.18.7.5) and 2 more, and the same the other way; `platform network` shows the endpoints, and `platform node join --advertise` says others
        "#]],
    );
}

#[test]
fn two_behind_nats_are_told_to_meet_at_a_hub() {
    let (mut overview, mut members) = mesh(3);
    for number in [2, 3] {
        overview.placed.get_mut(&NodeId(number)).unwrap().endpoint = None;
    }
    set(&mut members, 2, 3, silent(0));
    set(&mut members, 3, 2, silent(0));
    check(
        &findings(&overview, &members),
        &expect![[r#"
        error no_endpoint [n2 n3]
          nobody knows where web-2 and web-3 are reached: they cannot call each other
          all of them are behind a NAT that forwards nothing, or did not say how they are reached
          `platform network set --mode hubs` has them meet at a hub; or forward the port and say where by `platform node join --advertise`
    "#]],
    );
}

#[test]
fn packets_that_arrive_without_an_answer_and_those_of_one_end_are_told_apart() {
    let (overview, mut members) = mesh(4);
    set(&mut members, 1, 2, silent(3000));
    set(&mut members, 2, 1, silent(3000));
    set(&mut members, 3, 4, silent(3000));
    check(
        &findings(&overview, &members),
        &expect![[r#"
            error no_answer [n1 n2]
              packets of WireGuard arrive between web-1 and web-2, and no echo comes back in the tunnel
              a rule of one of the machines drops what comes out of the tunnel, or one of them does not know the other as its peer yet
              restart the agents of web-1 and web-2, which load their rules and peers again; their logs say what they could not do
            error half_answered [n3 n4]
              between web-3 and web-4 echoes of one end come back, and those of the other do not
              the path broke or was mended meanwhile, or a rule of one machine drops echoes that the other asks for
              run this again; where it stays, look at `nft list ruleset` of both machines for rules about ICMPv6
        "#]],
    );
}

#[test]
fn a_smaller_mtu_is_named_with_the_value_to_set() {
    let (overview, mut members) = mesh(3);
    let underlay = |mtu| {
        Some(UnderlayPath {
            mtu: Some(mtu),
            interface: "eth0".to_owned(),
            kind: String::new(),
        })
    };
    // Fragments arrive.
    for (from, to) in [(1, 2), (3, 2)] {
        let link = LinkMeasurement {
            underlay: underlay(1460),
            ..well()
        };
        set(&mut members, from, to, link);
    }
    check(
        &findings(&overview, &members),
        &expect![[r#"
        warning fragmented [n2 n1 n3]
          WireGuard's packets from web-1, web-3 to web-2 are cut into fragments: the network there takes 1460 bytes
          the cluster's MTU 1420 and what WireGuard adds do not fit into that. It works, costs twice the packets, and stops where a firewall drops fragments
          `platform network set --mtu 1380`: links, taps and running guests follow
    "#]],
    );
    // They are dropped.
    for (from, to) in [(1, 2), (2, 1)] {
        let link = LinkMeasurement {
            mtu: Some(1400),
            underlay: underlay(1460),
            ..well()
        };
        set(&mut members, from, to, link);
    }
    check(
        &findings(&overview, &members)[..1],
        &expect![[r#"
        error mtu_too_large [n1 n2]
          packets of 1420 bytes, the cluster's MTU, are lost in the tunnel between web-1 and web-2: the largest that arrives has 1400
          the network between them has a smaller MTU than 1500 or another tunnel, and the fragments of WireGuard's packets are dropped
          `platform network set --mtu 1380`: links, taps and running guests follow
    "#]],
    );
}

#[test]
fn an_underlay_below_1360_is_named_whatever_the_mtu_is() {
    let (overview, mut members) = mesh(2);
    let narrow = UnderlayPath {
        mtu: Some(1280),
        interface: "eth0".to_owned(),
        kind: String::new(),
    };
    let link = LinkMeasurement {
        underlay: Some(narrow),
        ..well()
    };
    set(&mut members, 1, 2, link.clone());
    check(
        &findings(&overview, &members),
        &expect![[r#"
        warning fragmented [n1 n2]
          WireGuard's packets from web-1 to web-2 are cut into fragments: the network there takes 1280 bytes
          the overlay needs packets of 1280 bytes, which have 1360 outside of the tunnel: below that they are fragmented whatever the MTU is. It works, costs more than twice the packets, and stops where a firewall drops fragments
          raise the MTU of the network between the machines to 1360 or more; `platform network set --mtu 1280` makes the fragments fewer
    "#]],
    );
    let least = Overview {
        mtu: 1280,
        ..overview
    };
    assert_eq!(findings(&least, &members)[0].code, "fragmented");
    // Not even the least arrives.
    let lost = LinkMeasurement {
        mtu: Some(1279),
        ..link
    };
    set(&mut members, 1, 2, lost);
    check(
        &findings(&least, &members),
        &expect![[r#"
        error mtu_below_least [n1 n2]
          packets of 1280 bytes are lost in the tunnel between web-1 and web-2, and smaller ones arrive
          the network between them takes less than WireGuard needs, and drops the fragments
          the overlay has no smaller MTU: the network between the machines has to take 1360 bytes, or fragments of UDP (firewalls and security groups drop them)
    "#]],
    );
}

#[test]
fn a_lost_packet_too_big_mangled_segments_and_loss_are_named() {
    let (overview, mut members) = mesh(4);
    let link = LinkMeasurement {
        packet_too_big: Some(false),
        ..well()
    };
    set(&mut members, 1, 3, link.clone());
    set(&mut members, 2, 3, link);
    let mangled = LinkMeasurement {
        segments: Some(Segments {
            single: true,
            large: false,
        }),
        ..well()
    };
    set(&mut members, 2, 1, mangled);
    let lossy = LinkMeasurement {
        echoes: echoes(10, 6),
        ..well()
    };
    set(&mut members, 4, 1, lossy);
    let none = LinkMeasurement {
        segments: Some(Segments {
            single: false,
            large: false,
        }),
        ..well()
    };
    set(&mut members, 3, 1, none);
    check(
        &findings(&overview, &members),
        &expect![[r#"
            error too_big_lost [n3 n1 n2]
              no Packet Too Big of web-3 comes back to web-1, web-2: a packet that is too large for a link was not answered by it
              a rule on one of the machines drops ICMPv6 errors. Connections hang where the MTU becomes smaller
              let ICMPv6 type 2 pass (RFC 4890, 4.3.1): look for it in `nft list ruleset` of both machines and of their network namespaces `platform-..`; a restart of the agent loads its own rules again
            error large_segments_lost [n1 n2]
              TCP between web-1 and web-2 arrives segment by segment, and does not where the kernel cuts and joins many (GSO and GRO)
              a kernel mangles them: web-1 has 7.0.1 (userspace), web-2 has 7.0.1 (userspace). Those of Linux 7.0 and 7.1, and drivers of some network cards, do
              userspace: set PLATFORM_WIREGUARD_NO_OFFLOAD=1 for the agents of these machines and remove their link (docs/operations.md, "Kernels that mangle packets"); the kernel's WireGuard: `ethtool -K LINK gso off gro off tx-udp-segmentation off` on the link of the underlay, or another kernel
            error tcp_lost [n1 n3]
              echoes come back between web-1 and web-3, and what TCP sends does not, not even segment by segment
              a rule on one of the machines drops TCP in the tunnel, or something on the way changes packets
              look for rules about TCP in `nft list ruleset` of both machines and of their network namespaces `platform-..`; a restart of the agent loads its own rules again
            warning loss [n1 n4]
              up to 40% of the echoes between web-1 and web-4 are lost
              the network between them is overloaded or broken, or one of the machines is
              run this again, then look at the load of the machines, and at the network by `ping` and `mtr` outside of the tunnel
        "#]],
    );
}

#[test]
fn a_tunnel_in_a_tunnel_and_an_endpoint_inside_are_named() {
    let (overview, mut members) = mesh(3);
    let by_wireguard = LinkMeasurement {
        underlay: Some(UnderlayPath {
            mtu: Some(1500),
            interface: "wg0".to_owned(),
            kind: "wireguard".to_owned(),
        }),
        ..well()
    };
    set(&mut members, 1, 2, by_wireguard.clone());
    set(&mut members, 1, 3, by_wireguard);
    let inside = LinkMeasurement {
        endpoint: Some("[fd12:3456:789a:3::1]:51820".parse().unwrap()),
        ..well()
    };
    set(&mut members, 2, 3, inside);
    check(
        &findings(&overview, &members),
        &expect![[r#"
        error endpoint_inside [n2 n3]
          between web-2 and web-3 an endpoint is within the cluster's own prefix fd12:3456:789a::/48
          packets of WireGuard would have to go through the tunnel that they are
          `platform node join --advertise` takes an address of the network between the machines
        warning tunnel_in_tunnel [n1 n2 n3]
          web-1 reaches web-2, web-3 by wg0 (wireguard), which is a tunnel itself
          each packet is carried by two tunnels: both take from its size, and both cost
          `platform node join --advertise` on those that are reached gives an address outside of that tunnel; where there is none, see that the MTU fits
    "#]],
    );
}

#[test]
fn members_that_did_not_measure_are_named_with_what_others_see_of_them() {
    let (overview, mut members) = mesh(4);
    members[2].state = MeasurementState::NoAnswer;
    members[2].links.clear();
    members[2].clock_ahead_ms = None;
    members[3].state = MeasurementState::NotAsked;
    members[3].links.clear();
    set(&mut members, 1, 3, silent(0));
    for from in [1, 2] {
        set(&mut members, from, 4, silent(0));
    }
    check(
        &findings(&overview, &members),
        &expect![[r#"
            error no_measurement [n3]
              web-3 was asked and did not answer in time; it is reached in the tunnel by web-2, and not by web-1
              its agent hangs, its connection to the server broke, or its machine is down
              see that its agent runs: `systemctl status platform-node`, `journalctl -u platform-node` on the machine
            error not_asked [n4]
              web-4 does not call the server; nobody who tried reaches it in the tunnel
              its machine is down, or it does not reach the server
              see that its agent runs: `systemctl status platform-node`, `journalctl -u platform-node` on the machine
            error udp_blocked [n1 n3]
              no packet arrives between web-1 and web-3, either way
              UDP is blocked between them, there is no route, or the recorded endpoint is not where they are
              let UDP port 51820 in on web-1 (198.18.7.1) from web-3 (198.18.7.3), and the same the other way; `platform network` shows the endpoints, and `platform node join --advertise` says others
        "#]],
    );
    members[1].state = MeasurementState::Failed;
    members[1].failure = Some("it has no interface of the overlay".to_owned());
    members[1].links.clear();
    let found = findings(&overview, &members);
    check(
        &found[..1],
        &expect![[r#"
            error measurement_failed [n2]
              web-2 could not measure its links; it is reached in the tunnel by web-1
              it has no interface of the overlay
              `journalctl -u platform-node` on the machine says why the overlay is not up; see that root runs it
        "#]],
    );
}

#[test]
fn a_member_that_lies_hides_nothing_that_others_see() {
    let (overview, mut members) = mesh(2);
    set(&mut members, 1, 2, silent(0));
    // The other says that all is well.
    let found = findings(&overview, &members);
    assert_eq!(found[0].code, "half_answered");
    // A number that nobody has is no member.
    members[1].links.insert(NodeId(700), silent(0));
    assert_eq!(findings(&overview, &members).len(), 1);
}

#[test]
fn clocks_that_are_off_are_named_and_those_within_the_time_of_the_way_are_not() {
    let at = Timestamp;
    // The way there took 40 ms, the one back none.
    assert_eq!(clock_ahead(at(1000), at(1040), at(9040), at(9040)), 0);
    assert_eq!(
        clock_ahead(at(1000), at(62_020), at(72_020), at(11_040)),
        60_980
    );
    assert_eq!(
        clock_ahead(at(100_000), at(40_000), at(50_000), at(110_000)),
        -60_000
    );
    assert_eq!(
        clock_ahead(at(0), at(u64::MAX), at(u64::MAX), at(10)),
        i64::MAX
    );
    let (overview, mut members) = mesh(3);
    members[0].clock_ahead_ms = Some(1_900);
    members[1].clock_ahead_ms = Some(-61_500);
    members[2].clock_ahead_ms = Some(3 * 86_400_000);
    check(
        &findings(&overview, &members),
        &expect![[r#"
        error clock_skew [n3]
          the clock of web-3 is 3 days 0 h ahead of the server's
          one of the two does not follow a time server. Times in logs do not agree; certificates and tokens are refused when it is more
          `timedatectl` on both machines says which one; `apt-get install systemd-timesyncd`, or chrony
        warning clock_skew [n2]
          the clock of web-2 is 1 min 1 s behind the server's
          one of the two does not follow a time server. Times in logs do not agree; certificates and tokens are refused when it is more
          `timedatectl` on both machines says which one; `apt-get install systemd-timesyncd`, or chrony
    "#]],
    );
}

#[test]
fn members_that_hubs_do_not_relay_to_are_named() {
    let (mut overview, mut members) = mesh(4);
    for number in [3, 4] {
        overview.placed.get_mut(&NodeId(number)).unwrap().home = Some(NodeId(1));
        members[usize::from(number) - 1].links = BTreeMap::from([(NodeId(1), well())]);
    }
    members[2].relayed.insert(NodeId(4), echoes(8, 0));
    members[3].relayed.insert(NodeId(3), echoes(8, 0));
    check(
        &findings(&overview, &members),
        &expect![[r#"
            error not_relayed [n3 n4]
              web-3 and web-4 do not reach each other by way of their hubs
              a hub of theirs (web-1) does not pass packets on, or hubs do not reach each other
              mend what is found of links of the hubs first; `platform nodes label HUB hub=never` has another one take a hub's place
        "#]],
    );
}

fn topology_of(count: u16, mode: Mode) -> Topology {
    let members = (1..=count).map(|number| {
        let member = topology::Member {
            region: "home".into(),
            ..topology::Member::default()
        };
        (NodeId(number), member)
    });
    Topology::new(&members.collect(), mode, &topology::HubFaults::default())
}

#[test]
fn in_a_mesh_each_measures_its_peers_and_named_ones_are_measured_from_both_ends() {
    let topology = topology_of(4, Mode::Mesh);
    let all = requests(&topology, Mode::Mesh, None, 7, 30_000);
    assert_eq!(all.len(), 4);
    let is_all = |request: &MeasurementRequest| request.peers.is_none();
    assert!(all.values().all(is_all) && all.values().all(|of| of.relayed.is_empty()));
    let only = BTreeSet::from([NodeId(3)]);
    let some = requests(&topology, Mode::Mesh, Some(&only), 7, 30_000);
    assert_eq!(some[&NodeId(3)].peers, None);
    assert_eq!(some[&NodeId(1)].peers, Some(only));
}

#[test]
fn with_hubs_each_reaches_some_of_the_others_and_everybody_is_reached_in_every_run() {
    let mode = Mode::Hubs { local_mesh: 0 };
    let topology = topology_of(300, mode);
    let mut seen = BTreeSet::new();
    for run in [1, 2, u64::MAX] {
        let all = requests(&topology, mode, None, run, 30_000);
        assert_eq!(all.len(), 300);
        let most = all.values().map(|request| request.relayed.len()).max();
        assert!(most <= Some(RELAYED), "{most:?}");
        let asked: usize = all.values().map(|request| request.relayed.len()).sum();
        assert!(asked > 280 * (RELAYED - 4), "{asked}");
        let reached: BTreeSet<NodeId> = all
            .values()
            .flat_map(|of| of.relayed.iter().copied())
            .collect();
        // Hubs are everybody's peers.
        let hubs = topology.hubs().count();
        assert!(reached.len() >= 300 - hubs, "{}", reached.len());
        for (member, request) in &all {
            let peers = topology.peers(*member);
            let is_other = |other: &NodeId| other != member && !peers.contains_key(other);
            assert!(request.relayed.iter().all(is_other));
        }
        seen.insert(all[&NodeId(200)].relayed.clone());
    }
    assert_eq!(seen.len(), 3, "others in each run");
}

fn codes(found: &[NetworkFinding]) -> Vec<&str> {
    found.iter().map(|finding| finding.code.as_str()).collect()
}

#[test]
fn loss_is_no_kernel_that_mangles_segments_and_no_rule_against_icmp() {
    let (overview, mut members) = mesh(2);
    let of_segments = |single, large| Some(Segments { single, large });
    for (lost, expected) in [
        (0, vec!["too_big_lost", "large_segments_lost"]),
        // Too little to speak of, and enough for TCP to be slow.
        (1, vec!["too_big_lost"]),
        (4, vec!["loss"]),
    ] {
        let link = LinkMeasurement {
            echoes: echoes(10, 10 - lost),
            segments: of_segments(true, false),
            packet_too_big: Some(false),
            ..well()
        };
        set(&mut members, 2, 1, link);
        assert_eq!(codes(&findings(&overview, &members)), expected, "{lost}");
    }
    let link = LinkMeasurement {
        echoes: echoes(10, 6),
        segments: of_segments(false, false),
        ..well()
    };
    set(&mut members, 2, 1, link);
    assert_eq!(codes(&findings(&overview, &members)), ["loss"]);
    // The other end sees the loss.
    set(
        &mut members,
        2,
        1,
        LinkMeasurement {
            segments: of_segments(true, false),
            ..well()
        },
    );
    set(
        &mut members,
        1,
        2,
        LinkMeasurement {
            echoes: echoes(10, 7),
            ..well()
        },
    );
    assert_eq!(codes(&findings(&overview, &members)), ["loss"]);
}

#[test]
fn a_packet_too_big_that_could_not_be_asked_for_is_not_lost() {
    let (overview, mut members) = mesh(2);
    for (mtu, expected) in [
        (1279, vec!["mtu_below_least"]),
        (1280, vec!["mtu_too_large"]),
        (1380, vec!["mtu_too_large", "too_big_lost"]),
    ] {
        let link = LinkMeasurement {
            mtu: Some(mtu),
            packet_too_big: Some(false),
            segments: None,
            ..well()
        };
        set(&mut members, 2, 1, link);
        assert_eq!(codes(&findings(&overview, &members)), expected, "{mtu}");
    }
}

#[test]
fn one_that_is_too_old_to_measure_is_a_note_and_one_that_nobody_reaches_is_not() {
    let (overview, mut members) = mesh(3);
    members[2].state = MeasurementState::TooOld;
    members[2].links.clear();
    check(
        &findings(&overview, &members),
        &expect![[r#"
            note too_old [n3]
              web-3 measured nothing; it is reached in the tunnel by web-1, web-2
              its `platform` is older than the server's, and does not measure
              upgrade `platform` there
        "#]],
    );
    for from in [1, 2] {
        set(&mut members, from, 3, silent(0));
    }
    let found = findings(&overview, &members);
    assert_eq!(codes(&found), ["udp_blocked", "too_old"]);
}

#[test]
fn edges_are_not_asked_to_reach_each_other_by_hubs() {
    let mode = Mode::Hubs { local_mesh: 0 };
    let members = (1..=40).map(|number| {
        let member = topology::Member {
            is_edge: number > 36,
            ..topology::Member::default()
        };
        (NodeId(number), member)
    });
    let topology = Topology::new(&members.collect(), mode, &topology::HubFaults::default());
    for (member, request) in requests(&topology, mode, None, 7, 30_000) {
        let is_edge = |number: &NodeId| number.0 > 36;
        assert!(!request.relayed.iter().any(is_edge), "{member}");
        assert!(!is_edge(&member) || request.relayed.is_empty());
    }
}

//! What two nodes measure of the link between them: real interfaces, namespaces and rules, on machines that are network namespaces with a router between.
//!
//! Each test runs again in namespaces of its own. This program is also the process of their interfaces (`wireguard`), so it has a `main` of its own.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use api::member::{LinkMeasurement, Measurement, MeasurementRequest, Segments};
use identity::WireguardKey;
use membership::OverlayState;
use model::NodeId;
use node_network::{Network, NetworkSettings, OVERLAY_LINK, OverlayAccess};
use overlay_member::{Place, Source, measure};
use test_namespaces::{agent, isolated_command, shell};
use tokio::sync::Barrier;
use wireguard::interface::{Interface, InterfaceOptions};
use wireguard::process::ProcessOptions;
use wireguard::settings::{PeerSettings, Prefix, PrivateKey, Settings};

const INSIDE: &str = "OVERLAY_MEMBER_TEST_INSIDE";
/// Longest that a test takes.
const LIMIT: Duration = Duration::from_mins(2);
const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const PORT: u16 = 51_820;

type Test = (&'static str, fn());

const TESTS: [Test; 6] = [
    (
        "a_link_that_is_healthy_is_measured_whole",
        a_link_that_is_healthy_is_measured_whole,
    ),
    (
        "a_path_broken_in_one_direction_is_seen_from_both_ends",
        a_path_broken_in_one_direction_is_seen_from_both_ends,
    ),
    (
        "an_underlay_of_1460_and_one_of_1280_are_seen_whether_fragments_pass_or_not",
        an_underlay_of_1460_and_one_of_1280_are_seen_whether_fragments_pass_or_not,
    ),
    (
        "a_lost_packet_too_big_is_noticed",
        a_lost_packet_too_big_is_noticed,
    ),
    (
        "large_segments_that_are_lost_are_noticed",
        large_segments_that_are_lost_are_noticed,
    ),
    (
        "a_member_without_an_interface_says_so",
        a_member_without_an_interface_says_so,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "wireguard") {
        return interface(&arguments);
    }
    if let Some(name) = std::env::var_os(INSIDE) {
        let test = TESTS.iter().find(|(of, _)| name == *of).unwrap();
        (test.1)();
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    let mut passed = 0;
    let wanted = |name: &str| {
        let mut filters = arguments
            .iter()
            .filter(|argument| !argument.starts_with('-'));
        filters.clone().count() == 0 || filters.any(|filter| name.contains(filter.as_str()))
    };
    if test_namespaces::is_skipped() {
        return ExitCode::SUCCESS;
    }
    for (name, _) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let output = isolated_command(":", LIMIT)
            .env(INSIDE, name)
            .output()
            .unwrap();
        let is_ok = output.status.success();
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        if is_ok {
            passed += 1;
        } else {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            failed.push((*name, text));
        }
    }
    for (name, text) in &failed {
        println!("---- {name}\n{text}");
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {} failed; 0 ignored",
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// The process of an interface.
fn interface(arguments: &[String]) -> ExitCode {
    let after = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag);
        at.and_then(|at| arguments.get(at + 1)).cloned()
    };
    let options = ProcessOptions {
        name: after("--name").unwrap(),
        namespace: after("--namespace").map(PathBuf::from),
        port: after("--port").unwrap().parse().unwrap(),
        mtu: after("--mtu").unwrap().parse().unwrap(),
        control: after("--control").unwrap().into(),
        offload: !arguments.iter().any(|argument| argument == "--no-offload"),
    };
    match wireguard::process::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// A node on a machine of its own.
struct Node {
    number: u16,
    machine: &'static str,
    key: WireguardKey,
}

impl Node {
    fn new(number: u16, machine: &'static str) -> Self {
        Self {
            number,
            machine,
            key: WireguardKey::generate().unwrap(),
        }
    }

    fn place(&self) -> Place {
        Place {
            link: OVERLAY_LINK.to_owned(),
            namespace: Some(Path::new("/run/netns").join(format!("platform-{}", self.machine))),
            program: std::env::current_exe().unwrap(),
            run_dir: Path::new("/run").join(self.machine),
            force_userspace: true,
        }
    }

    fn options(&self) -> InterfaceOptions {
        let place = self.place();
        InterfaceOptions {
            name: place.link,
            namespace: place.namespace,
            port: PORT,
            mtu: 1420,
            program: place.program,
            run_dir: place.run_dir,
            force_userspace: true,
        }
    }

    fn prefix(&self) -> Ipv6Addr {
        overlay::address_plan::node_prefix(PREFIX, NodeId(self.number))
    }

    /// Makes its network and its interface, whose peer is the other.
    async fn begin(&self, other: &Self) {
        let network = Network::ensure(&NetworkSettings {
            suffix: self.machine.to_owned(),
            cluster_prefix: PREFIX,
            node: NodeId(self.number),
            mtu: 1420,
        })
        .await
        .unwrap();
        network
            .apply_overlay(&OverlayAccess::default())
            .await
            .unwrap();
        network.apply_rules(&[]).await.unwrap();
        let interface = Interface::ensure(&self.options()).await.unwrap();
        network.attach_overlay().await.unwrap();
        let peer = PeerSettings {
            endpoint: Some(format!("10.{}.0.2:{PORT}", other.number).parse().unwrap()),
            allowed: vec![Prefix {
                address: other.prefix(),
                bits: 64,
            }],
            keepalive: None,
        };
        let settings = Settings {
            private_key: PrivateKey(self.key.private_base64().parse().unwrap()),
            inside: Prefix {
                address: PREFIX,
                bits: 48,
            },
            peers: BTreeMap::from([(other.key.public_base64().parse().unwrap(), peer)]),
            seen: BTreeMap::new(),
        };
        interface.set(&settings).await.unwrap();
    }

    fn state(&self, other: &Self) -> OverlayState {
        let state = serde_json::json!({
            "number": format!("n{}", self.number),
            "cluster_prefix": PREFIX,
            "mtu": 1420,
            "peers": { format!("n{}", other.number): {
                "name": other.machine,
                "wireguard_public_key": other.key.public_base64(),
                "allowed": [[other.prefix(), 64]],
            }},
        });
        serde_json::from_value(state).unwrap()
    }

    /// Measures, and answers others until all have measured.
    async fn measure(&self, other: &Self, all: &Barrier) -> Measurement {
        let state = self.state(other);
        let interface = Interface::ensure(&self.options()).await.unwrap();
        let place = self.place();
        let within = Duration::from_secs(30);
        let own = overlay::address_plan::probe_address(PREFIX, NodeId(self.number));
        let source = Source {
            namespace: place.namespace.clone(),
            link: Some(place.link.clone()),
            address: own,
        };
        let serving = tokio::spawn(measure::serve(source, within));
        let request = MeasurementRequest {
            run: 7,
            peers: None,
            relayed: [].into(),
            within_ms: 30_000,
        };
        let measured = measure::measure(&place, Some(&interface), &state, &request).await;
        all.wait().await;
        serving.abort();
        measured
    }
}

/// Machines `a` and `b`, and a router `r` between: 10.1.0.2 and 10.2.0.2. The link to `b` has this MTU.
fn two_nodes(mtu: u32) -> [Node; 2] {
    two_machines(mtu);
    two_interfaces()
}

/// Two machines with a router between them, whose network to the second takes packets of this size.
fn two_machines(mtu: u32) {
    for (machine, number) in [("a", 1), ("b", 2)] {
        shell(&format!(
            "ip netns add r 2>/dev/null || :
             ip netns add {machine}
             ip link add eth0 netns {machine} type veth peer name r{machine} netns r
             ip -n r addr add 10.{number}.0.1/24 dev r{machine}
             ip -n {machine} addr add 10.{number}.0.2/24 dev eth0
             ip -n {machine} link set lo up
             ip -n {machine} link set eth0 up; ip -n r link set r{machine} up
             ip -n {machine} route add default via 10.{number}.0.1"
        ));
    }
    shell(&format!(
        "ip -n r link set rb mtu {mtu}; ip -n b link set eth0 mtu {mtu}
         ip netns exec r sysctl -qw net.ipv4.ip_forward=1"
    ));
}

/// The interface of each, which begins handshakes at once.
fn two_interfaces() -> [Node; 2] {
    let [a, b] = [Node::new(1, "a"), Node::new(2, "b")];
    agent("a", || a.begin(&b));
    agent("b", || b.begin(&a));
    [a, b]
}

/// What both measure at the same time: of the other, the whole.
fn both([a, b]: &[Node; 2]) -> [(LinkMeasurement, Measurement); 2] {
    let all = Barrier::new(2);
    let measured = std::thread::scope(|scope| {
        let (of_a, of_b) = (
            scope.spawn(|| agent("a", || a.measure(b, &all))),
            scope.spawn(|| agent("b", || b.measure(a, &all))),
        );
        [of_a.join().unwrap(), of_b.join().unwrap()]
    });
    let [of_a, of_b] = measured;
    assert_eq!((of_a.failure.clone(), of_b.failure.clone()), (None, None));
    [
        (of_a.links[&NodeId(2)].clone(), of_a),
        (of_b.links[&NodeId(1)].clone(), of_b),
    ]
}

fn rules(machine: &str, rules: &str) {
    // A brace that closes stands on a line of its own.
    let rules = rules.replace('}', "\n}");
    shell(&format!(
        "ip netns exec {machine} nft -f - <<'END'\n{rules}\nEND"
    ));
}

fn a_link_that_is_healthy_is_measured_whole() {
    let nodes = two_nodes(1500);
    let [(a, of_a), (b, _)] = both(&nodes);
    for link in [&a, &b] {
        assert_eq!(
            (link.echoes.sent, link.echoes.answered),
            (10, 10),
            "{link:?}"
        );
        assert!(link.echoes.fastest_us.is_some_and(|time| time < 1_000_000));
        assert_eq!(link.mtu, Some(1420), "{link:?}");
        assert_eq!(link.packet_too_big, Some(true), "{link:?}");
        assert!(link.handshake_age_seconds.is_some_and(|age| age < 60));
        assert!(link.received_bytes > 10_000, "{link:?}");
        let underlay = link.underlay.clone().unwrap();
        assert_eq!(underlay.mtu, Some(1500));
        assert_eq!(
            (underlay.interface.as_str(), underlay.kind.as_str()),
            ("eth0", "veth")
        );
    }
    // The one with the higher number asks.
    let arrives = Segments {
        single: true,
        large: true,
    };
    assert_eq!((a.segments, b.segments), (None, Some(arrives)));
    let carrier = of_a.carrier.unwrap();
    assert!(!carrier.is_kernel && !of_a.kernel.is_empty());
}

fn a_path_broken_in_one_direction_is_seen_from_both_ends() {
    two_machines(1500);
    rules(
        "r",
        "table ip broken { chain forward { type filter hook forward priority 0; policy accept; iifname ra oifname rb udp dport 51820 drop; } }",
    );
    let nodes = two_interfaces();
    let [(a, _), (b, _)] = both(&nodes);
    assert_eq!((a.echoes.answered, b.echoes.answered), (0, 0));
    assert!(a.echoes.sent > 3 && b.echoes.sent > 3, "{a:?} {b:?}");
    // `a` answers handshakes, and its answers do not arrive.
    assert_eq!(b.handshake_age_seconds, None);
    // Handshakes of `b` arrive at `a`, and nothing arrives at `b`.
    assert!(a.received_bytes > 0, "{a:?}");
    assert_eq!(b.received_bytes, 0);
    assert_eq!((a.mtu, a.packet_too_big), (None, None));
}

fn an_underlay_of_1460_and_one_of_1280_are_seen_whether_fragments_pass_or_not() {
    let nodes = two_nodes(1460);
    // Fragments arrive, so packets of the whole MTU do, and the router says what it takes.
    let [(a, _), (b, _)] = both(&nodes);
    assert_eq!((a.mtu, b.mtu), (Some(1420), Some(1420)));
    for link in [&a, &b] {
        assert_eq!(link.underlay.as_ref().unwrap().mtu, Some(1460), "{link:?}");
    }
    // They are dropped: what is left is 60 bytes less than the network's MTU, down to a multiple of 16.
    rules(
        "r",
        "table ip whole { chain forward { type filter hook prerouting priority -500; policy accept; ip frag-off & 0x3fff != 0 drop; } }",
    );
    let fits = |mtu: Option<u32>| mtu.is_some_and(|mtu| (1380..=1400).contains(&mtu));
    let [(a, _), (b, _)] = both(&nodes);
    assert!(fits(a.mtu) && fits(b.mtu), "{a:?} {b:?}");
    // Not even the least fits, and smaller ones arrive.
    shell("ip -n r link set rb mtu 1280; ip -n b link set eth0 mtu 1280");
    let [(a, _), (b, _)] = both(&nodes);
    assert_eq!((a.mtu, b.mtu), (Some(1279), Some(1279)));
    assert_eq!(b.underlay.unwrap().mtu, Some(1280));
    assert_eq!(a.echoes.answered, 10);
}

fn a_lost_packet_too_big_is_noticed() {
    let nodes = two_nodes(1500);
    rules(
        "platform-b",
        "table ip6 lost { chain output { type filter hook output priority 0; policy accept; icmpv6 type packet-too-big drop; } }",
    );
    let [(a, _), (b, _)] = both(&nodes);
    assert_eq!(
        (a.packet_too_big, b.packet_too_big),
        (Some(false), Some(true))
    );
    assert_eq!((a.mtu, b.mtu), (Some(1420), Some(1420)));
}

fn large_segments_that_are_lost_are_noticed() {
    let nodes = two_nodes(1500);
    // What the kernel is to cut is longer than any packet here.
    rules(
        "platform-b",
        "table ip6 mangled { chain output { type filter hook output priority 0; policy accept; tcp dport 7 meta length > 1500 drop; } }",
    );
    let [(a, _), (b, _)] = both(&nodes);
    let lost = Segments {
        single: true,
        large: false,
    };
    assert_eq!((a.segments, b.segments), (None, Some(lost)));
    assert_eq!((a.mtu, b.mtu), (Some(1420), Some(1420)));
}

fn a_member_without_an_interface_says_so() {
    let [a, b] = [Node::new(1, "a"), Node::new(2, "b")];
    shell("ip netns add a");
    let request = MeasurementRequest {
        run: 7,
        peers: None,
        relayed: [].into(),
        within_ms: 30_000,
    };
    let state = a.state(&b);
    let measured = agent("a", || async {
        measure::measure(&a.place(), None, &state, &request).await
    });
    assert_eq!(measured.run, 7);
    assert!(measured.failure.unwrap().contains("no interface"));
    assert!(measured.links.is_empty() && measured.carrier.is_none());
}

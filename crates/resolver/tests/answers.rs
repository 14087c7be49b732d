//! Questions and their answers, as bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use expect_test::{Expect, expect};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use model::instance::{EgressPolicy, Protocol};
use model::{EnvNetwork, InstanceId, NodeId};
use overlay::address_plan::{egress_address, instance_address};
use proptest::prelude::*;
use resolver::answer::{Decision, Transport, decide};
use resolver::names::{Client, NamedInstance, NamedPort, Names, Update};

const CLUSTER: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
/// The env `prod` of the app `shop`.
const SHOP: EnvNetwork = EnvNetwork(0x10);
/// The env `prod` of the app `bank`.
const BANK: EnvNetwork = EnvNetwork(0x20);

fn address(node: u16, network: EnvNetwork, id: u32) -> Ipv6Addr {
    instance_address(CLUSTER, NodeId(node), network, InstanceId(id))
}

fn instance(
    app: &str,
    process: &str,
    node: u16,
    id: u32,
    ready: bool,
) -> (InstanceId, Option<NamedInstance>) {
    let network = if app == "shop" { SHOP } else { BANK };
    let port = |port, protocol| NamedPort { port, protocol };
    let instance = NamedInstance {
        app: app.parse().unwrap(),
        env: "prod".parse().unwrap(),
        process: process.parse().unwrap(),
        address: address(node, network, id),
        ready,
        ports: match process {
            "web" => vec![port(8080, Protocol::Http), port(9000, Protocol::Tcp)],
            _ => Vec::new(),
        },
    };
    (InstanceId(id), Some(instance))
}

fn client(network: EnvNetwork, id: u32, egress: EgressPolicy) -> (InstanceId, Option<Client>) {
    let address = address(1, network, id);
    (InstanceId(id), Some(Client { address, egress }))
}

/// Shop has web (two ready, one not) and a worker that is not ready; the bank has a vault. 0x1 to 0x4 run on this node, and ask.
fn names() -> Names {
    let mut names = Names::default();
    let update = Update {
        whole: true,
        cluster_prefix: Some(CLUSTER),
        instances: BTreeMap::from([
            instance("shop", "web", 1, 0x1, true),
            instance("shop", "web", 2, 0xa, true),
            instance("shop", "web", 3, 0xb, false),
            instance("shop", "worker", 1, 0x2, false),
            instance("bank", "vault", 1, 0x3, true),
        ]),
        clients: BTreeMap::from([
            client(SHOP, 0x1, EgressPolicy::All),
            client(SHOP, 0x2, EgressPolicy::Internet),
            client(BANK, 0x3, EgressPolicy::None),
            client(EnvNetwork(0x30), 0x4, EgressPolicy::All),
        ]),
        servers: Some(vec!["127.0.0.53:53".parse().unwrap()]),
    };
    names.apply(update, 0);
    names
}

fn question(name: &str, kind: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

fn ask(
    names: &Names,
    who: u32,
    message: &Message,
    transport: Transport,
    now_ms: u64,
) -> Option<(Message, usize)> {
    let from = egress_address(InstanceId(who));
    match decide(
        names,
        from,
        transport,
        &message.to_vec().unwrap(),
        0,
        now_ms,
    ) {
        Decision::Answer(bytes) => {
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!(answer.metadata.id, message.metadata.id);
            assert!(answer.metadata.recursion_available);
            Some((answer, bytes.len()))
        }
        Decision::Forward => None,
        Decision::Drop => panic!("dropped"),
    }
}

/// The answer to an instance, as text.
fn answer_at(names: &Names, who: u32, name: &str, kind: RecordType, now_ms: u64) -> String {
    let message = question(name, kind, None);
    let Some((answer, _)) = ask(names, who, &message, Transport::Udp, now_ms) else {
        return "forward\n".to_owned();
    };
    assert_eq!(answer.queries, message.queries);
    let mut text = format!("{}\n", answer.metadata.response_code);
    for record in &answer.answers {
        let _ = writeln!(text, "{record}");
    }
    for record in &answer.authorities {
        let _ = writeln!(
            text,
            "authority: {} {} {}",
            record.name,
            record.ttl,
            record.record_type()
        );
    }
    for record in &answer.additionals {
        let _ = writeln!(text, "additional: {record}");
    }
    text
}

fn check(who: u32, name: &str, kind: RecordType, expected: Expect) {
    expected.assert_eq(&answer_at(&names(), who, name, kind, 0));
}

#[test]
fn a_process_type_is_its_ready_instances() {
    check(
        0x1,
        "web.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
        No Error
        web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:1:0:10:0:1
        web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
    "#]],
    );
    check(
        0x2,
        "WEB.Prod.shop.INTERNAL.",
        RecordType::AAAA,
        expect![[r#"
        No Error
        WEB.Prod.shop.INTERNAL. 1 IN AAAA fd12:3456:789a:1:0:10:0:1
        WEB.Prod.shop.INTERNAL. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
    "#]],
    );
    check(
        0x1,
        "web.prod.shop.internal.",
        RecordType::ANY,
        expect![[r#"
        No Error
        web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:1:0:10:0:1
        web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
    "#]],
    );
    // It has no IPv4 address, and is there.
    check(
        0x1,
        "web.prod.shop.internal.",
        RecordType::A,
        expect![[r#"
        No Error
        authority: internal. 1 SOA
    "#]],
    );
    // None is ready.
    check(
        0x1,
        "worker.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
            No Error
            authority: internal. 1 SOA
        "#]],
    );
    check(
        0x1,
        "nothing.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
            Non-Existent Domain
            authority: internal. 1 SOA
        "#]],
    );
    // Names below which there are others.
    for name in [
        "prod.shop.internal.",
        "shop.internal.",
        "internal.",
        "_tcp.web.prod.shop.internal.",
    ] {
        let text = answer_at(&names(), 0x1, name, RecordType::AAAA, 0);
        assert_eq!(text, "No Error\nauthority: internal. 1 SOA\n", "{name}");
    }
    check(
        0x1,
        "internal.",
        RecordType::SOA,
        expect![[r#"
        No Error
        internal. 1 IN SOA internal. nobody.invalid. 1 1 1 1 1
    "#]],
    );
}

#[test]
fn an_instance_has_a_name_of_its_own_while_it_is_ready() {
    check(
        0x1,
        "0000000a.web.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
            No Error
            0000000a.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
        "#]],
    );
    check(
        0x1,
        "0000000b.web.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
            No Error
            authority: internal. 1 SOA
        "#]],
    );
    // It is of another process type.
    check(
        0x1,
        "0000000a.worker.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
            Non-Existent Domain
            authority: internal. 1 SOA
        "#]],
    );
}

#[test]
fn services_are_ports_of_ready_instances() {
    check(
        0x1,
        "web.prod.shop.internal.",
        RecordType::SRV,
        expect![[r#"
        No Error
        web.prod.shop.internal. 1 IN SRV 0 1 8080 00000001.web.prod.shop.internal.
        web.prod.shop.internal. 1 IN SRV 0 1 9000 00000001.web.prod.shop.internal.
        web.prod.shop.internal. 1 IN SRV 0 1 8080 0000000a.web.prod.shop.internal.
        web.prod.shop.internal. 1 IN SRV 0 1 9000 0000000a.web.prod.shop.internal.
        additional: 00000001.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:1:0:10:0:1
        additional: 0000000a.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
    "#]],
    );
    check(
        0x1,
        "_http._tcp.web.prod.shop.internal.",
        RecordType::SRV,
        expect![[r#"
            No Error
            _http._tcp.web.prod.shop.internal. 1 IN SRV 0 1 8080 00000001.web.prod.shop.internal.
            _http._tcp.web.prod.shop.internal. 1 IN SRV 0 1 8080 0000000a.web.prod.shop.internal.
            additional: 00000001.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:1:0:10:0:1
            additional: 0000000a.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
        "#]],
    );
    check(
        0x1,
        "_9000._tcp.web.prod.shop.internal.",
        RecordType::SRV,
        expect![[r#"
            No Error
            _9000._tcp.web.prod.shop.internal. 1 IN SRV 0 1 9000 00000001.web.prod.shop.internal.
            _9000._tcp.web.prod.shop.internal. 1 IN SRV 0 1 9000 0000000a.web.prod.shop.internal.
            additional: 00000001.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:1:0:10:0:1
            additional: 0000000a.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
        "#]],
    );
    check(
        0x1,
        "0000000a.web.prod.shop.internal.",
        RecordType::SRV,
        expect![[r#"
            No Error
            0000000a.web.prod.shop.internal. 1 IN SRV 0 1 8080 0000000a.web.prod.shop.internal.
            0000000a.web.prod.shop.internal. 1 IN SRV 0 1 9000 0000000a.web.prod.shop.internal.
            additional: 0000000a.web.prod.shop.internal. 1 IN AAAA fd12:3456:789a:2:0:10:0:a
        "#]],
    );
    check(
        0x1,
        "_9001._tcp.web.prod.shop.internal.",
        RecordType::SRV,
        expect![[r#"
            Non-Existent Domain
            authority: internal. 1 SOA
        "#]],
    );
    check(
        0x1,
        "_http._udp.web.prod.shop.internal.",
        RecordType::SRV,
        expect![[r#"
            Non-Existent Domain
            authority: internal. 1 SOA
        "#]],
    );
    check(
        0x1,
        "_http._tcp.worker.prod.shop.internal.",
        RecordType::SRV,
        expect![[r#"
            Non-Existent Domain
            authority: internal. 1 SOA
        "#]],
    );
}

fn reverse(address: Ipv6Addr) -> String {
    let nibbles = format!("{:032x}", address.to_bits());
    let labels: Vec<_> = nibbles.chars().rev().map(String::from).collect();
    format!("{}.ip6.arpa.", labels.join("."))
}

#[test]
fn addresses_have_names_in_their_env_only() {
    let name = reverse(address(2, SHOP, 0xa));
    check(
        0x1,
        &name,
        RecordType::PTR,
        expect![[r#"
        No Error
        a.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.2.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa. 1 IN PTR 0000000a.web.prod.shop.internal.
    "#]],
    );
    // One that is not ready is named too: a log may be older.
    check(
        0x1,
        &reverse(address(3, SHOP, 0xb)),
        RecordType::PTR,
        expect![[r#"
            No Error
            b.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.3.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa. 1 IN PTR 0000000b.web.prod.shop.internal.
        "#]],
    );
    for (who, address) in [
        (0x1, address(1, BANK, 0x3)),
        (0x3, address(2, SHOP, 0xa)),
        // On another node than that.
        (0x1, address(1, SHOP, 0xa)),
        (0x1, address(1, EnvNetwork(0), 1)),
    ] {
        let text = answer_at(&names(), who, &reverse(address), RecordType::PTR, 0);
        assert!(
            text.starts_with("Non-Existent Domain\n"),
            "{address}: {text}"
        );
    }
    let zone = "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.";
    let text = answer_at(&names(), 0x1, zone, RecordType::PTR, 0);
    assert!(text.starts_with("No Error\nauthority"), "{text}");
    // Of no cluster, and nobody's.
    for name in [
        "9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.".to_owned(),
        reverse("fd12:3456:789b::1".parse().unwrap()),
        reverse("2001:db8::1".parse().unwrap()),
        "1.2.0.192.in-addr.arpa.".to_owned(),
        "1.0.63.100.in-addr.arpa.".to_owned(),
    ] {
        assert_eq!(
            answer_at(&names(), 0x1, &name, RecordType::PTR, 0),
            "forward\n",
            "{name}"
        );
    }
    let text = answer_at(
        &names(),
        0x1,
        "1.0.64.100.in-addr.arpa.",
        RecordType::PTR,
        0,
    );
    assert!(text.starts_with("Non-Existent Domain\n"), "{text}");
}

#[test]
fn other_envs_do_not_exist() {
    for name in [
        "vault.prod.bank.internal.",
        "prod.bank.internal.",
        "bank.internal.",
        "web.staging.shop.internal.",
        "00000003.vault.prod.bank.internal.",
        "_http._tcp.vault.prod.bank.internal.",
        "metadata.google.internal.",
    ] {
        for kind in [
            RecordType::AAAA,
            RecordType::SRV,
            RecordType::ANY,
            RecordType::TXT,
        ] {
            let text = answer_at(&names(), 0x1, name, kind, 0);
            assert_eq!(
                text, "Non-Existent Domain\nauthority: internal. 1 SOA\n",
                "{name} {kind}"
            );
        }
    }
    check(
        0x3,
        "vault.prod.bank.internal.",
        RecordType::AAAA,
        expect![[r#"
            No Error
            vault.prod.bank.internal. 1 IN AAAA fd12:3456:789a:1:0:20:0:3
        "#]],
    );
    check(
        0x3,
        "web.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
        Non-Existent Domain
        authority: internal. 1 SOA
    "#]],
    );
    // An env of which nothing is known yet.
    check(
        0x4,
        "web.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
            Server Failure
        "#]],
    );
    // No instance of this node.
    check(
        0x99,
        "web.prod.shop.internal.",
        RecordType::AAAA,
        expect![[r#"
        Server Failure
    "#]],
    );
}

#[test]
fn other_names_are_for_the_machines_servers_unless_there_is_no_egress() {
    let names = names();
    for (who, forwarded) in [(0x1, true), (0x2, true), (0x3, false), (0x4, true)] {
        for name in [
            "www.example.com.",
            ".",
            "com.",
            "internal.example.com.",
            "xinternal.",
        ] {
            let text = answer_at(&names, who, name, RecordType::A, 0);
            assert_eq!(text == "forward\n", forwarded, "{who} {name}: {text}");
        }
    }
    check(
        0x3,
        "www.example.com.",
        RecordType::A,
        expect![[r#"
        Non-Existent Domain
    "#]],
    );
    // And why.
    let message = question("www.example.com.", RecordType::A, Some(1232));
    let (answer, _) = ask(&names, 0x3, &message, Transport::Udp, 0).unwrap();
    let option = format!("{:?}", answer.edns.unwrap().options());
    assert!(option.contains("Unknown(15, [0, 18,"), "{option}");
}

#[test]
fn answers_are_kept_as_long_as_they_have_been_true() {
    let mut names = names();
    let ttl = |names: &Names, now_ms| {
        let (answer, _) = ask(
            names,
            0x1,
            &question("web.prod.shop.internal.", RecordType::AAAA, None),
            Transport::Udp,
            now_ms,
        )
        .unwrap();
        (answer.answers.len(), answer.answers[0].ttl)
    };
    assert_eq!(ttl(&names, 900), (2, 1));
    assert_eq!(ttl(&names, 3000), (2, 3));
    assert_eq!(ttl(&names, 900_000), (2, 5));
    let change = |id, instance| Update {
        instances: BTreeMap::from([(id, instance)]),
        ..Update::default()
    };
    let (id, ready) = instance("shop", "web", 3, 0xb, true);
    names.apply(change(id, ready), 1_000_000);
    assert_eq!(ttl(&names, 1_000_000), (3, 1));
    assert_eq!(ttl(&names, 1_009_000), (3, 5));
    // What is told again is as it was.
    let (id, ready) = instance("shop", "web", 3, 0xb, true);
    names.apply(change(id, ready), 2_000_000);
    assert_eq!(ttl(&names, 2_000_000), (3, 5));
    names.apply(change(id, None), 3_000_000);
    assert_eq!(ttl(&names, 3_000_000), (2, 1));
    // Everything is told again, but for one.
    let update = Update {
        whole: true,
        instances: BTreeMap::from([instance("shop", "web", 1, 0x1, true)]),
        clients: BTreeMap::from([client(SHOP, 0x1, EgressPolicy::All)]),
        ..Update::default()
    };
    names.apply(update.clone(), 4_000_000);
    assert_eq!(ttl(&names, 4_000_000), (1, 1));
    names.apply(update, 5_000_000);
    assert_eq!(ttl(&names, 5_000_000), (1, 5));
    assert_eq!(names.counts(), (1, 1));
}

#[test]
fn an_instance_that_takes_the_place_of_another_is_not_removed_with_it() {
    let mut names = names();
    // Their ids agree in the bits that make the address of egress.
    let (old, new) = (0x1, 0x1 + (1 << 22));
    assert_eq!(
        egress_address(InstanceId(old)),
        egress_address(InstanceId(new))
    );
    let came = client(BANK, new, EgressPolicy::All);
    let clients = BTreeMap::from([came, (InstanceId(old), None)]);
    names.apply(
        Update {
            clients,
            ..Update::default()
        },
        0,
    );
    assert_eq!(
        names
            .client(egress_address(InstanceId(new)))
            .map(|c| c.address),
        Some(address(1, BANK, new))
    );
}

#[test]
fn the_first_instance_is_another_one_each_time() {
    let names = names();
    let bytes = question("web.prod.shop.internal.", RecordType::AAAA, None)
        .to_vec()
        .unwrap();
    let first = |turn| match decide(
        &names,
        egress_address(InstanceId(1)),
        Transport::Udp,
        &bytes,
        turn,
        0,
    ) {
        Decision::Answer(bytes) => Message::from_vec(&bytes).unwrap().answers[0]
            .data
            .to_string(),
        other => panic!("{other:?}"),
    };
    assert_ne!(first(0), first(1));
    assert_eq!(first(0), first(2));
}

#[test]
fn what_is_too_long_is_cut_at_a_record_and_whole_over_tcp() {
    let mut names = names();
    let instances: BTreeMap<_, _> = (0x100..0x100 + 1000)
        .map(|id| instance("shop", "web", 2, id, true))
        .collect();
    names.apply(
        Update {
            instances,
            ..Update::default()
        },
        0,
    );
    for (kind, payload, limit) in [
        (RecordType::AAAA, None, 512),
        (RecordType::AAAA, Some(100), 512),
        (RecordType::AAAA, Some(900), 900),
        (RecordType::AAAA, Some(4096), 1232),
        (RecordType::SRV, None, 512),
        (RecordType::SRV, Some(1232), 1232),
    ] {
        let message = question("web.prod.shop.internal.", kind, payload);
        let (answer, length) = ask(&names, 0x1, &message, Transport::Udp, 0).unwrap();
        assert!(answer.metadata.truncation);
        assert!(
            length <= limit && length > limit - 80,
            "{kind} {payload:?}: {length} bytes"
        );
        assert_eq!(answer.edns.is_some(), payload.is_some());
        assert!(!answer.answers.is_empty());
    }
    let message = question("web.prod.shop.internal.", RecordType::AAAA, None);
    let (answer, _) = ask(&names, 0x1, &message, Transport::Tcp, 0).unwrap();
    assert!(!answer.metadata.truncation);
    assert_eq!(answer.answers.len(), 1002);
    // Addresses beside services are left out where they do not fit; services are not.
    let message = question("_http._tcp.web.prod.shop.internal.", RecordType::SRV, None);
    let (answer, length) = ask(&names, 0x1, &message, Transport::Tcp, 0).unwrap();
    assert!(!answer.metadata.truncation, "{length}");
    assert_eq!(answer.answers.len(), 1002);
}

#[test]
fn what_is_no_question_for_us_is_refused_or_dropped() {
    let names = names();
    let from = egress_address(InstanceId(1));
    let decide = |bytes: &[u8]| decide(&names, from, Transport::Udp, bytes, 0, 0);
    let good = question("web.prod.shop.internal.", RecordType::AAAA, None)
        .to_vec()
        .unwrap();
    let header = |decision: Decision| match decision {
        Decision::Answer(bytes) => (bytes[..2].to_vec(), bytes[2] & 0x80, bytes[3] & 0xf),
        other => panic!("{other:?}"),
    };
    let number = vec![0x12, 0x34];
    // An answer is not answered, and what is too short says nothing.
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(decide(&answer), Decision::Drop);
    assert_eq!(decide(&good[..11]), Decision::Drop);
    let mut notify = good.clone();
    notify[2] |= 4 << 3;
    assert_eq!(header(decide(&notify)), (number.clone(), 0x80, 4));
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(header(decide(&two)), (number.clone(), 0x80, 1));
    assert_eq!(header(decide(&good[..20])), (number.clone(), 0x80, 1));
    let mut chaos = question("web.prod.shop.internal.", RecordType::AAAA, None);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(
        header(decide(&chaos.to_vec().unwrap())),
        (number.clone(), 0x80, 5)
    );
    let transfer = question("internal.", RecordType::AXFR, None)
        .to_vec()
        .unwrap();
    assert_eq!(header(decide(&transfer)), (number, 0x80, 5));
    let mut newer = question("web.prod.shop.internal.", RecordType::AAAA, Some(1232));
    newer.edns.as_mut().unwrap().set_version(1);
    let (answer, _) = ask(&names, 1, &newer, Transport::Udp, 0).unwrap();
    assert_eq!(u16::from(answer.metadata.response_code), 16, "BADVERS");
    assert_eq!(answer.edns.unwrap().version(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_answered_forwarded_or_dropped(
        start in prop::sample::select(vec![0, 1, 2]),
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
    ) {
        let good = question("0000000a.web.prod.shop.internal.", RecordType::SRV, Some(1232)).to_vec().unwrap();
        let bytes = match start {
            0 => bytes,
            // A good question with other bytes in it, or after it.
            1 => {
                let mut changed = good;
                let at = at.index(changed.len());
                for (to, from) in changed[at..].iter_mut().zip(bytes.iter().take(4)) {
                    *to = *from;
                }
                changed
            }
            _ => [good, bytes].concat(),
        };
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Decision::Answer(answer) = decide(&names(), Ipv4Addr::new(100, 64, 0, 1), transport, &bytes, 7, 9) {
                prop_assert!(answer.len() >= 12 && answer[2] & 0x80 != 0);
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(Message::from_vec(&answer).is_ok());
            }
        }
    }
}

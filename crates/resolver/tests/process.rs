//! The process in its place: asked by `dig` and by the C library from guests' namespaces, with name servers of the machine behind it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use resolver::agent::Resolver;
use resolver::names::Update;
use support::{Mood, NameServer, dig, in_guest, instance, machine, names, program, runtime};
use test_namespaces::{eventually, isolated, shell, within};

#[test]
fn names_are_answered_to_dig_and_to_the_c_library_and_only_in_their_env() {
    if !isolated("names_are_answered_to_dig_and_to_the_c_library_and_only_in_their_env") {
        return;
    }
    program("dig", "bind9-dnsutils");
    let (options, runtime) = (machine(), runtime());
    let upstream = NameServer::start("127.0.0.53:53");
    runtime.block_on(async {
        let resolver = Resolver::ensure(&options).await.unwrap();
        let status = resolver.update(names(&[upstream.address])).await.unwrap();
        assert_eq!((status.instances, status.clients), (3, 2));

        let web = dig(1, "web.prod.shop.internal AAAA");
        assert!(web.starts_with("NOERROR") && web.matches(" | web.prod.shop.internal. AAAA fd12:3456:789a:1:0:10:").count() == 2, "{web}");
        assert_eq!(dig(1, "+tcp 00000003.web.prod.shop.internal AAAA"), "NOERROR | 00000003.web.prod.shop.internal. AAAA fd12:3456:789a:1:0:10:0:3");
        assert_eq!(dig(1, "-x fd12:3456:789a:1:0:10:0:3").split(" PTR ").last().unwrap(), "00000003.web.prod.shop.internal.");
        let services = dig(1, "_http._tcp.web.prod.shop.internal SRV");
        assert!(services.contains("SRV 0 1 8080 00000001.web.prod.shop.internal."), "{services}");
        assert_eq!(dig(1, "web.prod.shop.internal A"), "NOERROR");
        assert_eq!(dig(1, "nothing.prod.shop.internal AAAA"), "NXDOMAIN");
        // Another env's names do not exist, and its addresses have no names.
        assert_eq!(dig(2, "web.prod.shop.internal AAAA"), "NXDOMAIN");
        assert_eq!(dig(1, "vault.prod.bank.internal AAAA"), "NXDOMAIN");
        assert_eq!(dig(2, "-x fd12:3456:789a:1:0:10:0:3"), "NXDOMAIN");
        assert_eq!(upstream.asked(), 0, "internal names stay here");

        // Other names are the machine's servers' matter; without egress they do not exist, at once.
        assert_eq!(dig(1, "www.example A"), "NOERROR | www.example. A 192.0.2.7");
        assert_eq!(dig(1, "none.example A"), "NXDOMAIN");
        let asked = upstream.asked();
        assert_eq!(dig(2, "www.example A"), "NXDOMAIN");
        assert!(in_guest(2, "dig @192.0.0.3 www.example").contains("EDE: 18 (Prohibited)"));
        assert_eq!(upstream.asked(), asked);
        // Too long for UDP: dig asks again over TCP, and so do we.
        assert_eq!(dig(1, "big.example TXT").matches(" TXT ").count(), 100);
        // Over one connection, several questions.
        let text = in_guest(1, "dig @192.0.0.3 +tcp +keepopen +short www.example A web.prod.shop.internal AAAA");
        assert_eq!(text.lines().count(), 3, "{text}");

        // By its short name, as an app asks: the C library with the resolv.conf that a guest has.
        fs::write("/run/resolv.conf", "nameserver 192.0.0.3\nsearch prod.shop.internal\n").unwrap();
        let getent = |guest, what| {
            in_guest(guest, &format!("unshare --mount sh -c 'mount --bind /run/resolv.conf /etc/resolv.conf; getent {what} || true'"))
        };
        assert_eq!(getent(1, "ahostsv6 web").matches("STREAM").count(), 2);
        assert_eq!(getent(1, "ahostsv4 www.example").matches("192.0.2.7").count(), 3);
        assert_eq!(getent(1, "hosts fd12:3456:789a:1:0:10:0:3").split_whitespace().last().unwrap(), "00000003.web.prod.shop.internal");
        assert_eq!(getent(2, "ahostsv6 web"), "");

        // What is not ready has no address from then on.
        for ready in [false, true, false] {
            let instances = BTreeMap::from([instance("shop", "web", 3, ready)]);
            resolver.update(Update { instances, ..Update::default() }).await.unwrap();
            assert_eq!(dig(1, "web.prod.shop.internal AAAA").contains(":0:3"), ready);
        }
        Resolver::remove(&options.run_dir).await.unwrap();
        resolver.ended().await;
        assert!(!options.run_dir.join("resolver.sock").exists());
        Resolver::remove(&options.run_dir).await.unwrap();
    });
}

#[test]
fn every_server_of_the_machine_is_asked_until_one_answers() {
    if !isolated("every_server_of_the_machine_is_asked_until_one_answers") {
        return;
    }
    let (options, runtime) = (machine(), runtime());
    let one = NameServer::start("127.0.0.1:53");
    let two = NameServer::start("[::1]:53");
    // Nothing listens there: the machine says so at once.
    let absent: SocketAddr = "127.0.0.9:53".parse().unwrap();
    runtime.block_on(async {
        let resolver = Resolver::ensure(&options).await.unwrap();
        let tell = async |servers: &[SocketAddr]| {
            // Other servers, so that none is passed over for what it did before.
            resolver.update(names(servers)).await.unwrap();
        };
        tell(&[one.address, two.address]).await;
        assert!(dig(1, "who.example TXT").contains("127.0.0.1"));
        one.set(Mood::Fails);
        assert!(dig(1, "who.example TXT").contains("::1"));
        two.set(Mood::Fails);
        assert_eq!(dig(1, "who.example TXT"), "SERVFAIL");
        two.set(Mood::Answers);
        // The first answers nothing: the second is asked after a moment, and at once from then on.
        one.set(Mood::Silent);
        assert!(dig(1, "who.example TXT").contains("::1"));
        let asked = one.asked();
        let begun = Instant::now();
        for _ in 0..5 {
            assert!(dig(1, "who.example TXT").contains("::1"));
        }
        assert_eq!(one.asked(), asked, "a server that was silent is asked last");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        assert!(dig(1, "+tcp who.example TXT").contains("::1"));
        // All are silent: an answer comes before the C library's patience ends.
        two.set(Mood::Silent);
        let begun = Instant::now();
        assert_eq!(dig(1, "+tries=1 +time=9 who.example TXT"), "SERVFAIL");
        assert!(
            begun.elapsed() < Duration::from_millis(4990),
            "{:?}",
            begun.elapsed()
        );
        two.set(Mood::Answers);
        tell(&[absent, two.address]).await;
        let begun = Instant::now();
        assert!(dig(1, "who.example TXT").contains("::1"));
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
        tell(&[]).await;
        assert_eq!(dig(1, "who.example TXT"), "SERVFAIL");
        Resolver::remove(&options.run_dir).await.unwrap();
    });
}

#[test]
fn the_process_has_no_rights_outlives_agents_and_is_replaced_where_it_must_be() {
    if !isolated("the_process_has_no_rights_outlives_agents_and_is_replaced_where_it_must_be") {
        return;
    }
    let (options, runtime) = (machine(), runtime());
    let pid = || -> i32 {
        let found = shell("pgrep --full 'name-server [r]esolver' || true");
        let pids: Vec<_> = found.split_whitespace().collect();
        assert_eq!(pids.len(), 1, "{pids:?}");
        pids[0].parse().unwrap()
    };
    runtime.block_on(async {
        let resolver = Resolver::ensure(&options).await.unwrap();
        let first = pid();
        let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
        for line in [
            "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n", "NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1\n",
            "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
        ] {
            assert!(status.contains(line), "{line:?} is not in {status}");
        }
        assert_eq!(shell(&format!("ps -o sid= -p {first}")).trim(), first.to_string());
        // It answers nothing before it was told of names, so that nobody takes what it does not know for what is not there.
        assert!(dig(1, "+tries=1 +time=1 web.prod.shop.internal AAAA").is_empty());
        resolver.update(names(&[])).await.unwrap();
        // Another agent finds it, with what it knows.
        drop(resolver);
        let resolver = Resolver::ensure(&options).await.unwrap();
        assert_eq!(pid(), first);
        assert!(resolver.status().await.unwrap().is_told);
        assert!(dig(1, "web.prod.shop.internal AAAA").starts_with("NOERROR |"));
        // Killed, stopped, or without its socket: another takes its place.
        for harm in ["kill -KILL", "kill -STOP", "rm /run/resolver/resolver.sock; true"] {
            let before = pid();
            shell(&format!("{harm} {before}"));
            eventually(harm, || {
                let state = fs::read_to_string(format!("/proc/{before}/stat")).unwrap_or_default();
                let is_harmed = harm.starts_with("rm") || state.is_empty() || state.contains(") T ") || state.contains(") Z ");
                is_harmed.then_some(())
            });
            let resolver = Resolver::ensure(&options).await.unwrap();
            resolver.update(names(&[])).await.unwrap();
            assert_ne!(pid(), before, "{harm}");
            assert!(dig(1, "web.prod.shop.internal AAAA").starts_with("NOERROR |"), "{harm}");
        }
        // The namespace was made anew.
        let before = pid();
        shell("ip netns delete node; ip netns add node");
        Resolver::ensure(&options).await.unwrap();
        assert_ne!(pid(), before);
        // Something else has the port.
        Resolver::remove(&options.run_dir).await.unwrap();
        let taken = within("node", || {
            shell("ip link set lo up; ip addr add 192.0.0.3 dev lo");
            std::net::UdpSocket::bind("192.0.0.3:53").unwrap()
        });
        let error = Resolver::ensure(&options).await.unwrap_err().to_string();
        assert!(error.ends_with("did not start: error: cannot listen for questions: Address already in use (os error 98)"), "{error}");
        drop(taken);
    });
}

#[test]
fn what_one_guest_takes_is_bounded_and_others_are_answered() {
    if !isolated("what_one_guest_takes_is_bounded_and_others_are_answered") {
        return;
    }
    let (options, runtime) = (machine(), runtime());
    let upstream = NameServer::start("127.0.0.53:53");
    upstream.set(Mood::Silent);
    runtime.block_on(async {
        let resolver = Resolver::ensure(&options).await.unwrap();
        let mut update = names(&[upstream.address]);
        // The bank has egress, too.
        for client in update.clients.values_mut().flatten() {
            client.egress = model::instance::EgressPolicy::All;
        }
        resolver.update(update).await.unwrap();
        // Questions that nobody answers, and connections that ask nothing.
        let connections = within("guest1", || {
            let socket = std::net::UdpSocket::bind("100.64.0.1:0").unwrap();
            let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03who\x07example\0\0\x01\0\x01";
            for _ in 0..5000 {
                socket.send_to(question, "192.0.0.3:53").unwrap();
            }
            (0..100)
                .map(|_| TcpStream::connect("192.0.0.3:53").unwrap())
                .collect::<Vec<_>>()
        });
        let until = Instant::now() + Duration::from_secs(20);
        while resolver.status().await.unwrap().failed < 1000 {
            assert!(Instant::now() < until, "{:?}", resolver.status().await);
        }
        let status = resolver.status().await.unwrap();
        assert!(status.forwarded <= 1024, "{status:?}");
        upstream.set(Mood::Answers);
        let begun = Instant::now();
        assert!(dig(2, "vault.prod.bank.internal AAAA").starts_with("NOERROR |"));
        assert!(dig(2, "+tcp vault.prod.bank.internal AAAA").starts_with("NOERROR |"));
        assert!(dig(2, "www.example A").starts_with("NOERROR |"));
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        drop(connections);
        let memory = shell("cat /proc/$(pgrep --full 'name-server [r]esolver')/status");
        let resident = memory
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 16 * 1024, "{kib} KiB");
        Resolver::remove(&options.run_dir).await.unwrap();
    });
}

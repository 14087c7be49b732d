//! Apps that do not listen on IPv6, reached at the instance's IPv6 address through a tap. Needs root.

use std::io;
use std::time::Instant;

use guest_protocol::{ExecRequest, HostFrame, Stream};
use model::instance::ProxyProtocol;

use crate::machine::{Guest, Plan, Tools, config};
use crate::proxy::{
    EDGE, GUEST, HEADER, NEIGHBOUR, TAP, dial, exchange, exchange_when_ready, has_a_network,
    platform_line, port,
};

/// The body of a page, as a client at this address gets it, or why it does not.
fn get(from: &str, port: u16, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    let answer = exchange(from, port, request.as_bytes())?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1"), "{port}: {answer:?}");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(body.trim().to_owned())
}

/// Runs a command in the guest, and returns what it prints.
fn run(guest: &Guest, session: u32, script: &str) -> String {
    guest.send(&HostFrame::Exec(ExecRequest {
        session,
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        terminal: None,
        terminal_type: None,
        main: false,
    }));
    guest.wait("the command", |seen| {
        let exec = seen.exec.get(&session)?;
        exec.exit.clone()?;
        Some(String::from_utf8_lossy(&exec.stdout).into_owned())
    })
}

/// Prints a line for each process of the forwarder, though it is in another PID namespace than its app.
const FORWARDER: &str = "cat /sys/fs/cgroup/forward/cgroup.procs";

#[test]
fn case_an_app_on_ipv4_or_on_loopback_is_served_at_its_ipv6_address() {
    if has_a_network("forward::case_an_app_on_ipv4_or_on_loopback_is_served_at_its_ipv6_address") {
        Tools::on_each_kernel(apps_not_on_ipv6);
    }
}

fn apps_not_on_ipv6(tools: &Tools) {
    // 8080, 8083 and 8084 are not declared.
    let script = r#"
        mkdir -p /www/cgi-bin
        printf '#!/bin/sh\nprintf "\\r\\n$REMOTE_ADDR"\n' > /www/cgi-bin/peer
        chmod +x /www/cgi-bin/peer
        dd if=/dev/zero of=/www/big bs=1M count=8 2>/dev/null
        for at in 0.0.0.0:8080 127.0.0.1:8081 [::1]:8082 [::]:8083 127.0.0.1:8084; do
            /bin/httpd -f -p $at -h /www &
            echo $! > /${at##*:}
        done
        until [ $(grep -c ' 0A ' /proc/net/tcp) -ge 3 ] && [ $(grep -c ' 0A ' /proc/net/tcp6) -ge 3 ]; do :; done
        echo ready
        wait
    "#;
    let mut config = config(script);
    config.network.address = GUEST.parse().unwrap();
    config.proxy = vec![port(61001, 8081, ProxyProtocol::Strip)];
    config.ports = vec![8081, 8082];
    let mut guest = Plan {
        tap: Some(TAP),
        ..Plan::new(tools, config)
    }
    .boot();
    guest.wait_line("ready");
    let request = b"GET /cgi-bin/peer HTTP/1.0\r\n\r\n";

    // Who listens on IPv6 is reached straight, and costs no process.
    exchange_when_ready(NEIGHBOUR, 8083, request);
    assert!(
        get(NEIGHBOUR, 8083, "/cgi-bin/peer")
            .unwrap()
            .contains(NEIGHBOUR)
    );
    assert_eq!(run(&guest, 1, FORWARDER), "");
    // Who listens on loopback for itself stays alone; so does a port that nobody listens on.
    for port in [8084, 9999] {
        let refused = get(NEIGHBOUR, port, "/").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{port}");
    }
    // Neighbours and edges alike, on every kind of address.
    for (from, port) in [(NEIGHBOUR, 8080), (EDGE, 8081), (NEIGHBOUR, 8082)] {
        let peer = get(from, port, "/cgi-bin/peer").unwrap();
        let expected = if port == 8082 { "::1" } else { "127.0.0.1" };
        assert!(peer.contains(expected), "{port}: {peer}");
    }
    // The PROXY adapter too, and an app's own connection to the instance's address.
    let stripped = exchange(EDGE, 61001, &[HEADER, request].concat()).unwrap();
    assert!(String::from_utf8_lossy(&stripped).contains("200 OK"));
    let own = format!("wget -q -O - http://[{GUEST}]:8080/cgi-bin/peer");
    assert!(run(&guest, 2, &own).contains("127.0.0.1"));
    guest.wait("the ports", |seen| {
        (seen.forwarded == [8080, 8081, 8082]).then_some(())
    });
    platform_line(&guest, "nothing listens on port 8080 over IPv6");

    // An app that listens on IPv6 later gets its port, and what comes from then on, beside open connections.
    let open = dial(NEIGHBOUR, 8080).unwrap();
    let second = format!(
        "/bin/httpd -f -p [{GUEST}]:8080 -h /www </dev/null >/dev/null 2>&1 & echo $! > /second
         until grep -q ':1F90 .* 0A ' /proc/net/tcp6 || [ ! -d /proc/$! ]; do :; done
         [ -d /proc/$! ] && echo listens"
    );
    assert_eq!(run(&guest, 3, &second), "listens\n");
    assert!(
        get(NEIGHBOUR, 8080, "/cgi-bin/peer")
            .unwrap()
            .contains(NEIGHBOUR)
    );
    drop(open);
    // What ends is not reached any more: here the one on IPv6, then the other too.
    let end = |file: &str| format!("p=$(cat /{file}); kill $p; while [ -d /proc/$p ]; do :; done");
    run(&guest, 4, &end("second"));
    assert!(
        get(NEIGHBOUR, 8080, "/cgi-bin/peer")
            .unwrap()
            .contains("127.0.0.1")
    );
    run(&guest, 5, &end("8080"));
    let refused = get(NEIGHBOUR, 8080, "/").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    run(
        &guest,
        6,
        "httpd -p 127.0.0.1:8080 -h /www; httpd -p 100.64.0.15:8080 -h /www",
    );
    assert!(
        get(NEIGHBOUR, 8080, "/cgi-bin/peer")
            .unwrap()
            .contains("100.64.0.15")
    );

    // Another forwarder takes the place of one that ends.
    assert_eq!(run(&guest, 7, FORWARDER).lines().count(), 1);
    run(&guest, 8, "echo 1 > /sys/fs/cgroup/forward/cgroup.kill");
    platform_line(&guest, "another is started for the next connection");
    get(NEIGHBOUR, 8081, "/cgi-bin/peer").unwrap();

    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    let event = guest.finish();
    assert!(event.requested_stop && !event.oom_killed, "{event:?}");
    let lines = guest.seen().lines(Stream::Platform).join("\n");
    assert!(!lines.contains("8084"), "{lines}");
}

/// What an app costs that listens on IPv4 only, beside one that listens on IPv6.
#[test]
#[ignore = "a measurement: make bench"]
fn forwarded_connections() {
    if has_a_network("forward::forwarded_connections") {
        Tools::on_each_kernel(measure_forwarding);
    }
}

fn measure_forwarding(tools: &Tools) {
    /// Requests of a row, each on a connection of its own, and downloads.
    const REQUESTS: usize = 300;
    const DOWNLOADS: usize = 5;
    const MEGABYTES: u32 = 16;
    let script = format!(
        "mkdir /www; dd if=/dev/zero of=/www/big bs=1000000 count={MEGABYTES} 2>/dev/null; echo x > /www/small
         httpd -p [::]:8083 -h /www; httpd -p 127.0.0.1:8081 -h /www; echo ready; sleep 1000"
    );
    let mut config = config(&script);
    config.network.address = GUEST.parse().unwrap();
    config.ports = vec![8081, 8083];
    let mut guest = Plan {
        tap: Some(TAP),
        ..Plan::new(tools, config)
    }
    .boot();
    guest.wait_line("ready");
    exchange_when_ready(NEIGHBOUR, 8083, b"GET /small HTTP/1.0\r\n\r\n");
    let median = |port, path: &str, count| {
        let mut times: Vec<_> = (0..count)
            .map(|_| {
                let since = Instant::now();
                get(NEIGHBOUR, port, path).unwrap();
                since.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[count / 2]
    };
    // The first one starts the forwarder.
    let since = Instant::now();
    get(NEIGHBOUR, 8081, "/small").unwrap();
    eprintln!(
        "the first forwarded request, with the start of the forwarder: {:.1} ms",
        since.elapsed().as_secs_f64() * 1e3
    );
    for (what, port) in [("straight (IPv6)", 8083), ("forwarded (127.0.0.1)", 8081)] {
        let request = median(port, "/small", REQUESTS) * 1e3;
        let rate = f64::from(MEGABYTES) / median(port, "/big", DOWNLOADS);
        eprintln!(
            "{what}: a connection with one request {request:.2} ms, a download {rate:.0} MB/s (medians)"
        );
    }
    let memory = run(&guest, 1, "cat /sys/fs/cgroup/forward/memory.current");
    eprintln!(
        "the forwarder's memory, sockets included: {} bytes",
        memory.trim()
    );
    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    guest.finish();
}

//! A deploy while clients are served, by HTTP and by a TCP route: what began with an instance that leaves goes on until it is done.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::Value;

use super::harness::{Cluster, HOST, get, manifest, wait_for};

/// Answers `/cgi-bin/slow` by a line each half of a second until `/cgi-bin/done` was asked for.
const SERVE: &str = r##"mkdir -p /tmp/www/cgi-bin && echo well >/tmp/www/healthz && cd /tmp/www/cgi-bin && { echo '#!/bin/sh'; echo 'echo; until [ -e /tmp/done ]; do echo line; sleep 0.5; done; echo end'; } >slow && { echo '#!/bin/sh'; echo 'echo; touch /tmp/done'; } >done && chmod +x slow done && exec busybox httpd -f -p [::]:8080 -h /tmp/www"##;

/// All that comes back. httpd lets the script end its lines as it likes, so the head that a TCP route passes on is none that a strict reader takes.
fn fetch(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn case_a_download_goes_on_through_a_deploy_and_its_instance_ends_with_it() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let command = format!("command = [\"/bin/sh\", \"-c\", {SERVE:?}]");
    // One of the ports that edges listen at where nobody says otherwise.
    let free = (30_000..=32_767).find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let by_tcp = free.unwrap().local_addr().unwrap();
    let version = |number: u32| {
        let tick = format!("HELLO_TICK_SECONDS = \"{number}\"");
        manifest(&[
            ("command = [\"/usr/bin/hello\", \"web\"]", &command),
            ("HELLO_TICK_SECONDS = \"5\"", &tick),
            ("min = 2", "min = 1"),
            ("timeout = \"30s\"", "timeout = \"60s\""),
        ]) + &format!(
            "\n[[tcp_routes]]\nlisten = {}\nport = 8080\n",
            by_tcp.port()
        )
    };
    let deploy = |number| {
        let deployed = cluster.deploy(&version(number), &cluster.image);
        assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    };
    deploy(1);
    cluster.wait_until_served();
    let ready = cluster.ready("web");
    let [before] = &ready[..] else {
        panic!("not one instance: {:?}", cluster.instances());
    };
    let row = || -> Option<Value> {
        let rows = cluster.json(&["ps"]);
        let mut rows = rows.as_array().unwrap().iter();
        rows.find(|row| row["id"] == before.as_str()).cloned()
    };

    wait_for("the port of the TCP route", || {
        TcpStream::connect(by_tcp).is_ok()
    });
    assert_eq!(get(by_tcp, "any.example.com", "/healthz").0, 200);
    let downloads = [cluster.edge(), by_tcp]
        .map(|edge| std::thread::spawn(move || fetch(edge, "/cgi-bin/slow")));
    std::thread::scope(|scope| {
        // It waits for the instance that leaves.
        let deploying = scope.spawn(|| deploy(2));
        wait_for("the instance that drains", || {
            let detail = row().map(|row| row["report"]["detail"].clone());
            detail.is_some_and(|detail| detail == "draining: 2 connections of edges are open")
        });
        assert!(downloads.iter().all(|download| !download.is_finished()));
        // Whoever comes now is served by the other one.
        assert_eq!(cluster.get("/healthz").0, 200);
        assert_eq!(get(by_tcp, HOST, "/healthz").0, 200);
        // To itself, past the edge.
        let address = row().unwrap()["address"].as_str().unwrap().to_owned();
        fetch(
            format!("[{address}]:8080").parse().unwrap(),
            "/cgi-bin/done",
        );
        deploying.join().unwrap();
    });
    for download in downloads {
        let answer = download.join().unwrap();
        assert!(answer.lines().next().unwrap().contains(" 200 "), "{answer}");
        assert!(answer.matches("line\n").count() > 3, "{answer}");
        assert!(answer.contains("end\n"), "{answer}");
    }
    wait_for("the end of the instance that drained", || row().is_none());
    cluster.down();
}

//! A port with `proxy_protocol`: edges go through the guest's PROXY adapter, neighbours do not.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use crate::harness::{Cluster, HOST, get, manifest, wait_for};

#[test]
fn a_stripped_port_is_reached_through_the_adapter_and_outlives_it() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    // Root, so that a command may end the adapter.
    let stripped = manifest(&[
        (
            "command = [\"/usr/bin/hello\", \"web\"]",
            "command = [\"/usr/bin/hello\", \"web\"]\nuser = \"root\"",
        ),
        (
            "protocol = \"http\"\n",
            "protocol = \"http\"\nproxy_protocol = \"strip\"\n",
        ),
        ("min = 2", "min = 1"),
    ]);
    let deployed = cluster.deploy(&stripped, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    cluster.wait_until_served();
    // The app reads HTTP: had it got the header, it would not answer so.
    for _ in 0..3 {
        assert_eq!(cluster.get("/").0, 200);
    }
    let rows = cluster.instances();
    let web = rows.iter().find(|row| row["process"] == "web").unwrap();
    let at = |port: u16| -> SocketAddr {
        let address = web["address"].as_str().unwrap();
        format!("[{address}]:{port}").parse().unwrap()
    };
    // The app's own port is plain; the ingress port, which edges use, wants the header.
    assert_eq!(get(at(8080), HOST, "/").0, 200);
    let mut plain = TcpStream::connect(at(61001)).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let logs = || cluster.ok(&["logs", "--app", "hello", "--process", "web"]);
    wait_for("the adapter's line", || {
        logs().contains("1 without a valid header")
    });

    let kill = "echo 1 > /sys/fs/cgroup/proxy/cgroup.kill";
    let shell = ["--", "/bin/sh", "-c", kill];
    cluster.ok(&[&["exec", "--app", "hello", "-p", "web"], &shell[..]].concat());
    wait_for("another adapter", || logs().contains("it is started again"));
    assert_eq!(cluster.get("/").0, 200);
    let rows = cluster.instances();
    let restarted = rows.iter().any(|row| row["report"]["restarts"] != 0);
    assert!(!restarted, "{rows:?}");
    cluster.down();
}

#[test]
fn case_an_app_on_ipv4_only_is_served_by_health_check_edge_and_adapter() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let serve = "mkdir -p /tmp/www && echo well >/tmp/www/healthz && exec busybox httpd -f -p 127.0.0.1:8080 -h /tmp/www";
    let command = format!("command = [\"/bin/sh\", \"-c\", \"{serve}\"]");
    let hello = "command = [\"/usr/bin/hello\", \"web\"]";
    let plain = manifest(&[(hello, &command), ("min = 2", "min = 1")]);
    let stripped = plain.replace(
        "protocol = \"http\"\n",
        "protocol = \"http\"\nproxy_protocol = \"strip\"\n",
    );
    for manifest in [plain, stripped] {
        let deployed = cluster.deploy(&manifest, &cluster.image);
        assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
        wait_for("a page", || get(cluster.edge(), HOST, "/healthz").0 == 200);
        assert_eq!(get(cluster.edge(), HOST, "/healthz").1, b"well\n");
        wait_for("the line of `ps`", || {
            cluster.ok(&["ps"]).contains("not on IPv6, forwarded: 8080")
        });
    }
    let logs = cluster.ok(&["logs", "--app", "hello", "--process", "web"]);
    assert!(
        logs.contains("nothing listens on port 8080 over IPv6"),
        "{logs}"
    );
    cluster.down();
}

//! Certificates by ACME over whole roles: a server, two edges, Debian's `pebble` as the authority, and curl. No instance runs: what is seen is who answers, and by
//! which certificate.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster::{Cluster, EDGES, done};

fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

#[test]
fn two_hosts_get_certificates_through_two_edges_and_an_operators_wins() {
    let cluster = Cluster::up(
        "",
        &["a.example.com", "b.example.com", "hello.localhost"],
        |_, _| Vec::new(),
    );
    // Each name leads to one edge only, and every edge answers for it.
    cluster.points_to("a.example.com", EDGES[0]);
    cluster.points_to("b.example.com", EDGES[1]);
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(
        shown.contains("off: `platform certificates acme on"),
        "{shown}"
    );
    let refused = cluster.on(&["--challenge", "http-01"]).output().unwrap();
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.contains("terms of service") && refused.contains("--agree-tos"),
        "{refused}"
    );
    let shown = done(&mut cluster.on(&[
        "--agree-tos",
        "--challenge",
        "http-01",
        "--email",
        "ops@example.org",
    ]));
    assert!(shown.contains("/my-account/"), "{shown}");
    for host in ["a.example.com", "b.example.com"] {
        cluster.wait_for_certificate(host);
        assert_eq!(cluster.sources(host), ["acme"]);
        for address in EDGES {
            let at = format!("301 https://{host}:{}/a?b=c", cluster.https_port);
            assert_eq!(cluster.plain(host, address), at);
        }
    }
    // No authority knows this name, and so the app answers in plain HTTP.
    assert!(
        cluster
            .plain("hello.localhost", EDGES[0])
            .starts_with("503")
    );
    let pebble = cluster.log("pebble");
    assert!(pebble.contains("/.well-known/acme-challenge/"), "{pebble}");
    let events = cluster.events();
    for host in ["a.example.com", "b.example.com"] {
        assert!(events.contains(&format!("{host}: issued by")), "{events}");
    }
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(shown.contains("2, of which 0 have none yet"), "{shown}");

    // By a certificate at the other port, once more.
    done(&mut cluster.on(&["--agree-tos", "--challenge", "tls-alpn-01"]));
    let before = cluster.serial("b.example.com", EDGES[0]);
    done(&mut cluster.command(&["certificates", "remove", "b.example.com"]));
    cluster.wait_for("another certificate by TLS-ALPN-01", || {
        let serial = cluster.serial("b.example.com", EDGES[0]);
        serial.starts_with("serial=")
            && serial != before
            && cluster.sources("b.example.com") == ["acme"]
    });
    cluster.wait_for_certificate("b.example.com");
    let asked = "an authority of ACME asked whether the host leads here";
    let edge = cluster.log("edge1");
    assert!(count(&edge, asked) >= 2, "{edge}");

    // Keys are sealed in the store, and the edge's own on its disk.
    for entry in std::fs::read_dir(cluster.path("server")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("BEGIN PRIVATE KEY") && !text.contains("key_pkcs8"));
    }
    let kept = cluster.path("edge0/certificates/a.example.com_acme.json");
    let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let add = |name: &str, host: &str| {
        let (cert, key) = (cluster.path("own.pem"), cluster.path("own.key"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
        ]);
        openssl.args(["-subj", "/CN=own", "-addext"]);
        openssl.arg(format!("subjectAltName=DNS:{host}"));
        done(openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert));
        let mut add = cluster.command(&["certificates", "add", "--name", name, "--cert"]);
        done(add.arg(&cert).arg("--key").arg(&key));
    };
    // An operator's for another host, whose name is that of this one, takes nothing from it.
    let serial = cluster.serial("a.example.com", EDGES[0]);
    add("a.example.com", "other.example.net");
    let named = || {
        let rows = cluster.certificates().into_iter();
        rows.filter(|row| row["name"] == "a.example.com").count()
    };
    assert_eq!(named(), 2);
    assert_eq!(cluster.serial("a.example.com", EDGES[0]), serial);
    done(&mut cluster.command(&["certificates", "remove", "a.example.com"]));
    assert_eq!(named(), 1);
    assert_eq!(cluster.sources("a.example.com"), ["acme"]);
    assert_eq!(cluster.serial("a.example.com", EDGES[0]), serial);

    // One for it takes its place, and goes again.
    add("own", "*.example.com");
    cluster.wait_for("an operator's certificate wins", || {
        cluster.secure("a.example.com", EDGES[0]) == "000"
    });
    done(&mut cluster.command(&["certificates", "remove", "own"]));
    // Nothing is ordered anew: the one by ACME was kept.
    cluster.wait_for_certificate("a.example.com");
    assert_eq!(cluster.serial("a.example.com", EDGES[0]), serial);

    // Off: what there is goes on, and nothing is ordered.
    done(&mut cluster.command(&["certificates", "acme", "off"]));
    assert_eq!(cluster.secure("a.example.com", EDGES[1]), "503");
    // An edge that is revoked has none of it.
    done(&mut cluster.command(&["edges", "revoke", "edge0", "--no-wait"]));
    let folder = cluster.path("edge0/certificates");
    cluster.wait_for("the revoked edge has no key", || {
        std::fs::read_dir(&folder).map_or(true, |mut files| files.next().is_none())
    });
}

/// Asks once, waits until it is told to, and asks again on the same connection.
const CLIENT: &str = r#"
import os, socket, ssl, sys, time
address, port, host, ca, talk = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
stream = context.wrap_socket(socket.create_connection((address, int(port))), server_hostname=host)
def ask(word):
    stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = stream.recv(65536)
        assert part, "the connection was closed"
        answer += part
    print(word, answer.split(b" ")[1].decode(), flush=True)
ask("first")
while not os.path.exists(talk):
    time.sleep(0.1)
    stream.settimeout(20)
    # An idle connection is closed after a while: it is used.
ask("second")
"#;

#[test]
fn a_certificate_is_renewed_in_time_and_who_is_connected_stays() {
    // It lives for half a minute, and is renewed after twenty seconds.
    let life = r#", "certificateValidityPeriod": 30"#;
    let mut cluster = Cluster::up(life, &["d.example.com"], |_, _| Vec::new());
    done(&mut cluster.on(&["--agree-tos"]));
    cluster.wait_for_certificate("d.example.com");
    let talk = cluster.path("talk");
    let mut client = Command::new("python3");
    let port = cluster.https_port.to_string();
    client.args(["-c", CLIENT, EDGES[0], &port, "d.example.com"]);
    client.arg(cluster.path("root.pem")).arg(&talk);
    cluster.start("client", &mut client);
    cluster.wait_for("the first answer", || {
        cluster.log("client").contains("first 503")
    });
    let first = cluster.serial("d.example.com", EDGES[0]);
    let next = |before: &str| {
        cluster.wait_for("the next certificate", || {
            let serial = cluster.serial("d.example.com", EDGES[0]);
            serial.starts_with("serial=") && serial != before
        });
        // The one before has not ended meanwhile.
        assert_eq!(cluster.secure("d.example.com", EDGES[0]), "503");
        cluster.serial("d.example.com", EDGES[0])
    };
    let second = next(&first);
    std::fs::write(&talk, "").unwrap();
    cluster.wait_for("the second answer", || {
        cluster.log("client").contains("second 503")
    });
    next(&second);
    let events = cluster.events();
    assert!(count(&events, "d.example.com: renewed by") >= 2, "{events}");
    assert!(!events.contains("certificate-failed"), "{events}");
}

/// A hook that sets records of the authority's names; before, it waits as long as a file is there.
fn hook(folder: &Path, dns: &str) -> PathBuf {
    let file = folder.join("hook");
    let script = format!(
        "#!/bin/sh\necho \"$1 $2\" >>{folder}/hook.calls\nwhile [ \"$1\" = present ] && [ -e {folder}/hook.waits ]; do sleep 0.1; done\n\
         [ -e {folder}/hook.fails ] && {{ echo 'no such zone here' >&2; exit 3; }}\n\
         case $1 in\n\
         present) exec curl -fsS --noproxy '*' -d \"{{\\\"host\\\": \\\"$2\\\", \\\"value\\\": \\\"$3\\\"}}\" http://{dns}/set-txt;;\n\
         cleanup) exec curl -fsS --noproxy '*' -d \"{{\\\"host\\\": \\\"$2\\\"}}\" http://{dns}/clear-txt;;\n\
         esac\n",
        folder = folder.display()
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn a_wildcard_comes_by_the_hook_and_an_order_goes_on_after_its_leader_was_killed() {
    let mut cluster = Cluster::up("", &["x.example.org", "y.example.org"], |folder, dns| {
        vec![
            "--acme-dns-hook".to_owned(),
            hook(folder, dns).display().to_string(),
        ]
    });
    let (fails, waits) = (cluster.path("hook.fails"), cluster.path("hook.waits"));
    std::fs::write(&fails, "").unwrap();
    done(&mut cluster.on(&["--agree-tos", "--wildcard", "*.example.org"]));
    cluster.wait_for("the hook's failure", || {
        let events = cluster.events();
        events.contains("*.example.org: the hook for DNS-01 ended with")
            && events.contains("no such zone here")
    });
    // Once, and no more before its time has come.
    let file = cluster.path("hook.calls");
    let calls = || std::fs::read_to_string(&file).unwrap();
    assert_eq!(count(&calls(), "present _acme-challenge.example.org."), 1);
    assert_eq!(count(&calls(), "cleanup"), 1);

    std::fs::remove_file(&fails).unwrap();
    std::fs::write(&waits, "").unwrap();
    let orders = count(
        &cluster.log("pebble"),
        "POST /order-plz -> calling handler()",
    );
    done(&mut cluster.command(&["certificates", "acme", "retry", "*.example.org"]));
    cluster.wait_for("the hook is called again", || {
        count(&calls(), "present") == 2
    });
    // In the midst of the order.
    cluster.kill("server");
    std::fs::remove_file(&waits).unwrap();
    cluster.start_server();
    for host in ["x.example.org", "y.example.org"] {
        cluster.wait_for_certificate(host);
    }
    let rows = cluster.certificates();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["name"], "*.example.org");
    let log = cluster.log("pebble");
    // The order of the leader that was killed was gone on with, and nothing was issued twice. (A nonce that is refused makes a call be made again.)
    let again = count(&log, "POST /order-plz -> calling handler()") - orders;
    assert!((1..=3).contains(&again), "{again} orders");
    assert_eq!(count(&log, "Issued certificate serial"), 1, "{log}");
    cluster.wait_for("the record is removed", || count(&calls(), "cleanup") >= 2);
}

#[test]
fn a_name_that_leads_elsewhere_fails_slowly_and_says_why() {
    let more = r#", "externalAccountBindingRequired": true, "externalAccountMACKeys": {"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}, "domainBlocklist": ["blocked.example.com"]"#;
    let mut cluster = Cluster::up(more, &["c.example.com", "blocked.example.com"], |_, _| {
        Vec::new()
    });
    // Nobody listens there.
    cluster.points_to("c.example.com", "127.0.0.77");
    let key = cluster.path("eab.key");
    std::fs::write(
        &key,
        "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n",
    )
    .unwrap();
    let key = key.to_str().unwrap();
    let said = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = said(&mut cluster.on(&["--agree-tos"]));
    assert!(error.contains("--eab-key-id"), "{error}");
    let error = said(&mut cluster.on(&[
        "--agree-tos",
        "--eab-key-id",
        "kid-2",
        "--eab-key-file",
        key,
    ]));
    assert!(error.contains("refuses the account"), "{error}");
    let error = said(&mut cluster.on(&["--agree-tos", "--wildcard", "*.example.com"]));
    assert!(error.contains("--acme-dns-hook"), "{error}");
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(shown.contains("off"), "{shown}");
    done(&mut cluster.on(&[
        "--agree-tos",
        "--eab-key-id",
        "kid-1",
        "--eab-key-file",
        key,
    ]));
    cluster.wait_for("both failures", || {
        let events = cluster.events();
        events.contains("c.example.com:") && events.contains("blocked.example.com:")
    });
    let events = cluster.events();
    assert!(events.contains("onnection refused"), "{events}");
    let why = done(&mut cluster.command(&["why", "shop/prod/web"]));
    assert!(
        why.contains("c.example.com has no certificate by ACME") && why.contains("acme retry"),
        "{why}"
    );
    let shown = done(&mut cluster.command(&["certificates", "acme"]));
    assert!(
        shown.contains("failed") && shown.contains("1 times"),
        "{shown}"
    );
    // Another leader waits as long, and orders what it is told to.
    cluster.kill("server");
    cluster.start_server();
    done(&mut cluster.command(&["certificates", "acme", "retry", "blocked.example.com"]));
    let failures = |name: &str| {
        let mut show = cluster.command(&["certificates", "acme", "--format", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&done(&mut show)).unwrap();
        let rows = shown["names"].as_array().unwrap().iter();
        let mut rows = rows.filter(|row| row["name"] == name);
        rows.next()
            .map_or(0, |row| row["failures"].as_u64().unwrap())
    };
    cluster.wait_for("the second failure", || {
        failures("blocked.example.com") == 2
    });
    assert_eq!(failures("c.example.com"), 1);
    // When the name leads here, it may be tried now.
    cluster.points_to("c.example.com", EDGES[1]);
    done(&mut cluster.command(&["certificates", "acme", "retry", "c.example.com"]));
    cluster.wait_for_certificate("c.example.com");
    let error = said(&mut cluster.command(&["certificates", "acme", "retry", "c.example.com"]));
    assert!(
        error.contains("no order of `c.example.com` failed"),
        "{error}"
    );
}

#[test]
fn an_authority_that_goes_away_holds_up_all_orders_once_and_a_retry_ends_that() {
    let hosts: Vec<String> = (0..6).map(|n| format!("h{n}.example.com")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let mut cluster = Cluster::up("", &hosts, |_, _| Vec::new());
    // Who listens there takes the authority's questions, and does not answer.
    let silent = "127.0.0.78";
    let listener = TcpListener::bind((silent, cluster.http_port)).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            held.push(stream);
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    for host in &hosts {
        cluster.points_to(host, silent);
    }
    done(&mut cluster.on(&["--agree-tos", "--challenge", "http-01"]));
    // It asks several times for each.
    let orders = |cluster: &Cluster| {
        let log = cluster.log("pebble");
        count(&log, "POST /order-plz -> calling handler()")
    };
    cluster.wait_for("all orders to be under way", || {
        orders(&cluster) >= hosts.len() && asked.load(Ordering::Relaxed) >= hosts.len()
    });
    cluster.kill("pebble");
    let pauses = |cluster: &Cluster| count(&cluster.log("server"), "no certificate is ordered for");
    cluster.wait_for("a pause", || pauses(&cluster) > 0);
    let shown = |cluster: &Cluster| {
        let shown = cluster.command(&["certificates", "acme"]).output().unwrap();
        String::from_utf8(shown.stderr).unwrap() + &String::from_utf8(shown.stdout).unwrap()
    };
    cluster.wait_for("that all orders have ended", || {
        let shown = shown(&cluster);
        shown.contains("; orders go on in ") && !shown.contains("ordering")
    });
    assert_eq!(pauses(&cluster), 1, "{}", cluster.log("server"));
    cluster.start_pebble();
    for host in &hosts {
        cluster.points_to(host, EDGES[0]);
    }
    // None of them has failed.
    done(&mut cluster.command(&["certificates", "acme", "retry", hosts[3]]));
    for host in &hosts {
        cluster.wait_for("a certificate", || cluster.sources(host) == ["acme"]);
    }
    assert_eq!(pauses(&cluster), 1, "{}", cluster.log("server"));
}

//! A machine joins anew where what it had as another member is still there: the link outlives the edge, as it does under systemd (`KillMode=process`).

use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::Duration;

use wireguard::interface::{Interface, InterfaceOptions};

use super::{Machine, done, free_address, run, wait_for, with};

const LIMIT: Duration = Duration::from_mins(5);

/// The control sockets of the edge's links whose process runs.
fn links(machine: &Machine) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(machine.folder("edge/run")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "wireguard"))
        .filter(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
        .collect()
}

/// Runs the edge until it has its link, which it leaves.
fn leave_a_link(machine: &mut Machine) -> PathBuf {
    machine.start("edge");
    wait_for("the edge's link", || !links(machine).is_empty());
    let mut edge = machine.roles.pop().unwrap();
    edge.kill().unwrap();
    edge.wait().unwrap();
    let mut links = links(machine);
    assert_eq!(links.len(), 1, "{links:?}");
    let port: u16 = machine.overlay_port.parse().unwrap();
    UdpSocket::bind(("::", port)).unwrap_err();
    links.remove(0)
}

#[test]
fn an_edge_joins_anew_where_its_own_wireguard_still_runs() {
    let name = "rejoin::an_edge_joins_anew_where_its_own_wireguard_still_runs";
    let setup = "export PLATFORM_USERSPACE_WIREGUARD=1";
    if !test_namespaces::isolated_after(name, setup, LIMIT) {
        return;
    }
    let mut machine = Machine::new();
    let (server, edge) = (free_address(), free_address());
    done(with(
        machine.role(&["server", "init"]),
        &["--listen", &server],
    ));
    machine.start("server");
    wait_for("the server", || run(machine.command(&["nodes"])).0 == 0);
    let join = |machine: &Machine, words: &[&str]| {
        let create = machine.command(&["tokens", "create"]);
        let token = done(with(create, &["--role", "edge"])).0;
        let mut join = with(machine.role(&["edge", "join", "--listen", &edge]), words);
        join.env("PLATFORM_TOKEN", token.trim());
        join
    };
    done(join(&machine, &["--name", "a"]));
    let first = leave_a_link(&mut machine);

    // Revoked, and joined anew.
    done(machine.command(&["edges", "revoke", "a", "--no-wait"]));
    done(join(&machine, &["--name", "b", "--again"]));
    let second = leave_a_link(&mut machine);
    assert_ne!(second, first);

    // Refused, it is who it was, and makes its link again.
    let mut refused = join(&machine, &["--name", "c", "--again"]);
    refused.env("PLATFORM_TOKEN", "nonsense");
    assert_eq!(run(refused).0, 1);
    assert_eq!(leave_a_link(&mut machine), second);

    // Somebody removed who it was.
    std::fs::remove_file(machine.folder("edge/member.json")).unwrap();
    done(join(&machine, &["--name", "d"]));
    let third = leave_a_link(&mut machine);
    assert_ne!(third, second);
    std::fs::remove_file(machine.folder("edge/member.json")).unwrap();
    done(machine.role(&["edge", "down"]));
    assert!(links(&machine).is_empty());
}

#[test]
fn a_node_that_is_left_leaves_no_wireguard() {
    let name = "rejoin::a_node_that_is_left_leaves_no_wireguard";
    if !test_namespaces::isolated(name) {
        return;
    }
    let machine = Machine::new();
    let (data_dir, run_dir) = (machine.folder("node"), machine.folder("run"));
    std::fs::create_dir(&data_dir).unwrap();
    let file = data_dir.join("member.json");
    let member = include_str!("../../../membership/src/fixtures/member/version-1.json");
    std::fs::write(&file, member).unwrap();
    // As the agent of node n3 of that cluster makes them.
    test_namespaces::shell("ip netns add platform-56789a3");
    let port: u16 = machine.overlay_port.parse().unwrap();
    let options = InterfaceOptions {
        name: "overlay".to_owned(),
        namespace: Some("/run/netns/platform-56789a3".into()),
        port,
        mtu: 1420,
        program: env!("CARGO_BIN_EXE_platform").into(),
        run_dir: run_dir.join("overlay"),
        force_userspace: true,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    drop(runtime.block_on(Interface::ensure(&options)).unwrap());
    UdpSocket::bind(("::", port)).unwrap_err();
    runtime
        .block_on(node_agent::leave(&data_dir, &run_dir))
        .unwrap();
    assert!(!file.exists());
    UdpSocket::bind(("::", port)).unwrap();
}

//! Several machines: instances that find and reach each other by name over the overlay, and nothing that they may not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod doctor;
mod hub_death;
mod lying_node;
mod machines;
mod partition;
mod roaming;
mod underlay;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use machines::{ALSO_SERVER, Machines, isolated, run, wait_for};

/// The example app with this many `web`, at most one on a node as far as there are nodes.
fn manifest(web: u32) -> String {
    let text = include_str!("../../../../examples/hello/platform.toml");
    let text = text.replace("min = 2", &format!("min = {web}"));
    // To ping takes a user who may.
    let worker = "[processes.worker]\n";
    let text = text.replace(worker, &format!("{worker}user = \"root\"\n"));
    // No other env has its host.
    text.split("[routes]").next().unwrap().to_owned()
}

fn fetch(address: &str) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} 8080")
}

#[test]
fn instances_on_several_machines_find_and_reach_each_other_and_nobody_else() {
    if !isolated("instances_on_several_machines_find_and_reach_each_other_and_nobody_else") {
        return;
    }
    let mut machines = Machines::start(5);
    let routed =
        manifest(3) + "[routes]\n\"hello.localhost\" = { process = \"web\", port = 8080 }\n";
    machines.deploy("prod", &routed);
    machines.deploy("other", &manifest(1));

    // By a name, from whatever node, each instance on another.
    let web = machines.addresses("prod", "web");
    assert_eq!(web.len(), 3, "{web:?} of {:?}", machines.instances("prod"));
    let nodes: std::collections::BTreeSet<_> = web
        .iter()
        .map(|address| machines.node_of("prod", address))
        .collect();
    assert_eq!(nodes.len(), 3, "{web:?}");
    for address in &web {
        wait_for("a page over the overlay", || {
            machines.in_worker("prod", &fetch(address)).contains("<h1>")
        });
    }
    assert_eq!(machines.addresses("prod", "web.prod.hello.internal"), web);
    // As an app asks, by the name alone.
    assert!(machines.in_worker("prod", &fetch("web")).contains("<h1>"));
    // Through the edge, on a machine of its own, from each.
    let page = || {
        let output = Machines::on("server", "curl")
            .args([
                "-s",
                "-m",
                "5",
                "-H",
                "Host: hello.localhost",
                "http://198.18.7.2/",
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut seen = std::collections::BTreeSet::new();
    wait_for("pages of all three through the edge", || {
        let page = page();
        seen.extend(
            page.lines()
                .filter(|line| line.contains("node"))
                .map(str::to_owned),
        );
        seen.len() == 3
    });

    // The other env finds no name of it, and reaches no address of it, nor the other way round.
    assert_eq!(
        machines.addresses("other", "web.prod.hello.internal"),
        [""; 0]
    );
    let other = machines.addresses("other", "web");
    assert_eq!(other.len(), 1);
    for (env, address) in [
        ("other", &web[0]),
        ("other", &web[1]),
        ("other", &web[2]),
        ("prod", &other[0]),
    ] {
        let said = machines.in_worker(env, &fetch(address));
        assert!(!said.contains("<h1>"), "{env} reaches {address}");
    }
    // Nor do instances reach the control plane, by whatever address of the server's machine.
    let also = format!("{ALSO_SERVER} . 7400");
    wait_for(
        "the rules of all nodes to name every address of the server",
        || {
            (1..=3).all(|node| {
                let namespace = Machines::namespace_of(&format!("n{node}"));
                run(
                    "ip",
                    &["netns", "exec", &namespace, "nft", "list", "ruleset"],
                )
                .contains(&also)
            })
        },
    );
    // Nor do instances reach nodes or edges.
    let prefix = web[0].split(':').take(3).collect::<Vec<_>>().join(":");
    for number in 1..=6 {
        let said = machines.in_worker("prod", &format!("ping -c 1 -W 1 {prefix}:{number:x}::1"));
        assert!(
            said.contains("100% packet loss")
                || said.contains("unreachable")
                || said.contains("prohibited"),
            "{said}"
        );
    }

    // Another MTU, and hubs in place of the mesh, while a connection goes on: it began before, and is answered after.
    let distant = web
        .iter()
        .find(|address| machines.node_of("prod", address) != worker_node(&machines))
        .unwrap();
    let script =
        format!("(sleep 8; printf 'GET / HTTP/1.0\\r\\n\\r\\n') | nc -w 20 {distant} 8080");
    let connection = machines
        .exec("prod", "worker", &script)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    machines.ok(&["network", "set", "--mtu", "1380"]);
    machines.ok(&["network", "set", "--mode", "hubs"]);
    wait_for("guests of the other MTU", || {
        machines
            .in_worker("prod", "cat /sys/class/net/eth0/mtu")
            .trim()
            == "1380"
    });
    for address in &web {
        wait_for("a page by way of a hub", || {
            machines.in_worker("prod", &fetch(address)).contains("<h1>")
        });
    }
    let answered = String::from_utf8(connection.wait_with_output().unwrap().stdout).unwrap();
    assert!(
        answered.contains("<h1>"),
        "the connection was lost: {answered}"
    );
    for (env, address) in [("other", &web[0]), ("other", &web[1]), ("prod", &other[0])] {
        assert!(
            !machines.in_worker(env, &fetch(address)).contains("<h1>"),
            "{env} reaches {address}"
        );
    }
    machines.ok(&["network", "set", "--mtu", "1420"]);
    machines.ok(&["network", "set", "--mode", "mesh"]);
    wait_for("guests of the first MTU", || {
        machines
            .in_worker("prod", "cat /sys/class/net/eth0/mtu")
            .trim()
            == "1420"
    });

    // An agent that is killed and comes back loses no packet of what passes.
    let instances = machines.instances("prod");
    let worker = &instances
        .iter()
        .find(|(process, ..)| process == "worker")
        .unwrap()
        .1;
    let victim = instances
        .iter()
        .find(|(process, node, _)| process == "web" && node != worker);
    let (_, node, victim) = victim.unwrap().clone();
    let pinged = machines
        .exec(
            "prod",
            "worker",
            &format!("ping -c 100 -i 0.1 -W 2 {victim}"),
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    machines.kill(&node);
    machines.start_again("node", &node);
    let said = String::from_utf8(pinged.wait_with_output().unwrap().stdout).unwrap();
    assert!(
        said.contains("100 packets transmitted, 100 packets received")
            || said.contains(" 0% packet loss"),
        "{said}\n{}",
        machines.log(&node)
    );
    wait_for("the agent again", || {
        machines
            .json(&["nodes"])
            .as_array()
            .unwrap()
            .iter()
            .all(|node| node["online"] == true)
    });

    // A machine that reboots comes back, with its instances and its place in the overlay: nothing of it is left but its disk.
    machines.kill(&node);
    reboot(&machines, &node);
    machines.start_again("node", &node);
    wait_for("the instance of the machine that was rebooted", || {
        machines.addresses("prod", "web").contains(&victim)
    });
    wait_for("a page of the machine that was rebooted", || {
        machines.in_worker("prod", &fetch(&victim)).contains("<h1>")
    });

    // A node that is revoked is cut off from everybody, at once.
    let mut pinged = machines
        .exec("prod", "worker", &format!("ping -i 0.1 {victim}"))
        .stdout(fs::File::create(machines.path("pings")).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let count = || {
        fs::read_to_string(machines.path("pings"))
            .unwrap()
            .matches("seq=")
            .count()
    };
    wait_for("answers", || count() > 5);
    let revoked = Instant::now();
    machines.ok(&["nodes", "revoke", &node, "--no-wait"]);
    let mut last = (count(), Instant::now());
    // No answer for so long: none comes any more.
    while last.1.elapsed() < Duration::from_secs(3) {
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
        assert!(
            revoked.elapsed() < Duration::from_secs(60),
            "packets pass on"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    pinged.kill().unwrap();
    pinged.wait().unwrap();
    let passed = last.1.duration_since(revoked);
    eprintln!(
        "packets of a revoked node passed for {} ms",
        passed.as_millis()
    );
    assert!(passed < Duration::from_secs(2), "{passed:?}");
    wait_for("names without the revoked node", || {
        !machines.addresses("prod", "web").contains(&victim)
    });

    // `down` leaves nothing on a machine.
    let node = (1..=5)
        .map(|number| format!("n{number}"))
        .find(|name| *name != node)
        .unwrap();
    let node = node.as_str();
    machines.kill(node);
    let mut down = Machines::on(node, env!("CARGO_BIN_EXE_platform"));
    down.args(["node", "down", "--data-dir"])
        .arg(machines.path(node));
    down.arg("--run-dir")
        .arg(machines.path(&format!("{node}.run")));
    assert!(down.status().unwrap().success());
    machines.kill("edge");
    let mut down = Machines::on("edge", env!("CARGO_BIN_EXE_platform"));
    down.args(["edge", "down", "--data-dir"])
        .arg(machines.path("edge"));
    assert!(down.status().unwrap().success());
    for machine in [node, "edge"] {
        assert_eq!(processes_of(&machines, machine), [""; 0], "{machine}");
        let links = run("ip", &["-n", machine, "-brief", "link"]);
        let links: Vec<_> = links
            .lines()
            .filter_map(|line| line.split([' ', '@']).next())
            .collect();
        assert_eq!(links, ["lo", "eth0"], "{machine}");
    }
}

fn worker_node(machines: &Machines) -> String {
    let instances = machines.instances("prod").into_iter();
    instances
        .filter(|(process, ..)| process == "worker")
        .map(|(_, node, _)| node)
        .next()
        .unwrap()
}

/// The processes whose network is that of a machine, or that serve its node's: their command lines.
fn processes_of(machines: &Machines, machine: &str) -> Vec<String> {
    let folder = machines.path(machine).display().to_string();
    let all = run("ps", &["-eo", "args"]);
    let of_machine = all.lines().filter(|line| line.contains(&folder));
    of_machine.map(str::to_owned).collect()
}

/// Ends every process of a machine, and removes what lives in memory: its node's namespace and its run folder.
fn reboot(machines: &Machines, node: &str) {
    let folder = format!("{}.run", machines.path(node).display());
    let namespace = Machines::namespace_of(node);
    let slirp = format!("/run/netns/{namespace}");
    // A VMM is within a view of its own, and its command line names its instance alone.
    let instances = fs::read_dir(machines.path(node).join("instances")).unwrap();
    let vmms = instances.map(|folder| {
        let id = folder.unwrap().file_name();
        format!("instance-{}", id.to_str().unwrap())
    });
    let vmms: Vec<String> = vmms.collect();
    // Those that are ending hold the namespace still.
    wait_for("no process of the machine", || {
        let inside = run("ip", &["netns", "pids", &namespace]);
        let all = run("ps", &["-eo", "pid,args"]);
        let of_machine = all.lines().filter_map(|line| {
            let (pid, arguments) = line.trim().split_once(' ')?;
            let is_vmm = vmms.iter().any(|vmm| arguments.contains(vmm));
            (is_vmm || arguments.contains(&folder) || arguments.contains(&slirp)).then_some(pid)
        });
        let pids: Vec<&str> = inside.split_whitespace().chain(of_machine).collect();
        for pid in &pids {
            // One that ended by itself meanwhile.
            let _ = std::process::Command::new("kill")
                .args(["-9", pid])
                .status();
        }
        pids.is_empty()
    });
    run("ip", &["netns", "delete", &namespace]);
    fs::remove_dir_all(&folder).unwrap();
}

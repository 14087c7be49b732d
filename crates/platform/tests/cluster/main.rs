//! A whole cluster, end to end, with everything real: a registry, the three roles, microVMs on whatever this
//! machine has (TCG where there is no KVM).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_days;
mod disk;
mod drain;
mod events;
mod forty;
mod harness;
mod hostile;
mod init;
mod metrics;
mod proxy;
mod run_forward;
mod terminal;
mod volumes;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use harness::{Cluster, VSOCK_DEVICE, get, manifest, vmm, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// The value of a line `name   value` of the example's page.
fn field<'p>(page: &'p str, name: &str) -> &'p str {
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("no {name} in {page}"))
        .trim()
}

fn sigkill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn an_image_is_deployed_scaled_replaced_and_leaves_nothing_behind() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let deployed = cluster.deploy(&manifest(&[]), &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    assert_eq!(
        (cluster.ready("web").len(), cluster.ready("worker").len()),
        (2, 1)
    );

    // The node reports its egress, whether or not the machine that runs this has an uplink.
    wait_for("the state of egress", || {
        let reason = &cluster.json(&["nodes"])[0]["egress"]["reason"];
        reason.as_str().is_some_and(|reason| !reason.is_empty())
    });

    cluster.wait_until_served();
    metrics::case_each_role_tells_what_it_does(&cluster);
    // The page, from both instances in turn, with the platform's variables in it.
    let mut answered = BTreeSet::new();
    for _ in 0..4 {
        let (status, page) = cluster.get("/");
        assert_eq!(status, 200, "{page}");
        assert_eq!(
            (field(&page, "app"), field(&page, "env")),
            ("hello", "prod")
        );
        assert_eq!(
            (field(&page, "process"), field(&page, "release")),
            ("web", "v1")
        );
        answered.insert(field(&page, "instance").to_owned());
    }
    assert_eq!(answered, cluster.ready("web").into_iter().collect());
    assert_eq!(harness::get(cluster.edge(), "other.localhost", "/").0, 404);

    // What it logs: a line per request of `web`, ticks of `worker`.
    wait_for("the requests' lines", || {
        let lines = cluster.ok(&["logs", "--app", "hello", "--process", "web"]);
        lines.matches("GET / 200").count() == 4
    });
    let ticks = cluster.ok(&["logs", "--app", "hello", "--process", "worker"]);
    assert!(
        ticks.contains("worker: started") && !ticks.contains("GET /"),
        "{ticks}"
    );

    commands_run_beside_the_app(&cluster);

    cluster.ok(&["scale", "--app", "hello", "web=3"]);
    wait_for("a third instance", || cluster.ready("web").len() == 3);
    cluster.ok(&["scale", "--app", "hello", "web=1"]);
    wait_for("one instance", || cluster.instances().len() == 2);
    assert_eq!(cluster.get("/").0, 200);

    // A release that exits at once: the deploy shows its exit and its last lines; the old release stays.
    let before = cluster.instances();
    let exits = manifest(&[(
        r#"command = ["/usr/bin/hello", "web"]"#,
        "command = [\"/bin/sh\", \"-c\", \"echo these are my last lines; exit 7\"]\n\
         restart = { policy = \"never\" }",
    )]);
    let refused = cluster.deploy(&exits, &cluster.image);
    let said = refused.stdout + &refused.stderr;
    assert_eq!(refused.status, 1, "{said}");
    assert!(
        said.contains("exit code 7") && said.contains("these are my last lines"),
        "{said}"
    );
    // A process type that was replaced already is reverted: same release and number, new instances.
    wait_for("the old release alone to run", || {
        let now = cluster.instances();
        now.len() == before.len()
            && now
                .iter()
                .all(|row| row["release"] == 1 && row["report"]["ready"] == true)
    });
    assert_eq!(field(&cluster.get("/").1, "release"), "v1");
    case_logs_outlive_what_failed_was_scaled_down_and_its_agent(&mut cluster);

    cluster.ok(&["destroy", "--app", "hello", "--yes"]);
    wait_for("the env to be gone", || {
        cluster.json(&["envs"]).as_array().unwrap().is_empty()
            && cluster.json(&["ps"]).as_array().unwrap().is_empty()
    });
    wait_for("the edge to have no route", || cluster.get("/").0 == 404);
    let logs = cluster.ok(&["logs", "--app", "hello", "--process", "worker"]);
    assert!(logs.contains("its env is destroyed"), "{logs}");
    let nowhere = cluster.cli(&["logs", "--app", "nope"]);
    assert_eq!(nowhere.status, 1, "{}", nowhere.stderr);
    assert!(
        nowhere.stderr.contains("there is no env nope/prod"),
        "{}",
        nowhere.stderr
    );
    cluster.down();
}

/// Two instances of `web` were scaled down, and one of its second release failed.
fn case_logs_outlive_what_failed_was_scaled_down_and_its_agent(cluster: &mut Cluster) {
    let ended = || cluster.json(&["ps", "--app", "hello", "--ended"]);
    let how = |release: u64, reason: &str| {
        let is = |row: &serde_json::Value| {
            row["release"] == release && row["reason"].as_str().unwrap().contains(reason)
        };
        let rows = ended();
        let found = rows.as_array().unwrap().iter().find(|row| is(row));
        found.map(|row| row["id"].as_str().unwrap().to_owned())
    };
    wait_for("a record of the failed instance", || how(2, "").is_some());
    wait_for("a record of one that was scaled down", || {
        how(1, "more than").is_some()
    });
    let failed = how(2, "").unwrap();
    let scaled_down = how(1, "more than").unwrap();
    // Once its node has reaped it, its folder is gone.
    wait_for("the folder to be gone", || {
        !cluster.path(&format!("node/instances/{failed}")).exists()
    });
    cluster.kill_role("node");
    cluster.start_role("node");
    wait_for("the node", || {
        cluster.cli(&["top", "--app", "hello", "--once"]).status == 0
    });
    let by_id = |id: &str| cluster.ok(&["logs", "--app", "hello", "--instance", id]);
    wait_for("the log of the failed instance", || {
        by_id(&failed).contains("these are my last lines")
    });
    assert!(by_id(&failed).contains("exit code 7"), "{}", by_id(&failed));
    assert!(
        by_id(&scaled_down).contains("starting "),
        "{}",
        by_id(&scaled_down)
    );
    assert!(
        by_id(&scaled_down).contains("more than"),
        "{}",
        by_id(&scaled_down)
    );
    for arguments in [&["--process", "web"][..], &["--previous"]] {
        let logs = cluster.ok(&[&["logs", "--app", "hello"], arguments].concat());
        assert!(logs.contains("these are my last lines"), "{logs}");
    }
    // By text and time: of every release, of what is there and what is gone, and only those lines.
    let logs = |more: &[&str]| cluster.ok(&[&["logs", "--app", "hello"], more].concat());
    let found = logs(&["--grep", "last lines"]);
    assert!(
        !found.is_empty() && found.lines().all(|line| line.contains("last lines")),
        "{found}"
    );
    assert_eq!(found, logs(&["--grep", "last lines", "--since", "1h"]));
    assert_eq!(logs(&["--grep", "last lines", "--until", "1h"]), "");
    let ticks = logs(&["--grep", "started", "--process", "worker"]);
    assert!(
        ticks.contains("worker: started") && !ticks.contains("last lines"),
        "{ticks}"
    );
    let typo = cluster.cli(&["logs", "--app", "hello", "--process", "typo"]);
    assert_eq!((typo.status, typo.stdout.as_str()), (1, ""));
    assert!(
        typo.stderr.contains("there are: web, worker"),
        "{}",
        typo.stderr
    );
    let typo = ["exec", "--app", "hello", "-p", "typo", "--", "ls"];
    let typo = cluster.cli(&typo);
    assert_eq!(typo.status, 1);
    assert!(
        typo.stderr.contains("instances of web, worker"),
        "{}",
        typo.stderr
    );
    let no_env = cluster.cli(&["ps", "--app", "hello", "--env", "nope"]);
    assert_eq!(no_env.status, 1, "{}", no_env.stderr);
    assert!(
        no_env.stderr.contains("there are: prod"),
        "{}",
        no_env.stderr
    );
}

/// `exec`, `top` and `signal`.
fn commands_run_beside_the_app(cluster: &Cluster) {
    let exec = |command: &str| {
        let shell = ["--process", "web", "--", "/bin/sh", "-c", command];
        cluster.cli(&[&["exec", "--app", "hello"], &shell[..]].concat())
    };
    let said = exec("id -un; echo aside >&2; exit 7");
    assert_eq!(
        (said.status, said.stdout.as_str(), said.stderr.as_str()),
        (7, "hello\n", "aside\n")
    );
    assert_eq!(exec("kill -9 $$").status, 128 + 9);
    let missing = ["exec", "--app", "hello", "-p", "web", "--", "no-such"];
    assert_eq!(cluster.cli(&missing).status, 127);

    let web = cluster.ready("web").remove(0);
    terminal::a_shell_has_the_terminals_size_and_follows_its_changes(cluster, &web);
    terminal::case_top_fits_the_terminal_and_ends_with_q(cluster);

    let stats = cluster.json(&["top", "--app", "hello"]);
    let stats = stats.as_array().unwrap();
    assert_eq!(stats.len(), 3);
    for row in stats {
        assert!(row["stats"]["memory_bytes"].as_u64() > Some(0), "{row}");
    }

    // A signal ends the app: it is started again, and its log says how it ended.
    let worker = cluster.ready("worker").remove(0);
    cluster.ok(&["signal", &worker, "USR1"]);
    wait_for("the worker to be back", || {
        let rows = cluster.instances();
        let back = |row: &serde_json::Value| row["report"]["restarts"] == 1;
        rows.iter()
            .any(|row| row["id"] == worker.as_str() && back(row))
            && cluster.ready("worker") == [worker.clone()]
    });
    let before = [
        "logs",
        "--app",
        "hello",
        "--instance",
        &worker,
        "--previous",
    ];
    let before = cluster.ok(&before);
    assert!(before.contains("killed by signal 10"), "{before}");
}

#[test]
fn instances_and_connections_survive_a_kill_of_each_role() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    // Its health check is a command in the guest.
    let checked = manifest(&[(
        "type = \"http\"\nport = 8080\npath = \"/healthz\"",
        "type = \"command\"\ncommand = [\"/bin/sh\", \"-c\", \"test $PLATFORM_PROCESS = web\"]",
    )]);
    let deployed = cluster.deploy(&checked, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let rows = cluster.instances();
    let web = rows.iter().find(|row| row["process"] == "web").unwrap();
    let direct: SocketAddr = format!("[{}]:8080", web["address"].as_str().unwrap())
        .parse()
        .unwrap();
    let vmm_before = vmm(web["id"].as_str().unwrap());

    cluster.wait_until_served();
    // A reader of logs, who goes on when the server is back.
    let followed = cluster.path("followed.log");
    let follow = ["logs", "--app", "hello", "--process", "worker", "-f"];
    let mut follower = cluster.start_cli(&follow, std::fs::File::create(&followed).unwrap());
    let lines_followed = || std::fs::read_to_string(&followed).unwrap().lines().count();
    wait_for("lines of the worker", || lines_followed() > 0);
    // Clients that download slowly: one from the instance itself, one through the edge.
    let path = "/download?bytes=4000000&rate=400000";
    let edge = cluster.edge();
    let from_instance = std::thread::spawn(move || get(direct, "hello.localhost", path));
    let through_edge = std::thread::spawn(move || get(edge, "hello.localhost", path));
    for role in ["server", "node"] {
        cluster.kill_role(role);
        cluster.start_role(role);
    }
    assert_eq!(through_edge.join().unwrap().1.len(), 4_000_000);
    // The edge serves from its own disk, with the server gone.
    cluster.kill_role("server");
    cluster.kill_role("edge");
    cluster.start_role("edge");
    wait_for("the edge", || std::net::TcpStream::connect(edge).is_ok());
    assert_eq!(cluster.get("/").0, 200);
    assert_eq!(from_instance.join().unwrap().1.len(), 4_000_000);
    cluster.start_role("server");
    wait_for("the server", || cluster.cli(&["ps"]).status == 0);

    // State is as before: same instances, same VMMs, no restarts.
    wait_for("three ready instances", || {
        cluster.ready("web").len() == 2 && cluster.ready("worker").len() == 1
    });
    assert_eq!(vmm(web["id"].as_str().unwrap()), vmm_before);
    for (before, after) in rows.iter().zip(cluster.instances()) {
        assert_eq!(before["id"], after["id"]);
        assert_eq!(after["report"]["restarts"], 0);
    }
    // Logs go on where they were: adopted guests dialled again.
    let ticks = || {
        cluster
            .ok(&["logs", "--app", "hello", "--process", "worker"])
            .lines()
            .count()
    };
    let now = (ticks(), lines_followed());
    wait_for("another tick", || ticks() > now.0);
    wait_for("another line that is followed", || lines_followed() > now.1);
    assert!(follower.0.try_wait().unwrap().is_none());
    drop(follower);

    // A killed VMM: the instance is back, under the same id, and its restart is counted.
    let id = web["id"].as_str().unwrap();
    sigkill(vmm_before);
    wait_for("the instance to be back", || {
        cluster.instances().iter().any(|row| {
            row["id"] == id && row["report"]["ready"] == true && row["report"]["restarts"] == 1
        })
    });
    assert_ne!(vmm(id), vmm_before);
    cluster.down();
}

#[test]
fn a_denied_permission_fails_the_deploy_at_once_and_names_the_program() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let device = cluster.path(VSOCK_DEVICE);
    let set_mode = |mode| {
        std::fs::set_permissions(&device, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let one = manifest(&[("min = 2", "min = 1")]);
    set_mode(0o600);
    let refused = cluster.deploy(&one, &cluster.image);
    let said = refused.stdout + &refused.stderr;
    assert_eq!(refused.status, 1, "{said}");
    let reason = format!(
        "{} cannot be executed: the file's mode 0600",
        device.display()
    );
    assert!(said.contains(&reason), "{said}");
    // Booting again would not help, and does not happen.
    assert!(!said.contains("given up after"), "{said}");
    wait_for("the cluster to be as it was", || {
        cluster.json(&["ps"]).as_array().unwrap().is_empty()
    });
    set_mode(0o700);
    let deployed = cluster.deploy(&one, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    cluster.down();
}

#[test]
fn a_deploy_that_is_refused_says_why_and_changes_nothing() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let wrong_digest = format!(
        "{}@sha256:{}",
        cluster.image.split('@').next().unwrap(),
        "0".repeat(64)
    );
    let unknown = cluster.image.replace("/hello@", "/unknown@");
    for (image, names) in [
        (&wrong_digest, "has no hello@sha256:0000"),
        (&unknown, "has no unknown@"),
    ] {
        let refused = cluster.deploy(&manifest(&[]), image);
        assert_eq!(refused.status, 1);
        assert!(refused.stderr.contains(names), "{}", refused.stderr);
        assert!(refused.stderr.contains("hint:"), "{}", refused.stderr);
    }
    let unknown_key = manifest(&[("[processes.web.scaling]", "[processes.web.scalling]")]);
    let refused = cluster.deploy(&unknown_key, &cluster.image);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("scaling"), "{}", refused.stderr);
    assert!(cluster.instances().is_empty());

    let not_found = manifest(&[(
        r#"command = ["/usr/bin/hello", "web"]"#,
        r#"command = ["no-such-command"]"#,
    )]);
    let refused = cluster.deploy(&not_found, &cluster.image);
    let said = refused.stdout + &refused.stderr;
    assert_eq!(refused.status, 1);
    assert!(
        said.contains("command not found: no-such-command"),
        "{said}"
    );
    wait_for("the cluster to be as it was", || {
        cluster.json(&["ps"]).as_array().unwrap().is_empty()
    });

    // An ordinary image, by tag.
    let nginx = cluster.push("nginx");
    let text = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/nginx/platform.toml"),
    )
    .unwrap();
    let tagged = format!("{}:latest", nginx.split('@').next().unwrap());
    let deployed = cluster.deploy(&text, &tagged);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let pinned = nginx.split('@').nth(1).unwrap();
    assert!(
        (deployed.stdout + &deployed.stderr).contains(pinned),
        "deploy prints the digest that it pinned"
    );
    wait_for("the edge to serve nginx", || {
        get(cluster.edge(), "nginx.localhost", "/").0 == 200
    });
    let (status, page) = get(cluster.edge(), "nginx.localhost", "/");
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&page).contains("Welcome to nginx"));
    cluster.down();
}

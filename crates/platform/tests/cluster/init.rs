//! Images whose own init insists on being PID 1; apps that are deaf to their health check, or that nobody wants to run.

use crate::harness::{Cluster, wait_for};

const MACHINE: &str = r#"
app = "machine"
[processes.web]
stop = { timeout = "60s" }
[processes.web.resources]
memory = "512MiB"
"#;

/// Debian's systemd, recognised by the image's command. It divides the app's cgroup, and commands are run beside it.
#[test]
fn case_systemd_is_pid_1_and_stops_in_order() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let image = cluster.push("systemd");
    let deployed = cluster.deploy(MACHINE, &image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let run = |command: &str| {
        let exec = ["exec", "--app", "machine", "--process", "web", "--"];
        cluster.cli(&[&exec[..], &["sh", "-c", command]].concat())
    };
    wait_for("systemd to have started everything", || {
        let state = run("systemctl is-system-running").stdout;
        ["running", "degraded"].contains(&state.trim())
    });
    assert_eq!(run("cat /proc/1/comm").stdout.trim(), "systemd");
    assert_eq!(run("systemd-detect-virt --container").status, 0);
    let cgroup = run("cat /proc/self/cgroup").stdout;
    assert!(cgroup.starts_with("0::/app/"), "{cgroup}");
    let service = run("systemd-run --quiet --wait --collect /bin/true && echo ran");
    assert_eq!(service.stdout.trim(), "ran", "{}", service.stderr);
    cluster.ok(&["scale", "--app", "machine", "web=0"]);
    let mut logs = String::new();
    wait_for("the end", || {
        logs = cluster.ok(&["logs", "--app", "machine"]);
        logs.contains("ended: ")
    });
    for line in ["the app's PID 1 powered off", "ended: exit code 0"] {
        assert!(logs.contains(line), "{line}: {logs}");
    }
    cluster.ok(&["destroy", "--app", "machine", "--yes"]);
    cluster.down();
}

/// Nobody listens where the health check connects.
const DEAF: &str = r#"
app = "deaf"
[processes.web]
command = ["/bin/sleep", "100000"]
restart = { max_retries = 1 }
[processes.web.resources]
memory = "128MiB"
[[processes.web.ports]]
port = 8080
[processes.web.healthcheck]
type = "tcp"
port = 8080
grace = "1s"
interval = "1s"
[processes.web.deploy]
deadline = "20s"
"#;

/// Its liveness is a file in its instance.
const MORTAL: &str = r#"
app = "mortal"
[processes.web]
command = ["/bin/sleep", "100000"]
[processes.web.resources]
memory = "128MiB"
[processes.web.liveness]
type = "command"
command = ["/bin/sh", "-c", "test ! -e /tmp/dead"]
grace = "1s"
interval = "1s"
timeout = "5s"
unhealthy = 2
[processes.web.deploy]
min_healthy = "1s"
"#;

#[test]
fn case_a_failing_health_check_ends_nothing_and_a_failing_liveness_check_replaces() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let deployed = cluster.deploy(DEAF, &cluster.image);
    assert_eq!(deployed.status, 1, "{}{}", deployed.stdout, deployed.stderr);
    let log = cluster.ok(&["logs", "--app", "deaf"]);
    let why = "not ready: the health check failed 3 times in a row: cannot connect to port 8080";
    assert_eq!(log.matches(why).count(), 1, "{log}");
    assert!(
        deployed.stderr.contains("not ready after 20 s"),
        "{}",
        deployed.stderr
    );

    let deployed = cluster.deploy(MORTAL, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let ids = || -> Vec<String> {
        let rows = cluster.instances();
        let mine = rows.iter().filter(|row| row["env"]["app"] == "mortal");
        mine.map(|row| row["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = ids();
    cluster.ok(&["exec", &first[0], "--", "/bin/touch", "/tmp/dead"]);
    wait_for("another instance in its place", || {
        let now = ids();
        now.len() == 1 && now != first
    });
    let why = "the liveness check failed 2 times in a row";
    wait_for("how the first one ended", || {
        let ended = cluster.ok(&["ps", "--ended", "--format", "json"]);
        ended.contains(why)
    });
}

/// Its release command writes what the log shows, and ends as `CODE` says.
const MIGRATES: &str = r#"
app = "migrates"
[processes.web]
command = ["/bin/sleep", "100000"]
env = { CODE = "0" }
[processes.web.resources]
memory = "128MiB"
[processes.web.deploy]
min_healthy = "1s"
release_command = ["/bin/sh", "-c", "echo migrating to $PLATFORM_RELEASE; exit $CODE"]
"#;

#[test]
fn case_a_release_command_runs_before_the_release_and_a_failing_one_keeps_it_away() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let deployed = cluster.deploy(MIGRATES, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let ids = || -> Vec<String> {
        let rows = cluster.instances();
        let mine = rows
            .iter()
            .filter(|row| row["env"]["app"] == "migrates" && row["terminating"] == false);
        mine.map(|row| row["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = ids();
    assert_eq!(first.len(), 1, "{first:?}");
    let log = cluster.ok(&["logs", "--app", "migrates", "--since", "1h"]);
    assert_eq!(log.matches("migrating to v1").count(), 1, "{log}");

    let failing = MIGRATES.replace("CODE = \"0\"", "CODE = \"3\"");
    let deployed = cluster.deploy(&failing, &cluster.image);
    assert_eq!(deployed.status, 1, "{}{}", deployed.stdout, deployed.stderr);
    for part in [
        "with the release command of web",
        "failed: the app ended: exit code 3",
        "migrating to v2",
    ] {
        assert!(deployed.stderr.contains(part), "{}", deployed.stderr);
    }
    assert_eq!(ids(), first);
}

const SLEEPER: &str = r#"
app = "sleeper"
[processes.web]
command = ["/bin/sleep", "100000"]
[processes.web.resources]
memory = "128MiB"
[processes.web.deploy]
min_healthy = "1s"
"#;

#[test]
fn case_a_release_of_which_nothing_runs_says_so() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let hint = "nothing of it runs, because all its processes are scaled to 0";
    let first = cluster.deploy(SLEEPER, &cluster.image);
    assert!(
        first.status == 0 && !first.stderr.contains(hint),
        "{}",
        first.stderr
    );
    cluster.ok(&["scale", "--app", "sleeper", "web=0"]);
    let second = cluster.deploy(&format!("{SLEEPER}[env]\nA = \"1\"\n"), &cluster.image);
    assert!(
        second.status == 0 && second.stderr.contains(hint),
        "{}",
        second.stderr
    );
}

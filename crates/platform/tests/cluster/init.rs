//! Images whose own init insists on being PID 1.

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

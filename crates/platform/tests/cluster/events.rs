//! `platform events -f` beside a rollout, and `platform why` of an instance that was replaced and of one that finds no node.

use std::fs::File;

use serde_json::Value;

use super::harness::{Cluster, wait_for};

/// Dead once there is a file.
const MORTAL: &str = r#"
app = "mortal"
[processes.web]
command = ["/bin/sleep", "100000"]
[processes.web.resources]
memory = "128MiB"
[processes.web.liveness]
type = "command"
command = ["/bin/sh", "-c", "! test -e /tmp/dead"]
interval = "1s"
timeout = "5s"
unhealthy = 2
[processes.web.deploy]
min_healthy = "1s"
"#;

/// No node is there.
const HOMELESS: &str = r#"
app = "homeless"
[processes.web]
command = ["/bin/sleep", "100000"]
region = "the-moon"
[processes.web.resources]
memory = "128MiB"
"#;

#[test]
fn case_events_follow_a_rollout_and_why_tells_of_what_was_replaced_and_what_finds_no_node() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let told = cluster.path("events.json");
    let follower = cluster.start_cli(
        &["events", "--all", "-f", "--format", "json"],
        File::create(&told).unwrap(),
    );
    let events = || -> Vec<Value> {
        let text = std::fs::read_to_string(&told).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let of_mortal = |kind: &str| {
        let events = events().into_iter();
        events
            .filter(|event| event["app"] == "mortal" && event["kind"] == kind)
            .collect::<Vec<_>>()
    };
    let deployed = cluster.deploy(MORTAL, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    wait_for("the event of the end of the rollout", || {
        of_mortal("release-rolled-out").len() == 1
    });
    let numbers: Vec<_> = events()
        .iter()
        .map(|event| event["number"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let by = &of_mortal("release-deployed")[0]["by"];
    assert_eq!(
        (&by["kind"], &by["name"]),
        (&"user".into(), &"admin".into())
    );
    for kind in ["instance-scheduled", "instance-started", "instance-ready"] {
        assert_eq!(of_mortal(kind).len(), 1, "{kind}: {:?}", events());
    }

    // By its probe.
    let ready = of_mortal("instance-ready");
    let first = ready[0]["instance"].as_str().unwrap();
    cluster.ok(&["exec", first, "--", "/bin/touch", "/tmp/dead"]);
    wait_for("the event of its end", || {
        let stopped = of_mortal("instance-stopped");
        stopped.iter().any(|event| event["instance"] == first)
    });
    let why = cluster.ok(&["why", first]);
    for part in [
        &format!("instance {first} of mortal/prod web: gone since "),
        "it was terminated: the liveness check failed 2 times in a row",
        "Release: v1, deployed at ",
        " by admin, rolled out",
        "Node: ",
        "instance-scheduled",
        "instance-unhealthy",
        "instance-stopped",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let why = cluster.json(&["why", first]);
    assert_eq!(why["subject"]["id"], first);
    let only = cluster.ok(&["events", "--instance", first]);
    assert_eq!(
        only.lines().count(),
        why["events"].as_array().unwrap().len()
    );
    wait_for("another in its place", || {
        cluster
            .ok(&["why", "mortal/prod/web"])
            .contains("1 of 1 ready")
    });

    // What finds no node.
    let file = cluster.path("homeless.toml");
    std::fs::write(&file, HOMELESS).unwrap();
    let file = file.to_str().unwrap();
    cluster.ok(&["deploy", file, "--image", &cluster.image, "--no-wait"]);
    wait_for("why it finds no node", || {
        let why = cluster.ok(&["why", "web", "--app", "homeless"]);
        why.contains("process web of homeless/prod: 0 of 1 ready")
            && why.contains("no node can take it")
            && why.contains(", not in the-moon")
    });

    // The node, and what is not there.
    let nodes = cluster.json(&["nodes"]);
    let (id, name) = (
        nodes[0]["id"].as_str().unwrap(),
        nodes[0]["name"].as_str().unwrap(),
    );
    let why = cluster.ok(&["why", name]);
    assert!(
        why.contains(&format!("node {name} ({id}): online")),
        "{why}"
    );
    let nothing = cluster.cli(&["why", "nothing-of-this-name"]);
    assert_eq!(nothing.status, 1);
    assert!(
        nothing
            .stderr
            .contains("there is no instance, process type or node `nothing-of-this-name`"),
        "{}",
        nothing.stderr
    );
    let unknown = cluster.cli(&["events", "--kind", "nod"]);
    assert_eq!(unknown.status, 1);
    assert!(
        unknown.stderr.contains("`nod` is not a kind of events"),
        "{}",
        unknown.stderr
    );
    drop(follower);
}

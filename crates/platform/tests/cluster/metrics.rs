//! What each role tells who watches it, held against its page and Prometheus' own rules.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Cluster, get, wait_for};

const PAGE: &str = include_str!("../../../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../../../docs/grafana.json");

/// The names that the page describes, `platform_ROLE_NAME` of this role and those that every role has.
fn documented(role: &str) -> BTreeSet<String> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| row.split(['`', '{']).next());
    // Other tables have paths and expressions there.
    let is_name = |name: &&str| {
        let begins = ["platform_", "process_"].iter();
        begins.clone().any(|begin| name.starts_with(begin))
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let of_the_role = |name: &&str| {
        let of_a_role = ["server", "node", "edge"].map(|role| format!("platform_{role}_"));
        name.starts_with(&format!("platform_{role}_"))
            || !of_a_role.iter().any(|prefix| name.starts_with(prefix))
    };
    names
        .filter(is_name)
        .filter(of_the_role)
        .map(str::to_owned)
        .collect()
}

fn scrape(cluster: &Cluster, role: &str) -> String {
    let (status, body) = get(cluster.metrics(role), "metrics", "/metrics");
    assert_eq!(status, 200);
    String::from_utf8(body).unwrap()
}

/// The value of the series that is written like this.
fn value(text: &str, series: &str) -> u64 {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

fn check_by_promtool(role: &str, text: &str) {
    let promtool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin/promtool");
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let said = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{role}: {errors}\n{text}");
}

/// The example's app is served.
pub(crate) fn case_each_role_tells_what_it_does(cluster: &Cluster) {
    for role in ["server", "node", "edge"] {
        let text = scrape(cluster, role);
        check_by_promtool(role, &text);
        let told = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
        let told = told.filter_map(|line| line.split(' ').next());
        let told: BTreeSet<_> = told.map(str::to_owned).collect();
        assert_eq!(told, documented(role), "docs/metrics.md and the {role}");
        let ready = get(cluster.metrics(role), "metrics", "/readyz");
        assert_eq!(ready, (200, b"ok\n".to_vec()), "{role}");
        assert_eq!(get(cluster.metrics(role), "metrics", "/healthz").0, 200);
        assert_eq!(get(cluster.metrics(role), "metrics", "/nothing").0, 404);
    }
    let server = scrape(cluster, "server");
    assert_eq!(value(&server, "platform_server_leading"), 1);
    let online = "platform_server_nodes{state=\"online\"}";
    assert_eq!(value(&server, online), 1, "{server}");
    let ready = "instances{state=\"ready\"}";
    let of_server = format!("platform_server_{ready}");
    wait_for("the server to count three that are ready", || {
        value(&scrape(cluster, "server"), &of_server) == 3
    });
    let node = scrape(cluster, "node");
    assert_eq!(value(&node, &format!("platform_node_{ready}")), 3);
    let boots = "platform_node_boots_total{outcome=\"success\"}";
    assert!(value(&node, boots) >= 3, "{node}");
    assert!(value(&node, "platform_node_image_pulled_bytes_total") > 0);
    let requests = "platform_edge_requests_total{app=\"hello\",env=\"prod\",status=\"2xx\"}";
    let before = value(&scrape(cluster, "edge"), requests);
    assert_eq!(cluster.get("/healthz").0, 200);
    assert_eq!(value(&scrape(cluster, "edge"), requests), before + 1);
    // Who asks for hosts that nobody has makes no series.
    get(cluster.edge(), "other.localhost", "/");
    let edge = scrape(cluster, "edge");
    assert!(!edge.contains("other.localhost"));
    let unrouted = "platform_edge_unrouted_requests_total{reason=\"unknown_host\"}";
    assert!(value(&edge, unrouted) >= 1, "{edge}");
}

#[test]
fn the_dashboard_shows_metrics_that_there_are() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    let known: BTreeSet<_> = (["server", "node", "edge"].iter())
        .flat_map(|role| documented(role))
        .collect();
    let is_known = |name: &str| {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        known.contains(name) || family.is_some_and(|family| known.contains(family))
    };
    let targets = panels.iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().unwrap();
        targets
            .iter()
            .map(|target| target["expr"].as_str().unwrap())
    });
    for expression in targets {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<_> = words.filter(|word| word.starts_with("platform_")).collect();
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            assert!(
                is_known(name),
                "{name} of {expression} is not in docs/metrics.md"
            );
        }
    }
}

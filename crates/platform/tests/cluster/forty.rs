//! Forty instances at once on few processors: a measurement (`make bench`).
#![allow(clippy::print_stdout, reason = "a measurement prints its results")]

use std::time::Instant;

use crate::harness::Cluster;

/// Instances that are wanted at once.
const COUNT: usize = 40;
/// Longest time until all run: under TCG each boot takes a processor for some seconds.
const PATIENCE_SECONDS: u64 = 900;

const APP: &str = r#"
app = "forty"
[processes.idle]
command = ["/usr/bin/hello", "worker"]
[processes.idle.resources]
cpu = 0.01
memory = "128MiB"
scratch = "64MiB"
[processes.idle.scaling]
min = 40
max = 40
"#;

#[test]
#[ignore = "a measurement, and some 9 GiB of memory: make bench"]
fn forty_instances_started_at_once_all_run_by_their_first_boot() {
    let Some(cluster) = Cluster::start_with(&["--memory", "64GiB"]) else {
        return;
    };
    let begun = Instant::now();
    let deployed = cluster.deploy(APP, &cluster.image);
    let said = format!("{}{}", deployed.stdout, deployed.stderr);
    while cluster.ready("idle").len() < COUNT {
        assert!(begun.elapsed().as_secs() < PATIENCE_SECONDS, "{said}");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let took = begun.elapsed().as_secs_f64();
    let log = cluster.log("node");
    let boots = log.matches("to=booting").count();
    let missed = log.matches("from=booting to=backoff").count();
    println!(
        "{COUNT} instances started at once: all run after {took:.0} s, by {boots} boots, {missed} of them missed  (goal {COUNT} boots)"
    );
    for row in cluster.instances() {
        assert_eq!(row["report"]["restarts"], 0, "{row}");
    }
    assert_eq!((boots, missed), (COUNT, 0), "{said}");
    cluster.down();
}

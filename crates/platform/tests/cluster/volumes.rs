//! What outlives an instance: its volume, over a killed VMM, a new release and a destroyed env.

use serde_json::Value;

use crate::harness::{Cluster, vmm, wait_for};
use crate::sigkill;

/// Counts its starts on its volume, which belongs to its user.
const COUNTER: &str = r#"
app = "counter"
[processes.count]
user = "hello"
command = ["/bin/sh", "-c", "cd /mnt/volumes/data && echo >>starts && sync && echo start $(wc -l <starts) of $(id -un) && exec sleep 1000"]
[processes.count.resources]
memory = "128MiB"
[processes.count.scaling]
min = 1
max = 2
[[processes.count.volumes]]
name = "data"
size = "64MiB"
"#;

fn volumes(cluster: &Cluster) -> Vec<Value> {
    cluster.json(&["volumes"]).as_array().unwrap().clone()
}

#[test]
fn a_volume_outlives_its_instance_and_goes_on_request() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let starts = |number: u32| {
        wait_for("its line", || {
            let lines = cluster.ok(&["logs", "--app", "counter"]);
            lines.contains(&format!("start {number} of hello"))
        });
    };
    let deployed = cluster.deploy(COUNTER, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    starts(1);
    let made = volumes(&cluster);
    assert_eq!((made.len(), &made[0]["name"]), (1, &"data".into()));

    let [first] = &cluster.ready("count")[..] else {
        panic!("one instance is wanted");
    };
    assert_eq!(made[0]["instance"], first.as_str());
    sigkill(vmm(first));
    starts(2);

    // The new release's instance gets it when the old one is gone.
    let deployed = cluster.deploy(COUNTER, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let second = cluster.ready("count");
    assert!(second.len() == 1 && second[0] != *first);
    starts(3);
    let id = made[0]["id"].as_str().unwrap();
    let refused = cluster.cli(&["volumes", "delete", id, "--yes"]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains(&second[0]), "{}", refused.stderr);

    cluster.ok(&["destroy", "--app", "counter", "--yes"]);
    assert_eq!(volumes(&cluster)[0]["id"], id);
    let deployed = cluster.deploy(COUNTER, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    starts(4);
    cluster.ok(&["destroy", "--app", "counter", "--yes", "--volumes"]);
    assert!(volumes(&cluster).is_empty());
    cluster.down();
}

//! A volume outlives its instance: over a killed VMM, a new release and a destroyed env. Secrets reach the
//! instance only.

use std::os::unix::fs::{PermissionsExt as _, chown};

use serde_json::Value;

use crate::harness::{Cluster, vmm, vmm_of, wait_for};
use crate::sigkill;

/// Counts its starts on its volume, which belongs to its user, and tells its secret.
const COUNTER: &str = r#"
app = "counter"
[processes.count]
user = "hello"
secrets = ["door"]
command = ["/bin/sh", "-c", "cd /mnt/volumes/data && echo >>starts && sync && echo start $(wc -l <starts) of $(id -un), $(stat -c '%a %U' /run/secrets/door/KEY): $(cat /run/secrets/door/KEY) && exec sleep 1000"]
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
fn a_volume_outlives_its_instance_and_a_secret_reaches_it() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let starts = |cluster: &Cluster, number: u32, secret: &str| {
        let line = format!("start {number} of hello, 444 hello: {secret}");
        wait_for(&line, || {
            cluster.ok(&["logs", "--app", "counter"]).contains(&line)
        });
    };
    let refused = cluster.deploy(COUNTER, &cluster.image);
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.contains("platform secrets set"),
        "{}",
        refused.stderr
    );
    let set = ["secrets", "set", "door", "--app", "counter"];
    cluster.ok(&[&set[..], &["KEY=open-1"]].concat());
    let deployed = cluster.deploy(COUNTER, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    starts(&cluster, 1, "open-1");
    // Neither as text nor as bytes in JSON. (The app's own log, which has it, is left out.)
    for written in ["open-1", "111,112,101,110,45,49"] {
        assert!(!cluster.is_on_disk(written));
    }
    let made = volumes(&cluster);
    assert_eq!((made.len(), &made[0]["name"]), (1, &"data".into()));

    let [first] = &cluster.ready("count")[..] else {
        panic!("one instance is wanted");
    };
    assert_eq!(made[0]["instance"], first.as_str());
    // The agent keeps the secrets in memory, so it restarts the instance without the server.
    cluster.kill_role("server");
    let killed = vmm(first);
    sigkill(killed);
    wait_for("another VMM", || {
        vmm_of(first).is_some_and(|pid| pid != killed)
    });
    cluster.start_role("server");
    wait_for("the server", || cluster.cli(&["ps"]).status == 0);
    starts(&cluster, 2, "open-1");

    // The new release's instance gets the new secret, and the volume once the old instance is gone.
    cluster.ok(&[&set[..], &["KEY=open-2", "--deploy"]].concat());
    wait_for("the new release", || {
        let ready = cluster.ready("count");
        ready.len() == 1 && ready[0] != *first
    });
    starts(&cluster, 3, "open-2");
    let second = cluster.ready("count");
    let id = made[0]["id"].as_str().unwrap();
    let refused = cluster.cli(&["volumes", "delete", id, "--yes"]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains(&second[0]), "{}", refused.stderr);

    // An agent that starts while the server is away has no secrets: the instance waits to boot.
    cluster.kill_role("server");
    cluster.kill_role("node");
    sigkill(vmm(&second[0]));
    cluster.start_role("node");
    wait_for("the new agent", || {
        cluster.log("node").matches("the node is up").count() == 2
    });
    assert_eq!(vmm_of(&second[0]), None);
    cluster.start_role("server");
    wait_for("the server", || cluster.cli(&["ps"]).status == 0);
    starts(&cluster, 4, "open-2");

    cluster.ok(&["destroy", "--app", "counter", "--yes"]);
    assert_eq!(volumes(&cluster)[0]["id"], id);
    cluster.ok(&[&set[..], &["KEY=open-3"]].concat());
    let deployed = cluster.deploy(COUNTER, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    starts(&cluster, 5, "open-3");
    cluster.ok(&["destroy", "--app", "counter", "--yes", "--volumes"]);
    assert!(volumes(&cluster).is_empty());
    cluster.down();
}

/// Keeps its data where its image has a `VOLUME`, with a file and an owner of the image's there.
const KEEPER: &str = r#"
app = "keeper"
[processes.keep]
command = ["/bin/sh", "-c", "cd /srv/data && echo >>starts && sync && echo start $(wc -l <starts), $(cat seed), $(stat -c '%a %u:%g' .) && exec sleep 1000"]
[[processes.keep.volumes]]
name = "data"
size = "64MiB"
"#;

#[test]
fn case_a_volume_keeps_what_an_image_has_in_its_own_volume() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let files = |root: &std::path::Path| {
        let place = root.join("srv/data");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("seed"), "seeded").unwrap();
        for (path, mode) in [(root.join("srv"), 0o755), (place.clone(), 0o750)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        chown(place, Some(33), Some(34)).unwrap();
    };
    let image = cluster.push_changed("hello", &files, &["--config.volume", "/srv/data"]);
    let start = |number: u32| {
        let line = format!("start {number}, seeded, 750 33:34");
        wait_for(&line, || {
            cluster.ok(&["logs", "--app", "keeper"]).contains(&line)
        });
    };
    let restart = || {
        let [instance] = &cluster.ready("keep")[..] else {
            panic!("one instance is wanted");
        };
        sigkill(vmm(instance));
    };
    // Without a path, each start has the image's files again, and the deploy warns.
    let deployed = cluster.deploy(KEEPER, &image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let warning = "the image declares VOLUME /srv/data";
    assert!(deployed.stderr.contains(warning), "{}", deployed.stderr);
    start(1);
    restart();
    wait_for("a second first start", || {
        let logs = cluster.ok(&["logs", "--app", "keeper"]);
        logs.matches("start 1, seeded").count() == 2
    });
    // With it, the volume has the image's files and keeps the app's, over a restart and a release.
    let with_path = format!("{KEEPER}path = \"/srv/data\"\n");
    let deployed = cluster.deploy(&with_path, &image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    assert!(!deployed.stderr.contains(warning), "{}", deployed.stderr);
    wait_for("the third first start", || {
        let logs = cluster.ok(&["logs", "--app", "keeper"]);
        logs.matches("start 1, seeded").count() == 3
    });
    restart();
    start(2);
    cluster.deploy(&format!("{with_path}[env]\nV = \"2\"\n"), &image);
    start(3);
    let kept = ["exec", "--app", "keeper", "--process", "keep", "--"];
    let kept = cluster.ok(&[&kept[..], &["wc", "-l", "/mnt/volumes/data/starts"]].concat());
    assert_eq!(kept.trim(), "3 /mnt/volumes/data/starts");
    cluster.ok(&["destroy", "--app", "keeper", "--yes", "--volumes"]);
    cluster.down();
}

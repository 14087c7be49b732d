//! One app fills its node's disk: it alone is told so, and every request to another app is answered.

use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Cluster, manifest, vmm, vmm_of, wait_for};
use crate::hostile::Neighbour;

const MIB: u64 = 1 << 20;
/// The node's disk, in MiB.
const DISK_MIB: u64 = 2048;
/// What is left of it to the filler, in MiB, when others have taken theirs.
const LEFT_MIB: u64 = 48;

/// Once it may, it writes until no more fits, for ever.
const FILLER: &str = r#"
app = "filler"
[processes.fill]
user = "root"
command = ["/bin/sh", "-c", "until [ -e /go ]; do sleep 1; done; while :; do head -c 8388608 /dev/zero >>/fill && sync /fill && echo wrote || { rm -f /fill; echo refused; sleep 1; }; done"]
[processes.fill.resources]
memory = "128MiB"
scratch = "SCRATCH"
[processes.fill.scaling]
min = 1
"#;

/// What is free for the users of VMs.
fn free(folder: &Path) -> u64 {
    let system = statvfs(folder).unwrap();
    system.f_bavail * system.f_frsize
}

#[test]
fn case_an_app_that_fills_the_disk_is_told_so_and_its_neighbour_serves_every_request() {
    let prepare = |cluster: &mut Cluster| cluster.mount_small_disk("node", DISK_MIB);
    let Some(cluster) = Cluster::start_on(prepare) else {
        return;
    };
    // Disk is promised: of 2 GiB instances may have what the reserve and the images leave.
    let node = &cluster.json(&["nodes"])[0];
    let disk = |name: &str| node["hardware"]["disk"][name].as_u64().unwrap();
    let (total, reserved, images) = (
        disk("total_bytes"),
        disk("reserved_bytes"),
        disk("images_bytes"),
    );
    assert!(total > 1700 * MIB && total < DISK_MIB * MIB, "{node}");
    assert!(reserved >= 256 * MIB && images > 100 * MIB, "{node}");
    assert!(
        node["hardware"]["overhead"]["memory_bytes"]
            .as_u64()
            .unwrap()
            > 0
    );

    let small = "memory = \"128MiB\"\nscratch = \"64MiB\"";
    let web = manifest(&[(
        "memory = \"128MiB\"\n\n[processes.web.s",
        &format!("{small}\n\n[processes.web.s"),
    )]);
    let web = web.replace(
        "memory = \"128MiB\"\n\n[processes.worker.s",
        &format!("{small}\n\n[processes.worker.s"),
    );
    let deployed = cluster.deploy(&web, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    cluster.wait_until_served();
    let good = cluster.ready("web");
    let good_vmms: Vec<_> = good.iter().map(|id| vmm(id)).collect();

    // More than there is cannot be placed, as with memory.
    let file = cluster.path("large.toml");
    std::fs::write(&file, FILLER.replace("SCRATCH", "1536MiB")).unwrap();
    cluster.ok(&[
        "deploy",
        file.to_str().unwrap(),
        "--image",
        &cluster.image,
        "--no-wait",
    ]);
    wait_for("the reason why it is not placed", || {
        let log = cluster.log("server");
        log.contains("MiB of disk are needed for scratch disk, new volumes and logs")
    });
    let deployed = cluster.deploy(&FILLER.replace("SCRATCH", "512MiB"), &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let [filler] = &cluster.ready("fill")[..] else {
        panic!("one filler is wanted");
    };
    let row = |id: &str| {
        let rows = cluster.instances();
        rows.into_iter().find(|row| row["id"] == id).unwrap()
    };
    let detail = |id: &str| row(id)["report"]["detail"].as_str().unwrap().to_owned();
    // Its page writes a file, in blocks of its disk that the node may have no room for: nobody can promise those.
    let neighbour = Neighbour::asking(cluster.edge(), "/healthz");

    // Somebody else on the machine takes what was promised to guests.
    let folder = cluster.path("node");
    let others = cluster.path("node/others");
    let file = std::fs::File::create(&others).unwrap();
    let taken = free(&folder).saturating_sub(LEFT_MIB * MIB);
    fallocate(&file, FallocateFlags::empty(), 0, taken).unwrap();
    cluster.ok(&["exec", filler, "--", "/bin/touch", "/go"]);
    wait_for("the filler's disk to be full", || {
        detail(filler).contains("its scratch disk fails on the node")
    });
    let full = detail(filler);
    assert!(full.contains("the node's disk is full"), "{full}");
    let log = cluster.ok(&["logs", "--app", "filler", "--tail", "10000"]);
    assert!(log.contains("its scratch disk fails on the node"), "{log}");
    assert!(
        cluster
            .log("node")
            .contains("its scratch disk fails on the node")
    );
    // It runs on, and is not paused: a command runs beside it and beside its neighbour, and both have stats.
    for id in [filler, &good[0]] {
        cluster.ok(&["exec", id, "--", "/bin/true"]);
    }
    let stats = cluster.json(&["top"]);
    for row in stats.as_array().unwrap() {
        assert!(row["stats"].is_object(), "{row}");
    }

    // There is room again, and the same guest writes again.
    std::fs::remove_file(&others).unwrap();
    drop(file);
    let wrote = |log: &str| log.matches(" wrote").count();
    let before = wrote(&cluster.ok(&["logs", "--app", "filler", "--tail", "10000"]));
    wait_for("the filler to write again", || {
        let log = cluster.ok(&["logs", "--app", "filler", "--tail", "10000"]);
        wrote(&log) > before + 4
    });
    assert_eq!(row(filler)["report"]["restarts"], 0);

    // A VMM that is stopped is not ready, although nothing probes it, and is ended after a while.
    let stopped = Pid::from_raw(vmm(filler)).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    wait_for("the stopped VMM to be noticed", || {
        let report = row(filler)["report"].clone();
        let detail = report["detail"].as_str().unwrap_or_default();
        report["ready"] == false && detail.contains("has not answered")
    });
    wait_for("the stopped VMM to be replaced", || {
        let row = row(filler);
        row["report"]["restarts"] == 1 && row["report"]["ready"] == true
    });
    assert_ne!(vmm_of(filler), Some(stopped.as_raw_nonzero().get()));

    let (answers, slowest) = neighbour.stop();
    eprintln!(
        "{answers} requests to the neighbour, each answered by 200, the slowest in {slowest:?}"
    );
    assert_eq!(cluster.ready("web"), good);
    let vmms: Vec<_> = good.iter().map(|id| vmm(id)).collect();
    assert_eq!(vmms, good_vmms);
    for id in &good {
        assert_eq!(row(id)["report"]["restarts"], 0);
    }
    cluster.down();
}

//! A node on its bad days: what other users and a VMM that was taken over can read, parts of the network that somebody
//! removed, records that cannot be read, a reboot, and an end by `node down` with all that.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;

use crate::harness::{Cluster, manifest, vmm, vmm_of, wait_for};
use crate::sigkill;

/// Counts its starts on its volume.
const COUNTER: &str = r#"
app = "counter"
[processes.count]
secrets = ["door"]
command = ["/bin/sh", "-c", "cd /mnt/volumes/data && echo >>starts && sync && echo start $(wc -l <starts) && exec sleep 100000"]
[processes.count.resources]
memory = "128MiB"
[[processes.count.volumes]]
name = "data"
size = "64MiB"
"#;
/// Fewest boots at a time that a node allows; else there is one for each processor.
const MIN_BOOTS_AT_A_TIME: usize = 2;

/// Everything below a folder, the folder too; symbolic links are not followed.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let path = found[at].clone();
        if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir())
            && let Ok(entries) = std::fs::read_dir(path)
        {
            found.extend(entries.flatten().map(|entry| entry.path()));
        }
        at += 1;
    }
    found
}

/// Folders and files below a folder that another user of the machine could use by their modes.
fn open_to_others(folder: &Path) -> Vec<String> {
    let open = |path: PathBuf| {
        // It may be gone by now.
        let metadata = std::fs::symlink_metadata(&path).ok()?;
        let mode = metadata.permissions().mode() & 0o7777;
        let counts = metadata.is_dir() || metadata.is_file();
        (counts && mode & 0o077 != 0).then(|| format!("{mode:04o} {}", path.display()))
    };
    everything(folder).into_iter().filter_map(open).collect()
}

fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The VMM of each instance.
fn vmms(cluster: &Cluster) -> BTreeMap<String, i32> {
    let ids = cluster.instances();
    let ids = ids.iter().map(|row| row["id"].as_str().unwrap().to_owned());
    ids.map(|id| (id.clone(), vmm(&id))).collect()
}

fn all_ready(cluster: &Cluster) -> bool {
    let rows = cluster.instances();
    rows.len() == 4 && rows.iter().all(|row| row["report"]["ready"] == true)
}

/// Starts the node's agent under a umask that opens everything.
fn start_node_open(cluster: &mut Cluster) {
    rustix::process::umask(Mode::empty());
    cluster.start_role("node");
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// What a process could open by a name: regular files in its own root that its user may read, outside of the programs'
/// folders and of `/proc`.
fn readable_by_name(pid: i32) -> Vec<String> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let programs = [
        "usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin", "proc", "dev",
    ];
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        let name = entry.file_name().to_str().unwrap().to_owned();
        if !programs.contains(&name.as_str()) {
            let files = everything(&entry.path()).into_iter();
            let files = files.filter(|path| std::fs::symlink_metadata(path).unwrap().is_file());
            found.extend(files.map(|path| path.display().to_string()));
        }
    }
    found
}

/// The files that a process has open.
fn open_files(pid: i32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = entries
        .flatten()
        .map(|entry| std::fs::read_link(entry.path()));
    links.flatten().filter(|to| to.is_absolute()).collect()
}

fn a_vmm_sees_its_own_only(cluster: &Cluster, id: &str) {
    let pid = vmm(id);
    let names = readable_by_name(pid);
    let linker = format!("/proc/{pid}/root/etc/ld.so.cache");
    let others: Vec<_> = names.iter().filter(|name| **name != linker).collect();
    assert!(others.is_empty(), "a VMM could read {others:?}");
    // No process but itself is in its /proc, and none of the machine's devices in its /dev.
    let inside = |folder: &str| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/root/{folder}")).unwrap();
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let devices = inside("dev");
    assert!(
        devices
            .iter()
            .all(|name| ["null", "urandom", "kvm"].contains(&name.as_str())),
        "{devices:?}"
    );
    // Its descriptors are those of its own disks, its console, the guest's kernel, and the image's shared root disk.
    let data = cluster.path("node");
    for file in open_files(pid) {
        let ours = file.starts_with(&data) || file.starts_with(cluster.path("run"));
        let text = file.display().to_string();
        let allowed = text.contains(id) || text.contains("/disks/") || text.contains("/volumes/");
        assert!(!ours || allowed, "a VMM of {id} has {text} open");
    }
    // And another instance's folder has no other name there.
    assert!(!Path::new(&format!("/proc/{pid}/root{}", data.display())).exists());
}

#[test]
fn case_a_node_on_its_bad_days_orphans_nothing() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    cluster.ok(&["secrets", "set", "door", "--app", "counter", "KEY=open-1"]);
    for (text, image) in [
        (COUNTER.to_owned(), &cluster.image),
        (manifest(&[]), &cluster.image),
    ] {
        let deployed = cluster.deploy(&text, image);
        assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    }
    cluster.wait_until_served();
    let before = vmms(&cluster);
    assert_eq!(before.len(), 4);
    let web = cluster.ready("web");
    let [data, run] = ["node", "run"].map(|name| cluster.path(name));

    // Other users of the machine.
    assert_eq!(open_to_others(&data), Vec::<String>::new());
    assert_eq!(open_to_others(&run), Vec::<String>::new());
    for id in &web {
        a_vmm_sees_its_own_only(&cluster, id);
    }
    // An installation of before, whose files anybody could read, is closed by the next agent, under any umask.
    cluster.kill_role("node");
    shell(&format!(
        "chmod -R a+rX '{}'; chmod a+rx '{}'",
        data.display(),
        run.display()
    ));
    assert!(!open_to_others(&data).is_empty());
    start_node_open(&mut cluster);
    wait_for("the folders to be closed", || {
        open_to_others(&data).is_empty()
    });
    assert!(
        cluster
            .log("node")
            .contains("closed what other users of this machine could read")
    );
    // The server's rows are of before until the node reports.
    wait_for("the agent to be up again", || {
        cluster.log("node").matches("the node is up").count() == 2
    });
    wait_for("all to be ready", || all_ready(&cluster));
    assert_eq!(
        vmms(&cluster),
        before,
        "a restart of the agent touches no VM"
    );

    the_network_is_mended(&mut cluster, &before);
    records_are_recovered(&mut cluster, &before);
    a_reboot_brings_everything_back(&mut cluster, &before);
    helpers_that_are_lost_are_noticed(&cluster);

    // The end, with what is left in disorder.
    cluster.kill_role("node");
    let ids: Vec<String> = vmms(&cluster).into_keys().collect();
    std::fs::write(run.join(&ids[0]).join("vm.json"), "{ half").unwrap();
    std::fs::remove_file(run.join(&ids[1]).join("vm.json")).unwrap();
    std::fs::remove_dir_all(run.join(&ids[2])).unwrap();
    another_nodes_run_folder_is_refused(&cluster);
    // It asserts that no process, link, namespace or mount is left.
    cluster.down();
}

/// The name of the node's network namespace.
fn namespace(cluster: &Cluster) -> String {
    let member = std::fs::read(cluster.path("node/member.json")).unwrap();
    let member: serde_json::Value = serde_json::from_slice(&member).unwrap();
    let prefix: std::net::Ipv6Addr = member["cluster_prefix"].as_str().unwrap().parse().unwrap();
    let [_, _, _, a, b, c, ..] = prefix.octets();
    let start = format!("platform-{a:02x}{b:02x}{c:02x}");
    let names = shell("ip netns list");
    let mut names = names.split_whitespace();
    names
        .find(|name| name.starts_with(&start))
        .unwrap()
        .to_owned()
}

/// The namespace's name is removed, then the link, while the agent runs and while it does not.
fn the_network_is_mended(cluster: &mut Cluster, before: &BTreeMap<String, i32>) {
    let name = namespace(cluster);
    // The agent may give it again between the two.
    let lose_name =
        format!("until umount /run/netns/{name} && rm /run/netns/{name}; do sleep 0.1; done");
    let lose_link = format!("ip link delete {}", name.replace("platform-", "plat-"));
    for (what, line) in [("name", &lose_name), ("link", &lose_link)] {
        shell(line);
        wait_for(&format!("the {what} to be mended"), || {
            cluster
                .log("node")
                .matches("somebody had removed a part")
                .count()
                > usize::from(what == "link")
        });
        wait_for("the app to be served again", || cluster.get("/").0 == 200);
    }
    cluster.kill_role("node");
    shell(&lose_name);
    shell(&lose_link);
    cluster.start_role("node");
    wait_for("the namespace to be found by a VM", || {
        cluster.log("node").contains("it has its name again")
    });
    wait_for("the app to be served again", || cluster.get("/").0 == 200);
    wait_for("all to be ready", || all_ready(cluster));
    assert_eq!(vmms(cluster), *before, "no VM was touched");
}

/// Records with a field more, damaged ones and lost ones: the VMs go on, and are the next agent's.
fn records_are_recovered(cluster: &mut Cluster, before: &BTreeMap<String, i32>) {
    let ids: Vec<&String> = before.keys().collect();
    let instance = |id: &str| {
        cluster
            .path("node/instances")
            .join(id)
            .join("instance.json")
    };
    let vm = |id: &str| cluster.path("run").join(id).join("vm.json");
    let files = [instance(ids[0]), vm(ids[1]), vm(ids[2]), instance(ids[3])];
    cluster.kill_role("node");
    // A field more, of a later agent.
    let mut value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    value["added"] = "later".into();
    value["spec"]["added"] = 7.into();
    std::fs::write(&files[0], value.to_string()).unwrap();
    std::fs::write(&files[1], "{\"version\": 1, ").unwrap();
    std::fs::remove_file(&files[2]).unwrap();
    let whole = std::fs::read(&files[3]).unwrap();
    std::fs::write(&files[3], "no JSON").unwrap();
    cluster.start_role("node");
    wait_for("three instances to be adopted", || {
        let ready = |row: &&serde_json::Value| row["report"]["ready"] == true;
        cluster.instances().iter().filter(ready).count() == 3
    });
    assert_eq!(vmms(cluster), *before);
    // The fourth is reported with the reason, and its VM goes on, until its record can be read.
    let row = cluster
        .instances()
        .into_iter()
        .find(|row| row["id"] == ids[3].as_str())
        .unwrap();
    let failure = row["report"]["failure"].as_str().unwrap();
    assert!(failure.contains("instance.json"), "{failure}");
    std::fs::write(&files[3], whole).unwrap();
    wait_for("all to be ready", || all_ready(cluster));
    assert_eq!(vmms(cluster), *before);
    for row in cluster.instances() {
        assert_eq!(row["report"]["restarts"], 0, "{row}");
    }
}

/// Every process is killed at once, and what does not outlive a machine is gone.
fn a_reboot_brings_everything_back(cluster: &mut Cluster, before: &BTreeMap<String, i32>) {
    cluster.kill_role("node");
    for pid in before.values() {
        sigkill(*pid);
    }
    for id in before.keys() {
        wait_for("the VM to be gone", || vmm_of(id).is_none());
    }
    let run = cluster.path("run");
    // Their vsock devices run in the run folder.
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let is_here = std::fs::read_link(process.path().join("cwd"));
        if is_here.is_ok_and(|cwd| cwd.starts_with(&run)) {
            sigkill(process.file_name().to_str().unwrap().parse().unwrap());
        }
    }
    std::fs::remove_dir_all(&run).unwrap();
    let name = namespace(cluster);
    // slirp4netns too: its command line has the namespace's path.
    shell(&format!(
        "for pid in $(ip netns pids {name}); do kill -9 $pid; done; ip netns delete {name}"
    ));

    cluster.start_role("node");
    let mut most = 0;
    wait_for("every instance to be ready again", || {
        let rows = cluster.instances();
        let booting = |row: &&serde_json::Value| row["report"]["state"] == "booting";
        most = most.max(rows.iter().filter(booting).count());
        // The server's rows are of before until the node reports.
        let again = |row: &serde_json::Value| row["report"]["restarts"] == 1;
        rows.iter().all(again) && all_ready(cluster)
    });
    let processors = std::thread::available_parallelism().unwrap().get();
    let bound = processors.max(MIN_BOOTS_AT_A_TIME);
    assert!(most <= bound, "{most} boots at a time");
    assert_eq!(
        vmms(cluster).keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    let log = cluster.ok(&["logs", "--app", "counter"]);
    assert!(log.contains("start 2"), "its volume came back: {log}");
    wait_for("the app to be served again", || cluster.get("/").0 == 200);
}

/// An instance without a health check, whose tap is removed and then whose vsock device is stopped: both are named, and it gets
/// what it lost by another boot.
fn helpers_that_are_lost_are_noticed(cluster: &Cluster) {
    let id = cluster.ready("worker").remove(0);
    let remove_tap = format!("ip -n {} link delete t{id}", namespace(cluster));
    let vsock = cluster.path("run").join(&id).join("vsock");
    let stop_device = format!(
        "for cwd in /proc/[0-9]*/cwd; do \
         if [ \"$(readlink $cwd)\" = '{}' ]; then kill -STOP $(basename $(dirname $cwd)); fi; done",
        vsock.display()
    );
    for (restarts, line, why) in [
        (2, remove_tap, "somebody removed its tap"),
        (3, stop_device, "its vsock device is stopped"),
    ] {
        shell(&line);
        wait_for("another boot", || {
            let rows = cluster.instances();
            let mut rows = rows.iter();
            rows.any(|row| {
                row["id"] == id.as_str()
                    && row["report"]["restarts"] == restarts
                    && row["report"]["ready"] == true
            })
        });
        assert!(cluster.log("node").contains(why), "{why}");
    }
}

/// `node down` with the data folder of another node, or of none, ends nothing here.
fn another_nodes_run_folder_is_refused(cluster: &Cluster) {
    let run = cluster.path("run");
    let before = vmms(cluster);
    let elsewhere = cluster.path("another-node");
    let mut down = cluster.command(&["node", "down", "--data-dir"]);
    let refused = down
        .arg(&elsewhere)
        .arg("--run-dir")
        .arg(&run)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("belongs to node"), "{said}");
    assert_eq!(vmms(cluster), before);
}

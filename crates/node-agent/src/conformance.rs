//! What every implementation of the traits of [`crate::host`] does: the real adapters of this crate and
//! the simulated host of crate `simulation` pass the same tests.
//!
//! A test is a function that panics where the implementation differs.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::enrollment::Hardware;
use api::node::{AgentSession, DriverChoice, NodeReport, ReportDelta};
use guest_protocol::{FrameBuffer, GuestFrame, LogRecord, Phase, Stream};
use model::instance::{AttachedVolume, EgressPolicy, PinnedImage, SecretBundle};
use model::{EnvKey, EnvNetwork, Generation, Incarnation, InstanceId, NodeId, Timestamp, VolumeId};
use node_core::report_sender::{Answered, ReportSender};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use crate::host::{
    Disks, EndedLogOwner, Files, GuestStream, Images, Logs, Network, NetworkProbe, Server,
    VmRequest, Vmm, endpoint_without_ports,
};

/// Time enough for a guest to boot on a busy machine without hardware virtualization.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// Files: whole replacement, listing, renaming and removal, below an empty folder.
pub async fn files(files: &dyn Files, folder: &Path) {
    let path = folder.join("instances/1/instance.json");
    assert_eq!(files.read(&path).await.unwrap(), None);
    assert!(
        files
            .list(&folder.join("instances"))
            .await
            .unwrap()
            .is_empty()
    );
    files.replace(&path, b"one".to_vec()).await.unwrap();
    files.replace(&path, b"two".to_vec()).await.unwrap();
    assert_eq!(files.read(&path).await.unwrap().unwrap(), b"two");
    let other = folder.join("instances/0/instance.json");
    files.replace(&other, b"other".to_vec()).await.unwrap();
    let names = files.list(&folder.join("instances")).await.unwrap();
    assert_eq!(names, ["0", "1"]);
    let aside = path.with_file_name("aside");
    files.rename(&path, &aside).await.unwrap();
    assert_eq!(files.read(&path).await.unwrap(), None);
    assert_eq!(files.read(&aside).await.unwrap().unwrap(), b"two");
    let error = files.rename(&path, &aside).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    for _ in 0..2 {
        files
            .remove_folder(&folder.join("instances/1"))
            .await
            .unwrap();
        assert_eq!(files.list(&folder.join("instances")).await.unwrap(), ["0"]);
    }
}

/// Files that cannot be: a folder is no file and a file no folder. What cannot be read is an error, and never taken for absent.
pub async fn files_that_cannot_be(files: &dyn Files, folder: &Path) {
    let file = folder.join("instances/1/instance.json");
    files.replace(&file, b"one".to_vec()).await.unwrap();
    files.read(&folder.join("instances")).await.unwrap_err();
    let below = file.join("deeper");
    files.replace(&below, b"two".to_vec()).await.unwrap_err();
    files
        .replace(&folder.join("instances"), b"two".to_vec())
        .await
        .unwrap_err();
    files.list(&file).await.unwrap_err();
    assert_eq!(files.read(&file).await.unwrap().unwrap(), b"one");
    files
        .remove_folder(&folder.join("instances"))
        .await
        .unwrap();
}

/// Files on a full disk: nothing is lost that was there, and nothing stays of what was not written. `set_full` fills the disk
/// of `folder`, and makes room again.
pub async fn files_on_a_full_disk(files: &dyn Files, folder: &Path, set_full: impl Fn(bool)) {
    let path = folder.join("instances/1/instance.json");
    files.replace(&path, b"one".to_vec()).await.unwrap();
    set_full(true);
    let large = vec![b'x'; 64 * 1024];
    let error = files.replace(&path, large.clone()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    assert_eq!(files.read(&path).await.unwrap().unwrap(), b"one");
    assert_eq!(
        files.list(&folder.join("instances/1")).await.unwrap(),
        ["instance.json"]
    );
    let aside = path.with_file_name("aside");
    files.rename(&path, &aside).await.unwrap();
    files.rename(&aside, &path).await.unwrap();
    set_full(false);
    files.replace(&path, large.clone()).await.unwrap();
    assert_eq!(files.read(&path).await.unwrap().unwrap(), large);
    set_full(true);
    files
        .remove_folder(&folder.join("instances/1"))
        .await
        .unwrap();
    set_full(false);
}

/// Disks on a full disk: each failure may pass, and leaves no disk behind.
pub async fn disks_on_a_full_disk(disks: &dyn Disks, set_full: impl Fn(bool)) {
    let id = InstanceId(0xc0f0);
    let volume = AttachedVolume {
        path: None,
        owner: None,
        id: VolumeId(0xda7a),
        name: "data".to_owned(),
        ordinal: 0,
        size_bytes: 16 << 20,
        made: false,
    };
    set_full(true);
    let error = disks.make_scratch(id, 16 << 20).await.unwrap_err();
    assert!(error.transient, "{error}");
    let error = disks.prepare_volume(volume.clone()).await.unwrap_err();
    assert!(error.transient, "{error}");
    assert!(disks.list_volumes().await.unwrap().is_empty());
    disks.remove_scratch(id).await.unwrap();
    set_full(false);
    disks.make_scratch(id, 16 << 20).await.unwrap();
    disks.prepare_volume(volume).await.unwrap();
    assert_eq!(disks.list_volumes().await.unwrap(), [VolumeId(0xda7a)]);
    set_full(true);
    disks.remove_volume(VolumeId(0xda7a)).await.unwrap();
    disks.remove_scratch(id).await.unwrap();
    set_full(false);
}

/// Logs on a full disk: a record that is not written is not acknowledged, so that the guest sends it again.
pub async fn logs_on_a_full_disk(logs: &dyn Logs, set_full: impl Fn(bool)) {
    let id = InstanceId(0xc0f0);
    let log = logs.open(id, "web".parse().unwrap()).await.unwrap();
    let record = |seq: u64| LogRecord {
        seq,
        at_nanos: 0,
        stream: Stream::Stdout,
        partial: false,
        dropped: 0,
        line: vec![b'a' + u8::try_from(seq).unwrap(); 16 * 1024],
    };
    let now = Timestamp(10);
    assert_eq!(log.append(now, vec![record(1)]).await.unwrap(), 1);
    set_full(true);
    let error = log.append(now, vec![record(2)]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    set_full(false);
    assert_eq!(log.append(now, vec![record(2)]).await.unwrap(), 2);
    let texts: Vec<String> = log.tail(10).await;
    let first: Vec<_> = texts.iter().map(|text| &text[..1]).collect();
    assert_eq!(first, ["b", "c"]);
}

/// Disks: scratch disks come and go, volumes are made once and stay until they are removed.
pub async fn disks(disks: &dyn Disks) {
    let id = InstanceId(0xc0f0);
    let scratch = disks.make_scratch(id, 16 << 20).await.unwrap();
    assert_eq!(disks.make_scratch(id, 16 << 20).await.unwrap(), scratch);
    for _ in 0..2 {
        disks.remove_scratch(id).await.unwrap();
    }
    let volume = |made| AttachedVolume {
        path: None,
        owner: None,
        id: VolumeId(0xda7a),
        name: "data".to_owned(),
        ordinal: 0,
        size_bytes: 16 << 20,
        made,
    };
    assert!(disks.list_volumes().await.unwrap().is_empty());
    let lost = disks.prepare_volume(volume(true)).await.unwrap_err();
    assert!(!lost.transient, "{lost}");
    let path = disks.prepare_volume(volume(false)).await.unwrap();
    for made in [false, true] {
        assert_eq!(disks.prepare_volume(volume(made)).await.unwrap(), path);
    }
    assert_eq!(disks.list_volumes().await.unwrap(), [VolumeId(0xda7a)]);
    let measured = disks.measure().await.unwrap().disk;
    assert!(measured.total_bytes >= measured.instances_bytes());
    disks.remove_volume(VolumeId(0xda7a)).await.unwrap();
    assert!(disks.list_volumes().await.unwrap().is_empty());
}

/// Logs: records are written once, in order, and survive the one who opened the log.
pub async fn logs(logs: &dyn Logs) {
    let id = InstanceId(0xc0f0);
    let process = || "web".parse().unwrap();
    let record = |seq: u64, text: &str| LogRecord {
        seq,
        at_nanos: 0,
        stream: Stream::Stdout,
        partial: false,
        dropped: 0,
        line: text.as_bytes().to_vec(),
    };
    let now = Timestamp(10);
    let log = logs.open(id, process()).await.unwrap();
    log.begin_boot(Timestamp(1), "start 1".to_owned())
        .await
        .unwrap();
    let two = vec![record(1, "a"), record(2, "b")];
    assert_eq!(log.append(now, two).await.unwrap(), 2);
    drop(log);
    let log = logs.open(id, process()).await.unwrap();
    let again = vec![record(2, "b"), record(3, "c")];
    assert_eq!(log.append(now, again).await.unwrap(), 3);
    log.note(now, "ended".to_owned()).await.unwrap();
    assert_eq!(log.tail(10).await, ["a", "b", "c", "ended"]);
    assert_eq!(log.tail(2).await, ["c", "ended"]);
    log.begin_boot(Timestamp(11), "start 2".to_owned())
        .await
        .unwrap();
    assert_eq!(
        log.append(Timestamp(12), vec![record(1, "d")])
            .await
            .unwrap(),
        1
    );
    assert_eq!(log.tail(10).await, ["d"]);

    // The instance is gone: its log is kept elsewhere, and another of its id begins with none.
    let owner = EndedLogOwner {
        id,
        env: EnvKey {
            app: "shop".parse().unwrap(),
            env: "prod".parse().unwrap(),
        },
        process: process(),
        ended_at: Timestamp(13),
    };
    drop(log);
    for _ in 0..2 {
        logs.keep(owner.clone()).await.unwrap();
    }
    logs.tidy(Timestamp(14)).await;
    let log = logs.open(id, process()).await.unwrap();
    assert_eq!(log.tail(10).await, [""; 0]);
}

/// The network: taps come and go, rules are replaced as a whole.
pub async fn network(network: &dyn Network, id: InstanceId, address: std::net::Ipv6Addr) {
    let member = endpoint_without_ports(id, address, EgressPolicy::All);
    network.apply_rules(Vec::new()).await.unwrap();
    let nic = network.create_tap(member.clone()).await.unwrap();
    network.apply_rules(vec![member.clone()]).await.unwrap();
    drop(nic);
    for _ in 0..2 {
        network.release(id).await.unwrap();
    }
    drop(network.create_tap(member.clone()).await.unwrap());
    network.release(id).await.unwrap();
    network.apply_rules(Vec::new()).await.unwrap();
    let probe = crate::host::NetworkProbe::Tcp { port: 8080 };
    let answer = timeout(Duration::from_secs(5), network.probe(address, probe)).await;
    assert!(!matches!(answer, Ok(Ok(()))), "nothing listens there");
}

/// A health check: what answers at this address passes it, and what does not fails it.
pub async fn probes(
    network: &dyn Network,
    address: std::net::Ipv6Addr,
    good: &[NetworkProbe],
    bad: &[NetworkProbe],
) {
    for probe in good {
        let answer = network.probe(address, probe.clone()).await;
        assert_eq!(answer, Ok(()), "{probe:?}");
    }
    for probe in bad {
        let reason = network.probe(address, probe.clone()).await.unwrap_err();
        assert!(!reason.is_empty(), "{probe:?}");
    }
}

/// Egress: without an uplink it is missing for now, with one it runs until somebody ends it, and is made again. `set_uplink`
/// gives the machine an uplink or takes it, `end` ends what provides the egress.
pub async fn egress(network: &dyn Network, set_uplink: impl Fn(bool), end: impl Fn()) {
    set_uplink(false);
    let Err(error) = network.ensure_egress().await else {
        panic!("there is egress without an uplink");
    };
    assert!(error.transient, "{error}");
    set_uplink(true);
    for _ in 0..2 {
        let first = network.ensure_egress().await.unwrap();
        // Another call leaves it as it is.
        let egress = network.ensure_egress().await.unwrap();
        assert!(!egress.reason.is_empty());
        for ended in [first.ended, egress.ended] {
            let waited = timeout(Duration::from_millis(100), ended).await;
            assert!(waited.is_err(), "it ended by itself");
        }
        let egress = network.ensure_egress().await.unwrap();
        end();
        timeout(Duration::from_secs(10), egress.ended)
            .await
            .unwrap();
    }
}

/// The secret bundles of an instance of this node.
pub async fn secrets(server: &dyn Server, id: InstanceId, bundles: &[SecretBundle]) {
    assert!(!bundles.is_empty());
    for _ in 0..2 {
        assert_eq!(server.secrets(id).await.unwrap(), bundles);
    }
    let other = InstanceId(id.0 ^ 1);
    let refused = server.secrets(other).await.unwrap_err();
    assert!(!refused.transient, "{refused}");
}

/// Images: `good` is there and becomes a root disk, `unknown` is not in its registry.
pub async fn images(images: &dyn Images, good: &PinnedImage, unknown: &PinnedImage) {
    let refused = images.prepare(unknown, &|_| ()).await.unwrap_err();
    assert!(!refused.transient, "{refused}");
    let pin = images.pin(&good.digest);
    let first = images.prepare(good, &|_| ()).await.unwrap();
    let again = images.prepare(good, &|_| ()).await.unwrap();
    assert_eq!(first.disk, again.disk);
    assert_eq!(first.config, again.config);
    assert!(!first.config.cmd.is_empty());
    images.set_pinned(vec![good.digest.clone()]);
    images.tidy().await;
    images.make_room().await;
    drop(pin);
    images.tidy().await;
    assert_eq!(
        images.prepare(good, &|_| ()).await.unwrap().disk,
        first.disk
    );
}

/// The server, with a node that has nothing: a desired state comes when it supersedes the one that the node has.
pub async fn server(server: &dyn Server, node: NodeId, hardware: Hardware) {
    let report = |generation| NodeReport {
        generation,
        driver: DriverChoice {
            name: "test".to_owned(),
            reason: "a test".to_owned(),
        },
        egress: None,
        hardware: hardware.clone(),
        instances: Vec::new(),
        volumes: Vec::new(),
        highest_network: EnvNetwork::default(),
        images: Vec::new(),
    };
    // A node of another incarnation, far ahead: it gets ours at once.
    let other = Generation {
        incarnation: Incarnation(u64::MAX),
        counter: 1 << 40,
    };
    let mut sender = ReportSender::new(AgentSession(1));
    let first_report = sender.next(&report(other));
    let answer = server.report(first_report.clone()).await.unwrap();
    assert_eq!(sender.answered(answer), Answered::Applied);
    // Again, as when the answer was lost: it changes nothing, and is answered alike.
    assert_eq!(server.report(first_report).await.unwrap(), answer);
    let first = server.desired(other, BOOT_PATIENCE).await.unwrap().unwrap();
    let wait = Duration::from_millis(200);
    let none = server.desired(first.generation, wait).await.unwrap();
    assert_eq!(none, None);
    // One that is ahead in ours: the store went back, and the counter jumps past the node's.
    let ahead = Generation {
        counter: first.generation.counter + 1000,
        ..first.generation
    };
    let none = server.desired(ahead, wait).await.unwrap();
    assert_eq!(none, None);
    let difference = sender.next(&report(ahead));
    assert!(!difference.whole && difference.hardware.is_none());
    let answer = server.report(difference).await.unwrap();
    assert_eq!(sender.answered(answer), Answered::Applied);
    // A gap: the server wants all.
    let gap = ReportDelta {
        sequence: answer.sequence + 2,
        session: answer.session,
        ..ReportDelta::default()
    };
    assert!(server.report(gap).await.unwrap().whole);
    let desired = server.desired(ahead, BOOT_PATIENCE).await.unwrap().unwrap();
    assert!(ahead.is_before(desired.generation));
    assert_eq!((desired.node, desired.instances.len()), (node, 0));
    let refused = server.secrets(InstanceId(0xc0f0)).await.unwrap_err();
    assert!(!refused.transient, "{refused}");
}

/// What a VM needs.
#[derive(Debug, Clone)]
pub struct VmParts {
    /// The instance.
    pub id: InstanceId,
    /// Its address.
    pub address: std::net::Ipv6Addr,
    /// A root disk.
    pub root: PathBuf,
    /// A scratch disk.
    pub scratch: PathBuf,
}

/// VMs: booted once, found again by whoever comes next, ended, and then gone.
pub async fn vmm(vmm: &dyn Vmm, network: &dyn Network, parts: &VmParts) {
    let id = parts.id;
    let member = endpoint_without_ports(id, parts.address, EgressPolicy::All);
    assert!(vmm.adopt(id).await.unwrap().is_none());
    assert_eq!(vmm.list().await.unwrap(), []);
    network.apply_rules(vec![member.clone()]).await.unwrap();
    let request = async |root: PathBuf| VmRequest {
        instance: id,
        cpu_millis: 100,
        memory_bytes: 256 << 20,
        root,
        disks: vec![parts.scratch.clone()],
        nic: network.create_tap(member.clone()).await.unwrap(),
    };

    // A boot that fails leaves nothing that runs.
    let missing = request(parts.root.with_file_name("missing")).await;
    vmm.boot(missing).await.unwrap_err();
    if let Some(vm) = vmm.adopt(id).await.unwrap() {
        timeout(BOOT_PATIENCE, vm.ended()).await.unwrap();
    }
    vmm.remove(id).await.unwrap();
    network.release(id).await.unwrap();

    let mut listener = vmm.listen(id).await.unwrap();
    let vm = vmm.boot(request(parts.root.clone()).await).await.unwrap();
    let stream = timeout(BOOT_PATIENCE, listener.accept()).await.unwrap();
    assert_eq!(hello(stream.unwrap()).await, Phase::Waiting);

    // The agent is replaced: its successor listens and finds the same VM, whose guest dials again.
    drop((vm, listener));
    let mut listener = vmm.listen(id).await.unwrap();
    assert_eq!(vmm.list().await.unwrap(), [id]);
    let vm = vmm.adopt(id).await.unwrap().unwrap();
    let stream = timeout(BOOT_PATIENCE, listener.accept()).await.unwrap();
    assert_eq!(hello(stream.unwrap()).await, Phase::Waiting);
    assert!(
        timeout(Duration::from_millis(100), vm.ended())
            .await
            .is_err()
    );

    assert_eq!(vm.health().borrow().stalled, None);
    vm.kill().await;
    timeout(BOOT_PATIENCE, vm.ended()).await.unwrap();
    vm.kill().await;
    for _ in 0..2 {
        vmm.remove(id).await.unwrap();
    }
    assert!(vmm.adopt(id).await.unwrap().is_none());
    assert_eq!(vmm.list().await.unwrap(), []);
    // A tap that outlives its VM is there until it is released.
    if vmm.leaves_tap() {
        network.release(id).await.unwrap();
    }
    drop(network.create_tap(member.clone()).await.unwrap());
    network.release(id).await.unwrap();
    network.apply_rules(Vec::new()).await.unwrap();
}

/// How far the guest says that it is.
async fn hello(mut stream: Box<dyn GuestStream>) -> Phase {
    let mut buffer = FrameBuffer::default();
    loop {
        if let Some(frame) = buffer.next::<GuestFrame>().unwrap() {
            let GuestFrame::Hello(hello) = frame else {
                panic!("the first frame is no hello: {frame:?}");
            };
            return hello.phase;
        }
        let mut chunk = [0; 4096];
        let count = timeout(BOOT_PATIENCE, stream.read(&mut chunk)).await;
        let count = count.unwrap().unwrap();
        assert!(count > 0, "the guest hung up");
        buffer.push(&chunk[..count]);
    }
}

//! The real adapters pass the conformance tests. Those of the network and of VMs need root, and run inside
//! namespaces of their own, so that the machine is never touched.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;

use api::enrollment::{EnrollRole, Hardware, Member};
use api::user::CreateTokenRequest;
use api_client::{ApiClient, ClientConfig};
use control_plane::ServerOptions;
use membership::{Applicant, Membership};
use microvm::GuestKernel;
use model::{Digest, InstanceId, NodeId};
use node_network::{Network, NetworkSettings};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{HostDisks, HostFiles, HostLogs, MicroVms, NodeNetwork};
use crate::conformance::{self, VmParts};
use crate::directory::Directory;
use crate::images::tests::Served;
use crate::node_disk::DiskMeter;
use crate::volumes::Volumes;

/// The one switch that leaves privileged tests out, on a machine where they cannot run.
const SKIP: &str = "PLATFORM_SKIP_PRIVILEGED_TESTS";
/// Set in the process that runs a test inside its namespaces.
const INSIDE: &str = "NODE_AGENT_TEST_INSIDE";
const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 1, 0, 0xc0f0);
const INSTANCE: InstanceId = InstanceId(0xc0f0);

#[tokio::test]
async fn files_of_the_machine_conform() {
    let dir = tempfile::tempdir().unwrap();
    conformance::files(&HostFiles, dir.path()).await;
}

#[tokio::test]
async fn disks_of_the_machine_conform() {
    let dir = tempfile::tempdir().unwrap();
    let instances = dir.path().join("instances");
    std::fs::create_dir_all(instances.join(INSTANCE.to_string())).unwrap();
    let volumes = Volumes::open(dir.path()).unwrap();
    let meter = DiskMeter::new(dir.path(), None).unwrap();
    conformance::disks(&HostDisks::new(instances, volumes, meter)).await;
}

#[tokio::test]
async fn logs_of_the_machine_conform() {
    let dir = tempfile::tempdir().unwrap();
    let ended = crate::ended_logs::EndedLogs::in_data_dir(dir.path());
    let logs = HostLogs {
        ended,
        instances_dir: dir.path().to_owned(),
        directory: Directory::default(),
    };
    conformance::logs(&logs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_cache_conforms() {
    let served = Served::start(1, 1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let images = served.open(dir.path(), 1 << 30);
    let mut unknown = served.images[0].clone();
    unknown.digest = Digest::from_sha256(&[9; 32]);
    conformance::images(&images, &served.images[0], &unknown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let (ready, answers) = oneshot::channel();
    let options = ServerOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        store: None,
        data_dir: dir.path().join("server"),
        names: Vec::new(),
        advertise: None,
        insecure_registries: std::collections::BTreeSet::new(),
        registry_mirrors: std::collections::BTreeMap::new(),
        ready: Some(ready),
    };
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(control_plane::run(options, shutdown.clone()));
    let ready = answers.await.unwrap();
    let admin = ApiClient::user(&ClientConfig::load(&ready.client_config).unwrap()).unwrap();
    let request = CreateTokenRequest {
        role: EnrollRole::Node,
        ttl_seconds: 60,
    };
    let hardware = Hardware {
        arch: "amd64".to_owned(),
        cpus: 1,
        memory_bytes: 1 << 30,
        ..Hardware::default()
    };
    let applicant = Applicant {
        role: EnrollRole::Node,
        server: Some(ready.url),
        token: Some(admin.create_token(&request).await.unwrap().token),
        name: "node-1".to_owned(),
        region: "local".to_owned(),
        hardware: hardware.clone(),
    };
    let joined = Membership::load_or_join(&dir.path().join("node"), &applicant).await;
    let membership = joined.unwrap();
    let Member::Node(node) = membership.member else {
        panic!("joined as {}", membership.member);
    };
    let client = membership.client().unwrap();
    conformance::server(&client, node, hardware).await;
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

/// Runs a test again inside namespaces of its own, as root.
fn isolated<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(SKIP).is_some() {
        eprintln!("SKIPPED: {SKIP} is set");
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(body());
        return;
    }
    // The vsock device of `make install` is not on everyone's PATH.
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    let mut path = tools.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .args(["sh", "-ec"])
        .arg("mount -t tmpfs tmpfs /run; ip link set lo up; exec \"$@\"")
        .arg("sh")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .env("PATH", path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "it needs root, `unshare`, `ip` and `nft`; {SKIP}=1 leaves it out:\n{told}"
    );
}

async fn network() -> NodeNetwork {
    let settings = NetworkSettings {
        suffix: "c0f01".to_owned(),
        cluster_prefix: PREFIX,
        node: NodeId(1),
        mtu: 1420,
    };
    NodeNetwork(Network::ensure(&settings).await.unwrap())
}

#[test]
fn the_network_of_the_machine_conforms() {
    isolated(
        "adapters::tests::the_network_of_the_machine_conforms",
        async || conformance::network(&network().await, INSTANCE, ADDRESS).await,
    );
}

#[test]
fn vms_of_the_machine_conform() {
    isolated("adapters::tests::vms_of_the_machine_conform", async || {
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
        let kernel = GuestKernel::in_directory(&guest)
            .unwrap_or_else(|error| panic!("{error}: cargo xtask guest makes it"));
        let choice = microvm::choose_driver(&microvm::probe().await, &kernel).unwrap();
        microvm::check_programs(choice.driver).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let disk = |name: &str| {
            let path = dir.path().join(name);
            root_disk::format_empty(&path, 16 << 20, "test").unwrap();
            path
        };
        let parts = VmParts {
            id: INSTANCE,
            address: ADDRESS,
            root: disk("root.ext4"),
            scratch: disk("scratch.ext4"),
        };
        let vms = MicroVms {
            driver: choice.driver,
            kernel,
            run_dir: dir.path().join("run"),
        };
        conformance::vmm(&vms, &network().await, &parts).await;
    });
}

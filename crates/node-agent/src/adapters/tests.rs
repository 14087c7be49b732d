//! The real adapters pass the conformance tests. Those of the network and of VMs need root, and run inside
//! namespaces of their own, so that the machine is never touched.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use api::enrollment::{EnrollRole, Hardware, Member};
use api::user::{CreateTokenRequest, DeployRequest, SetSecretsRequest};
use api_client::{ApiClient, ClientConfig};
use control_plane::ServerOptions;
use membership::{Applicant, Membership, UnderlayOptions};
use microvm::GuestKernel;
use model::instance::SecretBundle;
use model::{Digest, EnvKey, Generation, InstanceId, NodeId};
use node_network::{Network, NetworkSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{HostDisks, HostFiles, HostLogs, MicroVms, NodeNetwork};
use crate::conformance::{self, VmParts};
use crate::directory::Directory;
use crate::host::{HttpProbe, NetworkProbe};
use crate::images::tests::Served;
use crate::names::NodeNames;
use crate::node_disk::DiskMeter;
use crate::volumes::Volumes;

const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 1, 0, 0xc0f0);
const INSTANCE: InstanceId = InstanceId(0xc0f0);

#[tokio::test]
async fn files_of_the_machine_conform() {
    let dir = tempfile::tempdir().unwrap();
    conformance::files(&HostFiles, dir.path()).await;
}

#[tokio::test]
async fn files_of_the_machine_that_cannot_be_conform() {
    let dir = tempfile::tempdir().unwrap();
    conformance::files_that_cannot_be(&HostFiles, dir.path()).await;
}

/// Mounts a file system of 1 MiB, and gives what fills it and makes room again.
fn small_disk(dir: &Path) -> impl Fn(bool) {
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(dir)
        .status();
    assert!(mount.unwrap().success());
    let filler = dir.join("filler");
    move |full| {
        if full {
            let mut file = std::fs::File::create(&filler).unwrap();
            let chunk = [0; 4096];
            while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
        } else {
            std::fs::remove_file(&filler).unwrap();
        }
    }
}

#[test]
fn files_on_a_full_disk_of_the_machine_conform() {
    isolated(
        "adapters::tests::files_on_a_full_disk_of_the_machine_conform",
        async || {
            let dir = tempfile::tempdir().unwrap();
            let set_full = small_disk(dir.path());
            conformance::files_on_a_full_disk(&HostFiles, dir.path(), set_full).await;
        },
    );
}

#[test]
fn disks_on_a_full_disk_of_the_machine_conform() {
    isolated(
        "adapters::tests::disks_on_a_full_disk_of_the_machine_conform",
        async || {
            let dir = tempfile::tempdir().unwrap();
            let set_full = small_disk(dir.path());
            let instances = dir.path().join("instances");
            std::fs::create_dir_all(instances.join(INSTANCE.to_string())).unwrap();
            let volumes = Volumes::open(dir.path()).unwrap();
            let meter = DiskMeter::new(dir.path(), None).unwrap();
            let disks = HostDisks::new(instances, volumes, meter);
            conformance::disks_on_a_full_disk(&disks, set_full).await;
        },
    );
}

#[test]
fn logs_on_a_full_disk_of_the_machine_conform() {
    isolated(
        "adapters::tests::logs_on_a_full_disk_of_the_machine_conform",
        async || {
            let dir = tempfile::tempdir().unwrap();
            let set_full = small_disk(dir.path());
            let logs = HostLogs {
                ended: crate::ended_logs::EndedLogs::in_data_dir(dir.path()),
                instances_dir: dir.path().to_owned(),
                directory: Directory::default(),
            };
            conformance::logs_on_a_full_disk(&logs, set_full).await;
        },
    );
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
        metrics_listen: None,
        acme_dns_hook: None,
        ready: Some(ready),
    };
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(control_plane::run(options, shutdown.clone()));
    let ready = answers.await.unwrap();
    let admin = ApiClient::user(&ClientConfig::load(&ready.client_config).unwrap()).unwrap();
    let request = CreateTokenRequest::new(EnrollRole::Node, 60);
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
        // Not the usual port: a cluster of this machine may have it.
        underlay: UnderlayOptions {
            port: 40_008,
            advertise: None,
        },
    };
    let joined = Membership::load_or_join(&dir.path().join("node"), &applicant).await;
    let membership = joined.unwrap();
    let Member::Node(node) = membership.member else {
        panic!("joined as {}", membership.member);
    };
    let client = membership.client().unwrap();
    conformance::server(&client, node, hardware).await;
    let (id, bundle) = place_with_secrets(&admin, &client).await;
    conformance::secrets(&client, id, &[bundle]).await;
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

/// Deploys an app with a secret bundle, and waits until its instance is placed on this node.
async fn place_with_secrets(admin: &ApiClient, node: &ApiClient) -> (InstanceId, SecretBundle) {
    let served = Served::start(1, 1000);
    let env = EnvKey {
        app: "shop".parse().unwrap(),
        env: "prod".parse().unwrap(),
    };
    let files = BTreeMap::from([("KEY".to_owned(), b"of the bundle".to_vec())]);
    let set = SetSecretsRequest {
        set: files.clone(),
        unset: Vec::new(),
    };
    admin.set_secrets(&env, "database", &set).await.unwrap();
    let manifest = "app = \"shop\"\n[processes.web]\nsecrets = [\"database\"]\n";
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest.to_owned(),
        image: served.images[0].to_string(),
    };
    admin.deploy(&env, &request).await.unwrap();
    let mut after = Generation::default();
    loop {
        let desired = node.desired(after, Duration::from_secs(30)).await.unwrap();
        let desired = desired.expect("the instance is placed within 30 s");
        after = desired.generation;
        if let Some(spec) = desired.instances.first() {
            let name = "database".to_owned();
            return (spec.id, SecretBundle { name, files });
        }
    }
}

/// Runs a test again inside namespaces of its own, as root.
fn isolated<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    // The vsock device of `make install` is not on everyone's PATH.
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/bin");
    let setup = format!("export PATH=\"{tools}:$PATH\"");
    if test_namespaces::isolated_after(name, &setup, Duration::from_mins(5)) {
        tokio::runtime::Runtime::new().unwrap().block_on(body());
    }
}

async fn network() -> NodeNetwork {
    let settings = NetworkSettings {
        suffix: "c0f01".to_owned(),
        cluster_prefix: PREFIX,
        node: NodeId(1),
        mtu: 1420,
    };
    let network = Arc::new(Network::ensure(&settings).await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let names = NodeNames::load(settings.cluster_prefix, dir.path()).await;
    NodeNetwork {
        network,
        names,
        server: "https://203.0.113.9:7400".to_owned(),
    }
}

#[test]
fn the_network_of_the_machine_conforms() {
    isolated(
        "adapters::tests::the_network_of_the_machine_conforms",
        async || conformance::network(&network().await, INSTANCE, ADDRESS).await,
    );
}

#[test]
fn probes_of_the_machine_conform() {
    isolated(
        "adapters::tests::probes_of_the_machine_conform",
        async || {
            let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            // Whatever is asked for below `/healthz` is found.
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(async move {
                        let mut request = vec![0; 4096];
                        let count = stream.read(&mut request).await.unwrap_or_default();
                        let found = request[..count].starts_with(b"GET /healthz ");
                        let status = if found {
                            "200 OK"
                        } else {
                            "503 Service Unavailable"
                        };
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(answer.as_bytes()).await;
                    });
                }
            });
            let http = |path: &str| {
                NetworkProbe::Http(HttpProbe {
                    port,
                    path: path.to_owned(),
                    host: None,
                    headers: BTreeMap::new(),
                })
            };
            // A port that was free just now.
            let unused = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
            let closed = unused.local_addr().unwrap().port();
            drop(unused);
            let good = [NetworkProbe::Tcp { port }, http("/healthz")];
            let bad = [NetworkProbe::Tcp { port: closed }, http("/other")];
            conformance::probes(&network().await, Ipv6Addr::LOCALHOST, &good, &bad).await;
        },
    );
}

#[test]
fn egress_of_the_machine_conforms() {
    isolated(
        "adapters::tests::egress_of_the_machine_conforms",
        async || {
            let shell = |line: &str| {
                let status = Command::new("sh").args(["-ec", line]).status();
                assert!(status.unwrap().success(), "{line}");
            };
            // An uplink that leads nowhere is one.
            shell("ip link add dev wan type veth peer name lan; ip link set dev wan up");
            shell("ip link set dev lan up; ip addr add 192.0.2.2/24 dev wan");
            let set_uplink = |on| {
                if on {
                    shell("ip route add default via 192.0.2.1");
                }
            };
            // Its PID namespace has no other.
            let end = || shell("kill -9 $(pidof slirp4netns)");
            conformance::egress(&network().await, set_uplink, end).await;
        },
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

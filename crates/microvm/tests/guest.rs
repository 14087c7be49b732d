//! What a guest has besides its disks: vsock to the node, and the network.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_protocol::{Channel, FrameBuffer, GuestFrame, HOST_PORT, Phase};
use microvm::{GuestKernel, HowEnded, Nic, boot, listen_for_guest};
use model::{InstanceId, NodeId};
use node_network::{Endpoint, Network, NetworkSettings};
use support::{guest_dir, in_a_network_of_its_own, kernel_with_script, spec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_mins(1);

async fn first_frame(listener: &UnixListener) -> GuestFrame {
    let read = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut frames = FrameBuffer::default();
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = frames.next().unwrap() {
                return frame;
            }
            let count = stream.read(&mut bytes).await.unwrap();
            assert_ne!(count, 0, "the guest closed");
            frames.push(&bytes[..count]);
        }
    };
    timeout(PATIENCE, read).await.expect("no hello in time")
}

fn is_hello(frame: &GuestFrame) -> bool {
    matches!(frame, GuestFrame::Hello(hello)
        if hello.phase == Phase::Waiting && matches!(hello.channel, Channel::Control | Channel::Log))
}

#[tokio::test]
async fn a_guest_connects_to_the_node_and_connects_again() {
    let Some(guest) = guest_dir() else { return };
    let dir = tempfile::tempdir().unwrap();
    // A long path is no denial, though a socket's own may have 107 bytes only.
    let run_dir = dir.path().join("x".repeat(100)).join("run");
    let instance = InstanceId(0xc000_0001);
    let listener = listen_for_guest(&run_dir, HOST_PORT).unwrap();
    let kernel = GuestKernel::in_directory(&guest).unwrap();
    let vm = boot(spec(instance, &run_dir, kernel)).await.unwrap();
    let frame = first_frame(&listener).await;
    assert!(is_hello(&frame), "{frame:?}");

    // As after a restart of the agent.
    drop(listener);
    let listener = listen_for_guest(&run_dir, HOST_PORT).unwrap();
    let frame = first_frame(&listener).await;
    assert!(is_hello(&frame), "{frame:?}");
    assert_eq!(vm.kill().await.how, HowEnded::Killed);
}

#[test]
fn a_guest_answers_by_its_tap() {
    let Some(guest) = guest_dir() else { return };
    in_a_network_of_its_own("a_guest_answers_by_its_tap", reach_by_tap(&guest));
}

async fn reach_by_tap(guest: &Path) {
    let instance = InstanceId(0xc000_0002);
    let address: Ipv6Addr = "fd12:3456:789a:3:0:7:c000:2".parse().unwrap();
    let member = Endpoint {
        instance,
        address,
        ipv4: std::net::Ipv4Addr::new(100, 64, 0, 2),
        egress: model::instance::EgressPolicy::All,
        edge_ports: std::collections::BTreeSet::new(),
    };
    let network = Network::ensure(&NetworkSettings {
        suffix: "tap".to_owned(),
        cluster_prefix: "fd12:3456:789a::".parse().unwrap(),
        node: NodeId(3),
        mtu: 1420,
    })
    .await
    .unwrap();
    let tap = network.create_tap(&member).await.unwrap();
    network.apply_rules(&[member]).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let script = format!(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad\n\
         ip link set eth0 mtu 1420 up\n\
         ip -6 addr add {address}/128 dev eth0\n\
         ip -6 route add default via fe80::1 dev eth0\n\
         echo \"echoing $(cat /sys/class/net/eth0/address)\"\n\
         nc -ll -p 7 -e cat"
    );
    let mut spec = spec(
        instance,
        &run_dir,
        kernel_with_script(guest, dir.path(), &script),
    );
    spec.nic = Some(Nic {
        tap: tap.fd,
        mac: tap.mac,
    });
    let vm = boot(spec).await.unwrap();
    let work = async {
        loop {
            assert!(vm.has_ended().is_none(), "{:?}", vm.has_ended());
            let Ok(mut stream) = tokio::net::TcpStream::connect((address, 7)).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let sent = vec![b'x'; 300_000];
            let (mut reader, mut writer) = stream.split();
            let mut received = vec![0; sent.len()];
            let (written, read) =
                tokio::join!(writer.write_all(&sent), reader.read_exact(&mut received));
            written.unwrap();
            read.unwrap();
            assert!(received == sent);
            return;
        }
    };
    timeout(PATIENCE, work).await.expect("no echo in time");
    let told = microvm::console_tail(&run_dir);
    assert!(told.contains("echoing 02:01:c0:00:00:02"), "{told}");

    vm.kill().await;
    // The tap went with the VMM.
    let links = Command::new("ip")
        .args(["-n", network.namespace(), "-o", "link"])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains("tc0000002"));
    Network::remove("tap").await.unwrap();
}

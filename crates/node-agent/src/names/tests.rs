//! What the resolver is told, by what the server says and what the node sees.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use api::node::{DirectoryChanges, DirectoryEntry, EnvDirectory, InstanceReport};
use model::instance::{EgressPolicy, InstanceState};
use model::{EnvNetwork, InstanceId, NodeId};
use overlay::address_plan::{egress_address, instance_address};

use super::*;

const CLUSTER: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const SHOP: EnvNetwork = EnvNetwork(16);

fn entry(node: u16, id: u32, ready: bool) -> (InstanceId, DirectoryEntry) {
    let entry = DirectoryEntry {
        process: "web".parse().unwrap(),
        address: instance_address(CLUSTER, NodeId(node), SHOP, InstanceId(id)),
        ready,
        ports: Vec::new(),
    };
    (InstanceId(id), entry)
}

fn changes(
    since: Option<u64>,
    counter: u64,
    instances: &[(InstanceId, DirectoryEntry)],
    removed: &[u32],
) -> DirectoryChanges {
    let env = EnvDirectory {
        app: "shop".parse().unwrap(),
        env: "prod".parse().unwrap(),
        whole: since.is_none(),
        instances: instances.iter().cloned().collect(),
        removed: removed.iter().map(|id| InstanceId(*id)).collect(),
        also_on: BTreeSet::new(),
    };
    DirectoryChanges {
        cluster: "c".to_owned(),
        session: 7,
        counter,
        since,
        envs: BTreeMap::from([(SHOP, env)]),
        ..DirectoryChanges::default()
    }
}

/// What the resolver is told now: ids, and whether names lead to them; absent: gone.
fn updates(names: &NodeNames) -> Vec<(u32, Option<bool>)> {
    let update = names.take_pending();
    assert!(!update.whole);
    let instances = update.instances.into_iter();
    instances
        .map(|(id, named)| (id.0, named.map(|named| named.ready)))
        .collect()
}

fn running(id: u32, ready: bool) -> InstanceReport {
    let started_at = None;
    InstanceReport::new(InstanceId(id), InstanceState::Running { ready, started_at })
}

fn endpoint(id: u32) -> Endpoint {
    Endpoint {
        instance: InstanceId(id),
        address: instance_address(CLUSTER, NodeId(1), SHOP, InstanceId(id)),
        ipv4: egress_address(InstanceId(id)),
        egress: EgressPolicy::Internet,
        edge_ports: std::collections::BTreeSet::new(),
    }
}

#[tokio::test]
async fn the_resolver_is_told_what_changed_and_of_own_instances_what_the_node_sees() {
    let dir = tempfile::tempdir().unwrap();
    let names = NodeNames::load(CLUSTER, dir.path()).await;
    names
        .take(
            "c",
            changes(
                None,
                1,
                &[entry(1, 1, true), entry(2, 2, true), entry(2, 3, false)],
                &[],
            ),
        )
        .unwrap();
    assert_eq!(
        updates(&names),
        [(1, Some(true)), (2, Some(true)), (3, Some(false))]
    );
    assert_eq!(
        names.neighbours(NodeId(1)),
        BTreeSet::from([(NodeId(2), SHOP)])
    );
    // A difference costs what differs.
    names
        .take("c", changes(Some(1), 2, &[entry(2, 3, true)], &[2]))
        .unwrap();
    assert_eq!(updates(&names), [(2, None), (3, Some(true))]);
    // What this node sees of its own instance comes before what the server knows of it.
    names.set_clients(&[endpoint(1)]);
    assert_eq!(names.take_pending().clients.len(), 1);
    names.set_reports(&[running(1, true)]);
    assert_eq!(updates(&names), [(1, Some(true))]);
    names.set_reports(&[running(1, false)]);
    assert_eq!(updates(&names), [(1, Some(false))]);
    names.set_reports(&[running(1, false)]);
    assert_eq!(updates(&names), []);
    // One that the server takes out of service is out, however well it is.
    names.set_reports(&[running(1, true)]);
    names
        .take("c", changes(Some(2), 3, &[entry(1, 1, false)], &[]))
        .unwrap();
    assert_eq!(updates(&names), [(1, Some(false))]);
    // A whole directory that lacks one: that one is gone.
    names
        .take("c", changes(None, 9, &[entry(1, 1, true)], &[]))
        .unwrap();
    assert_eq!(updates(&names), [(1, Some(true)), (3, None)]);
    names.set_clients(&[]);
    assert_eq!(
        names.take_pending().clients,
        BTreeMap::from([(InstanceId(1), None)])
    );
    let whole = names.whole();
    assert!(whole.whole);
    assert_eq!(whole.instances.len(), 1);
    assert!(names.take_pending().is_empty());
    // What does not fit changes nothing.
    names.take("other", changes(None, 1, &[], &[])).unwrap_err();
    names.take("c", changes(Some(4), 5, &[], &[])).unwrap_err();
    assert!(names.take_pending().is_empty());
}

#[tokio::test]
async fn an_address_of_another_env_is_not_named() {
    let dir = tempfile::tempdir().unwrap();
    let names = NodeNames::load(CLUSTER, dir.path()).await;
    let (id, mut wrong) = entry(2, 2, true);
    wrong.address = instance_address(CLUSTER, NodeId(2), EnvNetwork(17), id);
    names
        .take("c", changes(None, 1, &[(id, wrong)], &[]))
        .unwrap();
    assert_eq!(updates(&names), [(2, None)]);
}

#[test]
fn directory_json_of_each_version_is_read_with_and_without_added_fields() {
    state_file::fixtures::check::<DirectoryFile>(&[include_str!(
        "../fixtures/directory/version-1.json"
    )]);
}

#[test]
fn every_name_server_of_the_machine_is_asked() {
    let text = "# nameserver 192.0.2.9\noptions edns0\nnameserver 127.0.0.53\n nameserver\t2001:db8::53 \nnameserver fe80::1%eth0\nnameserver\n";
    let expected: Vec<SocketAddr> = ["127.0.0.53:53", "[2001:db8::53]:53"]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    assert_eq!(servers(text), expected);
}

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::node::EnvDirectory;
use overlay::address_plan::instance_address;

use super::*;

const CLUSTER: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 0, 0, 0, 0, 0);

fn entry(node: u16, network: u32, id: u32) -> (InstanceId, DirectoryEntry) {
    let id = InstanceId(id);
    let entry = DirectoryEntry {
        process: "web".parse().unwrap(),
        address: instance_address(CLUSTER, NodeId(node), EnvNetwork(network), id),
        ready: true,
        ports: Vec::new(),
    };
    (id, entry)
}

fn env(whole: bool, instances: &[(InstanceId, DirectoryEntry)]) -> EnvDirectory {
    EnvDirectory {
        app: "shop".parse().unwrap(),
        env: "prod".parse().unwrap(),
        whole,
        instances: instances.iter().cloned().collect(),
        removed: BTreeSet::new(),
        also_on: BTreeSet::new(),
    }
}

fn changes(counter: u64, since: Option<u64>) -> DirectoryChanges {
    DirectoryChanges {
        cluster: "c".to_owned(),
        term: Term(3),
        session: 7,
        counter,
        since,
        ..DirectoryChanges::default()
    }
}

#[test]
fn a_difference_changes_what_it_names_and_nothing_else() {
    let mut directory = Directory::default();
    let whole = DirectoryChanges {
        envs: BTreeMap::from([
            (EnvNetwork(5), env(true, &[entry(1, 5, 1), entry(2, 5, 2)])),
            (EnvNetwork(6), env(true, &[entry(1, 6, 3)])),
        ]),
        ..changes(10, None)
    };
    directory.apply("c", whole).unwrap();
    let difference = DirectoryChanges {
        envs: BTreeMap::from([(
            EnvNetwork(5),
            EnvDirectory {
                removed: BTreeSet::from([InstanceId(2)]),
                ..env(false, &[entry(3, 5, 4)])
            },
        )]),
        removed: BTreeSet::from([EnvNetwork(6)]),
        ..changes(12, Some(10))
    };
    directory.apply("c", difference).unwrap();
    assert_eq!(directory.position, (7, 12));
    assert_eq!(directory.envs.len(), 1);
    let known: Vec<_> = directory.envs[&EnvNetwork(5)].instances.keys().collect();
    assert_eq!(known, [&InstanceId(1), &InstanceId(4)]);
    let neighbours = directory.neighbours(CLUSTER, NodeId(1));
    assert_eq!(
        neighbours,
        BTreeSet::from([(NodeId(3), EnvNetwork(5))]),
        "the node itself is no neighbour"
    );
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut directory = Directory::default();
    let whole = DirectoryChanges {
        envs: BTreeMap::from([(EnvNetwork(5), env(true, &[entry(1, 5, 1)]))]),
        ..changes(10, None)
    };
    directory.apply("c", whole).unwrap();
    let before = directory.clone();
    let other = DirectoryChanges {
        cluster: "d".to_owned(),
        ..changes(11, Some(10))
    };
    let refused = directory.apply("c", other).unwrap_err();
    assert!(matches!(refused, DirectoryRefused::OtherCluster(_)));
    let older = DirectoryChanges {
        term: Term(2),
        ..changes(11, None)
    };
    let refused = directory.apply("c", older).unwrap_err();
    assert!(matches!(refused, DirectoryRefused::OlderTerm { .. }));
    assert_eq!(directory, before);
    // A gap: the envs stay, and the whole is asked for.
    let gap = directory.apply("c", changes(12, Some(11))).unwrap_err();
    assert_eq!(gap, DirectoryRefused::Gap);
    assert_eq!(
        (directory.position, &directory.envs),
        ((0, 0), &before.envs)
    );
}

#[test]
fn an_address_of_another_env_opens_nothing() {
    let mut directory = Directory::default();
    let whole = DirectoryChanges {
        envs: BTreeMap::from([(
            EnvNetwork(5),
            EnvDirectory {
                also_on: BTreeSet::from([NodeId(9)]),
                ..env(true, &[entry(2, 6, 1)])
            },
        )]),
        ..changes(1, None)
    };
    directory.apply("c", whole).unwrap();
    let neighbours = directory.neighbours(CLUSTER, NodeId(1));
    assert_eq!(neighbours, BTreeSet::from([(NodeId(9), EnvNetwork(5))]));
}

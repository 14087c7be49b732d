//! Placement on clusters made by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::cluster_state::{CountedAs, Subject, UnreadableRecord, VolumeKey};
use crate::fixtures::{InstanceFixture, MIB, cluster, deploy, key, lapse, manifest, name, process};
use crate::node_protocol::NeededProtocol;
use api::enrollment::NodeDisk;
use expect_test::{Expect, expect};
use model::instance::{EgressPolicy, Runs};
use model::{Timestamp, VolumeId};

fn check(cluster: &ClusterState, memory_mib: u64, expected: Expect) {
    check_pinned(cluster, memory_mib, None, expected);
}

fn check_pinned(
    cluster: &ClusterState,
    memory_mib: u64,
    pinned: Option<(NodeId, &str)>,
    expected: Expect,
) {
    let chosen = Placement::new(cluster).choose(&Demand {
        labels: &BTreeMap::new(),
        env: &key("shop/prod"),
        process: &name("web"),
        org: None,
        needs: Resources {
            cpu_millis: 100,
            memory_bytes: memory_mib * MIB,
            disk_bytes: 64 * MIB,
        },
        archs: &["amd64"],
        region: None,
        protocol: None,
        pinned,
    });
    expected.assert_eq(&chosen.map_or_else(|why| why.to_string(), |node| node.to_string()));
}

/// An agent that does not know what an instance asks for would ignore it.
#[test]
fn what_an_older_agent_would_ignore_goes_to_nodes_that_do_it() {
    let mut cluster = with(&[]);
    let set = |cluster: &mut ClusterState, number, protocol| {
        cluster.nodes.get_mut(&NodeId(number)).unwrap().presence = Presence::Heard {
            since: Timestamp(0),
            protocol,
        };
    };
    set(&mut cluster, 1, 3);
    set(&mut cluster, 2, 3);
    let choose = |cluster: &ClusterState, egress, pinned| {
        let chosen = Placement::new(cluster).choose(&Demand {
            labels: &BTreeMap::new(),
            env: &key("shop/prod"),
            process: &name("web"),
            org: None,
            needs: Resources::default(),
            archs: &["amd64"],
            region: None,
            protocol: NeededProtocol::of(egress, Runs::App),
            pinned,
        });
        if let Err(error) = &chosen {
            assert!(!error.is_the_fault_of_the_release(), "an upgrade helps");
        }
        chosen.map_or_else(|why| why.to_string(), |node| node.to_string())
    };
    assert_eq!(choose(&cluster, EgressPolicy::All, None), "n1");
    assert_eq!(choose(&cluster, EgressPolicy::Internet, None), "n3");
    assert_eq!(choose(&cluster, EgressPolicy::None, None), "n3");
    let pinned = choose(&cluster, EgressPolicy::None, Some((NodeId(1), "data")));
    expect![[r#"the node of its volume data cannot take it: node-1 (n1): its agent is too old for egress = "none" (protocol version 3, and 4 is needed): upgrade `platform` on it"#]].assert_eq(&pinned);
    set(&mut cluster, 3, 3);
    expect![[r#"no node can take it: node-1 (n1): its agent is too old for egress = "none" (protocol version 3, and 4 is needed): upgrade `platform` on it; node-2 (n2): its agent is too old for egress = "none" (protocol version 3, and 4 is needed): upgrade `platform` on it; node-3 (n3): its agent is too old for egress = "none" (protocol version 3, and 4 is needed): upgrade `platform` on it"#]].assert_eq(&choose(&cluster, EgressPolicy::None, None));
    set(&mut cluster, 2, 4);
    assert_eq!(choose(&cluster, EgressPolicy::None, None), "n2");
}

fn with(instances: &[(&'static str, u16)]) -> ClusterState {
    let mut cluster = cluster(3);
    let both = [("web", process(1)), ("other", process(1))];
    deploy(&mut cluster, "shop/prod", manifest(&both), Timestamp(0));
    for (id, (process, node)) in (1..).zip(instances) {
        let (process, node) = (*process, *node);
        let env = "shop/prod";
        InstanceFixture {
            id,
            env,
            process,
            release: 1,
            node,
        }
        .into_cluster(&mut cluster);
    }
    cluster
}

#[test]
fn the_lowest_id_wins_a_tie() {
    check(&with(&[]), 256, expect!["n1"]);
}

#[test]
fn the_same_process_is_spread_and_nodes_are_filled_one_after_the_other() {
    check(
        &with(&[("other", 2), ("other", 2), ("web", 1), ("web", 3)]),
        256,
        expect!["n2"],
    );
    check(&with(&[("other", 1), ("other", 2)]), 256, expect!["n1"]);
}

#[test]
fn a_terminating_instance_holds_its_memory_and_is_not_spread_from() {
    let mut cluster = with(&[("web", 1), ("web", 2), ("web", 3)]);
    for instance in cluster.instances.values_mut() {
        if instance.node == NodeId(3) {
            instance.terminate();
        }
    }
    check(&cluster, 256, expect!["n3"]);
    check(
        &cluster,
        3841,
        expect![[
            r#"no node can take it: node-1 (n1): 3840 of its 4096 MiB are free, 3841 MiB of memory are needed; node-2 (n2): 3840 of its 4096 MiB are free, 3841 MiB of memory are needed; node-3 (n3): 3840 of its 4096 MiB are free, 3841 MiB of memory are needed"#
        ]],
    );
}

#[test]
fn an_unreadable_record_holds_what_it_is_counted_as_and_no_more() {
    let mut cluster = with(&[]);
    cluster.nodes.remove(&NodeId(2));
    cluster.nodes.remove(&NodeId(3));
    let record = |subject, holds| UnreadableRecord {
        subject,
        env: Some(key("bad/prod")),
        node: Some(NodeId(1)),
        holds: Some(holds),
        cause: "a test".to_owned(),
    };
    let instance = Subject::Instance(InstanceId(1));
    // Numbers that no machine has are not believed.
    let absurd = CountedAs::of_instance(Some(u64::MAX), Some(u64::MAX), None);
    cluster.unreadable = vec![
        record(instance, absurd),
        record(Subject::Volume(VolumeId(1)), CountedAs::of_volume(Some(5))),
    ];
    let overhead = cluster.nodes[&NodeId(1)].hardware.instance_overhead();
    let promised = Placement::new(&cluster).promised(NodeId(1));
    let expected = Resources {
        cpu_millis: CountedAs::ASSUMED_CPU_MILLIS,
        memory_bytes: CountedAs::ASSUMED_MEMORY_BYTES,
        disk_bytes: CountedAs::ASSUMED_DISK_BYTES + 5,
    };
    assert_eq!(promised, expected.with(overhead, 1));
    // The node takes others beside it, as long as they fit.
    check(&cluster, 2048, expect!["n1"]);
    check(
        &cluster,
        3500,
        expect![
            "no node can take it: node-1 (n1): 3072 of its 4096 MiB are free, 3500 MiB of memory are needed"
        ],
    );
}

#[test]
fn a_placement_error_names_the_reason_of_every_node() {
    let mut cluster = with(&[]);
    lapse(&mut cluster, 1, Timestamp(0));
    cluster.nodes.get_mut(&NodeId(2)).unwrap().hardware.arch = "arm64".to_owned();
    check(
        &cluster,
        5000,
        expect![
            "no node can take it: node-1 (n1): it is offline; node-3 (n3): 4096 of its 4096 MiB are free, 5000 MiB of memory are needed; node-2 (n2): it is arm64, the image is for amd64"
        ],
    );
    cluster.nodes.clear();
    check(
        &cluster,
        1,
        expect!["there is no node yet; add one with `platform node join`"],
    );
}

#[test]
fn an_instance_with_volumes_is_placed_on_their_node_or_nowhere() {
    let mut cluster = with(&[("web", 2), ("web", 2)]);
    let data = |number| Some((NodeId(number), "data"));
    check_pinned(&cluster, 256, data(2), expect!["n2"]);
    check_pinned(
        &cluster,
        4000,
        data(2),
        expect![
            "the node of its volume data cannot take it: node-2 (n2): 3584 of its 4096 MiB are free, 4000 MiB of memory are needed"
        ],
    );
    cluster.nodes.remove(&NodeId(2));
    check_pinned(
        &cluster,
        256,
        data(2),
        expect![
            "its volume data is on n2, which was removed; `platform volumes delete` gives up what is in it"
        ],
    );
}

/// A node of 4 GiB of memory, with as many MiB of disk for instances.
fn with_disk(cluster: &mut ClusterState, node: u16, disk_mib: u64) {
    let hardware = &mut cluster.nodes.get_mut(&NodeId(node)).unwrap().hardware;
    hardware.disk = Some(NodeDisk {
        total_bytes: (disk_mib + 60) * MIB,
        reserved_bytes: 10 * MIB,
        images_bytes: 20 * MIB,
        others_bytes: 30 * MIB,
    });
}

#[test]
fn case_disk_is_promised_like_memory() {
    // Each instance of the fixture has 64 MiB of scratch disk, and so has the one that is placed.
    let mut cluster = with(&[("other", 1), ("other", 1)]);
    with_disk(&mut cluster, 1, 3 * 64 - 1);
    with_disk(&mut cluster, 2, 63);
    with_disk(&mut cluster, 3, 64);
    check(&cluster, 256, expect!["n3"]);
    with_disk(&mut cluster, 3, 0);
    check(
        &cluster,
        256,
        expect![[
            r#"no node can take it: node-1 (n1): 63 of its 191 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-2 (n2): 63 of its 63 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-3 (n3): 0 of its 0 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs"#
        ]],
    );
    // A terminating instance holds its disk, too.
    for instance in cluster.instances.values_mut() {
        instance.terminate();
    }
    with_disk(&mut cluster, 1, 3 * 64);
    check(&cluster, 256, expect!["n1"]);
    with_disk(&mut cluster, 1, 3 * 64 - 1);
    let placement = Placement::new(&cluster);
    assert_eq!(placement.promised(NodeId(1)).disk_bytes, 2 * 64 * MIB);
    let needs = Resources {
        disk_bytes: 64 * MIB,
        ..Resources::default()
    };
    let (env, process) = (key("shop/prod"), name("web"));
    let refused = placement.choose(&Demand {
        labels: &BTreeMap::new(),
        env: &env,
        process: &process,
        org: None,
        needs,
        archs: &["amd64"],
        region: None,
        protocol: None,
        pinned: None,
    });
    assert!(refused.unwrap_err().is_the_fault_of_the_release());
}

#[test]
fn case_a_volume_holds_its_disk_until_it_is_deleted() {
    let mut cluster = with(&[]);
    for node in 1..=3 {
        with_disk(&mut cluster, node, 100);
    }
    let volume = |node, phase| Volume {
        key: VolumeKey {
            env: key("shop/prod"),
            process: name("web"),
            name: "data".to_owned(),
            ordinal: 0,
        },
        node: NodeId(node),
        size_bytes: 37 * MIB,
        created_at: Timestamp(0),
        phase,
    };
    let phases = [
        VolumePhase::Made,
        VolumePhase::Deleting { made: true },
        VolumePhase::Deleted,
    ];
    for (number, phase) in (1..).zip(phases) {
        let volumes = &mut cluster.volumes;
        volumes.insert(VolumeId(u32::from(number)), volume(number, phase));
    }
    check(&cluster, 256, expect!["n3"]);
    cluster
        .volumes
        .insert(VolumeId(4), volume(3, VolumePhase::Planned));
    check(
        &cluster,
        256,
        expect![[
            r#"no node can take it: node-1 (n1): 63 of its 100 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-2 (n2): 63 of its 100 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-3 (n3): 63 of its 100 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs"#
        ]],
    );
}

#[test]
fn case_an_instance_costs_a_node_what_its_driver_needs_beside_the_guest() {
    let mut cluster = with(&[("other", 1)]);
    cluster.nodes.remove(&NodeId(2));
    cluster.nodes.remove(&NodeId(3));
    let node = |cluster: &mut ClusterState, overhead| {
        let hardware = &mut cluster.nodes.get_mut(&NodeId(1)).unwrap().hardware;
        hardware.memory_bytes = 1024 * MIB;
        hardware.overhead = overhead;
    };
    let overhead = InstanceOverhead {
        memory_bytes: 90 * MIB,
        disk_bytes: 0,
    };
    node(&mut cluster, Some(overhead));
    check(&cluster, 1024 - 256 - 2 * 90, expect!["n1"]);
    check(
        &cluster,
        1024 - 256 - 2 * 90 + 1,
        expect![
            "no node can take it: node-1 (n1): 678 of its 1024 MiB are free, 679 MiB of memory are needed, 90 of them for its VMM"
        ],
    );
    // An agent of the version before does not say what it costs.
    node(&mut cluster, None);
    check(&cluster, 1024 - 256 - 2 * 128, expect!["n1"]);
    check(
        &cluster,
        1024 - 256 - 2 * 128 + 1,
        expect![
            "no node can take it: node-1 (n1): 640 of its 1024 MiB are free, 641 MiB of memory are needed, 128 of them for its VMM"
        ],
    );
}

/// Where four instances go one after the other, on nodes of these regions.
fn spread(regions: &[&str], asked: Option<&str>) -> Vec<u16> {
    let mut cluster = cluster(u16::try_from(regions.len()).unwrap());
    let web = manifest(&[("web", process(1))]);
    deploy(&mut cluster, "shop/prod", web, Timestamp(0));
    for (node, region) in cluster.nodes.values_mut().zip(regions) {
        node.region = (*region).to_owned();
    }
    let mut placed = Vec::new();
    for id in 1..=4 {
        let node = Placement::new(&cluster).choose(&Demand {
            labels: &BTreeMap::new(),
            env: &key("shop/prod"),
            process: &name("web"),
            org: None,
            needs: Resources::default(),
            archs: &["amd64"],
            region: asked,
            protocol: None,
            pinned: None,
        });
        let node = node.unwrap().0;
        placed.push(node);
        let (env, process, release) = ("shop/prod", "web", 1);
        InstanceFixture {
            id,
            env,
            process,
            release,
            node,
        }
        .into_cluster(&mut cluster);
    }
    placed
}

#[test]
fn case_instances_are_spread_over_regions_and_then_over_nodes() {
    // One in each region first, then the nodes that have none, then the nodes with the fewest.
    assert_eq!(spread(&["eu", "eu", "us"], None), [1, 3, 2, 1]);
    assert_eq!(spread(&["eu", "eu", "us", "us"], None), [1, 3, 2, 4]);
    assert_eq!(spread(&["eu", "us", "us"], Some("us")), [2, 3, 2, 3]);
}

#[test]
fn case_a_region_without_room_and_too_many_cpu_requests_are_reasons() {
    let mut cluster = cluster(2);
    cluster.nodes.get_mut(&NodeId(2)).unwrap().region = "eu".to_owned();
    let choose = |cluster: &ClusterState, cpu_millis, region| {
        let chosen = Placement::new(cluster).choose(&Demand {
            labels: &BTreeMap::new(),
            env: &key("shop/prod"),
            process: &name("web"),
            org: None,
            needs: Resources {
                cpu_millis,
                ..Resources::default()
            },
            archs: &["amd64"],
            region,
            protocol: None,
            pinned: None,
        });
        chosen.map_or_else(|why| why.to_string(), |node| node.to_string())
    };
    assert_eq!(choose(&cluster, 32_000, None), "n2");
    assert_eq!(
        choose(&cluster, 32_500, Some("eu")),
        "no node can take it: node-1 (n1): it is in the region local, not in eu; node-2 (n2): 0 of 32 CPU are asked for \
         already (8 times its processors), 32.5 more are needed"
    );
}

#[test]
fn case_an_instance_goes_to_a_node_with_all_of_its_labels() {
    let mut cluster = cluster(3);
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    };
    let mut label = |node: u16, key: &str, value: Option<&str>| {
        let value = value.map(|value| value.parse().unwrap());
        let command = crate::apply::Command::SetLabels {
            node: NodeId(node),
            labels: BTreeMap::from([(key.parse().unwrap(), value)]),
        };
        crate::apply::apply(&mut cluster, &command).unwrap();
    };
    label(2, "disk", Some("hdd"));
    label(3, "disk", Some("nvme"));
    label(3, "gpu", Some("a100"));
    label(2, "gpu", Some("a100"));
    label(2, "gpu", None);
    let choose = |wanted: &[(&str, &str)]| {
        let placement = Placement::new(&cluster);
        let chosen = placement.choose(&Demand {
            env: &key("shop/prod"),
            process: &name("web"),
            org: None,
            needs: Resources::default(),
            archs: &["amd64"],
            region: None,
            labels: &labels(wanted),
            protocol: None,
            pinned: None,
        });
        chosen.map_err(|e| e.to_string())
    };
    assert_eq!(choose(&[("disk", "nvme"), ("gpu", "a100")]), Ok(NodeId(3)));
    assert_eq!(choose(&[("disk", "hdd")]), Ok(NodeId(2)));
    assert_eq!(
        choose(&[("disk", "ssd")]).unwrap_err(),
        "no node can take it: node-1 (n1): it does not have the label disk=ssd; node-2 (n2): it does not have the label disk=ssd, but hdd \
         for it; node-3 (n3): it does not have the label disk=ssd, but nvme for it"
    );
}

#[test]
fn a_node_that_is_another_all_the_time_leaves_nothing_behind() {
    let cluster = cluster(2);
    let mut placement = Placement::new(&cluster);
    let mut node = cluster.nodes[&NodeId(1)].clone();
    for number in 0..1000 {
        node.hardware.arch = format!("arch-{number}");
        assert!(placement.set_node(NodeId(1), Some(&node)));
    }
    assert!(placement.classes.len() <= 3, "{}", placement.classes.len());
    assert_eq!(placement.class_index.len(), 2);
    placement.set_node(NodeId(1), None);
    assert_eq!(placement.class_index.len(), 1);
}

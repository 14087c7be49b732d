//! The overlay as members see it: endpoints, differences of peers, the directory, settings, dead hubs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::enrollment::{EnrollRole, Member};
use api::member::{LinkReport, MemberState, NodeKey, OverlayChanges, OverlayReport, Underlay};
use api::node::DirectoryChanges;
use api::paths;
use api::protocol::{OLDEST_PROTOCOL_VERSION, PROTOCOL_HEADER};
use api::user::NetworkSettingsRequest;
use api_client::ApiClient;
use identity::WireguardKey;
use model::{Generation, NodeId};
use node_core::directory::Directory;
use overlay::topology::Mode;
use support::members::{NOW, refusal};
use support::registry::Registry;
use support::*;

const PATIENCE: Duration = Duration::from_secs(10);
const HUBS: NetworkSettingsRequest = NetworkSettingsRequest {
    mode: Some(Mode::Hubs { local_mesh: 0 }),
    mtu: None,
    private_networks: None,
};

fn underlay(port: u16) -> Underlay {
    Underlay {
        port,
        advertise: None,
        local: Some("10.0.0.7".parse().unwrap()),
        mtu: Some(1500),
    }
}

fn reported(port: u16) -> OverlayReport {
    OverlayReport {
        underlay: underlay(port),
        ..OverlayReport::default()
    }
}

/// A member that follows the overlay.
#[derive(Default)]
struct Follower {
    applied: Generation,
    position: (u64, u64),
}

impl Follower {
    /// What is newer than what it has; `None`: nothing, within the wait.
    async fn next(&mut self, client: &ApiClient, wait: Duration) -> Option<OverlayChanges> {
        let state = client.member_state(self.applied, self.position, wait).await;
        let MemberState {
            generation,
            overlay,
            ..
        } = state.unwrap()?;
        let changes = overlay.unwrap();
        self.applied = generation;
        self.position = (changes.session, changes.counter);
        Some(changes)
    }
}

fn peers(changes: &OverlayChanges) -> Vec<u16> {
    changes.peers.keys().map(|id| id.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_told_the_differences_of_their_own_peers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, first) = server.join_node().await;
    let (second_id, second) = server.join_node().await;
    let edge = server.join(EnrollRole::Edge).await;
    assert_eq!(
        edge.response.number,
        Some(NodeId(3)),
        "numbers are of one counter"
    );
    let mut follower = Follower::default();
    let whole = follower.next(&first.client, NOW).await.unwrap();
    assert_eq!((whole.since, whole.number), (None, Some(NodeId(1))));
    assert_eq!(peers(&whole), [2, 3]);
    assert_eq!(whole.edges, Some(BTreeSet::from([NodeId(3)])));
    let endpoint = whole.peers[&NodeId(2)].endpoint.unwrap();
    assert_eq!(endpoint.port(), 51_820);
    assert_eq!(follower.next(&first.client, NOW).await, None);

    // One that is reached elsewhere: that alone is sent.
    second.client.report_overlay(&reported(4000)).await.unwrap();
    let told = follower.next(&first.client, PATIENCE).await.unwrap();
    assert!(told.since.is_some() && told.edges.is_none());
    assert_eq!(peers(&told), [2]);
    let endpoint = told.peers[&second_id].endpoint.unwrap();
    assert_eq!(
        endpoint,
        "10.0.0.7:4000".parse().unwrap(),
        "the server is on its machine"
    );
    // Said again it is nothing new, and nobody is woken.
    second.client.report_overlay(&reported(4000)).await.unwrap();
    assert_eq!(follower.next(&first.client, NOW).await, None);
    // Moved too often it is refused, because each time is a write.
    let refused = second.client.report_overlay(&reported(4001)).await;
    assert_eq!(refusal(refused), (429, "moves_too_often".to_owned()));

    // Revoked: it is nobody's peer.
    server.user.revoke(Member::Node(second_id)).await.unwrap();
    let told = follower.next(&first.client, PATIENCE).await.unwrap();
    assert_eq!(told.removed, BTreeSet::from([second_id]));
    // Another leader counts anew, and says all.
    let server = {
        server.stop().await;
        Server::start(folder.path()).await
    };
    let client = support::members::at(&server, &first);
    let whole = follower.next(&client, PATIENCE).await.unwrap();
    assert_eq!((whole.since, peers(&whole)), (None, vec![3]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_inside_of_the_cluster_is_refused_and_so_is_nonsense() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, node) = server.join_node().await;
    let prefix = node.response.cluster_prefix.segments();
    let inside = std::net::Ipv6Addr::new(prefix[0], prefix[1], prefix[2], 9, 0, 0, 0, 1);
    let mut report = reported(51_820);
    report.underlay.advertise = Some((inside, 51_820).into());
    let refused = node.client.report_overlay(&report).await;
    assert_eq!(refusal(refused), (422, "underlay_refused".to_owned()));
    let refused = node.client.report_overlay(&reported(0)).await;
    assert_eq!(refusal(refused), (422, "underlay_refused".to_owned()));
    let mut many = reported(51_820);
    many.links = (1..=5000)
        .map(|id| (NodeId(id), LinkReport::default()))
        .collect();
    let refused = node.client.report_overlay(&many).await;
    assert_eq!(refusal(refused), (422, "too_many_links".to_owned()));
    let mut key = reported(51_820);
    key.wireguard_public_key = Some("no key".to_owned());
    let refused = node.client.report_overlay(&key).await;
    assert_eq!(refusal(refused), (422, "wireguard_key_invalid".to_owned()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_before_the_overlay_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, new) = server.join_node().await;
    // An edge of before: it has no WireGuard key, and follows without a session.
    let token = server.token(EnrollRole::Edge).await;
    let key = identity::MemberKey::generate().unwrap();
    let request = api::enrollment::EnrollRequest {
        wireguard_public_key: None,
        underlay: None,
        ..enroll_request(&token, &key)
    };
    let response = support::members::enroll(&server, &token, &request)
        .await
        .unwrap();
    assert_eq!(response.number, None);
    let old = Joined {
        client: support::members::member(&server, &response, &key),
        key_pem: key.key_pem(),
        response,
    };
    let plain = plain(&server.config.ca_pem, Some(&old));
    let poll = async |query: &str| {
        let url = format!("{}{}?wait_ms=0{query}", server.ready.url, paths::MEMBER);
        let request = plain
            .get(url)
            .header(PROTOCOL_HEADER, OLDEST_PROTOCOL_VERSION);
        request.send().await.unwrap()
    };
    let told: MemberState = serde_json::from_str(&poll("").await.text().await.unwrap()).unwrap();
    let known: Vec<&NodeKey> = told.peers.iter().collect();
    assert_eq!((known.len(), known[0].node), (1, NodeId(1)));
    assert_eq!(told.overlay, None);
    let (counter, incarnation) = (told.generation.counter, told.generation.incarnation);
    let has = format!("&after={counter}&incarnation={incarnation}");
    assert_eq!(poll(&has).await.status(), 204);

    // Upgraded, it says its key: it has a number, and is everybody's peer.
    let mut follower = Follower::default();
    assert!(peers(&follower.next(&new.client, NOW).await.unwrap()).is_empty());
    let mut report = reported(51_820);
    report.wireguard_public_key =
        Some(WireguardKey::generate().unwrap().public_base64().to_owned());
    old.client.report_overlay(&report).await.unwrap();
    let told = follower.next(&new.client, PATIENCE).await.unwrap();
    assert_eq!(
        (peers(&told), told.edges),
        (vec![2], Some(BTreeSet::from([NodeId(2)])))
    );
    let own = Follower::default().next(&old.client, NOW).await.unwrap();
    assert_eq!((own.number, peers(&own)), (Some(NodeId(2)), vec![1]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_followed_and_a_dead_hub_is_replaced_in_one_step() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let mut nodes = BTreeMap::new();
    for _ in 0..5 {
        let (id, joined) = server.join_node().await;
        nodes.insert(id, joined);
    }
    let mut followers: BTreeMap<NodeId, Follower> = BTreeMap::new();
    for (id, node) in &nodes {
        let told = followers
            .entry(*id)
            .or_default()
            .next(&node.client, NOW)
            .await;
        assert_eq!(told.unwrap().peers.len(), 4);
    }
    let refused = NetworkSettingsRequest {
        mtu: Some(1200),
        ..NetworkSettingsRequest::default()
    };
    let refused = server.user.set_network(&refused).await;
    assert_eq!(refusal(refused), (422, "mtu_out_of_range".to_owned()));
    let private = |networks: &str| Some(networks.parse().unwrap());
    for wrong in ["169.254.169.254/32", "10.0.0.0/7"] {
        let refused = NetworkSettingsRequest {
            private_networks: private(wrong),
            ..NetworkSettingsRequest::default()
        };
        let refused = server.user.set_network(&refused).await;
        let code = "private_networks_refused".to_owned();
        assert_eq!(refusal(refused), (422, code), "{wrong}");
    }
    let narrower = NetworkSettingsRequest {
        mtu: Some(1380),
        private_networks: private("10.1.0.0/16"),
        ..HUBS
    };
    let status = server.user.set_network(&narrower).await.unwrap();
    assert_eq!((status.mtu, status.mode), (1380, HUBS.mode.unwrap()));
    assert_eq!(status.private_networks.to_string(), "10.1.0.0/16");
    let hubs: Vec<_> = (status.members.iter())
        .filter(|member| member.is_hub)
        .filter_map(|member| member.number)
        .collect();
    assert_eq!(hubs, [NodeId(1), NodeId(2)]);
    let homes: BTreeMap<_, _> = (status.members.iter())
        .filter_map(|member| Some((member.number?, member.home?)))
        .collect();
    for (id, node) in &nodes {
        let told = followers
            .get_mut(id)
            .unwrap()
            .next(&node.client, PATIENCE)
            .await
            .unwrap();
        assert_eq!((told.mtu, told.is_hub), (1380, hubs.contains(id)));
        assert_eq!(told.private_networks, status.private_networks);
        if let Some(home) = homes.get(id) {
            let is_home = told.peers.iter().filter(|(_, peer)| peer.is_home());
            assert_eq!(is_home.map(|(id, _)| id).collect::<Vec<_>>(), [home]);
            assert_eq!(told.peers.len(), 2);
        }
    }

    let label =
        |value: &str| BTreeMap::from([("hub".parse().unwrap(), Some(value.parse().unwrap()))]);
    let refused = server.user.set_labels(NodeId(1), label("perhaps")).await;
    assert_eq!(refusal(refused), (422, "hub_label_invalid".to_owned()));

    // The home of one does not answer those that probe it; the other hub does.
    // The last: the first of them is a hub next.
    let (member, home) = homes.iter().next_back().unwrap();
    let standby = *hubs.iter().find(|hub| *hub != home).unwrap();
    let mut complaint = reported(51_820);
    let link = |answers| LinkReport {
        answers: Some(answers),
        ..LinkReport::default()
    };
    complaint.links = BTreeMap::from([(*home, link(false)), (standby, link(true))]);
    // A report of what is recorded already comes first: the endpoint is another from here.
    for id in homes.keys() {
        nodes[id].client.report_overlay(&complaint).await.unwrap();
    }
    let told = async |followers: &mut BTreeMap<NodeId, Follower>, id: &NodeId| {
        let follower = followers.get_mut(id).unwrap();
        loop {
            let told = follower.next(&nodes[id].client, PATIENCE).await.unwrap();
            if told.peers.values().any(api::member::Peer::is_home) {
                return told;
            }
        }
    };
    let moved = told(&mut followers, member).await;
    let new_home = moved.peers.iter().find(|(_, peer)| peer.is_home()).unwrap();
    assert_ne!(new_home.0, home);
    let status = server.user.network().await.unwrap();
    let dead: Vec<_> = (status.members.iter())
        .filter(|member| member.is_dead)
        .filter_map(|member| member.number)
        .collect();
    assert_eq!(dead, [*home]);
    let says_so =
        |warning: &api::user::NetworkWarning| warning.message.contains("does not answer as a hub");
    assert!(status.warnings.iter().any(says_so), "{:?}", status.warnings);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_shown_of_present_peers_and_of_members_that_are_heard() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (first_id, first) = server.join_node().await;
    let (second_id, _second) = server.join_node().await;
    let (third_id, _third) = server.join_node().await;
    let edge = server.join(EnrollRole::Edge).await;
    let edge_number = edge.response.number.unwrap();
    let with = |numbers: &[NodeId]| {
        let age = |number: &NodeId| LinkReport {
            handshake_age_seconds: Some(u64::from(number.0)),
            answers: None,
        };
        OverlayReport {
            links: numbers
                .iter()
                .map(|number| (*number, age(number)))
                .collect(),
            ..reported(51_820)
        }
    };
    // Whose handshakes are shown of a member, with how old they are.
    let shown = async |member: Member| -> Vec<(u16, Option<u64>)> {
        let status = server.user.network().await.unwrap();
        let member = (status.members.iter()).find(|shown| shown.member == member);
        let links = member.unwrap().links.iter();
        links
            .map(|(number, link)| (number.0, link.handshake_age_seconds))
            .collect()
    };
    let first_member = Member::Node(first_id);
    let edge_member = edge.response.member;

    // It may say what it likes: of itself, and of one that nobody knows.
    let all = [first_id, second_id, third_id, edge_number, NodeId(77)];
    first.client.report_overlay(&with(&all)).await.unwrap();
    edge.client.report_overlay(&with(&all)).await.unwrap();
    assert_eq!(
        shown(first_member).await,
        [],
        "this server has not heard it"
    );
    let alive = report(Generation::default(), Vec::new());
    first.client.report_all(&alive).await.unwrap();
    let of = |numbers: &[u16]| -> Vec<_> {
        let numbers = numbers.iter();
        numbers
            .map(|number| (*number, Some(u64::from(*number))))
            .collect()
    };
    assert_eq!(shown(first_member).await, of(&[2, 3, 4]));
    // Edges report nothing else, and count as heard.
    assert_eq!(shown(edge_member).await, of(&[1, 2, 3]));

    // One that is a peer no more is gone at once, whether the member has noticed or not.
    server.user.revoke(Member::Node(third_id)).await.unwrap();
    assert_eq!(shown(first_member).await, of(&[2, 4]));
    assert_eq!(shown(edge_member).await, of(&[1, 2]));

    // A node that fell silent: what it said is not so any more.
    eventually("what a silent node said is not shown", async || {
        shown(first_member).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(shown(edge_member).await, of(&[1, 2]));
    let status = server.user.network().await.unwrap();
    let row = (status.members.iter()).find(|shown| shown.member == first_member);
    assert_eq!(row.unwrap().peers, 2, "its peers are the same");
    first.client.report_all(&alive).await.unwrap();
    first
        .client
        .report_overlay(&with(&[second_id]))
        .await
        .unwrap();
    assert_eq!(shown(first_member).await, of(&[2]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_is_shown_and_who_cannot_follow_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, node) = server.join_node().await;
    node.client.report_overlay(&reported(51_820)).await.unwrap();
    let is_behind = async || server.user.network().await.unwrap().members[0].is_behind;
    assert!(is_behind().await, "it has not asked yet");
    let mut follower = Follower::default();
    follower.next(&node.client, NOW).await.unwrap();
    assert!(
        is_behind().await,
        "it was told, and has not said that it applied it"
    );
    assert!(follower.next(&node.client, NOW).await.is_none());
    assert!(!is_behind().await);

    let mut report = reported(51_820);
    report.error = Some("UDP port 51820 is taken\n\x1b[31m".to_owned() + &"x".repeat(5000));
    node.client.report_overlay(&report).await.unwrap();
    let warnings = server.user.network().await.unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let message = &warnings[0].message;
    assert!(message.contains("UDP port 51820 is taken"), "{message}");
    assert!(
        !message.contains(char::is_control) && message.len() < 2000,
        "{message}"
    );
    report.error = None;
    node.client.report_overlay(&report).await.unwrap();
    assert_eq!(server.user.network().await.unwrap().warnings, []);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_mtu_that_does_not_fit_is_named_with_the_value_to_set() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, node) = server.join_node().await;
    let mut report = reported(51_820);
    report.underlay.mtu = Some(1460);
    node.client.report_overlay(&report).await.unwrap();
    let status = server.user.network().await.unwrap();
    let hints: Vec<_> = status
        .warnings
        .iter()
        .map(|warning| warning.hint.as_str())
        .collect();
    assert_eq!(hints, ["`platform network set --mtu 1380`"]);
    let fits = NetworkSettingsRequest {
        mtu: Some(1380),
        ..NetworkSettingsRequest::default()
    };
    assert_eq!(server.user.set_network(&fits).await.unwrap().warnings, []);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_the_directory_of_the_envs_that_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (first, second) = (
        ObedientNode::start(&server).await,
        ObedientNode::start(&server).await,
    );
    let mut directory = Directory::default();
    let next = async |directory: &mut Directory, wait| -> Option<DirectoryChanges> {
        let (session, after) = directory.position;
        let changes = first
            .joined
            .client
            .directory(session, after, wait)
            .await
            .unwrap()?;
        directory
            .apply(&first.joined.response.cluster, changes.clone())
            .unwrap();
        Some(changes)
    };
    assert!(next(&mut directory, NOW).await.is_some());
    assert!(directory.envs.is_empty());
    assert!(next(&mut directory, NOW).await.is_none());
    let key = env_key("shop", "prod");
    let digest = registry.push("shop", "amd64", "one").await;
    let image = format!("{}/shop@{digest}", registry.host);
    server.deploy(&key, &manifest("shop"), &image).await;
    let is_ready = |directory: &Directory| {
        let instances = directory
            .envs
            .values()
            .flat_map(|env| env.instances.values());
        instances.filter(|entry| entry.ready).count() == 2
    };
    while !is_ready(&directory) {
        assert!(next(&mut directory, PATIENCE).await.is_some());
    }
    let prefix = first.joined.response.cluster_prefix;
    let neighbours = directory.neighbours(prefix, first.id);
    assert_eq!(
        neighbours
            .into_iter()
            .map(|(node, _)| node)
            .collect::<Vec<_>>(),
        [second.id]
    );
    // Nothing more comes where nothing changes, though both nodes report on.
    let counter = directory.position.1;
    assert!(next(&mut directory, Duration::from_secs(3)).await.is_none());
    server.user.destroy(&key).await.unwrap();
    while !directory.envs.is_empty() {
        assert!(next(&mut directory, PATIENCE).await.is_some());
    }
    assert!(directory.position.1 > counter);
    server.stop().await;
}

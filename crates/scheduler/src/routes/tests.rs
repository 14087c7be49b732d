//! Route tables of cluster states made by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::apply::{Command, apply};
use crate::cluster_state::{Subject, UnreadableRecord};
use crate::fixtures::{InstanceFixture, cluster, deploy, key, lapse, manifest, process};
use expect_test::{Expect, expect};
use model::{InstanceId, NodeId, Timestamp};

fn check(cluster: &ClusterState, expected: Expect) {
    let lines = routes(cluster).into_iter().map(|(host, route)| {
        let backends = route.backends.iter();
        let backends: Vec<_> = backends.map(|b| format!(" {}", b.address)).collect();
        let proxy = route
            .proxy_protocol
            .map_or(String::new(), |p| format!(" {p:?}"));
        let protocol = match route.protocol {
            AppProtocol::Http1 => "",
            AppProtocol::H2c => " h2c",
        };
        let (env, process) = (route.env, route.process);
        format!(
            "{host} -> {env} {process}{proxy}{protocol}:{}\n",
            backends.concat()
        )
    });
    expected.assert_eq(&lines.collect::<String>());
}

/// v1 on port 8080 with two ready, v2 on port 9090 with one ready and one not.
fn rolling() -> ClusterState {
    let mut cluster = cluster(2);
    deploy(
        &mut cluster,
        "shop/prod",
        manifest(&[("web", process(2))]),
        Timestamp(0),
    );
    let mut second = process(2);
    second.ports[0].port = 9090;
    deploy(
        &mut cluster,
        "shop/prod",
        manifest(&[("web", second)]),
        Timestamp(0),
    );
    for (id, release, node) in [(1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 2)] {
        let (env, process) = ("shop/prod", "web");
        let put = InstanceFixture {
            id,
            env,
            process,
            release,
            node,
        };
        let instance = put.into_cluster(&mut cluster);
        if id != 4 {
            instance.make_ready();
        }
    }
    cluster
}

#[test]
fn each_release_serves_on_its_own_port() {
    check(
        &rolling(),
        expect![[r#"
        web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
    "#]],
    );
}

#[test]
fn a_terminating_instance_gets_no_traffic() {
    let mut cluster = rolling();
    for id in [1, 3] {
        cluster
            .instances
            .get_mut(&InstanceId(id))
            .unwrap()
            .terminate();
    }
    check(
        &cluster,
        expect![[r#"
        web.example.com -> shop/prod web: [fd00:1111:2222:2:0:1:0:2]:8080
    "#]],
    );
}

#[test]
fn instances_last_reported_ready_are_backends_while_no_node_reports() {
    let mut cluster = rolling();
    lapse(&mut cluster, 2, Timestamp(0));
    check(
        &cluster,
        expect![[r#"
        web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
    "#]],
    );
    lapse(&mut cluster, 1, Timestamp(0));
    check(
        &cluster,
        expect![[r#"
        web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
    "#]],
    );
}

#[test]
fn backends_of_one_host_share_the_proxy_protocol() {
    let mut cluster = rolling();
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    let second = env.releases.get_mut(&ReleaseNumber(2)).unwrap();
    let web = second.manifest.processes.values_mut().next().unwrap();
    web.ports[0].proxy_protocol = Some(ProxyProtocol::V2);
    second.manifest.routes.values_mut().next().unwrap().port = 9090;
    let ports = web.ports.clone();
    let third = cluster.instances.get_mut(&InstanceId(3)).unwrap();
    std::sync::Arc::make_mut(&mut third.spec).ports = ports;
    check(
        &cluster,
        expect![[r#"
        web.example.com -> shop/prod web V2: [fd00:1111:2222:1:0:1:0:3]:61001
    "#]],
    );
    cluster.instances.get_mut(&InstanceId(3)).unwrap().report = None;
    check(
        &cluster,
        expect![[r#"
        web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080
    "#]],
    );
}

/// An edge speaks one protocol to all backends of a host; nodes do not hear of it, and a TCP route has none.
#[test]
fn backends_of_one_host_speak_the_same() {
    let mut cluster = rolling();
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    let second = env.releases.get_mut(&ReleaseNumber(2)).unwrap();
    let web = second.manifest.processes.values_mut().next().unwrap();
    web.ports[0].protocol = Protocol::H2c;
    let target = second.manifest.routes.values_mut().next().unwrap();
    target.port = 9090;
    let target = target.clone();
    (second.manifest.routes).insert(route_name::of_tcp(30_080), target);
    check(
        &cluster,
        expect![[r#"
            tcp:30080 -> shop/prod web: [fd00:1111:2222:1:0:1:0:3]:9090
            web.example.com -> shop/prod web h2c: [fd00:1111:2222:1:0:1:0:3]:9090
        "#]],
    );
    cluster.instances.get_mut(&InstanceId(3)).unwrap().report = None;
    check(
        &cluster,
        expect![[r#"
            tcp:30080 -> shop/prod web:
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080
        "#]],
    );
}

#[test]
fn a_host_without_backends_stays_and_the_host_of_a_failed_release_goes() {
    let mut cluster = rolling();
    cluster.instances.clear();
    check(
        &cluster,
        expect![[r#"
        web.example.com -> shop/prod web:
    "#]],
    );
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout.phase = RolloutPhase::Failed;
    env.rollout.previous = None;
    check(&cluster, expect![""]);
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    (env.rollout.phase, env.destroying) = (RolloutPhase::Done, true);
    check(&cluster, expect![""]);
}

#[test]
fn a_frozen_env_keeps_its_routes() {
    let mut cluster = rolling();
    let before = routes(&cluster);
    let frozen = |cluster: &ClusterState| {
        let stored = before.clone().into_iter().map(|(host, route)| {
            let stored = StoredRoute { route, changed: 1 };
            (host, stored)
        });
        let mut index = RouteIndex::new(stored, 1);
        let had: Vec<_> = index.envs().cloned().collect();
        // Twice: it stays as it is.
        index.update(cluster, had.iter().chain(cluster.envs.keys()).chain(&had));
        index.whole(Incarnation(1)).routes
    };
    let unreadable = |subject| UnreadableRecord {
        subject,
        env: Some(key("shop/prod")),
        node: Some(NodeId(1)),
        holds: None,
        cause: "a test".to_owned(),
    };
    // One instance cannot be read: it stays a backend, and a readable one that is no longer ready does not.
    cluster.instances.remove(&InstanceId(1));
    cluster.instances.get_mut(&InstanceId(2)).unwrap().report = None;
    cluster.unreadable = vec![unreadable(Subject::Instance(InstanceId(1)))];
    let table = frozen(&cluster);
    let backends = &table["web.example.com"].backends;
    let ids: Vec<_> = backends.iter().map(|b| b.instance.0).collect();
    assert_eq!(ids, [3, 1]);
    // The env cannot be read: its hosts stay, also against another env that claims them.
    let env = cluster.envs.remove(&key("shop/prod")).unwrap();
    cluster.unreadable = vec![unreadable(Subject::Env(key("shop/prod")))];
    assert_eq!(frozen(&cluster), before);
    cluster.envs.insert(key("shop/other"), (*env).clone());
    assert_eq!(frozen(&cluster), before);
    cluster.unreadable.clear();
    assert_ne!(frozen(&cluster), before);
}

#[test]
fn case_a_host_that_a_release_adds_leads_to_instances_that_it_does_not_touch() {
    let mut cluster = rolling();
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    // As v2 but for a host.
    let mut third = env.releases.get(&ReleaseNumber(2)).unwrap().clone();
    let target = third.manifest.routes.values().next().unwrap().clone();
    (third.manifest.routes).insert("zoo.example.com".to_owned(), target);
    env.releases.insert(ReleaseNumber(3), third);
    (env.rollout.release, env.rollout.wanted) = (ReleaseNumber(3), ReleaseNumber(3));
    check(
        &cluster,
        expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
            zoo.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:3]:9090
        "#]],
    );
}

#[test]
fn a_host_that_a_release_added_leads_to_instances_of_before_while_the_next_one_rolls_out() {
    let mut cluster = rolling();
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    // As v2 but for a host, and other settings of the one that was there.
    let mut third = env.releases.get(&ReleaseNumber(2)).unwrap().clone();
    let target = third.manifest.routes.values_mut().next().unwrap();
    target.settings.sticky = true;
    let target = target.clone();
    (third.manifest.routes).insert("zoo.example.com".to_owned(), target);
    // And one with other instances.
    let mut fourth = third.clone();
    let web = fourth.manifest.processes.values_mut().next().unwrap();
    web.env.insert("COLOR".to_owned(), "green".to_owned());
    env.releases.insert(ReleaseNumber(3), third);
    env.releases.insert(ReleaseNumber(4), fourth);
    (env.rollout.release, env.rollout.wanted) = (ReleaseNumber(4), ReleaseNumber(4));
    (env.rollout.phase, env.rollout.previous) = (RolloutPhase::Rolling, Some(ReleaseNumber(3)));
    check(
        &cluster,
        expect![[r#"
            web.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:1]:8080 [fd00:1111:2222:2:0:1:0:2]:8080 [fd00:1111:2222:1:0:1:0:3]:9090
            zoo.example.com -> shop/prod web: [fd00:1111:2222:1:0:1:0:3]:9090
        "#]],
    );
    assert!(routes(&cluster)["web.example.com"].settings.sticky);
}

#[test]
fn an_edge_that_takes_the_differences_has_the_whole_table() {
    let mut cluster = rolling();
    let one = Incarnation(1);
    let mut index = RouteIndex::default();
    index.update(&cluster, cluster.envs.keys());
    let first = index.whole(one);
    assert_eq!((first.generation.counter, index.len()), (1, 1));
    // Nothing new: the same table.
    let env = key("shop/prod");
    assert!(index.update(&cluster, [&env]).is_empty());
    assert_eq!(index.since(one, 1).unwrap().routes.len(), 0);
    deploy(
        &mut cluster,
        "blog/prod",
        manifest(&[("web", process(1))]),
        Timestamp(0),
    );
    let release = cluster.envs.get_mut(&key("blog/prod")).unwrap();
    let release = release.releases.get_mut(&ReleaseNumber(1)).unwrap();
    let target = release.manifest.routes.pop_first().unwrap().1;
    release
        .manifest
        .routes
        .insert("blog.example.com".to_owned(), target);
    let changed = index.update(&cluster, [&key("blog/prod")]);
    assert_eq!(changed.keys().collect::<Vec<_>>(), ["blog.example.com"]);
    cluster.envs.remove(&env);
    cluster.instances.clear();
    index.update(&cluster, [&env]);
    let both = index.since(one, 1).unwrap();
    assert_eq!(both.removed, BTreeSet::from(["web.example.com".to_owned()]));
    assert_eq!(both.routes, index.whole(one).routes);
    let last = index.since(one, 2).unwrap();
    assert_eq!((last.routes.len(), last.removed.len()), (0, 1));
    // What this server never knew, and what it does not know yet.
    assert!(RouteIndex::new([], 7).since(one, 6).is_none());
    assert!(index.since(one, 4).is_none());
}

#[test]
fn an_edge_of_another_session_gets_the_whole_table_even_where_its_counter_is_the_same() {
    let cluster = rolling();
    let mut index = RouteIndex::new([], 7);
    index.update(&cluster, cluster.envs.keys());
    let one = Incarnation(1);
    let (now, before) = (LeaderSession(2), LeaderSession(1));
    let has = |counter, session| HasRoutes {
        generation: Generation {
            incarnation: one,
            counter,
        },
        session,
    };
    let news = |counter, session| index.news(one, now, has(counter, session));
    assert_eq!(news(8, now), None);
    assert_eq!(news(7, now).unwrap().since, Some(7));
    for counter in [7, 8, 9, u64::MAX] {
        let table = news(counter, before).unwrap();
        assert_eq!((table.since, table.session), (None, now), "{counter}");
        assert_eq!(table.routes, index.whole(one).routes);
    }
    // Of before sessions: by its counter.
    assert_eq!(news(8, LeaderSession::NONE), None);
    assert_eq!(news(7, LeaderSession::NONE).unwrap().since, Some(7));
}

#[test]
fn a_host_belongs_to_one_env() {
    let mut cluster = rolling();
    let manifest = manifest(&[("web", process(1))]);
    let taken = taken_hosts(&cluster, &key("shop/test"), &manifest);
    let expected = BTreeMap::from([("web.example.com".to_owned(), key("shop/prod"))]);
    assert_eq!(taken, expected);
    assert!(taken_hosts(&cluster, &key("shop/prod"), &manifest).is_empty());
    let mut going = cluster.clone();
    let destroy = Command::DestroyEnv {
        env: key("shop/prod"),
    };
    apply(&mut going, &destroy).unwrap();
    assert!(taken_hosts(&going, &key("shop/test"), &manifest).is_empty());
    // Where it came to be claimed twice nevertheless, the older env keeps it.
    deploy(&mut cluster, "shop/a", manifest, Timestamp(0));
    let owner = &routes(&cluster)["web.example.com"].env;
    assert_eq!(*owner, key("shop/prod"));
}

/// A manifest whose only route has this name.
fn leading(name: &str, tls: Option<TlsMode>) -> Manifest {
    let mut manifest = manifest(&[("web", process(1))]);
    let (_, mut target) = manifest.routes.pop_first().unwrap();
    target.settings.tls = tls;
    manifest.routes.insert(name.to_owned(), target);
    manifest
}

#[test]
fn a_port_of_edges_is_shared_by_hosts_and_a_host_belongs_to_one_env_at_all_ports() {
    let at = |host: &str, port| route_name::of_tls(host, port);
    let mut cluster = cluster(1);
    let (terminate, passthrough) = (Some(TlsMode::Terminate), Some(TlsMode::Passthrough));
    let first = leading(&at("a.example.com", 30_432), terminate);
    deploy(&mut cluster, "shop/a", first, Timestamp(0));
    let plain = leading(&route_name::of_tcp(30_500), None);
    deploy(&mut cluster, "shop/plain", plain, Timestamp(0));
    let host = leading("web.example.com", None);
    deploy(&mut cluster, "shop/web", host, Timestamp(0));
    let owner_of = |name: &str, env: &str| {
        let manifest = leading(name, passthrough);
        let taken = taken_hosts(&cluster, &key(env), &manifest);
        taken.into_values().next().map(|owner| owner.to_string())
    };
    for (name, owner) in [
        // Another host of the same port, and the same port's neighbour.
        (at("b.example.com", 30_432), None),
        (route_name::of_tcp(30_433), None),
        (at("a.example.com", 30_432), Some("shop/a")),
        // The same host elsewhere, by HTTP too.
        (at("a.example.com", 30_433), Some("shop/a")),
        ("a.example.com".to_owned(), Some("shop/a")),
        (at("web.example.com", 30_432), Some("shop/web")),
        // A port is for hosts, or for whoever connects.
        (route_name::of_tcp(30_432), Some("shop/a")),
        (at("b.example.com", 30_500), Some("shop/plain")),
        (route_name::of_tcp(30_500), Some("shop/plain")),
    ] {
        let found = owner_of(&name, "shop/other");
        assert_eq!(found.as_deref(), owner, "{name}");
        if let Some(owner) = owner {
            assert_eq!(owner_of(&name, owner), None, "{name}");
        }
    }
    // What was claimed is free with the env.
    let destroy = Command::DestroyEnv { env: key("shop/a") };
    apply(&mut cluster, &destroy).unwrap();
    let manifest = leading(&route_name::of_tcp(30_432), None);
    assert!(taken_hosts(&cluster, &key("shop/other"), &manifest).is_empty());
}

#[test]
fn edges_have_certificates_for_hosts_of_http_and_of_tls_that_ends_there() {
    let mut cluster = cluster(1);
    let at = |host: &str| route_name::of_tls(host, 30_432);
    for (env, name, tls) in [
        ("shop/a", "a.example.com".to_owned(), None),
        ("shop/b", at("b.example.com"), Some(TlsMode::Terminate)),
        ("shop/c", at("c.example.com"), Some(TlsMode::Passthrough)),
        ("shop/d", route_name::of_tcp(30_500), None),
    ] {
        deploy(&mut cluster, env, leading(&name, tls), Timestamp(0));
    }
    let mut index = RouteIndex::default();
    index.update(&cluster, cluster.envs.keys());
    assert_eq!(index.len(), 4);
    for (host, is_served) in [
        ("a.example.com", true),
        ("b.example.com", true),
        ("b.example.com.example.com", false),
        ("b.example", false),
        ("c.example.com", false),
        ("tcp:30500", false),
        ("tls:b.example.com:30432", false),
        ("", false),
    ] {
        assert_eq!(index.is_served(host), is_served, "{host}");
    }
}

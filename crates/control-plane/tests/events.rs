//! Events and their stories from the outside: what happened, by whom, and who may read it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use api::event::{Actor, Event, EventKind, EventPage, EventsQuery};
use api::node::InstanceReport;
use api::user::{CreateUserTokenRequest, DeployRequest, GrantRequest, Role, SetSecretsRequest};
use api::why::{Why, WhyQuery, WhySubject};
use api_client::{ApiClient, ClientConfig, ClientError};
use model::instance::InstanceSpec;
use model::{EnvKey, Generation, UserName};
use support::registry::Registry;
use support::{
    Joined, ObedientNode, ReportsAll as _, Server, env_key, eventually, manifest, report, running,
};

const NO_WAIT: Duration = Duration::ZERO;

async fn deploy(user: &ApiClient, registry: &Registry, key: &EnvKey, manifest: String) {
    let digest = registry.push("shop", "amd64", "one").await;
    let request = DeployRequest {
        only: BTreeSet::new(),
        manifest,
        image: format!("{}/shop@{digest}", registry.host),
    };
    user.deploy(key, &request).await.unwrap();
}

async fn events(user: &ApiClient, query: EventsQuery) -> Vec<Event> {
    user.events(&query, NO_WAIT).await.unwrap().events
}

fn of_kind(kind: &str) -> EventsQuery {
    EventsQuery {
        kind: Some(kind.to_owned()),
        ..EventsQuery::default()
    }
}

fn kinds(events: &[Event]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

/// Follows from a number on until an event of this kind came.
async fn follow(user: &ApiClient, mut after: u64, until: EventKind) -> Vec<Event> {
    let mut told = Vec::new();
    while told.iter().all(|event: &Event| event.kind != until) {
        let query = EventsQuery {
            after: Some(after),
            ..EventsQuery::default()
        };
        let page: EventPage = user.events(&query, Duration::from_secs(20)).await.unwrap();
        assert!(page.next >= after);
        after = page.next;
        told.extend(page.events);
    }
    told
}

/// A user with one role, and a client of this user.
async fn somebody(server: &Server, name: &str, org: Option<&str>, role: Role) -> ApiClient {
    let name: UserName = name.parse().unwrap();
    let request = GrantRequest {
        org: org.map(|org| org.parse().unwrap()),
        role: Some(role),
    };
    server.user.grant(&name, &request).await.unwrap();
    let request = CreateUserTokenRequest {
        user: Some(name),
        org: None,
        role: None,
        ttl_seconds: None,
        note: String::new(),
    };
    let made = server.user.create_user_token(&request).await.unwrap();
    let config = ClientConfig {
        token: made.token,
        ..server.config.clone()
    };
    ApiClient::user(&config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_followed_as_it_goes_and_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let node = ObedientNode::start(&server).await;
    let key = env_key("shop", "prod");
    let user = &server.user;
    let secret = "a value that nobody is told";
    let set = SetSecretsRequest {
        set: BTreeMap::from([("PASSWORD".to_owned(), secret.as_bytes().to_vec())]),
        unset: Vec::new(),
    };
    user.set_secrets(&key, "database", &set).await.unwrap();
    let before = user.events(&EventsQuery::default(), NO_WAIT).await.unwrap();
    assert_eq!(before.events[0].kind, EventKind::ServerLeads);
    let joined = (before.events.iter()).find(|event| event.kind == EventKind::NodeJoined);
    assert_eq!(joined.unwrap().by, Actor::Node(node.id));
    // Its node may say something after it.
    let set = (before.events.iter()).find(|event| event.kind == EventKind::SecretSet);
    let last = set.unwrap();
    assert_eq!(last.message, "database, version 1");
    assert_eq!(last.by, Actor::User(UserName::admin()));

    let (follower, next) = (server.user.clone(), before.next);
    let following =
        tokio::spawn(async move { follow(&follower, next, EventKind::ReleaseRolledOut).await });
    deploy(user, &registry, &key, manifest("shop")).await;
    let told = following.await.unwrap();
    let deployed = told
        .iter()
        .find(|event| event.kind == EventKind::ReleaseDeployed);
    let deployed = deployed.unwrap();
    assert_eq!(deployed.by, Actor::User(UserName::admin()));
    assert!(
        deployed.message.contains("/shop@sha256:"),
        "{}",
        deployed.message
    );
    let count = |wanted| told.iter().filter(|event| event.kind == wanted).count();
    for kind in [
        EventKind::InstanceScheduled,
        EventKind::InstanceStarted,
        EventKind::InstanceReady,
    ] {
        assert_eq!(count(kind), 2, "{kind} of {told:#?}");
    }
    assert!(told.is_sorted_by(|a, b| a.number < b.number));
    let of = |kind| told.iter().find(|event| event.kind == kind).unwrap();
    assert_eq!(of(EventKind::InstanceScheduled).by, Actor::Planner);
    assert_eq!(of(EventKind::InstanceReady).by, Actor::Node(node.id));

    // Of one instance, of the node, of a time, some of them.
    let instance = of(EventKind::InstanceReady).instance.unwrap();
    let query = EventsQuery {
        instance: Some(instance),
        ..EventsQuery::default()
    };
    let story = events(user, query.clone()).await;
    assert_eq!(
        kinds(&story),
        [
            EventKind::InstanceScheduled,
            EventKind::InstanceStarted,
            EventKind::InstanceReady
        ]
    );
    let limited = EventsQuery {
        limit: Some(1),
        ..query.clone()
    };
    assert_eq!(
        kinds(&events(user, limited).await),
        [EventKind::InstanceReady]
    );
    let paged = EventsQuery {
        after: Some(0),
        limit: Some(2),
        ..query
    };
    let page = user.events(&paged, NO_WAIT).await.unwrap();
    assert!(page.more);
    let rest = EventsQuery {
        after: Some(page.next),
        ..paged
    };
    let page = user.events(&rest, NO_WAIT).await.unwrap();
    assert_eq!(
        (kinds(&page.events), page.more),
        (vec![EventKind::InstanceReady], false)
    );
    let late = EventsQuery {
        since: Some(model::Timestamp(u64::MAX)),
        ..EventsQuery::default()
    };
    assert!(events(user, late).await.is_empty());
    let on_node = EventsQuery {
        node: Some(node.id),
        ..of_kind("instance")
    };
    assert_eq!(events(user, on_node).await.len(), 6);
    let everything = events(user, EventsQuery::default()).await;
    assert!(!format!("{everything:?}").contains(secret));
    drop(node);
    server.stop().await;

    let server = Server::start(folder.path()).await;
    let after = events(&server.user, EventsQuery::default()).await;
    assert_eq!(after[..everything.len()], everything);
    let leads = &after[everything.len()];
    assert_eq!(leads.kind, EventKind::ServerLeads);
    assert!(leads.number > everything.last().unwrap().number);
    server.stop().await;
}

/// The first admin is made by the server itself, for the machine that it runs on.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_all_is_told_also_where_a_server_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let told = events(&server.user, of_kind("user")).await;
    let told: Vec<_> = told.iter().map(|event| (event.kind, &event.by)).collect();
    let expected = [EventKind::UserGranted, EventKind::UserTokenCreated];
    assert_eq!(
        told,
        expected.each_ref().map(|kind| (*kind, &Actor::Server))
    );
    server.stop().await;
    // Once.
    let server = Server::start(folder.path()).await;
    assert_eq!(events(&server.user, of_kind("user")).await.len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_ends_with_the_next_event_that_fits_or_when_its_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let user = server.user.clone();
    let begun = user.events(&EventsQuery::default(), NO_WAIT).await.unwrap();
    let query = EventsQuery {
        after: Some(begun.next),
        ..of_kind("org-created")
    };
    let (asked, waiting) = (query.clone(), server.user.clone());
    let waiting = tokio::spawn(async move {
        waiting
            .events(&asked, Duration::from_secs(25))
            .await
            .unwrap()
    });
    // What does not fit ends no poll.
    somebody(&server, "ann", None, Role::Viewer).await;
    user.create_org(&"trade".parse().unwrap()).await.unwrap();
    let page = waiting.await.unwrap();
    assert_eq!(kinds(&page.events), [EventKind::OrgCreated]);
    let started = Instant::now();
    let query = EventsQuery {
        after: Some(page.next),
        ..query
    };
    let nothing = user
        .events(&query, Duration::from_millis(300))
        .await
        .unwrap();
    assert!(nothing.events.is_empty() && started.elapsed() >= Duration::from_millis(300));
    // A number of a store that is gone: what comes next is waited for.
    let ahead = EventsQuery {
        after: Some(u64::MAX),
        ..EventsQuery::default()
    };
    let page = user.events(&ahead, NO_WAIT).await.unwrap();
    assert!(
        page.events.is_empty() && page.next == nothing.next,
        "{page:?}"
    );

    let code = |refused: Result<EventPage, ClientError>| {
        refused.unwrap_err().code().map(str::to_owned).unwrap()
    };
    let refused = user.events(&of_kind("nod"), NO_WAIT).await;
    assert_eq!(code(refused), "event_kind_unknown");
    for limit in [0, 1_001, u32::MAX] {
        let query = EventsQuery {
            limit: Some(limit),
            ..EventsQuery::default()
        };
        assert_eq!(code(user.events(&query, NO_WAIT).await), "bad_request");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_org_did_is_told_to_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let node = ObedientNode::start(&server).await;
    for org in ["trade", "bank"] {
        server.user.create_org(&org.parse().unwrap()).await.unwrap();
    }
    let trader = somebody(&server, "trader", Some("trade"), Role::Admin).await;
    let banker = somebody(&server, "banker", Some("bank"), Role::Admin).await;
    let key = env_key("shop", "prod");
    deploy(&trader, &registry, &key, manifest("shop")).await;
    follow(&trader, 0, EventKind::ReleaseRolledOut).await;
    let trades = events(&trader, EventsQuery::default()).await;
    let is_trades = |event: &Event| {
        event
            .org
            .as_ref()
            .is_some_and(|org| org.as_str() == "trade")
    };
    assert!(
        trades.len() > 5 && trades.iter().all(is_trades),
        "{trades:#?}"
    );
    // Neither the other org's, nor the cluster's.
    let banks = events(&banker, EventsQuery::default()).await;
    assert_eq!(kinds(&banks), [EventKind::OrgCreated]);
    for query in [
        EventsQuery {
            app: Some("shop".parse().unwrap()),
            ..EventsQuery::default()
        },
        EventsQuery {
            instance: trades.iter().find_map(|event| event.instance),
            ..EventsQuery::default()
        },
        EventsQuery {
            node: Some(node.id),
            ..EventsQuery::default()
        },
        EventsQuery {
            after: Some(0),
            ..of_kind("instance")
        },
    ] {
        assert!(events(&banker, query).await.is_empty());
    }
    // A page that has nothing for the caller goes on all the same.
    let first = EventsQuery {
        after: Some(0),
        limit: Some(1),
        ..EventsQuery::default()
    };
    let page = banker.events(&first, NO_WAIT).await.unwrap();
    assert_eq!((page.events.len(), page.more), (1, false));
    let why = |subject: &str| WhyQuery {
        subject: subject.to_owned(),
        app: None,
        env: None,
    };
    let instance = trades.iter().find_map(|event| event.instance).unwrap();
    let refused =
        |answer: Result<Why, ClientError>| answer.unwrap_err().code().map(str::to_owned).unwrap();
    let there = banker.why(&why(&instance.to_string())).await;
    let nowhere = banker.why(&why("0000beef")).await;
    assert_eq!(refused(there), refused(nowhere));
    let there = banker.why(&why("shop/prod/web")).await;
    assert_eq!(refused(there), "process_not_found");
    let node_id = node.id.to_string();
    assert_eq!(refused(banker.why(&why(&node_id)).await), "forbidden");
    assert!(trader.why(&why(&instance.to_string())).await.is_ok());

    // The app's name is the other org's afterwards: what was before stays untold.
    let to = "bank".parse().unwrap();
    server.user.move_app(&key.app, &to).await.unwrap();
    let told = events(&banker, EventsQuery::default()).await;
    assert_eq!(kinds(&told), [EventKind::OrgCreated, EventKind::AppMoved]);
    assert!(
        !told.iter().any(|event| event.message.contains("trade")),
        "{told:#?}"
    );
    let told = events(&trader, EventsQuery::default()).await;
    assert_eq!(told.last().unwrap().kind, EventKind::AppMoved);
    assert!(
        !told.iter().any(|event| event.message.contains("bank")),
        "{told:#?}"
    );
    // And what became of it since: its own events of before do not lead there.
    let there = trader.why(&why(&instance.to_string())).await;
    let nowhere = trader.why(&why("0000beef")).await;
    assert_eq!(refused(there), refused(nowhere));
    server.stop().await;
}

/// The instances that the node is to run. It reports each of them as `said` has it.
async fn obey(node: &Joined, said: impl Fn(&InstanceSpec) -> InstanceReport) -> Vec<InstanceSpec> {
    eventually("a desired state", async || {
        let wait = Duration::from_millis(100);
        let desired = node.client.desired(Generation::default(), wait).await;
        let state = desired.unwrap()?;
        let reports = state.instances.iter().map(&said).collect();
        let said = report(state.generation, reports);
        node.client.report_all(&said).await.unwrap();
        Some(state.instances)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_of_what_was_replaced_and_of_what_finds_no_node() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (node_id, node) = server.join_node().await;
    let user = &server.user;
    let why = async |subject: &str| {
        let query = WhyQuery {
            subject: subject.to_owned(),
            app: Some("shop".parse().unwrap()),
            env: Some("prod".parse().unwrap()),
        };
        user.why(&query).await.unwrap()
    };
    let key = env_key("shop", "prod");
    let two = manifest("shop") + "[processes.giant.resources]\nmemory = \"1TiB\"\n";
    deploy(user, &registry, &key, manifest("shop")).await;
    let ready = |spec: &InstanceSpec| running(spec.id);
    let rolled_out = async || {
        obey(&node, ready).await;
        let status = user.rollout(&key, None, None, NO_WAIT).await.unwrap();
        (status.phase == api::user::RolloutPhase::Done).then_some(())
    };
    eventually("the rollout", rolled_out).await;

    // By its liveness check.
    let victim = obey(&node, ready).await[0].id;
    let dead = |spec: &InstanceSpec| InstanceReport {
        liveness_failure: (spec.id == victim)
            .then(|| "the liveness check failed 3 times in a row: no answer".to_owned()),
        ..running(spec.id)
    };
    eventually("the end of the victim", async || {
        let there = obey(&node, dead).await;
        let is_gone = !there.iter().any(|spec| spec.id == victim);
        let ended = user.ended_instances().await.unwrap();
        (is_gone && ended.iter().any(|row| row.id == victim)).then_some(())
    })
    .await;
    let story = why(&victim.to_string()).await;
    assert!(matches!(story.subject, WhySubject::Instance { id, .. } if id == victim));
    assert!(story.state.starts_with("gone since "), "{}", story.state);
    let liveness = "the liveness check failed 3 times in a row: no answer";
    assert!(story.reasons[0].contains(liveness), "{:?}", story.reasons);
    assert_eq!(story.release.as_ref().unwrap().by, Some(UserName::admin()));
    assert_eq!(story.node.as_ref().unwrap().id, node_id);
    let told = kinds(&story.events);
    for kind in [
        EventKind::InstanceScheduled,
        EventKind::InstanceReady,
        EventKind::InstanceUnhealthy,
        EventKind::InstanceStopping,
        EventKind::InstanceStopped,
    ] {
        assert!(told.contains(&kind), "{kind} of {told:?}");
    }

    // Its process type, under both of its names.
    eventually("the other one", rolled_out).await;
    let story = why("web").await;
    assert_eq!(story.state, "2 of 2 ready");
    assert_eq!(why("shop/prod/web").await, story);
    assert_eq!(story.instances.len(), 2);

    // What finds no node.
    deploy(user, &registry, &key, two).await;
    let story = eventually("why it waits", async || {
        let story = why("giant").await;
        (!story.reasons.is_empty()).then_some(story)
    })
    .await;
    assert_eq!(story.state, "0 of 1 ready");
    let reason = &story.reasons[0];
    assert!(reason.contains("no node can take it"), "{reason}");
    assert!(reason.contains("MiB of memory are needed"), "{reason}");
    assert!(
        story
            .next
            .iter()
            .any(|next| next.contains("looked at again")),
        "{:?}",
        story.next
    );

    // The node, by its id and its name.
    let story = why(&node_id.to_string()).await;
    let WhySubject::Node { name, .. } = &story.subject else {
        panic!("{story:?}");
    };
    let by_name = why(name).await;
    assert_eq!(by_name.subject, story.subject);
    assert_eq!(story.state, "online");
    assert!(
        kinds(&story.events)
            .iter()
            .all(|kind| *kind != EventKind::ReleaseDeployed)
    );

    for subject in [
        "nothing",
        "a/b",
        "shop/prod/wbe",
        "n99",
        "0000beef",
        "",
        "..",
        "%00",
    ] {
        let query = WhyQuery {
            subject: subject.to_owned(),
            app: None,
            env: None,
        };
        let refused = user.why(&query).await.unwrap_err();
        let code = refused.code().unwrap();
        assert!(
            ["subject_not_found", "process_not_found"].contains(&code),
            "{subject}: {refused}"
        );
    }
    let long = WhyQuery {
        subject: "x".repeat(201),
        app: None,
        env: None,
    };
    let refused = user.why(&long).await.unwrap_err();
    assert_eq!(refused.code(), Some("subject_too_long"));
    server.stop().await;
}

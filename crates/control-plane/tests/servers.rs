//! Several servers on one PostgreSQL, each in a process of its own: the leader is killed, stopped and woken.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it saw"
)]

#[path = "../../store/tests/support/postgres.rs"]
mod postgres;
mod support;

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use api::enrollment::{EnrollRole, Member};
use api::node::{DesiredState, StreamRequest};
use api::user::{ScaleRequest, SetSecretsRequest};
use api_client::{ApiClient, ClientConfig};
use control_plane::{KEY_FILE, ServerError};
use futures_util::StreamExt as _;
use identity::MemberKey;
use model::{EnvKey, Generation, Term, Timestamp};
use support::registry::Registry;
use support::*;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Tell the child where its data folder and its store are.
const FOLDER: &str = "PLATFORM_TEST_SERVER_FOLDER";
const STORE: &str = "PLATFORM_TEST_SERVER_STORE";
/// The longest time from the end of a leader to an answer of the next (ADR 0001).
const TAKEOVER: Duration = Duration::from_secs(10);

/// Not a test: the server in a process of its own. It does nothing when run among the tests.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_serves() {
    let (Ok(folder), Ok(store)) = (std::env::var(FOLDER), std::env::var(STORE)) else {
        return;
    };
    let (sender, ready) = tokio::sync::oneshot::channel();
    let mut options = options(Path::new(&folder));
    options.store = Some(store);
    options.ready = Some(sender);
    let server = tokio::spawn(control_plane::run(options, CancellationToken::new()));
    if let Ok(ready) = ready.await {
        println!("ready {}", ready.url);
        std::io::stdout().flush().unwrap();
    }
    panic!("the server ended: {:?}", server.await);
}

/// A server in a process of its own.
struct ServerProcess {
    folder: TempDir,
    child: Child,
    url: String,
    config: ClientConfig,
}

impl ServerProcess {
    /// Starts it, with the key of the cluster where there is one.
    fn start(store: &str, key_of: Option<&Self>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let Some(other) = key_of {
            let key = other.folder.path().join(KEY_FILE);
            std::fs::copy(key, folder.path().join(KEY_FILE)).unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_serves", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(STORE, store)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = loop {
            let line = lines.next().expect("the server ended").unwrap();
            if let Some((_, url)) = line.split_once("ready ") {
                break url.to_owned();
            }
        };
        let config = ClientConfig::load(&folder.path().join("client.json")).unwrap();
        Self {
            folder,
            child,
            url,
            config,
        }
    }

    /// A user, who asks this server.
    fn user(&self, config: &ClientConfig) -> ApiClient {
        let config = ClientConfig {
            server: self.url.clone(),
            ..config.clone()
        };
        ApiClient::user(&config).unwrap()
    }

    /// A member, who asks this server.
    fn member(&self, joined: &Joined) -> ApiClient {
        let response = &joined.response;
        let (ca, certificate) = (&response.ca_pem, &response.certificate_pem);
        ApiClient::member(&self.url, ca, certificate, &joined.key_pem).unwrap()
    }

    fn signal(&self, signal: &str) {
        let line = format!("kill -{signal} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &line]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn join_node(server: &ServerProcess, config: &ClientConfig) -> Joined {
    let request = api::user::CreateTokenRequest::new(EnrollRole::Node, 600);
    let token = server.user(config).create_token(&request).await.unwrap();
    let token: identity::EnrollmentToken = token.token.parse().unwrap();
    let key = MemberKey::generate().unwrap();
    let verifier = identity::pinned_root(token.ca_fingerprint);
    let request = enroll_request(&token, &key);
    let response = ApiClient::enroll(&server.url, verifier, &request).await;
    let response = response.unwrap();
    assert!(matches!(response.member, Member::Node(_)));
    Joined {
        client: ApiClient::member(
            &server.url,
            &response.ca_pem,
            &response.certificate_pem,
            &key.key_pem(),
        )
        .unwrap(),
        response,
        key_pem: key.key_pem(),
    }
}

fn content(number: u32) -> SetSecretsRequest {
    SetSecretsRequest {
        set: [("number".to_owned(), number.to_string().into_bytes())].into(),
        unset: Vec::new(),
    }
}

/// Writes versions of a secret bundle through these servers in turn, whoever answers, and counts those that were acknowledged.
async fn keep_writing(users: Vec<ApiClient>, env: EnvKey, acknowledged: Arc<AtomicU32>) {
    for number in 1.. {
        let user = &users[number as usize % users.len()];
        let content = content(number);
        let writing = user.set_secrets(&env, "db", &content);
        match tokio::time::timeout(Duration::from_secs(1), writing).await {
            Ok(Ok(row)) => {
                let before = acknowledged.fetch_max(row.version, Ordering::AcqRel);
                assert!(row.version > before, "{} after {before}", row.version);
            }
            Ok(Err(error)) => {
                assert!(error.is_transient(), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(_) => {}
        }
    }
}

async fn version(user: &ApiClient, env: &EnvKey) -> Option<u32> {
    let rows = user.secrets(env).await.ok()?;
    rows.first().map(|row| row.version)
}

/// Waits until this many more versions are acknowledged.
async fn more(acknowledged: &AtomicU32, count: u32) -> u32 {
    let before = acknowledged.load(Ordering::Acquire);
    eventually("more writes", async || {
        let now = acknowledged.load(Ordering::Acquire);
        (now >= before + count).then_some(now)
    })
    .await
}

async fn desired(client: &ApiClient) -> DesiredState {
    eventually("a desired state", async || {
        let wait = Duration::from_millis(200);
        let state = client.desired(Generation::default(), wait).await;
        state.ok().flatten()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_key_of_the_cluster_is_refused_and_told_where_it_is() {
    let store = postgres::database().await;
    let first = ServerProcess::start(&store, None);
    let folder = tempfile::tempdir().unwrap();
    let mut second = options(folder.path());
    second.store = Some(store.clone());
    let refused = control_plane::run(second, CancellationToken::new()).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, ServerError::KeyMissing { .. }),
        "{refused}"
    );
    let hint = refused.hint().unwrap();
    assert!(hint.contains("another server of this cluster"), "{hint}");
    // It would be forwarded to an address that nobody can dial.
    let mut anywhere = options(folder.path());
    anywhere.store = Some(store);
    anywhere.listen = "[::]:0".parse().unwrap();
    let refused = control_plane::run(anywhere, CancellationToken::new()).await;
    let refused = refused.unwrap_err();
    assert!(refused.hint().unwrap().contains("--advertise"), "{refused}");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_answers_users_and_members_and_believes_no_caller_who_claims_to_forward() {
    let store = postgres::database().await;
    let first = ServerProcess::start(&store, None);
    let second = ServerProcess::start(&store, Some(&first));
    let registry = Registry::start().await;
    // Every server's own client.json is one of this cluster.
    for config in [&first.config, &second.config] {
        for server in [&first, &second] {
            assert!(server.user(config).envs().await.unwrap().is_empty());
        }
    }
    let node = join_node(&second, &first.config).await;
    let (here, there) = (second.member(&node), first.member(&node));
    let state = desired(&here).await;
    assert!(state.term > Term(0));
    here.report_all(&report(state.generation, Vec::new()))
        .await
        .unwrap();
    // A long poll at the follower ends when something changes at the leader.
    let waiting = tokio::spawn(async move { here.desired(state.generation, PATIENCE).await });
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let request = api::user::DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("hello"),
        image: format!("{}/hello@{digest}", registry.host),
    };
    let user = second.user(&first.config);
    user.deploy(&key, &request).await.unwrap();
    let newer = waiting.await.unwrap().unwrap().unwrap();
    assert!(newer.generation.counter > state.generation.counter);
    assert_eq!(desired(&there).await.term, newer.term);

    // Of several servers that a caller knows, one that does not answer is passed over.
    let several = ClientConfig {
        server: format!("https://127.0.0.1:1,{}", second.url),
        ..first.config.clone()
    };
    let rows = ApiClient::user(&several).unwrap().envs().await.unwrap();
    assert_eq!(rows.len(), 1);

    // Neither a user nor a member is another member by saying so, and no server is asked twice.
    let (node_id, path) = (node.response.member.to_string(), api::paths::NODE_DESIRED);
    for server in [&first, &second] {
        let client = plain(&first.config.ca_pem, None);
        let request = client.get(format!("{}{path}", server.url));
        let request = request
            .header("platform-forwarded-for", &node_id)
            .header(api::protocol::PROTOCOL_HEADER, "2");
        assert_eq!(request.send().await.unwrap().status(), 401);
        let client = plain(&first.config.ca_pem, Some(&node));
        let request = client.get(format!("{}{}", server.url, api::paths::EDGE_ROUTES));
        let request = request
            .header("platform-forwarded-for", "e1")
            .header(api::protocol::PROTOCOL_HEADER, "2");
        assert_eq!(request.send().await.unwrap().status(), 403);
    }
}

/// The one stream that a node is asked for.
async fn asked(node: &ApiClient) -> StreamRequest {
    let mut requests = node.streams(PATIENCE).await.unwrap();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_logs_pass_through_a_server_that_does_not_lead() {
    let store = postgres::database().await;
    let leader = ServerProcess::start(&store, None);
    let follower = ServerProcess::start(&store, Some(&leader));
    let registry = Registry::start().await;
    let node = join_node(&follower, &leader.config).await;
    let (user, at_node) = (follower.user(&leader.config), follower.member(&node));
    let nothing = report(Generation::default(), Vec::new());
    at_node.report_all(&nothing).await.unwrap();
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let request = api::user::DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("hello"),
        image: format!("{}/hello@{digest}", registry.host),
    };
    user.deploy(&key, &request).await.unwrap();
    let state = eventually("two instances", async || {
        let state = desired(&at_node).await;
        (state.instances.len() == 2).then_some(state)
    })
    .await;
    let all = state.instances.iter().map(|spec| running(spec.id));
    let all = report(state.generation, all.collect());
    at_node.report_all(&all).await.unwrap();
    let id = state.instances[0].id;

    let query = api::user::ExecQuery {
        command: vec!["cat".to_owned()],
        rows: None,
        columns: None,
        terminal_type: None,
    };
    let (mut typed, mut run) =
        tokio::join!(async { user.exec(id, &query).await.unwrap() }, async {
            let request = asked(&at_node).await;
            at_node.open_exec(&request.stream).await.unwrap()
        });
    let input = api::exec::UserFrame::input(vec![b'x'; 200_000]);
    let (sent, received) = tokio::join!(typed.writer.send(&input), run.reader.next());
    sent.unwrap();
    assert_eq!(received.unwrap(), Some(input));
    let output = guest_protocol::GuestFrame::ExecOutput {
        stream: guest_protocol::Stream::Stdout,
        bytes: vec![b'y'; 200_000],
    };
    let (sent, received) = tokio::join!(run.writer.send(&output), typed.reader.next());
    sent.unwrap();
    assert_eq!(received.unwrap(), Some(output));
    // The user has left: the node is told.
    drop(typed);
    let received = tokio::time::timeout(PATIENCE, run.reader.next()).await;
    assert!(matches!(received.unwrap(), Ok(None) | Err(_)));

    let query = api::user::LogsQuery {
        follow: true,
        ..api::user::LogsQuery::default()
    };
    let mut reader = user.logs(&key, &query).await.unwrap();
    let request = asked(&at_node).await;
    let (sender, body) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, Infallible>>(4);
    let body = tokio_stream::wrappers::ReceiverStream::new(body);
    let client = at_node.clone();
    let sending = tokio::spawn(async move { client.open_stream(&request.stream, body).await });
    for text in ["one", "two"] {
        let line = api::node::LogLine {
            instance: id,
            process: "web".parse().unwrap(),
            at: Timestamp(1),
            stream: guest_protocol::Stream::Stdout,
            text: text.to_owned(),
            partial: false,
        };
        let mut json = serde_json::to_vec(&line).unwrap();
        json.push(b'\n');
        sender.send(Ok(json.into())).await.unwrap();
        let line = tokio::time::timeout(PATIENCE, reader.next()).await;
        assert_eq!(line.unwrap().unwrap().unwrap().text, text);
    }
    // The reader leaves, while the node has lines to come: its stream ends.
    drop(reader);
    let ended = tokio::time::timeout(PATIENCE, sending).await;
    let _ = ended.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_another_server_takes_over_when_the_leader_is_killed_and_nothing_acknowledged_is_lost()
{
    let store = postgres::database().await;
    let mut leader = ServerProcess::start(&store, None);
    let config = leader.config.clone();
    let mut follower = ServerProcess::start(&store, Some(&leader));
    let node = join_node(&follower, &config).await;
    let env = env_key("hello", "prod");
    let mut term = Term(0);
    for round in 0..3 {
        let users = vec![leader.user(&config), follower.user(&config)];
        let acknowledged = Arc::new(AtomicU32::new(0));
        let writer = tokio::spawn(keep_writing(users, env.clone(), Arc::clone(&acknowledged)));
        more(&acknowledged, 5).await;
        let state = desired(&follower.member(&node)).await;
        assert!(state.term > term, "{} after {term}", state.term);
        term = state.term;

        leader.child.kill().unwrap();
        leader.child.wait().unwrap();
        let killed = Instant::now();
        let said = acknowledged.load(Ordering::Acquire);
        more(&acknowledged, 1).await;
        let took = killed.elapsed();
        println!("round {round}: taken over after {took:?}");
        assert!(took < TAKEOVER, "{took:?}");
        writer.abort();
        let is_writer_fine = writer.await.unwrap_err().is_cancelled();
        assert!(is_writer_fine);
        let there = version(&follower.user(&config), &env).await.unwrap();
        assert!(there > said, "{there} are there, {said} were acknowledged");
        let newer = desired(&follower.member(&node)).await;
        assert!(newer.term > term);
        assert_eq!(newer.generation, state.generation);

        let next = ServerProcess::start(&store, Some(&follower));
        leader = std::mem::replace(&mut follower, next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_users_call_waits_for_the_next_leader() {
    let store = postgres::database().await;
    let mut leader = ServerProcess::start(&store, None);
    let config = leader.config.clone();
    let follower = ServerProcess::start(&store, Some(&leader));
    let (user, env) = (follower.user(&config), env_key("hello", "prod"));
    user.set_secrets(&env, "db", &content(1)).await.unwrap();
    leader.child.kill().unwrap();
    leader.child.wait().unwrap();
    // No call fails: they are answered by whoever leads next.
    let row = user.set_secrets(&env, "db", &content(2)).await.unwrap();
    assert_eq!(row.version, 2);
    assert_eq!(version(&user, &env).await, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_leader_that_was_stopped_past_its_lease_writes_nothing_and_follows_when_it_is_woken()
{
    let store = postgres::database().await;
    let old = ServerProcess::start(&store, None);
    let config = old.config.clone();
    let new = ServerProcess::start(&store, Some(&old));
    let node = join_node(&new, &config).await;
    let registry = Registry::start().await;
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let request = api::user::DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("hello"),
        image: format!("{}/hello@{digest}", registry.host),
    };
    old.user(&config).deploy(&key, &request).await.unwrap();
    let before = desired(&new.member(&node)).await;
    let acknowledged = Arc::new(AtomicU32::new(0));
    let users = vec![old.user(&config), new.user(&config)];
    let writer = tokio::spawn(keep_writing(users, key.clone(), Arc::clone(&acknowledged)));
    more(&acknowledged, 5).await;
    // Both wait at the one that is to be stopped: one of them for a write.
    let client = old.member(&node);
    let generation = before.generation;
    let poll = tokio::spawn(async move { client.desired(generation, PATIENCE).await });

    old.signal("STOP");
    let stopped = Instant::now();
    let client = old.user(&config);
    let env = key.clone();
    let late = tokio::spawn(async move { client.set_secrets(&env, "late", &content(1)).await });
    // A write that was under way may still have been acknowledged by the one that is stopped.
    eventually("another server leads", async || {
        let client = new.member(&node);
        let wait = Duration::ZERO;
        let state = client.desired(Generation::default(), wait).await;
        let led = state.is_ok_and(|state| state.is_some_and(|s| s.term > before.term));
        led.then_some(())
    })
    .await;
    more(&acknowledged, 1).await;
    let took = stopped.elapsed();
    println!("taken over after {took:?}");
    assert!(took < TAKEOVER, "{took:?}");
    let scale = ScaleRequest {
        processes: [("web".parse().unwrap(), 3)].into(),
    };
    let user = new.user(&config);
    user.scale(&key, &scale).await.unwrap();
    let after = desired(&new.member(&node)).await;
    assert!(after.term > before.term);

    old.signal("CONT");
    // What waited there gets an error, or the new leader's answer.
    if let Ok(Some(state)) = poll.await.unwrap() {
        assert!(state.term > before.term, "{state:?}");
    }
    match late.await.unwrap() {
        Ok(row) => assert_eq!(row.version, 1),
        Err(error) => assert!(error.is_transient(), "{error}"),
    }
    // It follows: it answers as the new leader does.
    let woken = old.user(&config);
    eventually("the woken server forwards", async || {
        version(&woken, &key).await
    })
    .await;
    more(&acknowledged, 5).await;
    let state = desired(&old.member(&node)).await;
    assert_eq!(state.term, after.term);
    let rows = woken.envs().await.unwrap();
    assert_eq!(rows[0].processes[&"web".parse().unwrap()].0, 3);
    writer.abort();
    assert!(writer.await.unwrap_err().is_cancelled());
    // One leader all along since: the woken one took nothing over.
    let last = acknowledged.load(Ordering::Acquire);
    assert!(version(&user, &key).await.unwrap() >= last);
    assert_eq!(desired(&new.member(&node)).await.term, after.term);
}

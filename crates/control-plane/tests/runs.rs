//! Commands that users run in instances of their own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use api::node::{StreamRequest, StreamWanted};
use api::paths;
use api::user::{AttachQuery, RunRequest};
use model::instance::{InstanceState, RestartWhen};
use model::{EnvKey, Generation, InstanceId};
use support::registry::Registry;
use support::*;

fn request(attached: bool) -> RunRequest {
    RunRequest {
        process: None,
        command: vec!["migrate".to_owned(), "--all".to_owned()],
        attached,
        lifetime_ms: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_an_instance_of_its_own_is_attached_to_and_leaves_when_it_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let first = Generation {
        counter: 1,
        ..Generation::default()
    };
    node.client
        .report_all(&report(first, Vec::new()))
        .await
        .unwrap();
    let key = env_key("hello", "prod");
    let none = server.user.run(&key, &request(true)).await.unwrap_err();
    assert_eq!(none.code(), Some("env_not_found"));
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;

    let made = server.user.run(&key, &request(true)).await.unwrap();
    assert_eq!(made.process.as_str(), "web");
    let desired = eventually("the instance", async || {
        let newer = node.client.desired(Generation::default(), PATIENCE).await;
        let desired = newer.unwrap()?;
        let is_there = desired
            .instances
            .iter()
            .any(|spec| spec.id == made.instance);
        (is_there && desired.instances.len() == 3).then_some(desired)
    })
    .await;
    let spec = desired
        .instances
        .iter()
        .find(|spec| spec.id == made.instance);
    let spec = spec.unwrap();
    assert_eq!(spec.command.as_deref(), Some(&request(true).command[..]));
    assert!(spec.runs.is_attached() && spec.ports.is_empty());
    assert_eq!(spec.restart.when, RestartWhen::Never);

    // Its user is joined to what its node opens.
    let query = AttachQuery {
        rows: Some(24),
        columns: Some(80),
        terminal_type: None,
    };
    let (user, at_node) = tokio::join!(server.user.attach(made.instance, &query), async {
        let StreamRequest { stream, wanted } =
            node.client.streams(PATIENCE).await.unwrap().remove(0);
        let StreamWanted::Exec(wanted) = wanted else {
            panic!("{wanted:?}");
        };
        assert_eq!(
            (wanted.instance, wanted.terminal),
            (made.instance, Some((24, 80)))
        );
        assert!(wanted.command.is_empty(), "that of the instance");
        node.client.open_exec(&stream).await.unwrap()
    });
    drop((user.unwrap(), at_node));

    // It has ended: the planner takes it away, and makes no other.
    let all = desired.instances.iter().map(|spec| {
        let mut said = running(spec.id);
        if spec.id == made.instance {
            said.state = InstanceState::Stopped;
        }
        said
    });
    let said = report(desired.generation, all.collect());
    node.client.report_all(&said).await.unwrap();
    let desired = eventually("its end", async || {
        let newer = node.client.desired(desired.generation, PATIENCE).await;
        newer.unwrap()
    })
    .await;
    assert_eq!(desired.instances.len(), 2);
    assert!(desired.stop.contains(&made.instance));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_and_a_command_is_ended_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let first = Generation {
        counter: 1,
        ..Generation::default()
    };
    node.client
        .report_all(&report(first, Vec::new()))
        .await
        .unwrap();
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;
    let code = async |request: RunRequest| {
        let refused = server.user.run(&key, &request).await.unwrap_err();
        refused.code().map(str::to_owned).unwrap()
    };
    let mut wrong = request(true);
    wrong.command.clear();
    assert_eq!(code(wrong).await, "bad_request");
    let mut wrong = request(true);
    wrong.lifetime_ms = Some(u64::MAX);
    assert_eq!(code(wrong).await, "bad_request");
    let mut wrong = request(true);
    wrong.process = Some("nope".parse().unwrap());
    assert_eq!(code(wrong).await, "process_not_found");

    let made = server.user.run(&key, &request(false)).await.unwrap();
    // Nobody is to be at the streams of one that was detached, nor of the app.
    let refused = server
        .user
        .attach(made.instance, &AttachQuery::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("nothing_to_attach_to"));
    let app = eventually("an instance of the app", async || {
        let rows = server.user.instances(Some(&key)).await.unwrap();
        rows.iter().find(|row| row.runs.is_app()).map(|row| row.id)
    })
    .await;
    let refused = server.user.end_run(app).await.unwrap_err();
    assert_eq!(refused.code(), Some("not_a_command"));
    let refused = server.user.end_run(InstanceId(1)).await.unwrap_err();
    assert_eq!(refused.code(), Some("instance_not_found"));
    server.user.end_run(made.instance).await.unwrap();
    server.user.end_run(made.instance).await.unwrap();
    let rows = server.user.instances(Some(&key)).await.unwrap();
    let row = rows.iter().find(|row| row.id == made.instance);
    assert!(row.is_none_or(|row| row.terminating));
    server.stop().await;
}

/// The status of a run that is asked for with a key, and the instance or the error's code.
async fn keyed(
    server: &Server,
    key: &EnvKey,
    idempotency_key: &str,
    request: &RunRequest,
) -> (u16, String) {
    let path = paths::RUNS
        .replace("{app}", key.app.as_str())
        .replace("{env}", key.env.as_str());
    let response = plain(&server.config.ca_pem, None)
        .post(format!("{}{path}", server.ready.url))
        .bearer_auth(&server.config.token)
        .header("Idempotency-Key", idempotency_key)
        .json(request)
        .send()
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body: serde_json::Value = response.json().await.unwrap();
    let field = if status == 201 { "instance" } else { "code" };
    (status, body[field].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_run_whose_answer_was_lost_is_not_made_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let first = Generation {
        counter: 1,
        ..Generation::default()
    };
    node.client
        .report_all(&report(first, Vec::new()))
        .await
        .unwrap();
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;

    let made = keyed(&server, &key, "migrate-1", &request(true)).await;
    assert_eq!(made.0, 201, "{made:?}");
    assert_eq!(
        keyed(&server, &key, "migrate-1", &request(true)).await,
        made
    );
    let runs = server.user.instances(Some(&key)).await.unwrap();
    assert_eq!(runs.iter().filter(|row| row.runs.is_command()).count(), 1);
    // Another call is not this one, and another key is another call.
    let reused = (422, "idempotency_key_reused".to_owned());
    assert_eq!(
        keyed(&server, &key, "migrate-1", &request(false)).await,
        reused
    );
    let other = keyed(&server, &key, "migrate-2", &request(true)).await;
    assert!(other.0 == 201 && other != made, "{other:?}");
    let wrong = keyed(&server, &key, "a b", &request(true)).await;
    assert_eq!(wrong, (400, "bad_request".to_owned()));

    // It is known when it has ended, and to a server that starts anew.
    server.user.end_run(made.1.parse().unwrap()).await.unwrap();
    server.stop().await;
    let server = Server::start(folder.path()).await;
    let again = eventually("the server leads", async || {
        let again = keyed(&server, &key, "migrate-1", &request(true)).await;
        (again.0 != 503).then_some(again)
    })
    .await;
    assert_eq!(again, made);
    assert_eq!(
        keyed(&server, &key, "migrate-1", &request(false)).await,
        reused
    );
    server.stop().await;
}

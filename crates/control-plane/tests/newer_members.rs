//! Members of a newer version than the server, and what the server's log says of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use api::enrollment::EnrollRole;
use api::node::{AgentSession, ReportDelta};
use api::paths;
use api::protocol::{PROTOCOL_HEADER, PROTOCOL_VERSION};
use api_client::ApiClient;
use identity::MemberKey;
use model::{Generation, InstanceId};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use support::*;

/// Sends a report as a program of another version does.
async fn post_report(server: &Server, node: &Client, body: &str) -> StatusCode {
    let request = node
        .post(format!("{}{}", server.ready.url, paths::NODE_REPORT))
        .header(PROTOCOL_HEADER, PROTOCOL_VERSION)
        .body(body.to_owned());
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn a_report_with_an_unknown_state_is_taken_and_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start();
    let server = Server::start(folder.path()).await;
    let joined = server.join(EnrollRole::Node).await;
    let node = plain(&server.config.ca_pem, Some(&joined));
    let instances = [1, 2].map(|id| running(InstanceId(id))).to_vec();
    let generation = Generation {
        counter: 1,
        ..Generation::default()
    };
    for sequence in 1..=3 {
        let all = report(generation, instances.clone());
        let said = ReportDelta::whole(AgentSession(1), sequence, all);
        let mut said = serde_json::to_value(said).unwrap();
        said["instances"][0]["state"] = "hibernated".into();
        let status = post_report(&server, &node, &said.to_string()).await;
        assert_eq!(status, StatusCode::OK);
    }
    let lines = log.lines("in a way that this server does not know");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("00000001") && !lines[0].contains("00000002"),
        "{lines:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_logged_once_for_each_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start();
    let server = Server::start(folder.path()).await;
    let joined = server.join(EnrollRole::Node).await;
    let node = plain(&server.config.ca_pem, Some(&joined));
    let all = report(
        Generation {
            counter: 1,
            ..Generation::default()
        },
        Vec::new(),
    );
    let said = serde_json::to_value(ReportDelta::whole(AgentSession(1), 1, all)).unwrap();
    let changed = |field: &str, value: Value| {
        let mut said = said.clone();
        said[field] = value;
        said.to_string()
    };
    let long = changed("generation", "x".repeat(10_000).into());
    let unreadable = [changed("volumes", json!([{"uuid": 1}])), long.clone(), long];
    for body in unreadable {
        let status = post_report(&server, &node, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    let lines = log.lines("refused a message that cannot be read");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.contains("member=n") && line.len() < 1000),
        "{lines:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_refused_enrollment_is_in_the_log_and_a_flood_of_them_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start();
    let server = Server::start(folder.path()).await;
    let token = server.token(EnrollRole::Node).await;
    for _ in 0..20 {
        let mut request = enroll_request(&token, &MemberKey::generate().unwrap());
        request.token = "not the token".to_owned();
        request.name = "a-box-of-theirs".to_owned();
        let verifier = identity::pinned_root(token.ca_fingerprint);
        let refused = ApiClient::enroll(&server.ready.url, verifier, &request).await;
        assert!(refused.is_err());
    }
    let lines = log.lines("refused to enroll a machine");
    assert!((1..=10).contains(&lines.len()), "{lines:?}");
    assert!(lines[0].contains("a-box-of-theirs"), "{lines:?}");
    assert!(log.lines("not the token").is_empty(), "a token is a secret");
    server.stop().await;
}

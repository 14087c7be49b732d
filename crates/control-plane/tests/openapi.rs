//! The description of the API against a server: the same calls, and what they answer is as it says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use api::ApiError;
use api::openapi::{CALLS, document};
use api::user::SetSecretsRequest;
use reqwest::{Method, StatusCode};
use support::registry::Registry;
use support::{ObedientNode, Server, env_key, eventually, manifest, plain, speaking};
use tokio::process::Command;

/// The methods that a call may have.
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// Calls of machines, which the description leaves out.
const OF_MACHINES: &[(&str, &str)] = &[
    ("POST", "/v1/enroll"),
    ("GET", "/v1/member"),
    ("POST", "/v1/member/certificate"),
    ("POST", "/v1/member/overlay"),
    ("POST", "/v1/member/measurement"),
    ("GET", "/v1/node/directory"),
    ("GET", "/v1/node/desired"),
    ("POST", "/v1/node/report"),
    ("GET", "/v1/node/streams"),
    ("POST", "/v1/node/streams/{stream}"),
    ("GET", "/v1/node/streams/{stream}"),
    ("POST", "/v1/node/streams/{stream}/refused"),
    ("GET", "/v1/node/secrets"),
    ("GET", "/v1/node/pull-secret"),
    ("GET", "/v1/edge/routes"),
];

/// The server has a call where the description has one, or where it is one of machines, and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_has_the_calls_of_the_description_and_no_others() {
    // So each route has a path of `api::paths`, and those are asked below.
    let routes = include_str!("../src/api/mod.rs");
    assert!(!routes.contains("route(\""), "a route without a name");
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let http = plain(&server.config.ca_pem, None);
    let described = CALLS.iter().map(|call| (call.method, call.path));
    let calls: BTreeSet<(&str, &str)> = described.chain(OF_MACHINES.iter().copied()).collect();
    let paths: BTreeSet<&str> = calls.iter().map(|(_, path)| *path).collect();
    for path in paths {
        for name in METHODS {
            let url = format!("{}{path}", server.ready.url).replace(['{', '}'], "");
            let method: Method = name.parse().unwrap();
            // Without a token: nobody is let in, and nothing is changed.
            let response = http.request(method, url).send().await.unwrap();
            let has = calls.contains(&(name, path));
            let is_refused = response.status() == StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(is_refused, !has, "{name} {path}: {}", response.status());
            if response.status().is_client_error() {
                let error: ApiError = response.json().await.unwrap();
                assert_ne!(error.code, "no_such_path", "{name} {path}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_served_to_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let http = plain(&server.config.ca_pem, None);
    let url = format!("{}/openapi.json", server.ready.url);
    let response = http.get(&url).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let served: serde_json::Value = response.json().await.unwrap();
    assert_eq!(served, document());
    let refused = http.post(&url).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    server.stop().await;
}

/// The fields of an array would be taken by their places otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_object_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let http = plain(&server.config.ca_pem, None);
    for (body, status) in [
        ("[]", StatusCode::BAD_REQUEST),
        (" [\"trade\"]", StatusCode::BAD_REQUEST),
        ("", StatusCode::BAD_REQUEST),
        ("\n{\"name\": \"trade\"}", StatusCode::CREATED),
    ] {
        let request = http.post(format!("{}/v1/orgs", server.ready.url));
        let request = request.bearer_auth(&server.config.token).body(body);
        assert_eq!(request.send().await.unwrap().status(), status, "{body}");
    }
    server.stop().await;
}

/// Over HTTP/2 the stream would be reset before the refusal was sent.
#[tokio::test(flavor = "multi_thread")]
async fn case_a_body_that_is_too_long_is_answered_over_http_2_too() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let http = speaking(&["h2"], &server.config.ca_pem, None);
    for _ in 0..4 {
        let request = http.post(format!("{}/v1/orgs", server.ready.url));
        let request = request.bearer_auth(&server.config.token);
        let response = request.body(vec![b' '; 10 << 20]).send().await.unwrap();
        assert_eq!(response.version(), reqwest::Version::HTTP_2);
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let error: ApiError = response.json().await.unwrap();
        assert_eq!(error.code, "bad_body");
    }
    server.stop().await;
}

/// A parameter that nobody reads would be ignored otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_a_call_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let http = plain(&server.config.ca_pem, None);
    for (path, status) in [
        ("/v1/whoami", StatusCode::OK),
        ("/v1/whoami?", StatusCode::OK),
        ("/v1/whoami?verbose=1", StatusCode::BAD_REQUEST),
        ("/v1/orgs?limit=1", StatusCode::BAD_REQUEST),
        ("/v1/instances?limit=1", StatusCode::OK),
        ("/v1/instances?limt=1", StatusCode::BAD_REQUEST),
    ] {
        let url = format!("{}{path}", server.ready.url);
        let request = http.get(url).bearer_auth(&server.config.token);
        assert_eq!(request.send().await.unwrap().status(), status, "{path}");
    }
    server.stop().await;
}

/// A program that is not ours makes calls of the description, right and wrong ones, and holds every answer against it.
#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_every_answer_as_described() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let node = ObedientNode::start(&server).await;
    let key = env_key("shop", "prod");
    let database = SetSecretsRequest {
        set: BTreeMap::from([("url".to_owned(), b"postgres://db".to_vec())]),
        unset: Vec::new(),
    };
    server
        .user
        .set_secrets(&key, "database", &database)
        .await
        .unwrap();
    let digest = registry.push("shop", "amd64", "one").await;
    let image = format!("{}/shop@{digest}", registry.host);
    server.deploy(&key, &manifest("shop"), &image).await;
    let instance = eventually("an instance that is ready", async || {
        let rows = server.user.instances(Some(&key)).await.unwrap();
        let ready = |report: &api::node::InstanceReport| report.state.is_ready();
        let row = rows
            .into_iter()
            .find(|row| row.report.as_ref().is_some_and(ready));
        row.map(|row| row.id)
    })
    .await;
    // A node that is asked and does not answer would be waited for: this one is known to be offline.
    let id = node.id;
    drop(node);
    eventually("the node to be offline", async || {
        let nodes = server.user.nodes().await.unwrap();
        nodes.iter().all(|row| !row.online).then_some(())
    })
    .await;

    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tool = here.join("../../target/tools/schemathesis/bin/schemathesis");
    assert!(
        tool.exists(),
        "schemathesis is not installed: `make install` does it"
    );
    let config = include_str!("schemathesis.toml")
        .replace("[\"NODE\"]", &format!("[\"{id}\"]"))
        .replace("[\"INSTANCE\"]", &format!("[\"{instance}\"]"));
    let file = folder.path().join("schemathesis.toml");
    std::fs::write(&file, config).unwrap();
    let output = Command::new(tool)
        .arg("--config-file")
        .arg(file)
        .args([
            "--no-color",
            "run",
            "--mode",
            "all",
            "--suppress-health-check",
            "all",
        ])
        .args(["--checks", &CHECKS.join(",")])
        .args(["--url", &server.ready.url])
        .arg(format!("{}/openapi.json", server.ready.url))
        .env("TOKEN", &server.config.token)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    server.stop().await;
}

/// What schemathesis holds against the description. It does not read lines of JSON: of logs it checks status and media type. Absent: that whatever has the form of a request is done, for names have to be of what is there.
const CHECKS: [&str; 7] = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "ignored_auth",
];

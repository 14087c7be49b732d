//! The requests that the API refuses, and its messages.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use api::enrollment::EnrollRole;
use api::protocol::{OLDEST_PROTOCOL_VERSION, PROTOCOL_HEADER, PROTOCOL_VERSION};
use api::user::{CreateTokenRequest, DeployRequest, LogsQuery, ScaleRequest};
use api::{ApiError, MAX_BODY_BYTES, paths};
use api_client::{ApiClient, ClientConfig, ClientError};
use identity::MemberKey;
use model::{EnvKey, Generation, InstanceId};
use reqwest::{Client, Method, StatusCode};
use support::registry::Registry;
use support::*;

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result.unwrap_err() {
        ClientError::Api { status, error, .. } => (status, error.code),
        error => panic!("{error:?}"),
    }
}

const USER_PATHS: &[(&str, &str)] = &[
    ("POST", paths::TOKENS),
    ("GET", paths::TOKENS),
    ("DELETE", "/v1/tokens/0123"),
    ("GET", paths::EDGES),
    ("DELETE", "/v1/edges/e1"),
    ("GET", "/v1/members?counter=1"),
    ("POST", "/v1/members/n1/approve"),
    ("POST", "/v1/members/n1/revoke"),
    ("POST", "/v1/members/n1/rotate-keys"),
    ("GET", paths::WHOAMI),
    ("GET", paths::ORGS),
    ("POST", paths::ORGS),
    ("DELETE", "/v1/orgs/a"),
    ("GET", paths::APPS),
    ("PUT", "/v1/apps/a"),
    ("DELETE", "/v1/apps/a"),
    ("GET", paths::USERS),
    ("PUT", "/v1/users/a"),
    ("DELETE", "/v1/users/a"),
    ("GET", paths::USER_TOKENS),
    ("POST", paths::USER_TOKENS),
    ("DELETE", "/v1/user-tokens/0123"),
    ("GET", paths::NETWORK),
    ("PATCH", paths::NETWORK),
    ("GET", paths::CA),
    ("POST", paths::CA),
    ("GET", paths::VOLUMES),
    ("DELETE", "/v1/volumes/00000001"),
    ("GET", paths::STATS),
    ("POST", "/v1/instances/00000001/signal"),
    ("GET", paths::NODES),
    ("GET", paths::IMAGES),
    ("GET", paths::REGISTRIES),
    ("POST", paths::REGISTRIES),
    ("DELETE", paths::REGISTRIES),
    ("GET", paths::INSTANCES),
    ("GET", paths::ENVS),
    ("POST", "/v1/apps/a/envs/b"),
    ("DELETE", "/v1/apps/a/envs/b"),
    ("POST", "/v1/apps/a/envs/b/scale"),
    ("GET", "/v1/apps/a/envs/b/rollout"),
    ("GET", "/v1/apps/a/envs/b/logs"),
];
const NODE_PATHS: &[(&str, &str)] = &[
    ("GET", paths::NODE_DESIRED),
    ("POST", paths::NODE_REPORT),
    ("GET", paths::NODE_STREAMS),
    ("GET", paths::NODE_PULL_SECRET),
    ("POST", "/v1/node/streams/0123456789abcdef"),
];
const EDGE_PATHS: &[(&str, &str)] = &[("GET", paths::EDGE_ROUTES)];
const MEMBER_PATHS: &[(&str, &str)] =
    &[("GET", paths::MEMBER), ("POST", paths::MEMBER_CERTIFICATE)];

async fn refused(
    client: &Client,
    server: &Server,
    (method, path): (&str, &str),
    token: Option<&str>,
) -> u16 {
    let method: Method = method.parse().unwrap();
    let url = format!("{}{path}", server.ready.url);
    let mut request = client.request(method, url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let error: ApiError = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert!(!error.code.is_empty() && !error.message.is_empty());
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_serves_its_kind_of_caller_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let node = server.join(EnrollRole::Node).await;
    let edge = server.join(EnrollRole::Edge).await;
    let ca = &server.config.ca_pem;
    let (nobody, node, edge) = (
        plain(ca, None),
        plain(ca, Some(&node)),
        plain(ca, Some(&edge)),
    );
    let token = Some(server.config.token.as_str());
    let wrong = identity::UserToken::generate().unwrap().to_string();

    for path in USER_PATHS {
        assert_eq!(
            refused(&nobody, &server, *path, None).await,
            401,
            "{path:?}"
        );
        assert_eq!(
            refused(&nobody, &server, *path, Some(&wrong)).await,
            401,
            "{path:?}"
        );
        assert_eq!(
            refused(&nobody, &server, *path, Some("x")).await,
            401,
            "{path:?}"
        );
        assert_eq!(refused(&node, &server, *path, None).await, 403, "{path:?}");
        assert_eq!(refused(&edge, &server, *path, None).await, 403, "{path:?}");
    }
    for path in NODE_PATHS {
        assert_eq!(
            refused(&nobody, &server, *path, None).await,
            401,
            "{path:?}"
        );
        assert_eq!(
            refused(&nobody, &server, *path, token).await,
            401,
            "{path:?}"
        );
        assert_eq!(refused(&edge, &server, *path, None).await, 403, "{path:?}");
    }
    for path in MEMBER_PATHS {
        for token in [None, token] {
            assert_eq!(
                refused(&nobody, &server, *path, token).await,
                401,
                "{path:?}"
            );
        }
    }
    for path in EDGE_PATHS {
        assert_eq!(
            refused(&nobody, &server, *path, token).await,
            401,
            "{path:?}"
        );
        assert_eq!(refused(&node, &server, *path, None).await, 403, "{path:?}");
    }
    assert_eq!(
        refused(&nobody, &server, ("GET", "/v1/nothing"), token).await,
        404
    );
    assert_eq!(
        refused(&nobody, &server, ("PUT", paths::NODES), token).await,
        405
    );
    let anyone = format!("{}{}", server.ready.url, paths::HEALTH);
    assert_eq!(
        nobody.get(anyone).send().await.unwrap().status(),
        StatusCode::OK
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_parsed_at_the_border() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let client = plain(&server.config.ca_pem, None);
    let post = async |path: &str, body: Vec<u8>| {
        let request = client
            .post(format!("{}{path}", server.ready.url))
            .bearer_auth(&server.config.token)
            .body(body);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(post(paths::TOKENS, b"{".to_vec()).await, 400);
    let unknown = br#"{"role":"node","ttl_seconds":5,"extra":1}"#;
    assert_eq!(post(paths::TOKENS, unknown.to_vec()).await, 400);
    assert_eq!(
        post(paths::TOKENS, vec![b' '; MAX_BODY_BYTES + 1]).await,
        413
    );
    assert_eq!(post("/v1/apps/Shop/envs/prod", b"{}".to_vec()).await, 400);
    let url = format!("{}{}?app=-", server.ready.url, paths::INSTANCES);
    let query = client.get(url).bearer_auth(&server.config.token);
    assert_eq!(
        query.send().await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );

    for ttl_seconds in [0, 86_401] {
        let request = CreateTokenRequest::new(EnrollRole::Node, ttl_seconds);
        let refused = refusal(server.user.create_token(&request).await);
        assert_eq!(refused, (422, "ttl_out_of_range".to_owned()));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_member_in() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let token = server.token(EnrollRole::Node).await;
    let enroll = async |change: fn(&mut api::enrollment::EnrollRequest)| {
        let key = MemberKey::generate().unwrap();
        let mut request = enroll_request(&token, &key);
        change(&mut request);
        let verifier = identity::pinned_root(token.ca_fingerprint);
        ApiClient::enroll(&server.ready.url, verifier, &request).await
    };
    // What is wrong with a request does not spend the token.
    let refused = async |change| refusal(enroll(change).await);
    assert_eq!(
        refused(|r| r.token = "x".to_owned()).await,
        (401, "token_refused".to_owned())
    );
    assert_eq!(
        refused(|r| r.csr_pem.clear()).await,
        (422, "csr_refused".to_owned())
    );
    assert_eq!(
        refused(|r| r.region.clear()).await,
        (422, "region_invalid".to_owned())
    );
    assert_eq!(
        refused(|r| r.wireguard_public_key = None).await,
        (422, "wireguard_key_missing".to_owned())
    );
    assert_eq!(
        refused(|r| r.wireguard_public_key = Some("x".to_owned())).await,
        (422, "wireguard_key_invalid".to_owned())
    );
    assert_eq!(
        refused(|r| r.hardware.cpus = 0).await,
        (422, "hardware_missing".to_owned())
    );
    enroll(|_| ()).await.unwrap();
    assert_eq!(refused(|_| ()).await, (401, "token_refused".to_owned()));
    assert_eq!(server.user.nodes().await.unwrap().len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_server_is_told_apart_from_none() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (
        Server::start(ours.path()).await,
        Server::start(theirs.path()).await,
    );
    let mixed = ClientConfig {
        server: theirs.ready.url.clone(),
        ..ours.config.clone()
    };
    let error = ApiClient::user(&mixed).unwrap().envs().await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error:?}");
    assert!(!error.is_transient());

    let token = ours.token(EnrollRole::Node).await;
    let key = MemberKey::generate().unwrap();
    let verifier = identity::pinned_root(token.ca_fingerprint);
    let request = enroll_request(&token, &key);
    let error = ApiClient::enroll(&theirs.ready.url, verifier, &request)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not of the cluster"), "{error}");

    // A member of another cluster does not get past the handshake.
    let stranger = theirs.join(EnrollRole::Node).await;
    let client = ApiClient::member(
        &ours.ready.url,
        &ours.config.ca_pem,
        &stranger.response.certificate_pem,
        &stranger.key_pem,
    )
    .unwrap();
    client
        .desired(Generation::default(), Duration::ZERO)
        .await
        .unwrap_err();

    let config = ours.config.clone();
    ours.stop().await;
    theirs.stop().await;
    let error = ApiClient::user(&config).unwrap().envs().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
    assert!(error.is_transient());
    let hint = error.hint().unwrap();
    assert_eq!(
        hint,
        format!("is `platform server` running at {}?", config.server)
    );
}

async fn refused_deploy(server: &Server, key: &EnvKey, manifest: &str, image: &str) -> ApiError {
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest.to_owned(),
        image: image.to_owned(),
    };
    match server.user.deploy(key, &request).await.unwrap_err() {
        ClientError::Api { error, status, .. } => {
            assert!((400..=502).contains(&status), "{status}");
            error
        }
        error => panic!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_cannot_be_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let key = env_key("hello", "prod");
    let good = registry.push("hello", "amd64", "one").await;
    registry.push("arm", "arm64", "one").await;
    registry
        .push_config("empty", "amd64", r#""Entrypoint":[""]"#)
        .await;
    let signal = r#""Cmd":["/hello"],"StopSignal":"SIGNONE""#;
    registry.push_config("signal", "amd64", signal).await;
    let image = format!("{}/hello@{good}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;

    let missing = good.to_string().replace(good.short(), "000000000000");
    let host = &registry.host;
    let with = |lines: &str| {
        manifest("hello").replace("[processes.web]\n", &format!("[processes.web]\n{lines}\n"))
    };
    let cases = [
        (
            "manifest_invalid",
            "app = \"hello\"\nwhat".to_owned(),
            image.clone(),
        ),
        ("manifest_invalid", with("colour = \"red\""), image.clone()),
        ("app_mismatch", manifest("other"), image.clone()),
        (
            "secret_not_found",
            with("secrets = [\"database\"]"),
            image.clone(),
        ),
        (
            "image_reference_invalid",
            manifest("hello"),
            "not an image!".to_owned(),
        ),
        (
            "image_not_found",
            manifest("hello"),
            format!("{host}/hello@{missing}"),
        ),
        (
            "image_not_found",
            manifest("hello"),
            format!("{host}/nothing:latest"),
        ),
        (
            "image_wrong_platform",
            manifest("hello"),
            format!("{host}/arm:latest"),
        ),
        // What no node could run is told here, and not after the image was fetched.
        (
            "no_command",
            manifest("hello"),
            format!("{host}/empty:latest"),
        ),
        (
            "no_such_signal",
            manifest("hello"),
            format!("{host}/signal:latest"),
        ),
        // Port 1 of the loopback: nothing listens there.
        (
            "registry_unreachable",
            manifest("hello"),
            format!("127.0.0.1:1/hello@{good}"),
        ),
    ];
    for (code, text, image) in cases {
        let error = refused_deploy(&server, &key, &text, &image).await;
        assert_eq!(error.code, code, "{}", error.message);
    }
    let unknown_key = refused_deploy(&server, &key, &with("colour = \"red\""), &image).await;
    assert!(
        unknown_key.message.contains("colour"),
        "{}",
        unknown_key.message
    );
    assert!(
        unknown_key.message.contains("platform.toml:3"),
        "{}",
        unknown_key.message
    );

    // Case 7: an image without an entrypoint runs the manifest's command.
    let with_command = with("command = [\"/hello\"]");
    let other = env_key("hello", "other");
    let image_without = format!("{host}/empty:latest");
    let text = with_command.replace("hello.localhost", "other.localhost");
    server.deploy(&other, &text, &image_without).await;
    // What waits is named when it is planned, which may be later.
    let envs = async || {
        let mut envs = server.user.envs().await.unwrap();
        for row in &mut envs {
            row.waits.clear();
        }
        envs
    };
    let before = envs().await;

    // Another env of the app has the same host in its manifest.
    let staging = env_key("hello", "staging");
    let taken = refused_deploy(&server, &staging, &manifest("hello"), &image).await;
    assert_eq!(taken.code, "host_taken");
    assert!(
        taken
            .message
            .contains("hello.localhost leads to hello/prod"),
        "{}",
        taken.message
    );

    let too_many = ScaleRequest {
        processes: BTreeMap::from([("web".parse().unwrap(), 5)]),
    };
    let refused = refusal(server.user.scale(&key, &too_many).await);
    assert_eq!(refused, (422, "scale_refused".to_owned()));
    assert_eq!(envs().await, before);

    // While it is being destroyed (no node says that it is gone, so it stays), nothing is deployed.
    let nothing = env_key("hello", "nothing");
    assert_eq!(refusal(server.user.destroy(&nothing).await).0, 404);
    assert_eq!(refusal(server.user.scale(&nothing, &too_many).await).0, 404);
    let rollout = server
        .user
        .rollout(&nothing, None, None, Duration::ZERO)
        .await;
    assert_eq!(refusal(rollout).0, 404);
    assert_eq!(
        refusal(server.user.logs(&nothing, &LogsQuery::default()).await).0,
        404
    );
    let nobody = LogsQuery {
        instance: Some(InstanceId(1)),
        ..LogsQuery::default()
    };
    assert_eq!(refusal(server.user.logs(&key, &nobody).await).0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_served_by_the_protocol_version_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let joined = server.join(EnrollRole::Node).await;
    let edge = server.join(EnrollRole::Edge).await;
    let ca = &server.config.ca_pem;
    let (node, edge, nobody) = (
        plain(ca, Some(&joined)),
        plain(ca, Some(&edge)),
        plain(ca, None),
    );
    let ask = async |client: &Client, path: &str, version: Option<u32>| {
        let mut request = client.get(format!("{}{path}", server.ready.url));
        if let Some(version) = version {
            request = request.header(PROTOCOL_HEADER, version);
        }
        request.send().await.unwrap()
    };
    let refused = async |response: reqwest::Response| {
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = response.bytes().await.unwrap();
        let error: ApiError = serde_json::from_slice(&body).unwrap();
        assert_eq!(error.code, "protocol_version");
        error.message
    };
    let (oldest, newest) = (OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION);
    for version in oldest..=newest {
        for (client, path) in [(&node, paths::NODE_DESIRED), (&edge, paths::EDGE_ROUTES)] {
            let response = ask(client, path, Some(version)).await;
            assert!(response.status().is_success(), "{path} {version}");
        }
    }
    for (client, path) in [
        (&node, paths::NODE_DESIRED),
        (&node, paths::NODE_STREAMS),
        (&edge, paths::EDGE_ROUTES),
    ] {
        for old in [None, Some(oldest - 1)] {
            let message = refused(ask(client, path, old).await).await;
            let versions = format!(
                "speaks protocol version {}, and this server serves",
                old.unwrap_or(1)
            );
            assert!(message.contains(&versions), "{message}");
            assert!(
                message.ends_with("upgrade `platform` on the member"),
                "{message}"
            );
        }
        let message = refused(ask(client, path, Some(newest + 1)).await).await;
        assert!(
            message.contains("upgrade `platform` on the server"),
            "{message}"
        );
    }

    // A report with a field that this server does not know is taken.
    let said = report(model::Generation::default(), Vec::new());
    let said = api::node::ReportDelta::whole(api::node::AgentSession(1), 1, said);
    let mut said = serde_json::to_value(&said).unwrap();
    said["added_later"] = serde_json::json!({"by": "a newer node"});
    let response = node
        .post(format!("{}{}", server.ready.url, paths::NODE_REPORT))
        .header(PROTOCOL_HEADER, newest)
        .body(said.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);

    // A machine that is too old is refused before its token is spent.
    let token = server.token(EnrollRole::Node).await;
    let key = identity::MemberKey::generate().unwrap();
    let request = enroll_request(&token, &key);
    let too_old = nobody
        .post(format!("{}{}", server.ready.url, paths::ENROLL))
        .body(serde_json::to_string(&request).unwrap())
        .send()
        .await
        .unwrap();
    refused(too_old).await;
    let verifier = identity::pinned_root(token.ca_fingerprint);
    ApiClient::enroll(&server.ready.url, verifier, &request)
        .await
        .unwrap();
    server.stop().await;
}

/// `deploy` shows that a registry is busy, and asks again when the registry says.
#[tokio::test(flavor = "multi_thread")]
async fn case_a_registry_that_asks_to_wait_is_told_at_once_with_the_time() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer =
                b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 90\r\nConnection: close\r\n\
                Content-Length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    });
    let key = env_key("hello", "prod");
    let image = format!("{host}/hello:latest");
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("hello"),
        image,
    };
    let error = server.user.deploy(&key, &request).await.unwrap_err();
    assert_eq!(error.code(), Some("registry_busy"), "{error:?}");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(90)));
    assert!(error.to_string().contains("answers 429"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_body_is_not_repeated_and_the_end_of_its_connection_is_announced() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let http = plain(&server.config.ca_pem, None);
    let url = |path: &str| format!("{}{path}", server.config.server);
    let bodies = [
        r#"{"set": {"PASSWORD": "hunter2"}, "unset": []}"#.to_owned(),
        format!(
            r#"{{"set": {{"PASSWORD": ["{}"]}}}}"#,
            "hunter2\\\"".repeat(9000)
        ),
        format!(r#"{{"{}": 1}}"#, "a".repeat(100_000)),
    ];
    for (token, status) in [(&*server.config.token, 400), ("wrong", 401)] {
        for body in &bodies {
            let request = http.post(url("/v1/apps/shop/envs/prod/secrets/db"));
            let request = request.bearer_auth(token).body(body.clone());
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), status);
            // Whether or not the body was read.
            assert_eq!(answer.headers()["connection"], "close");
            let text = answer.text().await.unwrap();
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.len() < 2000, "{text}");
            assert!(
                status == 401 || text.contains(" at line 1 column "),
                "{text}"
            );
        }
        let answer = http.get(url("/v1/orgs")).bearer_auth(token).send().await;
        let answer = answer.unwrap();
        assert!(!answer.headers().contains_key("connection"), "{answer:?}");
    }
    server.stop().await;
}

/// A small disk of its own, mounted on a folder until it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "mounting needs root");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_no_fault_of_the_server_and_says_where_to_look() {
    let disk = SmallDisk::mount();
    let folder = disk.0.path();
    let server = Server::start(folder).await;
    let key = env_key("shop", "prod");
    // The server takes up its first admin's token.
    assert!(server.user.nodes().await.unwrap().is_empty());
    let filler = folder.join("filler");
    let copied = std::io::copy(
        &mut std::io::repeat(1),
        &mut std::fs::File::create(&filler).unwrap(),
    );
    assert_eq!(copied.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    // The store's log may have some room.
    let mut refused = None;
    for version in 0_u32..200 {
        let value = version.to_string().repeat(10_000).into_bytes();
        let secrets = api::user::SetSecretsRequest {
            set: BTreeMap::from([("KEY".to_owned(), value)]),
            unset: Vec::new(),
        };
        refused = server.user.set_secrets(&key, "large", &secrets).await.err();
        if refused.is_some() {
            break;
        }
    }
    let Some(ClientError::Api { status, error, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((status, error.code.as_str()), (503, "store_failed"));
    let hint = error.hint.unwrap();
    assert!(hint.contains("`df`"), "{hint}");
    // What is there is read, and with room it goes on.
    assert!(server.user.nodes().await.unwrap().is_empty());
    std::fs::remove_file(&filler).unwrap();
    server
        .user
        .create_org(&"trade".parse().unwrap())
        .await
        .unwrap();
    server.stop().await;
}

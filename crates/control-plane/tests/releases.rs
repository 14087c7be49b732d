//! Releases from the outside: listed, and gone back to with the secrets that they had.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::user::{DeployRequest, SetSecretsRequest};
use model::instance::InstanceSpec;
use model::{Generation, ReleaseNumber, UserName};
use support::registry::Registry;
use support::{Joined, ReportsAll as _, Server, env_key, eventually, manifest, report, running};

fn set(text: &str) -> SetSecretsRequest {
    SetSecretsRequest {
        set: BTreeMap::from([("PASSWORD".to_owned(), text.as_bytes().to_vec())]),
        unset: Vec::new(),
    }
}

async fn instance_of(node: &Joined, release: u32) -> InstanceSpec {
    eventually("an instance of the release", async || {
        let wait = Duration::from_millis(100);
        let state = node
            .client
            .desired(Generation::default(), wait)
            .await
            .unwrap()?;
        let running = state.instances.iter().map(|spec| running(spec.id));
        let said = report(state.generation, running.collect());
        node.client.report_all(&said).await.unwrap();
        let mut specs = state.instances.into_iter();
        specs.find(|spec| spec.release == ReleaseNumber(release))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_a_release_with_the_image_and_the_secrets_of_an_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let key = env_key("hello", "prod");
    let user = &server.user;
    let mut digests = Vec::new();
    for name in ["one", "two"] {
        user.set_secrets(&key, "database", &set(name))
            .await
            .unwrap();
        let digest = registry.push("hello", "amd64", name).await;
        let request = DeployRequest {
            only: BTreeSet::new(),
            manifest: manifest("hello").replace(
                "[processes.web]\n",
                "[processes.web]\nsecrets = [\"database\"]\n",
            ),
            image: format!("{}/hello@{digest}", registry.host),
        };
        user.deploy(&key, &request).await.unwrap();
        digests.push(digest);
    }
    let second = instance_of(&node, 2).await;
    assert_eq!(second.secrets[0].version, 2);
    assert_eq!(second.image.digest.to_string(), digests[1].to_string());

    let made = user.rollback(&key, Some(ReleaseNumber(1))).await.unwrap();
    assert_eq!(made.release, ReleaseNumber(3));
    let third = instance_of(&node, 3).await;
    assert_eq!(third.secrets[0].version, 1);
    assert_eq!(third.image.digest.to_string(), digests[0].to_string());
    let bundles = node.client.instance_secrets(third.id).await.unwrap();
    assert_eq!(bundles[0].files["PASSWORD"], b"one");

    let rows = user.releases(&key).await.unwrap();
    let numbers: Vec<_> = rows.iter().map(|row| row.number.0).collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(rows[0].rollback_to, Some(ReleaseNumber(1)));
    assert_eq!(rows[0].by, Some(UserName::admin()));
    assert!(rows[0].serving && !rows[1].serving);
    assert!(rows[1].image.as_ref().unwrap().starts_with(&registry.host));

    // An old one is there with what was deployed.
    let first = user.release(&key, ReleaseNumber(1)).await.unwrap();
    assert_eq!(first.release, rows[2]);
    assert_eq!(first.manifest["app"], "hello");
    let bundles = &first.manifest["processes"]["web"]["secrets"];
    assert_eq!(*bundles, serde_json::json!(["database"]));
    let absent = user.release(&key, ReleaseNumber(9)).await.unwrap_err();
    assert_eq!(absent.code(), Some("release_not_found"), "{absent}");

    let refused = user
        .rollback(&key, Some(ReleaseNumber(9)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("release_not_found"), "{refused}");
    let nowhere = user
        .rollback(&env_key("hello", "test"), None)
        .await
        .unwrap_err();
    assert_eq!(nowhere.code(), Some("env_not_found"), "{nowhere}");
    server.stop().await;
}

/// A call by any HTTP client; its status and its answer.
async fn post(
    server: &Server,
    path: &str,
    key: Option<&str>,
    body: &serde_json::Value,
) -> (u16, serde_json::Value) {
    let http = support::plain(&server.config.ca_pem, None);
    let mut request = http
        .post(format!("{}{path}", server.ready.url))
        .bearer_auth(&server.config.token)
        .json(body);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_makes_one_release_and_a_late_one_makes_none() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let digest = registry.push("hello", "amd64", "one").await;
    let body = serde_json::json!({
        "manifest": manifest("hello"),
        "image": format!("{}/hello@{digest}", registry.host),
    });
    let env = "/v1/apps/hello/envs/prod";
    let deploy = |key, query: &'static str| {
        let (server, body) = (&server, &body);
        async move { post(server, &format!("{env}{query}"), key, body).await }
    };
    // At once, as a caller does that gave up on an answer.
    let (one, other) = tokio::join!(deploy(Some("a"), ""), deploy(Some("\"a\""), ""));
    assert_eq!((one.0, other.0), (201, 201), "{} {}", one.1, other.1);
    assert_eq!(
        (&one.1["release"], &other.1["release"]),
        (&1.into(), &1.into())
    );
    let again = deploy(Some("a"), "?newest_release=0").await;
    assert_eq!(
        (again.0, &again.1["release"]),
        (201, &1.into()),
        "{}",
        again.1
    );
    // Another call by the same key.
    let mut changed = body.clone();
    changed["manifest"] = manifest("hello").replace("min = 2", "min = 3").into();
    let (status, problem) = post(&server, env, Some("a"), &changed).await;
    assert_eq!(
        (status, &problem["code"]),
        (422, &"idempotency_key_reused".into())
    );
    let (status, problem) = deploy(Some("a b"), "").await;
    assert_eq!(status, 400, "{problem}");

    // Who has not seen the newest release changes nothing.
    let (status, problem) = deploy(None, "?newest_release=0").await;
    assert_eq!((status, &problem["code"]), (409, &"release_changed".into()));
    let (status, made) = deploy(None, "?newest_release=1").await;
    assert_eq!((status, &made["release"]), (201, &2.into()), "{made}");
    let back = serde_json::json!({ "release": 1 });
    let rollback = format!("{env}/rollback");
    let (status, problem) = post(
        &server,
        &format!("{rollback}?newest_release=1"),
        None,
        &back,
    )
    .await;
    assert_eq!((status, &problem["code"]), (409, &"release_changed".into()));
    for _ in 0..2 {
        let (status, made) = post(&server, &rollback, Some("b"), &back).await;
        assert_eq!((status, &made["release"]), (201, &3.into()), "{made}");
    }
    // The same key for another rollback, and for another kind of call.
    let (status, problem) = post(
        &server,
        &rollback,
        Some("b"),
        &serde_json::json!({ "release": 2 }),
    )
    .await;
    assert_eq!(
        (status, &problem["code"]),
        (422, &"idempotency_key_reused".into())
    );
    let redeploy = format!("{env}/redeploy");
    let (status, problem) = post(&server, &redeploy, Some("a"), &serde_json::json!({})).await;
    assert_eq!(
        (status, &problem["code"]),
        (422, &"idempotency_key_reused".into())
    );
    let nothing = serde_json::json!({});
    for _ in 0..2 {
        let (status, made) = post(&server, &redeploy, Some("c"), &nothing).await;
        assert_eq!((status, &made["release"]), (201, &4.into()), "{made}");
    }
    // It holds for a server that starts again.
    server.stop().await;
    let server = Server::start(folder.path()).await;
    let (status, made) = post(&server, &rollback, Some("b"), &back).await;
    assert_eq!((status, &made["release"]), (201, &3.into()), "{made}");
    let key = env_key("hello", "prod");
    assert_eq!(server.user.releases(&key).await.unwrap().len(), 4);
    server.stop().await;
}

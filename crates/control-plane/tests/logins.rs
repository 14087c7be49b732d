//! Registry logins: tried, sealed, used to resolve, given to nodes that need them, and to nobody else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api::ApiError;
use api::event::{EventKind, EventsQuery};
use api::node::{CachedImage, NodeReport, PullSecret};
use api::user::{DeployRequest, RegistryLoginRequest};
use api_client::ClientError;
use model::instance::PinnedImage;
use model::{Generation, Timestamp};
use support::registry::Registry;
use support::*;

fn login(registry: &str, password: &str) -> RegistryLoginRequest {
    RegistryLoginRequest {
        registry: registry.to_owned(),
        secret: PullSecret::Basic {
            user: "ann".to_owned(),
            password: password.to_owned(),
        },
    }
}

fn api_error<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, ApiError) {
    match result.unwrap_err() {
        ClientError::Api { status, error, .. } => (status, error),
        error => panic!("{error:?}"),
    }
}

/// Whether any file of the folder has this text in it.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let content = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        content.windows(text.len()).any(|w| w == text.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_is_deployed_with_a_login_that_lies_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let registry = Registry::start_for(true).await;
    registry.push("shop", "amd64", "one").await;
    let (node, idle) = (ObedientNode::start(&server).await, server.join_node().await);
    let key = env_key("shop", "prod");
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("shop"),
        image: format!("{}/shop", registry.host),
    };

    let (_, denied) = api_error(server.user.deploy(&key, &request).await);
    assert_eq!(denied.code, "image_denied");
    let hint = format!("`platform registries login {}` lets", registry.host);
    assert!(denied.hint.unwrap().starts_with(&hint));

    let wrong = login(&registry.host, "hunter2");
    let (_, wrong) = api_error(server.user.registry_login(&wrong).await);
    assert_eq!(wrong.code, "image_denied", "{wrong:?}");
    assert!(!wrong.message.contains("hunter2"), "{wrong:?}");
    assert_eq!(server.user.registries().await.unwrap(), []);

    let right = login(&registry.host, "secret");
    assert!(!format!("{right:?}").contains("secret\""), "{right:?}");
    let row = server.user.registry_login(&right).await.unwrap();
    assert_eq!(
        (row.registry.as_str(), row.user.as_deref(), row.by.as_str()),
        (registry.host.as_str(), Some("ann"), "admin")
    );
    assert_eq!(server.user.registries().await.unwrap(), [row]);
    let ask = async |client: &api_client::ApiClient| client.pull_secret(&registry.host).await;
    let (status, early) = api_error(ask(&node.joined.client).await);
    assert_eq!((status, early.code.as_str()), (403, "registry_not_needed"));

    server.user.deploy(&key, &request).await.unwrap();
    let given = eventually("the node has an instance", async || {
        ask(&node.joined.client).await.ok()
    });
    assert_eq!(given.await, Some(right.secret.clone()));
    // It may have got the second instance, being online for a moment: its own desired state tells.
    let other = &idle.1.client;
    let desired = other
        .desired(Generation::default(), std::time::Duration::ZERO)
        .await;
    let needed = desired.unwrap().is_some_and(|d| !d.instances.is_empty());
    assert_eq!(ask(other).await.is_ok(), needed);

    // At rest: no clear text, and a key that only its owner reads.
    let key_file = folder.path().join("key-encryption-key.json");
    let mode = key_file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.stop().await;
    assert!(!holds(folder.path(), "secret\"") && !holds(folder.path(), "c2VjcmV0"));

    // Another start opens it again.
    let server = Server::start(folder.path()).await;
    server.user.deploy(&key, &request).await.unwrap();

    server.user.registry_logout(&registry.host).await.unwrap();
    let (_, denied) = api_error(server.user.deploy(&key, &request).await);
    assert_eq!(denied.code, "image_denied");
    let (status, _) = api_error(server.user.registry_logout(&registry.host).await);
    assert_eq!(status, 404);

    // What changed is told: who, when, where, and never the secret.
    let of_registries = EventsQuery {
        kind: Some("registry".to_owned()),
        ..EventsQuery::default()
    };
    let told = server
        .user
        .events(&of_registries, std::time::Duration::ZERO)
        .await;
    let told = told.unwrap().events;
    let told: Vec<_> = told
        .iter()
        .map(|e| (e.kind, e.by.to_string(), &*e.message))
        .collect();
    let (admin, as_ann) = ("admin".to_owned(), format!("{} as ann", registry.host));
    let expected = [
        (EventKind::RegistryLoggedIn, admin.clone(), as_ann.as_str()),
        (EventKind::RegistryLoggedOut, admin, registry.host.as_str()),
    ];
    assert_eq!(told, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_cache_of_a_node_is_listed_while_it_is_online() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, node) = server.join_node().await;
    assert_eq!(server.user.images().await.unwrap(), []);
    let cached = CachedImage {
        image: PinnedImage {
            registry: "ghcr.io".to_owned(),
            repository: "team/shop".to_owned(),
            digest: support::registry::digest(b"shop"),
        },
        size_bytes: 1 << 20,
        last_used: Timestamp(7),
        instances: 0,
        pinned: true,
    };
    let said = NodeReport {
        images: vec![cached.clone()],
        ..report(Generation::default(), Vec::new())
    };
    node.client.report_all(&said).await.unwrap();
    let rows = server.user.images().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].node, rows[0].node_name.as_str()), (id, "box"));
    assert_eq!(rows[0].cached, cached);
    server.stop().await;
}

//! What a deploy would do, and that asking does nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use api::user::{CreateUserTokenRequest, DeployRequest, GrantRequest, Role, RolloutPhase};
use api_client::{ApiClient, ClientConfig};
use model::{Generation, OrgName, UserName};
use support::registry::Registry;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_a_deploy_would_do_and_changes_nothing() {
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
    let request = |manifest: String| DeployRequest {
        only: BTreeSet::new(),
        manifest,
        image: image.clone(),
    };
    let plan = async |manifest: String| {
        let planned = server.user.plan(&key, &request(manifest)).await;
        planned.unwrap()
    };

    // Nothing is there yet.
    let planned = plan(manifest("hello")).await;
    assert_eq!((planned.current, planned.changes), (None, true));
    assert_eq!(planned.outcome, Some(RolloutPhase::Done));
    assert_eq!(planned.processes[0].places.len(), 2);
    assert_eq!(planned.processes[0].places[0].node_name, "box");
    let absent = server.user.releases(&key).await.unwrap_err();
    assert_eq!(absent.code(), Some("env_not_found"));

    server.deploy(&key, &manifest("hello"), &image).await;
    eventually("two instances", async || {
        let rows = server.user.instances(Some(&key)).await.unwrap();
        (rows.len() == 2).then_some(())
    })
    .await;
    let same = plan(manifest("hello")).await;
    assert!(!same.changes && same.manifest.is_empty(), "{same:?}");

    // More than the node has: the reason is that of a deploy.
    let large = format!(
        "{}\n[processes.web.resources]\nmemory = \"1TiB\"\n",
        manifest("hello")
    );
    let planned = plan(large).await;
    assert!(
        planned.blocked.iter().any(|why| why.contains("memory")),
        "{planned:?}"
    );
    assert_ne!(planned.outcome, Some(RolloutPhase::Done));
    let paths: Vec<_> = planned
        .manifest
        .iter()
        .map(|change| change.path.as_str())
        .collect();
    assert_eq!(paths, ["processes.web.resources.memory"]);

    // What a deploy refuses is refused with its words.
    let secret = manifest("hello").replace(
        "[processes.web]\n",
        "[processes.web]\nsecrets = [\"door\"]\n",
    );
    let planned = plan(secret.clone()).await;
    let refused = planned.refused.unwrap();
    let deployed = server
        .user
        .deploy(&key, &request(secret))
        .await
        .unwrap_err();
    assert_eq!(deployed.code(), Some(refused.code.as_str()));
    assert_eq!(refused.code, "secret_not_found");

    assert_eq!(server.user.releases(&key).await.unwrap().len(), 1);
    server.stop().await;
}

/// The server's network is not that of who names a registry: what it meets there is told to admins of the cluster only.
#[tokio::test(flavor = "multi_thread")]
async fn case_a_plan_is_no_port_scanner_of_the_servers_network() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let org: OrgName = "blog".parse().unwrap();
    server.user.create_org(&org).await.unwrap();
    let grant = GrantRequest {
        org: Some(org),
        role: Some(Role::Deployer),
    };
    let name: UserName = "bob".parse().unwrap();
    server.user.grant(&name, &grant).await.unwrap();
    let request = CreateUserTokenRequest {
        user: Some(name),
        org: None,
        role: None,
        ttl_seconds: None,
        note: String::new(),
    };
    let token = server.user.create_user_token(&request).await.unwrap().token;
    let config = ClientConfig {
        token,
        ..server.config.clone()
    };
    let bob = ApiClient::user(&config).unwrap();
    let key = env_key("hello", "prod");
    let plan = async |user: &ApiClient, image: String| {
        let request = DeployRequest {
            only: BTreeSet::new(),
            manifest: manifest("hello"),
            image,
        };
        user.plan(&key, &request).await
    };

    // Something that is no registry, and says who it is.
    let inner = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = inner.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = inner.accept().await {
            tokio::spawn(async move {
                let _ = connection.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 418 No\r\nContent-Length: 9\r\n\r\nclassifie";
                let _ = connection.write_all(answer).await;
            });
        }
    });
    let told = plan(&server.user, format!("{at}/x")).await.unwrap_err();
    assert!(told.to_string().contains("classifie"), "{told}");
    let refused = plan(&server.user, "169.254.1.1/x".to_owned()).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        refused.code(),
        Some("registry_address_refused"),
        "{refused}"
    );
    assert!(refused.to_string().contains("169.254.1.1"), "{refused}");

    for host in [
        at.to_string(),
        "127.0.0.1:1".to_owned(),
        "169.254.1.1".to_owned(),
    ] {
        let refused = plan(&bob, format!("{host}/x")).await.unwrap_err();
        assert_eq!(refused.code(), Some("registry_unreachable"), "{host}");
        let text = format!("{host} is no registry that the server can use");
        assert_eq!(refused.to_string(), text);
    }

    // A registry on loopback is one, and what it lacks is named.
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    plan(&bob, image).await.unwrap();
    let absent = plan(&bob, format!("{}/nothing:latest", registry.host)).await;
    let absent = absent.unwrap_err();
    assert_eq!(absent.code(), Some("image_not_found"), "{absent}");
    server.stop().await;
}

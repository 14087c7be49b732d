//! Lists by page and filter, as any HTTP client follows them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use api::user::{
    CreateUserTokenRequest, DeployRequest, EnvsQuery, GrantRequest, InstanceRow, InstancesQuery,
    NodesQuery, Role,
};
use api_client::{ApiClient, ClientConfig};
use model::{OrgName, UserName};
use reqwest::StatusCode;
use reqwest::header::LINK;
use serde_json::Value;
use support::registry::Registry;
use support::*;

const APPS: [&str; 4] = ["blog", "cart", "docs", "shop"];

/// Every row, page by page, and how many pages there were.
async fn walk(server: &Server, path: &str) -> (Vec<Value>, usize) {
    let http = plain(&server.config.ca_pem, None);
    let (mut rows, mut pages, mut next) = (Vec::new(), 0, Some(path.to_owned()));
    while let Some(path) = next {
        let url = format!("{}{path}", server.ready.url);
        let response = http.get(url).bearer_auth(&server.config.token);
        let response = response.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        next = response.headers().get(LINK).map(|link| {
            let link = link.to_str().unwrap();
            let target = link.strip_suffix("; rel=\"next\"").unwrap();
            target.trim_matches(['<', '>']).to_owned()
        });
        let page: Vec<Value> = response.json().await.unwrap();
        assert!(!page.is_empty() || pages == 0);
        rows.extend(page);
        pages += 1;
        assert!(pages <= 100, "{path}: the pages do not end");
    }
    (rows, pages)
}

async fn status(server: &Server, path: &str) -> StatusCode {
    let http = plain(&server.config.ca_pem, None);
    let url = format!("{}{path}", server.ready.url);
    let request = http.get(url).bearer_auth(&server.config.token);
    request.send().await.unwrap().status()
}

/// Somebody who sees what an org has, and nothing else.
async fn viewer_in(server: &Server, org: &str) -> ApiClient {
    let name: UserName = format!("viewer-of-{org}").parse().unwrap();
    let grant = GrantRequest {
        org: Some(org.parse().unwrap()),
        role: Some(Role::Viewer),
    };
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
    ApiClient::user(&config).unwrap()
}

fn ids(rows: &[Value]) -> BTreeSet<String> {
    let ids = rows
        .iter()
        .map(|row| row["id"].as_str().unwrap().to_owned());
    ids.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_told_once_whatever_the_size_of_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let node = ObedientNode::start(&server).await;
    registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello:latest", registry.host);
    for app in APPS {
        for env in ["prod", "test"] {
            let manifest = manifest(app).replace(".localhost", &format!("-{env}.localhost"));
            server.deploy(&env_key(app, env), &manifest, &image).await;
        }
    }
    let all = eventually("two instances of each env", async || {
        let rows = server.user.instances(None).await.unwrap();
        let is_ready = |row: &InstanceRow| row.report.as_ref().is_some_and(|r| r.state.is_ready());
        (rows.len() == 16 && rows.iter().all(is_ready)).then_some(rows)
    })
    .await;

    for (limit, pages) in [(1, 16), (3, 6), (16, 1), (17, 1)] {
        let (rows, walked) = walk(&server, &format!("/v1/instances?limit={limit}")).await;
        assert_eq!((rows.len(), walked), (16, pages), "{limit}");
        assert_eq!(ids(&rows).len(), 16);
        let (rows, walked) = walk(&server, &format!("/v1/instances?limit={limit}&node=n1")).await;
        assert_eq!((ids(&rows).len(), walked), (16, pages), "{limit} on a node");
    }
    for (query, count) in [
        ("app=cart&limit=1", 4),
        ("app=cart&env=test&limit=1", 2),
        ("env=test&limit=3", 8),
        ("process=web&limit=5", 16),
        ("process=worker", 0),
        ("node=n2", 0),
        ("ready=true&limit=7", 16),
        ("ready=false", 0),
        ("app=nothing", 0),
    ] {
        let (rows, _) = walk(&server, &format!("/v1/instances?{query}")).await;
        assert_eq!((rows.len(), ids(&rows).len()), (count, count), "{query}");
    }
    let (envs, pages) = walk(&server, "/v1/envs?limit=3").await;
    assert_eq!((envs.len(), pages), (8, 3));
    let (envs, _) = walk(&server, "/v1/envs?limit=1&env=prod").await;
    let apps: Vec<_> = envs
        .iter()
        .map(|row| row["env"]["app"].as_str().unwrap())
        .collect();
    assert_eq!(apps, APPS);
    assert_eq!(
        walk(&server, "/v1/nodes?region=home&online=true")
            .await
            .0
            .len(),
        1
    );
    assert_eq!(walk(&server, "/v1/nodes?region=elsewhere").await.0.len(), 0);
    assert_eq!(walk(&server, "/v1/nodes?label=disk").await.0.len(), 0);

    // The client's pages, and what it asks for.
    let one = InstancesQuery {
        limit: Some(1),
        ..InstancesQuery::default()
    };
    let paged = server.user.find_instances(&one).await.unwrap();
    assert_eq!(paged, all);
    let of_shop = EnvsQuery {
        app: Some("shop".parse().unwrap()),
        limit: Some(1),
        ..EnvsQuery::default()
    };
    assert_eq!(server.user.find_envs(&of_shop).await.unwrap().len(), 2);
    let offline = NodesQuery {
        online: Some(false),
        ..NodesQuery::default()
    };
    assert!(server.user.find_nodes(&offline).await.unwrap().is_empty());
    for wrong in [
        "/v1/instances?limit=0",
        "/v1/instances?limit=10001",
        "/v1/instances?after=shop",
        "/v1/instances?after=%00",
        "/v1/envs?after=shop",
        "/v1/nodes?after=shop/prod",
        "/v1/nodes?reigon=home",
        "/v1/volumes?after=1",
    ] {
        assert_eq!(
            status(&server, wrong).await,
            StatusCode::BAD_REQUEST,
            "{wrong}"
        );
    }
    drop(node);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_user_has_what_is_the_users_orgs() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello:latest", registry.host);
    let orgs: [OrgName; 2] = ["acme", "zoo"].map(|org| org.parse().unwrap());
    for org in &orgs {
        server.user.create_org(org).await.unwrap();
    }
    for (app, org) in APPS.into_iter().zip(orgs.iter().cycle()) {
        let user = server.user.clone().in_org(Some(org.clone()));
        let request = DeployRequest {
            only: BTreeSet::new(),
            manifest: manifest(app),
            image: image.clone(),
        };
        user.deploy(&env_key(app, "prod"), &request).await.unwrap();
    }
    let grants = [("acme", APPS[0], APPS[2]), ("zoo", APPS[1], APPS[3])];
    for (org, first, second) in grants {
        let user = viewer_in(&server, org).await;
        let one = EnvsQuery {
            limit: Some(1),
            ..EnvsQuery::default()
        };
        let rows = user.find_envs(&one).await.unwrap();
        let apps: Vec<_> = rows.iter().map(|row| row.env.app.to_string()).collect();
        assert_eq!(apps, [first, second]);
    }
    server.stop().await;
}

//! Lists by page and filter, as any HTTP client follows them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use api::user::{
    CreateUserTokenRequest, DeployRequest, EnvsQuery, GrantRequest, InstanceRow, InstancesQuery,
    NodesQuery, Role, SetSecretsRequest,
};
use api_client::{ApiClient, ClientConfig};
use futures_util::StreamExt as _;
use model::{OrgName, UserName};
use reqwest::StatusCode;
use reqwest::header::LINK;
use scheduler::access::MAX_APPS_OF_AN_ORG;
use serde_json::Value;
use support::registry::Registry;
use support::*;

const APPS: [&str; 4] = ["blog", "cart", "docs", "shop"];

/// Every row, page by page, and how many pages there were.
async fn walk(server: &Server, path: &str) -> (Vec<Value>, usize) {
    walk_with(server, path, &server.config.token).await
}

/// As [`walk`], with a token.
async fn walk_with(server: &Server, path: &str, token: &str) -> (Vec<Value>, usize) {
    let http = plain(&server.config.ca_pem, None);
    let (mut rows, mut pages, mut next) = (Vec::new(), 0, Some(path.to_owned()));
    while let Some(path) = next {
        let url = format!("{}{path}", server.ready.url);
        let response = http.get(url).bearer_auth(token);
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
    ApiClient::user(&viewers_config(server, org).await).unwrap()
}

async fn viewers_config(server: &Server, org: &str) -> ClientConfig {
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
    ClientConfig {
        token,
        ..server.config.clone()
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn apps_users_and_their_tokens_are_told_once_whatever_the_size_of_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let orgs: [OrgName; 2] = ["acme", "zoo"].map(|org| org.parse().unwrap());
    for org in &orgs {
        server.user.create_org(org).await.unwrap();
    }
    // An app is its org's from the first secret on.
    for (app, org) in APPS.into_iter().zip(orgs.iter().cycle()) {
        let user = server.user.clone().in_org(Some(org.clone()));
        let secrets = SetSecretsRequest {
            set: [("key".to_owned(), b"value".to_vec())].into(),
            unset: Vec::new(),
        };
        user.set_secrets(&env_key(app, "prod"), "db", &secrets)
            .await
            .unwrap();
    }
    let config = viewers_config(&server, "acme").await;
    for _ in 0..4 {
        viewer_in(&server, "zoo").await;
    }
    viewer_in(&server, "acme").await;

    let texts = |rows: &[Value], field: &str| -> Vec<String> {
        let texts = rows.iter().map(|row| row[field].as_str().unwrap());
        texts.map(str::to_owned).collect()
    };
    let users = ["admin", "viewer-of-acme", "viewer-of-zoo"];
    for limit in [1, 2, 3, 7, 8] {
        let (rows, pages) = walk(&server, &format!("/v1/apps?limit={limit}")).await;
        assert_eq!(texts(&rows, "name"), APPS);
        assert_eq!(pages, APPS.len().div_ceil(limit));
        let (rows, _) = walk(&server, &format!("/v1/users?limit={limit}")).await;
        assert_eq!(texts(&rows, "name"), users);
        let (rows, pages) = walk(&server, &format!("/v1/user-tokens?limit={limit}")).await;
        let ids: BTreeSet<_> = texts(&rows, "id").into_iter().collect();
        assert_eq!((rows.len(), ids.len()), (7, 7), "{limit}");
        assert_eq!(pages, 7_usize.div_ceil(limit));
        let path = format!("/v1/user-tokens?limit={limit}&user=viewer-of-zoo");
        let (rows, pages) = walk(&server, &path).await;
        assert_eq!(texts(&rows, "user"), ["viewer-of-zoo"; 4]);
        assert_eq!(pages, 4_usize.div_ceil(limit));

        // Of one org: what is another's is in no page, and makes none.
        let of_acme = async |path: &str| {
            let path = format!("{path}?limit={limit}");
            walk_with(&server, &path, &config.token).await
        };
        let (rows, pages) = of_acme("/v1/apps").await;
        assert_eq!(texts(&rows, "name"), [APPS[0], APPS[2]]);
        assert_eq!(pages, 2_usize.div_ceil(limit));
        let (rows, _) = of_acme("/v1/users").await;
        assert_eq!(texts(&rows, "name"), ["viewer-of-acme"]);
        let (rows, pages) = of_acme("/v1/user-tokens").await;
        assert_eq!(texts(&rows, "user"), ["viewer-of-acme"; 2]);
        assert_eq!(pages, 2_usize.div_ceil(limit));
    }
    for wrong in [
        "/v1/apps?limit=0",
        "/v1/apps?after=a/b",
        "/v1/users?limit=10001",
        "/v1/user-tokens?after=ann",
        "/v1/user-tokens?after=ann/0a1",
    ] {
        let status = status(&server, wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    server.stop().await;
}

/// A name that one org takes is no other's: nobody takes them all.
#[tokio::test(flavor = "multi_thread")]
async fn an_org_takes_so_many_names_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let secrets = SetSecretsRequest {
        set: [("key".to_owned(), b"value".to_vec())].into(),
        unset: Vec::new(),
    };
    let take = async |number: usize| {
        let key = env_key(&format!("squat-{number}"), "prod");
        server.user.set_secrets(&key, "s", &secrets).await
    };
    // Many at a time are one transaction.
    let taking = (0..MAX_APPS_OF_AN_ORG).map(&take);
    let mut taking = futures_util::stream::iter(taking).buffer_unordered(64);
    while let Some(taken) = taking.next().await {
        taken.unwrap();
    }
    drop(taking);
    let refused = take(MAX_APPS_OF_AN_ORG).await.unwrap_err();
    assert_eq!(refused.code(), Some("too_many_apps"), "{refused}");
    assert!(refused.to_string().contains("org default has 2000 apps"));
    // What it has, it has.
    take(0).await.unwrap();
    // The client follows the pages, which are 1,000 rows.
    assert_eq!(server.user.apps().await.unwrap().len(), MAX_APPS_OF_AN_ORG);
    server.stop().await;
}

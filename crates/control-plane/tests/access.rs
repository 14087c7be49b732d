//! Orgs, users and tokens from the outside: who may do what, and what is another org's is not there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use api::ApiError;
use api::event::EventsQuery;
use api::user::{
    AttachQuery, CreateUserTokenRequest, DeployRequest, ExecQuery, GrantRequest, LogsQuery, Role,
    SetSecretsRequest, SignalRequest,
};
use api_client::{ApiClient, ClientConfig, ClientError};
use futures_util::StreamExt as _;
use model::{Generation, InstanceId, OrgName, UserName};
use reqwest::{Client, Method, StatusCode};
use support::registry::Registry;
use support::{PATIENCE, ReportsAll as _, Server, env_key, eventually, manifest, plain, report};

fn org(name: &str) -> OrgName {
    name.parse().unwrap()
}

fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

/// A token of the admin's making, for this user.
async fn token(server: &Server, request: CreateUserTokenRequest) -> String {
    server.user.create_user_token(&request).await.unwrap().token
}

fn of(name: &str) -> CreateUserTokenRequest {
    CreateUserTokenRequest {
        user: Some(user(name)),
        org: None,
        role: None,
        ttl_seconds: None,
        note: String::new(),
    }
}

fn client(server: &Server, token: &str) -> ApiClient {
    let config = ClientConfig {
        token: token.to_owned(),
        ..server.config.clone()
    };
    ApiClient::user(&config).unwrap()
}

async fn grant(server: &Server, name: &str, of: Option<&str>, role: Role) {
    let request = GrantRequest {
        org: of.map(org),
        role: Some(role),
    };
    server.user.grant(&user(name), &request).await.unwrap();
}

/// A user with one role, and what the user calls with.
async fn somebody(server: &Server, name: &str, of_org: Option<&str>, role: Role) -> String {
    grant(server, name, of_org, role).await;
    token(server, of(name)).await
}

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Needs {
    Cluster(Role),
    /// In the org of app `shop`.
    App(Role),
}

/// What users call, and what for: of each subject what shows and what changes.
const CALLS: &[(&str, &str, Needs)] = &[
    ("GET", "/v1/nodes", Needs::Cluster(Role::Viewer)),
    ("DELETE", "/v1/nodes/n9", Needs::Cluster(Role::Admin)),
    (
        "PUT",
        "/v1/nodes/n9/scheduling",
        Needs::Cluster(Role::Admin),
    ),
    ("PATCH", "/v1/nodes/n9/labels", Needs::Cluster(Role::Admin)),
    ("PUT", "/v1/nodes/n9/org", Needs::Cluster(Role::Admin)),
    (
        "POST",
        "/v1/nodes/n9/stop-unknown",
        Needs::Cluster(Role::Admin),
    ),
    ("GET", "/v1/edges", Needs::Cluster(Role::Viewer)),
    ("DELETE", "/v1/edges/e9", Needs::Cluster(Role::Admin)),
    ("GET", "/v1/members?counter=1", Needs::Cluster(Role::Viewer)),
    (
        "POST",
        "/v1/members/n9/approve",
        Needs::Cluster(Role::Admin),
    ),
    ("POST", "/v1/members/n9/revoke", Needs::Cluster(Role::Admin)),
    (
        "POST",
        "/v1/members/n9/rotate-keys",
        Needs::Cluster(Role::Admin),
    ),
    ("GET", "/v1/tokens", Needs::Cluster(Role::Viewer)),
    ("POST", "/v1/tokens", Needs::Cluster(Role::Admin)),
    ("DELETE", "/v1/tokens/0", Needs::Cluster(Role::Admin)),
    ("GET", "/v1/ca", Needs::Cluster(Role::Viewer)),
    ("POST", "/v1/ca", Needs::Cluster(Role::Admin)),
    ("GET", "/v1/network", Needs::Cluster(Role::Viewer)),
    ("PATCH", "/v1/network", Needs::Cluster(Role::Admin)),
    ("POST", "/v1/network/doctor", Needs::Cluster(Role::Admin)),
    ("GET", "/v1/images", Needs::Cluster(Role::Viewer)),
    ("GET", "/v1/registries", Needs::Cluster(Role::Viewer)),
    ("POST", "/v1/registries", Needs::Cluster(Role::Admin)),
    (
        "DELETE",
        "/v1/registries?registry=x.example.com",
        Needs::Cluster(Role::Admin),
    ),
    ("GET", "/v1/certificates", Needs::Cluster(Role::Viewer)),
    ("POST", "/v1/certificates", Needs::Cluster(Role::Admin)),
    ("GET", "/v1/certificates/acme", Needs::Cluster(Role::Viewer)),
    ("PUT", "/v1/certificates/acme", Needs::Cluster(Role::Admin)),
    (
        "DELETE",
        "/v1/certificates/acme",
        Needs::Cluster(Role::Admin),
    ),
    (
        "POST",
        "/v1/certificates/acme/retry?name=x.example.com",
        Needs::Cluster(Role::Admin),
    ),
    (
        "DELETE",
        "/v1/certificates?name=x.example.com",
        Needs::Cluster(Role::Admin),
    ),
    ("POST", "/v1/orgs", Needs::Cluster(Role::Admin)),
    ("DELETE", "/v1/orgs/nowhere", Needs::Cluster(Role::Admin)),
    ("DELETE", "/v1/users/nobody", Needs::Cluster(Role::Admin)),
    (
        "GET",
        "/v1/apps/shop/envs/prod/rollout",
        Needs::App(Role::Viewer),
    ),
    (
        "GET",
        "/v1/apps/shop/envs/prod/logs",
        Needs::App(Role::Viewer),
    ),
    (
        "GET",
        "/v1/apps/shop/envs/prod/secrets",
        Needs::App(Role::Viewer),
    ),
    (
        "GET",
        "/v1/apps/shop/envs/prod/releases",
        Needs::App(Role::Viewer),
    ),
    (
        "GET",
        "/v1/apps/shop/envs/prod/releases/1",
        Needs::App(Role::Deployer),
    ),
    (
        "GET",
        "/v1/why?subject=shop/prod/web",
        Needs::App(Role::Viewer),
    ),
    (
        "POST",
        "/v1/apps/shop/envs/prod",
        Needs::App(Role::Deployer),
    ),
    (
        "POST",
        "/v1/apps/shop/envs/prod/plan",
        Needs::App(Role::Deployer),
    ),
    (
        "POST",
        "/v1/apps/shop/envs/prod/runs",
        Needs::App(Role::Deployer),
    ),
    (
        "POST",
        "/v1/apps/shop/envs/prod/rollback",
        Needs::App(Role::Deployer),
    ),
    (
        "POST",
        "/v1/apps/shop/envs/prod/redeploy",
        Needs::App(Role::Deployer),
    ),
    (
        "POST",
        "/v1/apps/shop/envs/prod/scale",
        Needs::App(Role::Deployer),
    ),
    (
        "POST",
        "/v1/apps/shop/envs/prod/secrets/db",
        Needs::App(Role::Deployer),
    ),
    (
        "DELETE",
        "/v1/apps/shop/envs/prod/secrets/db",
        Needs::App(Role::Deployer),
    ),
    ("PUT", "/v1/apps/shop", Needs::App(Role::Admin)),
    ("DELETE", "/v1/apps/shop", Needs::App(Role::Admin)),
    ("DELETE", "/v1/apps/shop/envs/prod", Needs::App(Role::Admin)),
];

/// What users call in an instance ([`in_an_instance`]).
const IN_AN_INSTANCE: &[&str] = &[
    "/v1/instances/{instance}/exec",
    "/v1/instances/{instance}/attach",
    "/v1/instances/{instance}/forward/{port}",
    "/v1/instances/{instance}/signal",
    "/v1/runs/{instance}",
];

/// How each of [`IN_AN_INSTANCE`] is refused, in its order.
async fn in_an_instance(user: &ApiClient, instance: InstanceId) -> [ClientError; 5] {
    let exec = ExecQuery {
        command: vec!["true".to_owned()],
        rows: None,
        columns: None,
        terminal_type: None,
    };
    let attach = AttachQuery {
        rows: None,
        columns: None,
        terminal_type: None,
    };
    let term = SignalRequest {
        signal: "TERM".to_owned(),
    };
    [
        user.exec(instance, &exec).await.map(drop).unwrap_err(),
        user.attach(instance, &attach).await.map(drop).unwrap_err(),
        user.forward(instance, 8080).await.map(drop).unwrap_err(),
        user.signal(instance, &term).await.unwrap_err(),
        user.end_run(instance).await.unwrap_err(),
    ]
}

/// What is of everybody, and has what is the caller's: other tests are about these.
const FOR_EVERYBODY: &[&str] = &[
    "/v1/health",
    "/v1/whoami",
    "/v1/apps",
    "/v1/certificates/ca",
    "/v1/users",
    "/v1/users/{user}",
    "/v1/user-tokens",
    "/v1/user-tokens/{token}",
    "/v1/envs",
    "/v1/events",
    "/v1/instances",
    "/v1/ended-instances",
    "/v1/stats",
    "/v1/volumes",
    "/v1/volumes/{volume}",
];

/// Of machines, by what they begin with.
const OF_MACHINES: [&str; 4] = ["/v1/enroll", "/v1/member/", "/v1/node/", "/v1/edge/"];

#[test]
fn every_call_of_users_is_in_a_table_of_this_file() {
    let source = include_str!("../../api/src/lib.rs");
    let paths = source.lines().filter_map(|line| {
        let (_, path) = line.trim().split_once(": &str = \"")?;
        path.strip_suffix("\";")
            .filter(|path| path.starts_with("/v1/"))
    });
    let named = CALLS.iter().map(|(_, path, _)| *path);
    let named = named.chain(IN_AN_INSTANCE.iter().copied());
    let named: Vec<_> = named
        .map(|path| path.split('?').next().unwrap_or(path))
        .chain(FOR_EVERYBODY.iter().copied())
        .collect();
    let is_of = |path: &str, template: &str| {
        let (path, template) = (path.split('/'), template.split('/'));
        path.clone().count() == template.clone().count()
            && path
                .zip(template)
                .all(|(part, wanted)| part == wanted || wanted.starts_with('{'))
    };
    let mut count = 0;
    for template in paths {
        let is_of_machines = |begin: &&str| template.starts_with(*begin);
        if OF_MACHINES.iter().any(is_of_machines) || template == "/v1/member" {
            continue;
        }
        count += 1;
        let is_there = named.iter().any(|path| is_of(path, template));
        assert!(is_there, "no test says who may call {template}");
    }
    assert!(count > 40, "{count}");
}

/// The status of a call, and the code of its error.
async fn called(
    client: &Client,
    server: &Server,
    (method, path): (&str, &str),
    token: &str,
) -> (StatusCode, String) {
    let url = format!("{}{path}", server.ready.url);
    let method: Method = method.parse().unwrap();
    let body = match path {
        "/v1/apps/shop" => r#"{"org":"default"}"#,
        _ => "{}",
    };
    let request = client.request(method, url).bearer_auth(token).body(body);
    let response = request.send().await.unwrap();
    let status = response.status();
    if status.is_success() {
        return (status, String::new());
    }
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let body = response.bytes().await.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["status"], status.as_u16());
    assert_eq!(problem["detail"], problem["message"]);
    let error: ApiError = serde_json::from_value(problem).unwrap();
    (status, error.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_needs_its_role_and_what_is_anothers_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    for name in ["trade", "bank"] {
        server.user.create_org(&org(name)).await.unwrap();
    }
    let digest = registry.push("shop", "amd64", "one").await;
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("shop"),
        image: format!("{}/shop@{digest}", registry.host),
    };
    let deployer = client(
        &server,
        &somebody(&server, "first", Some("trade"), Role::Deployer).await,
    );
    let key = env_key("shop", "prod");
    deployer.deploy(&key, &request).await.unwrap();
    let apps = server.user.apps().await.unwrap();
    assert_eq!(
        (apps.len(), &apps[0].org, apps[0].envs),
        (1, &org("trade"), 1)
    );

    let http = plain(&server.config.ca_pem, None);
    let roles = [Role::Viewer, Role::Deployer, Role::Admin];
    let mut inside = BTreeMap::new();
    let mut cluster = BTreeMap::new();
    for role in roles {
        inside.insert(
            role,
            somebody(&server, &format!("in-{role}"), Some("trade"), role).await,
        );
        // The admin's call would be carried out.
        if role != Role::Admin {
            cluster.insert(
                role,
                somebody(&server, &format!("of-{role}"), None, role).await,
            );
        }
    }
    let outsider = somebody(&server, "outsider", Some("bank"), Role::Admin).await;
    for (method, path, needs) in CALLS {
        let call = (*method, *path);
        for (role, token) in &cluster {
            let (status, code) = called(&http, &server, call, token).await;
            let needed = match needs {
                Needs::Cluster(needed) | Needs::App(needed) => needed,
            };
            assert_eq!(
                status == 403,
                role < needed,
                "{role} of the cluster: {call:?}: {status} {code}"
            );
        }
        let (status, code) = called(&http, &server, call, &outsider).await;
        match needs {
            Needs::Cluster(_) => assert_eq!(
                (status.as_u16(), code.as_str()),
                (403, "forbidden"),
                "{call:?}"
            ),
            // That a name is taken is what who makes an app has to be told.
            Needs::App(_) if code == "app_name_taken" => assert_eq!(*method, "POST", "{call:?}"),
            Needs::App(_) => assert_eq!(status, 404, "{call:?}: {code}"),
        }
        for (role, token) in &inside {
            // Who may is let do it with a body that is refused, but for the last calls of the table, which end what the others are of.
            let Needs::App(needed) = needs else {
                let (status, _) = called(&http, &server, call, token).await;
                assert_eq!(status, 403, "{role}: {call:?}");
                continue;
            };
            if *role >= Role::Admin && *method != "GET" {
                continue;
            }
            let (status, code) = called(&http, &server, call, token).await;
            assert_eq!(
                status == 403,
                role < needed,
                "{role}: {call:?}: {status} {code}"
            );
            assert_ne!(code, "env_not_found", "{role}: {call:?}");
        }
    }

    // Lists have what is the caller's, and no more.
    let (mine, others) = (
        client(&server, &inside[&Role::Viewer]),
        client(&server, &outsider),
    );
    let said = report(Generation::default(), Vec::new());
    node.client.report_all(&said).await.unwrap();
    let instance = eventually("an instance", async || {
        mine.instances(None).await.unwrap().pop()
    })
    .await;
    assert_eq!(mine.envs().await.unwrap().len(), 1);
    assert!(others.envs().await.unwrap().is_empty());
    assert!(others.instances(None).await.unwrap().is_empty());
    assert!(others.apps().await.unwrap().is_empty());
    let seen: Vec<_> = others
        .orgs()
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.name)
        .collect();
    assert_eq!(seen, [org("bank")]);
    let users: Vec<_> = others
        .users()
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.name)
        .collect();
    assert_eq!(users, [user("outsider")]);
    // An instance of another org is as one that is not there; a viewer does nothing in one.
    let nowhere = in_an_instance(&others, "00000000".parse().unwrap()).await;
    let hidden = in_an_instance(&others, instance.id).await;
    for (nowhere, hidden) in nowhere.iter().zip(&hidden) {
        let nowhere = nowhere.to_string();
        let id = instance.id.to_string();
        assert_eq!(hidden.to_string(), nowhere.replace("00000000", &id));
        assert_eq!(hidden.code(), Some("instance_not_found"), "{hidden}");
    }
    for refused in in_an_instance(&mine, instance.id).await {
        assert_eq!(refused.code(), Some("forbidden"), "{refused}");
    }

    // Nor is it told to whom another app is, whose logs are read; nor is whose a host is that is taken.
    let of_other = DeployRequest {
        manifest: manifest("loans").replace("loans.localhost", "shop.localhost"),
        ..request.clone()
    };
    let theirs = env_key("loans", "prod");
    let refused = others.deploy(&theirs, &of_other).await.unwrap_err();
    assert_eq!(refused.code(), Some("host_taken"), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("shop.localhost leads elsewhere"), "{text}");
    assert!(!text.contains("shop/prod"), "{text}");
    let without = DeployRequest {
        manifest: manifest("loans"),
        ..request.clone()
    };
    others.deploy(&theirs, &without).await.unwrap();
    let query = LogsQuery {
        instance: Some(instance.id),
        ..LogsQuery::default()
    };
    let refused = others.logs(&theirs, &query).await.map(drop).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("loans/prod has no instance"), "{text}");
    // A viewer who may deploy nowhere learns of no name whether it is taken.
    let onlooker = client(
        &server,
        &somebody(&server, "onlooker", Some("bank"), Role::Viewer).await,
    );
    for app in ["shop", "nobodys"] {
        let refused = onlooker.deploy(&env_key(app, "prod"), &without).await;
        assert_eq!(refused.unwrap_err().code(), Some("forbidden"), "{app}");
    }

    // What goes on ends with the token that began it.
    let reading = token(&server, of("in-viewer")).await;
    let query = LogsQuery {
        follow: true,
        ..LogsQuery::default()
    };
    let reader = client(&server, &reading);
    let mut lines = reader.logs(&key, &query).await.unwrap();
    let tokens = server
        .user
        .user_tokens(Some(&user("in-viewer")))
        .await
        .unwrap();
    for row in tokens {
        server.user.revoke_user_token(&row.id).await.unwrap();
    }
    let ended = async { while lines.next().await.is_some_and(|line| line.is_ok()) {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    let events = reader.events(&EventsQuery::default(), Duration::ZERO).await;
    assert!(events.is_err());

    let admin = client(&server, &inside[&Role::Admin]);
    admin.destroy(&key).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_no_more_than_it_says_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    server.user.create_org(&org("trade")).await.unwrap();
    server.user.create_org(&org("bank")).await.unwrap();
    grant(&server, "ann", Some("trade"), Role::Admin).await;
    grant(&server, "ann", Some("bank"), Role::Deployer).await;

    // Where there are several orgs a new app needs one named, and is that one's from then on.
    let ann = client(&server, &token(&server, of("ann")).await);
    let secrets = SetSecretsRequest {
        set: BTreeMap::from([("PASSWORD".to_owned(), b"x".to_vec())]),
        unset: Vec::new(),
    };
    let key = env_key("shop", "prod");
    let refused = ann.set_secrets(&key, "db", &secrets).await.unwrap_err();
    assert_eq!(refused.code(), Some("org_needed"), "{refused}");
    let in_trade = ann.clone().in_org(Some(org("trade")));
    in_trade.set_secrets(&key, "db", &secrets).await.unwrap();
    ann.set_secrets(&key, "db", &secrets).await.unwrap();
    let in_bank = ann.clone().in_org(Some(org("bank")));
    let refused = in_bank.set_secrets(&key, "db", &secrets).await.unwrap_err();
    assert_eq!(refused.code(), Some("app_of_another_org"), "{refused}");
    // It has secrets, and its name is not free before they are gone.
    let refused = ann.remove_app(&key.app).await.unwrap_err();
    assert_eq!(refused.code(), Some("app_not_empty"), "{refused}");

    // A token of one org, and of a role: it opens that, and makes no token that opens more.
    let narrow = CreateUserTokenRequest {
        org: Some(org("bank")),
        role: Some(Role::Viewer),
        ttl_seconds: Some(3600),
        ..of("ann")
    };
    let narrow = client(&server, &token(&server, narrow).await);
    let who = narrow.whoami().await.unwrap();
    assert_eq!(
        who.grants.orgs,
        BTreeMap::from([(org("bank"), Role::Viewer)])
    );
    assert_eq!(narrow.apps().await.unwrap(), []);
    let own = CreateUserTokenRequest {
        user: None,
        ..of("ann")
    };
    for (wider, code) in [
        (own.clone(), "forbidden"),
        (
            CreateUserTokenRequest {
                org: Some(org("trade")),
                ..own.clone()
            },
            "org_not_found",
        ),
        (
            CreateUserTokenRequest {
                org: Some(org("bank")),
                ..own.clone()
            },
            "ttl_out_of_range",
        ),
        (
            CreateUserTokenRequest {
                user: Some(user("root")),
                ..own.clone()
            },
            "forbidden",
        ),
    ] {
        let refused = narrow.create_user_token(&wider).await.unwrap_err();
        assert_eq!(refused.code(), Some(code), "{wider:?}: {refused}");
    }
    let same = CreateUserTokenRequest {
        org: Some(org("bank")),
        ttl_seconds: Some(60),
        ..own.clone()
    };
    let same = narrow.create_user_token(&same).await.unwrap();
    let who = client(&server, &same.token).whoami().await.unwrap();
    assert_eq!(
        who.grants.orgs,
        BTreeMap::from([(org("bank"), Role::Viewer)])
    );

    // An admin of an org gives roles and tokens there, and nowhere else.
    let request = GrantRequest {
        org: Some(org("trade")),
        role: Some(Role::Deployer),
    };
    ann.grant(&user("ben"), &request).await.unwrap();
    for other in [Some(org("bank")), None] {
        let request = GrantRequest {
            org: other,
            role: Some(Role::Viewer),
        };
        let refused = ann.grant(&user("ben"), &request).await.unwrap_err();
        assert_eq!(refused.code(), Some("forbidden"), "{refused}");
    }
    // Nor does one learn who is in another: where a role is taken that nobody has, all are nobody.
    grant(&server, "carl", Some("bank"), Role::Viewer).await;
    let none = GrantRequest {
        org: Some(org("trade")),
        role: None,
    };
    let there = ann.grant(&user("carl"), &none).await.unwrap_err();
    let nowhere = ann.grant(&user("nobody"), &none).await.unwrap_err();
    assert_eq!(there.code(), nowhere.code());
    assert_eq!(
        there.to_string().replace("carl", "nobody"),
        nowhere.to_string()
    );
    let for_ben = CreateUserTokenRequest {
        org: Some(org("trade")),
        ..of("ben")
    };
    let for_ben = ann.create_user_token(&for_ben).await.unwrap();
    let ben = client(&server, &for_ben.token);
    // Not for whom has no role there, and not in the name of a user of the cluster.
    for name in ["admin", "nobody"] {
        let in_trade = CreateUserTokenRequest {
            org: Some(org("trade")),
            ..of(name)
        };
        let refused = ann.create_user_token(&in_trade).await.unwrap_err();
        assert_eq!(refused.code(), Some("forbidden"), "{name}: {refused}");
    }
    // Who has a role in one org sees the tokens of theirs, and ends them; that of an admin makes none that outlives it.
    let wide = client(&server, &token(&server, of("ben")).await);
    let own = wide.user_tokens(None).await.unwrap();
    assert_eq!(own.len(), 2, "{own:?}");
    let spare = token(&server, of("ben")).await;
    let spare = client(&server, &spare).whoami().await.unwrap().token;
    wide.revoke_user_token(&spare).await.unwrap();
    let short = CreateUserTokenRequest {
        org: Some(org("trade")),
        ttl_seconds: Some(600),
        ..of("ann")
    };
    let short = client(&server, &token(&server, short).await);
    let lasting = CreateUserTokenRequest {
        org: Some(org("trade")),
        user: None,
        ..of("ann")
    };
    let refused = short.create_user_token(&lasting).await.unwrap_err();
    assert_eq!(refused.code(), Some("ttl_out_of_range"), "{refused}");
    ben.set_secrets(&key, "db", &secrets).await.unwrap();

    // A token that is revoked lets nobody in from then on, and one that has expired says so.
    server
        .user
        .revoke_user_token(&wide.whoami().await.unwrap().token)
        .await
        .unwrap();
    let listed = server.user.user_tokens(Some(&user("ben"))).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].used_at.is_some());
    assert_eq!(listed[0].by, Some(user("ann")));
    ann.revoke_user_token(&for_ben.id).await.unwrap();
    let refused = ben.whoami().await.unwrap_err();
    assert_eq!(refused.code(), Some("unauthorized"), "{refused}");
    let short = CreateUserTokenRequest {
        ttl_seconds: Some(1),
        ..of("ann")
    };
    let short = client(&server, &token(&server, short).await);
    let refused = eventually("the token expires", async || short.whoami().await.err()).await;
    assert!(refused.to_string().contains("has expired"), "{refused}");
    let refused = server.user.revoke_user_token("00").await.unwrap_err();
    assert_eq!(refused.code(), Some("token_not_found"), "{refused}");

    // The last admin stays.
    let refused = server.user.remove_user(&user("admin")).await.unwrap_err();
    assert_eq!(refused.code(), Some("last_admin"), "{refused}");

    // All of it is in the store, and a server that starts anew lets the same in.
    let config = server.config.clone();
    server.stop().await;
    let server = Server::start(folder.path()).await;
    let config = ClientConfig {
        server: server.config.server.clone(),
        ..config
    };
    let rows = ApiClient::user(&config).unwrap().users().await.unwrap();
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["admin", "ann", "ben", "carl"]);
    server.stop().await;
}

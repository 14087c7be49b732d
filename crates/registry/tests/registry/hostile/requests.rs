//! Refusals, credentials, tokens and redirects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use expect_test::expect;
use oci::Reference;
use registry::{
    Credential, Credentials, FetchEvent, Limits, LoginState, LongerWait, Problem, Registry,
    RegistryOptions,
};

use super::{check, fetch_with, is_layer, one_layer};
use crate::server::{Answer, Calls, Server, serving};
use crate::support::{Cache, Image, client, fetch, noise, pinned, quick};

#[tokio::test]
async fn requests_to_a_busy_registry_are_retried_until_the_attempts_are_used_up() {
    let (result, server, _cache) = fetch_with(|asked, _| match asked.earlier {
        0 => Some(Answer::status(503)),
        1 => Some(Answer::status(429).header("Retry-After", "3600")),
        _ => None,
    })
    .await;
    result.unwrap();
    assert_eq!(server.count("blobs"), 4);

    let (result, server, _cache) = fetch_with(|_, _| {
        let body = r#"{"errors":[{"code":"UNAVAILABLE","message":"red \u001b[31m alert"}]}"#;
        Some(Answer {
            status: 500,
            ..Answer::ok(body.as_bytes())
        })
    })
    .await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST answers 500: red  [31m alert (UNAVAILABLE)"
        ],
    );

    let registry = client(quick(), Credentials::Anonymous);
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = unused.local_addr().unwrap().to_string();
    drop(unused);
    let reference: Reference = format!("{host}/test/app").parse().unwrap();
    let error = registry.resolve(&reference, &[]).await.unwrap_err();
    assert!(
        matches!(error.problem, Problem::Unreachable { .. }),
        "{error:?}"
    );
    assert_eq!(
        error.problem.hint().unwrap(),
        format!("is the registry running, and can this machine reach {host}?")
    );
}

/// A fixed user for this host.
pub(super) fn user(host: &str) -> Credentials {
    let credential = Credential::Basic {
        user: "ann".to_owned(),
        password: "secret".to_owned(),
    };
    Credentials::Fixed(BTreeMap::from([(host.to_owned(), credential)]))
}

#[tokio::test]
async fn a_second_401_is_final() {
    let server =
        Server::start(|_| Answer::status(401).header("WWW-Authenticate", "Basic realm=\"x\""))
            .await;
    let reference: Reference = format!("{}/test/app", server.host).parse().unwrap();
    let resolve = async |credentials| {
        let registry = client(quick(), credentials);
        registry.resolve(&reference, &[]).await.map(drop)
    };
    let anonymous = resolve(Credentials::Anonymous).await;
    check(
        anonymous,
        &server,
        expect![
            "cannot resolve HOST/test/app:latest: HOST denies access: it requires a user name and password"
        ],
    );
    assert_eq!(server.asked().len(), 1);
    let known = resolve(user(&server.host)).await;
    check(
        known,
        &server,
        expect![
            "cannot resolve HOST/test/app:latest: HOST denies access, the login is wrong or has expired: Unauthorized"
        ],
    );
    assert_eq!(server.asked().len(), 3);
    let sent = server.asked()[2].authorization.clone();
    assert_eq!(sent.as_deref(), Some("Basic YW5uOnNlY3JldA=="));
}

/// A registry with a token service beside it; `accept` says whether a token is taken.
async fn token_registry(
    image: &Image,
    accept: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Server {
    let honest = serving(image, |_| None);
    let tokens = Calls::default();
    let host = Arc::new(OnceLock::<String>::new());
    let known = Arc::clone(&host);
    let server = Server::start(move |asked| {
        if asked.path.starts_with("/token") {
            assert_eq!(asked.authorization.as_deref(), Some("Basic YW5uOnNlY3JldA=="));
            let token = format!(r#"{{"token":"t{}"}}"#, tokens.next());
            return Answer::ok(token.as_bytes());
        }
        match &asked.authorization {
            Some(token) if accept(token) => honest(asked),
            _ => {
                let realm = format!(
                    r#"Bearer realm="http://{}/token",service="s",scope="repository:test/app:pull,push""#,
                    known.get().unwrap()
                );
                Answer::status(401).header("WWW-Authenticate", &realm)
            }
        }
    })
    .await;
    host.set(server.host.clone()).unwrap();
    server
}

#[tokio::test]
async fn a_token_is_reused_until_the_registry_rejects_it() {
    let image = Image::new("amd64", &[noise(1, 1000), noise(2, 1000)]);
    let server = token_registry(&image, |token| token == "Bearer t0").await;
    let registry = client(quick(), user(&server.host));
    let (result, _) = fetch(
        &registry,
        &pinned(&server.host, &image.digest()),
        &Cache::new(),
    )
    .await;
    result.unwrap();
    let tokens: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|a| a.path.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(
        tokens[0].path,
        "/token?service=s&scope=repository%3Atest%2Fapp%3Apull"
    );

    // The first token expires after three requests.
    let requests = Calls::default();
    let server = token_registry(&image, move |token| {
        token
            == if requests.next() < 3 {
                "Bearer t0"
            } else {
                "Bearer t1"
            }
    })
    .await;
    let limits = Limits {
        parallel_layers: 1,
        ..quick()
    };
    let registry = client(limits, user(&server.host));
    let (result, _) = fetch(
        &registry,
        &pinned(&server.host, &image.digest()),
        &Cache::new(),
    )
    .await;
    result.unwrap();
    assert_eq!(server.count("/token"), 2);

    // No token is ever good enough.
    let server = token_registry(&image, |_| false).await;
    let registry = client(quick(), user(&server.host));
    let (result, _) = fetch(
        &registry,
        &pinned(&server.host, &image.digest()),
        &Cache::new(),
    )
    .await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::Denied { .. }
    ));
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_login_is_tried_at_the_root_without_a_scope() {
    let image = one_layer();
    let server = token_registry(&image, |token| token == "Bearer t0").await;
    let registry = client(quick(), Credentials::Anonymous);
    let credential = Credential::Basic {
        user: "ann".to_owned(),
        password: "secret".to_owned(),
    };
    let result = registry.log_in(&server.host, &credential).await;
    // The honest part of this server has nothing at the root, and says so only to those it lets in.
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::NotFound { .. }
    ));
    let asked: Vec<_> = server.asked().into_iter().map(|a| a.path).collect();
    assert_eq!(asked, ["/v2/", "/token?service=s", "/v2/"]);
}

#[tokio::test]
async fn an_unsafe_token_service_is_refused() {
    let challenge = |realm: &str| {
        let header = format!("Bearer realm=\"{realm}\"");
        Answer::status(401).header("WWW-Authenticate", &header)
    };
    for (realm, expected) in [
        (
            "http://192.0.2.1/token",
            expect![
                "cannot resolve HOST/test/app:latest: HOST points to http://192.0.2.1/token: plain HTTP is spoken only to hosts that --insecure-registry lists"
            ],
        ),
        (
            "file:///etc/passwd",
            expect![
                "cannot resolve HOST/test/app:latest: HOST points to file:///etc/passwd: its token service speaks neither HTTPS nor HTTP"
            ],
        ),
        (
            "nonsense",
            expect![
                "cannot resolve HOST/test/app:latest: HOST points to nonsense: the address of its token service is malformed"
            ],
        ),
    ] {
        let server = Server::start(move |_| challenge(realm)).await;
        let reference: Reference = format!("{}/test/app", server.host).parse().unwrap();
        let registry = client(quick(), user(&server.host));
        let result = registry.resolve(&reference, &[]).await.map(drop);
        check(result, &server, expected);
        assert_eq!(server.asked().len(), 1);
    }
}

#[tokio::test]
async fn redirects_to_plain_http_and_in_circles_are_refused() {
    // To another server, which must not see the credential.
    let image = one_layer();
    let storage = Server::start(serving(&image, |_| None)).await;
    let target = storage.host.clone();
    let wrong = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        if asked.authorization.is_none() {
            return Some(Answer::status(401).header("WWW-Authenticate", "Basic realm=x"));
        }
        let location = format!("http://{target}{}", asked.path);
        is_layer(&wrong, asked).then(|| Answer::status(307).header("Location", &location))
    }))
    .await;
    let cache = Cache::new();
    let registry = client(quick(), user(&server.host));
    let (result, _) = fetch(&registry, &pinned(&server.host, &image.digest()), &cache).await;
    result.unwrap();
    assert_eq!(storage.asked().len(), 1);
    assert_eq!(storage.asked()[0].authorization, None);

    let (result, server, _cache) =
        fetch_with(|asked, _| Some(Answer::status(302).header("Location", &asked.path))).await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::UnsafeRedirect { .. }
    ));
    assert_eq!(server.count("blobs"), 7);
    let (result, server, _cache) = fetch_with(|_, _| {
        Some(Answer::status(302).header("Location", "http://192.0.2.1/x?signature=secret"))
    })
    .await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST points to http://192.0.2.1/x: plain HTTP is spoken only to hosts that --insecure-registry lists"
        ],
    );
}

/// The registry is a registry no longer for what it keeps elsewhere.
#[tokio::test]
async fn case_a_storage_that_is_away_is_named_and_not_the_registry() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let storage = unused.local_addr().unwrap().to_string();
    drop(unused);
    let target = storage.clone();
    let (result, server, _cache) = fetch_with(move |asked, _| {
        let location = format!("http://{target}{}", asked.path);
        Some(Answer::status(307).header("Location", &location))
    })
    .await;
    let problem = result.unwrap_err().problem;
    let text = problem.to_string();
    let expected = format!(
        "{storage}, to which {} redirects, does not answer (3 attempts)",
        server.host
    );
    assert_eq!(text, expected);
    assert_eq!(
        problem.hint().unwrap(),
        format!(
            "{} keeps its blobs at {storage}: is that running, and can this machine reach it?",
            server.host
        )
    );
    assert!(problem.is_transient());

    // Its refusals and cut answers are its own, too, and no matter of a login.
    for answer in [
        Answer::status(403),
        Answer::status(500),
        Answer {
            cut_after: Some(10),
            ..Answer::ok(&one_layer().layers[0])
        },
    ] {
        let storage = Server::start(move |_| answer.clone()).await;
        let target = storage.host.clone();
        let (result, server, _cache) = fetch_with(move |asked, _| {
            let location = format!("http://{target}{}", asked.path);
            Some(Answer::status(307).header("Location", &location))
        })
        .await;
        let problem = result.unwrap_err().problem;
        let text = problem.to_string();
        assert!(text.starts_with(&storage.host), "{text}");
        assert!(!matches!(problem, Problem::Denied { .. }), "{text}");
        assert!(server.count("blobs") > 1);
    }
}

/// A plain registry that is listed, reached under a name that is not loopback, may redirect to loopback and back.
#[tokio::test]
async fn case_a_redirect_to_a_listed_plain_host_is_followed() {
    let image = one_layer();
    let storage = Server::start(serving(&image, |_| None)).await;
    let target = storage.host.clone();
    let wrong = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        let location = format!("http://{target}{}", asked.path);
        is_layer(&wrong, asked).then(|| Answer::status(302).header("Location", &location))
    }))
    .await;
    let registry = Registry::new(RegistryOptions {
        insecure: [storage.host.clone()].into(),
        limits: quick(),
        ..RegistryOptions::default()
    })
    .unwrap();
    let pinned = pinned(&server.host, &image.digest());
    fetch(&registry, &pinned, &Cache::new()).await.0.unwrap();
    assert_eq!(storage.asked().len(), 1);
}

#[tokio::test]
async fn case_a_registry_that_asks_to_wait_is_waited_for_and_says_so() {
    let image = one_layer();
    let wrong = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        (is_layer(&wrong, asked) && asked.earlier == 0).then(|| {
            let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
            Answer {
                status: 429,
                ..Answer::ok(body.as_bytes())
            }
            .header("Retry-After", "1")
        })
    }))
    .await;
    let limits = Limits {
        retry_after_max: Duration::from_secs(5),
        ..quick()
    };
    let registry = client(limits.clone(), Credentials::Anonymous);
    let waited = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&waited);
    let cache = Cache::new();
    registry
        .fetch_image(
            &pinned(&server.host, &image.digest()),
            &cache.cache,
            &move |event| {
                if let FetchEvent::Waiting { reason, pause } = event {
                    said.lock().unwrap().push((reason, pause));
                }
            },
        )
        .await
        .unwrap();
    let expected = (
        format!("{} answers 429: slow down (TOOMANYREQUESTS)", server.host),
        Duration::from_secs(1),
    );
    assert_eq!(*waited.lock().unwrap(), [expected]);

    // Where someone waits for the answer, a longer wait is theirs to decide on.
    let server = Server::start(|_| Answer::status(503).header("Retry-After", "90")).await;
    let limits = Limits {
        longer_wait: LongerWait::Return,
        ..limits
    };
    let reference: Reference = format!("{}/test/app", server.host).parse().unwrap();
    let error = client(limits, Credentials::Anonymous)
        .resolve(&reference, &[])
        .await
        .unwrap_err();
    assert_eq!(error.problem.retry_after(), Some(Duration::from_secs(90)));
    assert!(error.problem.is_transient());
    assert_eq!(server.asked().len(), 1);
}

/// ECR's twelve hours, and registries on a bad day.
#[tokio::test]
async fn case_a_login_that_expires_is_asked_for_again() {
    // A 401 out of nowhere, without a word about what is wanted.
    let (result, server, _cache) =
        fetch_with(|asked, _| (asked.earlier == 0).then(|| Answer::status(401))).await;
    result.unwrap();
    assert_eq!(server.count("blobs"), 3);

    // A token that was good until now, answered with a 403: a new one, once.
    let image = Image::new("amd64", &[noise(1, 1000), noise(2, 1000)]);
    let limits = Limits {
        parallel_layers: 1,
        ..quick()
    };
    let wrong = image.clone();
    let honest = token_registry(&image, |token| token == "Bearer t0" || token == "Bearer t1").await;
    let target = honest.host.clone();
    let front = Server::start({
        let honest = serving(&image, |_| None);
        move |asked| match asked.authorization.as_deref() {
            Some("Bearer t0") if is_layer(&wrong, asked) => Answer::status(403),
            Some("Bearer t0" | "Bearer t1") => honest(asked),
            _ => {
                let realm = format!(r#"Bearer realm="http://{target}/token",service="s""#);
                Answer::status(401).header("WWW-Authenticate", &realm)
            }
        }
    })
    .await;
    let registry = client(limits.clone(), user(&front.host));
    let pinned = pinned(&front.host, &image.digest());
    fetch(&registry, &pinned, &Cache::new()).await.0.unwrap();
    assert_eq!(honest.count("/token"), 2);

    // The password itself is no longer accepted.
    let calls = Calls::default();
    let server = Server::start(serving(&image, move |asked| {
        let good = asked.authorization.is_some() && calls.next() < 2;
        (!good).then(|| Answer::status(401).header("WWW-Authenticate", "Basic realm=x"))
    }))
    .await;
    let registry = client(limits, user(&server.host));
    let wanted = crate::support::pinned(&server.host, &image.digest());
    let (result, _) = fetch(&registry, &wanted, &Cache::new()).await;
    let problem = result.unwrap_err().problem;
    assert!(
        matches!(
            problem,
            Problem::Denied {
                login: LoginState::Expired,
                ..
            }
        ),
        "{problem:?}"
    );
    assert_eq!(
        problem.to_string(),
        format!(
            "{} denies access, the login is wrong or has expired: Unauthorized",
            server.host
        )
    );
    // Each layer that is asked for: with the accepted one, and with it looked up again.
    assert_eq!(server.count("blobs"), 3);
}

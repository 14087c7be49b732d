//! A registry that lies, stalls, or loops: a typed error each, within bounds, and a sound cache.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use registry::{Credential, Credentials, Limits, Problem, Reference, RegistryError};

use crate::server::{Answer, Asked, Calls, Server, serving};
use crate::support::{
    Cache, Image, OCI_INDEX, OCI_MANIFEST, chain, client, descriptor, digest, fetch, noise, pinned,
    quick,
};

fn one_layer() -> Image {
    Image::new("amd64", &[noise(1, 300_000)])
}

fn is_layer(image: &Image, asked: &Asked) -> bool {
    asked.path.ends_with(digest(&image.layers[0]).as_str())
}

/// Serves the image with this lie about its layer, and fetches it into a cache of its own.
async fn fetch_with(
    lie: impl Fn(&Asked, &[u8]) -> Option<Answer> + Send + Sync + 'static,
) -> (Result<(), RegistryError>, Server, Cache) {
    let image = one_layer();
    let lied = image.clone();
    let script = serving(&image, move |asked| {
        if !is_layer(&lied, asked) {
            return None;
        }
        lie(asked, &lied.layers[0])
    });
    let server = Server::start(script).await;
    let cache = Cache::new();
    let registry = client(quick(), Credentials::Anonymous);
    let (result, _) = fetch(&registry, &pinned(&server.host, &image.digest()), &cache).await;
    assert_eq!(result.is_ok(), cache.holds(&image.layers[0]));
    (result.map(drop), server, cache)
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "expect![] reads better by value"
)]
fn check(result: Result<(), RegistryError>, server: &Server, expected: Expect) {
    let text = chain(&result.unwrap_err(), &server.host);
    let mut shown = text;
    for (name, bytes) in [
        ("LAYER", &one_layer().layers[0]),
        ("IMAGE", &one_layer().manifest),
    ] {
        shown = shown.replace(digest(bytes).as_str(), name);
    }
    expected.assert_eq(&shown);
}

#[tokio::test]
async fn a_blob_that_is_cut_off_goes_on_by_range() {
    let (result, server, _cache) = fetch_with(|asked, layer| {
        let mut answer = Answer::range(layer, asked.from);
        // Three attempts are made; each but the last gets a third.
        if asked.earlier < 2 {
            answer.cut_after = Some(100_000);
        }
        Some(answer)
    })
    .await;
    result.unwrap();
    let from: Vec<_> = server
        .asked()
        .iter()
        .filter(|a| a.path.contains("blobs"))
        .map(|a| a.from)
        .collect();
    // The config, the layer from its start, and twice from where it was cut off.
    assert_eq!(from, [0, 0, 100_000, 200_000]);
}

#[tokio::test]
async fn a_server_that_ignores_the_range_is_understood() {
    let (result, server, _cache) = fetch_with(|asked, layer| {
        let mut answer = Answer::ok(layer);
        if asked.earlier == 0 {
            answer.cut_after = Some(123_457);
        }
        Some(answer)
    })
    .await;
    result.unwrap();
    assert_eq!(server.asked().last().unwrap().from, 123_457);
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_not_taken() {
    let (result, server, _cache) = fetch_with(|asked, layer| {
        let mut answer = Answer::range(layer, if asked.from > 0 { 50_000 } else { 0 });
        if asked.from == 0 {
            answer.cut_after = Some(100_000);
        }
        Some(answer)
    })
    .await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST does not answer (3 attempts): it answers with another range than was asked for"
        ],
    );
}

#[tokio::test]
async fn a_second_half_of_something_else_is_noticed_and_tried_from_the_start() {
    let (result, server, _cache) = fetch_with(|asked, layer| {
        let mut answer = Answer::range(layer, asked.from);
        if asked.earlier == 0 {
            answer.cut_after = Some(100_000);
        } else if asked.from > 0 {
            answer.body[5] ^= 1;
        }
        Some(answer)
    })
    .await;
    result.unwrap();
    let from: Vec<_> = server.asked().iter().skip(2).map(|a| a.from).collect();
    assert_eq!(from, [0, 100_000, 0]);
}

#[tokio::test]
async fn flipped_bytes_are_refused_at_once() {
    let (result, server, _cache) = fetch_with(|_, layer| {
        let mut answer = Answer::ok(layer);
        answer.body[299_999] ^= 0x80;
        Some(answer)
    })
    .await;
    let error = result.unwrap_err();
    assert!(
        matches!(error.problem, Problem::WrongDigest { .. }),
        "{error:?}"
    );
    assert!(!error.problem.is_transient());
    assert_eq!(server.count("blobs"), 2);
}

#[tokio::test]
async fn too_long_and_too_short_are_refused() {
    let longer = |chunked: bool| {
        move |_: &Asked, layer: &[u8]| {
            let mut answer = Answer::ok(layer);
            answer.body.extend_from_slice(b"more");
            answer.chunked = chunked;
            Some(answer)
        }
    };
    let (result, server, _cache) = fetch_with(longer(false)).await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST lies about LAYER: 300000 bytes expected, got 300004"
        ],
    );
    let (result, server, _cache) = fetch_with(longer(true)).await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST lies about LAYER: 300000 bytes expected, got 300004"
        ],
    );
    let (result, server, _cache) = fetch_with(|_, layer| Some(Answer::ok(&layer[1..]))).await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST lies about LAYER: 300000 bytes expected, got 299999"
        ],
    );
    let (result, server, _cache) = fetch_with(|_, layer| {
        let endless = true;
        Some(Answer {
            endless,
            ..Answer::ok(&layer[..1000])
        })
    })
    .await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::WrongSize { .. }
    ));
    assert_eq!(server.count("blobs"), 2);
}

#[tokio::test]
async fn a_blob_that_always_ends_early_is_given_up() {
    let (result, server, _cache) = fetch_with(|asked, layer| {
        let cut_after = Some(1000);
        Some(Answer {
            cut_after,
            ..Answer::range(layer, asked.from)
        })
    })
    .await;
    let error = result.unwrap_err();
    assert!(
        matches!(error.problem, Problem::Unreachable { attempts: 3, .. }),
        "{error:?}"
    );
    assert!(error.problem.is_transient());
    assert_eq!(server.asked().last().unwrap().from, 2000);
}

#[tokio::test]
async fn stalls_and_drips_end_in_bounded_time() {
    let begun = Instant::now();
    let (result, server, _cache) = fetch_with(|asked, layer| {
        let stall_after = Some(10);
        Some(Answer {
            stall_after,
            ..Answer::range(layer, asked.from)
        })
    })
    .await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST does not answer (3 attempts): nothing came for 0.4 s"
        ],
    );
    assert!(begun.elapsed() < Duration::from_secs(3));

    // It never stalls, but would take hours.
    let image = one_layer();
    let lied = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        let drip = true;
        is_layer(&lied, asked).then(|| Answer {
            drip,
            ..Answer::ok(&lied.layers[0])
        })
    }))
    .await;
    let limits = Limits {
        blob_grace: Duration::from_millis(500),
        slowest_bytes_per_second: 1 << 30,
        ..quick()
    };
    let cache = Cache::new();
    let registry = client(limits, Credentials::Anonymous);
    let (result, _) = fetch(&registry, &pinned(&server.host, &image.digest()), &cache).await;
    check(
        result.map(drop),
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST does not answer (1 attempts): LAYER of 300000 bytes took longer than 0.5 s"
        ],
    );
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_and_a_dead_one_given_up() {
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
fn user(host: &str) -> Credentials {
    let credential = Credential::Basic {
        user: "ann".to_owned(),
        password: "secret".to_owned(),
    };
    Credentials::Fixed(BTreeMap::from([(host.to_owned(), credential)]))
}

#[tokio::test]
async fn a_registry_that_always_says_401_is_asked_twice() {
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
            "cannot resolve HOST/test/app:latest: HOST denies access: it wants a user name and password"
        ],
    );
    assert_eq!(server.asked().len(), 1);
    let known = resolve(user(&server.host)).await;
    check(
        known,
        &server,
        expect!["cannot resolve HOST/test/app:latest: HOST denies access: Unauthorized"],
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
async fn a_token_is_got_once_and_got_again_when_it_is_old() {
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
async fn a_token_service_cannot_mislead() {
    let challenge = |realm: &str| {
        let header = format!("Bearer realm=\"{realm}\"");
        Answer::status(401).header("WWW-Authenticate", &header)
    };
    for (realm, expected) in [
        (
            "http://192.0.2.1/token",
            expect![
                "cannot resolve HOST/test/app:latest: HOST sends us to http://192.0.2.1/token: its token service does not speak HTTPS"
            ],
        ),
        (
            "file:///etc/passwd",
            expect![
                "cannot resolve HOST/test/app:latest: HOST sends us to file:///etc/passwd: its token service does not speak HTTPS"
            ],
        ),
        (
            "nonsense",
            expect![
                "cannot resolve HOST/test/app:latest: HOST sends us to nonsense: its token service has no proper address"
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
async fn redirects_are_followed_but_not_anywhere() {
    // To another server, which must not see the credential.
    let image = one_layer();
    let storage = Server::start(serving(&image, |_| None)).await;
    let target = storage.host.clone();
    let lied = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        if asked.authorization.is_none() {
            return Some(Answer::status(401).header("WWW-Authenticate", "Basic realm=x"));
        }
        let location = format!("http://{target}{}", asked.path);
        is_layer(&lied, asked).then(|| Answer::status(307).header("Location", &location))
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
            "cannot fetch HOST/test/app@IMAGE: HOST sends us to http://192.0.2.1/x: only HTTPS may be redirected to"
        ],
    );
}

/// Resolves `latest` where the manifest's answer is this one.
async fn resolve_manifest(answer: Answer) -> (Result<(), RegistryError>, Server) {
    let server = Server::start(move |asked| {
        if asked.path.contains("manifests") {
            answer.clone()
        } else {
            Answer::status(404)
        }
    })
    .await;
    let reference: Reference = format!("{}/test/app", server.host).parse().unwrap();
    let registry = client(quick(), Credentials::Anonymous);
    let result = registry.resolve(&reference, &[]).await.map(drop);
    (result, server)
}

fn manifest_answer(bytes: &[u8]) -> Answer {
    Answer::ok(bytes).header("Content-Type", OCI_MANIFEST)
}

#[tokio::test]
async fn manifests_of_any_size_are_not_read() {
    let (result, server) = resolve_manifest(manifest_answer(&vec![b' '; 5 << 20])).await;
    check(
        result,
        &server,
        expect![
            "cannot resolve HOST/test/app:latest: the manifest is over the limit: 5242880, at most 4194304 bytes"
        ],
    );
    let endless = Answer {
        endless: true,
        ..manifest_answer(&vec![b' '; 65_536])
    };
    let (result, _server) = resolve_manifest(endless).await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::OverLimit {
            limit: 4_194_304,
            ..
        }
    ));
}

#[tokio::test]
async fn manifests_that_are_something_else_are_refused() {
    let image = one_layer();
    let (result, server) =
        resolve_manifest(Answer::ok(&image.manifest).header("Content-Type", "text/html")).await;
    check(
        result,
        &server,
        expect![
            "cannot resolve HOST/test/app:latest: HOST answers with content type `text/html`: it is not a manifest's"
        ],
    );

    let other = digest(b"other").to_string();
    let answer = manifest_answer(&image.manifest).header("Docker-Content-Digest", &other);
    let (result, _server) = resolve_manifest(answer).await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::WrongDigest { .. }
    ));

    let text = String::from_utf8(image.manifest.clone()).unwrap();
    let evil = text.replace(digest(&image.layers[0]).as_str(), "sha256:../../x");
    let (result, server) = resolve_manifest(manifest_answer(evil.as_bytes())).await;
    check(
        result,
        &server,
        expect![
            "cannot resolve HOST/test/app:latest: the manifest is malformed: `sha256:../../x` is not a sha256 digest"
        ],
    );
    assert_eq!(server.asked().len(), 1);

    let foreign = text.replace("image.layer.v1.tar", "image.layer.nondistributable.v1.tar");
    let (result, server) = resolve_manifest(manifest_answer(foreign.as_bytes())).await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::ForeignLayer { .. }
    ));
    assert_eq!(server.asked().len(), 1);

    // By digest, the bytes of another manifest.
    let server = Server::start(serving(&image, {
        let image = image.clone();
        move |asked| {
            asked
                .path
                .contains("manifests")
                .then(|| manifest_answer(&image.manifest))
        }
    }))
    .await;
    let cache = Cache::new();
    let registry = client(quick(), Credentials::Anonymous);
    let (result, _) = fetch(&registry, &pinned(&server.host, &digest(b"other")), &cache).await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::WrongDigest { .. }
    ));
    assert!(cache.cache.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_config_that_lies_is_refused() {
    let image = one_layer();
    let config = digest(&image.config).to_string();
    for lie in [
        image.config[1..].to_vec(),
        String::from_utf8(image.config.clone())
            .unwrap()
            .replace("amd64", "arm64")
            .into_bytes(),
    ] {
        let config = config.clone();
        let server = Server::start(serving(&image, move |asked| {
            asked.path.ends_with(&config).then(|| Answer::ok(&lie))
        }))
        .await;
        let cache = Cache::new();
        let registry = client(quick(), Credentials::Anonymous);
        let (result, _) = fetch(&registry, &pinned(&server.host, &image.digest()), &cache).await;
        let problem = result.unwrap_err().problem;
        assert!(matches!(
            problem,
            Problem::WrongDigest { .. } | Problem::WrongSize { .. }
        ));
        assert!(!cache.holds(&image.config));
    }
}

#[tokio::test]
async fn an_index_in_an_index_is_refused_even_in_disguise() {
    let inner = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
    let platform = r#","platform":{"os":"linux","architecture":"amd64"}"#;
    for kind in [OCI_INDEX, OCI_MANIFEST] {
        let entry = descriptor(kind, inner.as_bytes(), platform);
        let outer = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        let inner = inner.clone();
        let server = Server::start(move |asked| {
            let body = if asked.path.ends_with("latest") {
                &outer
            } else {
                &inner
            };
            Answer::ok(body.as_bytes()).header("Content-Type", OCI_INDEX)
        })
        .await;
        let reference: Reference = format!("{}/test/app", server.host).parse().unwrap();
        let registry = client(quick(), Credentials::Anonymous);
        let error = registry.resolve(&reference, &[]).await.unwrap_err();
        assert!(
            matches!(error.problem, Problem::NestedIndex { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn two_fetches_of_one_image_share_the_work() {
    let layers: Vec<_> = (0..6).map(|seed| noise(seed, 200_000)).collect();
    let mut layers_with_a_double = layers.clone();
    layers_with_a_double.push(layers[0].clone());
    let image = Image::new("amd64", &layers_with_a_double);
    let server = Server::start(serving(&image, |_| None)).await;
    let cache = Cache::new();
    let registry = client(quick(), Credentials::Anonymous);
    let pinned = pinned(&server.host, &image.digest());
    let together = (0..4).map(|_| registry.fetch_image(&pinned, &cache.cache, &|_| ()));
    for result in futures_util::future::join_all(together).await {
        assert_eq!(result.unwrap().layers.len(), 7);
    }
    for layer in &layers {
        assert_eq!(server.count(digest(layer).as_str()), 1);
    }
    assert_eq!(server.count("manifests"), 1);
    cache.assert_sound();

    // With everything there, the registry is not needed, and progress says so.
    let asked = server.asked().len();
    let (result, told) = fetch(&registry, &pinned, &cache).await;
    let fetched = result.unwrap();
    assert_eq!(server.asked().len(), asked);
    assert_eq!(told.last().unwrap().done_bytes, 1_200_000);
    assert_eq!(told.last().unwrap().total_bytes, 1_200_000);
    assert_eq!(
        (
            told.last().unwrap().done_layers,
            told.last().unwrap().total_layers
        ),
        (6, 6)
    );
    assert_eq!(fetched.layers[0].path, fetched.layers[6].path);
    assert_eq!(std::fs::read(&fetched.layers[3].path).unwrap(), layers[3]);
    assert_eq!(fetched.config.cmd, ["/bin/true"]);

    // What rotted meanwhile is fetched again: documents by their hash, layers by their size.
    std::fs::write(&fetched.layers[3].path, b"short").unwrap();
    let manifest = cache.cache.lookup(&image.digest()).unwrap().unwrap();
    std::fs::write(manifest.path, b"{}").unwrap();
    let (result, _) = fetch(&registry, &pinned, &cache).await;
    result.unwrap();
    assert_eq!(server.count("manifests"), 2);
    assert_eq!(server.count(digest(&layers[3]).as_str()), 2);
}

#[tokio::test]
async fn a_fetch_that_is_dropped_leaves_nothing_and_the_next_one_works() {
    let image = one_layer();
    let lied = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        let stall_after = Some(1000);
        (is_layer(&lied, asked) && asked.earlier == 0).then(|| Answer {
            stall_after,
            ..Answer::ok(&lied.layers[0])
        })
    }))
    .await;
    let cache = Cache::new();
    let registry = client(Limits::default(), Credentials::Anonymous);
    let pinned = pinned(&server.host, &image.digest());
    let layer = digest(&image.layers[0]);
    {
        let fetching = registry.fetch_image(&pinned, &cache.cache, &|_| ());
        let begun = async {
            while server.count(layer.as_str()) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::pin!(fetching, begun);
        let done = futures_util::future::select(fetching, begun).await;
        assert!(matches!(done, futures_util::future::Either::Right(_)));
    }
    cache.assert_sound();
    assert!(!cache.holds(&image.layers[0]));
    let (result, _) = fetch(&registry, &pinned, &cache).await;
    result.unwrap();
}

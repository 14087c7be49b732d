//! Mirrors: asked first, never trusted, never shown what is not theirs.

use std::collections::BTreeMap;

use oci::Reference;
use registry::{Credentials, FetchProgress, Problem, Registry, RegistryOptions};

use super::requests::user;
use super::{is_layer, one_layer};
use crate::server::{Answer, Server, serving};
use crate::support::{Cache, fetch, pinned, quick};

fn client(registry: &str, mirrors: &[&str], credentials: Credentials) -> Registry {
    let mirrors = mirrors.iter().map(|host| (*host).to_owned()).collect();
    Registry::new(RegistryOptions {
        mirrors: BTreeMap::from([(registry.to_owned(), mirrors)]),
        credentials,
        limits: quick(),
        ..RegistryOptions::default()
    })
    .unwrap()
}

/// Serves the image to those with a login.
async fn guarded() -> Server {
    let image = one_layer();
    Server::start(serving(&image, |asked| match &asked.authorization {
        Some(_) => None,
        None => Some(Answer::status(401).header("WWW-Authenticate", "Basic realm=x")),
    }))
    .await
}

#[tokio::test]
async fn mirrors_serve_digests_and_the_registry_resolves_tags() {
    let image = one_layer();
    let primary = guarded().await;
    let mirror = Server::start(serving(&image, |_| None)).await;
    let registry = client(&primary.host, &[&mirror.host], user(&primary.host));

    let reference: Reference = format!("{}/test/app", primary.host).parse().unwrap();
    let resolved = registry.resolve(&reference, &[]).await.unwrap();
    assert_eq!(resolved.ref_digest, image.digest());
    // The tag, with a second try after the 401; the config came from the mirror.
    assert_eq!(primary.asked().len(), 2);
    assert_eq!(mirror.count("latest"), 0);

    let cache = Cache::new();
    let (result, _) = fetch(&registry, &pinned(&primary.host, &image.digest()), &cache).await;
    result.unwrap();
    assert_eq!(primary.asked().len(), 2, "the mirror has it all");
    let shown = mirror.asked().into_iter().filter_map(|a| a.authorization);
    assert_eq!(shown.count(), 0, "the login is not the mirror's");
}

#[tokio::test]
async fn a_wrong_or_unreachable_mirror_is_passed_over() {
    let image = one_layer();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unreachable = unused.local_addr().unwrap().to_string();
    drop(unused);
    let wrong = image.clone();
    let liar = Server::start(serving(&image, move |asked| {
        is_layer(&wrong, asked).then(|| Answer::ok(&vec![0; 300_000]))
    }))
    .await;
    let behind_a_login = guarded().await;
    let empty = Server::start(|_| Answer::status(404)).await;
    let mirrors = [
        unreachable.as_str(),
        &liar.host,
        &behind_a_login.host,
        &empty.host,
    ];

    let primary = Server::start(serving(&image, |_| None)).await;
    let registry = client(&primary.host, &mirrors, Credentials::Anonymous);
    let cache = Cache::new();
    let (result, reported) =
        fetch(&registry, &pinned(&primary.host, &image.digest()), &cache).await;
    result.unwrap();
    assert!(cache.holds(&image.layers[0]));
    assert_eq!(primary.asked().len(), 1, "only the layer");
    let done = |step: &FetchProgress| step.done_bytes;
    assert_eq!(done(reported.last().unwrap()), 300_000);

    // What nobody has is reported in the registry's words, not in a mirror's.
    let primary = Server::start(|_| Answer::status(404)).await;
    let registry = client(
        &primary.host,
        &[&unreachable, &empty.host],
        Credentials::Anonymous,
    );
    let (result, _) = fetch(&registry, &pinned(&primary.host, &image.digest()), &cache).await;
    assert!(result.is_ok(), "it is in the cache");
    let wanted = pinned(&primary.host, &image.digest());
    let (result, _) = fetch(&registry, &wanted, &Cache::new()).await;
    match result.unwrap_err().problem {
        Problem::NotFound { host, .. } => assert_eq!(host, primary.host),
        problem => panic!("{problem:?}"),
    }
}

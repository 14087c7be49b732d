//! Lies about manifests, indexes and configs.

use expect_test::expect;
use oci::{ImageError, Reference};
use registry::{Credentials, Problem, RegistryError};

use super::{check, one_layer};
use crate::server::{Answer, Server, serving};
use crate::support::{
    Cache, OCI_INDEX, OCI_MANIFEST, client, descriptor, digest, fetch, pinned, quick,
};

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
async fn oversized_manifests_are_refused() {
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
        Problem::Image(ImageError::OverLimit {
            limit: 4_194_304,
            ..
        })
    ));
}

#[tokio::test]
async fn wrong_manifests_are_refused() {
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
        Problem::Image(ImageError::WrongDigest { .. })
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
        Problem::Image(ImageError::ForeignLayer { .. })
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
        Problem::Image(ImageError::WrongDigest { .. })
    ));
    assert!(cache.cache.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_config_with_the_wrong_digest_or_size_is_refused() {
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
            Problem::Image(ImageError::WrongDigest { .. } | ImageError::WrongSize { .. })
        ));
        assert!(!cache.holds(&image.config));
    }
}

#[tokio::test]
async fn a_nested_index_is_refused_also_where_it_is_labelled_as_a_manifest() {
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
            matches!(
                error.problem,
                Problem::Image(ImageError::NestedIndex { .. })
            ),
            "{error:?}"
        );
    }
}

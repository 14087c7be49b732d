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
        resolve_manifest(Answer::ok(b"<html>log in</html>").header("Content-Type", "text/html"))
            .await;
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

    let encrypted = text.replace("layer.v1.tar", "layer.v1.tar+encrypted");
    assert_ne!(encrypted, text);
    let (result, server) = resolve_manifest(manifest_answer(encrypted.as_bytes())).await;
    assert!(matches!(
        result.unwrap_err().problem,
        Problem::Image(ImageError::UnknownLayer { .. })
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

/// An index for each platform in an outer one, as crane and some CI systems push it; also where it is labelled as a
/// manifest.
#[tokio::test]
async fn case_an_index_within_an_index_is_resolved() {
    let image = one_layer();
    let platform = r#","platform":{"os":"linux","architecture":"amd64"}"#;
    for kind in [OCI_INDEX, OCI_MANIFEST] {
        let entry = descriptor(OCI_MANIFEST, &image.manifest, platform);
        let inner =
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entry}]}}"#);
        let entry = descriptor(kind, inner.as_bytes(), platform);
        let outer = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        let by_digest = digest(inner.as_bytes()).to_string();
        let server = Server::start(serving(&image, move |asked| {
            let index = if asked.path.ends_with("latest") {
                &outer
            } else if asked.path.ends_with(&by_digest) {
                &inner
            } else {
                return None;
            };
            Some(Answer::ok(index.as_bytes()).header("Content-Type", OCI_INDEX))
        }))
        .await;
        let reference: Reference = format!("{}/test/app", server.host).parse().unwrap();
        let registry = client(quick(), Credentials::Anonymous);
        let resolved = registry.resolve(&reference, &[]).await.unwrap();
        assert_eq!(resolved.by_arch["amd64"], image.digest(), "{kind}");
    }
}

/// S3, nginx and other static files as a registry.
#[tokio::test]
async fn case_a_manifest_is_taken_whatever_its_general_content_type() {
    let image = one_layer();
    for kind in [
        "application/json",
        "text/plain",
        "application/octet-stream",
        "",
    ] {
        let manifest = image.manifest.clone();
        let server = Server::start(serving(&image, move |asked| {
            let answer = Answer::ok(&manifest);
            asked.path.contains("/manifests/").then(|| match kind {
                "" => answer,
                kind => answer.header("Content-Type", kind),
            })
        }))
        .await;
        let registry = client(quick(), Credentials::Anonymous);
        let reference: Reference = format!("{}/test/app", server.host).parse().unwrap();
        let resolved = registry.resolve(&reference, &[]).await.unwrap();
        let pinned = pinned(&server.host, &resolved.by_arch["amd64"]);
        let (result, _) = fetch(&registry, &pinned, &Cache::new()).await;
        result.unwrap();
    }
}

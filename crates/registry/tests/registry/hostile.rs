//! A registry that serves wrong bytes, stalls or loops: a typed error each, within bounds, and a sound cache.

mod blobs;
mod documents;
mod mirrors;
mod requests;

use expect_test::Expect;
use registry::{Credentials, RegistryError};

use crate::server::{Answer, Asked, Server, serving};
use crate::support::{Cache, Image, chain, client, digest, fetch, noise, pinned, quick};

pub(crate) fn one_layer() -> Image {
    Image::new("amd64", &[noise(1, 300_000)])
}

pub(crate) fn is_layer(image: &Image, asked: &Asked) -> bool {
    asked.path.ends_with(digest(&image.layers[0]).as_str())
}

/// Serves the image with this answer for its layer, and fetches it into a cache of its own.
pub(crate) async fn fetch_with(
    answer: impl Fn(&Asked, &[u8]) -> Option<Answer> + Send + Sync + 'static,
) -> (Result<(), RegistryError>, Server, Cache) {
    let image = one_layer();
    let wrong = image.clone();
    let script = serving(&image, move |asked| {
        if !is_layer(&wrong, asked) {
            return None;
        }
        answer(asked, &wrong.layers[0])
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
pub(crate) fn check(result: Result<(), RegistryError>, server: &Server, expected: Expect) {
    let text = chain(&result.unwrap_err(), &server.host);
    let mut shown = text;
    for (name, bytes) in [
        ("LAYER", &one_layer().layers[0]),
        ("IMAGE", &one_layer().manifest),
    ] {
        let digest = digest(bytes);
        shown = shown.replace(digest.as_str(), name);
        shown = shown.replace(&format!("sha256:{}…", digest.short()), name);
    }
    expected.assert_eq(&shown);
}

//! Lies about layers.

use std::time::{Duration, Instant};

use expect_test::expect;
use oci::ImageError;
use registry::{Credentials, Limits, Problem};

use super::{check, fetch_with, is_layer, one_layer};
use crate::server::{Answer, Asked, Server, serving};
use crate::support::{Cache, Image, client, digest, fetch, noise, pinned, quick};

#[tokio::test]
async fn a_blob_that_is_cut_off_is_resumed_by_range() {
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
async fn a_server_that_ignores_the_range_is_accepted() {
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
async fn an_answer_with_another_range_is_retried() {
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
            "cannot fetch HOST/test/app@IMAGE: HOST does not answer (3 attempts): it answers with another range than the requested one"
        ],
    );
}

#[tokio::test]
async fn a_resumed_blob_with_the_wrong_digest_is_downloaded_again() {
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
async fn a_blob_with_the_wrong_digest_is_refused_at_once() {
    let (result, server, _cache) = fetch_with(|_, layer| {
        let mut answer = Answer::ok(layer);
        answer.body[299_999] ^= 0x80;
        Some(answer)
    })
    .await;
    let error = result.unwrap_err();
    assert!(
        matches!(
            error.problem,
            Problem::Image(ImageError::WrongDigest { .. })
        ),
        "{error:?}"
    );
    assert!(!error.problem.is_transient());
    assert_eq!(server.count("blobs"), 2);
}

#[tokio::test]
async fn a_blob_of_the_wrong_size_is_refused() {
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
            "cannot fetch HOST/test/app@IMAGE: HOST served 300004 bytes as LAYER, which has 300000 bytes"
        ],
    );
    let (result, server, _cache) = fetch_with(longer(true)).await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST served 300004 bytes as LAYER, which has 300000 bytes"
        ],
    );
    let (result, server, _cache) = fetch_with(|_, layer| Some(Answer::ok(&layer[1..]))).await;
    check(
        result,
        &server,
        expect![
            "cannot fetch HOST/test/app@IMAGE: HOST served 299999 bytes as LAYER, which has 300000 bytes"
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
        Problem::Image(ImageError::WrongSize { .. })
    ));
    assert_eq!(server.count("blobs"), 2);
}

#[tokio::test]
async fn a_blob_that_is_always_cut_off_is_retried_until_the_attempts_are_used_up() {
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
async fn stalled_and_slow_downloads_end_in_bounded_time() {
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
            "cannot fetch HOST/test/app@IMAGE: HOST does not answer (3 attempts): no data arrived for 0.4 s"
        ],
    );
    assert!(begun.elapsed() < Duration::from_secs(3));

    // It never stalls, but would take hours.
    let image = one_layer();
    let wrong = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        let drip = true;
        is_layer(&wrong, asked).then(|| Answer {
            drip,
            ..Answer::ok(&wrong.layers[0])
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
async fn concurrent_fetches_of_one_image_share_the_downloads() {
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
    let (result, reported) = fetch(&registry, &pinned, &cache).await;
    let fetched = result.unwrap();
    assert_eq!(server.asked().len(), asked);
    assert_eq!(reported.last().unwrap().done_bytes, 1_200_000);
    assert_eq!(reported.last().unwrap().total_bytes, 1_200_000);
    assert_eq!(
        (
            reported.last().unwrap().done_layers,
            reported.last().unwrap().total_layers
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

/// A release that failed at its deadline, an agent that was restarted: the next fetch does not begin at byte 0.
#[tokio::test]
async fn case_a_fetch_that_was_given_up_goes_on_where_it_ended() {
    let image = one_layer();
    let wrong = image.clone();
    let server = Server::start(serving(&image, move |asked| {
        let stall_after = Some(123_456);
        (is_layer(&wrong, asked) && asked.earlier == 0).then(|| Answer {
            stall_after,
            ..Answer::ok(&wrong.layers[0])
        })
    }))
    .await;
    let cache = Cache::new();
    let registry = client(Limits::default(), Credentials::Anonymous);
    let pinned = pinned(&server.host, &image.digest());
    let partial = || cache.cache.partials().unwrap();
    give_up_after(&registry, &pinned, &cache, 123_456).await;
    cache.assert_sound();
    assert!(!cache.holds(&image.layers[0]));
    // A thread that was given up lets go of its file when it gets to it.
    while partial().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(partial()[0].size, 123_456);

    // Also by a process that opens the cache later.
    let cache = Cache {
        cache: registry::BlobCache::open(cache.dir.path()).unwrap(),
        dir: cache.dir,
    };
    let (result, reported) = fetch(&registry, &pinned, &cache).await;
    result.unwrap();
    assert_eq!(server.asked().last().unwrap().from, 123_456);
    assert_eq!(reported.last().unwrap().done_bytes, 300_000);
    assert!(cache.cache.partials().unwrap().is_empty());
}

/// Fetches until so many bytes of the layer are in its unfinished file, and drops the fetch.
async fn give_up_after(
    registry: &registry::Registry,
    pinned: &model::instance::PinnedImage,
    cache: &Cache,
    bytes: u64,
) {
    let fetching = registry.fetch_image(pinned, &cache.cache, &|_| ());
    let tmp = cache.dir.path().join("tmp");
    let there = async {
        let size = || {
            let entries = std::fs::read_dir(&tmp).unwrap();
            entries
                .filter_map(|entry| entry.ok()?.metadata().ok())
                .map(|metadata| metadata.len())
                .max()
        };
        while size() != Some(bytes) {
            tokio::task::yield_now().await;
        }
    };
    tokio::pin!(fetching, there);
    let done = futures_util::future::select(fetching, there).await;
    assert!(matches!(done, futures_util::future::Either::Right(_)));
}

#[tokio::test]
async fn an_unfinished_file_that_rotted_or_is_of_another_blob_is_downloaded_again() {
    let image = one_layer();
    let layer = digest(&image.layers[0]);
    for (found, from) in [
        (vec![7; 1000], vec![1000, 0]),
        // As long as the blob: it needs no request, and is wrong.
        (vec![7; 300_000], vec![0]),
        (vec![7; 300_001], vec![0]),
    ] {
        let server = Server::start(serving(&image, |_| None)).await;
        let cache = Cache::new();
        let path = cache
            .dir
            .path()
            .join(format!("tmp/partial-{}", layer.hex()));
        std::fs::write(&path, found).unwrap();
        let registry = client(quick(), Credentials::Anonymous);
        let (result, _) = fetch(&registry, &pinned(&server.host, &image.digest()), &cache).await;
        result.unwrap();
        let asked = server.asked();
        let asked: Vec<_> = asked
            .iter()
            .filter(|a| a.path.ends_with(layer.as_str()))
            .map(|a| a.from)
            .collect();
        assert_eq!(asked, from);
    }
}

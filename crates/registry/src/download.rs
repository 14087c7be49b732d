//! One blob from a registry into the cache: streamed, hashed on the way, resumed where it was cut off, also by a download
//! before this one.
//!
//! The network side runs here; hashing and writing run in a blocking thread behind a short queue, so that both
//! overlap. A blob enters the cache only when its digest and size are right.

use std::sync::Arc;
use std::time::Duration;

use blocking_work::blocking;
use bytes::Bytes;
use model::Digest;
use oci::{Descriptor, ImageError};
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cache::{BlobCache, CachedBlob};
use crate::error::Problem;
use crate::http::{Failure, Repository};
use crate::limits::PIECES_IN_FLIGHT;
use crate::progress::OnEvent;
use crate::transport::{Endpoint, Transport, asks_on};

/// Who is told how a download goes.
pub(crate) struct Observer<'a> {
    /// Called with the number of bytes of the blob that are there.
    pub(crate) on_bytes: &'a (dyn Fn(u64) + Send + Sync),
    pub(crate) on_event: &'a OnEvent<'a>,
}

/// The blob, from the cache or else from the registry. Concurrent callers share one download.
pub(crate) async fn blob(
    transport: &Arc<Transport>,
    repository: &Repository,
    wanted: &Descriptor,
    cache: &BlobCache,
    observer: &Observer<'_>,
) -> Result<CachedBlob, Problem> {
    let _claim = cache.claim(&wanted.digest).await;
    let (blobs, digest, size) = (cache.clone(), wanted.digest.clone(), wanted.size);
    if let Some(found) = blocking(move || blobs.lookup_of_size(&digest, size)).await? {
        (observer.on_bytes)(wanted.size);
        return Ok(found);
    }
    for mirror in transport.mirrors(repository) {
        match from_endpoint(transport, &mirror, wanted, cache, observer).await {
            Err(problem) if asks_on(&mirror, &problem) => {}
            result => return result,
        }
    }
    let registry = transport.registry(repository);
    from_endpoint(transport, &registry, wanted, cache, observer).await
}

/// Downloads from one endpoint, and once more where the resumed pieces of the first download do not fit.
async fn from_endpoint(
    transport: &Arc<Transport>,
    Endpoint {
        repository,
        attempts,
    }: &Endpoint,
    wanted: &Descriptor,
    cache: &BlobCache,
    observer: &Observer<'_>,
) -> Result<CachedBlob, Problem> {
    let (result, resumed) =
        download(transport, repository, wanted, cache, observer, *attempts).await;
    match result {
        // The pieces may not belong together: the second half came from another server, or the first one rotted.
        Err(
            Problem::Image(ImageError::WrongDigest { .. })
            | Problem::Refused {
                status: RANGE_NOT_SATISFIABLE,
                ..
            },
        ) if resumed => {
            let (cache_of_it, digest) = (cache.clone(), wanted.digest.clone());
            blocking(move || cache_of_it.remove_partial(&digest)).await;
            let again = download(transport, repository, wanted, cache, observer, 1);
            again.await.0
        }
        other => other,
    }
}

/// HTTP's status for a range that the server does not have.
const RANGE_NOT_SATISFIABLE: u16 = 416;

/// Downloads a blob from the first byte on that is missing, in attempts that each resume where the last one ended. The
/// result also says whether its bytes came in more than one piece.
async fn download(
    transport: &Arc<Transport>,
    repository: &Repository,
    wanted: &Descriptor,
    cache: &BlobCache,
    observer: &Observer<'_>,
    attempts: u32,
) -> (Result<CachedBlob, Problem>, bool) {
    let mut made = 0;
    let mut found = 0;
    let limits = transport.limits();
    let longest = limits.blob_grace
        + Duration::from_secs(wanted.size / limits.slowest_bytes_per_second.max(1));
    let work = async {
        let mut sink = Sink::start(cache, wanted.clone(), repository.registry.clone()).await?;
        found = sink.received;
        if found > 0 {
            let digest = &wanted.digest;
            tracing::info!(%digest, found, size = wanted.size, "a download goes on where it ended");
            (observer.on_bytes)(found);
        }
        loop {
            let attempt = attempt(transport, repository, wanted, &mut sink, observer).await;
            let Err(failure) = attempt else { break };
            made += 1;
            transport
                .http
                .pause(
                    &repository.registry,
                    made,
                    attempts,
                    failure,
                    observer.on_event,
                )
                .await?;
        }
        sink.finish().await
    };
    let result = match tokio::time::timeout(longest, work).await {
        Ok(result) => result,
        Err(_) => Err(Problem::Unreachable {
            host: repository.registry.clone(),
            redirected_by: None,
            attempts: made + 1,
            source: format!(
                "{} of {} bytes took longer than {} s",
                wanted.digest,
                wanted.size,
                longest.as_secs_f32()
            )
            .into(),
        }),
    };
    (result, made > 0 || found > 0)
}

/// One request, from the first byte that is missing to the end of the blob.
async fn attempt(
    transport: &Transport,
    repository: &Repository,
    wanted: &Descriptor,
    sink: &mut Sink,
    observer: &Observer<'_>,
) -> Result<(), Failure> {
    let origin = &repository.registry;
    let offset = sink.received;
    if offset == wanted.size {
        return Ok(());
    }
    let path = format!("blobs/{}", wanted.digest);
    let mut response = transport.get(repository, &path, "*/*", offset).await?;
    let registry = transport.http.url(origin, "")?;
    let served_by = response.url().clone();
    let failed = |failure: Failure| failure.at(&served_by, &registry);
    let starts_at = if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = response.headers().get(CONTENT_RANGE);
        let start = range.and_then(|value| range_start(value.to_str().ok()?));
        if start != Some(offset) {
            return Err(failed(Failure::transient(
                "it answers with another range than the requested one",
            )));
        }
        offset
    } else {
        // A server may ignore the range: the bytes that arrived already are skipped.
        0
    };
    let wrong_size = |actual: u64| {
        Failure::Permanent(Problem::Image(ImageError::WrongSize {
            origin: origin.clone(),
            digest: wanted.digest.clone(),
            expected: wanted.size,
            actual,
        }))
    };
    if let Some(length) = response.content_length() {
        let end = starts_at.saturating_add(length);
        if end != wanted.size {
            return Err(wrong_size(end));
        }
    }
    let mut position = starts_at;
    while let Some(piece) = transport.http.piece(&mut response).await.map_err(failed)? {
        let skip = usize::try_from(sink.received - position).unwrap_or(usize::MAX);
        position += piece.len() as u64;
        if position > wanted.size {
            return Err(wrong_size(position));
        }
        if skip < piece.len() {
            sink.write(piece.slice(skip..)).await?;
            (observer.on_bytes)(sink.received);
        }
    }
    if sink.received < wanted.size {
        return Err(failed(Failure::transient(format!(
            "cut off after {} of {} bytes",
            sink.received, wanted.size
        ))));
    }
    Ok(())
}

/// `bytes 5-9/10` -> 5.
fn range_start(value: &str) -> Option<u64> {
    value
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .trim()
        .parse()
        .ok()
}

enum Piece {
    Data(Bytes),
    /// The blob is complete. A queue that ends without this message was abandoned.
    End,
}

/// The thread that hashes and writes a blob.
struct Sink {
    queue: mpsc::Sender<Piece>,
    thread: JoinHandle<Result<Option<CachedBlob>, Problem>>,
    received: u64,
}

impl Sink {
    async fn start(cache: &BlobCache, wanted: Descriptor, origin: String) -> Result<Self, Problem> {
        let (cache, digest, size) = (cache.clone(), wanted.digest.clone(), wanted.size);
        let mut writer = blocking(move || cache.resume(&digest, size)).await?;
        let received = writer.size();
        let (queue, mut pieces) = mpsc::channel(PIECES_IN_FLIGHT);
        let thread = tokio::task::spawn_blocking(move || {
            writer.hash_existing()?;
            loop {
                match pieces.blocking_recv() {
                    Some(Piece::Data(bytes)) => writer.write(&bytes)?,
                    Some(Piece::End) => break,
                    None => return Ok(None),
                }
            }
            let actual: Digest = writer.digest();
            if actual != wanted.digest {
                writer.discard();
                return Err(ImageError::WrongDigest {
                    origin,
                    digest: wanted.digest,
                    actual,
                }
                .into());
            }
            Ok(Some(writer.commit(&wanted.digest)?))
        });
        Ok(Self {
            queue,
            thread,
            received,
        })
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let length = bytes.len() as u64;
        if self.queue.send(Piece::Data(bytes)).await.is_err() {
            // The thread ended early, for example because the disk is full.
            return Err(Failure::Permanent(self.problem().await));
        }
        self.received += length;
        Ok(())
    }

    async fn finish(mut self) -> Result<CachedBlob, Problem> {
        let sent = self.queue.send(Piece::End).await;
        match (&mut self.thread).await {
            Ok(Ok(Some(blob))) if sent.is_ok() => Ok(blob),
            Ok(Err(problem)) => Err(problem),
            // The runtime shuts down and no longer runs blocking threads.
            _ => Err(Problem::ShuttingDown),
        }
    }

    async fn problem(&mut self) -> Problem {
        match (&mut self.thread).await {
            Ok(Err(problem)) => problem,
            _ => Problem::ShuttingDown,
        }
    }
}

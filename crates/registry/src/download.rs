//! One blob from a registry into the cache: streamed, hashed on its way, resumed where it was cut off.
//!
//! The network side runs here; hashing and writing run in a blocking thread of their own behind a
//! short queue, so both overlap. Nothing is in the cache before the digest and the size matched.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::Digest;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cache::{BlobCache, CachedBlob};
use crate::document::Descriptor;
use crate::error::Problem;
use crate::limits::PIECES_IN_FLIGHT;
use crate::transport::{Asked, Failure, Place, Transport, asks_on};

/// Told how many bytes of the blob are there.
pub(crate) type OnBytes<'a> = dyn Fn(u64) + Send + Sync + 'a;

/// The blob, from the cache or else from the registry. Two callers that want the same one share the work.
pub(crate) async fn blob(
    transport: &Arc<Transport>,
    place: &Place,
    wanted: &Descriptor,
    cache: &BlobCache,
    on_bytes: &OnBytes<'_>,
) -> Result<CachedBlob, Problem> {
    let _claim = cache.claim(&wanted.digest).await;
    if let Some(found) = cache.lookup(&wanted.digest)? {
        if found.size == wanted.size {
            on_bytes(wanted.size);
            return Ok(found);
        }
        tracing::warn!(digest = %wanted.digest, "a cached blob has the wrong size; it is dropped");
        cache.remove(&wanted.digest)?;
    }
    for mirror in transport.mirrors(place) {
        match passes(transport, &mirror, wanted, cache, on_bytes).await {
            Err(problem) if asks_on(&mirror, &problem) => {}
            result => return result,
        }
    }
    passes(transport, &transport.itself(place), wanted, cache, on_bytes).await
}

/// From one place: in one try, or two where the pieces of the first do not fit.
async fn passes(
    transport: &Arc<Transport>,
    Asked { place, attempts }: &Asked,
    wanted: &Descriptor,
    cache: &BlobCache,
    on_bytes: &OnBytes<'_>,
) -> Result<CachedBlob, Problem> {
    let (result, resumed) = pass(transport, place, wanted, cache, on_bytes, *attempts).await;
    match result {
        // Perhaps the pieces do not belong together: the second half came from another server.
        Err(Problem::WrongDigest { .. }) if resumed => {
            pass(transport, place, wanted, cache, on_bytes, 1).await.0
        }
        other => other,
    }
}

/// One try from the first byte, in several attempts that each go on where the last one ended.
/// Says also whether there was more than one.
async fn pass(
    transport: &Arc<Transport>,
    place: &Place,
    wanted: &Descriptor,
    cache: &BlobCache,
    on_bytes: &OnBytes<'_>,
    attempts: u32,
) -> (Result<CachedBlob, Problem>, bool) {
    let mut made = 0;
    let limits = &transport.limits;
    let longest = limits.blob_grace
        + Duration::from_secs(wanted.size / limits.slowest_bytes_per_second.max(1));
    let work = async {
        let mut sink = Sink::start(cache, wanted.clone(), place.registry.clone())?;
        loop {
            let attempt = attempt(transport, place, wanted, &mut sink, on_bytes).await;
            let Err(failure) = attempt else { break };
            made += 1;
            transport
                .pause(&place.registry, made, attempts, failure)
                .await?;
        }
        sink.finish().await
    };
    let result = match tokio::time::timeout(longest, work).await {
        Ok(result) => result,
        Err(_) => Err(Problem::Unreachable {
            host: place.registry.clone(),
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
    (result, made > 0)
}

/// One request: from what is there already to the end of the blob.
async fn attempt(
    transport: &Transport,
    place: &Place,
    wanted: &Descriptor,
    sink: &mut Sink,
    on_bytes: &OnBytes<'_>,
) -> Result<(), Failure> {
    let host = &place.registry;
    let offset = sink.received;
    if offset == wanted.size {
        return Ok(());
    }
    let path = format!("blobs/{}", wanted.digest);
    let mut response = transport.get(place, &path, "*/*", offset).await?;
    let starts_at = if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = response.headers().get(CONTENT_RANGE);
        let start = range.and_then(|value| range_start(value.to_str().ok()?));
        if start != Some(offset) {
            return Err(Failure::passing(
                "it answers with another range than was asked for",
            ));
        }
        offset
    } else {
        // The range was ignored, which a server may do: what we have is skipped.
        0
    };
    let wrong_size = |actual: u64| {
        Failure::Final(Problem::WrongSize {
            host: host.clone(),
            digest: wanted.digest.clone(),
            expected: wanted.size,
            actual,
        })
    };
    if let Some(length) = response.content_length() {
        let end = starts_at.saturating_add(length);
        if end != wanted.size {
            return Err(wrong_size(end));
        }
    }
    let mut position = starts_at;
    while let Some(piece) = transport.piece(&mut response).await? {
        let skip = usize::try_from(sink.received - position).unwrap_or(usize::MAX);
        position += piece.len() as u64;
        if position > wanted.size {
            return Err(wrong_size(position));
        }
        if skip < piece.len() {
            sink.write(piece.slice(skip..)).await?;
            on_bytes(sink.received);
        }
    }
    if sink.received < wanted.size {
        return Err(Failure::passing(format!(
            "cut off after {} of {} bytes",
            sink.received, wanted.size
        )));
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
    /// Everything was sent. A queue that ends without it was given up.
    End,
}

/// The thread that hashes and writes.
struct Sink {
    queue: mpsc::Sender<Piece>,
    thread: JoinHandle<Result<Option<CachedBlob>, Problem>>,
    received: u64,
}

impl Sink {
    fn start(cache: &BlobCache, wanted: Descriptor, host: String) -> Result<Self, Problem> {
        let mut writer = cache.begin()?;
        let (queue, mut pieces) = mpsc::channel(PIECES_IN_FLIGHT);
        let thread = tokio::task::spawn_blocking(move || {
            loop {
                match pieces.blocking_recv() {
                    Some(Piece::Data(bytes)) => writer.write(&bytes)?,
                    Some(Piece::End) => break,
                    None => return Ok(None),
                }
            }
            let actual: Digest = writer.digest();
            if actual != wanted.digest {
                return Err(Problem::WrongDigest {
                    host,
                    digest: wanted.digest,
                    actual,
                });
            }
            Ok(Some(writer.commit(&wanted.digest)?))
        });
        Ok(Self {
            queue,
            thread,
            received: 0,
        })
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let length = bytes.len() as u64;
        if self.queue.send(Piece::Data(bytes)).await.is_err() {
            // The thread ended by itself: the disk is full, say. It knows why.
            return Err(Failure::Final(self.reason().await));
        }
        self.received += length;
        Ok(())
    }

    async fn finish(mut self) -> Result<CachedBlob, Problem> {
        let sent = self.queue.send(Piece::End).await;
        match (&mut self.thread).await {
            Ok(Ok(Some(blob))) if sent.is_ok() => Ok(blob),
            Ok(Err(problem)) => Err(problem),
            _ => Err(given_up()),
        }
    }

    async fn reason(&mut self) -> Problem {
        match (&mut self.thread).await {
            Ok(Err(problem)) => problem,
            _ => given_up(),
        }
    }
}

/// The runtime shuts down; blocking threads are no longer served.
fn given_up() -> Problem {
    Problem::Malformed {
        document: "download",
        reason: "it was given up because the program ends".to_owned(),
    }
}

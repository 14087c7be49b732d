//! The layers as streams: one thread reads, checks the digest and decompresses; one hashes the decompressed
//! bytes; the caller's reads the archive. Chunks are reused, so memory is constant.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::Scope;

use model::Digest;
use oci::{Compression, LayerFile};
use sha2::{Digest as _, Sha256};

use crate::error::{LayerError, OverLimit};
use crate::limits::{Limits, XZ_MEMORY_KIB, ZSTD_WINDOW_LOG, within};
use crate::tar::{Chunk, Chunks};

/// Bytes of a chunk.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks that may wait for the archive's reader, and for the hasher.
const WAITING_CHUNKS: usize = 16;
/// Bytes that are read from a layer's file at once.
const READ_BYTES: usize = 256 * 1024;

/// From the thread that decompresses.
enum Message {
    Chunk(Chunk),
    /// The layer ended, and its digest is right.
    End,
    Failed(LayerError),
}

/// To the thread that hashes.
enum ToHash {
    Chunk(Chunk),
    End,
}

/// The layers, one after the other.
pub(crate) struct Layers {
    messages: Receiver<Message>,
    hashes: Receiver<[u8; 32]>,
    spare: Sender<Vec<u8>>,
    /// Decompressed bytes, of all layers.
    expanded: u64,
    allowed: u64,
    /// The current layer ended or failed.
    ended: bool,
}

impl Layers {
    /// Starts the threads. They end when this is dropped.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        layers: &'scope [LayerFile],
        limits: &Limits,
    ) -> Self {
        let (to_reader, messages) = sync_channel(WAITING_CHUNKS);
        let (to_hasher, to_hash) = sync_channel(WAITING_CHUNKS);
        let (spare, spares) = channel();
        let (hashed, hashes) = channel();
        let spare_of_hasher = spare.clone();
        scope.spawn(move || hash(&to_hash, &hashed, &spare_of_hasher));
        scope.spawn(move || {
            let producer = Producer {
                to_reader,
                to_hasher,
                spares,
            };
            for layer in layers {
                let message = match producer.layer(layer) {
                    Ok(()) => Message::End,
                    Err(Stop::Failed(error)) => Message::Failed(error),
                    Err(Stop::Unwanted) => return,
                };
                let failed = matches!(message, Message::Failed(_));
                if producer.to_reader.send(message).is_err() || failed {
                    return;
                }
            }
        });
        Self {
            messages,
            hashes,
            spare,
            expanded: 0,
            allowed: limits.expanded_bytes,
            ended: false,
        }
    }

    /// Checks the diff_id of the current layer, which was read to its end.
    pub(crate) fn finish_layer(&mut self, layer: &LayerFile) -> Result<(), LayerError> {
        self.ended = false;
        let sum = self.hashes.recv().map_err(|_| vanished(layer))?;
        let actual = Digest::from_sha256(&sum);
        if actual == layer.diff_id {
            return Ok(());
        }
        Err(LayerError::DiffId {
            expected: layer.diff_id.clone(),
            actual,
        })
    }

    /// The error to report for a layer: a wrong digest or diff_id explains a broken archive. Reads the layer to its
    /// end, within the limits.
    pub(crate) fn blame(&mut self, layer: &LayerFile, error: LayerError) -> LayerError {
        if !matches!(error, LayerError::Archive { .. } | LayerError::Entry { .. }) {
            return error;
        }
        loop {
            match self.next() {
                Ok(Some(chunk)) => self.done(chunk),
                Ok(None) => return self.finish_layer(layer).err().unwrap_or(error),
                Err(LayerError::OverLimit(_)) => return error,
                Err(other) => return other,
            }
        }
    }
}

fn vanished(layer: &LayerFile) -> LayerError {
    LayerError::Read {
        path: layer.path.clone(),
        source: io::Error::other("a thread of the reader ended early"),
    }
}

impl Chunks for &mut Layers {
    fn next(&mut self) -> Result<Option<Chunk>, LayerError> {
        (**self).next()
    }

    fn done(&mut self, chunk: Chunk) {
        (**self).done(chunk);
    }
}

impl Layers {
    fn next(&mut self) -> Result<Option<Chunk>, LayerError> {
        if self.ended {
            return Ok(None);
        }
        match self.messages.recv() {
            Ok(Message::Chunk(chunk)) => {
                self.expanded += chunk.len() as u64;
                within(self.expanded, self.allowed, "expanded_bytes", "bytes")
                    .map(|()| Some(chunk))
                    .map_err(|error: OverLimit| {
                        self.ended = true;
                        error.into()
                    })
            }
            Ok(Message::Failed(error)) => {
                self.ended = true;
                Err(error)
            }
            Ok(Message::End) | Err(_) => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    fn done(&mut self, chunk: Chunk) {
        recycle(&self.spare, chunk);
    }
}

/// Reuses the memory of a chunk, if this is its last use.
fn recycle(spare: &Sender<Vec<u8>>, chunk: Chunk) {
    if let Some(buffer) = Arc::into_inner(chunk) {
        // Dropped if the reader has ended.
        let _ = spare.send(buffer);
    }
}

fn hash(chunks: &Receiver<ToHash>, sums: &Sender<[u8; 32]>, spare: &Sender<Vec<u8>>) {
    let mut hasher = Sha256::new();
    for message in chunks {
        match message {
            ToHash::Chunk(chunk) => {
                hasher.update(chunk.as_slice());
                recycle(spare, chunk);
            }
            ToHash::End => {
                if sums.send(hasher.finalize_reset().into()).is_err() {
                    return;
                }
            }
        }
    }
}

/// Why the reading thread stops.
enum Stop {
    Failed(LayerError),
    /// The receiver is gone.
    Unwanted,
}

struct Producer {
    to_reader: SyncSender<Message>,
    to_hasher: SyncSender<ToHash>,
    spares: Receiver<Vec<u8>>,
}

impl Producer {
    fn layer(&self, layer: &LayerFile) -> Result<(), Stop> {
        let unreadable = |source| {
            Stop::Failed(LayerError::Read {
                path: layer.path.clone(),
                source,
            })
        };
        let mut file = File::open(&layer.path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(layer.offset))
            .map_err(unreadable)?;
        let mut input = HashingFile {
            file: BufReader::with_capacity(READ_BYTES, file.take(layer.size)),
            hasher: Sha256::new(),
        };
        let beginning = input.fill_buf().map_err(unreadable)?;
        let compression = Compression::of_bytes(beginning);
        let produced = match compression {
            Compression::None => self.produce(&mut input),
            Compression::Gzip => {
                self.produce(&mut flate2::bufread::MultiGzDecoder::new(&mut input))
            }
            Compression::Zstd => zstd::stream::read::Decoder::with_buffer(&mut input)
                .map_err(Failure::Read)
                .and_then(|mut decoder| {
                    decoder
                        .window_log_max(ZSTD_WINDOW_LOG)
                        .map_err(Failure::Read)?;
                    self.produce(&mut decoder)
                }),
            Compression::Bzip2 => {
                self.produce(&mut bzip2::bufread::MultiBzDecoder::new(&mut input))
            }
            Compression::Xz => self.produce(&mut lzma_rust2::XzReader::new_mem_limit(
                &mut input,
                true,
                XZ_MEMORY_KIB,
            )),
        };
        if let Err(Failure::Unwanted) = produced {
            return Err(Stop::Unwanted);
        }
        // The digest covers also the bytes that the decompressor left or failed before.
        input.drain().map_err(unreadable)?;
        let actual = Digest::from_sha256(&input.hasher.finalize().into());
        if actual != layer.digest {
            return Err(Stop::Failed(LayerError::Digest {
                expected: layer.digest.clone(),
                actual,
            }));
        }
        if let Err(Failure::Read(source)) = produced {
            return Err(Stop::Failed(match compression {
                Compression::None => LayerError::Read {
                    path: layer.path.clone(),
                    source,
                },
                compression => LayerError::Decompress {
                    compression,
                    source,
                },
            }));
        }
        self.to_hasher.send(ToHash::End).map_err(|_| Stop::Unwanted)
    }

    /// Sends all bytes of a reader.
    fn produce(&self, reader: &mut impl Read) -> Result<(), Failure> {
        loop {
            let mut buffer = self.spares.try_recv().unwrap_or_default();
            buffer.resize(CHUNK_BYTES, 0);
            let mut filled = 0;
            let mut result = Ok(());
            while filled < buffer.len() {
                match reader.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(length) => filled += length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        result = Err(Failure::Read(error));
                        break;
                    }
                }
            }
            let last = filled < buffer.len();
            if filled > 0 {
                buffer.truncate(filled);
                let chunk = Arc::new(buffer);
                self.to_hasher
                    .send(ToHash::Chunk(chunk.clone()))
                    .map_err(|_| Failure::Unwanted)?;
                self.to_reader
                    .send(Message::Chunk(chunk))
                    .map_err(|_| Failure::Unwanted)?;
            }
            if last {
                return result;
            }
        }
    }
}

enum Failure {
    Read(io::Error),
    Unwanted,
}

/// A byte range of a file, hashed as far as it has been read.
struct HashingFile {
    file: BufReader<io::Take<File>>,
    hasher: Sha256,
}

impl HashingFile {
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }
}

impl Read for HashingFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for HashingFile {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.file.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        self.hasher.update(&self.file.buffer()[..length]);
        self.file.consume(length);
    }
}

//! Merges layers into a disk.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use model::Digest;
use oci::LayerFile;
use sha2::{Digest as _, Sha256};

use crate::error::DiskError;
use crate::ext4::{self, BLOCK, BlockWriter, DATA_START, Identity, MAX_DISK_BLOCKS};
use crate::limits::{Limits, within};
use crate::merge::{MergeError, Merger};
use crate::stream::Layers;
use crate::tar::{Archive, Input};

/// A finished disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltDisk {
    /// Digest of the whole file.
    pub sha256: Digest,
    /// Size of the whole file with its holes, in bytes.
    pub size_bytes: u64,
}

/// Prefix of the names of unfinished files, which may be removed when no process writes them.
pub(crate) const UNFINISHED_PREFIX: &str = ".unfinished-";

/// Merges the layers, the base first, into a read-only ext4 disk at `output`. The file is created or
/// replaced when the disk is whole and on stable storage; until then, and after an
/// error, `output` is unchanged. Equal layers give equal bytes.
///
/// # Errors
/// A layer has another digest than expected, is broken, hostile or over a limit; or the host's file system
/// fails.
pub fn build(layers: &[LayerFile], output: &Path, limits: &Limits) -> Result<BuiltDisk, DiskError> {
    if layers.is_empty() {
        return Err(DiskError::NoLayers);
    }
    let max_layers = limits.layers.min(u64::from(u16::MAX));
    within(layers.len() as u64, max_layers, "layers", "layers")?;

    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Removed on drop when a step below fails.
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED_PREFIX)
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder)
        .map_err(|error| DiskError::io("create a file in", folder, error))?;
    let file = unfinished
        .as_file()
        .try_clone()
        .map_err(|error| DiskError::io("open", output, error))?;
    let file = write(layers, file, output, limits)?;
    let built = sync_and_hash(&file).map_err(|error| DiskError::io("write", output, error))?;
    unfinished
        .persist(output)
        .map_err(|error| DiskError::io("create", output, error.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| DiskError::io("sync", folder, error))?;
    Ok(built)
}

fn write(
    layers: &[LayerFile],
    file: File,
    output: &Path,
    limits: &Limits,
) -> Result<File, DiskError> {
    let end = u32::try_from(limits.disk_bytes / BLOCK as u64)
        .unwrap_or(u32::MAX)
        .min(MAX_DISK_BLOCKS);
    let writer = BlockWriter::new(file, output.to_owned(), DATA_START, end);
    let mut merger = Merger::new(writer, limits);
    std::thread::scope(|scope| {
        let mut streams = Layers::start(scope, layers, limits);
        for (number, layer) in (0..).zip(layers) {
            let mut archive = Archive::new(Input::new(&mut streams));
            let merged = merger
                .apply(number, &mut archive)
                .and_then(|()| Ok(archive.drain()?));
            drop(archive);
            let merged = match merged {
                Ok(()) => streams.finish_layer(layer),
                Err(MergeError::Layer(error)) => Err(streams.blame(layer, error)),
                Err(MergeError::Disk(error)) => return Err(error),
            };
            merged.map_err(|source| DiskError::Layer {
                number: usize::from(number) + 1,
                digest: layer.digest.clone(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    })?;
    let Merger {
        mut tree,
        writer,
        freed,
        ..
    } = merger;
    ext4::finish(&mut tree, writer, output, &identity(layers), &freed)
}

/// Label and UUID of the disk. They depend on the content of the layers and not on its compression.
fn identity(layers: &[LayerFile]) -> Identity {
    let mut hasher = Sha256::new();
    hasher.update(b"root disk 1");
    for layer in layers {
        hasher.update(layer.diff_id.as_str());
    }
    Identity::from_hash(&hasher.finalize().into(), *b"root\0\0\0\0\0\0\0\0\0\0\0\0")
}

/// Waits for stable storage, and hashes the file meanwhile.
fn sync_and_hash(file: &File) -> std::io::Result<BuiltDisk> {
    std::thread::scope(|scope| {
        let synced = scope.spawn(|| file.sync_all());
        let built = hash(file)?;
        match synced.join() {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(built)
    })
}

/// Size and SHA-256 of a file.
pub(crate) fn hash(file: &File) -> std::io::Result<BuiltDisk> {
    /// Bytes that are read at once.
    const BUFFER_BYTES: usize = 256 * 1024;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    loop {
        let length = file.read_at(&mut buffer, at)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(BuiltDisk {
        sha256: Digest::from_sha256(&hasher.finalize().into()),
        size_bytes: at,
    })
}

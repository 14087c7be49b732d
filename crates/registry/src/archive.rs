//! `docker-archive`: the tar file that `docker save` writes, with a `manifest.json` of its own kind.
//!
//! It has no image manifest and so no digest of one; the config's digest, docker's image id, stands in.
//! Layers are checked against the config's `diff_ids`: here where they are plain, by `root-disk` where they are
//! compressed. Only the plain form of tar headers is read; nothing is ever unpacked by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;

use model::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::cache::{BlobCache, digest_of};
use crate::document::{Compression, Descriptor, ImageManifest, printable, read_config};
use crate::error::Problem;
use crate::image::{ImageDescription, LayerBlob};
use crate::limits::{Limits, MAX_ARCHIVE_ENTRIES};
use crate::origin::unreadable;
use crate::reference::Reference;
use crate::resolve::{check_os, describe};

/// Read at once, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// An image out of an archive.
pub(crate) struct ArchivedImage {
    pub(crate) description: ImageDescription,
    /// Its layers in the cache; empty where none was given.
    pub(crate) layers: Vec<LayerBlob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchiveEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Where a member of the tar file lies.
#[derive(Clone)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// Reads an archive. Blocks for as long as reading takes.
pub(crate) fn read(
    path: &Path,
    name: Option<&str>,
    cache: Option<&BlobCache>,
    limits: &Limits,
) -> Result<ArchivedImage, Problem> {
    let mut archive = Archive::open(path)?;
    let bytes = archive.small("manifest.json", limits.manifest_bytes)?;
    let entries: Vec<ArchiveEntry> =
        serde_json::from_slice(&bytes).map_err(|error| malformed(&error.to_string()))?;
    let entry = choose(&entries, name, path)?;
    let config_bytes = archive.small(&entry.config, limits.config_bytes)?;
    if entry.layers.is_empty() || entry.layers.len() > limits.layers {
        return Err(malformed("it has no layers, or too many"));
    }
    let config = read_config(&config_bytes, entry.layers.len())?;
    check_os(&config)?;
    let image_id = digest_of(&config_bytes);

    let mut manifest = ImageManifest {
        config: Descriptor {
            digest: image_id.clone(),
            size: config_bytes.len() as u64,
        },
        layers: Vec::new(),
    };
    let mut layers = Vec::new();
    for (member, diff_id) in entry.layers.iter().zip(&config.diff_ids) {
        let (blob, compression, file) = archive.layer(member, cache, limits)?;
        if compression == Compression::None && blob.digest != *diff_id {
            return Err(Problem::WrongDigest {
                host: path.display().to_string(),
                digest: diff_id.clone(),
                actual: blob.digest,
            });
        }
        if let Some(path) = file {
            layers.push(LayerBlob {
                path,
                digest: blob.digest.clone(),
                diff_id: diff_id.clone(),
                compression,
                size: blob.size,
            });
        }
        manifest.layers.push((blob, compression));
    }
    Ok(ArchivedImage {
        description: describe(&image_id, &manifest, config),
        layers,
    })
}

fn malformed(reason: &str) -> Problem {
    Problem::Malformed {
        document: "docker archive",
        reason: printable(reason),
    }
}

fn choose<'a>(
    entries: &'a [ArchiveEntry],
    name: Option<&str>,
    path: &Path,
) -> Result<&'a ArchiveEntry, Problem> {
    let tags = |entry: &'a ArchiveEntry| entry.repo_tags.as_deref().unwrap_or_default();
    let matching: Vec<_> = entries
        .iter()
        .filter(|entry| name.is_none_or(|name| tags(entry).iter().any(|tag| same_name(tag, name))))
        .collect();
    match matching[..] {
        [entry] => Ok(entry),
        [] => Err(Problem::NotFound {
            host: path.display().to_string(),
            what: name.map_or("image".to_owned(), |name| format!("image `{name}`")),
        }),
        _ => {
            let names: Vec<_> = entries.iter().flat_map(tags).map(String::as_str).collect();
            Err(malformed(&format!(
                "it has several images, choose one: {}",
                names.join(", ")
            )))
        }
    }
}

/// docker writes `nginx:v1` where skopeo writes `docker.io/library/nginx:v1`; both mean the same.
fn same_name(tag: &str, name: &str) -> bool {
    let reference = |text: &str| text.parse::<Reference>().ok();
    tag == name || reference(tag).is_some_and(|tag| Some(tag) == reference(name))
}

struct Archive<'a> {
    path: &'a Path,
    file: File,
    members: BTreeMap<String, Member>,
}

impl<'a> Archive<'a> {
    /// Lists the members; their bytes are skipped.
    fn open(path: &'a Path) -> Result<Self, Problem> {
        let mut file = File::open(path).map_err(unreadable(path))?;
        let mut magic = [0; 4];
        let known = file.read(&mut magic).map_err(unreadable(path))?;
        if compression_of(&magic[..known]) != Compression::None {
            return Err(malformed(
                "the file itself is compressed; unpack it first (gunzip)",
            ));
        }
        file.rewind().map_err(unreadable(path))?;
        let length = file.metadata().map_err(unreadable(path))?.len();
        let mut members = BTreeMap::new();
        let mut tar = tar::Archive::new(&file);
        let entries = tar.entries_with_seek().map_err(unreadable(path))?.raw(true);
        for (count, entry) in entries.enumerate() {
            if count >= MAX_ARCHIVE_ENTRIES {
                return Err(Problem::OverLimit {
                    what: "the docker archive".to_owned(),
                    actual: count as u64,
                    limit: MAX_ARCHIVE_ENTRIES as u64,
                    unit: "entries",
                });
            }
            let entry = entry.map_err(unreadable(path))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            let kind = entry.header().entry_type();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if kind.is_file() {
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(malformed("the file ends too early"));
                }
                members.insert(name, Member::File { offset, size });
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                let target = match (kind.is_symlink(), name.rsplit_once('/')) {
                    (true, Some((dir, _))) => format!("{dir}/{target}"),
                    _ => target,
                };
                members.insert(name, Member::Link(normalize(&target)));
            }
        }
        Ok(Self {
            path,
            file,
            members,
        })
    }

    /// A member's place; docker shares layers by one link.
    fn find(&self, name: &str) -> Result<(u64, u64), Problem> {
        let missing = || malformed(&format!("it has no `{name}`"));
        let member = self.members.get(name).ok_or_else(missing)?;
        let member = match member {
            Member::Link(target) => self.members.get(target).ok_or_else(missing)?,
            file @ Member::File { .. } => file,
        };
        match member {
            Member::File { offset, size } => Ok((*offset, *size)),
            Member::Link(_) => Err(missing()),
        }
    }

    /// A small member, whole.
    fn small(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, Problem> {
        let (offset, size) = self.find(name)?;
        if size > limit {
            return Err(Problem::OverLimit {
                what: format!("`{}`", printable(name)),
                actual: size,
                limit,
                unit: "bytes",
            });
        }
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&self.file).take(size).read_to_end(&mut bytes))
            .map_err(unreadable(self.path))?;
        Ok(bytes)
    }

    /// Hashes a layer, and puts it into the cache if there is one.
    fn layer(
        &mut self,
        name: &str,
        cache: Option<&BlobCache>,
        limits: &Limits,
    ) -> Result<(Descriptor, Compression, Option<std::path::PathBuf>), Problem> {
        let (offset, size) = self.find(name)?;
        if size > limits.layer_bytes {
            return Err(Problem::OverLimit {
                what: format!("layer `{}`", printable(name)),
                actual: size,
                limit: limits.layer_bytes,
                unit: "bytes",
            });
        }
        let mut writer = cache.map(BlobCache::begin).transpose()?;
        let mut hasher = Sha256::new();
        let mut compression = Compression::None;
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(unreadable(self.path))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut done = 0;
        while done < size {
            let most =
                usize::try_from(size - done).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            self.file
                .read_exact(&mut chunk[..most])
                .map_err(|error: io::Error| unreadable(self.path)(error))?;
            let bytes = &chunk[..most];
            if done == 0 {
                compression = compression_of(bytes);
            }
            match &mut writer {
                Some(writer) => writer.write(bytes)?,
                None => hasher.update(bytes),
            }
            done += most as u64;
        }
        let (digest, file) = match writer {
            Some(writer) => {
                let digest = writer.digest();
                let blob = writer.commit(&digest)?;
                (digest, Some(blob.path))
            }
            None => (Digest::from_sha256(&hasher.finalize().into()), None),
        };
        Ok((Descriptor { digest, size }, compression, file))
    }
}

/// By the first bytes (RFC 1952, RFC 8878).
fn compression_of(bytes: &[u8]) -> Compression {
    match bytes {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// `a/../b/./c` -> `b/c`. Only a name in a table, never a path.
fn normalize(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

//! `docker-archive`: the tar file of `docker save`, with a `manifest.json` of docker's own format.
//!
//! It has no image manifest, so the config's digest, docker's image id, takes the place of the manifest's digest.
//! Layers are checked against the config's `diff_ids`: uncompressed ones here, compressed ones by `root-disk`. Only the
//! basic form of tar headers is read; no member is unpacked by its name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use model::Digest;
use oci::{
    COMPRESSION_MAGIC_BYTES, Compression, Descriptor, ImageDescription, ImageError, ImageLimits,
    ImageManifest, LayerFile, Reference, digest_of, read_config,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::SourceProblem;
use crate::file::unreadable;

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Most members of an archive.
const MAX_MEMBERS: usize = 16 << 10;

/// An image of an archive.
pub(crate) struct ArchivedImage {
    pub(crate) description: ImageDescription,
    /// Its layers, where they are in the archive.
    pub(crate) layers: Vec<LayerFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchiveEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A member of the tar file.
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// Reads an archive, and hashes the layers of the image.
pub(crate) fn read(
    path: &Path,
    name: Option<&str>,
    limits: &ImageLimits,
) -> Result<ArchivedImage, SourceProblem> {
    let mut archive = Archive::open(path)?;
    let bytes = archive.small("manifest.json", limits.manifest_bytes)?;
    let entries: Vec<ArchiveEntry> =
        serde_json::from_slice(&bytes).map_err(|error| malformed(&error.to_string()))?;
    let entry = choose(&entries, name, path)?;
    let config_bytes = archive.small(&entry.config, limits.config_bytes)?;
    if entry.layers.is_empty() || entry.layers.len() > limits.layers {
        return Err(malformed("it has no layers, or too many").into());
    }
    let config = read_config(&config_bytes, entry.layers.len())?;
    let image_id = digest_of(&config_bytes);

    let mut manifest = ImageManifest {
        config: Descriptor {
            digest: image_id.clone(),
            size: config_bytes.len() as u64,
        },
        layers: Vec::new(),
    };
    let mut offsets = Vec::new();
    for (member, diff_id) in entry.layers.iter().zip(&config.diff_ids) {
        let (blob, compression, offset) = archive.layer(member, limits)?;
        if compression == Compression::None && blob.digest != *diff_id {
            return Err(ImageError::WrongDigest {
                origin: path.display().to_string(),
                digest: diff_id.clone(),
                actual: blob.digest,
            }
            .into());
        }
        offsets.push(offset);
        manifest.layers.push((blob, compression));
    }
    let description = ImageDescription::new(&image_id, &manifest, config);
    let layers = description.layers.iter().cloned().zip(offsets);
    let layers = layers.map(|(layer, offset)| LayerFile::new(layer, path.to_owned(), offset));
    Ok(ArchivedImage {
        layers: layers.collect(),
        description,
    })
}

fn malformed(reason: &str) -> ImageError {
    ImageError::malformed("docker archive", reason)
}

fn choose<'a>(
    entries: &'a [ArchiveEntry],
    name: Option<&str>,
    path: &Path,
) -> Result<&'a ArchiveEntry, SourceProblem> {
    let tags = |entry: &'a ArchiveEntry| entry.repo_tags.as_deref().unwrap_or_default();
    let matching: Vec<_> = entries
        .iter()
        .filter(|entry| name.is_none_or(|name| tags(entry).iter().any(|tag| same_name(tag, name))))
        .collect();
    match matching[..] {
        [entry] => Ok(entry),
        [] => Err(SourceProblem::NotFound {
            path: path.to_owned(),
            what: name.map_or("image".to_owned(), |name| format!("image `{name}`")),
        }),
        _ => {
            let names: Vec<_> = entries.iter().flat_map(tags).map(String::as_str).collect();
            let names = names.join(", ");
            Err(malformed(&format!("it has several images, choose one: {names}")).into())
        }
    }
}

/// Whether two names mean the same: docker writes `nginx:v1` where skopeo writes `docker.io/library/nginx:v1`.
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
    fn open(path: &'a Path) -> Result<Self, SourceProblem> {
        let mut file = File::open(path).map_err(unreadable(path))?;
        let mut magic = [0; COMPRESSION_MAGIC_BYTES];
        let known = file.read(&mut magic).map_err(unreadable(path))?;
        if Compression::of_bytes(&magic[..known]) != Compression::None {
            let reason = "the file itself is compressed; unpack it first (gunzip)";
            return Err(malformed(reason).into());
        }
        file.rewind().map_err(unreadable(path))?;
        let length = file.metadata().map_err(unreadable(path))?.len();
        let mut members = BTreeMap::new();
        let mut tar = tar::Archive::new(&file);
        let entries = tar.entries_with_seek().map_err(unreadable(path))?.raw(true);
        for (count, entry) in entries.enumerate() {
            if count >= MAX_MEMBERS {
                return Err(ImageError::OverLimit {
                    what: "the docker archive".to_owned(),
                    actual: count as u64,
                    limit: MAX_MEMBERS as u64,
                    unit: "members",
                }
                .into());
            }
            let entry = entry.map_err(unreadable(path))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            let kind = entry.header().entry_type();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if kind.is_file() {
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(malformed("the file ends too early").into());
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

    /// Offset and size of a member. Docker shares a layer by a link, which is followed once.
    fn find(&self, name: &str) -> Result<(u64, u64), ImageError> {
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

    /// A whole member of at most `limit` bytes.
    fn small(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, SourceProblem> {
        let (offset, size) = self.find(name)?;
        if size > limit {
            return Err(over_limit(name, size, limit).into());
        }
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&self.file).take(size).read_to_end(&mut bytes))
            .map_err(unreadable(self.path))?;
        Ok(bytes)
    }

    /// Hashes a layer. Returns its digest and size, its compression, and its offset in the archive.
    fn layer(
        &mut self,
        name: &str,
        limits: &ImageLimits,
    ) -> Result<(Descriptor, Compression, u64), SourceProblem> {
        let (offset, size) = self.find(name)?;
        if size > limits.layer_bytes {
            return Err(over_limit(name, size, limits.layer_bytes).into());
        }
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
                .map_err(unreadable(self.path))?;
            let bytes = &chunk[..most];
            if done == 0 {
                compression = Compression::of_bytes(bytes);
            }
            hasher.update(bytes);
            done += most as u64;
        }
        let digest = Digest::from_sha256(&hasher.finalize().into());
        Ok((Descriptor { digest, size }, compression, offset))
    }
}

fn over_limit(name: &str, size: u64, limit: u64) -> ImageError {
    ImageError::OverLimit {
        what: format!("`{}`", name.escape_debug()),
        actual: size,
        limit,
        unit: "bytes",
    }
}

/// `a/../b/./c` -> `b/c`. The result is a key of the table of members, never a path.
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

//! From a name to an image for each platform.

use std::collections::{BTreeMap, BTreeSet};

use model::Digest;

use crate::document::{Config, Document, ImageManifest, IndexEntry, read_config};
use crate::error::{Platforms, Problem};
use crate::image::{ImageDescription, LayerDescription, Resolved};
use crate::limits::MAX_UNLABELLED_ENTRIES;
use crate::origin::Origin;
use crate::platform::Platform;

/// Resolves `tag` or, where it is given, `digest`.
pub(crate) async fn resolve(
    origin: &Origin<'_>,
    tag: Option<&str>,
    digest: Option<&Digest>,
    platforms: &[Platform],
) -> Result<Resolved, Problem> {
    let name = digest.map_or(tag.unwrap_or("latest"), Digest::as_str);
    let (document, ref_digest) = origin.document(name, digest, None).await?;
    let mut resolved = Resolved {
        ref_digest: ref_digest.clone(),
        pinned_tag: tag.filter(|_| digest.is_none()).map(str::to_owned),
        by_arch: BTreeMap::new(),
        is_index: false,
        images: BTreeMap::new(),
        offered: Vec::new(),
    };
    match document {
        Document::Image(manifest) => {
            let config = config(origin, &manifest).await?;
            check_os(&config)?;
            take_single(
                &mut resolved,
                describe(&ref_digest, &manifest, config),
                platforms,
            );
        }
        Document::Index(entries) => {
            resolved.is_index = true;
            choose(origin, &entries, platforms, &mut resolved).await?;
        }
    }
    none_is_an_error(resolved, platforms)
}

/// The one image there is, for those platforms that it suits.
pub(crate) fn take_single(
    resolved: &mut Resolved,
    description: ImageDescription,
    platforms: &[Platform],
) {
    let own = platform_of(&description);
    let alone = [own.clone()];
    let wanted = if platforms.is_empty() {
        &alone
    } else {
        platforms
    };
    for wanted in wanted {
        if wanted
            .rank(&own.architecture, own.variant.as_deref())
            .is_some()
        {
            resolved
                .by_arch
                .insert(wanted.key(), description.digest.clone());
            resolved.images.insert(wanted.key(), description.clone());
        }
    }
    resolved.offered.push((own, description.digest));
}

/// Refuses what suits no platform.
pub(crate) fn none_is_an_error(
    resolved: Resolved,
    platforms: &[Platform],
) -> Result<Resolved, Problem> {
    if !resolved.by_arch.is_empty() {
        return Ok(resolved);
    }
    let offered: BTreeSet<_> = resolved
        .offered
        .into_iter()
        .map(|(platform, _)| platform)
        .collect();
    let offered = if offered.is_empty() {
        "no Linux image".to_owned()
    } else {
        Platforms(offered.into_iter().collect()).to_string()
    };
    Err(Problem::NoSuchPlatform {
        wanted: Platforms(platforms.to_vec()),
        offered,
    })
}

/// Chooses from an index, and looks at what was chosen.
async fn choose(
    origin: &Origin<'_>,
    entries: &[IndexEntry],
    platforms: &[Platform],
    resolved: &mut Resolved,
) -> Result<(), Problem> {
    let mut labelled: Vec<(Platform, &IndexEntry)> = entries
        .iter()
        .filter_map(|entry| Some((entry.platform.as_ref()?.linux()?, entry)))
        .collect();
    let mut known = BTreeMap::new();
    if labelled.is_empty() {
        // Some tools do not say what an image is for: its config does.
        let unlabelled = entries.iter().filter(|entry| entry.platform.is_none());
        for entry in unlabelled.take(MAX_UNLABELLED_ENTRIES) {
            match entry_description(origin, entry).await {
                Ok(description) => {
                    labelled.push((platform_of(&description), entry));
                    known.insert(entry.descriptor.digest.clone(), description);
                }
                Err(Problem::NotAnImage { digest, kind }) => {
                    tracing::debug!(%digest, kind, "an entry of the index is skipped");
                }
                Err(problem) => return Err(problem),
            }
        }
    }
    resolved.offered = labelled
        .iter()
        .map(|(platform, entry)| (platform.clone(), entry.descriptor.digest.clone()))
        .collect();
    let offered: Vec<Platform> = labelled
        .iter()
        .map(|(platform, _)| platform.clone())
        .collect();
    let wanted = if platforms.is_empty() {
        &offered
    } else {
        platforms
    };
    for wanted in wanted {
        let Some(entry) = best(wanted, &labelled) else {
            continue;
        };
        let digest = &entry.descriptor.digest;
        let description = match known.get(digest) {
            Some(description) => description.clone(),
            None => entry_description(origin, entry).await?,
        };
        known.insert(digest.clone(), description.clone());
        resolved.by_arch.insert(wanted.key(), digest.clone());
        resolved.images.insert(wanted.key(), description);
    }
    Ok(())
}

/// The first of the best, so that the order of the index decides between equals.
fn best<'a>(wanted: &Platform, entries: &[(Platform, &'a IndexEntry)]) -> Option<&'a IndexEntry> {
    let mut best: Option<(u32, &IndexEntry)> = None;
    for (platform, entry) in entries {
        let rank = wanted.rank(&platform.architecture, platform.variant.as_deref());
        if let Some(rank) = rank
            && best.is_none_or(|(best, _)| rank > best)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry)
}

/// The image behind an entry of an index.
async fn entry_description(
    origin: &Origin<'_>,
    entry: &IndexEntry,
) -> Result<ImageDescription, Problem> {
    let digest = &entry.descriptor.digest;
    let nested = || Problem::NestedIndex {
        digest: digest.clone(),
    };
    if entry.is_index {
        return Err(nested());
    }
    let size = Some(entry.descriptor.size);
    let (document, _) = origin.document(digest.as_str(), Some(digest), size).await?;
    let Document::Image(manifest) = document else {
        return Err(nested());
    };
    let config = config(origin, &manifest).await?;
    check_os(&config)?;
    Ok(describe(digest, &manifest, config))
}

/// The config of an image.
pub(crate) async fn config(
    origin: &Origin<'_>,
    manifest: &ImageManifest,
) -> Result<Config, Problem> {
    let limit = origin.limits().config_bytes;
    let bytes = origin
        .small_blob(&manifest.config, limit, "the image config")
        .await?;
    read_config(&bytes, manifest.layers.len())
}

pub(crate) fn check_os(config: &Config) -> Result<(), Problem> {
    if config.image.os == "linux" {
        return Ok(());
    }
    Err(Problem::Malformed {
        document: "image config",
        reason: format!(
            "it is for `{}`; only Linux images run here",
            config.image.os
        ),
    })
}

fn platform_of(description: &ImageDescription) -> Platform {
    Platform {
        architecture: description.config.architecture.clone(),
        variant: description.variant.clone(),
    }
}

pub(crate) fn describe(
    digest: &Digest,
    manifest: &ImageManifest,
    config: Config,
) -> ImageDescription {
    let layers = manifest.layers.iter().zip(config.diff_ids);
    ImageDescription {
        digest: digest.clone(),
        config: config.image,
        variant: config.variant,
        size_bytes: manifest.layers.iter().map(|(layer, _)| layer.size).sum(),
        layers: layers
            .map(|((layer, compression), diff_id)| LayerDescription {
                digest: layer.digest.clone(),
                size: layer.size,
                compression: *compression,
                diff_id,
            })
            .collect(),
    }
}

//! From a manifest or an index to an image for each platform.
//!
//! A [`Resolution`] decides which documents are read; its caller reads them:
//!
//! ```text
//! new(index) -> next() = Some(entry) -> the caller reads the document of the entry -> described(image),
//!                 ^                                                                   nested(entries) or refused(entry)
//!                 `------------------------------------------------------------------------'
//!               next() = None -> finish() = Resolved
//! ```
//!
//! An index may name indexes ([`MAX_NESTED_LEVELS`]). The entries of an inner one take its place, in order; an entry
//! without a platform has that of the index around it.

use std::collections::{BTreeMap, BTreeSet};

use model::Digest;

use crate::document::{Descriptor, IndexEntry};
use crate::error::{ImageError, Platforms};
use crate::image::ImageDescription;
use crate::limits::{
    MAX_INDEX_ENTRIES, MAX_NESTED_INDEXES, MAX_NESTED_LEVELS, MAX_UNLABELLED_ENTRIES,
};
use crate::platform::Platform;

/// The images that a reference names at one moment.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The digest of the manifest or index that the reference names (`release.image_ref_digest`).
    pub ref_digest: Digest,
    /// The tag that was resolved, if the reference has one and no digest. Nothing runs by it.
    pub pinned_tag: Option<String>,
    /// The manifest to run, by [`Platform::key`] of the platforms that were asked for and have an image; never empty
    /// (`release.resolved_image_digest`).
    pub by_arch: BTreeMap<String, Digest>,
    /// Whether the reference names an index.
    pub is_index: bool,
    /// Each image of `by_arch`, described.
    pub images: BTreeMap<String, ImageDescription>,
    /// Every Linux image of the reference, in the index's order.
    pub offered: Vec<(Platform, Digest)>,
}

impl Resolved {
    /// A reference to a single image, for those of `platforms` that it suits; with no platforms, for its own.
    ///
    /// # Errors
    /// [`ImageError::NoSuchPlatform`] if it suits none of them.
    pub fn single(
        image: ImageDescription,
        pinned_tag: Option<String>,
        platforms: &[Platform],
    ) -> Result<Self, ImageError> {
        let own = platform_of(&image);
        let alone = [own.clone()];
        let wanted = if platforms.is_empty() {
            &alone
        } else {
            platforms
        };
        let suited = wanted
            .iter()
            .filter(|wanted| wanted.rank(&own).is_some())
            .map(Platform::key);
        let images: BTreeMap<_, _> = suited.map(|key| (key, image.clone())).collect();
        Self {
            ref_digest: image.digest.clone(),
            pinned_tag,
            by_arch: digests(&images),
            is_index: false,
            images,
            offered: vec![(own, image.digest)],
        }
        .checked(platforms)
    }

    /// Refuses an image that suits no platform.
    fn checked(self, platforms: &[Platform]) -> Result<Self, ImageError> {
        if !self.by_arch.is_empty() {
            return Ok(self);
        }
        let offered = self.offered.into_iter().map(|(platform, _)| platform);
        let offered: BTreeSet<_> = offered.collect();
        let offered = if offered.is_empty() {
            "no Linux image".to_owned()
        } else {
            Platforms(offered.into_iter().collect()).to_string()
        };
        Err(ImageError::NoSuchPlatform {
            wanted: Platforms(platforms.to_vec()),
            offered,
        })
    }
}

/// An index that is being resolved for some platforms.
#[derive(Debug)]
pub struct Resolution {
    ref_digest: Digest,
    pinned_tag: Option<String>,
    /// Empty: every platform of the index.
    platforms: Vec<Platform>,
    /// The entries that may be Linux images, in order.
    entries: Vec<Candidate>,
    /// The images that were read; `None`: the entry is no container image.
    read: BTreeMap<Digest, Option<ImageDescription>>,
    /// Inner indexes that were read.
    indexes: usize,
}

/// An entry that may be, or have, an image for a platform.
#[derive(Debug, Clone)]
struct Candidate {
    /// The platform that an index names for it; `None`: only its config does.
    platform: Option<Platform>,
    descriptor: Descriptor,
    /// Whether it is labelled as an index.
    is_index: bool,
    /// Indexes around it, the outermost not counted.
    level: usize,
}

impl Candidate {
    /// The candidates among the entries of an index at this level, which has this platform itself.
    fn of(entries: Vec<IndexEntry>, within: Option<&Platform>, level: usize) -> Vec<Self> {
        let mut candidates = Vec::new();
        for entry in entries {
            let platform = match &entry.platform {
                None => within.cloned(),
                Some(platform) => match platform.linux() {
                    Some(platform) => Some(platform),
                    // Another operating system's, or an attestation.
                    None => continue,
                },
            };
            candidates.push(Self {
                platform,
                descriptor: entry.descriptor,
                is_index: entry.is_index,
                level,
            });
        }
        candidates
    }
}

impl Resolution {
    /// Begins to resolve an index with this digest for `platforms`; with none, for each platform that it has.
    pub fn new(
        ref_digest: Digest,
        pinned_tag: Option<String>,
        entries: Vec<IndexEntry>,
        platforms: &[Platform],
    ) -> Self {
        Self {
            ref_digest,
            pinned_tag,
            platforms: platforms.to_vec(),
            entries: Candidate::of(entries, None, 0),
            read: BTreeMap::new(),
            indexes: 0,
        }
    }

    /// The next document to read, until [`Self::finish`] has all it needs: an image's manifest, or an index.
    pub fn next(&self) -> Option<&Descriptor> {
        let chosen = self.chosen().into_values();
        let mut needed = self.unlabelled().chain(chosen);
        let entry = needed.find(|entry| !self.read.contains_key(&entry.descriptor.digest))?;
        Some(&entry.descriptor)
    }

    /// The image of the entry that [`Self::next`] returned.
    pub fn described(&mut self, image: ImageDescription) {
        self.read.insert(image.digest.clone(), Some(image));
    }

    /// The entry that [`Self::next`] returned is an index with these entries.
    ///
    /// # Errors
    /// There are too many indexes within the outermost one, or too many levels of them.
    pub fn nested(&mut self, index: &Digest, entries: &[IndexEntry]) -> Result<(), ImageError> {
        self.indexes += 1;
        if self.indexes > MAX_NESTED_INDEXES {
            return Err(ImageError::OverLimit {
                what: "the index".to_owned(),
                actual: self.indexes as u64,
                limit: MAX_NESTED_INDEXES as u64,
                unit: "indexes within it",
            });
        }
        let mut flat = Vec::new();
        for entry in std::mem::take(&mut self.entries) {
            if entry.descriptor.digest != *index {
                flat.push(entry);
                continue;
            }
            let level = entry.level + 1;
            if level > MAX_NESTED_LEVELS {
                return Err(ImageError::NestedTooDeep {
                    digest: index.clone(),
                });
            }
            let inner = entries.to_vec();
            flat.extend(Candidate::of(inner, entry.platform.as_ref(), level));
        }
        if flat.len() > MAX_INDEX_ENTRIES {
            return Err(ImageError::OverLimit {
                what: "the index with those within it".to_owned(),
                actual: flat.len() as u64,
                limit: MAX_INDEX_ENTRIES as u64,
                unit: "entries",
            });
        }
        self.entries = flat;
        Ok(())
    }

    /// The entry that [`Self::next`] returned cannot be used. An entry without a platform may be an artifact beside
    /// the images: it is left out.
    ///
    /// # Errors
    /// `error`, unless the entry is left out.
    pub fn refused(&mut self, entry: &Digest, error: ImageError) -> Result<(), ImageError> {
        let left_out = matches!(error, ImageError::NotAnImage { .. })
            && (self.unlabelled()).any(|known| known.descriptor.digest == *entry);
        if left_out {
            self.read.insert(entry.clone(), None);
            return Ok(());
        }
        Err(error)
    }

    /// The images for the platforms.
    ///
    /// # Errors
    /// [`ImageError::NoSuchPlatform`] if the index has an image for none of them.
    pub fn finish(self) -> Result<Resolved, ImageError> {
        let offered = self.offered();
        let offered = offered
            .into_iter()
            .map(|(platform, entry)| (platform, entry.descriptor.digest.clone()))
            .collect();
        let chosen = self.chosen();
        let images: BTreeMap<_, _> = chosen
            .into_iter()
            .filter_map(|(key, entry)| {
                let image = self.read.get(&entry.descriptor.digest)?.clone()?;
                Some((key, image))
            })
            .collect();
        Resolved {
            ref_digest: self.ref_digest,
            pinned_tag: self.pinned_tag,
            by_arch: digests(&images),
            is_index: true,
            images,
            offered,
        }
        .checked(&self.platforms)
    }

    /// The entries that are read to learn their platform: indexes without one, and, where no entry has one, as many
    /// manifests as are looked into.
    fn unlabelled(&self) -> impl Iterator<Item = &Candidate> {
        let labelled = self.entries.iter().any(|entry| entry.platform.is_some());
        let manifests = if labelled { 0 } else { MAX_UNLABELLED_ENTRIES };
        let entries = || self.entries.iter().filter(|entry| entry.platform.is_none());
        let indexes = entries().filter(|entry| entry.is_index);
        let manifests = entries().filter(|entry| !entry.is_index).take(manifests);
        indexes.chain(manifests)
    }

    /// The entries with their platforms, as far as these are known.
    fn offered(&self) -> Vec<(Platform, &Candidate)> {
        let labelled = self.entries.iter();
        let labelled =
            labelled.filter_map(|entry| entry.platform.clone().map(|platform| (platform, entry)));
        let unlabelled = self.unlabelled().filter_map(|entry| {
            let image = self.read.get(&entry.descriptor.digest)?.as_ref()?;
            Some((platform_of(image), entry))
        });
        labelled.chain(unlabelled).collect()
    }

    /// The best entry for each platform, by [`Platform::key`]. The order of the index decides between equals.
    fn chosen(&self) -> BTreeMap<String, &Candidate> {
        let offered = self.offered();
        let every: Vec<_> = offered
            .iter()
            .map(|(platform, _)| platform.clone())
            .collect();
        let wanted = if self.platforms.is_empty() {
            &every
        } else {
            &self.platforms
        };
        let mut chosen = BTreeMap::new();
        for wanted in wanted {
            let mut best = None;
            for (platform, entry) in &offered {
                let rank = wanted.rank(platform);
                if rank.is_some() && best.is_none_or(|(best, _)| rank > best) {
                    best = Some((rank, *entry));
                }
            }
            if let Some((_, entry)) = best {
                chosen.insert(wanted.key(), entry);
            }
        }
        chosen
    }
}

fn digests(images: &BTreeMap<String, ImageDescription>) -> BTreeMap<String, Digest> {
    let images = images.iter();
    images
        .map(|(key, image)| (key.clone(), image.digest.clone()))
        .collect()
}

fn platform_of(image: &ImageDescription) -> Platform {
    Platform {
        architecture: image.config.architecture.clone(),
        variant: image.variant.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use model::image::ImageConfig;

    use super::*;
    use crate::digest::digest_of;
    use crate::document::EntryPlatform;

    fn entry(name: &str, platform: Option<(&str, &str)>) -> IndexEntry {
        IndexEntry {
            descriptor: Descriptor {
                digest: digest_of(name.as_bytes()),
                size: 1,
            },
            platform: platform.map(|(os, architecture)| EntryPlatform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: None,
            }),
            is_index: false,
        }
    }

    fn image(name: &str, architecture: &str) -> ImageDescription {
        ImageDescription {
            digest: digest_of(name.as_bytes()),
            config: ImageConfig {
                os: "linux".to_owned(),
                architecture: architecture.to_owned(),
                ..ImageConfig::default()
            },
            variant: None,
            layers: Vec::new(),
            size_bytes: 0,
        }
    }

    fn resolution(entries: Vec<IndexEntry>, platforms: &[&str]) -> Resolution {
        let platforms: Vec<_> = platforms.iter().map(|text| text.parse().unwrap()).collect();
        Resolution::new(digest_of(b"index"), None, entries, &platforms)
    }

    #[test]
    fn only_the_images_for_the_platforms_are_read() {
        let entries = || {
            vec![
                entry("windows", Some(("windows", "amd64"))),
                entry("first", Some(("linux", "amd64"))),
                entry("second", Some(("linux", "amd64"))),
                entry("arm", Some(("linux", "arm64"))),
                entry("unlabelled", None),
            ]
        };
        let mut one = resolution(entries(), &["linux/amd64", "linux/riscv64"]);
        let next = one.next().unwrap();
        assert_eq!(next.digest, digest_of(b"first"));
        one.described(image("first", "amd64"));
        assert_eq!(one.next(), None);
        let resolved = one.finish().unwrap();
        assert_eq!(resolved.by_arch.keys().collect::<Vec<_>>(), ["amd64"]);
        assert_eq!(resolved.offered.len(), 3);

        let none = resolution(entries(), &["linux/riscv64"]);
        assert_eq!(none.next(), None);
        assert_eq!(
            none.finish().unwrap_err().to_string(),
            "the image is not made for linux/riscv64; it has: linux/amd64, linux/arm64"
        );
    }

    #[test]
    fn unlabelled_entries_are_read_and_artifacts_left_out() {
        let mut entries = vec![entry("sbom", None), entry("app", None)];
        entries.extend((0..20).map(|_| entry("app", None)));
        let mut one = resolution(entries, &[]);
        let refusal = ImageError::NotAnImage {
            digest: digest_of(b"sbom"),
            kind: "x/sbom".to_owned(),
        };
        let sbom = one.next().unwrap().digest.clone();
        one.refused(&sbom, refusal).unwrap();
        assert_eq!(
            one.next().unwrap().digest,
            digest_of(b"app"),
            "an artifact is read once"
        );
        one.described(image("app", "arm64"));
        assert_eq!(one.next(), None);
        let resolved = one.finish().unwrap();
        assert_eq!(resolved.by_arch["arm64"], digest_of(b"app"));
    }

    /// The inner index with this name, as an entry.
    fn index(name: &str, platform: Option<(&str, &str)>) -> IndexEntry {
        IndexEntry {
            is_index: true,
            ..entry(name, platform)
        }
    }

    #[test]
    fn case_an_index_within_an_index_is_resolved_by_platform() {
        // As buildkit and crane write it: an index for each platform, with its attestation.
        let amd64 = Some(("linux", "amd64"));
        let outer = || vec![index("amd", amd64), index("arm", Some(("linux", "arm64")))];
        let inner = [
            entry("app", amd64),
            entry("attestation", Some(("unknown", "unknown"))),
        ];
        let mut one = resolution(outer(), &["linux/amd64"]);
        assert_eq!(one.next().unwrap().digest, digest_of(b"amd"));
        one.nested(&digest_of(b"amd"), &inner).unwrap();
        assert_eq!(one.next().unwrap().digest, digest_of(b"app"));
        one.described(image("app", "amd64"));
        assert_eq!(one.next(), None, "the other platform's index is not read");
        assert_eq!(one.finish().unwrap().by_arch["amd64"], digest_of(b"app"));

        // Two levels; the inner entries name no platform, and a label may call an index a manifest.
        let mut one = resolution(vec![entry("outer", amd64)], &[]);
        one.nested(&digest_of(b"outer"), &[index("inner", None)])
            .unwrap();
        assert_eq!(one.next().unwrap().digest, digest_of(b"inner"));
        one.nested(&digest_of(b"inner"), &[entry("app", None)])
            .unwrap();
        assert_eq!(one.next().unwrap().digest, digest_of(b"app"));
        one.described(image("app", "amd64"));
        assert_eq!(one.finish().unwrap().by_arch["amd64"], digest_of(b"app"));

        // An index without a platform is looked into, also beside entries that have one.
        let mut one = resolution(
            vec![entry("arm", Some(("linux", "arm64"))), index("rest", None)],
            &["linux/amd64"],
        );
        assert_eq!(one.next().unwrap().digest, digest_of(b"rest"));
        one.nested(&digest_of(b"rest"), &[entry("app", amd64)])
            .unwrap();
        one.described(image("app", "amd64"));
        assert_eq!(one.finish().unwrap().by_arch["amd64"], digest_of(b"app"));
    }

    #[test]
    fn indexes_within_indexes_end_at_a_limit() {
        let mut one = resolution(vec![index("0", None)], &[]);
        for level in 0..MAX_NESTED_LEVELS {
            let next = one.next().unwrap().digest.clone();
            one.nested(&next, &[index(&(level + 1).to_string(), None)])
                .unwrap();
        }
        let next = one.next().unwrap().digest.clone();
        assert!(matches!(
            one.nested(&next, &[]),
            Err(ImageError::NestedTooDeep { .. })
        ));

        let many = (0..=MAX_NESTED_INDEXES).map(|n| index(&n.to_string(), None));
        let mut one = resolution(many.collect(), &[]);
        for _ in 0..MAX_NESTED_INDEXES {
            let next = one.next().unwrap().digest.clone();
            one.nested(&next, &[]).unwrap();
        }
        let next = one.next().unwrap().digest.clone();
        assert!(matches!(
            one.nested(&next, &[]),
            Err(ImageError::OverLimit { .. })
        ));
    }

    #[test]
    fn a_chosen_entry_that_is_an_artifact_is_refused() {
        let mut one = resolution(vec![entry("chart", Some(("linux", "amd64")))], &[]);
        let digest = one.next().unwrap().digest.clone();
        let refusal = ImageError::NotAnImage {
            digest: digest.clone(),
            kind: "x/chart".to_owned(),
        };
        assert_eq!(one.refused(&digest, refusal.clone()), Err(refusal));
    }
}

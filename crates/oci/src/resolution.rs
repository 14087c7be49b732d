//! From a manifest or an index to an image for each platform.
//!
//! A [`Resolution`] decides which images are read; its caller reads them:
//!
//! ```text
//! new(index) -> next() = Some(entry) -> the caller reads manifest and config -> described(image) or skipped(entry)
//!                 ^------------------------------------------------------------------------'
//!               next() = None -> finish() = Resolved
//! ```

use std::collections::{BTreeMap, BTreeSet};

use model::Digest;

use crate::document::{Descriptor, IndexEntry};
use crate::error::{ImageError, Platforms};
use crate::image::ImageDescription;
use crate::limits::MAX_UNLABELLED_ENTRIES;
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
    /// Entries whose platform the index names, in its order.
    labelled: Vec<(Platform, Descriptor, IsIndex)>,
    /// Entries whose platform only their config names; looked into where no entry is labelled.
    unlabelled: Vec<(Descriptor, IsIndex)>,
    /// The images that were read; `None`: the entry is no container image.
    read: BTreeMap<Digest, Option<ImageDescription>>,
}

/// Whether an entry of an index is an index itself.
type IsIndex = bool;

impl Resolution {
    /// Begins to resolve an index with this digest for `platforms`; with none, for each platform that it has.
    pub fn new(
        ref_digest: Digest,
        pinned_tag: Option<String>,
        entries: Vec<IndexEntry>,
        platforms: &[Platform],
    ) -> Self {
        let mut labelled = Vec::new();
        let mut unlabelled = Vec::new();
        for entry in entries {
            match entry.platform {
                Some(platform) => {
                    if let Some(platform) = platform.linux() {
                        labelled.push((platform, entry.descriptor, entry.is_index));
                    }
                }
                None => unlabelled.push((entry.descriptor, entry.is_index)),
            }
        }
        if labelled.is_empty() {
            unlabelled.truncate(MAX_UNLABELLED_ENTRIES);
        } else {
            unlabelled.clear();
        }
        Self {
            ref_digest,
            pinned_tag,
            platforms: platforms.to_vec(),
            labelled,
            unlabelled,
            read: BTreeMap::new(),
        }
    }

    /// The next image to read, until [`Self::finish`] has all it needs.
    ///
    /// # Errors
    /// [`ImageError::NestedIndex`] if the entry is an index.
    pub fn next(&self) -> Result<Option<&Descriptor>, ImageError> {
        let wanted = self.chosen().into_values();
        let unlabelled = self
            .unlabelled
            .iter()
            .map(|(entry, nested)| (entry, *nested));
        let mut needed = unlabelled.chain(wanted);
        match needed.find(|(entry, _)| !self.read.contains_key(&entry.digest)) {
            Some((entry, true)) => Err(ImageError::NestedIndex {
                digest: entry.digest.clone(),
            }),
            Some((entry, false)) => Ok(Some(entry)),
            None => Ok(None),
        }
    }

    /// The image of the entry that [`Self::next`] returned.
    pub fn described(&mut self, image: ImageDescription) {
        self.read.insert(image.digest.clone(), Some(image));
    }

    /// The entry that [`Self::next`] returned cannot be used. An entry without a platform may be an artifact beside
    /// the images: it is left out.
    ///
    /// # Errors
    /// `error`, unless the entry is left out.
    pub fn refused(&mut self, entry: &Digest, error: ImageError) -> Result<(), ImageError> {
        if !self.unlabelled.is_empty() && matches!(error, ImageError::NotAnImage { .. }) {
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
            .map(|(platform, (entry, _))| (platform, entry.digest.clone()))
            .collect();
        let chosen = self.chosen();
        let images: BTreeMap<_, _> = chosen
            .into_iter()
            .filter_map(|(key, (entry, _))| {
                let image = self.read.get(&entry.digest)?.clone()?;
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

    /// The entries with their platforms, as far as these are known.
    fn offered(&self) -> Vec<(Platform, (&Descriptor, IsIndex))> {
        let labelled = self.labelled.iter();
        let labelled =
            labelled.map(|(platform, entry, nested)| (platform.clone(), (entry, *nested)));
        let unlabelled = self.unlabelled.iter().filter_map(|(entry, nested)| {
            let image = self.read.get(&entry.digest)?.as_ref()?;
            Some((platform_of(image), (entry, *nested)))
        });
        labelled.chain(unlabelled).collect()
    }

    /// The best entry for each platform, by [`Platform::key`]. The order of the index decides between equals.
    fn chosen(&self) -> BTreeMap<String, (&Descriptor, IsIndex)> {
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
        let next = one.next().unwrap().unwrap();
        assert_eq!(next.digest, digest_of(b"first"));
        one.described(image("first", "amd64"));
        assert_eq!(one.next(), Ok(None));
        let resolved = one.finish().unwrap();
        assert_eq!(resolved.by_arch.keys().collect::<Vec<_>>(), ["amd64"]);
        assert_eq!(resolved.offered.len(), 3);

        let none = resolution(entries(), &["linux/riscv64"]);
        assert_eq!(none.next(), Ok(None));
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
        let sbom = one.next().unwrap().unwrap().digest.clone();
        one.refused(&sbom, refusal).unwrap();
        assert_eq!(
            one.next().unwrap().unwrap().digest,
            digest_of(b"app"),
            "an artifact is read once"
        );
        one.described(image("app", "arm64"));
        assert_eq!(one.next(), Ok(None));
        let resolved = one.finish().unwrap();
        assert_eq!(resolved.by_arch["arm64"], digest_of(b"app"));
    }

    #[test]
    fn a_chosen_entry_that_is_an_index_or_an_artifact_is_refused() {
        let mut nested = entry("nested", Some(("linux", "amd64")));
        nested.is_index = true;
        let one = resolution(vec![nested], &[]);
        assert!(matches!(one.next(), Err(ImageError::NestedIndex { .. })));

        let mut one = resolution(vec![entry("chart", Some(("linux", "amd64")))], &[]);
        let digest = one.next().unwrap().unwrap().digest.clone();
        let refusal = ImageError::NotAnImage {
            digest: digest.clone(),
            kind: "x/chart".to_owned(),
        };
        assert_eq!(one.refused(&digest, refusal.clone()), Err(refusal));
    }
}

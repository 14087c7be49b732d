//! The operations: describe an image, locate its layers.

use model::Digest;
use oci::{ImageLimits, LocalImage, Platform, Resolved};

use crate::archive;
use crate::error::{SourceError, SourceProblem};
use crate::layout::Layout;
use crate::name::ImageSource;

/// An image whose layers are in local files.
#[derive(Debug, Clone)]
pub struct OpenedImage {
    /// The digest of the index or manifest that the source names. A docker archive has neither; it has
    /// the config's digest here, which is docker's image id.
    pub ref_digest: Digest,
    /// The image.
    pub image: LocalImage,
}

/// Resolves a source for each of `platforms`; with no platforms, for all that it has. Reads a docker archive whole.
///
/// # Errors
/// The files cannot be read or are refused; or they have an image for none of the platforms.
pub fn resolve(
    source: &ImageSource,
    platforms: &[Platform],
    limits: &ImageLimits,
) -> Result<Resolved, SourceError> {
    let resolved = match source {
        ImageSource::OciLayout { dir, tag, digest } => {
            Layout { dir, limits }.resolve(tag.as_deref(), digest.as_ref(), platforms)
        }
        ImageSource::DockerArchive { file, name } => archive::read(file, name.as_deref(), limits)
            .and_then(|archived| {
                let image = archived.description;
                Ok(Resolved::single(image, name.clone(), platforms)?)
            }),
    };
    resolved.map_err(failed("resolve", source))
}

/// Resolves a source for one platform and locates the layers of its image, the sizes of which are checked. Reads a docker
/// archive whole.
///
/// # Errors
/// As [`resolve`].
pub fn open(
    source: &ImageSource,
    platform: &Platform,
    limits: &ImageLimits,
) -> Result<OpenedImage, SourceError> {
    open_files(source, platform, limits).map_err(failed("open", source))
}

fn open_files(
    source: &ImageSource,
    platform: &Platform,
    limits: &ImageLimits,
) -> Result<OpenedImage, SourceProblem> {
    let platforms = std::slice::from_ref(platform);
    match source {
        ImageSource::OciLayout { dir, tag, digest } => {
            let layout = Layout { dir, limits };
            let mut resolved = layout.resolve(tag.as_deref(), digest.as_ref(), platforms)?;
            // One platform was resolved, so there is one image.
            let image = resolved.images.remove(&platform.key());
            let image = image.ok_or_else(|| SourceProblem::NotFound {
                path: dir.clone(),
                what: format!("image for {platform}"),
            })?;
            Ok(OpenedImage {
                ref_digest: resolved.ref_digest,
                image: LocalImage {
                    digest: image.digest,
                    config: image.config,
                    layers: layout.layers(image.layers)?,
                },
            })
        }
        ImageSource::DockerArchive { file, name } => {
            let archived = archive::read(file, name.as_deref(), limits)?;
            let image = archived.description.clone();
            let resolved = Resolved::single(image, name.clone(), platforms)?;
            Ok(OpenedImage {
                ref_digest: resolved.ref_digest,
                image: LocalImage {
                    digest: archived.description.digest,
                    config: archived.description.config,
                    layers: archived.layers,
                },
            })
        }
    }
}

fn failed(
    operation: &'static str,
    source: &ImageSource,
) -> impl FnOnce(SourceProblem) -> SourceError {
    let image = source.to_string();
    move |problem| SourceError {
        operation,
        image,
        problem,
    }
}

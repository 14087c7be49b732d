//! From a tag or digest to an image for each platform: reads what [`oci::Resolution`] asks for.

use model::Digest;
use oci::{Descriptor, Document, ImageDescription, IndexEntry, Platform, Resolution, Resolved};

use crate::documents::Documents;
use crate::error::Problem;

/// Resolves `digest` or, without it, `tag`.
pub(crate) async fn resolve(
    documents: &Documents<'_>,
    tag: Option<&str>,
    digest: Option<&Digest>,
    platforms: &[Platform],
) -> Result<Resolved, Problem> {
    let name = digest.map_or(tag.unwrap_or("latest"), Digest::as_str);
    let (document, ref_digest) = documents.document(name, digest, None).await?;
    let pinned_tag = tag.filter(|_| digest.is_none()).map(str::to_owned);
    let entries = match document {
        Document::Image(manifest) => {
            let config = documents.config(&manifest).await?;
            let image = ImageDescription::new(&ref_digest, &manifest, config);
            return Ok(Resolved::single(image, pinned_tag, platforms)?);
        }
        Document::Index(entries) => entries,
    };
    let mut resolution = Resolution::new(ref_digest, pinned_tag, entries, platforms);
    while let Some(entry) = resolution.next().cloned() {
        match describe(documents, &entry).await {
            Ok(Described::Image(image)) => resolution.described(*image),
            Ok(Described::Index(entries)) => resolution.nested(&entry.digest, &entries)?,
            Err(Problem::Image(error)) => resolution.refused(&entry.digest, error)?,
            Err(problem) => return Err(problem),
        }
    }
    Ok(resolution.finish()?)
}

/// What an entry of an index is.
enum Described {
    Image(Box<ImageDescription>),
    Index(Vec<IndexEntry>),
}

async fn describe(documents: &Documents<'_>, entry: &Descriptor) -> Result<Described, Problem> {
    let digest = &entry.digest;
    let (document, _) = documents
        .document(digest.as_str(), Some(digest), Some(entry.size))
        .await?;
    match document {
        Document::Index(entries) => Ok(Described::Index(entries)),
        Document::Image(manifest) => {
            let config = documents.config(&manifest).await?;
            let image = ImageDescription::new(digest, &manifest, config);
            Ok(Described::Image(Box::new(image)))
        }
    }
}

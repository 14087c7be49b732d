//! How a local image is named, as in skopeo.

use std::fmt;
use std::path::PathBuf;

use model::Digest;

/// An image in local files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// `oci:DIR[:TAG|@DIGEST]`: an OCI image layout. Without a tag or digest it must have exactly one image.
    OciLayout {
        /// The directory with `index.json`.
        dir: PathBuf,
        /// The entry's name.
        tag: Option<String>,
        /// The entry's digest.
        digest: Option<Digest>,
    },
    /// `docker-archive:FILE[:NAME]`: an archive of `docker save`. Without a name it must have exactly one image.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// The image's name with its tag, as in `RepoTags`.
        name: Option<String>,
    },
}

/// A text that begins with `oci:` or `docker-archive:` has no path, or a malformed digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image: write `oci:DIR[:TAG|@DIGEST]` or `docker-archive:FILE[:NAME]`")]
pub struct ImageSourceError(pub String);

impl ImageSource {
    /// The source that a text names; `None` for a text that begins with neither `oci:` nor `docker-archive:`, such as
    /// a reference to a registry.
    ///
    /// # Errors
    /// The path is missing, or the digest is malformed.
    pub fn parse(text: &str) -> Result<Option<Self>, ImageSourceError> {
        let wrong = || ImageSourceError(text.to_owned());
        let path = |path: &str| match path {
            "" => Err(wrong()),
            path => Ok(PathBuf::from(path)),
        };
        // The first colon after the last slash begins the tag, so directories may have colons.
        let split = |rest: &str| -> Result<(PathBuf, Option<String>), ImageSourceError> {
            let name_at = rest.rfind('/').map_or(0, |slash| slash + 1);
            match rest[name_at..].split_once(':') {
                Some((name, tag)) if !tag.is_empty() => {
                    Ok((path(&rest[..name_at + name.len()])?, Some(tag.to_owned())))
                }
                Some(_) => Err(wrong()),
                None => Ok((path(rest)?, None)),
            }
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            if let Some((dir, digest)) = rest.split_once("@sha256:") {
                let digest = format!("sha256:{digest}").parse().map_err(|_| wrong())?;
                return Ok(Some(Self::OciLayout {
                    dir: path(dir)?,
                    tag: None,
                    digest: Some(digest),
                }));
            }
            let (dir, tag) = split(rest)?;
            return Ok(Some(Self::OciLayout {
                dir,
                tag,
                digest: None,
            }));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            // A name has slashes and a tag of its own: it begins at the first colon.
            let (file, name) = match rest.split_once(':') {
                Some((file, name)) if !name.is_empty() => (file, Some(name.to_owned())),
                Some(_) => return Err(wrong()),
                None => (rest, None),
            };
            return Ok(Some(Self::DockerArchive {
                file: path(file)?,
                name,
            }));
        }
        Ok(None)
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OciLayout { dir, tag, digest } => {
                write!(f, "oci:{}", dir.display())?;
                match (tag, digest) {
                    (Some(tag), _) => write!(f, ":{tag}"),
                    (None, Some(digest)) => write!(f, "@{digest}"),
                    (None, None) => Ok(()),
                }
            }
            Self::DockerArchive { file, name } => {
                write!(f, "docker-archive:{}", file.display())?;
                match name {
                    Some(name) => write!(f, ":{name}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn local_images_are_named_as_in_skopeo() {
        let layout = |dir: &str, tag: Option<&str>| ImageSource::OciLayout {
            dir: dir.into(),
            tag: tag.map(str::to_owned),
            digest: None,
        };
        let archive = |file: &str, name: Option<&str>| ImageSource::DockerArchive {
            file: file.into(),
            name: name.map(str::to_owned),
        };
        let hex = "0".repeat(64);
        let by_digest = format!("oci:dir@sha256:{hex}");
        for (text, expected) in [
            ("oci:dir", layout("dir", None)),
            ("oci:/a:b/dir:v1", layout("/a:b/dir", Some("v1"))),
            ("docker-archive:x.tar", archive("x.tar", None)),
            (
                "docker-archive:x.tar:a/b:v1",
                archive("x.tar", Some("a/b:v1")),
            ),
            (
                by_digest.as_str(),
                ImageSource::OciLayout {
                    dir: "dir".into(),
                    tag: None,
                    digest: Some(format!("sha256:{hex}").parse().unwrap()),
                },
            ),
        ] {
            let source = ImageSource::parse(text).unwrap().unwrap();
            assert_eq!(source, expected);
            assert_eq!(source.to_string(), text);
        }
        let reference = ImageSource::parse("docker://localhost:5000/a:v1");
        assert_eq!(reference, Ok(None));
        for bad in [
            "oci:",
            "oci:dir:",
            "oci:dir@sha256:xyz",
            "docker-archive:",
            "docker-archive:x:",
        ] {
            assert!(ImageSource::parse(bad).is_err(), "{bad}");
        }
    }
}

//! `platform image`: inspects an image, or builds its root disk, without a cluster.

mod disk;
mod inspect;

use std::fmt;
use std::str::FromStr;

use clap::Subcommand;
use image_source::ImageSource;
use oci::Reference;

use crate::failure::Failure;

/// Look at an image, or build its root disk, without a cluster
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Arguments),
    Disk(disk::Arguments),
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Inspect(arguments) => inspect::run(arguments).await,
        Command::Disk(arguments) => disk::run(arguments).await,
    }
}

/// The image that the user named.
#[derive(Debug, Clone)]
pub(crate) enum ImageName {
    /// In a registry.
    Registry(Reference),
    /// In local files.
    Local(ImageSource),
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match ImageSource::parse(text).map_err(|error| error.to_string())? {
            Some(source) => Ok(Self::Local(source)),
            None => Ok(Self::Registry(
                text.parse()
                    .map_err(|e: oci::ReferenceError| e.to_string())?,
            )),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Local(source) => source.fmt(f),
        }
    }
}

/// The names of images, for the help.
const REFERENCES: &str = "\
An image is named as docker and skopeo name it:
  registry.example.com/shop:v7       in a registry; also docker://…, and …@sha256:…
  oci:DIR[:TAG|@DIGEST]              in an OCI image layout
  docker-archive:FILE[:NAME]         in a file of `docker save`

For private registries the credentials of `docker login` or `podman login` of this user are used.";

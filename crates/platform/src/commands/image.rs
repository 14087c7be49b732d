//! `platform image`: one image, without a cluster.

mod disk;
mod inspect;

use clap::Subcommand;

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

/// How images are named, for the help.
const REFERENCES: &str = "\
An image is named as docker and skopeo name it:
  registry.example.com/shop:v7       in a registry; also docker://…, and …@sha256:…
  oci:DIR[:TAG|@DIGEST]              in an OCI image layout
  docker-archive:FILE[:NAME]         in a file of `docker save`

Private registries are asked with what `docker login` or `podman login` left here.";

//! `platform images`: the image caches of the nodes.

use api::user::ImageRow;
use clap::Args;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform images
  platform images --format json | jq 'map(.cached.size_bytes) | add'

Each line is a root disk that a node built from an image. A disk that instances use stays, and
so do those of the last releases; the others go, the longest unused first, when the node's
cache is over its budget (`platform node --image-cache`).";

/// List the images in the nodes' caches: size, last use, who needs them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let images = arguments.cluster.connect()?.images().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::IMAGES, &images);
    }
    if images.is_empty() {
        note("no node that is online has an image in its cache");
        return Ok(());
    }
    Ok(table(&images).print()?)
}

fn table(images: &[ImageRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["NODE", "IMAGE", "DIGEST", "SIZE", "LAST USED", "USED BY"]);
    for row in images {
        let cached = &row.cached;
        let used_by = match (cached.instances, cached.pinned) {
            (0, false) => "-".to_owned(),
            (0, true) => "the last releases".to_owned(),
            (1, _) => "1 instance".to_owned(),
            (instances, _) => format!("{instances} instances"),
        };
        table.row([
            row.node_name.clone(),
            format!("{}/{}", cached.image.registry, cached.image.repository),
            cached.image.digest.short().to_owned(),
            units::size(cached.size_bytes),
            units::age(now, cached.last_used),
            used_by,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn case_a_table_fits_its_terminal_with_long_repositories() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let row: ImageRow = serde_json::from_value(json!({
            "node": "n1", "node_name": "a-name-of-a-machine-in-some-rack.example.com",
            "cached": {
                "image": {
                    "registry": "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
                    "repository": "a-team/with/a/long/path/to/its/shop", "digest": digest,
                },
                "size_bytes": 1023_u64 << 20, "last_used": 0, "instances": 0, "pinned": true,
            },
        }))
        .unwrap();
        for width in [80, 100] {
            output::fits(&table(std::slice::from_ref(&row)), width);
        }
    }
}

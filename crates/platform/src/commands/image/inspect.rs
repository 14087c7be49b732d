//! `platform image inspect`: describes an image without fetching its layers.

// ring: the two commands on an image share how its name is given.

use clap::Args;
use model::image::ImageConfig;
use oci::{ImageDescription, ImageLimits, Platform, Resolved};

use super::{ImageName, REFERENCES};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, one_line};
use crate::printed::{DescribedImage, ImageLayer, InspectedImage, OfferedImage};
use crate::registry_access::RegistryArguments;
use crate::units;

/// Show an image's digests, platforms, config and layers
#[derive(Debug, Args)]
#[command(after_help = REFERENCES)]
pub(crate) struct Arguments {
    /// The image
    #[arg(value_name = "REF")]
    image: ImageName,
    /// Only this platform, such as `linux/arm64` [default: all; in text, this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    registries: RegistryArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let wanted: Vec<Platform> = arguments.platform.into_iter().collect();
    let reference = arguments.image.to_string();
    let resolved = match arguments.image {
        ImageName::Registry(reference) => {
            let registry = arguments.registries.client()?;
            registry.resolve(&reference, &wanted).await?
        }
        ImageName::Local(source) => {
            let resolve = move || image_source::resolve(&source, &wanted, &ImageLimits::default());
            tokio::task::spawn_blocking(resolve).await??
        }
    };
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::IMAGE, &inspected(reference, &resolved));
    }
    output::line(format!("reference  {reference}"))?;
    let kind = if resolved.is_index {
        "an index"
    } else {
        "an image"
    };
    output::line(format!("digest     {} ({kind})", resolved.ref_digest))?;
    for (platform, digest) in &resolved.offered {
        output::line(format!("platform   {platform}  {digest}"))?;
    }
    let Some((key, image)) = shown(&resolved) else {
        return Ok(());
    };
    output::line(format!("\n{key}"))?;
    for (name, value) in config_lines(&image.config) {
        output::line(format!("  {name:<12}{}", one_line(&value)))?;
    }
    let size = units::size(image.size_bytes);
    let layer = if image.layers.len() == 1 {
        "layer"
    } else {
        "layers"
    };
    output::line(format!(
        "\n{} {layer}, {size} as stored",
        image.layers.len()
    ))?;
    Ok(layers(image).print()?)
}

/// The image for this machine's architecture, else the first image.
fn shown(resolved: &Resolved) -> Option<(&String, &ImageDescription)> {
    let host = Platform::host().architecture;
    let mut images = resolved.images.iter();
    let own = images
        .clone()
        .find(|(_, image)| image.config.architecture == host);
    own.or_else(|| images.next())
}

fn inspected(reference: String, resolved: &Resolved) -> InspectedImage {
    let offered = resolved.offered.iter();
    let images = resolved.images.iter();
    InspectedImage {
        reference,
        digest: resolved.ref_digest.clone(),
        is_index: resolved.is_index,
        platforms: offered
            .map(|(platform, digest)| OfferedImage {
                platform: platform.to_string(),
                digest: digest.clone(),
            })
            .collect(),
        images: images
            .map(|(key, image)| {
                let layers = image.layers.iter().map(|layer| ImageLayer {
                    digest: layer.digest.clone(),
                    size_bytes: layer.size,
                    compression: layer.compression.to_string(),
                    diff_id: layer.diff_id.clone(),
                });
                let described = DescribedImage {
                    digest: image.digest.clone(),
                    size_bytes: image.size_bytes,
                    config: image.config.clone(),
                    layers: layers.collect(),
                };
                (key.clone(), described)
            })
            .collect(),
    }
}

/// The settings of the config, named as in a Dockerfile. Absent ones are left out.
fn config_lines(config: &ImageConfig) -> Vec<(&'static str, String)> {
    let words = |words: &[String]| match words {
        [] => String::new(),
        words => serde_json::to_string(words).unwrap_or_default(),
    };
    let mut lines = vec![
        ("entrypoint", words(&config.entrypoint)),
        ("cmd", words(&config.cmd)),
        ("user", config.user.clone()),
        ("workdir", config.working_dir.clone()),
        ("stopsignal", config.stop_signal.clone()),
        ("expose", config.exposed_ports.join(", ")),
        ("volume", config.volumes.join(", ")),
    ];
    lines.extend(config.env.iter().map(|variable| ("env", variable.clone())));
    let labels = config.labels.iter();
    lines.extend(labels.map(|(name, value)| ("label", format!("{name}={value}"))));
    lines.retain(|(_, value)| !value.is_empty());
    lines
}

fn layers(image: &ImageDescription) -> Table {
    let mut table = Table::new(["LAYER", "DIGEST", "SIZE", "COMPRESSION"]);
    for (number, layer) in (1..).zip(&image.layers) {
        table.row([
            number.to_string(),
            layer.digest.to_string(),
            units::size(layer.size),
            layer.compression.to_string(),
        ]);
    }
    table
}

//! `platform image disk`: the root disk of an image, as a node would build it.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model::Digest;
use registry::{BlobCache, FetchProgress, Platform, Registry, Source, SourceImage};
use root_disk::{BuiltDisk, Layer};
use serde::Serialize;

use super::REFERENCES;
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, note};
use crate::registry_access::RegistryArguments;
use crate::units;

/// Without a terminal, progress is told this often.
const TELL_INTERVAL: Duration = Duration::from_secs(2);
/// The spinner turns this often.
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// Build the read-only ext4 root disk of an image, the same to the byte as a node builds it
#[derive(Debug, Args)]
#[command(after_help = REFERENCES)]
pub(crate) struct Arguments {
    /// The image
    #[arg(value_name = "REF")]
    image: Source,
    /// Where the disk is written; a file that is there is replaced once the disk is whole
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// For which platform, such as `linux/arm64` [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    registries: RegistryArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    reference: String,
    /// Of what the reference names: an index or an image.
    image_digest: Digest,
    /// Of the image manifest that was built.
    resolved_digest: Digest,
    platform: String,
    output: PathBuf,
    /// Of the disk, holes included.
    size_bytes: u64,
    /// Of the disk.
    sha256: Digest,
    /// In all.
    seconds: f64,
    fetch_seconds: f64,
    build_seconds: f64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let registry = arguments.registries.client()?;
    let platform = arguments.platform.unwrap_or_else(Platform::host);
    if arguments.output.is_dir() {
        return Err(Failure::new(format!(
            "{} is a folder; name a file in it",
            arguments.output.display()
        )));
    }
    // Beside the output, so that the disk gets there by a rename; all of it goes when this ends.
    let folder = folder_of(&arguments.output);
    let work = tempfile::Builder::new()
        .prefix(".platform-image-")
        .tempdir_in(folder)
        .with_context(|| format!("cannot work in {}", folder.display()))?;

    let begun = Instant::now();
    let building = async {
        let fetched = fetch(&registry, &arguments.image, &platform, work.path()).await?;
        let fetch_seconds = begun.elapsed().as_secs_f64();
        let disk = build(&fetched, work.path(), &arguments.output).await?;
        Ok::<_, Failure>((fetched, fetch_seconds, disk))
    };
    let (fetched, fetch_seconds, disk) = tokio::select! {
        built = building => built?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new("interrupted; nothing was left behind"));
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    print(
        &Report {
            reference: arguments.image.to_string(),
            image_digest: fetched.ref_digest,
            resolved_digest: fetched.image.digest,
            platform: platform.to_string(),
            output: arguments.output,
            size_bytes: disk.size_bytes,
            sha256: disk.sha256,
            seconds,
            fetch_seconds,
            build_seconds: seconds - fetch_seconds,
        },
        arguments.format.format,
    )
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

async fn fetch(
    registry: &Registry,
    image: &Source,
    platform: &Platform,
    work: &Path,
) -> Result<SourceImage, Failure> {
    let blobs = BlobCache::open(work)?;
    let progress = Progress::new();
    let fetched = registry
        .fetch_source(image, platform, &blobs, &|step| progress.show(step))
        .await;
    progress.end();
    Ok(fetched?)
}

async fn build(fetched: &SourceImage, work: &Path, output: &Path) -> Result<BuiltDisk, Failure> {
    let spinner = std::io::stderr().is_terminal().then(|| {
        let spinner = ProgressBar::new_spinner().with_message("building the root disk");
        spinner.enable_steady_tick(SPINNER_TICK);
        spinner
    });
    if spinner.is_none() {
        note("building the root disk");
    }
    let layers: Vec<Layer> = fetched.image.layers.iter().map(layer).collect();
    let (unfinished, finished) = (work.join("disk.ext4"), output.to_owned());
    let built = tokio::task::spawn_blocking(move || {
        let disk = root_disk::build(&layers, &unfinished, &root_disk::Limits::default())?;
        std::fs::rename(&unfinished, &finished)
            .and_then(|()| std::fs::File::open(folder_of(&finished))?.sync_all())
            .with_context(|| format!("cannot write {}", finished.display()))?;
        Ok::<_, anyhow::Error>(disk)
    })
    .await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    Ok(built??)
}

/// A layer of the registry's as the disk's builder takes it.
fn layer(blob: &registry::LayerBlob) -> Layer {
    Layer {
        path: blob.path.clone(),
        digest: blob.digest.clone(),
        diff_id: blob.diff_id.clone(),
        compression: match blob.compression {
            registry::Compression::None => root_disk::Compression::None,
            registry::Compression::Gzip => root_disk::Compression::Gzip,
            registry::Compression::Zstd => root_disk::Compression::Zstd,
        },
    }
}

fn print(report: &Report, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(report);
    }
    output::line(format!("image digest     {}", report.image_digest))?;
    output::line(format!(
        "resolved digest  {} ({})",
        report.resolved_digest, report.platform
    ))?;
    output::line(format!("disk             {}", report.output.display()))?;
    output::line(format!(
        "size             {} ({} bytes)",
        units::size(report.size_bytes),
        report.size_bytes
    ))?;
    output::line(format!("sha256           {}", report.sha256.hex()))?;
    output::line(format!(
        "seconds          {:.2} (fetched in {:.2}, built in {:.2})",
        report.seconds, report.fetch_seconds, report.build_seconds
    ))?;
    Ok(())
}

/// How far a fetch is: a bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    told: Mutex<Instant>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is fixed and right; the default one would do as well.
            if let Ok(style) = ProgressStyle::with_template(
                "  {msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}",
            ) {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            told: Mutex::new(Instant::now()),
        }
    }

    fn show(&self, step: FetchProgress) {
        let layers = format!(
            "fetched {} of {} layers",
            step.done_layers, step.total_layers
        );
        if let Some(bar) = &self.bar {
            bar.set_length(step.total_bytes);
            bar.set_position(step.done_bytes);
            bar.set_message(layers);
            return;
        }
        let Ok(mut told) = self.told.lock() else {
            return;
        };
        let done = step.done_layers == step.total_layers;
        if done || told.elapsed() >= TELL_INTERVAL {
            *told = Instant::now();
            let (there, all) = (units::size(step.done_bytes), units::size(step.total_bytes));
            note(format!("{layers}, {there} of {all}"));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

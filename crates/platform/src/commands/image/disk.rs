//! `platform image disk`: builds the root disk of an image as a node builds it.

// ring: the two commands on an image share how its name is given.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model::Digest;
use oci::{ImageLimits, LayerFile, LocalImage, Platform};
use registry::{BlobCache, FetchEvent};
use root_disk::BuiltDisk;

use super::{ImageName, REFERENCES};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, note, one_line};
use crate::printed::RootDiskReport;
use crate::registry_access::RegistryArguments;
use crate::units;

/// Time between two lines of progress, where there is no terminal.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Time between two frames of the spinner.
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// Build the read-only ext4 root disk of an image, the same to the byte as a node builds it
#[derive(Debug, Args)]
#[command(after_help = REFERENCES)]
pub(crate) struct Arguments {
    /// The image
    #[arg(value_name = "REF")]
    image: ImageName,
    /// The file to write; an existing file is replaced once the disk is whole
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The platform, such as `linux/arm64` [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    registries: RegistryArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let platform = arguments.platform.unwrap_or_else(Platform::host);
    if arguments.output.is_dir() {
        return Err(Failure::new(format!(
            "{} is a folder; name a file in it",
            arguments.output.display()
        )));
    }
    // Beside the output, so that a rename puts the disk there. Removed with everything in it at the end.
    let folder = folder_of(&arguments.output);
    let work = tempfile::Builder::new()
        .prefix(".platform-image-")
        .tempdir_in(folder)
        .with_context(|| format!("cannot work in {}", folder.display()))?;

    let begun = Instant::now();
    let building = async {
        let fetched = fetch(
            &arguments.image,
            &arguments.registries,
            &platform,
            work.path(),
        )
        .await?;
        let fetch_seconds = begun.elapsed().as_secs_f64();
        let disk = build(&fetched.image, work.path(), &arguments.output).await?;
        Ok::<_, Failure>((fetched, fetch_seconds, disk))
    };
    let (fetched, fetch_seconds, disk) = tokio::select! {
        built = building => built?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new("interrupted; no file was left behind"));
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    print(
        &RootDiskReport {
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

/// An image whose layers are on this machine.
struct Fetched {
    /// Digest of the index or manifest that the reference names.
    ref_digest: Digest,
    image: LocalImage,
}

/// Fetches the image from its registry into `work`; a local image stays where it is.
async fn fetch(
    image: &ImageName,
    registries: &RegistryArguments,
    platform: &Platform,
    work: &Path,
) -> Result<Fetched, Failure> {
    match image {
        ImageName::Registry(reference) => {
            let registry = registries.client()?;
            let platforms = std::slice::from_ref(platform);
            let resolved = registry.resolve(reference, platforms).await?;
            let image = reference.pinned_image(&resolved.by_arch[&platform.key()]);
            let blobs = BlobCache::open(work)?;
            let progress = Progress::new();
            let image = registry
                .fetch_image(&image, &blobs, &|event| progress.show(event))
                .await;
            progress.end();
            Ok(Fetched {
                ref_digest: resolved.ref_digest,
                image: image?,
            })
        }
        ImageName::Local(source) => {
            let (source, platform) = (source.clone(), platform.clone());
            let open = move || image_source::open(&source, &platform, &ImageLimits::default());
            let opened = tokio::task::spawn_blocking(open).await??;
            Ok(Fetched {
                ref_digest: opened.ref_digest,
                image: opened.image,
            })
        }
    }
}

async fn build(image: &LocalImage, work: &Path, output: &Path) -> Result<BuiltDisk, Failure> {
    let spinner = std::io::stderr().is_terminal().then(|| {
        let spinner = ProgressBar::new_spinner().with_message("building the root disk");
        spinner.enable_steady_tick(SPINNER_TICK);
        spinner
    });
    if spinner.is_none() {
        note("building the root disk");
    }
    let layers: Vec<LayerFile> = image.layers.clone();
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

fn print(report: &RootDiskReport, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(json_shapes::ROOT_DISK, report);
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

/// Shows the progress of a fetch: as a bar on a terminal, as lines elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    reported: Mutex<Instant>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is valid; with the default one the bar would work as well.
            if let Ok(style) = ProgressStyle::with_template(
                "  {msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}",
            ) {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            reported: Mutex::new(Instant::now()),
        }
    }

    fn show(&self, event: FetchEvent) {
        let step = match event {
            FetchEvent::Progress(step) => step,
            FetchEvent::Waiting { reason, pause } => {
                let seconds = pause.as_secs_f64().ceil();
                let text = format!("{}; asking again in {seconds} s", one_line(&reason));
                match &self.bar {
                    Some(bar) => bar.suspend(|| note(text)),
                    None => note(text),
                }
                return;
            }
        };
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
        let Ok(mut reported) = self.reported.lock() else {
            return;
        };
        let done = step.done_layers == step.total_layers;
        if done || reported.elapsed() >= REPORT_INTERVAL {
            *reported = Instant::now();
            let (arrived, all) = (units::size(step.done_bytes), units::size(step.total_bytes));
            note(format!("{layers}, {arrived} of {all}"));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

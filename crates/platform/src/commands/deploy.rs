//! `platform deploy`: a new release, watched until it serves.

use std::path::PathBuf;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use api::user::{DeployRequest, DeployResponse, RegistryLoginRequest, RolloutPhase, RolloutStatus};
use api_client::ApiClient;
use clap::Args;
use model::EnvKey;
use oci::Reference;

use crate::commands::{manifest_file, ps};
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, note, one_line};
use crate::registry_access::docker_login;
use crate::rollout;
use crate::units::parse_duration;

const GOOD: Style = AnsiColor::Green.on_default().bold();

const EXAMPLES: &str = "\
Examples:
  platform deploy --image registry.example.com/shop@sha256:…
  platform deploy --image 127.0.0.1:5000/shop:v7 --env test     the tag is resolved once, now
  platform deploy shop.toml --image … --no-wait

Ends with 0 when every process type has all its instances healthy on the new release and no
old one is left; with 1 when the rollout failed or was reverted, with the reason and the last
lines the app wrote. The rollout happens in the cluster: interrupting this command does not
stop it.";

/// Deploy an image with a manifest, and watch it until it serves
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The manifest; `-` is standard input
    #[arg(value_name = "FILE", default_value = manifest_file::DEFAULT)]
    file: PathBuf,
    /// The image, by digest or by tag [default: the image in the manifest]
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// First log the cluster in to the image's registry with what `docker login` left here
    #[arg(long)]
    with_registry_auth: bool,
    /// Return as soon as the release is recorded
    #[arg(long)]
    no_wait: bool,
    /// How long to watch
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let valid = manifest_file::read_valid(&arguments.file)?;
    let manifest = valid.manifest;
    if let Some(app) = arguments
        .which
        .app
        .as_ref()
        .filter(|app| **app != manifest.app)
    {
        return Err(Failure::new(format!(
            "`{}` is the manifest of {}, not of {app}",
            arguments.file.display(),
            manifest.app
        )));
    }
    let image = arguments.image.or(manifest.image).ok_or_else(|| {
        Failure::new("no image was given")
            .hint("name one with --image, or in the manifest: `image = …`")
    })?;
    let env = EnvKey {
        app: manifest.app,
        env: arguments.which.env_or_default()?,
    };
    let client = arguments.cluster.connect()?;
    if arguments.with_registry_auth {
        let registry = image.parse::<Reference>()?.registry().to_owned();
        let secret = docker_login(&registry).await?;
        client
            .registry_login(&RegistryLoginRequest { registry, secret })
            .await?;
    }
    let request = DeployRequest {
        manifest: valid.text,
        image,
    };
    let release = client.deploy(&env, &request).await?;
    let json = arguments.format.format == Format::Json;
    if !json {
        announce(&env, &request.image, &release);
    }
    if arguments.no_wait {
        return if json { output::json(&release) } else { Ok(()) };
    }

    let watching = rollout::watch(&client, &env, release.release, arguments.timeout);
    let status = tokio::select! {
        status = watching => status?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(format!("interrupted; the rollout of {} goes on", release.release))
                .hint("`platform ps` shows how"));
        }
    };
    if json {
        output::json(&serde_json::json!({ "release": release, "rollout": status }))?;
    }
    conclude(&client, &env, &status, json).await
}

fn announce(env: &EnvKey, image: &str, release: &DeployResponse) {
    note(format!("release {} of {env}", release.release));
    match &release.pinned_tag {
        Some(tag) => note(format!(
            "image {image}: the tag `{}` is {} now, which every instance will run",
            one_line(tag),
            release.image_ref_digest
        )),
        None => note(format!("image {image}")),
    }
    for (arch, digest) in &release.resolved_image_digest {
        if *digest != release.image_ref_digest {
            note(format!("on {arch}: {digest}"));
        }
    }
    for warning in &release.warnings {
        note(format!("warning: {}", one_line(warning)));
    }
}

/// Says how it ended.
async fn conclude(
    client: &ApiClient,
    env: &EnvKey,
    status: &RolloutStatus,
    json: bool,
) -> Result<(), Failure> {
    let release = status.release;
    match status.phase {
        RolloutPhase::Done => {
            if !json {
                note(format!("{GOOD}release {release} of {env} is live{GOOD:#}"));
                ps::table(&status.instances).print()?;
                say_hosts(client, env).await;
            }
            Ok(())
        }
        RolloutPhase::Superseded => Err(Failure::new(format!(
            "release {release} of {env} was overtaken by a newer one"
        ))),
        RolloutPhase::Reverted => {
            let back_to = status.previous.map_or_else(
                || "the one before".to_owned(),
                |previous| previous.to_string(),
            );
            Err(Failure::from(
                anyhow::Error::msg(rollout::explain(status)).context(format!(
                    "release {release} of {env} could not become healthy; {back_to} serves"
                )),
            )
            .hint(look_on(env)))
        }
        RolloutPhase::Failed | RolloutPhase::Rolling => Err(Failure::from(
            anyhow::Error::msg(rollout::explain(status)).context(format!(
                "release {release} of {env} could not become healthy"
            )),
        )
        .hint(look_on(env))),
    }
}

fn look_on(env: &EnvKey) -> String {
    format!(
        "`platform logs --app {} --env {}` has the whole log",
        env.app, env.env
    )
}

/// The hosts that lead to the app; not worth a failure.
async fn say_hosts(client: &ApiClient, env: &EnvKey) {
    let Ok(envs) = client.envs().await else {
        return;
    };
    let hosts = envs
        .into_iter()
        .find(|row| row.env == *env)
        .map(|row| row.hosts);
    for host in hosts.unwrap_or_default() {
        note(format!("edges answer for http://{host}/"));
    }
}

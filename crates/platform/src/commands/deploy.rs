//! `platform deploy`: a new release, watched until it serves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use api::user::{DeployRequest, DeployResponse, RegistryLoginRequest, RolloutPhase, RolloutStatus};
use api_client::{ApiClient, ClientError};
use clap::Args;
use model::{EnvKey, OrgName, ProcessName, route_name};
use oci::Reference;

use crate::commands::{manifest_file, ps};
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, note, one_line};
use crate::printed::Deployed;
use crate::registry_access::docker_login;
use crate::rollout;
use crate::units::parse_duration;

const GOOD: Style = AnsiColor::Green.on_default().bold();

const EXAMPLES: &str = "\
Examples:
  platform deploy --image registry.example.com/shop@sha256:…
  platform deploy --image 127.0.0.1:5000/shop:v7 --env test     the tag is resolved once, now
  platform deploy --image … --only web                          the worker goes on as it is
  platform deploy shop.toml --image … --no-wait

Instances of a process type that the release does not change stay: the same image, command, variables,
secrets, resources and so on. A release that fails reverts what it changed.

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
    /// Deploy this process type only, others stay as they are; repeatable
    #[arg(long, value_name = "PROCESS")]
    only: Vec<ProcessName>,
    /// First log the cluster in to the image's registry with what `docker login` left here
    #[arg(long)]
    with_registry_auth: bool,
    /// The org of a new app; it is needed where you may deploy in several
    #[arg(long, value_name = "ORG", env = "PLATFORM_ORG", hide_env_values = true)]
    org: Option<OrgName>,
    /// Only where this is the newest release of the env (`v7`; 0: it has none yet): nobody has deployed meanwhile
    #[arg(long, value_name = "RELEASE", value_parser = parse_newest)]
    if_newest: Option<u32>,
    /// Return as soon as the release is recorded
    #[arg(long)]
    no_wait: bool,
    /// How long to watch, a registry that asks to wait included
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
    refuse_local(&image)?;
    let env = EnvKey {
        app: manifest.app,
        env: arguments.which.env_or_default()?,
    };
    let client = arguments.cluster.connect()?.in_org(arguments.org);
    if arguments.with_registry_auth {
        let registry = image.parse::<Reference>()?.registry().to_owned();
        let secret = docker_login(&registry).await?;
        client
            .registry_login(&RegistryLoginRequest { registry, secret })
            .await?;
    }
    let request = DeployRequest {
        only: arguments.only.into_iter().collect(),
        manifest: valid.text,
        image,
    };
    let release = record(
        &client,
        &env,
        &request,
        arguments.if_newest,
        arguments.timeout,
    )
    .await?;
    let json = arguments.format.format == Format::Json;
    if !json {
        announce(&env, &request.image, &release);
    }
    let timeout = (!arguments.no_wait).then_some(arguments.timeout);
    follow(&client, &env, &release, timeout, json).await
}

/// Watches a release that was recorded until its rollout ended, for as long as `timeout`, where there is one, and says how.
pub(crate) async fn follow(
    client: &ApiClient,
    env: &EnvKey,
    release: &DeployResponse,
    timeout: Option<Duration>,
    json: bool,
) -> Result<(), Failure> {
    let Some(timeout) = timeout else {
        return if json {
            output::json(json_shapes::RECORDED, release)
        } else {
            Ok(())
        };
    };
    let watching = rollout::watch(client, env, release.release, timeout);
    let status = tokio::select! {
        status = watching => status?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(format!("interrupted; the rollout of {} goes on", release.release))
                .hint("`platform ps` shows how"));
        }
    };
    if json {
        output::json(
            json_shapes::DEPLOYED,
            &Deployed {
                release: release.clone(),
                rollout: status.clone(),
            },
        )?;
    }
    conclude(client, env, &status, json).await
}

fn parse_newest(text: &str) -> Result<u32, &'static str> {
    let digits = text.strip_prefix('v').unwrap_or(text);
    digits
        .parse()
        .map_err(|_| "a release is a number: `3` or `v3`; 0 is none")
}

/// How skopeo names images that are in no registry.
const LOCAL_TRANSPORTS: [&str; 6] = [
    "oci:",
    "oci-archive:",
    "dir:",
    "docker-archive:",
    "docker-daemon:",
    "containers-storage:",
];

/// Refuses an image of this machine: nodes pull theirs from a registry. `oci:v1` is the image `oci` of Docker Hub
/// where nothing of that name is here.
pub(crate) fn refuse_local(image: &str) -> Result<(), Failure> {
    let Some(transport) = LOCAL_TRANSPORTS.iter().find(|t| image.starts_with(**t)) else {
        return Ok(());
    };
    let name = &image[transport.len()..];
    let file = name.split([':', '@']).next().unwrap_or(name);
    let is_path = name.contains('/') || file.is_empty() || std::path::Path::new(file).exists();
    if is_path || !matches!(*transport, "oci:" | "dir:") {
        return Err(Failure::new(format!(
            "`{}` is an image on this machine, and nodes pull images from a registry",
            one_line(image)
        ))
        .hint(format!(
            "push it first: `skopeo copy {} docker://REGISTRY/NAME:TAG`, then deploy REGISTRY/NAME:TAG",
            one_line(image)
        )));
    }
    Ok(())
}

/// After so long without an answer, the user is told what is waited for, and again at each [`SAY_AGAIN`].
const SAY_FIRST: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_secs(15);

/// Has the release recorded. The server asks the image's registry first, which may take its time or ask to wait.
async fn record(
    client: &ApiClient,
    env: &EnvKey,
    request: &DeployRequest,
    newest: Option<u32>,
    timeout: Duration,
) -> Result<DeployResponse, Failure> {
    let begun = Instant::now();
    let image = one_line(&request.image);
    loop {
        let deploying = client.deploy_after(env, request, newest);
        tokio::pin!(deploying);
        let mut patience = SAY_FIRST;
        let result = loop {
            match tokio::time::timeout(patience, &mut deploying).await {
                Ok(result) => break result,
                Err(_) => {
                    let seconds = begun.elapsed().as_secs();
                    note(format!(
                        "the server asks the registry for {image} ({seconds} s)"
                    ));
                    patience = SAY_AGAIN;
                }
            }
        };
        let error = match result {
            Ok(release) => return Ok(release),
            Err(error) => error,
        };
        let left = timeout.saturating_sub(begun.elapsed());
        let Some(wait) = error.retry_after().filter(|wait| *wait < left) else {
            return Err(ClientError::into(error));
        };
        // Two requests in a row are kept apart whatever the registry asks for.
        let wait = wait.max(Duration::from_secs(1));
        note(format!(
            "{}; asking again in {} s",
            one_line(&error.to_string()),
            wait.as_secs_f64().ceil()
        ));
        tokio::time::sleep(wait).await;
    }
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
                if status.instances.is_empty() {
                    note(
                        "nothing of it runs, because all its processes are scaled to 0: `platform scale PROCESS=N`",
                    );
                } else {
                    ps::table(&status.instances).print()?;
                }
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
            let why = rollout::explain(status);
            let hint = what_to_do(env, &why);
            Err(Failure::from(anyhow::Error::msg(why).context(format!(
                "release {release} of {env} could not become healthy; the env goes back to {back_to}"
            )))
            .hint(hint))
        }
        RolloutPhase::Failed | RolloutPhase::Rolling => {
            let why = rollout::explain(status);
            let hint = what_to_do(env, &why);
            Err(Failure::from(anyhow::Error::msg(why).context(format!(
                "release {release} of {env} could not become healthy"
            )))
            .hint(hint))
        }
    }
}

/// Where there is more to read, and what a last line asks for that only the manifest can give.
fn what_to_do(env: &EnvKey, why: &str) -> String {
    let mut hint = format!(
        "`platform logs --app {} --env {}` has the whole log",
        env.app, env.env
    );
    // s6-overlay says "can only run as pid 1". tini only warns of it.
    let wants_pid_1 = |line: &str| {
        let line = line.to_ascii_lowercase();
        line.contains("as pid 1") && !line.contains("tini")
    };
    if why.lines().any(wants_pid_1) {
        hint.push_str("; `init = \"image\"` in the manifest's process makes its program PID 1");
    }
    hint
}

/// The hosts that lead to the app; not worth a failure.
async fn say_hosts(client: &ApiClient, env: &EnvKey) {
    let Ok(Some(row)) = client.env(env).await else {
        return;
    };
    for host in row.hosts {
        note(
            match (route_name::tls(&host), route_name::tcp_port(&host)) {
                (Some((host, port)), _) => {
                    format!("edges listen at port {port} for who names {host} by TLS")
                }
                (None, Some(port)) => format!("edges listen at port {port}"),
                (None, None) => format!("edges answer for http://{host}/"),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn case_a_program_that_insists_on_being_pid_1_is_told_the_key() {
        let env = EnvKey {
            app: "shop".parse().unwrap(),
            env: "prod".parse().unwrap(),
        };
        let hint = |line: &str| what_to_do(&env, &format!("exit code 100\n  | {line}"));
        let key = "`init = \"image\"`";
        assert!(hint("s6-overlay-suexec: fatal: can only run as pid 1").contains(key));
        for other in [
            "[WARN  tini (7)] Tini is not running as PID 1",
            "listening on port 80",
        ] {
            assert!(!hint(other).contains(key), "{other}");
        }
    }

    #[test]
    fn case_an_image_of_this_machine_is_not_looked_up_in_a_registry() {
        for image in [
            "oci:./dir",
            "oci:/tmp/dir:v1",
            "oci:src",
            "oci:",
            "docker-archive:image.tar",
            "docker-daemon:nginx:latest",
            "containers-storage:shop",
            "oci-archive:x.tar",
            "dir:./x",
        ] {
            assert!(refuse_local(image).is_err(), "{image}");
        }
        for image in [
            "oci:v1",
            "nginx",
            "127.0.0.1:5000/oci:v1",
            "docker://ghcr.io/a/b:v1",
            "dir:latest",
        ] {
            assert!(refuse_local(image).is_ok(), "{image}");
        }
    }
}

//! Which cluster a command talks to, and which app and env it is about.

use std::path::{Path, PathBuf};

use api_client::{ApiClient, ClientConfig};
use clap::Args;
use model::{AppName, EnvKey, EnvName};

use crate::commands::manifest_file;
use crate::failure::Failure;

/// Where `platform server` puts the first admin's configuration by default.
const SERVERS_OWN: &str = "/var/lib/platform/server/client.json";
/// The env where none is named.
const DEFAULT_ENV: &str = "prod";

/// Which cluster.
#[derive(Debug, Args)]
pub(crate) struct ClusterArguments {
    /// Where the cluster is and who you are [default: ~/.config/platform/config.json, else that
    /// of a server on this machine]
    #[arg(
        long,
        value_name = "FILE",
        env = "PLATFORM_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
}

impl ClusterArguments {
    /// A client for this user.
    pub(crate) fn connect(&self) -> Result<ApiClient, Failure> {
        Ok(ApiClient::user(&self.load()?)?)
    }

    fn load(&self) -> Result<ClientConfig, Failure> {
        if let Some(path) = &self.config {
            return Ok(ClientConfig::load(path)?);
        }
        let candidates: Vec<PathBuf> = users_own()
            .into_iter()
            .chain([PathBuf::from(SERVERS_OWN)])
            .collect();
        match candidates.iter().find(|path| path.exists()) {
            Some(path) => Ok(ClientConfig::load(path)?),
            None => {
                let places: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
                Err(Failure::new(format!(
                    "no cluster is known: there is no {}",
                    places.join(" and no ")
                ))
                .hint(
                    "copy `client.json` from the server's data folder to one of these places, or \
                     name it with --config or $PLATFORM_CONFIG",
                ))
            }
        }
    }
}

/// `~/.config/platform/config.json`.
fn users_own() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")))?;
    Some(folder.join("platform/config.json"))
}

/// Which app and env.
#[derive(Debug, Args)]
pub(crate) struct EnvArguments {
    /// The app [default: the app in ./platform.toml]
    #[arg(long, value_name = "APP")]
    pub(crate) app: Option<AppName>,
    /// The env of the app [default: prod]
    #[arg(long, value_name = "ENV")]
    pub(crate) env: Option<EnvName>,
}

impl EnvArguments {
    /// The app that was named, or that the manifest in the current folder names.
    pub(crate) fn app_at_hand(&self) -> Result<Option<AppName>, Failure> {
        match &self.app {
            Some(app) => Ok(Some(app.clone())),
            None => manifest_file::app_of(Path::new(manifest_file::DEFAULT)),
        }
    }

    /// The env that was named, or the default one.
    pub(crate) fn env_or_default(&self) -> Result<EnvName, Failure> {
        match &self.env {
            Some(env) => Ok(env.clone()),
            None => Ok(DEFAULT_ENV.parse()?),
        }
    }

    /// The env to act on: named, or by the manifest at hand, or the only one there is.
    pub(crate) async fn choose(&self, client: &ApiClient) -> Result<EnvKey, Failure> {
        if let Some(app) = self.app_at_hand()? {
            let env = self.env_or_default()?;
            return Ok(EnvKey { app, env });
        }
        let mut envs: Vec<EnvKey> = client
            .envs()
            .await?
            .into_iter()
            .map(|row| row.env)
            .collect();
        envs.retain(|key| self.env.as_ref().is_none_or(|env| key.env == *env));
        match envs.as_slice() {
            [] => Err(Failure::new("nothing is deployed")
                .hint("`platform deploy --image REF` deploys the app of ./platform.toml")),
            [only] => Ok(only.clone()),
            several => {
                let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(Failure::new(format!(
                    "which app? There are several: {}",
                    names.join(", ")
                ))
                .hint("name it with --app, or go to a folder with its platform.toml"))
            }
        }
    }
}

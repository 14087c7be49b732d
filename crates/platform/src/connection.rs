//! Which cluster a command talks to, and which app and env it is about.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use api::user::EnvsQuery;
use api_client::{ApiClient, ClientConfig};
use clap::Args;
use clap::builder::OsStringValueParser;
use model::{AppName, EnvKey, EnvName};

use crate::commands::manifest_file;
use crate::contexts::{ContextName, Contexts, no_such_context};
use crate::failure::Failure;
use crate::output;

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
        hide_env_values = true,
        value_parser = OsStringValueParser::new()
    )]
    config: Option<OsString>,
    /// Which of the clusters that `platform contexts` lists [default: the one that is chosen there]
    #[arg(
        long,
        value_name = "CONTEXT",
        env = "PLATFORM_CONTEXT",
        hide_env_values = true
    )]
    context: Option<String>,
}

impl ClusterArguments {
    /// The context that is named. A variable that is set to nothing names none.
    fn context(&self) -> Result<Option<ContextName>, Failure> {
        let named = self.context.as_deref();
        let is_nothing = |name: &&str| {
            name.is_empty() && std::env::var_os("PLATFORM_CONTEXT").is_some_and(|v| v.is_empty())
        };
        let named = named.filter(|name| !is_nothing(name));
        named
            .map(|name| {
                let read = name.parse();
                read.map_err(|error| Failure::new(format!("context `{name}`: {error}")))
            })
            .transpose()
    }

    /// A client for this user.
    pub(crate) fn connect(&self) -> Result<ApiClient, Failure> {
        let path = self.path()?;
        let config = ClientConfig::load(&path)?;
        ApiClient::user(&config).map_err(|error| {
            let context = format!("cannot use the client configuration {}", path.display());
            Failure::from(anyhow::Error::new(error).context(context)).hint(
                "the server writes such a file, `client.json`, to its data folder: copy it again",
            )
        })
    }

    /// The file that is named, unless a context is. The command line counts before variables.
    fn config_file(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(path) = self.config.as_ref().filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let is_variable = |name: &str, value: &std::ffi::OsStr| {
            std::env::var_os(name).is_some_and(|variable| variable == value)
        };
        let Some(context) = self.context()? else {
            return Ok(Some(PathBuf::from(path)));
        };
        let by_variable = (
            is_variable("PLATFORM_CONFIG", path),
            is_variable("PLATFORM_CONTEXT", context.to_string().as_ref()),
        );
        match by_variable {
            (true, false) => Ok(None),
            (false, true) => Ok(Some(PathBuf::from(path))),
            (true, true) => Err(Failure::new(
                "$PLATFORM_CONFIG and $PLATFORM_CONTEXT are both set",
            )
            .hint("unset one of them, or name what is meant with --config or --context")),
            (false, false) => Err(Failure::new("--config and --context are both given")
                .hint("one of them says which cluster is meant")),
        }
    }

    /// The file with the configuration. A variable that is set to nothing counts as absent.
    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = self.config_file()? {
            return Ok(path);
        }
        let contexts = Contexts::of_user();
        if let Some(contexts) = &contexts {
            let chosen = match self.context()? {
                Some(name) => Some(name),
                None => contexts.current()?,
            };
            if let Some(name) = chosen {
                let file = contexts.file(&name);
                return if file.exists() {
                    Ok(file)
                } else {
                    Err(no_such_context(&name))
                };
            }
        }
        let candidates: Vec<PathBuf> = (contexts.iter())
            .map(Contexts::before)
            .chain([PathBuf::from(SERVERS_OWN)])
            .collect();
        match candidates.iter().find(|path| path.exists()) {
            Some(path) => Ok(path.clone()),
            None => {
                let places: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
                Err(Failure::new(format!(
                    "no cluster is known: there is no {}",
                    places.join(" and no ")
                ))
                .hint(
                    "`platform login` keeps one; or copy `client.json` from the server's data folder to one \
                     of these places, or name it with --config or $PLATFORM_CONFIG",
                ))
            }
        }
    }
}

/// The apps and envs that a list is about.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// Absent: of every app.
    pub(crate) app: Option<AppName>,
    /// Absent: of every env.
    pub(crate) env: Option<EnvName>,
}

impl Scope {
    /// Whether what belongs to this env is listed.
    pub(crate) fn keeps(&self, key: &EnvKey) -> bool {
        self.app.as_ref().is_none_or(|app| key.app == *app)
            && self.env.as_ref().is_none_or(|env| key.env == *env)
    }

    /// Says that there are no `what`. A failure where that is because there is no such app or env.
    pub(crate) async fn nothing(&self, client: &ApiClient, what: &str) -> Result<(), Failure> {
        // Those of its app tell what there is instead.
        let query = EnvsQuery {
            app: self.app.clone(),
            ..EnvsQuery::default()
        };
        let names: Vec<EnvKey> = client
            .find_envs(&query)
            .await?
            .into_iter()
            .map(|row| row.env)
            .collect();
        output::note(self.explain(what, &names)?);
        Ok(())
    }

    fn explain(&self, what: &str, there: &[EnvKey]) -> Result<String, Failure> {
        let here = there.iter().any(|key| self.keeps(key));
        let of_app: Vec<_> = there
            .iter()
            .filter(|key| self.app.as_ref() == Some(&key.app))
            .map(|key| key.env.as_str())
            .collect();
        let missing = match (&self.app, &self.env) {
            (None, None) => return Ok(format!("no {what}")),
            (Some(app), Some(env)) if here => return Ok(format!("no {what} of {app}/{env}")),
            (Some(app), None) if here => return Ok(format!("no {what} of {app}")),
            (None, Some(env)) if here => return Ok(format!("no {what} in envs named {env}")),
            (Some(app), Some(env)) if !of_app.is_empty() => {
                let envs = of_app.join(", ");
                format!("{app} has no env {env}; there are: {envs}")
            }
            (Some(app), _) => format!("there is no app {app}"),
            (None, Some(env)) => format!("no app has an env {env}"),
        };
        Err(Failure::new(missing).hint("`platform envs` lists the apps and envs there are"))
    }
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

    /// What a list is about: the app at hand, or every one.
    pub(crate) fn scope(&self, all: bool) -> Result<Scope, Failure> {
        let app = if all { None } else { self.app_at_hand()? };
        Ok(Scope {
            app,
            env: self.env.clone(),
        })
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
        let query = EnvsQuery {
            env: self.env.clone(),
            ..EnvsQuery::default()
        };
        let rows = client.find_envs(&query).await?.into_iter();
        let envs: Vec<EnvKey> = rows.map(|row| row.env).collect();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn case_a_list_says_whether_it_is_empty_or_its_app_is_not_there() {
        let there = [("shop", "prod"), ("shop", "test"), ("blog", "prod")];
        let there = there.map(|(app, env)| EnvKey {
            app: app.parse().unwrap(),
            env: env.parse().unwrap(),
        });
        let explain = |app: &str, env: &str| {
            let scope = Scope {
                app: app.parse().ok(),
                env: env.parse().ok(),
            };
            match scope.explain("instances", &there) {
                Ok(said) => said,
                Err(Failure::Because { error, .. }) => format!("error: {error}"),
                Err(other) => panic!("{other:?}"),
            }
        };
        assert_eq!(explain("", ""), "no instances");
        assert_eq!(explain("shop", ""), "no instances of shop");
        assert_eq!(explain("shop", "test"), "no instances of shop/test");
        assert_eq!(explain("", "prod"), "no instances in envs named prod");
        assert_eq!(explain("nope", ""), "error: there is no app nope");
        assert_eq!(explain("nope", "prod"), "error: there is no app nope");
        assert_eq!(explain("", "nope"), "error: no app has an env nope");
        let other = "error: shop has no env nope; there are: prod, test";
        assert_eq!(explain("shop", "nope"), other);
    }
}

//! `platform secrets`: bundles of files that only the app sees.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use api::user::{MAX_SECRET_BYTES, SecretRow, SetSecretsRequest};
use clap::{Args, Subcommand};
use model::{EnvKey, ProcessName};

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform secrets set database PASSWORD=@password.txt HOST=db.internal
  pass show shop/db | platform secrets set database PASSWORD=@-
  platform secrets set database PASSWORD=@new.txt --deploy     and run with it
  platform secrets list

A process type with `secrets = [\"database\"]` in its manifest has the bundle's files under
/run/secrets/database/, readable by its user only.";

/// Set, list and delete secret bundles of an env
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Command {
    Set(SetArguments),
    List(ListArguments),
    Delete(DeleteArguments),
}

/// Set files of a bundle; the others stay. Makes a new version, which later releases run with
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SetArguments {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    bundle: ProcessName,
    /// `KEY=VALUE`, or `KEY=@FILE` for the content of a file, `KEY=@-` for standard input. A value on
    /// the command line can be seen by other users of this machine
    #[arg(value_name = "KEY=VALUE", value_parser = parse)]
    files: Vec<(String, Value)>,
    /// Terminate this key out of the new version
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
    /// Deploy the release that is wanted once more, so that it runs with the new version
    #[arg(long)]
    deploy: bool,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// List the bundles: the names of their files, never the contents
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Delete a bundle that no release needs any more
#[derive(Debug, Args)]
pub(crate) struct DeleteArguments {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    bundle: ProcessName,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
}

/// Where a secret comes from.
#[derive(Clone)]
enum Value {
    Given(String),
    File(String),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given(..)"),
            Self::File(path) => write!(f, "File({path})"),
        }
    }
}

fn parse(text: &str) -> Result<(String, Value), String> {
    // What was meant to be a value is not repeated.
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or("write a name and a value: `PASSWORD=...`, `PASSWORD=@FILE`")?;
    let value = match value.strip_prefix('@') {
        Some(path) => Value::File(path.to_owned()),
        None => Value::Given(value.to_owned()),
    };
    Ok((key.to_owned(), value))
}

impl Value {
    fn read(self) -> Result<Vec<u8>, Failure> {
        let path = match self {
            Self::Given(text) => return Ok(text.into_bytes()),
            Self::File(path) => path,
        };
        let cannot = |error: std::io::Error| Failure::new(format!("cannot read {path}: {error}"));
        let mut content = Vec::new();
        // One byte more than allowed is enough to be refused.
        let limit = MAX_SECRET_BYTES as u64 + 1;
        if path == "-" {
            std::io::stdin().take(limit).read_to_end(&mut content)
        } else {
            std::fs::File::open(Path::new(&path))
                .map_err(cannot)?
                .take(limit)
                .read_to_end(&mut content)
        }
        .map_err(cannot)?;
        Ok(content)
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Set(arguments) => set(arguments).await,
        Command::List(arguments) => list(arguments).await,
        Command::Delete(arguments) => delete(arguments).await,
    }
}

/// Never an app that was only guessed.
fn env_of(which: &EnvArguments) -> Result<EnvKey, Failure> {
    let Some(app) = which.app_at_hand()? else {
        return Err(Failure::new("which app? There is no ./platform.toml")
            .hint("name it with --app, or go to a folder with its platform.toml"));
    };
    let env = which.env_or_default()?;
    Ok(EnvKey { app, env })
}

async fn set(arguments: SetArguments) -> Result<(), Failure> {
    let env = env_of(&arguments.which)?;
    if arguments.files.is_empty() && arguments.unset.is_empty() {
        return Err(Failure::new("nothing was given to set")
            .hint("write a name and a value: `PASSWORD=...`, `PASSWORD=@FILE`"));
    }
    let mut files = BTreeMap::new();
    for (key, value) in arguments.files {
        if files.insert(key.clone(), value.read()?).is_some() {
            return Err(Failure::new(format!("`{key}` is given twice")));
        }
    }
    let client = arguments.cluster.connect()?;
    let request = SetSecretsRequest {
        set: files,
        unset: arguments.unset,
    };
    let bundle = arguments.bundle.as_str();
    let row = client.set_secrets(&env, bundle, &request).await?;
    let release = if arguments.deploy {
        Some(client.redeploy(&env).await?.release)
    } else {
        None
    };
    if arguments.format.format == Format::Json {
        return output::json(&serde_json::json!({ "bundle": row, "release": release }));
    }
    let SecretRow { name, version, .. } = &row;
    note(format!(
        "the bundle {name} of {env} has version {version} now"
    ));
    note(match (release, row.live) {
        (Some(release), _) => {
            format!("release {release} rolls out with it; `platform ps` shows how")
        }
        (None, Some(live)) => format!(
            "what runs has version {live} and keeps it; the next release has the new one: deploy, or say \
             --deploy here"
        ),
        (None, None) => format!(
            "a process type has it with `secrets = [\"{name}\"]` in its manifest, under /run/secrets/{name}/"
        ),
    });
    Ok(())
}

async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let env = arguments.which.choose(&client).await?;
    let rows = client.secrets(&env).await?;
    if arguments.format.format == Format::Json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        note(format!(
            "{env} has no secret bundles; `platform secrets set` makes one"
        ));
        return Ok(());
    }
    let now = units::now();
    let mut table = Table::new(["BUNDLE", "VERSION", "LIVE", "SET", "FILES"]);
    for row in rows {
        table.row([
            row.name,
            row.version.to_string(),
            row.live
                .map_or_else(|| "-".to_owned(), |live| live.to_string()),
            format!("{} ago", units::age(now, row.created_at)),
            row.files.join(" "),
        ]);
    }
    table.print()?;
    Ok(())
}

async fn delete(arguments: DeleteArguments) -> Result<(), Failure> {
    let env = env_of(&arguments.which)?;
    let client = arguments.cluster.connect()?;
    let bundle = arguments.bundle.as_str();
    client.delete_secrets(&env, bundle).await?;
    note(format!("the bundle {bundle} of {env} is gone"));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn values_are_given_or_read_and_never_repeated() {
        let (key, value) = parse("PASSWORD=a=b").unwrap();
        assert_eq!(
            (key.as_str(), value.clone().read().unwrap()),
            ("PASSWORD", b"a=b".to_vec())
        );
        assert!(!format!("{value:?}").contains("a=b"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0, 255]).unwrap();
        let (_, value) = parse(&format!("KEY=@{}", file.path().display())).unwrap();
        assert_eq!(value.read().unwrap(), [0, 255]);
        for wrong in ["hunter2", "=hunter2"] {
            assert!(!parse(wrong).unwrap_err().contains("hunter2"));
        }
        assert!(parse("KEY=@/does/not/exist").unwrap().1.read().is_err());
    }
}

//! `platform secrets`: bundles of files that only the app sees.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use api::user::{MAX_SECRET_BYTES, SecretRow, SetSecretsRequest};
use clap::{Args, Subcommand};
use model::{BundleName, EnvKey, OrgName};

use crate::connection::{ClusterArguments, EnvArguments, Scope};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note, one_line};
use crate::printed::{Removed, SecretsSet};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform secrets set database PASSWORD=@password.txt HOST=db.internal
  pass show shop/db | platform secrets set database PASSWORD=@-
  platform secrets set database PASSWORD=@new.txt --deploy     and run with it
  platform secrets set database PASSWORD=@@home                the value is `@home`
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
    bundle: BundleName,
    /// `KEY=VALUE`, or `KEY=@FILE` for the content of a file, `KEY=@-` for standard input; write `@@` for
    /// a value that begins with `@`. A value on the command line can be seen by other users of this
    /// machine
    #[arg(value_name = "KEY=VALUE", value_parser = parse)]
    files: Vec<(String, Value)>,
    /// Remove this key from the new version
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
    /// Deploy the release that is wanted once more, so that it runs with the new version
    #[arg(long)]
    deploy: bool,
    /// The org of a new app; it is needed where you may deploy in several
    #[arg(long, value_name = "ORG", env = "PLATFORM_ORG", hide_env_values = true)]
    org: Option<OrgName>,
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

/// Delete a bundle that nothing which runs needs; older releases that had it cannot be gone back to then
#[derive(Debug, Args)]
pub(crate) struct DeleteArguments {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    bundle: BundleName,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
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
        Some("") => {
            return Err(format!(
                "`{key}=@` names no file; write `@@` for a value that is `@`"
            ));
        }
        // `@@home` is `@home`.
        Some(text) if text.starts_with('@') => Value::Given(text.to_owned()),
        Some(path) => Value::File(path.to_owned()),
        None => Value::Given(value.to_owned()),
    };
    Ok((key.to_owned(), value))
}

impl Value {
    /// The content of the file `key` of a bundle.
    fn read(self, key: &str) -> Result<Vec<u8>, Failure> {
        let (place, content) = match self {
            Self::Given(text) => (None, text.into_bytes()),
            Self::File(path) => {
                let place = match path.as_str() {
                    "-" => "standard input".to_owned(),
                    path => format!("`{path}`"),
                };
                let content = read_bounded(&path).map_err(|error| {
                    let failure = Failure::new(format!("cannot read {place}: {error}"));
                    // A password that begins so, probably.
                    if path != "-" && error.kind() == std::io::ErrorKind::NotFound {
                        return failure.hint(format!(
                            "`@` names a file; a value that begins with `@` has two: `{key}=@@…`"
                        ));
                    }
                    failure
                })?;
                (Some(place), content)
            }
        };
        if content.len() > MAX_SECRET_BYTES {
            let where_from = place.map_or_else(String::new, |place| format!(" in {place}"));
            return Err(Failure::new(format!(
                "the content of `{key}`{where_from} is too large: a file of a bundle has at most {MAX_SECRET_BYTES} \
                 bytes ({} KiB)",
                MAX_SECRET_BYTES / 1024
            )));
        }
        Ok(content)
    }

    /// Where it is read from, for messages about it.
    fn source(&self) -> Option<&str> {
        match self {
            Self::Given(_) => None,
            Self::File(path) if path == "-" => Some("standard input"),
            Self::File(path) => Some(path),
        }
    }
}

/// A file's content, `-` for standard input. One byte more than a secret may have is enough to be refused.
fn read_bounded(path: &str) -> std::io::Result<Vec<u8>> {
    let limit = MAX_SECRET_BYTES as u64 + 1;
    let mut content = Vec::new();
    if path == "-" {
        std::io::stdin().take(limit).read_to_end(&mut content)?;
    } else {
        let file = std::fs::File::open(Path::new(path))?;
        file.take(limit).read_to_end(&mut content)?;
    }
    Ok(content)
}

/// The contents of the files, by name; messages about them go to `said`.
fn read_all(
    files: Vec<(String, Value)>,
    mut said: impl FnMut(String),
) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let mut contents = BTreeMap::new();
    let mut from_stdin: Option<String> = None;
    for (key, value) in files {
        if contents.contains_key(&key) {
            return Err(Failure::new(format!("`{key}` is given twice")));
        }
        if matches!(&value, Value::File(path) if path == "-")
            && let Some(first) = from_stdin.replace(key.clone())
        {
            return Err(Failure::new(format!(
                "`{first}` and `{key}` are both to be read from standard input, which ends with the first"
            ))
            .hint("name a file for one of them: `KEY=@FILE`"));
        }
        let source = value.source().map(str::to_owned);
        let content = value.read(&key)?;
        if let Some(source) = source
            && content.ends_with(b"\n")
        {
            let source = one_line(&source);
            said(format!(
                "`{key}` from {source} ends with a newline, which is kept (`printf %s` and `head -c -1` leave it out)"
            ));
        }
        contents.insert(key, content);
    }
    Ok(contents)
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
    let files = read_all(arguments.files, note)?;
    let client = arguments.cluster.connect()?.in_org(arguments.org);
    let request = SetSecretsRequest {
        set: files,
        unset: arguments.unset,
    };
    let bundle = arguments.bundle.as_str();
    let row = client.set_secrets(&env, bundle, &request).await?;
    let release = if !arguments.deploy {
        None
    } else if row.live.is_some() {
        Some(client.redeploy(&env).await?.release)
    } else {
        return Err(Failure::new(format!(
            "the bundle {bundle} of {env} has version {} now; nothing was deployed, because no process type of the \
             release that is wanted has the bundle",
            row.version
        ))
        .hint(format!(
            "name it in the manifest, `secrets = [\"{bundle}\"]`, and deploy that"
        )));
    };
    if arguments.format.format == Format::Json {
        return output::json(
            json_shapes::SECRETS_SET,
            &SecretsSet {
                bundle: row,
                release,
            },
        );
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
    if rows.is_empty() {
        let scope = Scope {
            app: Some(env.app),
            env: Some(env.env),
        };
        scope.nothing(&client, "secret bundles").await?;
        note("`platform secrets set` makes one");
    }
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::SECRETS, &rows);
    }
    if rows.is_empty() {
        return Ok(());
    }
    table(rows).print()?;
    Ok(())
}

fn table(rows: Vec<SecretRow>) -> Table {
    let now = units::now();
    let header = ["BUNDLE", "VERSION", "LIVE", "SET", "FILES"];
    let mut table = Table::new(header).wrapping_last();
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
    table
}

async fn delete(arguments: DeleteArguments) -> Result<(), Failure> {
    let env = env_of(&arguments.which)?;
    let client = arguments.cluster.connect()?;
    let bundle = arguments.bundle.as_str();
    client.delete_secrets(&env, bundle).await?;
    let sentence = format!("the bundle {bundle} of {env} is gone");
    let removed = Removed::bundle(bundle, env);
    output::json_or_note(arguments.format, json_shapes::REMOVED, &removed, sentence)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn values_are_given_or_read_and_never_repeated() {
        let (key, value) = parse("PASSWORD=a=b").unwrap();
        assert_eq!(
            (key.as_str(), value.clone().read("KEY").unwrap()),
            ("PASSWORD", b"a=b".to_vec())
        );
        assert!(!format!("{value:?}").contains("a=b"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0, 255]).unwrap();
        let (_, value) = parse(&format!("KEY=@{}", file.path().display())).unwrap();
        assert_eq!(value.read("KEY").unwrap(), [0, 255]);
        for wrong in ["hunter2", "=hunter2"] {
            assert!(!parse(wrong).unwrap_err().contains("hunter2"));
        }
        let missing = parse("KEY=@/does/not/exist").unwrap().1;
        assert!(missing.read("KEY").is_err());
    }

    fn text(failure: Failure) -> String {
        match failure {
            Failure::Because { error, .. } => error.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn case_a_table_fits_its_terminal_with_many_files() {
        let long = "a-name-of-63-characters-which-is-the-longest-that-a-label-can-be";
        let row = SecretRow {
            name: long[..63].to_owned(),
            version: 1234,
            files: vec!["A_LONG_NAME_OF_A_FILE".to_owned(); 9],
            live: Some(1233),
            created_at: model::Timestamp(0),
        };
        for width in [80, 100] {
            output::fits(&table(vec![row.clone()]), width);
        }
    }

    #[test]
    fn case_a_value_that_begins_with_an_at_sign_can_be_given() {
        let given = |text: &str| match parse(text).unwrap().1 {
            Value::Given(text) => text,
            Value::File(path) => panic!("a file: {path}"),
        };
        assert_eq!(given("KEY=@@bc12"), "@bc12");
        assert_eq!(given("KEY=@@"), "@");
        assert_eq!(given("KEY=@@@x"), "@@x");
        assert_eq!(given("KEY=a@b"), "a@b");
        assert!(parse("KEY=@").unwrap_err().contains("write `@@`"));
        let taken_for_a_file = parse("KEY=@bc12").unwrap().1.read("KEY").unwrap_err();
        let hint = match taken_for_a_file {
            Failure::Because { hint, .. } => hint.unwrap(),
            other => panic!("{other:?}"),
        };
        assert!(hint.contains("`KEY=@@…`"), "{hint}");
    }

    #[test]
    fn case_what_is_read_is_exact_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let file = parse(&format!("KEY=@{}", path.display())).unwrap();
            let mut said = Vec::new();
            let contents = read_all(vec![file], |text| said.push(text)).map_err(text);
            (
                contents.map(|mut contents| contents.remove("KEY").unwrap()),
                said,
            )
        };
        let (content, said) = read("key", &[0xff, 0, b'\n', 0xfe]);
        assert_eq!(
            (content.unwrap(), said.len()),
            (vec![0xff, 0, b'\n', 0xfe], 0)
        );
        let (content, said) = read("password", b"pw\n");
        assert_eq!(content.unwrap(), b"pw\n");
        assert!(said[0].contains("password ends with a newline"), "{said:?}");
        let (refused, _) = read("large", &vec![b'x'; 2 << 20]);
        let refused = refused.unwrap_err();
        assert!(
            refused.contains(
                "large` is too large: a file of a bundle has at most 65536 bytes (64 KiB)"
            ),
            "{refused}"
        );
        let given = parse(&format!("KEY={}", "x".repeat(MAX_SECRET_BYTES + 1))).unwrap();
        let refused = text(read_all(vec![given], |_| ()).unwrap_err());
        assert!(
            refused.starts_with("the content of `KEY` is too large"),
            "{refused}"
        );
        let folder = parse(&format!("KEY=@{}", dir.path().display())).unwrap();
        let refused = text(read_all(vec![folder], |_| ()).unwrap_err());
        assert!(refused.contains("Is a directory"), "{refused}");
        let twice = ["A=@-", "B=@-"].map(|file| parse(file).unwrap());
        let refused = text(read_all(twice.into(), |_| ()).unwrap_err());
        assert!(refused.contains("`A` and `B`"), "{refused}");
    }
}

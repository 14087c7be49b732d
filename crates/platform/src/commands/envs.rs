//! `platform envs`: the envs of the cluster.

use api::user::{EnvRow, EnvsQuery, RolloutPhase};
use clap::Args;
use model::{AppName, EnvName, ReleaseNumber};

use crate::connection::{ClusterArguments, Scope};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::watch::{self, WatchArguments};

const EXAMPLES: &str = "\
Examples:
  platform envs --app shop
  platform envs --watch
  platform envs --format json | jq -r '.[].hosts[]'";

/// List the envs: the release that serves, processes and hosts, and what waits
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Those of this app
    #[arg(long, value_name = "APP")]
    app: Option<AppName>,
    /// Those of this name
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    #[command(flatten)]
    watch: WatchArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let query = EnvsQuery {
        app: arguments.app.clone(),
        env: arguments.env.clone(),
        ..EnvsQuery::default()
    };
    if arguments.watch.watch {
        let look = async || Ok(client.find_envs(&query).await?);
        return watch::show(json_shapes::ENVS, arguments.format.format, look, table).await;
    }
    let envs = client.find_envs(&query).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::ENVS, &envs);
    }
    if envs.is_empty() {
        let scope = Scope {
            app: arguments.app,
            env: arguments.env,
        };
        if scope.app.is_some() || scope.env.is_some() {
            return scope.nothing(&client, "envs").await;
        }
        note("nothing is deployed");
        return Ok(());
    }
    table(&envs).print()?;
    Ok(())
}

fn table(envs: &[EnvRow]) -> Table {
    let mut table = Table::new(["ENV", "RELEASE", "ROLLOUT", "READY", "HOSTS"]).wrapping_last();
    for row in envs {
        let serving = serving(row);
        table.row([
            row.env.to_string(),
            serving.map_or_else(|| "-".to_owned(), |release| release.to_string()),
            if row.release.0 == 0 {
                "unreadable".to_owned()
            } else if serving == Some(row.release) {
                phase(row.phase).to_owned()
            } else {
                format!("{} {}", row.release, phase(row.phase))
            },
            processes(row),
            row.hosts.join(" "),
        ]);
        for waits in &row.waits {
            table.note(waits);
        }
        // What waits says it too, where the env itself can be read.
        let unsaid = |record: &&String| !row.waits.iter().any(|waits| waits.contains(*record));
        if let Some(record) = row.unreadable.as_ref().filter(unsaid) {
            table.note(&format!("nothing of it is changed: {record}"));
        }
    }
    table
}

/// The release that serves: the newest one, or that which a failed rollout went back to.
fn serving(row: &EnvRow) -> Option<ReleaseNumber> {
    match row.phase {
        RolloutPhase::Reverted | RolloutPhase::Failed => row.serving,
        RolloutPhase::Rolling | RolloutPhase::Done | RolloutPhase::Superseded => Some(row.release),
    }
}

/// `web 2/2, worker 1/1`: ready of wanted.
fn processes(row: &EnvRow) -> String {
    let each: Vec<String> = row
        .processes
        .iter()
        // What is ready beyond what is wanted is terminated next.
        .map(|(process, (wanted, ready))| format!("{process} {}/{wanted}", ready.min(wanted)))
        .collect();
    each.join(", ")
}

fn phase(phase: RolloutPhase) -> &'static str {
    match phase {
        RolloutPhase::Rolling => "rolling",
        RolloutPhase::Done => "done",
        RolloutPhase::Failed => "failed",
        RolloutPhase::Reverted => "reverted",
        RolloutPhase::Superseded => "superseded",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::expect;
    use serde_json::{Value, json};

    use super::*;

    fn row(app: &str, phase: &str, serving: Value, hosts: &[&str]) -> EnvRow {
        serde_json::from_value(json!({
            "env": { "app": app, "env": "prod" }, "release": 2, "serving": serving, "phase": phase,
            "processes": { "web": [2, 2], "worker": [0, 1] }, "hosts": hosts,
        }))
        .unwrap()
    }

    #[test]
    fn case_the_release_is_the_one_that_serves() {
        let rows = [
            row("done", "done", json!(2), &["shop.example.com"]),
            row("reverted", "reverted", json!(1), &[]),
            row("failed", "failed", Value::Null, &[]),
        ];
        let plain = table(&rows).render(None);
        expect![[r"
            ENV            RELEASE  ROLLOUT      READY                HOSTS
            done/prod      v2       done         web 2/2, worker 0/0  shop.example.com
            reverted/prod  v1       v2 reverted  web 2/2, worker 0/0
            failed/prod    -        v2 failed    web 2/2, worker 0/0
        "]]
        .assert_eq(&anstream::adapter::strip_str(&plain).to_string());
    }

    #[test]
    fn case_an_env_that_cannot_be_read_is_named_once() {
        let record = "the record of env bad/prod cannot be read: a scale is damaged";
        let mut unknown = row("bad", "failed", Value::Null, &["bad.example.com"]);
        unknown.release = ReleaseNumber(0);
        unknown.processes.clear();
        unknown.unreadable = Some(record.to_owned());
        let mut frozen = row("half", "done", json!(2), &[]);
        frozen.unreadable = Some(record.to_owned());
        frozen.waits = vec![format!("nothing of it is changed: {record}")];
        let plain = table(&[unknown, frozen]).render(None);
        expect![[r"
            ENV        RELEASE  ROLLOUT     READY                HOSTS
            bad/prod   -        unreadable                       bad.example.com
                nothing of it is changed: the record of env bad/prod cannot be read: a scale is damaged
            half/prod  v2       done        web 2/2, worker 0/0
                nothing of it is changed: the record of env bad/prod cannot be read: a scale is damaged
        "]]
        .assert_eq(&anstream::adapter::strip_str(&plain).to_string());
    }

    #[test]
    fn case_a_table_fits_its_terminal_with_many_hosts() {
        let long = "a-name-of-63-characters-which-is-the-longest-that-a-label-can-be";
        let host = format!("{}.{}.example.com", &long[..63], &long[..63]);
        let hosts = [host.as_str(), "shop.example.com", &host];
        let row = row(&long[..63], "reverted", json!(1), &hosts);
        for width in [80, 100] {
            output::fits(&table(std::slice::from_ref(&row)), width);
        }
    }
}

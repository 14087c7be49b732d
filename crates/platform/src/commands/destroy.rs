//! `platform destroy`: ends an env.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use model::EnvKey;

use crate::commands::volumes;
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, note};
use crate::printed::Destroyed;

/// How long to wait for the last instance to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(120);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(300);

const EXAMPLES: &str = "\
Examples:
  platform destroy                              the env prod of ./platform.toml's app; asks first
  platform destroy --app shop --env test --yes

Its volumes stay unless --volumes deletes them. The logs of its instances stay on their nodes for
7 days: `platform logs --app APP --env ENV` shows them.";

/// Stop all instances of an env and delete its releases, routes and secrets
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Do not wait until the last instance is gone
    #[arg(long)]
    no_wait: bool,
    /// Delete its volumes as well, with all that is in them; else a later env of the same name has
    /// them again
    #[arg(long, conflicts_with = "no_wait")]
    volumes: bool,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    // Never an app that was only guessed.
    let Some(app) = arguments.which.app_at_hand()? else {
        return Err(Failure::new("which app? There is no ./platform.toml")
            .hint("name it: `platform destroy --app APP --env ENV`"));
    };
    let env = EnvKey {
        app,
        env: arguments.which.env_or_default()?,
    };
    if !arguments.yes {
        confirm(&env, arguments.volumes)?;
    }
    client.destroy(&env).await?;
    let waits_until = Instant::now() + GONE_TIMEOUT;
    while !arguments.no_wait && client.env(&env).await?.is_some() {
        if Instant::now() > waits_until {
            return Err(Failure::new(format!(
                "instances of {env} are still there after {} s",
                GONE_TIMEOUT.as_secs()
            ))
            .hint("it goes on without us; `platform ps` shows which"));
        }
        tokio::time::sleep(POLL).await;
    }
    let deleted = if arguments.volumes {
        volumes::delete_all_of(&client, &env).await?
    } else {
        0
    };
    if arguments.format.format == Format::Json {
        return output::json(
            json_shapes::DESTROYED,
            &Destroyed {
                env,
                gone: !arguments.no_wait,
            },
        );
    }
    note(if arguments.no_wait {
        format!("{env} is being destroyed")
    } else {
        match deleted {
            0 => format!("{env} is gone"),
            _ => format!("{env} is gone, and its {deleted} volume(s) with it"),
        }
    });
    if !arguments.volumes {
        let kept = client.volumes(Some(&env)).await?.len();
        if kept > 0 {
            note(format!(
                "its {kept} volume(s) are kept; `platform volumes` lists them, `platform volumes delete` \
                 deletes them"
            ));
        }
    }
    Ok(())
}

fn confirm(env: &EnvKey, volumes: bool) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(format!("destroying {env} needs a yes"))
            .hint("say it with --yes where nobody can be asked"));
    }
    let mut prompt = anstream::stderr();
    write!(
        prompt,
        "destroy {env} with all its instances, releases and secrets{}? Type {env} to go on: ",
        if volumes {
            ", and volumes with all that is in them"
        } else {
            ""
        }
    )?;
    prompt.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    confirms(env, answer.trim())
}

/// Whether the answer is the name of the env.
fn confirms(env: &EnvKey, answer: &str) -> Result<(), Failure> {
    if answer == env.to_string() {
        return Ok(());
    }
    let refused = if answer.is_empty() {
        format!("{env} was not destroyed")
    } else {
        let answer = output::one_line(answer);
        format!("{env} was not destroyed: `{answer}` is not its whole name, `{env}`")
    };
    Err(Failure::new(refused))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn case_a_refused_answer_is_told_which_name_was_wanted() {
        let env = EnvKey {
            app: "shop".parse().unwrap(),
            env: "prod".parse().unwrap(),
        };
        assert!(confirms(&env, "shop/prod").is_ok());
        let refused = |answer| match confirms(&env, answer) {
            Err(Failure::Because { error, .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(""), "shop/prod was not destroyed");
        let expected = "shop/prod was not destroyed: `shop` is not its whole name, `shop/prod`";
        assert_eq!(refused("shop"), expected);
    }
}

//! `platform why`: the whole story of an instance, a process type or a node.

use std::fmt::Write as _;

use api::user::RolloutPhase;
use api::why::{Why, WhyQuery, WhyRelease, WhySubject};
use clap::Args;
use model::{AppName, EnvName};

use super::events;
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, one_line};
use crate::units::rfc3339;

const EXAMPLES: &str = "\
Examples:
  platform why 1f0c2b7a          an instance of `platform ps`, also one that is gone
  platform why web               a process type of the app of ./platform.toml
  platform why shop/prod/web     of any app
  platform why box               a node, by its name or its id (n3)

Tells how it is now and since when, why, what comes next or what is waited for, and what happened to it, in
order. Where an instance finds no node, it tells for each kind of node why it takes none.";

/// Tell why an instance, a process type or a node is as it is
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// An instance, a process type (`web`, or `APP/ENV/PROCESS`), or a node
    #[arg(value_name = "SUBJECT")]
    subject: String,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let (app, env) = at_hand(&arguments.which)?;
    let query = WhyQuery {
        subject: arguments.subject,
        app,
        env,
    };
    let why = client.why(&query).await?;
    match arguments.format.format {
        Format::Json => output::json(json_shapes::WHY, &why),
        Format::Text => Ok(output::write(&text(&why))?),
    }
}

/// The env that a process type alone is of, where one is at hand.
fn at_hand(which: &EnvArguments) -> Result<(Option<AppName>, Option<EnvName>), Failure> {
    match which.app_at_hand()? {
        Some(app) => Ok((Some(app), Some(which.env_or_default()?))),
        None => Ok((None, None)),
    }
}

/// The story, for people.
fn text(why: &Why) -> String {
    let mut text = format!("{}: {}\n", subject(&why.subject), one_line(&why.state));
    // Writing to a String cannot fail.
    for reason in &why.reasons {
        let mut lines = reason.lines();
        let _ = writeln!(text, "  {}", one_line(lines.next().unwrap_or_default()));
        for line in lines {
            let _ = writeln!(text, "    {}", one_line(line));
        }
    }
    if let Some(release) = &why.release {
        let _ = writeln!(text, "Release: {}", of_release(release));
    }
    if let Some(node) = &why.node {
        let (name, id, state) = (one_line(&node.name), node.id, &node.state);
        let _ = writeln!(text, "Node: {name} ({id}), {state}");
    }
    section(&mut text, "Next", why.next.iter().map(String::as_str));
    let instances = why.instances.iter().map(|one| {
        let reason = match one.reason.lines().next() {
            None | Some("") => String::new(),
            Some(reason) => format!(": {reason}"),
        };
        format!(
            "{} {}/{} {} {} on {} {}{reason}",
            one.id, one.app, one.env, one.process, one.release, one.node, one.state
        )
    });
    section(&mut text, "Instances", instances);
    section(&mut text, "Events", why.events.iter().map(events::line));
    text
}

fn section(text: &mut String, title: &str, lines: impl Iterator<Item = impl AsRef<str>>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        let _ = writeln!(text, "{title}:");
    }
    for line in lines {
        let _ = writeln!(text, "  {}", one_line(line.as_ref()));
    }
}

fn subject(subject: &WhySubject) -> String {
    match subject {
        WhySubject::Instance {
            id,
            app,
            env,
            process,
        } => format!("instance {id} of {app}/{env} {process}"),
        WhySubject::Process { app, env, process } => format!("process {process} of {app}/{env}"),
        WhySubject::Node { id, name } => format!("node {} ({id})", one_line(name)),
    }
}

fn of_release(release: &WhyRelease) -> String {
    let by = (release.by.as_ref()).map_or_else(String::new, |by| format!(" by {by}"));
    let phase = match release.phase {
        None => "",
        Some(RolloutPhase::Rolling) => ", rolling out",
        Some(RolloutPhase::Done) => ", rolled out",
        Some(RolloutPhase::Failed) => ", failed",
        Some(RolloutPhase::Reverted) => ", reverted",
        Some(RolloutPhase::Superseded) => ", superseded",
    };
    format!(
        "{}, deployed at {}{by}{phase}",
        release.number,
        rfc3339(release.at)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_story_tells_the_state_the_reasons_what_comes_and_what_happened() {
        let why: Why = serde_json::from_value(json!({
            "subject": {"kind": "instance", "id": "0000000a", "app": "shop", "env": "prod", "process": "web"},
            "state": "backoff",
            "reasons": ["it ended: the app ended: exit code 3\u{1b}[2J", "two\nlines"],
            "next": ["next start in 4 s"],
            "release": {"number": 3, "by": "ann", "at": 0, "phase": "rolling"},
            "node": {"id": "n1", "name": "box", "state": "online"},
            "events": [{"number": 1, "at": 0, "by": {"kind": "planner"}, "kind": "instance-scheduled", "app": "shop",
                "env": "prod", "process": "web", "release": 3, "instance": "0000000a", "node": "n1",
                "message": "release v3 on box (n1)"}],
        }))
        .unwrap();
        expect![[r"
            instance 0000000a of shop/prod web: backoff
              it ended: the app ended: exit code 3 [2J
              two
                lines
            Release: v3, deployed at 1970-01-01T00:00:00.000Z by ann, rolling out
            Node: box (n1), online
            Next:
              next start in 4 s
            Events:
              1970-01-01T00:00:00.000Z  instance-scheduled   shop/prod web v3 0000000a: release v3 on box (n1) (planner)
        "]]
        .assert_eq(&text(&why));
    }
}

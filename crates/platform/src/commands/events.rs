//! `platform events`: what changed, who did it and when.

use std::time::Duration;

use api::enrollment::{EnrollRole, Member};
use api::event::{Event, EventPage, EventsQuery, MAX_EVENTS_LISTED};
use api_client::ApiClient;
use clap::Args;
use model::{InstanceId, NodeId, Timestamp};

use super::members;
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, note, one_line};
use crate::units::{parse_count, parse_moment, rfc3339};

const EXAMPLES: &str = "\
Examples:
  platform events                          of the app of ./platform.toml; without one, of everything
  platform events -f                       and what comes: keep it open beside a deploy
  platform events --instance 1f0c2b7a
  platform events --all --kind node        what happened to nodes
  platform events --kind release-reverted --since 7d
  platform events --format json | jq .message    a JSON object per line

The last 100000 events of the last 30 days are kept. What an instance does over and over is told once,
with how many times since when. Users of orgs see the events of their apps; those of nodes, edges and users
need a role in the cluster.";

/// How long the server may wait for the next event.
const WAIT: Duration = Duration::from_secs(25);
/// Pause before the server is asked again after it could not be reached.
const RETRY: Duration = Duration::from_secs(1);

/// Show what changed: deploys, instances, nodes, volumes, secrets, users
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Go on with new events until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Those of every app and of the cluster, also where there is a ./platform.toml
    #[arg(long, short, conflicts_with = "app")]
    all: bool,
    /// Only of this instance
    #[arg(long, short, value_name = "ID")]
    instance: Option<InstanceId>,
    /// Only of this node and of what is on it, by its id or its name
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only of this kind (`instance-ready`), or of all that happens to something (`instance`, `node`)
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only those that are not older than this: `10m`, or a time of RFC 3339
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// At most this many of the past, the newest [default: 200]
    #[arg(long, short = 'n', value_name = "EVENTS", value_parser = parse_count)]
    limit: Option<u32>,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let format = arguments.format.format;
    // An instance and a node name more than the app at hand.
    let all = arguments.all || arguments.instance.is_some() || arguments.node.is_some();
    let scope = arguments
        .which
        .scope(all && arguments.which.app.is_none())?;
    let node = match &arguments.node {
        Some(wanted) => Some(node(&client, wanted).await?),
        None => None,
    };
    let query = EventsQuery {
        app: scope.app,
        env: scope.env,
        instance: arguments.instance,
        node,
        kind: arguments.kind,
        since: arguments.since,
        ..EventsQuery::default()
    };
    let limit = arguments.limit.unwrap_or(api::event::EVENTS_LISTED);
    let (events, mut next) = newest(&client, &query, limit).await?;
    print(&events, format)?;
    if !arguments.follow {
        if events.is_empty() {
            note("no events");
        }
        return Ok(());
    }
    let mut is_away = false;
    loop {
        let following = EventsQuery {
            after: Some(next),
            since: None,
            ..query.clone()
        };
        match client.events(&following, WAIT).await {
            Ok(page) => {
                if is_away {
                    note("the server is back");
                    is_away = false;
                }
                print(&page.events, format)?;
                next = page.next;
            }
            Err(error) if error.is_transient() => {
                if !is_away {
                    note(format!("{error}; waiting for the server"));
                    is_away = true;
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A node by its id, also one that was removed, or by its name.
async fn node(client: &ApiClient, wanted: &str) -> Result<NodeId, Failure> {
    if let Ok(id) = wanted.parse() {
        return Ok(id);
    }
    match members::find(client, EnrollRole::Node, wanted).await?.0 {
        Member::Node(id) => Ok(id),
        Member::Edge(id) => Err(Failure::new(format!("{id} is an edge"))),
    }
}

/// The newest events, and after which number others come. The server gives a page at a time.
async fn newest(
    client: &ApiClient,
    query: &EventsQuery,
    limit: u32,
) -> Result<(Vec<Event>, u64), Failure> {
    let asked = EventsQuery {
        limit: Some(limit.clamp(1, MAX_EVENTS_LISTED)),
        ..query.clone()
    };
    let page = client.events(&asked, Duration::ZERO).await?;
    let next = page.next;
    if limit <= MAX_EVENTS_LISTED || page.events.len() < MAX_EVENTS_LISTED as usize {
        let skipped = page.events.len().saturating_sub(limit as usize);
        return Ok((page.events.into_iter().skip(skipped).collect(), next));
    }
    // More than a page: from the oldest on, a page after the other, and the last of them.
    let mut events = std::collections::VecDeque::new();
    let mut after = 0;
    loop {
        let asked = EventsQuery {
            after: Some(after),
            limit: Some(MAX_EVENTS_LISTED),
            ..query.clone()
        };
        let EventPage {
            events: some,
            next,
            more,
        } = client.events(&asked, Duration::ZERO).await?;
        events.extend(some);
        while events.len() > limit as usize {
            events.pop_front();
        }
        after = next;
        if !more {
            return Ok((events.into(), after));
        }
    }
}

fn print(events: &[Event], format: Format) -> Result<(), Failure> {
    for event in events {
        match format {
            Format::Json => output::json_line(json_shapes::EVENTS, event)?,
            Format::Text => output::line(line(event))?,
        }
    }
    Ok(())
}

/// An event in a line: when, what kind, of what, what is told of it, and who.
pub(crate) fn line(event: &Event) -> String {
    let told = one_line(&message(event));
    let subject = subject(event);
    let (at, kind, by) = (rfc3339(event.at), event.kind, &event.by);
    match (subject.is_empty(), told.is_empty()) {
        (true, true) => format!("{at}  {kind:<19}  ({by})"),
        (true, false) => format!("{at}  {kind:<19}  {told} ({by})"),
        (false, true) => format!("{at}  {kind:<19}  {subject} ({by})"),
        (false, false) => format!("{at}  {kind:<19}  {subject}: {told} ({by})"),
    }
}

/// What is told of an event, and how often it has happened.
fn message(event: &Event) -> String {
    let times = match event.since {
        Some(since) => format!("{} times since {}", event.count, rfc3339(since)),
        None => return event.message.clone(),
    };
    if event.message.is_empty() {
        times
    } else {
        format!("{}; {times}", event.message)
    }
}

/// What an event is about: `shop/prod web v3 1f0c2b7a`.
fn subject(event: &Event) -> String {
    let env = match (&event.app, &event.env) {
        (Some(app), Some(env)) => Some(format!("{app}/{env}")),
        (Some(app), None) => Some(app.to_string()),
        (None, _) => None,
    };
    let is_of_env = env.is_some();
    // Where it happened is told by the message.
    let node = event.node.filter(|_| !is_of_env);
    let parts = [
        env,
        event.process.as_ref().map(ToString::to_string),
        event.release.map(|release| release.to_string()),
        event.instance.map(|id| id.to_string()),
        event.volume.map(|id| id.to_string()),
        node.map(|id| id.to_string()),
        event.edge.map(|id| id.to_string()),
        event.user.as_ref().map(ToString::to_string),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line_that_says_who_did_what_to_what() {
        let events = [
            json!({"number": 1, "at": 0, "by": {"kind": "user", "name": "ann"}, "kind": "release-deployed",
                   "org": "default", "app": "shop", "env": "prod", "release": 3, "message": "image shop:1"}),
            json!({"number": 2, "at": 61_000, "by": {"kind": "node", "name": "n1"}, "kind": "instance-restarted",
                   "app": "shop", "env": "prod", "process": "web", "release": 3, "instance": "0000000a", "node": "n1",
                   "message": "the app ended: exit code 3\u{1b}[2J", "count": 57, "since": 1000}),
            json!({"number": 3, "at": 62_000, "by": {"kind": "node", "name": "n1"}, "kind": "instance-ready",
                   "app": "shop", "env": "prod", "process": "web", "release": 3, "instance": "0000000a", "node": "n1",
                   "message": ""}),
            json!({"number": 4, "at": 62_000, "by": {"kind": "server"}, "kind": "node-offline", "node": "n1",
                   "message": "box (n1)"}),
            json!({"number": 5, "at": 62_000, "by": {"kind": "server"}, "kind": "server-leads", "message": "term 1"}),
        ];
        let lines: Vec<_> = (events.into_iter())
            .map(|event| line(&serde_json::from_value(event).unwrap()))
            .collect();
        expect![[r"
            1970-01-01T00:00:00.000Z  release-deployed     shop/prod v3: image shop:1 (ann)
            1970-01-01T00:01:01.000Z  instance-restarted   shop/prod web v3 0000000a: the app ended: exit code 3 [2J; 57 times since 1970-01-01T00:00:01.000Z (n1)
            1970-01-01T00:01:02.000Z  instance-ready       shop/prod web v3 0000000a (n1)
            1970-01-01T00:01:02.000Z  node-offline         n1: box (n1) (server)
            1970-01-01T00:01:02.000Z  server-leads         term 1 (server)
        "]]
        .assert_eq(&format!("{}\n", lines.join("\n")));
    }
}

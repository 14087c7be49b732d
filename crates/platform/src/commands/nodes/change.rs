//! `platform nodes cordon`, `uncordon`, `drain`, `stop-unknown` and `remove`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::str::FromStr;
use std::time::{Duration, Instant};

use api::enrollment::Member;
use api::user::{InstanceRow, InstancesQuery, NodeRow, Scheduling, VolumesQuery};
use api_client::ApiClient;
use clap::Args;
use model::{InstanceId, LabelKey, LabelValue, OrgName};

use crate::commands::members::{find_node as find, print_changed};
use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, FormatArguments, note};
use crate::printed::Removed;

/// Time between two looks at a node that is drained.
const POLL: Duration = Duration::from_millis(500);
/// What is left on a node that is drained is printed this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Keep new instances away from a node; those that it has stay
#[derive(Debug, Args)]
pub(super) struct CordonArguments {
    /// Id or name of the node, as `platform nodes` shows them
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Let a node take instances again
#[derive(Debug, Args)]
pub(super) struct UncordonArguments {
    /// Id or name of the node, as `platform nodes` shows them
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Replace the instances of a node on other nodes, and keep new ones away
///
/// Each is replaced as at a deploy: within `deploy.max_surge` and `deploy.max_unavailable`. Returns when the node has none.
#[derive(Debug, Args)]
pub(super) struct DrainArguments {
    /// Id or name of the node, as `platform nodes` shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// Stop instances with volumes too. They cannot move: they start again when the node is uncordoned
    #[arg(long)]
    with_volumes: bool,
    /// Do not wait until the node has no instance
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Set or remove labels of a node
///
/// The manifest's `labels` of a process type name those that its nodes must have. An instance that runs already stays where it is.
/// `hub=preferred` has a node relay the overlay for others, `hub=never` keeps it from that (`platform network`).
#[derive(Debug, Args)]
pub(super) struct LabelArguments {
    /// Id or name of the node, as `platform nodes` shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// `KEY=VALUE` sets a label, `KEY-` removes one
    #[arg(value_name = "LABEL", required = true)]
    labels: Vec<LabelChange>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// One label that is set or removed.
#[derive(Debug, Clone)]
struct LabelChange {
    key: LabelKey,
    value: Option<LabelValue>,
}

impl FromStr for LabelChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = match (text.split_once('='), text.strip_suffix('-')) {
            (Some((key, value)), _) => (key, Some(value)),
            (None, Some(key)) => (key, None),
            (None, None) => {
                return Err("write KEY=VALUE to set a label, or KEY- to remove one".to_owned());
            }
        };
        let value = value.map(|value| value.parse().map_err(|e| format!("{e}")));
        Ok(Self {
            key: key.parse().map_err(|e| format!("{e}"))?,
            value: value.transpose()?,
        })
    }
}

/// Have a node run the apps of one org only, or of all
///
/// Instances of other orgs are replaced on other nodes, as when it is drained. Refused where one of them has volumes.
#[derive(Debug, Args)]
pub(super) struct SetOrgArguments {
    /// Id or name of the node, as `platform nodes` shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// The org whose apps it runs from now on, and no other's
    #[arg(value_name = "ORG", required_unless_present = "any")]
    org: Option<OrgName>,
    /// It runs the apps of every org again
    #[arg(long, conflicts_with = "org")]
    any: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Stop what a node runs and the store does not know, as after a restore from an older backup
///
/// Nothing else stops it: it is left running, and its memory, CPU and disk are promised. `platform nodes` names it.
#[derive(Debug, Args)]
pub(super) struct StopUnknownArguments {
    /// Id or name of the node, as `platform nodes` shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// Ids of the instances [default: all that the node has reported]
    #[arg(value_name = "INSTANCE")]
    instances: Vec<InstanceId>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Do not wait until they are gone
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Remove a node from the cluster for good
///
/// It must have no instances and no volumes, or be lost. Its certificate opens nothing from then on.
#[derive(Debug, Args)]
pub(super) struct RemoveArguments {
    /// Id or name of the node, as `platform nodes` shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// Give up a node that is offline, with all that it has: the data in its volumes too
    #[arg(long)]
    lost: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(super) async fn cordon(arguments: CordonArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let node = find(&client, &arguments.node).await?;
    client.set_scheduling(node.id, Scheduling::Cordoned).await?;
    let sentence = format!("{} ({}) gets no new instances", node.name, node.id);
    print_changed(&client, Member::Node(node.id), arguments.format, sentence).await
}

pub(super) async fn uncordon(arguments: UncordonArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let node = find(&client, &arguments.node).await?;
    (client.set_scheduling(node.id, Scheduling::Schedulable)).await?;
    let sentence = format!("{} ({}) takes instances", node.name, node.id);
    print_changed(&client, Member::Node(node.id), arguments.format, sentence).await
}

pub(super) async fn label(arguments: LabelArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let node = find(&client, &arguments.node).await?;
    let changes = arguments.labels.into_iter();
    let changes = changes.map(|change| (change.key, change.value)).collect();
    client.set_labels(node.id, changes).await?;
    let sentence = format!("{} ({}) is labelled", node.name, node.id);
    print_changed(&client, Member::Node(node.id), arguments.format, sentence).await
}

pub(super) async fn set_org(arguments: SetOrgArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let node = find(&client, &arguments.node).await?;
    let whose =
        (arguments.org.as_ref()).map_or("every org".to_owned(), |org| format!("org {org} only"));
    client.set_node_org(node.id, arguments.org).await?;
    let sentence = format!("{} ({}) runs the apps of {whose}", node.name, node.id);
    print_changed(&client, Member::Node(node.id), arguments.format, sentence).await
}

pub(super) async fn stop_unknown(arguments: StopUnknownArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let node = find(&client, &arguments.node).await?;
    let NodeRow { id, name, .. } = node;
    let (member, format) = (Member::Node(id), arguments.format);
    let wanted = if arguments.instances.is_empty() {
        node.unknown_instances
    } else {
        arguments.instances
    };
    if wanted.is_empty() {
        let sentence = format!("{name} ({id}) runs nothing that the store does not know");
        return print_changed(&client, member, format, sentence).await;
    }
    let listed: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    if !arguments.yes {
        confirm(&format!("stop {} on {name} ({id})", listed.join(" ")))?;
    }
    let told = client.stop_unknown(id, wanted).await?.instances;
    if arguments.no_wait {
        let sentence = format!("{name} ({id}) is told to stop {} instances", told.len());
        return print_changed(&client, member, format, sentence).await;
    }
    let mut said = None;
    loop {
        let node = find(&client, &id.to_string()).await?;
        let mut left = node.unknown_instances;
        left.retain(|instance| told.contains(instance));
        if left.is_empty() {
            break;
        }
        if said != Some(left.len()) {
            note(format!("{} left on {name} ({id})", left.len()));
            said = Some(left.len());
        }
        tokio::time::sleep(POLL).await;
    }
    let sentence = format!("{} instances are gone from {name} ({id})", told.len());
    print_changed(&client, member, format, sentence).await
}

pub(super) async fn drain(arguments: DrainArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let node = find(&client, &arguments.node).await?;
    let with_volumes = arguments.with_volumes;
    let scheduling = Scheduling::Draining { with_volumes };
    client.set_scheduling(node.id, scheduling).await?;
    let NodeRow { id, name, .. } = node;
    let (member, format) = (Member::Node(id), arguments.format);
    if arguments.no_wait {
        let sentence = format!("{name} ({id}) is being drained");
        return print_changed(&client, member, format, sentence).await;
    }
    let mut said: Option<(usize, Instant)> = None;
    loop {
        let here = InstancesQuery {
            node: Some(id),
            ..InstancesQuery::default()
        };
        let left = client.find_instances(&here).await?;
        if left.is_empty() {
            break;
        }
        let is_due = said.is_none_or(|(count, at)| count != left.len() || at.elapsed() > SAY_EVERY);
        if is_due {
            note(format!(
                "{} left on {name} ({id}): {}",
                left.len(),
                first_of(&left)
            ));
            if said.is_some() {
                say_why(&client, &left).await?;
            }
            said = Some((left.len(), Instant::now()));
        }
        tokio::time::sleep(POLL).await;
    }
    let sentence = format!(
        "{name} ({id}) has no instances; `platform nodes uncordon {id}` lets it take some again"
    );
    print_changed(&client, member, format, sentence).await
}

/// Says what the first env waits for whose instances do not go.
async fn say_why(client: &ApiClient, left: &[InstanceRow]) -> Result<(), Failure> {
    let Some(row) = left.iter().find(|row| !row.terminating) else {
        return Ok(());
    };
    let env = client.env(&row.env).await?;
    for waits in env.map(|env| env.waits).unwrap_or_default() {
        note(format!("{} waits: {waits}", row.env));
    }
    Ok(())
}

fn first_of(left: &[InstanceRow]) -> String {
    const SHOWN: usize = 3;
    let named = left.iter().take(SHOWN).map(|row| {
        let what = if row.terminating { ", stopping" } else { "" };
        format!("{} of {} {}{what}", row.id, row.env, row.process)
    });
    let mut text = named.collect::<Vec<_>>().join("; ");
    if left.len() > SHOWN {
        text += "; ..";
    }
    text
}

pub(super) async fn remove(arguments: RemoveArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let node = find(&client, &arguments.node).await?;
    let mut lost = Vec::new();
    if arguments.lost {
        let here = VolumesQuery {
            node: Some(node.id),
            ..VolumesQuery::default()
        };
        let volumes = client.find_volumes(&here).await?;
        lost.extend(volumes.iter().map(|row| {
            let (env, process, name, number) = (&row.env, &row.process, &row.name, row.ordinal);
            format!("{name} {number} of {env} {process}")
        }));
    }
    for volume in &lost {
        note(format!("lost for good: the volume {volume}"));
    }
    if !arguments.yes {
        let what = format!("remove {} ({}) from the cluster", node.name, node.id);
        confirm(&what)?;
    }
    client.remove_node(node.id, arguments.lost).await?;
    let removed = Removed::member(Member::Node(node.id), &node.name);
    let sentence = format!("{} ({}) is removed", node.name, node.id);
    output::json_or_note(arguments.format, json_shapes::REMOVED, &removed, sentence)
}

/// Asks whether that is to be done.
fn confirm(what: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(format!("to {what} needs a yes"))
            .hint("say it with --yes where nobody can be asked"));
    }
    let mut prompt = anstream::stderr();
    write!(prompt, "{what}? Type yes: ")?;
    prompt.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::new("nothing was done"))
}

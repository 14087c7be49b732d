//! What `platform nodes` and `platform edges` do alike: approve, revoke, other keys (ADR 0004).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::enrollment::{EnrollRole, Member};
use api::member::Approval;
use api::user::{Acknowledgement, EdgeRow, NodeRow};
use api_client::ApiClient;
use clap::Args;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, note};

/// How long a command waits for those who have not acknowledged what it did.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_secs(10);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(200);

/// Let a member in that waits for approval, and take what hardware it claims
#[derive(Debug, Args)]
pub(crate) struct ApproveArguments {
    /// Id or name, as the list shows them
    #[arg(value_name = "MEMBER")]
    member: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Revoke a member: it may do nothing any more
///
/// Its connections and streams are closed, its certificate is refused, and no peer speaks to it. The instances of a node are started elsewhere at
/// once; its volumes stay with it. Prints who has acknowledged that, and who has not.
#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// Id or name, as the list shows them
    #[arg(value_name = "MEMBER")]
    member: String,
    /// Do not wait for acknowledgements
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Have a member make other keys, while it runs
#[derive(Debug, Args)]
pub(crate) struct RotateKeysArguments {
    /// Id or name, as the list shows them
    #[arg(value_name = "MEMBER")]
    member: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// The member of this id or name, and its name.
pub(crate) async fn find(
    client: &ApiClient,
    role: EnrollRole,
    wanted: &str,
) -> Result<(Member, String), Failure> {
    Ok(match role {
        EnrollRole::Node => {
            let node = find_node(client, wanted).await?;
            (Member::Node(node.id), node.name)
        }
        EnrollRole::Edge => {
            let edge = find_edge(client, wanted).await?;
            (Member::Edge(edge.id), edge.name)
        }
    })
}

/// The row of the member of this id; without one, of this name: a member that was named like another's id is not taken for it.
pub(super) fn pick<T>(
    role: EnrollRole,
    mut rows: Vec<T>,
    wanted: &str,
    who: impl Fn(&T) -> (Member, &str),
) -> Result<T, Failure> {
    let id = wanted.parse::<Member>().ok();
    let is_id = |row: &T| Some(who(row).0) == id;
    let has_name = |row: &T| who(row).1 == wanted;
    let place = rows.iter().position(is_id);
    match place.or_else(|| rows.iter().position(has_name)) {
        Some(place) => Ok(rows.swap_remove(place)),
        None => Err(Failure::new(format!("there is no {role} {wanted}"))
            .hint(format!("`platform {role}s` lists those there are"))),
    }
}

/// The node of this id or name.
pub(super) async fn find_node(client: &ApiClient, wanted: &str) -> Result<NodeRow, Failure> {
    let nodes = client.nodes().await?;
    pick(EnrollRole::Node, nodes, wanted, |node| {
        (Member::Node(node.id), &node.name)
    })
}

/// The edge of this id or name.
pub(super) async fn find_edge(client: &ApiClient, wanted: &str) -> Result<EdgeRow, Failure> {
    let edges = client.edges().await?;
    pick(EnrollRole::Edge, edges, wanted, |edge| {
        (Member::Edge(edge.id), &edge.name)
    })
}

/// Prints a member that was changed, as its list has it now; people have the sentence.
pub(super) async fn print_changed(
    client: &ApiClient,
    member: Member,
    format: FormatArguments,
    sentence: String,
) -> Result<(), Failure> {
    if format.format == Format::Text {
        note(sentence);
        return Ok(());
    }
    let id = member.to_string();
    match member {
        Member::Node(_) => output::json(json_shapes::NODE, &find_node(client, &id).await?),
        Member::Edge(_) => output::json(json_shapes::EDGE, &find_edge(client, &id).await?),
    }
}

pub(crate) async fn approve(role: EnrollRole, arguments: ApproveArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let (member, name) = find(&client, role, &arguments.member).await?;
    client.approve(member).await?;
    let sentence = format!("{name} ({member}) is approved");
    print_changed(&client, member, arguments.format, sentence).await
}

pub(crate) async fn rotate_keys(
    role: EnrollRole,
    arguments: RotateKeysArguments,
) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let (member, name) = find(&client, role, &arguments.member).await?;
    client.rotate_keys(member).await?;
    let sentence = format!(
        "{name} ({member}) is asked for other keys; `platform {role}s` shows the fingerprint of those it has"
    );
    print_changed(&client, member, arguments.format, sentence).await
}

pub(crate) async fn revoke(role: EnrollRole, arguments: RevokeArguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let (member, name) = find(&client, role, &arguments.member).await?;
    let revoked = client.revoke(member).await?;
    let format = arguments.format;
    let sentence = format!("{name} ({member}) is revoked: its connections are closed");
    print_changed(&client, member, format, sentence).await?;
    if revoked.instances > 0 {
        note(format!(
            "{} of its instances are planned anew: elsewhere, but for those whose volumes are on it",
            revoked.instances
        ));
    }
    if arguments.no_wait {
        return Ok(());
    }
    let members = acknowledged(&client, revoked.counter, format).await?;
    let left = members.iter().filter(|row| !row.acknowledged).count();
    if left == 0 {
        note("every member has acknowledged");
        return Ok(());
    }
    Err(Failure::new(format!(
        "{left} members have not acknowledged: they may exchange packets with {name} still"
    ))
    .hint("it is revoked all the same; a member that is offline acknowledges when it is back: ask again with the same command"))
}

/// Prints which members have applied a membership as they say so, and after a while who has not. Gives all of them.
pub(crate) async fn acknowledged(
    client: &ApiClient,
    counter: u64,
    format: FormatArguments,
) -> Result<Vec<Acknowledgement>, Failure> {
    let began = Instant::now();
    let mut said = BTreeSet::new();
    loop {
        let members = client.acknowledgements(counter).await?.members;
        for row in members.iter().filter(|row| row.acknowledged) {
            if said.insert(row.member) {
                let text = format!("{} ({}): acknowledged", row.name, row.member);
                output::line_for_people(format, text)?;
            }
        }
        let left: Vec<_> = members.iter().filter(|row| !row.acknowledged).collect();
        if left.is_empty() || began.elapsed() >= ACKNOWLEDGE_WAIT {
            for row in &left {
                let why = if row.heard {
                    "has not answered"
                } else {
                    "has not answered since the server began to lead: it is offline, or of a version before"
                };
                let text = format!("{} ({}): {why}", row.name, row.member);
                output::line_for_people(format, text)?;
            }
            return Ok(members);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A member's approval for a table; empty where there is nothing to say.
pub(crate) fn approval(approval: Approval) -> &'static str {
    match approval {
        Approval::Approved => "",
        Approval::Pending => "waits for approval",
        Approval::Revoked { .. } => "revoked",
    }
}

#[cfg(test)]
mod tests {
    use model::NodeId;

    use super::*;

    #[test]
    fn an_id_is_looked_for_before_a_name() {
        // Of a store from before names like ids were refused.
        let rows = || vec![(1, "n2"), (2, "victim"), (3, "web")];
        let picked = |wanted: &str| {
            pick(EnrollRole::Node, rows(), wanted, |row| {
                (Member::Node(NodeId(row.0)), row.1)
            })
            .ok()
            .map(|(id, _)| id)
        };
        assert_eq!(picked("n2"), Some(2));
        assert_eq!(picked("n1"), Some(1));
        assert_eq!(picked("web"), Some(3));
        assert_eq!(picked("n4"), None);
    }
}

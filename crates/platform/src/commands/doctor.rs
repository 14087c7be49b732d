//! `platform doctor`: what this machine lacks to be a server, a node or an edge, and how to mend it.
//!
//! It changes nothing. What a machine cannot do without is `missing`; what makes it slower or less safe is a `warning`.

mod checks;
mod finding;
mod listeners;

use std::path::Path;

use blocking_work::blocking;
use clap::{Args, ValueEnum};
use membership::Membership;

pub(crate) use self::finding::Finding;
use self::finding::Severity;
use super::{edge, node, server};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::role_options::{self, KeptEdgeOptions, KeptNodeOptions, KeptServerOptions};

const EXAMPLES: &str = "\
Examples:
  platform doctor                   for the roles that this machine has, else for a node
  platform doctor --role server     before `platform server init`
Exit status: 0 nothing needed is missing, 1 something is.";

/// Say what this machine lacks for its roles, and how to mend it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A role to check for; repeatable [default: those that are set up here, else node]
    #[arg(long = "role", value_name = "ROLE", value_enum)]
    roles: Vec<Role>,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Server,
    Node,
    Edge,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Node => "node",
            Self::Edge => "edge",
        }
    }

    fn data_dir(self) -> &'static Path {
        Path::new(match self {
            Self::Server => server::DATA_DIR,
            Self::Node => node::DATA_DIR,
            Self::Edge => edge::DATA_DIR,
        })
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let roles = if arguments.roles.is_empty() {
        blocking(roles_here).await
    } else {
        arguments.roles
    };
    let findings = look(&roles).await;
    if arguments.format.format == Format::Json {
        output::json(json_shapes::FINDINGS, &findings)?;
    } else {
        let mut table = Table::new(["CHECK", "STATE", "FOUND"]);
        for finding in &findings {
            table.row([
                finding.check.to_owned(),
                finding.severity.name().to_owned(),
                output::one_line(&finding.found),
            ]);
            if let Some(mend) = &finding.mend {
                table.note(mend);
            }
        }
        table.print()?;
    }
    let missing: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Missing)
        .map(|finding| finding.check)
        .collect();
    let names: Vec<_> = roles.iter().map(|role| role.name()).collect();
    if missing.is_empty() {
        note(format!(
            "nothing that a {} needs is missing",
            names.join(", ")
        ));
        return Ok(());
    }
    note(format!(
        "a {} needs what is missing: {}",
        names.join(", "),
        missing.join(", ")
    ));
    Err(Failure::Said)
}

/// The roles that this machine has. Blocks.
fn roles_here() -> Vec<Role> {
    let mut roles: Vec<Role> = [Role::Server, Role::Node, Role::Edge]
        .into_iter()
        .filter(|role| role_options::file(role.data_dir()).exists())
        .collect();
    if roles.is_empty() {
        roles.push(Role::Node);
    }
    roles
}

/// Whether the role's port of WireGuard is its own, or free.
async fn overlay_port(check: &'static str, role: Role, port: u16) -> Finding {
    let data_dir = role.data_dir();
    blocking(move || {
        let is_member = Membership::file(data_dir).exists();
        checks::overlay_port(check, port, is_member)
    })
    .await
}

async fn look(roles: &[Role]) -> Vec<Finding> {
    let has = |role| roles.contains(&role);
    let mut findings =
        blocking(|| vec![checks::root(), checks::memory(), checks::open_files()]).await;
    findings.push(checks::clock().await);
    for role in roles {
        let data_dir = role.data_dir();
        findings.push(blocking(|| checks::disk(data_dir)).await);
    }
    // All of them are on one file system, as a rule.
    findings.dedup();
    if has(Role::Node) {
        let kept = role_options::load::<KeptNodeOptions>(Role::Node.data_dir()).await;
        let kept = kept.ok().flatten().unwrap_or_default();
        let port = kept.underlay.options().port;
        findings.push(overlay_port("node's WireGuard", Role::Node, port).await);
        let guest = match kept.guest {
            Some(folder) => folder,
            None => blocking(node::default_guest).await,
        };
        findings.push(checks::driver(node_agent::driver(guest).await));
        findings.extend(blocking(checks::programs).await);
        findings.extend(blocking(|| vec![checks::tun(), checks::veth(), checks::cgroup()]).await);
        findings.push(checks::nf_tables().await);
    }
    if has(Role::Server) {
        let kept = role_options::load::<KeptServerOptions>(Role::Server.data_dir()).await;
        let address = kept.ok().flatten().and_then(|kept| kept.listen);
        let address = address.unwrap_or_else(server::init_listen);
        findings.push(blocking(move || checks::port("server's port", address)).await);
    }
    if has(Role::Edge) {
        let kept = role_options::load::<KeptEdgeOptions>(Role::Edge.data_dir()).await;
        let kept = kept.ok().flatten().unwrap_or_default();
        let address = kept.listen.unwrap_or(edge::LISTEN);
        findings.push(blocking(move || checks::port("edge's port", address)).await);
        let port = kept.underlay.port.unwrap_or(edge::OVERLAY_PORT);
        findings.push(overlay_port("edge's WireGuard", Role::Edge, port).await);
    }
    for (check, role) in [("node's server", Role::Node), ("edge's server", Role::Edge)] {
        if has(role)
            && let Ok(Some(member)) = node::membership(role.data_dir()).await
        {
            findings.push(checks::server(check, &member).await);
        }
    }
    findings
}

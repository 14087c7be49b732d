//! `platform orgs` and `platform apps`: who owns what.

use clap::{Args, Subcommand};
use model::{AppName, OrgName};

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::printed::{Removed, RemovedKind};
use crate::units::rfc3339;

const ORG_EXAMPLES: &str = "\
Examples:
  platform orgs                        those that you have a role in
  platform orgs create shop
  platform users grant ann --role deployer --org shop
  platform deploy --org shop           a new app of it
  platform orgs remove shop            once it has no app

An org owns apps. What is another org's does not exist for who has no role in it.";

/// Show orgs, which own apps; make and remove them
#[derive(Debug, Args)]
#[command(after_help = ORG_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct OrgsArguments {
    #[command(subcommand)]
    command: Option<OrgsCommand>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Debug, Subcommand)]
enum OrgsCommand {
    /// Make an org
    Create(OneOrg),
    /// Remove an org that has no app, and every role in it
    Remove(OneOrg),
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Args)]
struct OneOrg {
    /// Its name
    #[arg(value_name = "ORG")]
    org: OrgName,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run_orgs(arguments: OrgsArguments) -> Result<(), Failure> {
    match arguments.command {
        None => list_orgs(arguments.list).await,
        Some(OrgsCommand::Create(arguments)) => {
            let OneOrg {
                org,
                cluster,
                format,
            } = arguments;
            let row = cluster.connect()?.create_org(&org).await?;
            let sentence = format!(
                "org {org} is there; `platform users grant USER --role ROLE --org {org}` lets somebody in"
            );
            output::json_or_note(format, json_shapes::ORG, &row, sentence)
        }
        Some(OrgsCommand::Remove(arguments)) => {
            let OneOrg {
                org,
                cluster,
                format,
            } = arguments;
            cluster.connect()?.remove_org(&org).await?;
            let sentence = format!("org {org} is gone, and every role in it");
            let removed = Removed::new(RemovedKind::Org, org.as_str());
            output::json_or_note(format, json_shapes::REMOVED, &removed, sentence)
        }
    }
}

async fn list_orgs(arguments: ListArguments) -> Result<(), Failure> {
    let orgs = arguments.cluster.connect()?.orgs().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::ORGS, &orgs);
    }
    let mut table = Table::new(["ORG", "APPS", "CREATED"]);
    for org in &orgs {
        table.row([
            org.name.to_string(),
            org.apps.to_string(),
            rfc3339(org.created_at),
        ]);
    }
    table.print()?;
    Ok(())
}

const APP_EXAMPLES: &str = "\
Examples:
  platform apps                        those of your orgs
  platform apps move web --org shop    its envs run on
  platform apps remove web             frees the name, once nothing is left of it

An app is its org's from the first `deploy` or `secrets set` on. Its name is one in the whole cluster.";

/// Show apps and the orgs that own them
#[derive(Debug, Args)]
#[command(after_help = APP_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct AppsArguments {
    #[command(subcommand)]
    command: Option<AppsCommand>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Debug, Subcommand)]
enum AppsCommand {
    /// Give an app to another org, with all its envs
    Move(MoveArguments),
    /// Free the name of an app that has no env, volume or secret
    Remove(OneApp),
}

#[derive(Debug, Args)]
struct MoveArguments {
    /// The app
    #[arg(value_name = "APP")]
    app: AppName,
    /// The org that owns it from now on
    #[arg(long, value_name = "ORG")]
    org: OrgName,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Args)]
struct OneApp {
    /// The app
    #[arg(value_name = "APP")]
    app: AppName,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run_apps(arguments: AppsArguments) -> Result<(), Failure> {
    match arguments.command {
        None => list_apps(arguments.list).await,
        Some(AppsCommand::Move(arguments)) => move_app(arguments).await,
        Some(AppsCommand::Remove(arguments)) => {
            let OneApp {
                app,
                cluster,
                format,
            } = arguments;
            cluster.connect()?.remove_app(&app).await?;
            let sentence = format!("the name {app} is free");
            let removed = Removed::new(RemovedKind::App, app.as_str());
            output::json_or_note(format, json_shapes::REMOVED, &removed, sentence)
        }
    }
}

async fn move_app(arguments: MoveArguments) -> Result<(), Failure> {
    let MoveArguments {
        app,
        org,
        cluster,
        format,
    } = arguments;
    let client = cluster.connect()?;
    client.move_app(&app, &org).await?;
    if format.format == Format::Text {
        note(format!("org {org} owns {app}"));
        return Ok(());
    }
    let mut apps = client.apps().await?.into_iter();
    let row = apps.find(|row| row.name == app).ok_or_else(|| {
        Failure::new(format!("{app} was moved to org {org}, and is gone already"))
    })?;
    output::json(json_shapes::APP, &row)
}

async fn list_apps(arguments: ListArguments) -> Result<(), Failure> {
    let apps = arguments.cluster.connect()?.apps().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::APPS, &apps);
    }
    if apps.is_empty() {
        note("no apps; `platform deploy` makes one");
        return Ok(());
    }
    let mut table = Table::new(["APP", "ORG", "ENVS"]);
    for app in &apps {
        table.row([
            app.name.to_string(),
            app.org.to_string(),
            app.envs.to_string(),
        ]);
    }
    table.print()?;
    Ok(())
}

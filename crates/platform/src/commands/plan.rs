//! `platform plan`: what a deploy would do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use api::user::{DeployRequest, PlanResponse, PlannedProcess, RolloutPhase};
use clap::Args;
use model::{EnvKey, OrgName, ProcessName};
use serde_json::Value;

use crate::commands::{deploy, manifest_file};
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, one_line};

const ADDED: Style = AnsiColor::Green.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
const CHANGED: Style = AnsiColor::Yellow.on_default();

/// The exit status of --detailed-exitcode where there are changes.
const CHANGES: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  platform plan --image registry.example.com/shop:v7     what deploying ./platform.toml would do
  platform plan shop.toml --env test --format json

The planner itself is asked, on a copy of the cluster's state: what it says holds as long as nothing else changes, and
if each new instance becomes ready. Nothing is changed.

Ends with 0 when the deploy would be done, 1 when it would be refused or would not come to its end, with
the reasons. --detailed-exitcode: 0 when it would change nothing, 2 when it would.";

/// Show what a deploy would do, and do nothing
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The manifest; `-` is standard input
    #[arg(value_name = "FILE", default_value = manifest_file::DEFAULT)]
    file: PathBuf,
    /// The image, by digest or by tag [default: the image in the manifest]
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// Of this process type only, others stay as they are; repeatable
    #[arg(long, value_name = "PROCESS")]
    only: Vec<ProcessName>,
    /// The org of a new app; it is needed where you may deploy in several
    #[arg(long, value_name = "ORG", env = "PLATFORM_ORG", hide_env_values = true)]
    org: Option<OrgName>,
    /// End with 2 when the deploy would change something
    #[arg(long)]
    detailed_exitcode: bool,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let valid = manifest_file::read_valid(&arguments.file)?;
    let manifest = valid.manifest;
    let image = arguments.image.or(manifest.image).ok_or_else(|| {
        Failure::new("no image was given")
            .hint("name one with --image, or in the manifest: `image = …`")
    })?;
    deploy::refuse_local(&image)?;
    let env = EnvKey {
        app: arguments.which.app.clone().unwrap_or(manifest.app),
        env: arguments.which.env_or_default()?,
    };
    let client = arguments.cluster.connect()?.in_org(arguments.org);
    let request = DeployRequest {
        only: arguments.only.into_iter().collect(),
        manifest: valid.text,
        image,
    };
    let plan = client.plan(&env, &request).await?;
    match arguments.format.format {
        Format::Json => output::json(json_shapes::PLAN, &plan)?,
        Format::Text => output::write(&text(&env, &plan))?,
    }
    if !would_be_done(&plan) {
        return Err(Failure::Said);
    }
    if arguments.detailed_exitcode && plan.changes {
        return Err(Failure::Ended(CHANGES));
    }
    Ok(())
}

fn would_be_done(plan: &PlanResponse) -> bool {
    let ends_well = plan
        .outcome
        .is_none_or(|outcome| outcome == RolloutPhase::Done);
    plan.refused.is_none() && ends_well
}

fn text(env: &EnvKey, plan: &PlanResponse) -> String {
    let mut text = match plan.current {
        None => format!("{env} has no release yet\n"),
        Some(current) if plan.changes => format!("{env}, against {current}:\n"),
        Some(current) => format!("{env}: nothing is other than in {current}\n"),
    };
    if let Some(digest) = &plan.image_ref_digest {
        match &plan.current_image_ref_digest {
            Some(before) => text.push_str(&format!(
                "  {CHANGED}~ image{CHANGED:#}: {before} -> {digest}\n"
            )),
            None if plan.current.is_none() => {
                text.push_str(&format!("  {ADDED}+ image{ADDED:#}: {digest}\n"));
            }
            None => {}
        }
    }
    for change in &plan.manifest {
        let path = one_line(&change.path);
        let value = |value: &Value| one_line(&value.to_string());
        let line = match (&change.before, &change.after) {
            (Some(before), Some(after)) => format!(
                "{CHANGED}~ {path}{CHANGED:#}: {} -> {}",
                value(before),
                value(after)
            ),
            (None, Some(after)) => format!("{ADDED}+ {path}{ADDED:#}: {}", value(after)),
            (before, None) => format!(
                "{REMOVED}- {path}{REMOVED:#}: {}",
                before.as_ref().map_or_else(String::new, value)
            ),
        };
        text.push_str(&format!("  {line}\n"));
    }
    for (bundle, (before, after)) in &plan.secrets {
        let version = |version: &Option<u32>| {
            version.map_or_else(|| "none".to_owned(), |n| format!("version {n}"))
        };
        text.push_str(&format!(
            "  {CHANGED}~ secrets.{bundle}{CHANGED:#}: {} -> {}\n",
            version(before),
            version(after)
        ));
    }
    for process in &plan.processes {
        text.push_str(&process_text(process));
    }
    for warning in &plan.warnings {
        text.push_str(&format!("warning: {}\n", one_line(warning)));
    }
    for blocked in &plan.blocked {
        text.push_str(&format!(
            "{REMOVED}blocked{REMOVED:#}: {}\n",
            one_line(blocked)
        ));
    }
    if let Some(refused) = &plan.refused {
        text.push_str(&format!(
            "{REMOVED}refused{REMOVED:#}: {}\n",
            refused.message
        ));
        if let Some(hint) = &refused.hint {
            text.push_str(&format!("  hint: {}\n", one_line(hint)));
        }
        return text;
    }
    text.push_str(match plan.outcome {
        None => "the rollout was not followed to its end: it takes very many steps\n",
        Some(RolloutPhase::Done) => {
            "the rollout would be done, if each new instance becomes ready\n"
        }
        Some(RolloutPhase::Reverted) => {
            "the rollout would be given up, and what it changed reverted\n"
        }
        Some(RolloutPhase::Failed) => "the rollout would fail\n",
        Some(RolloutPhase::Rolling | RolloutPhase::Superseded) => "the rollout would wait\n",
    });
    text
}

fn process_text(process: &PlannedProcess) -> String {
    let name = &process.process;
    let mut parts = Vec::new();
    if !process.stays.is_empty() {
        parts.push(format!("{} stay", process.stays.len()));
    }
    if !process.ends.is_empty() {
        parts.push(format!("{} end", process.ends.len()));
    }
    if !process.places.is_empty() {
        let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
        for place in &process.places {
            *nodes.entry(place.node_name.as_str()).or_default() += 1;
        }
        let nodes = nodes.into_iter().map(|(node, count)| match count {
            1 => one_line(node),
            count => format!("{} ({count})", one_line(node)),
        });
        parts.push(format!(
            "{} new, on {}",
            process.places.len(),
            nodes.collect::<Vec<_>>().join(", ")
        ));
    }
    if parts.is_empty() {
        parts.push("no instance".to_owned());
    }
    let mut text = format!("{name}: {}\n", parts.join("; "));
    if !process.ends.is_empty() && !process.because.is_empty() {
        text.push_str(&format!(
            "  because of {}\n",
            one_line(&process.because.join(", "))
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_plan_is_read_as_what_changes_and_what_becomes_of_instances() {
        let plan: PlanResponse = serde_json::from_value(serde_json::json!({
            "current": 3, "changes": true, "image_ref_digest": null,
            "manifest": [{"path": "processes.web.scaling.min", "before": 1, "after": 2}],
            "secrets": {"database": [1, 2]},
            "processes": [{"process": "web", "stays": [], "ends": ["00000007"],
                "places": [{"node": "n1", "node_name": "node-1"}, {"node": "n1", "node_name": "node-1"}],
                "because": ["secrets.database"]}],
            "blocked": ["web: no node has memory"], "outcome": "reverted", "warnings": []
        }))
        .unwrap();
        let env = EnvKey {
            app: "shop".parse().unwrap(),
            env: "prod".parse().unwrap(),
        };
        let text = anstream::adapter::strip_str(&text(&env, &plan)).to_string();
        assert_eq!(
            text,
            "shop/prod, against v3:\n  ~ processes.web.scaling.min: 1 -> 2\n  ~ secrets.database: version 1 -> version 2\n\
             web: 1 end; 2 new, on node-1 (2)\n  because of secrets.database\nblocked: web: no node has memory\n\
             the rollout would be given up, and what it changed reverted\n"
        );
        assert!(!would_be_done(&plan));
    }
}

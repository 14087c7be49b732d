//! `platform scale`: how many instances are wanted.

use std::collections::BTreeMap;

use api::user::ScaleRequest;
use clap::Args;
use model::ProcessName;

use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments};

const EXAMPLES: &str = "\
Examples:
  platform scale web=3
  platform scale web=4 worker=2 --app shop --env prod";

/// Set how many instances of a process type are wanted
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Process type and number of instances: `web=3`
    #[arg(required = true, value_name = "PROCESS=NUMBER", value_parser = parse)]
    processes: Vec<(ProcessName, u32)>,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

fn parse(text: &str) -> Result<(ProcessName, u32), String> {
    let (process, number) = text
        .split_once('=')
        .ok_or("write the process type and the number of instances: `web=3`")?;
    let process = process
        .parse()
        .map_err(|e: model::NameError| e.to_string())?;
    let number = number
        .parse()
        .map_err(|_| format!("`{number}` is not a number of instances"))?;
    Ok((process, number))
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut processes_wanted = BTreeMap::new();
    for (process, number) in arguments.processes {
        if processes_wanted.insert(process.clone(), number).is_some() {
            return Err(Failure::new(format!("`{process}` is given twice")));
        }
    }
    let client = arguments.cluster.connect()?;
    let env = arguments.which.choose(&client).await?;
    let request = ScaleRequest {
        processes: processes_wanted,
    };
    let row = client.scale(&env, &request).await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::SCALED, &row);
    }
    for process in request.processes.keys() {
        let (wanted, ready) = row.processes.get(process).copied().unwrap_or_default();
        output::line(format!(
            "{env} {process}: {wanted} wanted, {ready} ready now"
        ))?;
    }
    output::note("`platform ps` shows how it goes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_process_types_are_parsed() {
        assert!(matches!(parse("web=3"), Ok((p, 3)) if p.as_str() == "web"));
        for wrong in ["web", "web=", "web=-1", "=3", "Web=1", "web=1=2"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}

//! `platform signal`: a signal to an app.

use api::user::SignalRequest;
use clap::Args;
use model::InstanceId;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::output::note;

const EXAMPLES: &str = "\
Examples:
  platform signal 1f0c2b7a SIGHUP      read the configuration again
  platform signal 1f0c2b7a RTMIN+3";

/// Send a signal to the app of an instance
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The instance (`platform ps` shows the ids)
    instance: InstanceId,
    /// The signal, by name or number
    #[arg(value_name = "SIGNAL")]
    signal: String,
    #[command(flatten)]
    cluster: ClusterArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let request = SignalRequest {
        signal: arguments.signal,
    };
    client.signal(arguments.instance, &request).await?;
    note(format!(
        "sent {} to the app of {}",
        request.signal, arguments.instance
    ));
    Ok(())
}

//! `platform signal`: a signal to an app.

use api::user::SignalRequest;
use clap::Args;
use model::InstanceId;
use node_core::boot::signal_name;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, FormatArguments};
use crate::printed::Signalled;

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
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let request = SignalRequest {
        signal: arguments.signal,
    };
    client.signal(arguments.instance, &request).await?;
    let sent = sent(&request.signal, arguments.instance);
    let sentence = format!("sent {} to the app of {}", sent.signal, sent.instance);
    output::json_or_note(arguments.format, json_shapes::SIGNALLED, &sent, sentence)
}

/// What was sent, with the signal's name whatever it was asked for by.
fn sent(signal: &str, instance: InstanceId) -> Signalled {
    Signalled {
        instance,
        signal: signal_name(signal).unwrap_or_else(|| signal.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_a_signal_that_was_sent_by_number_is_named() {
        for (signal, name) in [("1", "SIGHUP"), ("usr1", "SIGUSR1"), ("37", "SIGRTMIN+3")] {
            assert_eq!(sent(signal, InstanceId(0x1f0c_2b7a)).signal, name);
        }
    }
}

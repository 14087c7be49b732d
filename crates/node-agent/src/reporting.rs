//! Sends the node's reports: what changed, at once, and a sign of life where nothing did ([`node_core::report_sender`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::node::{AgentSession, NodeReport};
use display::{Repeated, chain};
use metrics::{Outcome, Waits};
use node_core::report_sender::{Answered, ReportSender};
use serde::{Deserialize, Serialize};
use state_file::StateFormat;
use tokio::sync::watch;

use crate::host::Files;
use crate::machine::Machine;
use crate::record;

/// Name of the file with the number of the agent's last start, in the data folder.
const SESSION_FILE: &str = "session.json";
/// Pause after a report that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// `session.json`: the number of the agent's last start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SessionFile {
    session: AgentSession,
}

impl StateFormat for SessionFile {
    const VERSION: u32 = 1;
}

/// The number of this start: one more than the last, or the time where that is more, so that a lost file brings no number back.
async fn next_session(machine: &Machine) -> AgentSession {
    let path = machine.data_dir.join(SESSION_FILE);
    let files = &*machine.host.files;
    let last = match record::read::<SessionFile>(files, &path).await {
        Ok(last) => last.map_or(0, |file| file.session.0),
        Err(error) => {
            tracing::warn!(error = chain(&error), path = %path.display(), "cannot read the number of the agent's last start");
            0
        }
    };
    let session = AgentSession(last.saturating_add(1).max(machine.clock.wall().0));
    keep(files, &path, session).await;
    session
}

/// Writes a number down. Where that fails, the server says if a later start has a number twice.
async fn keep(files: &dyn Files, path: &Path, session: AgentSession) {
    if let Err(error) = record::write(files, path, &SessionFile { session }).await {
        tracing::warn!(error = chain(&error), path = %path.display(), "cannot write the number of the agent's start");
    }
}

/// Sends what is reported when it changed, and as a sign of life. With the first that the server takes, what waited for it is over.
pub(crate) async fn send_reports(
    machine: Arc<Machine>,
    mut report: watch::Receiver<NodeReport>,
    mut first: Option<Waits>,
) {
    let mut sender = ReportSender::new(next_session(&machine).await);
    let mut refused = Repeated::default();
    // Whether the server was sent all that it wanted, and wants it again.
    let mut sent_whole = false;
    loop {
        let newest = report.borrow_and_update().clone();
        let delta = sender.next(&newest);
        let was_whole = delta.whole;
        let answer = machine.host.server.report(delta).await;
        machine
            .metrics
            .reported(Outcome::from(&answer), machine.clock.wall());
        let answered = match answer {
            Ok(answer) => sender.answered(answer),
            Err(error) => {
                if refused.is_due(tokio::time::Instant::now(), &error.to_string()) {
                    tracing::warn!(%error, "the server does not take the node's report");
                }
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        match answered {
            Answered::Applied => {
                drop(first.take());
                sent_whole = false;
                // What was sent again may be of before a change that came meanwhile.
                if *report.borrow() == newest && sender.is_settled(&newest) {
                    let changed =
                        tokio::time::timeout(sender.heartbeat_interval(), report.changed());
                    // An ended channel means that the agent ends.
                    if let Ok(Err(_)) = changed.await {
                        return;
                    }
                }
            }
            Answered::NewSession(session) => {
                tracing::warn!(%session, "the server had reports of a later start of this agent; is another machine's data folder a copy of this one's?");
                let path = machine.data_dir.join(SESSION_FILE);
                keep(&*machine.host.files, &path, session).await;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Answered::SendWhole => {
                if was_whole && std::mem::replace(&mut sent_whole, true) {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<SessionFile>(&[include_str!(
            "fixtures/session/version-1.json"
        )]);
    }
}

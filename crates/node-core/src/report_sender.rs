//! The node's end of its reports: what is sent next, and what an answer means.
//!
//! ```text
//!            next()                answered: applied
//!   idle ------------> in flight ----------------------> idle, acknowledged
//!     ^                 |     |
//!     |   no answer: the|same |  the server wants all, or had later reports than these
//!     |   again         +<----+------------------------> idle, nothing acknowledged: all is sent next, under the next number
//! ```
//!
//! One report is in flight at a time. One without an answer may have been applied, so it is sent again as it was: what is sent under one
//! session and number never differs, however the node has changed meanwhile.

use std::time::Duration;

use api::node::{AgentSession, NodeReport, ReportAnswer, ReportDelta};

/// How often the node reports where nothing changes, as long as no server has said otherwise.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// And at least, whatever a server says.
const MOST_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);

/// What one start of the agent has reported.
#[derive(Debug, Clone)]
pub struct ReportSender {
    session: AgentSession,
    /// The number of the last report.
    sequence: u64,
    /// What the server has.
    acknowledged: Option<NodeReport>,
    in_flight: Option<InFlight>,
    heartbeat_interval: Duration,
}

#[derive(Debug, Clone)]
struct InFlight {
    delta: ReportDelta,
    /// What the server has once it applied that.
    after: NodeReport,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// The server has the report.
    Applied,
    /// It is to get all that the node has.
    SendWhole,
    /// It had reports of a later session: the agent's number was lost or given twice. All is sent under this one.
    NewSession(AgentSession),
}

impl ReportSender {
    /// An agent that starts now. No agent of this node before had this session.
    pub fn new(session: AgentSession) -> Self {
        Self {
            session,
            sequence: 0,
            acknowledged: None,
            in_flight: None,
            heartbeat_interval: HEARTBEAT_INTERVAL,
        }
    }

    /// What to send, of a node as it is now.
    pub fn next(&mut self, now: &NodeReport) -> ReportDelta {
        if let Some(InFlight { delta, .. }) = &self.in_flight {
            return delta.clone();
        }
        self.sequence = self.sequence.saturating_add(1);
        let (session, sequence) = (self.session, self.sequence);
        let known = self.acknowledged.as_ref();
        let difference =
            known.and_then(|before| ReportDelta::between(session, sequence, before, now));
        let mut delta =
            difference.unwrap_or_else(|| ReportDelta::whole(session, sequence, now.clone()));
        delta.bound();
        self.in_flight = Some(InFlight {
            delta: delta.clone(),
            after: now.clone(),
        });
        delta
    }

    /// How often to report where nothing changes: the sign of life.
    pub fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
    }

    /// Whether the server has all of a node as it is now.
    pub fn is_settled(&self, now: &NodeReport) -> bool {
        self.in_flight.is_none() && self.acknowledged.as_ref() == Some(now)
    }

    /// The server answered the last one. Without an answer nothing is to be done.
    pub fn answered(&mut self, answer: ReportAnswer) -> Answered {
        let asked = answer.heartbeat_interval_ms;
        self.heartbeat_interval = asked.map_or(HEARTBEAT_INTERVAL, |millis| {
            Duration::from_millis(u64::from(millis))
                .clamp(HEARTBEAT_INTERVAL, MOST_HEARTBEAT_INTERVAL)
        });
        let Some(InFlight { delta, after }) = self.in_flight.take() else {
            return Answered::Applied;
        };
        let has = (answer.session, answer.sequence);
        if has > (delta.session, delta.sequence) {
            self.acknowledged = None;
            self.session = AgentSession(answer.session.0.saturating_add(1));
            self.sequence = 0;
            return Answered::NewSession(self.session);
        }
        if answer.whole || has != (delta.session, delta.sequence) {
            self.acknowledged = None;
            return Answered::SendWhole;
        }
        self.acknowledged = Some(after);
        Answered::Applied
    }
}

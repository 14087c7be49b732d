//! Whether two machines are one node: one's data folder was copied to the other, with the keys in it.
//!
//! Each start of an agent has a number greater than that of all before it, and reports by it ([`AgentSession`](api::node::AgentSession)). An agent
//! that hears of a later start than its own takes a number after that. So of two agents that both go on, reports of an older start come again and
//! again; of one that was started anew, one at most, which was under way.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Reports of older starts within [`WINDOW`], from which on there are two agents.
const REPORTS: usize = 3;
/// How long what was seen counts.
const WINDOW: Duration = Duration::from_secs(120);
/// Addresses that are named.
const MAX_ADDRESSES: usize = 4;

/// What was seen of the agents that report as one node.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// When reports of older starts came, the oldest first.
    older: VecDeque<Instant>,
    /// Where reports came from, and when last.
    from: BTreeMap<IpAddr, Instant>,
    was_named: bool,
}

impl Copies {
    /// A report came. `is_older`: of a start before another that has reported.
    pub(crate) fn note(&mut self, is_older: bool, from: Option<IpAddr>, now: Instant) {
        if let Some(from) = from {
            self.from.insert(from, now);
            self.from
                .retain(|_, at| now.saturating_duration_since(*at) <= WINDOW);
            while self.from.len() > MAX_ADDRESSES {
                let first = self.from.iter().min_by_key(|(_, at)| **at);
                let Some((first, _)) = first.map(|(ip, at)| (*ip, *at)) else {
                    break;
                };
                self.from.remove(&first);
            }
        }
        if is_older {
            self.older.push_back(now);
            while self.older.len() > REPORTS {
                self.older.pop_front();
            }
        }
    }

    /// That two agents report as this node, for people; absent: they do not, as far as is known.
    pub(crate) fn warning(&self, now: Instant) -> Option<String> {
        let since = self.older.front()?;
        let are_two =
            self.older.len() == REPORTS && now.saturating_duration_since(*since) <= WINDOW;
        are_two.then(|| {
            let from: Vec<_> = self.from.keys().map(ToString::to_string).collect();
            let from = if from.is_empty() {
                String::new()
            } else {
                format!(", from {}", from.join(" and "))
            };
            format!(
                "two agents report as this node{from}: the data folder of one machine is a copy of another's; on the machine that is not it: `systemctl disable --now platform-node`, `platform node down`, then `platform node join --again` with a new token"
            )
        })
    }

    /// The same, once for each time that it begins: for the log.
    pub(crate) fn news(&mut self, now: Instant) -> Option<String> {
        let warning = self.warning(now);
        let was_named = std::mem::replace(&mut self.was_named, warning.is_some());
        warning.filter(|_| !was_named)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_restart_is_no_copy_and_reports_of_two_starts_by_turns_are() {
        let began = Instant::now();
        let address = |host| Some(IpAddr::from([192, 0, 2, host]));
        let mut copies = Copies::default();
        for second in 0..1000 {
            let now = began + Duration::from_secs(second);
            // One report of the agent that was killed was under way, each time.
            copies.note(second % 100 == 50, address(7), now);
            assert_eq!(copies.news(now), None);
        }
        let began = began + Duration::from_secs(2000);
        for second in 0..10 {
            let now = began + Duration::from_secs(second);
            copies.note(false, address(7), now);
            copies.note(true, address(8), now);
            let named = copies.news(now);
            assert_eq!(named.is_some(), second == 2, "once");
        }
        let warning = copies.warning(began + Duration::from_secs(10)).unwrap();
        assert!(
            warning.contains("from 192.0.2.7 and 192.0.2.8"),
            "{warning}"
        );
        // One of them is gone.
        assert_eq!(
            copies.warning(began + WINDOW + Duration::from_secs(10)),
            None
        );
        for host in 0..=u8::MAX {
            copies.note(false, address(host), began);
        }
        assert!(copies.from.len() <= MAX_ADDRESSES);
    }
}

//! Which hubs are dead: no member's packets pass them any more (ADR 0004).
//!
//! Members probe their hubs in the tunnel and say which answer. A hub is taken for dead when a member says that it does not answer while another
//! of its hubs does, so that it is not the member's own network, and when more than half of those that probe it say the same, or the hub itself
//! is not heard by the server either. One member that lies moves others only where it is alone.
//!
//! ```text
//!              silent to more than half of those that probe it,
//!              or to one of them and to the server
//!     alive --------------------------------------------------------> dead
//!       ^                                                              |
//!       +---- heard by the server, and its hold-down is over <---------+
//! ```
//!
//! Nobody probes a dead hub, because it is nobody's hub. So it becomes one again on trial when its hold-down is over, and one that fails on trial is held
//! down twice as long as before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::NodeId;
use overlay::topology::Topology;

/// How long a hub is held down after it was found dead.
pub const HOLD_DOWN: Duration = Duration::from_secs(60);
/// The longest that a hub is held down which fails again and again.
pub const MAX_HOLD_DOWN: Duration = Duration::from_secs(3600);
/// How long a hub has to be well until its next death counts as its first.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3600);
/// What a member said counts for so long; members say it again each minute, and at once when it changes.
const SAID_FOR: Duration = Duration::from_secs(150);
/// A hub that the server has not heard for so long is silent: two heartbeats of a cluster of any usual size.
pub const SILENT_AFTER: Duration = Duration::from_secs(7);

/// What members say of their hubs, and which hubs are held down. Times are since any fixed moment, by a clock that cannot jump.
#[derive(Debug, Clone, Default)]
pub struct HubWatch {
    /// When each member said whether its hubs answer.
    said: BTreeMap<NodeId, (Duration, BTreeMap<NodeId, bool>)>,
    deaths: BTreeMap<NodeId, Death>,
}

#[derive(Debug, Clone, Copy)]
struct Death {
    /// Since when it is held down; absent: it is alive again.
    at: Option<Duration>,
    /// How long.
    hold_down: Duration,
    /// When it was alive again.
    revived_at: Duration,
}

impl HubWatch {
    /// A member says which of its hubs answer it in the tunnel.
    pub fn report(&mut self, member: NodeId, answers: BTreeMap<NodeId, bool>, now: Duration) {
        if answers.is_empty() {
            self.said.remove(&member);
        } else {
            self.said.insert(member, (now, answers));
        }
    }

    /// The hubs that are dead now. `silent_for`: how long the server has not heard a node; absent: it has not heard it at all.
    pub fn evaluate(
        &mut self,
        topology: &Topology,
        silent_for: impl Fn(NodeId) -> Option<Duration>,
        now: Duration,
    ) -> BTreeSet<NodeId> {
        let is_silent = |hub| silent_for(hub).is_none_or(|silent| silent >= SILENT_AFTER);
        self.said
            .retain(|member, (at, _)| topology.has(*member) && *at + SAID_FOR > now);
        for (hub, death) in &mut self.deaths {
            if let Some(at) = death.at
                && now >= at + death.hold_down
                && !is_silent(*hub)
            {
                death.at = None;
                death.revived_at = now;
            }
        }
        self.deaths.retain(|hub, death| {
            topology.has(*hub) && (death.at.is_some() || now < death.revived_at + FORGIVEN_AFTER)
        });
        // Of each hub, how many probe it, and how many find it dead.
        let mut votes: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
        for (_, answers) in self.said.values() {
            let hears_another = answers.values().any(|answers| *answers);
            for (hub, answers) in answers {
                let (probing, complaining) = votes.entry(*hub).or_default();
                *probing += 1;
                *complaining += usize::from(!answers && hears_another);
            }
        }
        for (hub, (probing, complaining)) in votes {
            let is_dead = complaining * 2 > probing || (complaining > 0 && is_silent(hub));
            if !is_dead || !topology.is_hub(hub) {
                continue;
            }
            let before = self.deaths.get(&hub);
            if before.is_some_and(|death| death.at.is_some()) {
                continue;
            }
            let hold_down =
                before.map_or(HOLD_DOWN, |death| (death.hold_down * 2).min(MAX_HOLD_DOWN));
            let death = Death {
                at: Some(now),
                hold_down,
                revived_at: now,
            };
            self.deaths.insert(hub, death);
            // What was said of it is about the time before.
            for (_, answers) in self.said.values_mut() {
                answers.remove(&hub);
            }
        }
        let dead = self.deaths.iter().filter(|(_, death)| death.at.is_some());
        dead.map(|(hub, _)| *hub).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use overlay::topology::{HubRole, Member, Mode};

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn topology(count: u16, dead: &BTreeSet<NodeId>) -> Topology {
        let member = Member {
            region: "r".to_owned(),
            hub: HubRole::Automatic,
        };
        let members = (1..=count).map(|id| (NodeId(id), member.clone()));
        Topology::new(&members.collect(), Mode::Hubs { local_mesh: 0 }, dead)
    }

    /// What a member of a cluster with hubs n1 and n2 says.
    fn answers(first: bool, second: bool) -> BTreeMap<NodeId, bool> {
        BTreeMap::from([(NodeId(1), first), (NodeId(2), second)])
    }

    const HEARD: fn(NodeId) -> Option<Duration> = |_| Some(Duration::ZERO);

    #[test]
    fn a_hub_is_dead_when_most_say_so_or_when_it_is_silent_to_the_server_too() {
        let topology = topology(6, &BTreeSet::new());
        let mut watch = HubWatch::default();
        for member in 3..=6 {
            watch.report(NodeId(member), answers(true, true), s(0));
        }
        assert!(watch.evaluate(&topology, HEARD, s(1)).is_empty());
        watch.report(NodeId(3), answers(false, true), s(2));
        watch.report(NodeId(4), answers(false, true), s(2));
        assert!(watch.evaluate(&topology, HEARD, s(2)).is_empty(), "half");
        let silent = |hub: NodeId| Some(if hub == NodeId(1) { SILENT_AFTER } else { s(0) });
        let dead = watch.clone().evaluate(&topology, silent, s(2));
        assert_eq!(dead, BTreeSet::from([NodeId(1)]));
        watch.report(NodeId(5), answers(false, true), s(3));
        assert_eq!(
            watch.evaluate(&topology, HEARD, s(3)),
            BTreeSet::from([NodeId(1)])
        );
    }

    #[test]
    fn a_member_that_hears_no_hub_and_a_server_that_hears_none_kill_nobody() {
        let topology = topology(6, &BTreeSet::new());
        let mut watch = HubWatch::default();
        for member in 3..=6 {
            watch.report(NodeId(member), answers(false, false), s(0));
        }
        assert!(watch.evaluate(&topology, HEARD, s(1)).is_empty());
        for member in 3..=6 {
            watch.report(NodeId(member), answers(true, true), s(1));
        }
        assert!(watch.evaluate(&topology, |_| None, s(20)).is_empty());
    }

    #[test]
    fn a_dead_hub_is_held_down_and_one_that_fails_again_for_longer() {
        let all = topology(6, &BTreeSet::new());
        let mut watch = HubWatch::default();
        let mut now = s(0);
        for hold_down in [HOLD_DOWN, HOLD_DOWN * 2, HOLD_DOWN * 4] {
            for member in 3..=6 {
                watch.report(NodeId(member), answers(false, true), now);
            }
            let dead = watch.evaluate(&all, HEARD, now);
            assert_eq!(dead, BTreeSet::from([NodeId(1)]));
            let without = topology(6, &dead);
            assert!(!without.is_hub(NodeId(1)));
            let last = hold_down.saturating_sub(s(1));
            assert_eq!(watch.evaluate(&without, HEARD, now + last), dead);
            // One that the server does not hear stays down.
            let at = now + hold_down;
            assert_eq!(watch.evaluate(&without, |_| None, at), dead);
            assert!(watch.evaluate(&without, HEARD, at).is_empty());
            now = at + s(5);
        }
        // An hour without a death is forgiven.
        now += FORGIVEN_AFTER;
        assert!(watch.evaluate(&all, HEARD, now).is_empty());
        assert!(watch.deaths.is_empty());
    }

    #[test]
    fn what_was_said_long_ago_or_by_one_that_left_counts_no_more() {
        let all = topology(6, &BTreeSet::new());
        let mut watch = HubWatch::default();
        watch.report(NodeId(3), answers(false, true), s(0));
        watch.report(NodeId(9), answers(false, true), s(200));
        assert!(watch.evaluate(&all, HEARD, s(200)).is_empty());
        assert!(watch.said.is_empty());
    }
}

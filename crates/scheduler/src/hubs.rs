//! What does not work of the hubs: those that are dead, and those that one member alone does not reach (ADR 0004).
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
//!
//! A member that does not reach its home, while others do, goes by another of its hubs that answers it: what it says moves nobody but itself. It probes the
//! hub that it left, so that is its home again when it answers and its hold-down is over. Where only hubs that are held down answer, one of these is taken.
//!
//! ```text
//!              its home is silent to it, another of its hubs answers
//!   reached ---------------------------------------------------------> not reached
//!       ^                                                                   |
//!       +---- answers it, and the hold-down is over or it has no other <----+
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use model::NodeId;
use overlay::topology::{HubFaults, Topology};

/// How long a hub is held down after it was found dead, or not reached by a member.
pub const HOLD_DOWN: Duration = Duration::from_secs(60);
/// The longest that a hub is held down which fails again and again.
pub const MAX_HOLD_DOWN: Duration = Duration::from_secs(3600);
/// How long a hub has to be well until its next failure counts as its first.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3600);
/// What a member said counts for so long; members say it again each minute, and at once when it changes.
const SAID_FOR: Duration = Duration::from_secs(150);
/// A member moves to another home at most once in so long, whatever it says.
const MOVE_INTERVAL: Duration = Duration::from_secs(5);
/// A hub that the server has not heard for so long is silent: two heartbeats of a cluster of any usual size.
pub const SILENT_AFTER: Duration = Duration::from_secs(7);

/// What members say of their hubs, and which hubs are held down. Times are since any fixed moment, by a clock that cannot jump.
#[derive(Debug, Clone, Default)]
pub struct HubWatch {
    /// When each member said whether its hubs answer.
    said: BTreeMap<NodeId, (Duration, BTreeMap<NodeId, bool>)>,
    deaths: BTreeMap<NodeId, Failure>,
    /// A member, and a hub of it that it did not reach: three for each member at most.
    unreached: BTreeMap<(NodeId, NodeId), Failure>,
    /// When members moved of late.
    moved: BTreeMap<NodeId, Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    /// Since when the hub is held down; absent: it works again.
    at: Option<Duration>,
    /// How long.
    hold_down: Duration,
    /// When it worked again.
    revived_at: Duration,
}

impl Failure {
    /// One that happens now. One after another is held down for twice as long.
    fn after(before: Option<&Self>, now: Duration) -> Self {
        Self {
            at: Some(now),
            hold_down: before.map_or(HOLD_DOWN, |before| {
                (before.hold_down * 2).min(MAX_HOLD_DOWN)
            }),
            revived_at: now,
        }
    }

    fn is_held_down(&self) -> bool {
        self.at.is_some()
    }

    /// Whether the hold-down is over and the hub may be tried.
    fn is_over(&self, now: Duration) -> bool {
        self.at.is_some_and(|at| now >= at + self.hold_down)
    }

    fn revive(&mut self, now: Duration) {
        self.at = None;
        self.revived_at = now;
    }

    /// Whether it is not forgiven yet.
    fn counts(&self, now: Duration) -> bool {
        self.is_held_down() || now < self.revived_at + FORGIVEN_AFTER
    }
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

    /// What does not work now. `silent_for`: how long the server has not heard a node; absent: it has not heard it at all.
    pub fn evaluate(
        &mut self,
        topology: &Topology,
        silent_for: impl Fn(NodeId) -> Option<Duration>,
        now: Duration,
    ) -> HubFaults {
        self.said
            .retain(|member, (at, _)| topology.has(*member) && *at + SAID_FOR > now);
        self.find_dead(topology, silent_for, now);
        self.find_unreached(topology, now);
        let dead = self.deaths.iter();
        let unreached = self.unreached.iter();
        HubFaults {
            dead: dead
                .filter_map(|(hub, death)| death.is_held_down().then_some(*hub))
                .collect(),
            unreached: unreached
                .filter_map(|(pair, failure)| failure.is_held_down().then_some(*pair))
                .collect(),
        }
    }

    fn find_dead(
        &mut self,
        topology: &Topology,
        silent_for: impl Fn(NodeId) -> Option<Duration>,
        now: Duration,
    ) {
        let is_silent = |hub| silent_for(hub).is_none_or(|silent| silent >= SILENT_AFTER);
        for (hub, death) in &mut self.deaths {
            if death.is_over(now) && !is_silent(*hub) {
                death.revive(now);
            }
        }
        self.deaths
            .retain(|hub, death| topology.has(*hub) && death.counts(now));
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
            if before.is_some_and(Failure::is_held_down) {
                continue;
            }
            self.deaths.insert(hub, Failure::after(before, now));
            // What was said of it is about the time before.
            for (_, answers) in self.said.values_mut() {
                answers.remove(&hub);
            }
        }
    }

    /// This costs what members said, whoever else there is.
    fn find_unreached(&mut self, topology: &Topology, now: Duration) {
        let said = &self.said;
        let answers = |member: NodeId, hub: NodeId| said.get(&member)?.1.get(&hub).copied();
        for ((member, hub), failure) in &mut self.unreached {
            if failure.is_over(now) && answers(*member, *hub) == Some(true) {
                failure.revive(now);
            }
        }
        let is_hub_of = |member, hub| topology.hubs_of(member).contains(&hub);
        self.unreached
            .retain(|(member, hub), failure| is_hub_of(*member, *hub) && failure.counts(now));
        self.moved.retain(|_, at| now < *at + MOVE_INTERVAL);
        for (member, (_, answers)) in said {
            let hubs = topology.hubs_of(*member);
            let is_held_down = |hub: NodeId| {
                let failure = self.unreached.get(&(*member, hub));
                failure.is_some_and(Failure::is_held_down)
            };
            // The home is the first that is not held down, or the first of all.
            let home = hubs.iter().find(|hub| !is_held_down(**hub));
            let is_silent =
                home.or(hubs.first()).map(|home| answers.get(home)) == Some(Some(&false));
            let heard = || hubs.iter().filter(|hub| answers.get(hub) == Some(&true));
            if !is_silent || heard().next().is_none() || self.moved.contains_key(member) {
                continue;
            }
            self.moved.insert(*member, now);
            // Where those that answer are held down, they are not from now on.
            if heard().all(|hub| is_held_down(*hub)) {
                for hub in heard() {
                    if let Some(failure) = self.unreached.get_mut(&(*member, *hub)) {
                        failure.revive(now);
                    }
                }
            }
            // All that are silent at once: it moves in one step to one that answers.
            for hub in hubs.iter().filter(|hub| answers.get(hub) == Some(&false)) {
                let pair = (*member, *hub);
                let before = self.unreached.get(&pair);
                if !before.is_some_and(Failure::is_held_down) {
                    let failure = Failure::after(before, now);
                    self.unreached.insert(pair, failure);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use overlay::topology::{HubRole, Member, Mode};
    use proptest::prelude::*;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn topology(count: u16, faults: &HubFaults) -> Topology {
        let member = Member {
            region: "r".into(),
            ..Member::default()
        };
        let members = (1..=count).map(|id| (NodeId(id), member.clone()));
        Topology::new(&members.collect(), Mode::Hubs { local_mesh: 0 }, faults)
    }

    /// What a member of a cluster with hubs n1 and n2 says.
    fn answers(first: bool, second: bool) -> BTreeMap<NodeId, bool> {
        BTreeMap::from([(NodeId(1), first), (NodeId(2), second)])
    }

    const HEARD: fn(NodeId) -> Option<Duration> = |_| Some(Duration::ZERO);

    #[test]
    fn a_hub_is_dead_when_most_say_so_or_when_it_is_silent_to_the_server_too() {
        let topology = topology(6, &HubFaults::default());
        let mut watch = HubWatch::default();
        for member in 3..=6 {
            watch.report(NodeId(member), answers(true, true), s(0));
        }
        assert!(watch.evaluate(&topology, HEARD, s(1)).dead.is_empty());
        watch.report(NodeId(3), answers(false, true), s(2));
        watch.report(NodeId(4), answers(false, true), s(2));
        assert!(
            watch.evaluate(&topology, HEARD, s(2)).dead.is_empty(),
            "half"
        );
        let silent = |hub: NodeId| Some(if hub == NodeId(1) { SILENT_AFTER } else { s(0) });
        let dead = watch.clone().evaluate(&topology, silent, s(2)).dead;
        assert_eq!(dead, BTreeSet::from([NodeId(1)]));
        watch.report(NodeId(5), answers(false, true), s(3));
        assert_eq!(
            watch.evaluate(&topology, HEARD, s(3)).dead,
            BTreeSet::from([NodeId(1)])
        );
    }

    #[test]
    fn a_member_that_hears_no_hub_and_a_server_that_hears_none_kill_nobody() {
        let topology = topology(6, &HubFaults::default());
        let mut watch = HubWatch::default();
        for member in 3..=6 {
            watch.report(NodeId(member), answers(false, false), s(0));
        }
        assert!(watch.evaluate(&topology, HEARD, s(1)).dead.is_empty());
        for member in 3..=6 {
            watch.report(NodeId(member), answers(true, true), s(1));
        }
        assert!(watch.evaluate(&topology, |_| None, s(20)).dead.is_empty());
    }

    #[test]
    fn a_dead_hub_is_held_down_and_one_that_fails_again_for_longer() {
        let all = topology(6, &HubFaults::default());
        let mut watch = HubWatch::default();
        let mut now = s(0);
        for hold_down in [HOLD_DOWN, HOLD_DOWN * 2, HOLD_DOWN * 4] {
            for member in 3..=6 {
                watch.report(NodeId(member), answers(false, true), now);
            }
            let faults = watch.evaluate(&all, HEARD, now);
            assert_eq!(faults.dead, BTreeSet::from([NodeId(1)]));
            let dead = faults.dead.clone();
            let without = topology(6, &faults);
            assert!(!without.is_hub(NodeId(1)));
            let last = hold_down.saturating_sub(s(1));
            assert_eq!(watch.evaluate(&without, HEARD, now + last).dead, dead);
            // One that the server does not hear stays down.
            let at = now + hold_down;
            assert_eq!(watch.evaluate(&without, |_| None, at).dead, dead);
            assert!(watch.evaluate(&without, HEARD, at).dead.is_empty());
            now = at + s(5);
        }
        // An hour without a death is forgiven.
        now += FORGIVEN_AFTER;
        assert!(watch.evaluate(&all, HEARD, now).dead.is_empty());
        assert!(watch.deaths.is_empty());
    }

    #[test]
    fn what_was_said_long_ago_or_by_one_that_left_counts_no_more() {
        let all = topology(6, &HubFaults::default());
        let mut watch = HubWatch::default();
        watch.report(NodeId(3), answers(false, true), s(0));
        watch.report(NodeId(9), answers(false, true), s(200));
        assert!(watch.evaluate(&all, HEARD, s(200)).dead.is_empty());
        assert!(watch.said.is_empty());
    }

    /// A cluster with hubs as it runs: who reaches whom, and what members notice and say of it, a second at a time.
    struct Cluster {
        members: BTreeMap<NodeId, Member>,
        watch: HubWatch,
        topology: Topology,
        /// Pairs of a member and a hub between which nothing passes.
        broken: BTreeSet<(NodeId, NodeId)>,
        /// Probes that a hub did not answer on end.
        unanswered: BTreeMap<(NodeId, NodeId), u32>,
        now: Duration,
        /// How often each member had another home than before.
        moves: BTreeMap<NodeId, u32>,
    }

    impl Cluster {
        fn new(count: u16, large: bool) -> Self {
            let member = |id: u16| Member {
                region: "r".into(),
                hub: if id <= 3 {
                    HubRole::Preferred
                } else {
                    HubRole::Never
                },
                is_edge: false,
            };
            // A large region has three hubs.
            let others = if large { 200..300 } else { 200..200 };
            let ids = (1..=count).chain(others);
            let members: BTreeMap<_, _> = ids.map(|id| (NodeId(id), member(id))).collect();
            let mode = Mode::Hubs { local_mesh: 0 };
            Self {
                topology: Topology::new(&members, mode, &HubFaults::default()),
                members,
                watch: HubWatch::default(),
                broken: BTreeSet::new(),
                unanswered: BTreeMap::new(),
                now: s(1000),
                moves: BTreeMap::new(),
            }
        }

        fn second(&mut self) {
            self.now += s(1);
            for member in self.members.keys() {
                let mut answers = BTreeMap::new();
                for hub in self.topology.hubs_of(*member) {
                    let pair = (*member, *hub);
                    let lost = self.unanswered.entry(pair).or_default();
                    *lost = if self.broken.contains(&pair) {
                        *lost + 1
                    } else {
                        0
                    };
                    answers.insert(*hub, *lost <= 3);
                }
                self.watch.report(*member, answers, self.now);
            }
            let faults = self.watch.evaluate(&self.topology, HEARD, self.now);
            let mode = Mode::Hubs { local_mesh: 0 };
            let after = Topology::new(&self.members, mode, &faults);
            for member in self.members.keys() {
                if self.topology.home(*member) != after.home(*member) {
                    *self.moves.entry(*member).or_default() += 1;
                }
            }
            self.topology = after;
        }

        fn is_cut_off(&self, member: NodeId) -> bool {
            let home = self.topology.home(member);
            home.is_some_and(|home| self.broken.contains(&(member, home)))
        }

        fn has_another(&self, member: NodeId) -> bool {
            let mut hubs = self.topology.hubs_of(member).iter();
            hubs.any(|hub| !self.broken.contains(&(member, *hub)))
        }
    }

    #[test]
    fn one_that_does_not_reach_its_home_moves_alone_and_back_when_it_does() {
        let mut cluster = Cluster::new(20, false);
        cluster.second();
        let member = NodeId(7);
        let home = cluster.topology.home(member).unwrap();
        cluster.broken.insert((member, home));
        let mut seconds = 0;
        while cluster.is_cut_off(member) {
            cluster.second();
            seconds += 1;
        }
        // Four probes; a report and a poll come on top of it.
        assert!(seconds <= 5, "{seconds} s");
        assert_eq!(cluster.moves, BTreeMap::from([(member, 1)]));
        assert!(cluster.topology.is_hub(home), "others reach it");
        // It is well at once, and home again when the hold-down is over.
        cluster.broken.clear();
        for _ in 0..50 {
            cluster.second();
        }
        assert_ne!(cluster.topology.home(member), Some(home));
        for _ in 0..20 {
            cluster.second();
        }
        assert_eq!(cluster.topology.home(member), Some(home));
        assert_eq!(cluster.moves, BTreeMap::from([(member, 2)]));
    }

    #[test]
    fn one_whose_link_comes_and_goes_moves_ever_less_often() {
        let mut cluster = Cluster::new(20, false);
        let member = NodeId(7);
        let home = cluster.topology.home(member).unwrap();
        for second in 0..4 * 3600 {
            if second % 20 < 10 {
                cluster.broken.insert((member, home));
            } else {
                cluster.broken.clear();
            }
            cluster.second();
        }
        // There and back for hold-downs of 1, 2, 4 .. 60 minutes.
        assert!(cluster.moves[&member] <= 20, "{:?}", cluster.moves);
        assert_eq!(cluster.moves.len(), 1);
    }

    #[test]
    fn one_that_says_this_and_that_moves_nobody_else_and_itself_at_a_bounded_pace() {
        let all = topology(6, &HubFaults::default());
        let mut watch = HubWatch::default();
        let mut moves = 0;
        let mut before = HubFaults::default();
        let mut now = s(0);
        for _ in 0..600 {
            for member in 4..=6 {
                watch.report(NodeId(member), answers(true, true), now);
            }
            let home = topology(6, &before).home(NodeId(3)).unwrap();
            watch.report(
                NodeId(3),
                answers(home != NodeId(1), home != NodeId(2)),
                now,
            );
            let faults = watch.evaluate(&all, HEARD, now);
            assert!(faults.dead.is_empty());
            assert!(
                faults
                    .unreached
                    .iter()
                    .all(|(member, _)| *member == NodeId(3))
            );
            moves += u32::from(faults != before);
            before = faults;
            now += Duration::from_millis(100);
        }
        assert!(moves <= 13, "{moves} in a minute");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn whoever_reaches_a_hub_goes_by_one_that_it_reaches(
            large in any::<bool>(),
            steps in prop::collection::vec(prop::collection::btree_set((4_u16..14, 1_u16..4), 0..8), 1..8),
        ) {
            let mut cluster = Cluster::new(30, large);
            for broken in steps {
                cluster.broken = broken.into_iter().map(|(member, hub)| (NodeId(member), NodeId(hub))).collect();
                for _ in 0..15 {
                    cluster.second();
                }
                let hubs: Vec<_> = cluster.topology.hubs().map(|(hub, _)| hub).collect();
                prop_assert_eq!(hubs.len(), if large { 3 } else { 2 }, "a few do not kill a hub");
                for member in cluster.members.keys() {
                    prop_assert!(
                        !cluster.is_cut_off(*member) || !cluster.has_another(*member),
                        "{} does not reach its home", member
                    );
                }
            }
        }
    }
}

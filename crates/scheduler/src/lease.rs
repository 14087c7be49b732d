//! Which of several servers on one store leads (ADR 0001).
//!
//! The store has one lease with a term. A server that leads renews it; when it expires, by the database's clock, another takes it
//! for the next term. What protects the state is the store: a write of a term that is over is refused. What is decided here is
//! who tries to lead, and until when a leader may answer from its memory.
//!
//! ```text
//!                 the lease is free, and was taken
//!     Following ------------------------------------> Leading
//!         ^                                              |
//!         +----------------------------------------------+
//!            it was not renewed in time, another has it, or the term was given up
//! ```
//!
//! A leader counts its time from before it asked for the renewal, by its own monotonic clock, so it stops before the database
//! lets another begin. A lease that has not changed for [`STALE_AFTER_MS`] of a follower's own clock is free too: the database's
//! clock may have been set back.
//!
//! Deliberately absent: the statements (they are in `store`), the address of the leader, and any wish of who should lead.

use model::Term;

/// How long a lease lives after it was taken or renewed, in milliseconds.
pub const TTL_MS: u64 = 6_000;
/// A leader renews its lease this often, in milliseconds: three may fail.
pub const RENEW_EVERY_MS: u64 = 1_500;
/// A follower looks at the lease this often, in milliseconds. A leader whose renewal failed tries again after the same time.
pub const LOOK_EVERY_MS: u64 = 500;
/// A lease is free when it has not changed for this long, whatever the database's clock says. In milliseconds.
pub const STALE_AFTER_MS: u64 = 2 * TTL_MS;

/// The lease, as the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenLease {
    /// The newest term.
    pub term: Term,
    /// How often it was renewed in its term.
    pub renewals: u64,
    /// When it expires, by the database's clock, in milliseconds from when it was read. Not positive: it has expired.
    pub expires_in_ms: i64,
}

impl SeenLease {
    /// Whether a transaction of this term may write: the term is the lease's, and has not expired.
    pub fn admits(self, term: Term) -> bool {
        self.term == term && self.expires_in_ms > 0
    }

    /// The term in which another server leads, by the lease. One's own of before, the answer to which was lost, is waited for as
    /// another's.
    pub fn leader_beside(self, is_mine: bool) -> Option<Term> {
        (self.expires_in_ms > 0 && !is_mine).then_some(self.term)
    }
}

/// Who answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answerer {
    /// The server that was asked.
    Me,
    /// The leader that it knows: the request goes on to it.
    Leader,
    /// Nobody now: no leader is known, or a server that took this one for the leader has forwarded the request.
    Nobody,
}

/// Who answers a request to a server that leads in the term `leads`, or knows of another's term. A request that was forwarded is
/// not forwarded again.
pub fn answerer(leads: Option<Term>, follows: Option<Term>, is_forwarded: bool) -> Answerer {
    match (leads, follows) {
        (Some(_), _) => Answerer::Me,
        (None, Some(_)) if !is_forwarded => Answerer::Leader,
        (None, _) => Answerer::Nobody,
    }
}

/// What a server does next about the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseStep {
    /// Read the lease: [`Candidate::on_seen`].
    Look,
    /// Take it, if it is as it was seen: [`Candidate::on_acquired`].
    Acquire(SeenLease),
    /// Renew it: [`Candidate::on_renewed`].
    Renew(Term),
    /// The term is over: end what was begun in it, then [`Candidate::on_ended`].
    StepDown(Term),
    /// Nothing for so many milliseconds.
    Wait(u64),
}

/// One server, which leads or would. Times are milliseconds of its own monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Following {
        /// The lease as it was seen last, and since when it has not changed.
        seen: Option<(SeenLease, u64)>,
        /// Whether it was found free.
        is_free: bool,
        /// When to look again.
        look_at: u64,
    },
    Leading {
        term: Term,
        /// Until when the lease lives for certain.
        until: u64,
        renew_at: u64,
        /// The term ends, whatever the lease says.
        is_over: bool,
    },
}

impl Candidate {
    /// A server that starts now: it looks at once.
    pub fn starting(now: u64) -> Self {
        Self::following(now)
    }

    fn following(look_at: u64) -> Self {
        Self(State::Following {
            seen: None,
            is_free: false,
            look_at,
        })
    }

    /// The term in which this server leads now. A leader whose lease may have expired leads no longer.
    pub fn leads(&self, now: u64) -> Option<Term> {
        match self.0 {
            State::Leading {
                term,
                until,
                is_over: false,
                ..
            } if now < until => Some(term),
            _ => None,
        }
    }

    /// Until when the lease lives for certain, by this server's clock; absent while it does not lead.
    pub fn leads_until(&self) -> Option<u64> {
        match self.0 {
            State::Leading { until, .. } => Some(until),
            State::Following { .. } => None,
        }
    }

    /// What to do now.
    pub fn step(&self, now: u64) -> LeaseStep {
        match &self.0 {
            State::Following {
                seen: Some((seen, _)),
                is_free: true,
                ..
            } => LeaseStep::Acquire(*seen),
            State::Following { look_at, .. } if now < *look_at => LeaseStep::Wait(look_at - now),
            State::Following { .. } => LeaseStep::Look,
            State::Leading {
                term,
                until,
                renew_at,
                is_over,
            } => {
                if *is_over || now >= *until {
                    LeaseStep::StepDown(*term)
                } else if now >= *renew_at {
                    LeaseStep::Renew(*term)
                } else {
                    LeaseStep::Wait((*renew_at).min(*until) - now)
                }
            }
        }
    }

    /// The lease was read. It was asked for at `asked_at`.
    pub fn on_seen(&mut self, lease: SeenLease, asked_at: u64, now: u64) {
        let State::Following { seen, .. } = &self.0 else {
            return;
        };
        let mark = |lease: SeenLease| (lease.term, lease.renewals);
        let since = seen.filter(|(before, _)| mark(*before) == mark(lease));
        let since = since.map_or(now, |(_, since)| since);
        let is_stale = asked_at.saturating_sub(since) >= STALE_AFTER_MS;
        self.0 = State::Following {
            seen: Some((lease, since)),
            is_free: lease.expires_in_ms <= 0 || is_stale,
            look_at: now.saturating_add(LOOK_EVERY_MS),
        };
    }

    /// An attempt to take the lease ended: in this term, or somebody else was first. It was begun at `asked_at`.
    pub fn on_acquired(&mut self, term: Option<Term>, asked_at: u64, now: u64) {
        self.0 = match term {
            Some(term) => State::Leading {
                term,
                until: asked_at.saturating_add(TTL_MS),
                renew_at: asked_at.saturating_add(RENEW_EVERY_MS),
                is_over: false,
            },
            None => return *self = Self::following(now),
        };
    }

    /// A renewal ended. False: the lease is another's. It was begun at `asked_at`.
    pub fn on_renewed(&mut self, renewed: bool, asked_at: u64) {
        if let State::Leading {
            until,
            renew_at,
            is_over,
            ..
        } = &mut self.0
        {
            if renewed {
                *until = asked_at.saturating_add(TTL_MS).max(*until);
                *renew_at = asked_at.saturating_add(RENEW_EVERY_MS);
            } else {
                *is_over = true;
            }
        }
    }

    /// The store did not answer: the same is tried again in a while. Whether the lease was taken or renewed is not known.
    pub fn on_failed(&mut self, now: u64) {
        let again = now.saturating_add(LOOK_EVERY_MS);
        match &mut self.0 {
            State::Following {
                is_free, look_at, ..
            } => {
                *is_free = false;
                *look_at = again;
            }
            State::Leading { renew_at, .. } => *renew_at = again,
        }
    }

    /// The term is to end: the store refused a write of it, or what was to be begun in it failed.
    pub fn give_up(&mut self) {
        if let State::Leading { is_over, .. } = &mut self.0 {
            *is_over = true;
        }
    }

    /// All that was begun in the term has ended.
    pub fn on_ended(&mut self, now: u64) {
        *self = Self::following(now.saturating_add(LOOK_EVERY_MS));
    }
}

/// A store's lease in memory, with what the store's statements do to it: for tests, and for the simulation. Times are by the
/// database's clock, in milliseconds.
#[cfg(any(test, feature = "fixtures"))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredLease {
    /// The newest term.
    pub term: Term,
    /// How often it was renewed.
    pub renewals: u64,
    /// When it expires. 0: it was given up, or never taken.
    pub expires_at: i64,
}

#[cfg(any(test, feature = "fixtures"))]
impl StoredLease {
    /// As whoever reads it now sees it.
    pub fn seen(&self, clock: i64) -> SeenLease {
        SeenLease {
            term: self.term,
            renewals: self.renewals,
            expires_in_ms: self.expires_at - clock,
        }
    }

    /// Takes it for a new term, if it is as it was seen.
    pub fn acquire(&mut self, seen: SeenLease, clock: i64) -> Option<Term> {
        if (self.term, self.renewals) != (seen.term, seen.renewals) {
            return None;
        }
        *self = Self {
            term: Term(self.term.0 + 1),
            renewals: 0,
            expires_at: Self::expiry(clock),
        };
        Some(self.term)
    }

    /// Renews it. False: the term is over, or was given up.
    pub fn renew(&mut self, term: Term, clock: i64) -> bool {
        if self.term != term || self.expires_at == 0 {
            return false;
        }
        self.renewals += 1;
        self.expires_at = Self::expiry(clock);
        true
    }

    /// Gives it up, so that another server takes it at once.
    pub fn release(&mut self, term: Term) {
        if self.term == term {
            self.expires_at = 0;
        }
    }

    fn expiry(clock: i64) -> i64 {
        clock.saturating_add_unsigned(TTL_MS)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    const SERVERS: usize = 3;

    /// The lease as the database has it, and its clock.
    #[derive(Debug, Clone, Default)]
    struct Database {
        lease: StoredLease,
        /// What its clock shows more than true time.
        offset: i64,
    }

    impl Database {
        fn clock(&self, now: u64) -> i64 {
            1_000_000 + i64::try_from(now).unwrap() + self.offset
        }
    }

    /// What a server asked of the database, on its way there or back.
    #[derive(Debug, Clone, Copy)]
    enum Asked {
        Request(LeaseStep),
        Seen(SeenLease),
        Acquired(Option<Term>),
        Renewed(bool),
        Lost,
    }

    #[derive(Debug)]
    struct Cluster {
        now: u64,
        database: Database,
        servers: Vec<(Candidate, Option<(u64, Asked)>)>,
        /// Every term that was taken, and by whom.
        terms: Vec<u64>,
    }

    impl Cluster {
        fn new() -> Self {
            Self {
                now: 0,
                database: Database::default(),
                servers: vec![(Candidate::starting(0), None); SERVERS],
                terms: Vec::new(),
            }
        }

        /// Moves one server on by a part of a step: it asks, the database does it, the answer arrives.
        fn advance(&mut self, who: usize, is_lost: bool) {
            let (now, clock) = (self.now, self.database.clock(self.now));
            let lease = &mut self.database.lease;
            let (server, pending) = &mut self.servers[who];
            *pending = match pending.take() {
                None => match server.step(now) {
                    LeaseStep::Wait(_) => None,
                    LeaseStep::StepDown(_) => {
                        server.on_ended(now);
                        None
                    }
                    step => Some((now, Asked::Request(step))),
                },
                Some((asked_at, _)) if is_lost => Some((asked_at, Asked::Lost)),
                Some((asked_at, Asked::Request(step))) => Some((
                    asked_at,
                    match step {
                        LeaseStep::Look => Asked::Seen(lease.seen(clock)),
                        LeaseStep::Acquire(seen) => {
                            let term = lease.acquire(seen, clock);
                            self.terms.extend(term.map(|term| term.0));
                            Asked::Acquired(term)
                        }
                        LeaseStep::Renew(term) => Asked::Renewed(lease.renew(term, clock)),
                        LeaseStep::StepDown(_) | LeaseStep::Wait(_) => Asked::Lost,
                    },
                )),
                Some((asked_at, answer)) => {
                    match answer {
                        Asked::Seen(lease) => server.on_seen(lease, asked_at, now),
                        Asked::Acquired(term) => server.on_acquired(term, asked_at, now),
                        Asked::Renewed(renewed) => server.on_renewed(renewed, asked_at),
                        Asked::Lost | Asked::Request(_) => server.on_failed(now),
                    }
                    None
                }
            };
        }

        fn leaders(&self) -> Vec<Term> {
            let leaders = self.servers.iter();
            leaders
                .filter_map(|(server, _)| server.leads(self.now))
                .collect()
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// A server moves on after this time; the message may be lost.
        Advance(usize, u64, bool),
        /// The database's clock is set back by this much.
        SetBack(i64),
        GiveUp(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        let advance = (
            0..SERVERS,
            prop_oneof![0_u64..400, 0_u64..8_000],
            prop::bool::weighted(0.1),
        );
        prop_oneof![
            40 => advance.prop_map(|(who, wait, lost)| Event::Advance(who, wait, lost)),
            1 => (0_i64..100_000).prop_map(Event::SetBack),
            1 => (0..SERVERS).prop_map(Event::GiveUp),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn two_servers_never_lead_at_once_and_terms_grow(
            events in prop::collection::vec(event(), 1..300)
        ) {
            let mut cluster = Cluster::new();
            for event in events {
                match event {
                    Event::Advance(who, wait, is_lost) => {
                        cluster.now += wait;
                        cluster.advance(who, is_lost);
                    }
                    Event::SetBack(by) => cluster.database.offset -= by,
                    Event::GiveUp(who) => cluster.servers[who].0.give_up(),
                }
                let leaders = cluster.leaders();
                prop_assert!(leaders.len() <= 1, "{cluster:?}");
                // Who leads has the newest term: its writes are taken.
                prop_assert!(leaders.iter().all(|term| *term == cluster.database.lease.term));
                prop_assert!(cluster.terms.is_sorted_by(|a, b| a < b), "{:?}", cluster.terms);
            }
        }

        #[test]
        fn another_server_takes_over_within_ten_seconds_of_the_leaders_end(
            events in prop::collection::vec(event(), 1..200),
            set_back in prop::bool::ANY,
        ) {
            let mut cluster = Cluster::new();
            for event in events {
                if let Event::Advance(who, wait, is_lost) = event {
                    cluster.now += wait;
                    cluster.advance(who, is_lost);
                }
            }
            // All end but the last one, which moves on every 50 ms.
            let end = cluster.now;
            let within = if set_back {
                cluster.database.offset -= 100_000;
                STALE_AFTER_MS + TTL_MS
            } else {
                10_000
            };
            let last = SERVERS - 1;
            while cluster.now - end < within {
                cluster.now += 50;
                cluster.advance(last, false);
            }
            // And it goes on.
            for _ in 0..2_000 {
                prop_assert!(cluster.servers[last].0.leads(cluster.now).is_some(), "{cluster:?}");
                cluster.now += 50;
                cluster.advance(last, false);
            }
        }
    }

    #[test]
    fn a_leader_that_was_paused_past_its_lease_leads_no_longer() {
        let mut server = Candidate::starting(0);
        assert_eq!(server.step(0), LeaseStep::Look);
        let free = SeenLease {
            term: Term(4),
            renewals: 7,
            expires_in_ms: -1,
        };
        server.on_seen(free, 0, 1);
        assert_eq!(server.step(1), LeaseStep::Acquire(free));
        server.on_acquired(Some(Term(5)), 1, 3);
        assert_eq!(server.leads(3), Some(Term(5)));
        assert_eq!(server.step(3), LeaseStep::Wait(RENEW_EVERY_MS - 2));
        assert_eq!(server.step(1 + RENEW_EVERY_MS), LeaseStep::Renew(Term(5)));
        let woken = 1 + TTL_MS;
        assert_eq!(server.leads(woken), None);
        assert_eq!(server.step(woken), LeaseStep::StepDown(Term(5)));
        server.on_ended(woken);
        assert_eq!(server.step(woken), LeaseStep::Wait(LOOK_EVERY_MS));
    }
}

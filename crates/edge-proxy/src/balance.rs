//! Which instance gets a request, or a connection of a TCP route: the one whose turn it is, or another one, drawn, that has less under way ("the power of
//! two choices"). That costs the same however many instances there are, as long as most of them can be reached.
//!
//! ```text
//!   in --> refused a connection, or did not accept it in time --> out --> a probe connects --> in
//! ```
//!
//! One that is out gets nothing while another one is in. A probe is a connection in the background; it is closed at once. Where all are out, they are asked
//! all the same.
//!
//! Where a route limits what one instance has under way (`hard_limit`) and all have as much, a request waits until one has less.
//!
//! A second and a third instance are tried within a budget of their route: when an app fails, it does not get three times its load for it.

// ring: a route has its upstreams, and a request tries those of its route.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::limits::{
    CONNECT_TIMEOUT, FIRST_PROBE_PAUSE, FIRST_RETRIES, MAX_ATTEMPTS, MAX_PROBE_PAUSE,
    MAX_SAVED_RETRIES, QUEUE_TIMEOUT, RETRIES_PER_SECOND, RETRY_PERCENT,
};
use crate::routes::HostRoute;

/// Who waits until one of some instances has less under way. Instances of one process share it.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: AtomicUsize,
    freed: Notify,
}

/// One that waits, until it is dropped.
struct Waiting<'a>(&'a Queue);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An instance as all routes that lead to it see it: what it has under way, and whether it can be reached.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// Requests without a whole answer, tunnels, and connections of TCP routes.
    in_flight: AtomicUsize,
    is_out: AtomicBool,
    is_probed: AtomicBool,
    pub(crate) queue: Arc<Queue>,
}

impl Upstream {
    pub(crate) fn new(address: SocketAddr, queue: Arc<Queue>) -> Self {
        Self {
            address,
            queue,
            in_flight: AtomicUsize::new(0),
            is_out: AtomicBool::new(false),
            is_probed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Relaxed)
    }

    /// How much it has under way.
    pub(crate) fn load(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// It accepted a connection.
    pub(crate) fn accepted(&self) {
        if self.is_out() {
            self.is_out.store(false, Ordering::Release);
        }
    }

    /// It accepted no connection: it is out until a probe has one.
    pub(crate) fn refused(self: &Arc<Self>) {
        self.is_out.store(true, Ordering::Release);
        if !self.is_probed.swap(true, Ordering::AcqRel) {
            tokio::spawn(probe(Arc::downgrade(self), self.address));
        }
    }
}

/// Connects now and then, until that succeeds, or nobody knows the instance any more.
async fn probe(upstream: Weak<Upstream>, address: SocketAddr) {
    let mut pause = FIRST_PROBE_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PROBE_PAUSE);
        match upstream.upgrade() {
            None => return,
            // A request was accepted meanwhile.
            Some(upstream) if !upstream.is_out() => {}
            Some(_) => {
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
                if !matches!(connected.await, Ok(Ok(_))) {
                    continue;
                }
            }
        }
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        tracing::info!(%address, "an instance accepts connections again");
        upstream.is_out.store(false, Ordering::Release);
        upstream.is_probed.store(false, Ordering::Release);
        // One that was refused between the two found a probe, which is this one.
        if !upstream.is_out() || upstream.is_probed.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

/// One request at an instance, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    upstream: Arc<Upstream>,
    /// Where the instance is among those of the route.
    pub(crate) place: usize,
}

impl Lease {
    /// `None`: it has so many under way.
    fn within(upstream: &Arc<Upstream>, place: usize, limit: usize) -> Option<Self> {
        let more = |under_way: usize| (under_way < limit).then_some(under_way + 1);
        let in_flight = &upstream.in_flight;
        let taken = in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        taken.ok().map(|_| Self {
            upstream: Arc::clone(upstream),
            place,
        })
    }

    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.in_flight.fetch_sub(1, Ordering::SeqCst);
        let queue = &self.upstream.queue;
        // Who comes to wait now looks at the instances again.
        if queue.waiting.load(Ordering::SeqCst) > 0 {
            queue.freed.notify_one();
        }
    }
}

/// Why there is no other instance for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoInstance {
    /// It has tried those that there are, or as many as it may, or its route has had its retries.
    Left,
    /// All have as many requests as they may have.
    Free,
}

/// The instances that one request tries, one after the other.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    to: &'a HostRoute,
    /// The place of the instance that the client wants to go to.
    wanted: Option<usize>,
    turn: usize,
    tried: [Option<SocketAddr>; MAX_ATTEMPTS],
    count: usize,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(to: &'a HostRoute, wanted: Option<usize>) -> Self {
        Self {
            to,
            wanted,
            turn: to.shared.turn.fetch_add(1, Ordering::Relaxed),
            tried: [None; MAX_ATTEMPTS],
            count: 0,
        }
    }

    /// The next one to try. Where all have as many requests as they may have, it waits for a while.
    pub(crate) async fn next(&mut self) -> Result<Lease, NoInstance> {
        let to = self.to;
        if self.count == MAX_ATTEMPTS.min(to.upstreams.len()) {
            return Err(NoInstance::Left);
        }
        if self.count > 0 && !to.shared.may_retry() {
            tracing::info!(env = %to.route.env, process = %to.route.process, "no other instance is tried: the route has had its retries");
            return Err(NoInstance::Left);
        }
        let lease = match self.try_next() {
            Some(lease) => lease,
            None => self.wait().await.ok_or(NoInstance::Free)?,
        };
        self.tried[self.count] = Some(lease.upstream.address);
        self.count += 1;
        Ok(lease)
    }

    /// Whether the client is to go to this instance from now on: it had none to go to, or that one is out.
    pub(crate) fn is_new_home(&self, lease: &Lease) -> bool {
        let wanted = self.wanted.map(|place| (place, &self.to.upstreams[place]));
        wanted.is_none_or(|(place, upstream)| place != lease.place && upstream.is_out())
    }

    /// `None`: all that are left have as many requests as they may have.
    fn try_next(&self) -> Option<Lease> {
        let upstreams = &self.to.upstreams;
        let limit = self.to.route.settings.hard_limit;
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let load = |at: usize| {
            let upstream = &upstreams[at];
            let is_tried = self.tried.contains(&Some(upstream.address));
            let load = upstream.load();
            (!is_tried && load < limit).then_some(load)
        };
        let that_is_in = |at: usize| load(at).filter(|_| !upstreams[at].is_out());
        if let Some(wanted) = self.wanted
            && that_is_in(wanted).is_some()
            && let Some(lease) = Lease::within(&upstreams[wanted], wanted, limit)
        {
            return Some(lease);
        }
        let (count, turn) = (upstreams.len(), self.turn.wrapping_add(self.count));
        loop {
            let chosen = choose(count, turn, that_is_in).or_else(|| choose(count, turn, load))?;
            // Another request may have had the last place meanwhile.
            let lease = Lease::within(&upstreams[chosen], chosen, limit);
            if lease.is_some() {
                return lease;
            }
        }
    }

    async fn wait(&self) -> Option<Lease> {
        let queue = &self.to.upstreams.first()?.queue;
        queue.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(queue);
        let end = tokio::time::Instant::now() + QUEUE_TIMEOUT;
        loop {
            let mut freed = std::pin::pin!(queue.freed.notified());
            freed.as_mut().enable();
            if let Some(lease) = self.try_next() {
                return Some(lease);
            }
            if tokio::time::timeout_at(end, freed).await.is_err() {
                return None;
            }
        }
    }
}

/// Which of so many: the first from `turn` on that has a load, or another, drawn by `turn`, that has less.
fn choose(count: usize, turn: usize, load: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    let from = |begin: usize| {
        let mut places = (0..count).map(move |step| begin.wrapping_add(step) % count);
        places.find_map(|at| Some((at, load(at)?)))
    };
    let first = from(turn.checked_rem(count)?)?;
    let second = from(drawn(turn) % count)?;
    Some(if second.1 < first.1 {
        second.0
    } else {
        first.0
    })
}

/// A number that is as good as random, of one that counts.
fn drawn(number: usize) -> usize {
    mixed(number as u64) as usize
}

/// Each bit of the number changes about half of these (splitmix64).
pub(crate) fn mixed(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// How often requests of a route may try another instance: as often as [`RETRY_PERCENT`] of its requests, and [`RETRIES_PER_SECOND`] times a second besides.
/// What is not used is saved, up to [`MAX_SAVED_RETRIES`].
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// In hundredths of a retry.
    saved: u64,
    /// How many requests were counted.
    requests: usize,
    /// Up to when time was counted.
    until: Instant,
}

impl RetryBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            saved: FIRST_RETRIES * 100,
            requests: 0,
            until: now,
        }
    }

    /// Takes one retry, where there is one. `requests`: how many the route has had.
    pub(crate) fn take(&mut self, requests: usize, now: Instant) -> bool {
        let more = requests.wrapping_sub(self.requests) as u64;
        self.requests = requests;
        let millis = now.saturating_duration_since(self.until).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.until += Duration::from_millis(millis);
        let by_requests = more.saturating_mul(RETRY_PERCENT);
        let by_time = millis.saturating_mul(RETRIES_PER_SECOND) / 10;
        let saved = self.saved.saturating_add(by_requests);
        let saved = saved.saturating_add(by_time).min(MAX_SAVED_RETRIES * 100);
        let may = saved >= 100;
        self.saved = if may { saved - 100 } else { saved };
        may
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The one whose turn it is, unless the other one that was drawn has less; and never one without a load.
        #[test]
        fn the_less_loaded_of_two_is_chosen(
            loads in prop::collection::vec(prop::option::weighted(0.8, 0..9_usize), 0..20),
            turn in any::<usize>(),
        ) {
            let chosen = choose(loads.len(), turn, |at| loads[at]);
            prop_assert_eq!(chosen.is_some(), loads.iter().any(Option::is_some));
            let Some(chosen) = chosen else { return Ok(()) };
            let in_turn = (0..loads.len()).map(|step| (turn % loads.len() + step) % loads.len());
            let first = in_turn.clone().find(|at| loads[*at].is_some()).unwrap();
            prop_assert!(loads[chosen].is_some());
            prop_assert!(chosen == first || loads[chosen] < loads[first]);
        }

        /// Whatever comes when: never more than a share of the requests, so many a second, and what was saved.
        #[test]
        fn retries_stay_within_their_budget(
            steps in prop::collection::vec((0..50_usize, 0..700_u64, 0..200_usize), 1..60),
        ) {
            let begin = Instant::now();
            let mut budget = RetryBudget::new(begin);
            let (mut requests, mut millis, mut taken) = (0, 0, 0_u64);
            for (more, later, wanted) in steps {
                requests += more;
                millis += later;
                let now = begin + Duration::from_millis(millis);
                let of_step = (0..wanted).filter(|_| budget.take(requests, now)).count() as u64;
                prop_assert!(of_step <= MAX_SAVED_RETRIES);
                taken += of_step;
                let most = FIRST_RETRIES * 100 + requests as u64 * RETRY_PERCENT + millis * RETRIES_PER_SECOND / 10;
                prop_assert!(taken * 100 <= most, "{taken} of {most}");
            }
        }
    }

    /// Of requests that last, no instance has many more than its share, also where one is slower than the others.
    #[test]
    fn an_instance_that_is_slow_gets_less() {
        let mut loads = [0_usize; 10];
        let (mut ends, mut given) = (std::collections::VecDeque::new(), [0_u32; 10]);
        for turn in 0..10_000 {
            let at = choose(loads.len(), turn, |at| Some(loads[at])).unwrap();
            loads[at] += 1;
            given[at] += 1;
            // The first one takes twenty times as long.
            ends.push_back((turn + if at == 0 { 400 } else { 20 }, at));
            while let Some(done) = ends.iter().position(|(end, _)| *end <= turn) {
                let (_, at) = ends.remove(done).unwrap();
                loads[at] -= 1;
            }
        }
        assert!(given[0] * 2 < given[1], "{given:?}");
        let of_others = &given[1..];
        let (least, most) = (of_others.iter().min(), of_others.iter().max());
        assert!(most.unwrap() * 2 < least.unwrap() * 3, "{given:?}");
    }

    #[test]
    fn instances_without_load_have_their_turn() {
        let chosen = |turn| choose(3, turn, |_| Some(0));
        assert_eq!(
            (0..6).filter_map(chosen).collect::<Vec<_>>(),
            [0, 1, 2, 0, 1, 2]
        );
        assert_eq!(choose(0, 7, |_| Some(0)), None);
    }

    #[test]
    fn a_retry_is_paid_by_requests_or_by_time() {
        let begin = Instant::now();
        let mut budget = RetryBudget::new(begin);
        for _ in 0..FIRST_RETRIES {
            assert!(budget.take(0, begin));
        }
        assert!(!budget.take(4, begin));
        assert!(budget.take(5, begin));
        assert!(!budget.take(5, begin));
        let soon = begin + Duration::from_millis(99);
        assert!(!budget.take(5, soon));
        assert!(budget.take(5, begin + Duration::from_millis(100)));
        // Not more than is saved at most.
        let late = begin + Duration::from_secs(3600);
        let taken = (0..1000).filter(|_| budget.take(5, late)).count();
        assert_eq!(taken as u64, MAX_SAVED_RETRIES);
    }
}

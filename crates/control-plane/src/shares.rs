//! Who may have how many connections: separate shares for strangers, users, members and other servers, so that none of them takes the
//! place of another.
//!
//! ```text
//!   accepted --> stranger --- the certificate of a member or a server ---> member, server
//!                   |  \----- the first request has a user's token ------> user
//!                   +-- neither within its time, or its place is needed: closed
//! ```
//!
//! Where there is no place for a stranger, it gets that of the stranger that has waited longest, of those from the address
//! that has the most: who shows a certificate or a token at once passes through any number of others who wait. Where no address has more than
//! its own, those who came within the last [`STRANGER_GRACE`] keep their places, and the newcomer is closed: thousands of nodes that come at once
//! after a restart get in one after the other, and do not push each other out. A member or server that has its number is refused. A user who has gets the place of
//! their own connection that has been idle longest, for [`IDLE_GRACE`] at least: one that forgot its connections keeps nobody with the same token out. Where its share is full,
//! a peer gets a place of the one with the most, if it has fewer: an idle one, or the oldest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::PublicKey;
use tokio_util::sync::CancellationToken;

use crate::limits::{
    IDLE_GRACE, MAX_CONNECTIONS_OF_A_MEMBER, MAX_CONNECTIONS_OF_A_SERVER,
    MAX_CONNECTIONS_OF_A_USER, MAX_MEMBER_CONNECTIONS, MAX_SERVER_CONNECTIONS, MAX_STRANGERS,
    MAX_STRANGERS_OF_AN_ADDRESS, MAX_USER_CONNECTIONS, OTHER_FILES, STRANGER_GRACE,
};

/// Whose connection it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// Nobody knows yet: an address, or an IPv6 network of one site.
    Stranger(IpAddr),
    /// A user, by name.
    User(String),
    /// Whoever has this key: a node or an edge, where it is recorded.
    Member(PublicKey),
    /// Another server.
    Server,
}

impl Peer {
    /// A stranger from this address. One site has a /64 of IPv6 at least, and so any number of addresses.
    pub(crate) fn stranger(address: IpAddr) -> Self {
        Self::Stranger(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Whether a connection has requests under way, and since when it has none. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<Mutex<(usize, Instant)>>);

/// One request that is under way, until this is dropped: its answer was read to the end.
#[derive(Debug)]
pub(crate) struct Busy(Activity);

impl Activity {
    /// Of a connection that has none yet.
    pub(crate) fn idle(since: Instant) -> Self {
        Self(Arc::new(Mutex::new((0, since))))
    }

    /// Of a connection that is never idle, as far as anybody counts.
    fn unknown(since: Instant) -> Self {
        Self(Arc::new(Mutex::new((1, since))))
    }

    /// One more is under way.
    pub(crate) fn begin(&self) -> Busy {
        self.lock().0 += 1;
        Busy(self.clone())
    }

    fn idle_for(&self, now: Instant) -> Option<Duration> {
        let (under_way, since) = *self.lock();
        (under_way == 0).then(|| now.saturating_duration_since(since))
    }

    fn lock(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut activity = self.0.lock();
        *activity = (activity.0.saturating_sub(1), Instant::now());
    }
}

/// How many connections are open, by whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenConnections {
    pub(crate) strangers: u64,
    pub(crate) users: u64,
    pub(crate) members: u64,
    pub(crate) servers: u64,
}

/// One connection that has a place.
#[derive(Debug)]
struct Connection {
    since: Instant,
    activity: Activity,
    /// Cancelled when another gets its place.
    closed: CancellationToken,
}

/// A kind of peers, and how many connections it has.
#[derive(Debug)]
struct Share {
    most: usize,
    most_of_one: usize,
    /// Whether a peer that has its number gets the place of its oldest connection.
    renews: bool,
    /// The connections of each peer, the oldest first.
    peers: BTreeMap<Peer, BTreeMap<u64, Connection>>,
    /// The peers, the one with the most last; of those that have as many, the one with the oldest connection.
    ranks: BTreeSet<(usize, Reverse<u64>, Peer)>,
    count: usize,
    turned_away: u64,
}

impl Share {
    fn new(most: usize, most_of_one: usize, renews: bool) -> Self {
        Self {
            most,
            most_of_one,
            renews,
            peers: BTreeMap::new(),
            ranks: BTreeSet::new(),
            count: 0,
            turned_away: 0,
        }
    }

    fn count_of(&self, peer: &Peer) -> usize {
        self.peers.get(peer).map_or(0, BTreeMap::len)
    }

    /// Changes a peer's connections, and its rank with them.
    fn change<T>(
        &mut self,
        peer: &Peer,
        change: impl FnOnce(&mut BTreeMap<u64, Connection>) -> T,
    ) -> T {
        fn rank(
            peer: &Peer,
            connections: &BTreeMap<u64, Connection>,
        ) -> Option<(usize, Reverse<u64>, Peer)> {
            let oldest = *connections.keys().next()?;
            Some((connections.len(), Reverse(oldest), peer.clone()))
        }
        let mut connections = self.peers.remove(peer).unwrap_or_default();
        if let Some(rank) = rank(peer, &connections) {
            self.ranks.remove(&rank);
        }
        self.count -= connections.len();
        let changed = change(&mut connections);
        self.count += connections.len();
        if let Some(rank) = rank(peer, &connections) {
            self.ranks.insert(rank);
            self.peers.insert(peer.clone(), connections);
        }
        changed
    }

    /// The connection of a peer that has been idle longest, and long enough.
    fn longest_idle(&self, peer: &Peer, now: Instant) -> Option<u64> {
        let connections = self.peers.get(peer)?.iter();
        let idle = connections.filter_map(|(id, connection)| {
            let idle_for = connection.activity.idle_for(now)?;
            (idle_for >= IDLE_GRACE).then_some((idle_for, Reverse(*id)))
        });
        idle.max().map(|(_, Reverse(id))| id)
    }

    /// Closes the connection of a peer that has been idle longest, or its oldest.
    fn close_one(&mut self, peer: &Peer, now: Instant) {
        let idle = self.longest_idle(peer, now);
        let closed = self.change(peer, |all| match idle {
            Some(id) => all.remove(&id),
            None => all.pop_first().map(|(_, connection)| connection),
        });
        if let Some(connection) = closed {
            connection.closed.cancel();
            self.turned_away += 1;
        }
    }

    /// Whether a peer's oldest connection has had its time.
    fn is_slow(&self, peer: &Peer, now: Instant) -> bool {
        let connections = self.peers.get(peer);
        let oldest = connections.and_then(|connections| connections.values().next());
        oldest.is_some_and(|oldest| now.saturating_duration_since(oldest.since) >= STRANGER_GRACE)
    }

    /// Makes place for one more connection of a peer. False: there is none.
    fn make_place(&mut self, peer: &Peer, now: Instant) -> bool {
        let own = self.count_of(peer);
        let gives_way = if own >= self.most_of_one {
            let renews = self.renews && self.is_slow(peer, now);
            (renews || self.longest_idle(peer, now).is_some()).then(|| peer.clone())
        } else if self.count < self.most {
            return true;
        } else {
            let most = self.ranks.last().cloned();
            let yields = |(most, _, other): &(usize, Reverse<u64>, Peer)| {
                if self.renews {
                    *most > own + 1 || self.is_slow(other, now)
                } else {
                    *most > own
                }
            };
            most.filter(yields).map(|(.., other)| other)
        };
        match gives_way {
            Some(other) => {
                self.close_one(&other, now);
                true
            }
            None => {
                self.turned_away += 1;
                false
            }
        }
    }
}

#[derive(Debug)]
struct Inner {
    strangers: Share,
    users: Share,
    members: Share,
    servers: Share,
    /// The id of the next connection.
    next: u64,
}

impl Inner {
    fn of(&mut self, peer: &Peer) -> &mut Share {
        match peer {
            Peer::Stranger(_) => &mut self.strangers,
            Peer::User(_) => &mut self.users,
            Peer::Member(_) => &mut self.members,
            Peer::Server => &mut self.servers,
        }
    }
}

/// The connections of each kind of peers. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Shares(Arc<Mutex<Inner>>);

/// How many connections were turned away or closed for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TurnedAway {
    pub(crate) strangers: u64,
    pub(crate) users: u64,
    pub(crate) members: u64,
    pub(crate) servers: u64,
}

/// One connection's place. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shares: Shares,
    peer: Peer,
    id: u64,
    closed: CancellationToken,
}

impl Place {
    /// Whose it is.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Cancelled when another gets it.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let id = self.id;
        let mut inner = self.shares.lock();
        inner
            .of(&self.peer)
            .change(&self.peer, |all| all.remove(&id));
    }
}

impl Shares {
    /// The shares of a process that may have so many files open; absent: any number.
    pub(crate) fn new(open_files: Option<u64>) -> Self {
        let files = open_files.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let files = files.saturating_sub(OTHER_FILES);
        let strangers = MAX_STRANGERS.min(files / 8);
        let users = MAX_USER_CONNECTIONS.min(files / 8);
        let servers = MAX_SERVER_CONNECTIONS.min(files / 16);
        let members = MAX_MEMBER_CONNECTIONS.min(files - strangers - users - servers);
        if members < MAX_MEMBER_CONNECTIONS {
            tracing::warn!(
                open_files,
                members,
                "the limit of open files bounds the connections of nodes and edges; hint: LimitNOFILE= of the service, or `ulimit -Hn`"
            );
        }
        Self(Arc::new(Mutex::new(Inner {
            strangers: Share::new(strangers, MAX_STRANGERS_OF_AN_ADDRESS, true),
            users: Share::new(users, MAX_CONNECTIONS_OF_A_USER, false),
            members: Share::new(members, MAX_CONNECTIONS_OF_A_MEMBER, false),
            servers: Share::new(servers, MAX_CONNECTIONS_OF_A_SERVER, false),
            next: 0,
        })))
    }

    /// A place for a connection of this peer; `None`: it has its number, or its share is full.
    pub(crate) fn admit(&self, peer: Peer) -> Option<Place> {
        self.admit_at(peer, Instant::now())
    }

    fn admit_at(&self, peer: Peer, now: Instant) -> Option<Place> {
        self.admit_active(peer, Activity::unknown(now), now)
    }

    /// The same, for a connection that counts its requests.
    pub(crate) fn admit_active(
        &self,
        peer: Peer,
        activity: Activity,
        now: Instant,
    ) -> Option<Place> {
        let mut inner = self.lock();
        if !inner.of(&peer).make_place(&peer, now) {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let closed = CancellationToken::new();
        let connection = Connection {
            since: now,
            activity,
            closed: closed.clone(),
        };
        inner
            .of(&peer)
            .change(&peer, |all| all.insert(id, connection));
        drop(inner);
        Some(Place {
            shares: self.clone(),
            peer,
            id,
            closed,
        })
    }

    /// Closes every connection of a member that was revoked.
    pub(crate) fn close(&self, key: &PublicKey) {
        let mut inner = self.lock();
        let peer = Peer::Member(key.clone());
        let connections = inner.of(&peer).peers.get(&peer);
        for connection in connections.into_iter().flat_map(BTreeMap::values) {
            connection.closed.cancel();
        }
    }

    /// How many are open now.
    pub(crate) fn open(&self) -> OpenConnections {
        let inner = self.lock();
        OpenConnections {
            strangers: inner.strangers.count as u64,
            users: inner.users.count as u64,
            members: inner.members.count as u64,
            servers: inner.servers.count as u64,
        }
    }

    /// How many were turned away or closed for others so far.
    pub(crate) fn turned_away(&self) -> TurnedAway {
        let inner = self.lock();
        TurnedAway {
            strangers: inner.strangers.turned_away,
            users: inner.users.turned_away,
            members: inner.members.turned_away,
            servers: inner.servers.turned_away,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn from(host: u8) -> Peer {
        Peer::stranger(IpAddr::from([127, 0, 0, host]))
    }

    fn open(places: &[Place]) -> usize {
        (places.iter())
            .filter(|place| !place.closed().is_cancelled())
            .count()
    }

    #[test]
    fn a_stranger_gets_the_place_of_the_one_that_waits_longest_where_most_wait() {
        let shares = Shares::new(None);
        let began = Instant::now();
        let admit = |peer: Peer| shares.admit_at(peer, began);
        let flood: Vec<_> = (0..10_000).filter_map(|_| admit(from(1))).collect();
        assert_eq!(open(&flood), MAX_STRANGERS_OF_AN_ADDRESS);
        let node = admit(from(2)).unwrap();
        // Of as many addresses as there are places.
        let many: Vec<_> = (0..=u8::MAX)
            .flat_map(|host| (0..8).map(move |_| Peer::stranger([127, 1, 0, host].into())))
            .filter_map(admit)
            .collect();
        assert!(!node.closed().is_cancelled(), "others had more");
        let all = open(&flood) + open(&many) + 1;
        assert_eq!(all, MAX_STRANGERS);
        assert!(open(&flood) < MAX_STRANGERS_OF_AN_ADDRESS);
        assert!(shares.turned_away().strangers > 0);
        drop((flood, many));
        assert_eq!(shares.lock().strangers.count, 1);
        drop(node);
        assert!(shares.lock().strangers.ranks.is_empty());
    }

    #[test]
    fn case_thousands_that_come_at_once_do_not_push_each_other_out() {
        let shares = Shares::new(None);
        let began = Instant::now();
        let host = |n: usize| {
            let [.., b, c] = n.to_be_bytes();
            Peer::stranger([10, 0, b, c].into())
        };
        let herd: Vec<_> = (0..5_000)
            .filter_map(|n| shares.admit_at(host(n), began))
            .collect();
        assert_eq!(open(&herd), MAX_STRANGERS);
        assert_eq!(
            herd.len(),
            MAX_STRANGERS,
            "nobody who was let in was closed"
        );
        let same: Vec<_> = (0..100)
            .filter_map(|_| shares.admit_at(host(0), began))
            .collect();
        assert_eq!(same.len(), 0);
        // Those who show nothing give way.
        let later = began + STRANGER_GRACE;
        let newcomer = shares.admit_at(host(4_999), later).unwrap();
        assert!(!newcomer.closed().is_cancelled());
        assert_eq!(open(&herd), MAX_STRANGERS - 1);
    }

    #[test]
    fn one_site_of_ipv6_is_one_address() {
        let a = Peer::stranger("2001:db8::1".parse().unwrap());
        let b = Peer::stranger("2001:db8::ffff:1".parse().unwrap());
        let c = Peer::stranger("2001:db8:0:1::1".parse().unwrap());
        assert!(a == b && a != c);
        let mapped = Peer::stranger("::ffff:127.0.0.1".parse().unwrap());
        assert_eq!(mapped, from(1));
    }

    #[test]
    fn a_user_that_has_its_number_gets_the_place_of_what_it_left_idle_longest() {
        let shares = Shares::new(None);
        let began = Instant::now();
        let user = || Peer::User("ci".to_owned());
        let mut busy = Vec::new();
        let mut places = Vec::new();
        for n in 0..MAX_CONNECTIONS_OF_A_USER {
            // The first ones read logs.
            let activity = Activity::idle(began);
            if n < 10 {
                busy.push(activity.begin());
            }
            places.push(shares.admit_active(user(), activity, began).unwrap());
        }
        let admit = |at| {
            let activity = Activity::idle(at);
            shares.admit_active(user(), activity, at)
        };
        // Just now they were used.
        assert!(admit(began).is_none());
        let later = began + IDLE_GRACE;
        let newcomer = admit(later).unwrap();
        assert!(places[10].closed().is_cancelled());
        assert_eq!(open(&places), places.len() - 1);
        assert!(!newcomer.closed().is_cancelled());
        let newcomers: Vec<_> = (0..10_000).filter_map(|_| admit(later)).collect();
        // What is under way goes on, and those that came just now stay.
        assert_eq!(open(&places), 10);
        assert_eq!(
            open(&newcomers) + open(std::slice::from_ref(&newcomer)),
            places.len() - 10
        );
        // One that has been read to its end is idle from then on.
        assert!(admit(later).is_none());
        busy.pop();
        assert!(admit(Instant::now() + 2 * IDLE_GRACE).is_some());
        assert_eq!(open(&places), 9);
    }

    #[test]
    fn a_member_that_has_its_number_is_refused_and_takes_no_place_of_another() {
        let shares = Shares::new(Some(2048));
        let most = shares.lock().members.most;
        assert!(most > MAX_CONNECTIONS_OF_A_MEMBER && most < 2048);
        let node = |id: u8| Peer::Member(PublicKey::of_der(&[id]).unwrap());
        let mut greedy = Vec::new();
        // Each as many as one may have, until there are no more places.
        for id in 1..=8 {
            while greedy.len() < most
                && let Some(place) = shares.admit(node(id))
            {
                greedy.push(place);
            }
        }
        assert_eq!(open(&greedy), most);
        assert!(shares.admit(node(1)).is_none());
        // Another node takes its first from whoever has the most.
        let other = shares.admit(node(100)).unwrap();
        assert_eq!(open(&greedy), most - 1);
        assert_eq!(other.peer(), &node(100));
        assert!(!other.closed().is_cancelled());
        // Strangers and users have their own.
        assert!(shares.admit(from(1)).is_some());
        assert!(shares.admit(Peer::User("admin".to_owned())).is_some());
        assert!(shares.turned_away().members > 0);
    }
}

//! The route table in memory: which host leads where.
//!
//! A request takes its route once and keeps it; a new table never touches requests in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use api::Unreadable;
use api::edge::{HasRoutes, Route, RouteTable};
use model::{EnvKey, Generation, LeaderSession, Term, TlsMode, route_name};
use tokio::sync::watch;

use crate::balance::{Attempts, Queue, RetryBudget, Upstream};
use crate::limits::MAX_IN_FLIGHT_PER_HOST;
use crate::metrics::{EnvMetrics, EnvSeries};
use crate::rates::Rates;
use crate::sticky::Cookies;

/// The table in use. It is changed in place: a change costs what it changes.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    table: RwLock<Table>,
    /// The ports of TCP routes.
    tcp_ports: watch::Sender<BTreeSet<u16>>,
}

#[derive(Debug, Default)]
struct Table {
    generation: Generation,
    /// The term of the leader that said it.
    term: Term,
    /// The session in which it was counted.
    session: LeaderSession,
    hosts: BTreeMap<String, Arc<HostRoute>>,
    /// The newest routes of hosts that cannot be read: a newer edge will.
    unreadable: BTreeMap<String, Unreadable>,
    /// How many routes have a backend at this address, and what it has under way.
    backends: BTreeMap<SocketAddr, (usize, Arc<Upstream>)>,
    /// How many routes have a port of edges.
    ports: BTreeMap<u16, usize>,
    /// Backends that no route leads to any more. What they have under way counts, should they come back.
    gone: BTreeMap<SocketAddr, Weak<Upstream>>,
    /// How many routes lead to the env, and what is counted of it.
    envs: BTreeMap<EnvKey, (usize, EnvMetrics)>,
    series: EnvSeries,
}

impl Table {
    /// Replaces a host's route, or removes it. Its turn goes on.
    fn set(&mut self, host: &str, route: Option<Route>) {
        let before = self.hosts.remove(host);
        if let Some(port) = route_name::port_of_edges(host) {
            let routes = self.ports.entry(port).or_default();
            *routes += usize::from(route.is_some());
            *routes -= usize::from(before.is_some());
            if *routes == 0 {
                self.ports.remove(&port);
            }
        }
        for upstream in before.iter().flat_map(|before| &before.upstreams) {
            self.leads_less_at(upstream);
        }
        // Before the old one goes: the env's counters go on where both lead to it.
        let counted = route.as_ref().map(|route| {
            let series = &self.series;
            let (routes, counted) = (self.envs)
                .entry(route.env.clone())
                .or_insert_with(|| (0, series.of(&route.env)));
            *routes += 1;
            counted.clone()
        });
        if let Some(before) = &before {
            self.leads_less_to(&before.route.env);
        }
        let (Some(route), Some(counted)) = (route, counted) else {
            return;
        };
        let addresses = || route.backends.iter().map(|backend| backend.address);
        let queue = addresses().find_map(|address| self.backends.get(&address));
        let queue = queue.map(|(_, upstream)| Arc::clone(&upstream.queue));
        let queue = queue.unwrap_or_default();
        let upstreams = addresses().map(|address| self.leads_to(address, &queue));
        let by_cookie = route.settings.sticky && route_name::is_host(host);
        let cookies = by_cookie.then(|| {
            let instances = route.backends.iter().map(|backend| &backend.instance);
            Cookies::new(&route.env, instances)
        });
        let after = HostRoute {
            upstreams: upstreams.collect(),
            cookies,
            route,
            shared: before.map_or_else(Arc::default, |before| Arc::clone(&before.shared)),
            counted,
        };
        self.hosts.insert(host.to_owned(), Arc::new(after));
    }

    /// One more route has a backend at this address.
    fn leads_to(&mut self, address: SocketAddr, queue: &Arc<Queue>) -> Arc<Upstream> {
        let known = self.gone.remove(&address).and_then(|gone| gone.upgrade());
        let made = || Arc::new(Upstream::new(address, Arc::clone(queue)));
        let new = || (0, known.unwrap_or_else(made));
        let (routes, upstream) = self.backends.entry(address).or_insert_with(new);
        *routes += 1;
        Arc::clone(upstream)
    }

    fn leads_less_at(&mut self, upstream: &Arc<Upstream>) {
        let Some((routes, _)) = self.backends.get_mut(&upstream.address) else {
            return;
        };
        *routes -= 1;
        if *routes > 0 {
            return;
        }
        self.backends.remove(&upstream.address);
        // As many as there are others at most, so that what is looked at was paid for when it was added.
        if self.gone.len() > self.backends.len() {
            self.gone.retain(|_, gone| gone.strong_count() > 0);
        }
        self.gone.insert(upstream.address, Arc::downgrade(upstream));
    }

    fn leads_less_to(&mut self, env: &EnvKey) {
        if let Some((routes, _)) = self.envs.get_mut(env) {
            *routes -= 1;
            if *routes == 0 {
                self.envs.remove(env);
                self.series.remove(env);
            }
        }
    }
}

/// Where one host leads.
#[derive(Debug)]
pub(crate) struct HostRoute {
    pub(crate) route: Route,
    /// Its backends, in the order of `route`.
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// How cookies call them; absent where clients go to any.
    pub(crate) cookies: Option<Cookies>,
    pub(crate) shared: Arc<Shared>,
    /// What is counted of its env.
    pub(crate) counted: EnvMetrics,
}

/// What goes on over the tables of a host.
#[derive(Debug)]
pub(crate) struct Shared {
    /// How many requests it has had: whose turn it is.
    pub(crate) turn: AtomicUsize,
    /// Requests that have no whole answer yet, and tunnels.
    in_flight: AtomicUsize,
    retries: Mutex<RetryBudget>,
    rates: Mutex<Rates>,
    /// From when on `rates` counts.
    since: Instant,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            turn: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            retries: Mutex::new(RetryBudget::new(Instant::now())),
            rates: Mutex::default(),
            since: Instant::now(),
        }
    }
}

impl Shared {
    /// Whether a request may be given to another backend now.
    pub(crate) fn may_retry(&self) -> bool {
        let requests = self.turn.load(Ordering::Relaxed);
        let mut retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        retries.take(requests, Instant::now())
    }
}

/// One request of a host, or a tunnel, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Shared>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The host has as many requests as an edge serves of one ([`MAX_IN_FLIGHT_PER_HOST`]).
    Host,
    /// The route has as many as it may have (`max_requests`).
    Route,
    /// The client asks more often than it may (`rate_limit`); after so long it may again.
    Client(Duration),
}

impl HostRoute {
    /// Begins a request of a client.
    ///
    /// # Errors
    /// Why it is answered by the edge.
    pub(crate) fn admit(&self, client: impl FnOnce() -> IpAddr) -> Result<InFlight, Refused> {
        let begun = InFlight(Arc::clone(&self.shared));
        let earlier = self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let settings = &self.route.settings;
        if let Some(most) = settings.max_requests
            && earlier >= most as usize
        {
            return Err(Refused::Route);
        }
        if earlier >= MAX_IN_FLIGHT_PER_HOST {
            return Err(Refused::Host);
        }
        if let Some(limit) = settings.rate_limit {
            let mut rates = self
                .shared
                .rates
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let taken = rates.take(client(), limit, self.shared.since.elapsed());
            taken.map_err(Refused::Client)?;
        }
        Ok(begun)
    }

    /// The backends that one request tries, one after the other.
    /// `wanted`: the place of the one that the client wants to go to.
    pub(crate) fn attempts(&self, wanted: Option<usize>) -> Attempts<'_> {
        Attempts::new(self, wanted)
    }
}

impl Routes {
    /// Without any route; envs are counted in these series.
    pub(crate) fn new(series: EnvSeries) -> Self {
        let table = Table {
            series,
            ..Table::default()
        };
        Self {
            table: RwLock::new(table),
            tcp_ports: watch::Sender::default(),
        }
    }

    /// Takes a newer table, or what changed since the one in use, or the whole one of another session; false: it is none of these, or of a leader
    /// that was taken for dead.
    pub(crate) fn take(&self, new: &RouteTable) -> bool {
        let mut table = self.write();
        let is_same_store = new.generation.incarnation == table.generation.incarnation;
        let is_of_the_past = is_same_store && new.term < table.term;
        let is_of_another_session = !new.session.is_none() && new.session != table.session;
        let is_news = if is_of_another_session {
            new.since.is_none()
        } else {
            new.generation.supersedes(table.generation)
        };
        if is_of_the_past || !is_news {
            return false;
        }
        let mut touched = BTreeSet::new();
        match new.since {
            Some(counter) => {
                let base = Generation {
                    counter,
                    ..new.generation
                };
                if base != table.generation {
                    return false;
                }
                for host in &new.removed {
                    table.set(host, None);
                    table.unreadable.remove(host);
                    touched.extend(route_name::port_of_edges(host));
                }
            }
            None => {
                // A route that cannot be read is not absent: its host leads where it led.
                let is_named = |host: &String| {
                    new.routes.contains_key(host) || new.unreadable.contains_key(host)
                };
                let gone = table.hosts.keys().filter(|host| !is_named(host));
                let gone: BTreeSet<String> = gone.cloned().collect();
                for host in &gone {
                    table.set(host, None);
                    touched.extend(route_name::port_of_edges(host));
                }
                table.unreadable.clear();
            }
        }
        for (host, route) in &new.routes {
            table.set(host, Some(route.clone()));
            table.unreadable.remove(host);
            touched.extend(route_name::port_of_edges(host));
        }
        self.tcp_ports.send_if_modified(|known| {
            let mut is_changed = false;
            for port in touched {
                is_changed |= if table.ports.contains_key(&port) {
                    known.insert(port)
                } else {
                    known.remove(&port)
                };
            }
            is_changed
        });
        table.unreadable.extend(new.unreadable.clone());
        (table.generation, table.term) = (new.generation, new.term);
        table.session = new.session;
        true
    }

    /// The ports of TCP routes, now and after each change.
    pub(crate) fn tcp_ports(&self) -> watch::Receiver<BTreeSet<u16>> {
        self.tcp_ports.subscribe()
    }

    /// The whole table, to be kept. A host whose newest route cannot be read has that one there, for a newer edge.
    pub(crate) fn whole(&self) -> RouteTable {
        let table = self.read();
        let hosts = table.hosts.iter();
        let hosts = hosts.filter(|(host, _)| !table.unreadable.contains_key(*host));
        RouteTable {
            generation: table.generation,
            term: table.term,
            session: table.session,
            unreadable: table.unreadable.clone(),
            routes: hosts
                .map(|(host, leads)| (host.clone(), leads.route.clone()))
                .collect(),
            ..RouteTable::default()
        }
    }

    /// The term of the leader that said the table in use.
    pub(crate) fn term(&self) -> Term {
        self.read().term
    }

    /// Which table is in use.
    pub(crate) fn has(&self) -> HasRoutes {
        let table = self.read();
        HasRoutes {
            generation: table.generation,
            session: table.session,
        }
    }

    /// The generation in use; 0 before there was any.
    pub(crate) fn generation(&self) -> Generation {
        self.read().generation
    }

    /// How many hosts lead anywhere.
    pub(crate) fn hosts(&self) -> usize {
        self.read().hosts.len()
    }

    /// Where this host (lowercase, no port) leads.
    pub(crate) fn find(&self, host: &str) -> Option<Arc<HostRoute>> {
        self.read().hosts.get(host).cloned()
    }

    /// Whether the edge has use for a certificate of this host (lowercase): a route leads from it, or a TCP route whose TLS ends here.
    pub(crate) fn serves(&self, host: &str) -> bool {
        let table = self.read();
        if table.hosts.contains_key(host) {
            return route_name::is_host(host);
        }
        let prefix = route_name::tls_prefix(host);
        let of_host = table.hosts.range(prefix.clone()..);
        of_host
            .take_while(|(name, _)| name.starts_with(&prefix))
            .any(|(_, leads)| leads.route.settings.tls == Some(TlsMode::Terminate))
    }

    /// Whether any route leads to this address.
    pub(crate) fn leads_to(&self, address: SocketAddr) -> bool {
        self.read().backends.contains_key(&address)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use futures_util::FutureExt as _;
    use model::Incarnation;

    use super::*;

    fn table(generation: u64, ports: &[u16]) -> RouteTable {
        let backends: Vec<_> = ports
            .iter()
            .map(|port| {
                serde_json::json!({
                    "instance": format!("0000{port:04x}"),
                    "address": format!("127.0.0.1:{port}"),
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "generation": generation,
            "routes": { "a.test": {
                "env": { "app": "a", "env": "prod" },
                "process": "web",
                "proxy_protocol": null,
                "backends": backends,
            }},
        }))
        .unwrap()
    }

    fn ports(routes: &Routes) -> Vec<u16> {
        let route = routes.find("a.test").unwrap();
        let upstreams = route.upstreams.iter();
        upstreams.map(|upstream| upstream.address.port()).collect()
    }

    /// The ports that a request tries, each of which is left when the next is tried.
    fn tried(routes: &Routes) -> Vec<u16> {
        let route = routes.find("a.test").unwrap();
        let mut attempts = route.attempts(None);
        let leases = std::iter::from_fn(|| attempts.next().now_or_never()?.ok());
        leases
            .map(|lease| lease.upstream().address.port())
            .collect()
    }

    #[test]
    fn each_backend_has_its_turn_and_is_tried_once() {
        let routes = Routes::default();
        assert!(routes.take(&table(1, &[1, 2, 3, 4])));
        for first in [1, 2, 3, 4, 1] {
            let mut ports = tried(&routes);
            assert_eq!(ports[0], first);
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports.len(), crate::limits::MAX_ATTEMPTS);
        }
        assert!(routes.take(&table(2, &[1])));
        assert_eq!(tried(&routes), [1]);
        assert!(routes.take(&table(3, &[])));
        assert!(tried(&routes).is_empty());
    }

    #[test]
    fn the_load_of_a_backend_is_that_of_all_routes_and_goes_on_over_tables() {
        let routes = Routes::default();
        let mut both = table(1, &[1, 2]);
        let other = both.routes["a.test"].clone();
        both.routes.insert("b.test".to_owned(), other);
        assert!(routes.take(&both));
        let loads = || -> Vec<usize> {
            let route = routes.find("a.test").unwrap();
            route
                .upstreams
                .iter()
                .map(|upstream| upstream.load())
                .collect()
        };
        let route = routes.find("b.test").unwrap();
        let lease = route.attempts(None).next().now_or_never();
        let lease = lease.unwrap().unwrap();
        drop(route);
        assert_eq!(loads(), [1, 0]);
        // Away, and back.
        assert!(routes.take(&table(2, &[])));
        assert!(routes.take(&table(3, &[2, 1])));
        assert_eq!(loads(), [0, 1]);
        drop(lease);
        assert_eq!(loads(), [0, 0]);
    }

    #[test]
    fn a_table_that_is_not_newer_is_refused() {
        let routes = Routes::default();
        assert!(routes.take(&table(5, &[1])));
        assert!(!routes.take(&table(5, &[])));
        assert!(!routes.take(&table(4, &[])));
        assert_eq!(ports(&routes), [1]);
        assert_eq!(routes.generation().counter, 5);
    }

    fn of(incarnation: u64, mut table: RouteTable) -> RouteTable {
        table.generation.incarnation = Incarnation(incarnation);
        table
    }

    #[test]
    fn a_table_of_another_incarnation_is_taken_whatever_its_counter() {
        let routes = Routes::default();
        assert!(routes.take(&of(1, table(900, &[1]))));
        assert!(routes.take(&of(2, table(3, &[2]))));
        assert_eq!(ports(&routes), [2]);
        assert!(!routes.take(&of(2, table(2, &[1]))));
    }

    /// A store whose files were put back counts the same numbers for other tables.
    #[test]
    fn the_whole_table_of_another_session_is_taken_whatever_its_counter_and_no_difference_is() {
        let routes = Routes::default();
        let said = |session, generation, since, port| RouteTable {
            session: LeaderSession(session),
            since,
            ..of(1, table(generation, &[port]))
        };
        assert!(routes.take(&said(7, 900, None, 1)));
        assert!(!routes.take(&said(8, 901, Some(900), 2)));
        assert!(!routes.take(&said(7, 900, None, 3)));
        assert!(routes.take(&said(8, 4, None, 4)));
        assert_eq!(ports(&routes), [4]);
        assert!(routes.take(&said(8, 5, Some(4), 5)));
        assert!(!routes.take(&said(8, 5, None, 6)));
        // A server of before sessions says none.
        assert!(!routes.take(&said(0, 5, None, 7)));
        assert!(routes.take(&said(0, 6, Some(5), 8)));
        assert_eq!(routes.has().session, LeaderSession::NONE);
    }

    #[test]
    fn a_table_of_a_leader_that_was_taken_for_dead_is_refused() {
        let routes = Routes::default();
        let said = |incarnation, generation, term, port| RouteTable {
            term: Term(term),
            ..of(incarnation, table(generation, &[port]))
        };
        assert!(routes.take(&said(1, 5, 3, 1)));
        assert!(!routes.take(&said(1, 9, 2, 2)));
        assert_eq!((ports(&routes), routes.term()), (vec![1], Term(3)));
        // A leader of later, and any of a restored store.
        assert!(routes.take(&said(1, 9, 4, 3)));
        assert!(routes.take(&said(2, 1, 1, 4)));
        assert_eq!((ports(&routes), routes.term()), (vec![4], Term(1)));
    }

    #[test]
    fn a_difference_changes_what_it_names_and_needs_the_table_that_it_is_of() {
        let routes = Routes::default();
        let mut first = of(1, table(7, &[1, 2]));
        let other = first.routes["a.test"].clone();
        first.routes.insert("b.test".to_owned(), other.clone());
        assert!(routes.take(&first));
        let difference = |counter, since, host: &str| RouteTable {
            since: Some(since),
            removed: BTreeSet::from([host.to_owned()]),
            ..of(1, table(counter, &[3]))
        };
        // Of a table that the edge does not have, and of another incarnation's.
        assert!(!routes.take(&difference(9, 8, "b.test")));
        assert!(!routes.take(&of(2, difference(9, 7, "b.test"))));
        assert_eq!(routes.whole(), first);
        assert!(routes.take(&difference(9, 7, "b.test")));
        assert_eq!(routes.whole(), of(1, table(9, &[3])));
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(
            [1, 2, 3].map(|port| routes.leads_to(at(port))),
            [false, false, true]
        );
        let mut more = difference(10, 9, "c.test");
        more.routes.insert("b.test".to_owned(), other);
        assert!(routes.take(&more));
        assert_eq!(
            [1, 2, 3].map(|port| routes.leads_to(at(port))),
            [true, true, true]
        );
        assert_eq!(routes.hosts(), 2);
    }

    #[test]
    fn a_host_whose_route_cannot_be_read_leads_where_it_led() {
        let routes = Routes::default();
        routes.take(&table(1, &[1]));
        let mut newer = serde_json::to_value(table(2, &[2])).unwrap();
        newer["routes"]["a.test"]["proxy_protocol"] = "v3".into();
        assert!(routes.take(&serde_json::from_value(newer).unwrap()));
        assert_eq!(ports(&routes), [1]);
        routes.take(&table(3, &[2]));
        assert_eq!(ports(&routes), [2]);
    }

    #[test]
    fn what_is_counted_of_an_env_goes_on_over_tables_and_ends_with_its_last_route() {
        let metrics = crate::metrics::EdgeMetrics::default();
        let mut registry = prometheus_client::registry::Registry::default();
        metrics.register(&mut registry);
        let told = || {
            let mut text = String::new();
            prometheus_client::encoding::prometheus_text::encode(&mut text, &registry).unwrap();
            text
        };
        let answered = "platform_edge_requests_total{app=\"a\",env=\"prod\",status=\"2xx\"} 1\n";
        let routes = Routes::new(metrics.series());
        routes.take(&table(1, &[1]));
        let route = routes.find("a.test").unwrap();
        let took = std::time::Duration::from_millis(3);
        route.counted.answered(http::StatusCode::OK, took);
        assert!(told().contains(answered), "{}", told());
        // Another table, and another host of the same env; then that one alone.
        let mut both = table(2, &[1]);
        let other = both.routes["a.test"].clone();
        both.routes.insert("b.test".to_owned(), other);
        routes.take(&both);
        let mut one = both.clone();
        one.generation.counter = 3;
        one.routes.remove("a.test");
        routes.take(&one);
        assert!(told().contains(answered), "{}", told());
        let mut none = one.clone();
        none.generation.counter = 4;
        none.routes.clear();
        routes.take(&none);
        assert!(!told().contains("app=\"a\""), "{}", told());
    }

    #[test]
    fn the_turn_goes_on_over_a_new_table() {
        let routes = Routes::default();
        routes.take(&table(1, &[1, 2]));
        assert_eq!(tried(&routes)[0], 1);
        routes.take(&table(2, &[1, 2, 3]));
        assert_eq!(tried(&routes)[0], 2);
    }
}

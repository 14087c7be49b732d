//! The route table in memory: which host leads where, and whose turn it is.
//!
//! A request takes its route once and keeps it; a new table never touches requests in flight.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use api::edge::{Route, RouteTable};
use model::Generation;

/// The table in use.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    table: RwLock<Arc<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    generation: Generation,
    hosts: BTreeMap<String, Arc<HostRoute>>,
}

/// Where one host leads, and whose turn it is there.
#[derive(Debug)]
pub(crate) struct HostRoute {
    pub(crate) route: Route,
    turn: AtomicUsize,
}

impl HostRoute {
    /// Its backends, beginning with the one whose turn it is; the next caller begins one later.
    pub(crate) fn in_turn(&self) -> Vec<SocketAddr> {
        let backends = &self.route.backends;
        if backends.is_empty() {
            return Vec::new();
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % backends.len();
        let (before, from) = backends.split_at(first);
        from.iter().chain(before).map(|b| b.address).collect()
    }
}

impl Routes {
    /// Replaces the table by a newer one; false: it is not newer.
    pub(crate) fn take(&self, new: &RouteTable) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if new.generation <= table.generation {
            return false;
        }
        let hosts = new.routes.iter().map(|(host, route)| {
            let turn = table
                .hosts
                .get(host)
                .map_or(0, |old| old.turn.load(Ordering::Relaxed));
            let entry = HostRoute {
                route: route.clone(),
                turn: AtomicUsize::new(turn),
            };
            (host.clone(), Arc::new(entry))
        });
        // A route that cannot be read is not absent: its host leads where it led.
        let unreadable = new.unreadable.keys();
        let kept =
            unreadable.filter_map(|host| Some((host.clone(), table.hosts.get(host)?.clone())));
        let hosts = hosts.chain(kept).collect();
        *table = Arc::new(Table {
            generation: new.generation,
            hosts,
        });
        true
    }

    /// The generation in use; 0 before there was any.
    pub(crate) fn generation(&self) -> Generation {
        self.current().generation
    }

    /// Where this host (lowercase, no port) leads.
    pub(crate) fn find(&self, host: &str) -> Option<Arc<HostRoute>> {
        self.current().hosts.get(host).cloned()
    }

    /// Whether any route leads to this address.
    pub(crate) fn leads_to(&self, address: SocketAddr) -> bool {
        self.current()
            .hosts
            .values()
            .any(|host| host.route.backends.iter().any(|b| b.address == address))
    }

    fn current(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

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
        route.in_turn().iter().map(SocketAddr::port).collect()
    }

    #[test]
    fn each_backend_has_its_turn() {
        let routes = Routes::default();
        assert!(routes.take(&table(1, &[1, 2, 3])));
        assert_eq!(ports(&routes), [1, 2, 3]);
        assert_eq!(ports(&routes), [2, 3, 1]);
        assert_eq!(ports(&routes), [3, 1, 2]);
        assert_eq!(ports(&routes), [1, 2, 3]);
    }

    #[test]
    fn a_table_that_is_not_newer_is_refused() {
        let routes = Routes::default();
        assert!(routes.take(&table(5, &[1])));
        assert!(!routes.take(&table(5, &[])));
        assert!(!routes.take(&table(4, &[])));
        assert_eq!(ports(&routes), [1]);
        assert_eq!(routes.generation(), Generation(5));
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
    fn the_turn_goes_on_over_a_new_table() {
        let routes = Routes::default();
        routes.take(&table(1, &[1, 2]));
        assert_eq!(ports(&routes), [1, 2]);
        routes.take(&table(2, &[1, 2, 3]));
        assert_eq!(ports(&routes), [2, 3, 1]);
    }
}

//! Clients that go to the instance that they went to before (`sticky` of a route): by a cookie, and those of TCP routes by their address.
//!
//! The cookie names the instance by a hash, so no address is in it, and every edge reads what another has set. It is for the whole host and ends with the
//! browser's session; it passes to the app as any other. A client whose instance is gone, leaves or refuses gets another one, and another cookie. One whose
//! instance has as many requests as it may have is served by another one once, and keeps its cookie.

// ring: a route has the cookies of its instances, and a client goes to one of its route.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use model::{EnvKey, InstanceId};
use sha2::{Digest as _, Sha256};

use crate::balance::mixed;
use crate::routes::HostRoute;
use crate::shares::site;

/// The name of the cookie.
const COOKIE: &str = "platform_sticky";
/// Bytes of an instance's hash.
const HASH_BYTES: usize = 16;

/// The instances of a route by what cookies call them.
#[derive(Debug, Default)]
pub(crate) struct Cookies {
    places: BTreeMap<String, usize>,
    values: Vec<String>,
}

impl Cookies {
    pub(crate) fn new<'a>(env: &EnvKey, instances: impl Iterator<Item = &'a InstanceId>) -> Self {
        let values: Vec<String> = instances.map(|id| value_of(env, *id)).collect();
        Self {
            places: values.iter().cloned().zip(0..).collect(),
            values,
        }
    }

    /// The place of the instance that a request's headers `Cookie` name.
    pub(crate) fn wanted<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
        let mut each = cookies.flat_map(|cookies| cookies.split(|byte| *byte == b';'));
        each.find_map(|cookie| {
            let cookie = std::str::from_utf8(cookie).ok()?.trim();
            let value = cookie.strip_prefix(COOKIE)?.strip_prefix('=')?;
            self.places.get(value).copied()
        })
    }

    /// What sets the cookie of the instance at this place: a value of `Set-Cookie` (RFC 6265).
    pub(crate) fn set(&self, place: usize, is_secure: bool) -> Option<String> {
        let value = self.values.get(place)?;
        let secure = if is_secure { "; Secure" } else { "" };
        Some(format!(
            "{COOKIE}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"
        ))
    }
}

fn value_of(env: &EnvKey, instance: InstanceId) -> String {
    let hash = Sha256::digest(format!("sticky {env} {instance}"));
    let mut value = String::with_capacity(2 * HASH_BYTES);
    for byte in hash.iter().take(HASH_BYTES) {
        let _ = write!(value, "{byte:02x}");
    }
    value
}

/// The place of the instance that a client of a TCP route goes to, of those that can be reached: the one that is first in an order that is the client's own
/// (rendezvous hashing), so that an instance which comes or goes moves no other's clients.
pub(crate) fn by_client(to: &HostRoute, client: IpAddr) -> Option<usize> {
    let (high, low) = match site(client) {
        IpAddr::V4(address) => (0, u64::from(address.to_bits())),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            ((bits >> 64) as u64, bits as u64)
        }
    };
    let client = mixed(mixed(high) ^ low);
    let backends = to.route.backends.iter().zip(&to.upstreams).enumerate();
    let that_are_in = backends.filter(|(_, (_, upstream))| !upstream.is_out());
    let weight = |instance: InstanceId| mixed(client ^ mixed(u64::from(instance.0)));
    let first = that_are_in.max_by_key(|(_, (backend, _))| weight(backend.instance));
    first.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::routes::Routes;

    fn env() -> EnvKey {
        serde_json::from_value(serde_json::json!({ "app": "a", "env": "prod" })).unwrap()
    }

    #[test]
    fn a_cookie_names_an_instance_and_nothing_else() {
        let cookies = Cookies::new(&env(), [InstanceId(1), InstanceId(2)].iter());
        let set = cookies.set(1, true).unwrap();
        // Every edge, of every version, has the same.
        assert_eq!(
            set,
            "platform_sticky=VALUE; Path=/; HttpOnly; SameSite=Lax; Secure"
                .replace("VALUE", &value_of(&env(), InstanceId(2)))
        );
        assert!(!cookies.set(0, false).unwrap().contains("Secure"));
        assert_eq!(cookies.set(2, false), None);
        let pair = set.split(';').next().unwrap();
        let wanted = |text: &str| cookies.wanted(std::iter::once(text.as_bytes()));
        assert_eq!(wanted(pair), Some(1));
        assert_eq!(wanted(&format!("a=b; {pair} ;c=d")), Some(1));
        for other in [
            "",
            ";;",
            "platform_sticky",
            "platform_sticky=",
            "platform_sticky=00",
            &format!("x{pair}"),
            &format!("{pair}0"),
            "\u{fe}=1",
        ] {
            assert_eq!(wanted(other), None, "{other}");
        }
        let lines = [&b"platform_sticky=unknown"[..], pair.as_bytes()];
        assert_eq!(cookies.wanted(lines.into_iter()), Some(1));
    }

    #[test]
    fn the_values_of_cookies_stay_as_they_are() {
        assert_eq!(
            value_of(&env(), InstanceId(0x2a)),
            "809589aab4968aed927c9496a8dc137d"
        );
    }

    #[test]
    fn a_client_of_a_tcp_route_moves_only_when_its_instance_goes() {
        let table = |generation: u64, ports: &[u16]| {
            let backends: Vec<_> = (ports.iter())
                .map(|port| serde_json::json!({ "instance": format!("0000{port:04x}"), "address": format!("127.0.0.1:{port}") }))
                .collect();
            let route = serde_json::json!({
                "env": { "app": "a", "env": "prod" }, "process": "db", "proxy_protocol": null,
                "settings": { "sticky": true }, "backends": backends,
            });
            serde_json::from_value(
                serde_json::json!({ "generation": generation, "routes": { "tcp:5": route } }),
            )
            .unwrap()
        };
        let routes = Routes::default();
        let ports_of = || -> Vec<u16> {
            let to = routes.find("tcp:5").unwrap();
            let clients = (0..300_u16).map(|n| IpAddr::from([192, 0, (n >> 8) as u8, n as u8]));
            clients
                .map(|client| to.upstreams[by_client(&to, client).unwrap()].address.port())
                .collect()
        };
        routes.take(&table(1, &[1, 2, 3]));
        let before = ports_of();
        for port in [1, 2, 3] {
            let share = before.iter().filter(|own| **own == port).count();
            assert!((60..140).contains(&share), "{port}: {share}");
        }
        routes.take(&table(2, &[3, 4, 1]));
        for (before, after) in before.iter().zip(ports_of()) {
            assert!(
                *before == after || *before == 2 || after == 4,
                "{before} {after}"
            );
        }
        routes.take(&table(3, &[]));
        let to = routes.find("tcp:5").unwrap();
        assert_eq!(by_client(&to, IpAddr::from([192, 0, 2, 1])), None);
    }
}

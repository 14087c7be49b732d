//! How many connections one client has, so that none takes the edge for itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::MAX_CONNECTIONS_PER_CLIENT;

/// Connections by client. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shares(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One connection of a client, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Shares,
    client: IpAddr,
}

impl Shares {
    /// One more connection of the client; `None`: it has all that it may have.
    pub(crate) fn take(&self, client: IpAddr) -> Option<Share> {
        let client = site(client);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_default();
        if *count >= MAX_CONNECTIONS_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Share {
            shares: self.clone(),
            client,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// An IPv4 address, or the /64 of an IPv6 one, of which one site has any number.
pub(crate) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_client_has_its_share_and_others_have_theirs() {
        let shares = Shares::default();
        let of = |text: &str| shares.take(text.parse().unwrap());
        let mut taken: Vec<_> = (0..MAX_CONNECTIONS_PER_CLIENT)
            .map(|_| of("192.0.2.1"))
            .collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(of("192.0.2.1").is_none());
        assert!(of("::ffff:192.0.2.1").is_none());
        assert!(of("192.0.2.2").is_some());
        taken.pop();
        assert!(of("192.0.2.1").is_some());
        let six: Vec<_> = (0..MAX_CONNECTIONS_PER_CLIENT)
            .map(|n| of(&format!("2001:db8::{n:x}")))
            .collect();
        assert!(of("2001:db8::ffff").is_none());
        assert!(of("2001:db8:0:1::1").is_some());
        drop((taken, six));
        assert!(shares.0.lock().unwrap().is_empty());
    }
}

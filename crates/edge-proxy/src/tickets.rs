//! Session tickets: sealed by a key that all edges have, so a client resumes its session at any of them.
//!
//! The keys come from the server and are in memory only: what was recorded of a connection cannot be opened by what is on a disk. An edge that
//! has none yet gives no tickets.

use std::sync::{PoisonError, RwLock};

use api::edge::TicketKeys;
use identity::{KeyError, SealKey};
use rustls::server::ProducesTickets;

/// What a ticket is sealed for.
const CONTEXT: &str = "tls session ticket";
/// How long a ticket is good at most, in seconds: a key seals for 12 h, and opens for as long again (`control_plane`).
const LIFETIME_SECONDS: u32 = 12 * 60 * 60;

/// The keys that seal and open tickets.
#[derive(Debug, Default)]
pub(crate) struct Tickets(RwLock<Option<Keys>>);

#[derive(Debug)]
struct Keys {
    current: SealKey,
    previous: Option<SealKey>,
}

impl Tickets {
    /// Takes other keys.
    pub(crate) fn set(&self, keys: &TicketKeys) -> Result<(), KeyError> {
        let keys = Keys {
            current: SealKey::load(&keys.current)?,
            previous: keys.previous.as_deref().map(SealKey::load).transpose()?,
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(keys);
        Ok(())
    }

    /// Has none any more.
    pub(crate) fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn with<T>(&self, what: impl FnOnce(&Keys) -> Option<T>) -> Option<T> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.as_ref().and_then(what)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.with(|_| Some(())).is_some()
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.with(|keys| keys.current.seal(plain, CONTEXT).ok())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.with(|keys| {
            let opened = keys.current.open(ticket, CONTEXT).ok();
            opened.or_else(|| keys.previous.as_ref()?.open(ticket, CONTEXT).ok())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_ticket_is_opened_by_every_edge_until_its_key_is_two_behind() {
        let key = || SealKey::generate().unwrap().text();
        let (first, second, third) = (key(), key(), key());
        let rotated = |current: &String, previous: Option<&String>| TicketKeys {
            current: current.clone(),
            previous: previous.cloned(),
        };
        let (one, other) = (Tickets::default(), Tickets::default());
        assert!(!one.enabled() && one.encrypt(b"session").is_none());
        for edge in [&one, &other] {
            edge.set(&rotated(&first, None)).unwrap();
        }
        let ticket = one.encrypt(b"session").unwrap();
        assert_eq!(other.decrypt(&ticket).unwrap(), b"session");
        other.set(&rotated(&second, Some(&first))).unwrap();
        assert_eq!(other.decrypt(&ticket).unwrap(), b"session");
        assert_eq!(one.decrypt(&other.encrypt(b"new").unwrap()), None);
        other.set(&rotated(&third, Some(&second))).unwrap();
        assert_eq!(other.decrypt(&ticket), None);
        assert_eq!(other.decrypt(b"no ticket"), None);
        other.clear();
        assert!(!other.enabled());
    }
}
